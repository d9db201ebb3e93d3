//! Who is connected to a listener, within bounds.
//!
//! Each connection has a seat. It is *unproven* until somebody has said on it who they are: by a certificate, or by a token that is good. Of
//! unproven seats there are few, they end soon, and where they are full a newcomer gets the one that was silent for longest. Who came just
//! now, and may be in a handshake, goes only where all did. So whoever opens connections, silent or not, closes only connections of that
//! kind, and on loopback, where all have one address, the owner's command still comes in.
//!
//! ```text
//! accepted ──▶ unproven ──certificate or token──▶ proven ──▶ closed
//!                 │ silent for 10 s, 60 s old, or the longest silent when all are taken
//!                 └──▶ closed
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// An unproven connection on which nothing is answered may be silent this long.
const UNPROVEN_SILENCE: Duration = Duration::from_secs(10);
/// An unproven connection ends at this age, whatever is asked on it.
const UNPROVEN_AGE: Duration = Duration::from_secs(60);
/// An unproven connection is not displaced before this age by a newcomer that finds an older one: a handshake takes that long at most, unless
/// the machine is overrun.
const YOUNG: Duration = Duration::from_secs(1);
/// A proven connection on which nothing is answered may be silent this long. Clients ask anew on another one.
const PROVEN_SILENCE: Duration = Duration::from_secs(300);

/// Seats of one listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of connections that did not yet say who they are.
    pub unproven: usize,
    /// Of those that did.
    pub proven: usize,
}

impl Default for Limits {
    /// Descriptors of the process allowing. A connection that sends nothing holds about 2 KiB, one that sends an endless head 64 KiB.
    fn default() -> Self {
        Self {
            unproven: 2_048,
            proven: 16_384,
        }
    }
}

impl Limits {
    /// Of these an address may have one in four. Loopback may have all: there everybody has the same address.
    const SHARE: usize = 4;

    /// As many as a process with this many descriptors can hold at two listeners beside its files.
    pub fn within(descriptors: usize) -> Self {
        let (all, most) = (descriptors / 5 * 2, Self::default());
        Self {
            unproven: most.unproven.min(all / 4).max(16),
            proven: most.proven.min(all / 4 * 3).max(16),
        }
    }

    fn of_one(client: Client, all: usize) -> usize {
        match client.0.is_loopback() {
            true => all,
            false => (all / Self::SHARE).max(1),
        }
    }
}

/// Whom connections are counted for: an IPv4 address, or the /64 of an IPv6 address, which is what one subscriber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(IpAddr);

impl Client {
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(network))
            }
            other => other,
        })
    }
}

/// All seats of a listener.
pub struct Seats {
    limits: Limits,
    begun: Instant,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    unproven: BTreeMap<u64, Arc<Occupant>>,
    unproven_of: BTreeMap<Client, usize>,
    proven: usize,
    proven_of: BTreeMap<Client, usize>,
}

struct Occupant {
    client: Client,
    accepted: Instant,
    /// The same in milliseconds from the listener's begin.
    came: u64,
    proven: AtomicBool,
    /// Milliseconds from the listener's begin to when something was last read; 0: never.
    heard: AtomicU64,
    answering: AtomicUsize,
    closing: Notify,
}

/// One connection's. It is free again when the last handle goes.
pub struct Seat {
    number: u64,
    occupant: Arc<Occupant>,
    seats: Arc<Seats>,
}

impl Seats {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            begun: Instant::now(),
            taken: Mutex::default(),
        })
    }

    /// A seat for a newcomer, if need be that of the unproven connection that was silent for longest: its own, where its share is used up.
    pub fn take(self: &Arc<Self>, client: Client) -> Seat {
        let occupant = Arc::new(Occupant {
            client,
            accepted: Instant::now(),
            came: self.milliseconds(),
            proven: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            answering: AtomicUsize::new(0),
            closing: Notify::new(),
        });
        let mut taken = self.lock();
        let own = taken.unproven_of.get(&client).copied().unwrap_or(0);
        if own >= Limits::of_one(client, self.limits.unproven) {
            taken.close_one_of(client);
        } else if taken.unproven.len() >= self.limits.unproven {
            taken.close_one();
        }
        taken.next += 1;
        let number = taken.next;
        taken.unproven.insert(number, occupant.clone());
        *taken.unproven_of.entry(client).or_default() += 1;
        drop(taken);
        Seat {
            number,
            occupant,
            seats: self.clone(),
        }
    }

    /// From the listener's begin until now.
    fn milliseconds(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Closes an unproven connection because descriptors are short. False: there is none.
    pub fn close_one(&self) -> bool {
        self.lock().close_one()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Of the client that has most; where several have as many, whichever of theirs is worth least.
    fn close_one(&mut self) -> bool {
        let Some(most) = self.unproven_of.values().copied().max() else {
            return false;
        };
        self.close_least(|taken, client| taken.unproven_of.get(&client) == Some(&most))
    }

    fn close_one_of(&mut self, client: Client) -> bool {
        self.close_least(|_, other| other == client)
    }

    fn close_least(&mut self, is_meant: impl Fn(&Self, Client) -> bool) -> bool {
        let now = Instant::now();
        let meant = self.unproven.iter();
        let meant = meant.filter(|(_, occupant)| is_meant(self, occupant.client));
        let mut least = None;
        for (number, occupant) in meant {
            let worth = occupant.worth(*number, now);
            if least.is_none_or(|least| worth < least) {
                least = Some(worth);
            }
            // They come by age: nobody after one who never said anything is worth less. So a flood of such costs each newcomer next to nothing.
            if matches!(worth, (false, false, 0, _)) {
                break;
            }
        }
        let Some((.., number)) = least else {
            return false;
        };
        if let Some(occupant) = self.remove_unproven(number) {
            occupant.closing.notify_one();
        }
        true
    }

    fn remove_unproven(&mut self, number: u64) -> Option<Arc<Occupant>> {
        let occupant = self.unproven.remove(&number)?;
        subtract(&mut self.unproven_of, occupant.client);
        Some(occupant)
    }
}

fn subtract(counts: &mut BTreeMap<Client, usize>, client: Client) {
    if let Some(count) = counts.get_mut(&client) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&client);
        }
    }
}

impl Occupant {
    /// The least goes first: of those that are no more young who never said anything, then who was silent for longest, then who is being
    /// answered. At last the young, the longest silent first, whatever is answered: who has just come had no time to say anything.
    fn worth(&self, number: u64, now: Instant) -> (bool, bool, u64, u64) {
        let heard = self.heard.load(Ordering::Relaxed);
        if now.saturating_duration_since(self.accepted) < YOUNG {
            return (true, false, heard.max(self.came), number);
        }
        let answering = self.answering.load(Ordering::Relaxed) > 0;
        (false, answering, heard, number)
    }
}

impl Seat {
    /// Something was read.
    pub fn hear(&self) {
        let since = self.seats.milliseconds().max(1);
        self.occupant.heard.store(since, Ordering::Relaxed);
    }

    /// Somebody said who they are. Where too many did, or too many from this address, the seat stays what it was.
    pub fn prove(&self) {
        if self.occupant.proven.load(Ordering::Relaxed) {
            return;
        }
        let client = self.occupant.client;
        let limits = self.seats.limits;
        let mut taken = self.seats.lock();
        let own = taken.proven_of.get(&client).copied().unwrap_or(0);
        if taken.proven >= limits.proven || own >= Limits::of_one(client, limits.proven) {
            return;
        }
        // Who was closed meanwhile stays so.
        if taken.remove_unproven(self.number).is_some() {
            taken.proven += 1;
            *taken.proven_of.entry(client).or_default() += 1;
            self.occupant.proven.store(true, Ordering::Relaxed);
        }
    }

    /// Requests that are being answered on it.
    pub fn answers(&self) -> usize {
        self.occupant.answering.load(Ordering::Relaxed)
    }

    /// Ends the connection at once, with all that is answered on it.
    pub fn close(&self) {
        self.occupant.closing.notify_one();
    }

    /// For as long as the guard lives the connection is not silent, whatever is read.
    pub fn answer(self: &Arc<Self>) -> Answering {
        self.occupant.answering.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Returns once the connection is to end.
    pub async fn over(&self) -> Over {
        loop {
            let end = self.end();
            if end <= Instant::now() {
                return Over::TooLong;
            }
            tokio::select! {
                () = self.occupant.closing.notified() => return Over::Displaced,
                () = tokio::time::sleep_until(end) => {}
            }
        }
    }

    /// When it is over if nothing more is read and what is answered goes on.
    fn end(&self) -> Instant {
        let heard = Duration::from_millis(self.occupant.heard.load(Ordering::Relaxed));
        let heard = (self.seats.begun + heard).max(self.occupant.accepted);
        let answering = self.occupant.answering.load(Ordering::Relaxed) > 0;
        let heard = if answering { Instant::now() } else { heard };
        match self.occupant.proven.load(Ordering::Relaxed) {
            true => heard + PROVEN_SILENCE,
            false => (heard + UNPROVEN_SILENCE).min(self.occupant.accepted + UNPROVEN_AGE),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if self.occupant.proven.load(Ordering::Relaxed) {
            taken.proven -= 1;
            subtract(&mut taken.proven_of, self.occupant.client);
        } else {
            taken.remove_unproven(self.number);
        }
    }
}

/// A request that is being answered.
pub struct Answering(Arc<Seat>);

impl Drop for Answering {
    fn drop(&mut self) {
        // What was answered until now was not silent.
        self.0.hear();
        self.0.occupant.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Another needed its seat.
    Displaced,
    /// It was silent for too long, or unproven for too long.
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Client {
        Client::of(text.parse().unwrap())
    }

    fn is_displaced(seat: &Seat) -> bool {
        !seat.occupant.proven.load(Ordering::Relaxed)
            && !seat.seats.lock().unproven.contains_key(&seat.number)
    }

    #[test]
    fn addresses_of_one_subscriber_are_one_client() {
        let table = [
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("127.0.0.1", "::1", false),
        ];
        for (one, other, same) in table {
            assert_eq!(client(one) == client(other), same, "{one} {other}");
        }
        assert!(client("::1").0.is_loopback());
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_the_seat_of_the_longest_silent() {
        let limits = Limits {
            unproven: 4,
            proven: 4,
        };
        let seats = Seats::new(limits);
        let here = client("127.0.0.1");
        let all: Vec<_> = (0..4).map(|_| Arc::new(seats.take(here))).collect();
        tokio::time::advance(2 * YOUNG).await;
        // The first speaks, the second is answered: the third was silent for longest.
        all[0].hear();
        let answered = all[1].answer();
        let fifth = seats.take(here);
        let displaced: Vec<_> = all.iter().map(|seat| is_displaced(seat)).collect();
        assert_eq!(displaced, [false, false, true, false]);
        assert_eq!(all[2].over().await, Over::Displaced);
        drop(answered);
        // A proven one is never displaced, and makes room.
        fifth.prove();
        let more: Vec<_> = (0..8).map(|_| seats.take(here)).collect();
        assert!(!is_displaced(&fifth));
        assert_eq!(seats.lock().unproven.len(), 4);
        drop((all, more, fifth));
        let taken = seats.lock();
        assert_eq!((taken.unproven.len(), taken.proven), (0, 0));
        assert!(taken.unproven_of.is_empty() && taken.proven_of.is_empty());
    }

    /// Whoever says one byte on each of many connections, or has something answered on each, does not displace who is in a handshake.
    #[tokio::test(start_paused = true)]
    async fn who_came_just_now_keeps_the_seat() {
        let limits = Limits {
            unproven: 8,
            proven: 8,
        };
        let seats = Seats::new(limits);
        let here = client("127.0.0.1");
        let talkers: Vec<_> = (0..8).map(|_| Arc::new(seats.take(here))).collect();
        let answers: Vec<_> = talkers.iter().map(Seat::answer).collect();
        tokio::time::advance(2 * YOUNG).await;
        talkers.iter().for_each(|seat| seat.hear());
        let owner = seats.take(here);
        let mut others = Vec::new();
        for _ in 0..7 {
            tokio::time::advance(Duration::from_millis(1)).await;
            let other = Arc::new(seats.take(here));
            other.hear();
            others.push((other.answer(), other));
        }
        assert!(!is_displaced(&owner), "the older ones go first");
        assert!(talkers.iter().all(|seat| is_displaced(seat)));
        // Of the young it is the longest silent that goes, and in a handshake something is heard.
        owner.hear();
        tokio::time::advance(Duration::from_millis(1)).await;
        let another = seats.take(here);
        assert!(!is_displaced(&owner) && !is_displaced(&another));
        drop((answers, others));
    }

    #[tokio::test]
    async fn an_address_displaces_its_own_and_the_most_numerous_goes_first() {
        let limits = Limits {
            unproven: 8,
            proven: 8,
        };
        let seats = Seats::new(limits);
        let other = seats.take(client("10.0.0.9"));
        let flood: Vec<_> = (0..100).map(|_| seats.take(client("10.0.0.1"))).collect();
        assert!(!is_displaced(&other));
        assert_eq!(flood.iter().filter(|seat| !is_displaced(seat)).count(), 2);
        // From many addresses: still the one with the most loses.
        let many: Vec<_> = (0..20)
            .map(|last| seats.take(client(&format!("10.0.1.{last}"))))
            .collect();
        assert_eq!(flood.iter().filter(|seat| !is_displaced(seat)).count(), 0);
        assert_eq!(seats.lock().unproven.len(), 8);
        drop((many, flood, other));
    }

    /// Descriptors are short: the address with the most connections gives up one of its idle ones, and nobody who has said who they are.
    #[tokio::test(start_paused = true)]
    async fn where_descriptors_are_short_the_busiest_address_gives_up_an_idle_one() {
        let seats = Seats::new(Limits {
            unproven: 100,
            proven: 100,
        });
        let (busy, other) = (client("10.0.0.1"), client("10.0.0.9"));
        let quiet: Vec<_> = (0..3).map(|_| seats.take(other)).collect();
        let many: Vec<_> = (0..6).map(|_| Arc::new(seats.take(busy))).collect();
        tokio::time::advance(2 * YOUNG).await;
        many[0].prove();
        let answered = many[1].answer();
        many[2].hear();
        let gone = || -> Vec<_> {
            let all = many.iter().enumerate();
            let gone = all.filter(|(_, seat)| is_displaced(seat));
            gone.map(|(index, _)| index).collect()
        };
        for expected in [vec![3], vec![3, 4]] {
            assert!(seats.close_one());
            assert_eq!(gone(), expected);
        }
        assert_eq!(many[3].over().await, Over::Displaced);
        assert!(
            !quiet.iter().any(is_displaced),
            "theirs are as idle, and fewer"
        );
        // All of them are as many by now: whoever is idle goes, and at last there is nobody left but who is proven.
        while seats.close_one() {}
        assert_eq!(gone(), [1, 2, 3, 4, 5]);
        assert!(quiet.iter().all(is_displaced));
        drop(answered);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_age_end_what_is_unproven() {
        let seats = Seats::new(Limits::default());
        let begun = Instant::now();
        let silent = seats.take(client("127.0.0.1"));
        assert_eq!(silent.over().await, Over::TooLong);
        assert_eq!(begun.elapsed().as_secs(), 10);

        // A byte now and then helps up to a minute.
        let begun = Instant::now();
        let dripping = Arc::new(seats.take(client("127.0.0.1")));
        let drips = tokio::spawn({
            let seat = dripping.clone();
            async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    seat.hear();
                }
            }
        });
        assert_eq!(dripping.over().await, Over::TooLong);
        assert_eq!(begun.elapsed().as_secs(), 60);
        drips.abort();

        // Who said who they are may be silent for minutes, and while they are answered for ever.
        let begun = Instant::now();
        let proven = Arc::new(seats.take(client("127.0.0.1")));
        proven.prove();
        let answering = proven.answer();
        let long = tokio::time::timeout(Duration::from_secs(3_600), proven.over()).await;
        assert!(long.is_err());
        drop(answering);
        assert_eq!(proven.over().await, Over::TooLong);
        assert!(begun.elapsed().as_secs() >= 3_900);
    }
}
