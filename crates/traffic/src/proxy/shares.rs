//! Shares of the descriptors: what comes in at one kind of socket, and from one party, leaves room for the others.
//!
//! ```text
//!             all descriptors of the process
//!   gateway 2/5 │ doors 1/5 │ mesh 1/10 │ handshakes 1/20 │ refused 1/50 │ what is left: connections to instances and peers
//!   client 1/4  │ caller 1/4│ caller 1/2│                 │              │
//! ```
//!
//! An party whose share is full gives up its own: the oldest connection on which nothing happens (no byte came or went since it was last looked
//! at, and no request is being answered) makes room for the new one. Where there is none, the new one is closed. So whoever holds thousands of
//! silent connections keeps nobody else out, and hardly itself.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use model::boundary::KeyFingerprint;

use super::view::Caller;

/// Connections that are looked at for one to give up; so a new one costs no more, however many there are.
const LOOKED_AT: usize = 16;
/// Those that have ended are dropped from a queue that is longer than twice the others and this.
const QUEUE_SLACK: usize = 64;
/// A connection costs some 10 KB at rest: more than this many of one kind are not let in, however many descriptors there are.
const MOST_OF_A_KIND: usize = 16_384;
/// Where the number of descriptors is not to be known: the least that Linux gives.
const FEW_DESCRIPTORS: usize = 1024;

/// What a connection comes in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    Doors,
    /// Peers that have shown who they are.
    Mesh,
    /// Peers that have not yet.
    Handshakes,
    /// Who is not let in and is told so.
    Refused,
}

/// Who holds a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Client(IpAddr),
    /// Declared as one: it brings many clients, and has no share of its own.
    Balancer(IpAddr),
    Caller(Caller),
    /// Another proxy, known by the key that it has shown.
    Peer(KeyFingerprint),
}

impl Party {
    /// An IPv6 client has a whole /64 to come from (RFC 6177 gives a site no less), so it is known by that.
    pub fn client(address: IpAddr) -> Self {
        Self::Client(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                IpAddr::V6(network.into())
            }
            v4 => v4,
        })
    }
}

/// The shares of all kinds.
pub struct Shares([Arc<Share>; 5]);

impl Shares {
    /// `descriptors`: as many as the process may have open.
    pub fn new(descriptors: usize) -> Self {
        let share = |most: usize, part: usize| {
            let most = most.clamp(4, MOST_OF_A_KIND);
            Arc::new(Share {
                most,
                most_of_one: (most / part).max(1),
                state: Mutex::default(),
            })
        };
        Self([
            share(descriptors * 2 / 5, 4),
            share(descriptors / 5, 4),
            share(descriptors / 10, 2),
            share(descriptors / 20, 1),
            share(descriptors / 50, 1),
        ])
    }

    /// By the process's limit on open files, as it is now.
    pub fn of_this_process() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let most = limit.current.and_then(|it| usize::try_from(it).ok());
        Self::new(most.unwrap_or(FEW_DESCRIPTORS))
    }

    /// `None`: there is no room, not even by giving up another one.
    pub fn take(&self, kind: Kind, party: Party) -> Option<Place> {
        self.0[kind as usize].clone().take(party)
    }
}

struct Share {
    most: usize,
    most_of_one: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    all: Queue,
    parties: HashMap<Party, Queue>,
}

/// Connections in the order in which they are given up.
#[derive(Default)]
struct Queue {
    open: usize,
    oldest_first: VecDeque<Weak<Connection>>,
}

impl Queue {
    fn add(&mut self, connection: &Arc<Connection>) {
        self.open += 1;
        self.oldest_first.push_back(Arc::downgrade(connection));
        if self.oldest_first.len() > 2 * self.open + QUEUE_SLACK {
            self.oldest_first.retain(|it| it.strong_count() > 0);
        }
    }

    /// Whether one was found that can be. One that was used since the last look is spared once (the clock algorithm of page caches).
    fn give_one_up(&mut self) -> bool {
        let mut looked_at = 0;
        while looked_at < LOOKED_AT
            && let Some(first) = self.oldest_first.pop_front()
        {
            let Some(connection) = first.upgrade() else {
                continue;
            };
            looked_at += 1;
            if connection.given_up.load(Relaxed) {
                continue;
            }
            if connection.busy.load(Relaxed) || connection.used.swap(false, Relaxed) {
                self.oldest_first.push_back(first);
                continue;
            }
            connection.given_up.store(true, Relaxed);
            connection.told.wake();
            return true;
        }
        false
    }
}

impl Share {
    fn take(self: Arc<Self>, party: Party) -> Option<Place> {
        let connection = Arc::<Connection>::default();
        {
            let mut state = self.state();
            let state = &mut *state;
            let own = state.parties.entry(party.clone()).or_default();
            let most = match party {
                Party::Balancer(_) => self.most,
                _ => self.most_of_one,
            };
            let room = match own.open >= most {
                true => own.give_one_up(),
                false => state.all.open < self.most || state.all.give_one_up(),
            };
            if !room {
                if own.open == 0 {
                    state.parties.remove(&party);
                }
                return None;
            }
            own.add(&connection);
            state.all.add(&connection);
        }
        Some(Place {
            connection,
            share: self,
            party,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a connection for the one who looks for room.
#[derive(Default)]
struct Connection {
    /// Not to be given up now.
    busy: AtomicBool,
    /// Bytes came or went since it was last looked at.
    used: AtomicBool,
    given_up: AtomicBool,
    told: AtomicWaker,
}

/// A connection's place, until it is dropped.
pub struct Place {
    connection: Arc<Connection>,
    share: Arc<Share>,
    party: Party,
}

impl Place {
    /// Bytes came or went.
    pub fn used(&self) {
        self.connection.used.store(true, Relaxed);
    }

    /// For who decides later whether it is kept.
    pub fn keeper(&self) -> Keeper {
        Keeper(self.connection.clone())
    }

    /// Ready when it is to be closed, to make room for another.
    pub fn poll_given_up(&self, cx: &Context<'_>) -> Poll<()> {
        self.connection.told.register(cx.waker());
        match self.connection.given_up.load(Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    pub async fn given_up(&self) {
        poll_fn(|cx| self.poll_given_up(cx)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.share.state();
        state.all.open -= 1;
        if let Some(own) = state.parties.get_mut(&self.party) {
            own.open -= 1;
            if own.open == 0 {
                state.parties.remove(&self.party);
            }
        }
    }
}

/// Keeps a connection from being given up.
#[derive(Clone)]
pub struct Keeper(Arc<Connection>);

impl Keeper {
    /// Kept from here on, or to be given up when nothing happens on it.
    pub fn keep(&self, keep: bool) {
        self.0.used.store(true, Relaxed);
        self.0.busy.store(keep, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> Party {
        Party::client(IpAddr::from([192, 0, 2, number]))
    }

    /// 16 at the gateway, 4 of one client.
    fn shares() -> Shares {
        Shares::new(40)
    }

    fn open(places: &[Place]) -> Vec<bool> {
        let open = |place: &Place| !place.connection.given_up.load(Relaxed);
        places.iter().map(open).collect()
    }

    #[test]
    fn a_client_that_has_its_share_gives_up_its_own_and_what_is_idle_first() {
        let shares = shares();
        let take = |number| shares.take(Kind::Gateway, client(number));
        let other = take(2).unwrap();
        let mut places: Vec<_> = (0..4).map(|_| take(1).unwrap()).collect();
        places[0].keeper().keep(true);
        places[1].used();
        places.push(take(1).unwrap());
        assert_eq!(open(&places), [true, true, false, true, true]);
        places.push(take(1).unwrap());
        assert_eq!(open(&places), [true, true, false, false, true, true]);
        for place in &places {
            place.keeper().keep(true);
        }
        assert!(take(1).is_none(), "all of them are in use");
        assert!(take(3).is_some() && open(&[other]) == [true]);
        places.truncate(3);
        assert!(take(1).is_some());
    }

    #[test]
    fn when_all_is_full_whoever_idles_makes_room() {
        let shares = shares();
        let places: Vec<_> = (0..16)
            .map(|number| shares.take(Kind::Gateway, client(number)).unwrap())
            .collect();
        let more = shares.take(Kind::Gateway, client(99));
        assert!(more.is_some() && open(&places)[0..2] == [false, true]);
        assert!(shares.take(Kind::Doors, client(99)).is_some());
    }

    #[test]
    fn nothing_is_left_of_who_is_gone() {
        let shares = shares();
        for number in 0..10_000_u32 {
            let [.., high, low] = number.to_be_bytes();
            let party = Party::client(IpAddr::from([10, 0, high, low]));
            let place = shares.take(Kind::Gateway, party);
            assert!(place.is_some());
        }
        let state = shares.0[0].state();
        assert_eq!((state.all.open, state.parties.len()), (0, 0));
        assert!(state.all.oldest_first.len() <= QUEUE_SLACK + 2);
    }

    #[test]
    fn addresses_of_one_client() {
        let of = |text: &str| Party::client(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
