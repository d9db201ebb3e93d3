//! Shares of the descriptors: what comes in at one kind of socket, and from one party, leaves room for the others.
//!
//! ```text
//!             all descriptors of the process
//!   gateway 2/5 │ doors 1/5 │ mesh 1/10 │ handshakes 1/20 │ refused 1/50 │ what is left: connections to instances and peers
//!   client 1/4  │ caller 1/4│ peer 1/2  │                 │              │
//!   site 1/2    │           │           │                 │              │
//! ```
//!
//! A party whose share is full gives up its own: the oldest connection on which nothing happens (no byte came or went since it was last looked
//! at, and no request is being answered) makes room for the new one, or one whose client keeps a copy waiting for the rest of a request and has
//! sent none of it for 5 s. Where there is none, the new one is closed. So whoever holds thousands of silent connections keeps nobody else
//! out, and hardly itself. The clients of one site (an IPv6 /48) have a share together, beside their own; what is full as a whole does as a party does.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use model::boundary::KeyFingerprint;

use super::view::Caller;

/// Connections that are looked at for one to give up; so a new one costs no more, however many there are.
const LOOKED_AT: usize = 16;
/// Connections beyond a bound that are given up and not gone yet.
const GIVEN_UP_MOST: usize = 16;
/// Those that have ended are dropped from a queue that is longer than twice the others and this.
const QUEUE_SLACK: usize = 64;
/// A connection costs some 3 KB at rest, and the kernel as much: more than this many of one kind are not let in, however many descriptors there are.
const MOST_OF_A_KIND: usize = 16_384;
/// A client that sends nothing of the rest of its request for so long may be given up, where there is no room (nginx gives up one after 60 s, whether or
/// not there is).
const STALLED: Duration = Duration::from_secs(5);
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
    /// All clients of an IPv6 /48: as much as one site is given at most (RFC 6177), and 65,536 of what counts as a client.
    Site(Ipv6Addr),
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
            IpAddr::V6(v6) => IpAddr::V6(network(v6, 64)),
            v4 => v4,
        })
    }

    /// Whom a client belongs to, besides.
    pub fn site(&self) -> Option<Self> {
        match self {
            Self::Client(IpAddr::V6(v6)) => Some(Self::Site(network(*v6, 48))),
            _ => None,
        }
    }
}

/// The first `bits` of an address.
fn network(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(address) & !(u128::MAX >> bits))
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
                most_of_site: (most / 2).max(most / part).max(1),
                began: Instant::now(),
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
        let share = self.0[kind as usize].clone();
        let now = share.began.elapsed();
        share.take(party, now)
    }
}

struct Share {
    most: usize,
    most_of_one: usize,
    most_of_site: usize,
    /// What moments are told by.
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    all: Queue,
    /// Sites among them.
    parties: HashMap<Party, Queue>,
}

impl State {
    fn full(&mut self, party: &Party, most: usize) -> Option<&mut Queue> {
        let own = self.parties.get_mut(party)?;
        (own.open >= most).then_some(own)
    }

    fn forget_one_of(&mut self, party: &Party) {
        if let Some(own) = self.parties.get_mut(party) {
            own.open -= 1;
            if own.open == 0 {
                self.parties.remove(party);
            }
        }
    }
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

    /// Whether one was found that can be. One that was used since the last look is spared once (the clock algorithm of page caches). `now`: since the
    /// share's beginning.
    fn give_one_up(&mut self, now: Duration) -> bool {
        let mut looks = LOOKED_AT;
        // None twice.
        let mut left = self.oldest_first.len();
        while looks > 0
            && left > 0
            && let Some(first) = self.oldest_first.pop_front()
        {
            left -= 1;
            let Some(connection) = first.upgrade() else {
                continue;
            };
            // It goes as soon as its task is polled.
            if connection.given_up.load(Relaxed) {
                continue;
            }
            looks -= 1;
            if connection.is_in_use(now) {
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
    /// `now`: since the share's beginning.
    fn take(self: Arc<Self>, party: Party, now: Duration) -> Option<Place> {
        let connection = Arc::<Connection>::default();
        let site = party.site();
        let (of_site, of_party);
        {
            let mut state = self.state();
            if !self.makes_room(&mut state, &party, site.as_ref(), now) {
                return None;
            }
            state.all.add(&connection);
            let mut add = |party: &Party| {
                let own = state.parties.entry(party.clone()).or_default();
                own.add(&connection);
                own.open
            };
            of_site = site.as_ref().map_or(0, &mut add);
            of_party = add(&party);
        }
        Some(Place {
            connection,
            share: self,
            of_party,
            of_site,
            party,
        })
    }

    /// What is full gives up one of its own, the smallest first. One that is given up is open until its thread gets to it: of those there are never
    /// more than a few, however much faster others come.
    fn makes_room(
        &self,
        state: &mut State,
        party: &Party,
        site: Option<&Party>,
        now: Duration,
    ) -> bool {
        let most = match party {
            Party::Balancer(_) => self.most,
            _ => self.most_of_one,
        };
        if let Some(own) = state.full(party, most) {
            return own.open < most + GIVEN_UP_MOST && own.give_one_up(now);
        }
        let of_site = site.and_then(|site| state.full(site, self.most_of_site));
        if let Some(of_site) = of_site {
            let most = self.most_of_site + GIVEN_UP_MOST;
            return of_site.open < most && of_site.give_one_up(now);
        }
        let open = state.all.open;
        open < self.most || (open < self.most + GIVEN_UP_MOST && state.all.give_one_up(now))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a connection for the one who looks for room.
#[derive(Default)]
struct Connection {
    /// Exchanges that are under way. While there are any it is not to be given up,
    busy: AtomicU32,
    /// but where the rest of a request is waited for, and does not come.
    awaited: AtomicBool,
    /// Bytes came or went since it was last looked at.
    used: AtomicBool,
    /// When it was last found used: milliseconds since the share's beginning.
    used_at_ms: AtomicU64,
    given_up: AtomicBool,
    told: AtomicWaker,
}

impl Connection {
    /// One look.
    fn is_in_use(&self, now: Duration) -> bool {
        let now_ms = now.as_millis() as u64;
        if self.used.swap(false, Relaxed) {
            self.used_at_ms.store(now_ms, Relaxed);
            return true;
        }
        let silent_ms = now_ms.saturating_sub(self.used_at_ms.load(Relaxed));
        let stalled = self.awaited.load(Relaxed) && silent_ms >= STALLED.as_millis() as u64;
        self.busy.load(Relaxed) > 0 && !stalled
    }
}

/// A connection's place, until it is dropped.
pub struct Place {
    connection: Arc<Connection>,
    share: Arc<Share>,
    party: Party,
    of_party: usize,
    of_site: usize,
}

impl Place {
    /// How many the party had when this one came, with it.
    pub fn of_party(&self) -> usize {
        self.of_party
    }

    /// How many its site had then, with it. 0 where none is known.
    pub fn of_site(&self) -> usize {
        self.of_site
    }

    pub fn party(&self) -> &Party {
        &self.party
    }

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
        for party in self.party.site().iter().chain([&self.party]) {
            state.forget_one_of(party);
        }
    }
}

/// Keeps a connection from being given up.
#[derive(Clone)]
pub struct Keeper(Arc<Connection>);

impl Keeper {
    /// An exchange begins; the connection is kept until it [ends](Self::end).
    pub fn begin(&self) {
        self.0.used.store(true, Relaxed);
        self.0.awaited.store(false, Relaxed);
        self.0.busy.fetch_add(1, Relaxed);
    }

    pub fn end(&self) {
        self.0.used.store(true, Relaxed);
        self.0.busy.fetch_sub(1, Relaxed);
    }

    /// Whether the rest of the request is waited for.
    pub fn awaits(&self, awaits: bool) {
        self.0.awaited.store(awaits, Relaxed);
    }

    /// An exchange that begins now and ends with what this returns.
    pub fn busy(&self) -> Busy {
        self.begin();
        Busy(self.clone())
    }
}

/// An exchange that is under way.
pub struct Busy(Keeper);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end();
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
        let busy = places[0].keeper().busy();
        places[1].used();
        places.push(take(1).unwrap());
        assert_eq!(open(&places), [true, true, false, true, true]);
        places.push(take(1).unwrap());
        assert_eq!(open(&places), [true, true, false, false, true, true]);
        let all: Vec<_> = places.iter().map(|it| it.keeper().busy()).collect();
        assert!(take(1).is_none(), "all of them are in use");
        drop((busy, all));
        assert!(take(1).is_none(), "they were used a moment ago");
        assert!(take(3).is_some() && open(&[other]) == [true]);
        places.truncate(3);
        assert!(take(1).is_some());
    }

    #[test]
    fn what_is_given_up_and_not_gone_yet_bounds_what_comes() {
        let shares = Shares::new(1000);
        let (most, of_one) = (400, 100);
        let take = |number: u8| shares.take(Kind::Gateway, client(number));
        let places: Vec<_> = (0..3 * of_one).filter_map(|_| take(1)).collect();
        assert_eq!(places.len(), of_one + GIVEN_UP_MOST);
        let gone = places.len();
        drop(places);
        let places: Vec<_> = (0..gone).filter_map(|_| take(1)).collect();
        assert_eq!(places.len(), gone, "there is room where they are gone");
        let others = (2..=200).flat_map(|number| [number, number, number]);
        let others: Vec<_> = others.filter_map(take).collect();
        assert_eq!(places.len() + others.len(), most + GIVEN_UP_MOST);
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

    /// One of many clients of one of many sites.
    fn neighbour(site: u16, number: u16) -> Party {
        let address = Ipv6Addr::new(0x2001, 0xdb8, site, number, 0, 0, 0, 1);
        Party::client(address.into())
    }

    #[test]
    fn a_site_has_half_however_many_networks_it_brings() {
        let shares = shares();
        let take = |party| shares.take(Kind::Gateway, party);
        let mut places: Vec<_> = (0..8).map(|n| take(neighbour(1, n)).unwrap()).collect();
        assert_eq!(open(&places), [true; 8]);
        let busy = places[0].keeper().busy();
        places.push(take(neighbour(1, 8)).unwrap());
        assert_eq!(open(&places)[0..3], [true, false, true], "its own");
        let _all: Vec<_> = places.iter().map(|it| it.keeper().busy()).collect();
        assert!(take(neighbour(1, 9)).is_none(), "all are in use");
        let others: Vec<_> = (0..6).map_while(|n| take(neighbour(2, n))).collect();
        assert_eq!(others.len(), 6, "another site has what is left");
        assert_eq!(open(&others), [true; 6]);
        drop((places, others, busy));
        let state = shares.0[0].state();
        assert_eq!((state.all.open, state.parties.len()), (0, 0));
    }

    #[test]
    fn who_keeps_a_copy_waiting_makes_room_and_who_sends_does_not() {
        let share = shares().0[0].clone();
        let take = |seconds| {
            let now = Duration::from_secs(seconds);
            share.clone().take(client(1), now)
        };
        let places: Vec<_> = (0..4).map(|_| take(0).unwrap()).collect();
        let keepers: Vec<_> = places.iter().map(Place::keeper).collect();
        for keeper in &keepers {
            keeper.begin();
        }
        // One waits for its copy, the others for their clients, of which one sends.
        keepers[1..].iter().for_each(|it| it.awaits(true));
        assert!(take(100).is_none(), "it was used since the last look");
        assert!(take(100 + STALLED.as_secs() - 1).is_none(), "not long");
        places[1].used();
        assert!(take(100 + STALLED.as_secs()).is_some());
        assert_eq!(open(&places), [true, true, false, true]);
        // What was waited for has come.
        keepers[3].awaits(false);
        assert!(take(101 + STALLED.as_secs()).is_none());
        keepers[3].end();
        keepers[3].begin();
        assert!(take(200).is_some(), "the one that sends no more");
        assert_eq!(open(&places), [true, false, false, true]);
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
        let site = |text: &str| of(text).site();
        assert_eq!(site("2001:db8:1::1"), site("2001:db8:1:ffff::1"));
        assert_ne!(site("2001:db8:1::1"), site("2001:db8:2::1"));
        assert_eq!(site("::ffff:192.0.2.1"), None);
    }
}
