//! Turns of the parties that one worker serves.
//!
//! A worker reads from one connection after the other. A party that sends on thousands of them at once would be served all of that before anybody
//! else who comes a moment later. So between two looks at the sockets only so many reads are made for each party; the others of it wait in line for the next
//! turn, and whoever else has come meanwhile is served first. A party with few connections is read as they come: it can't hold up anybody for long.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::shares::Party;

/// Reads of one party in one turn. A request costs some 50 µs of a worker, so another party waits for a millisecond.
const READS: u32 = 16;

/// Connections of one party at one worker; only with more of them does it wait for turns.
const CROWD: usize = 256;

/// Of one worker.
#[derive(Default)]
pub struct Turns {
    lanes: Mutex<HashMap<Party, Weak<Lane>>>,
    /// Those in which somebody waits.
    exhausted: Mutex<Vec<Arc<Lane>>>,
    somebody_waits: Notify,
}

/// The line of one party.
struct Lane {
    party: Party,
    turns: Arc<Turns>,
    left: AtomicU32,
    waiting: Mutex<VecDeque<Weak<Waiter>>>,
}

#[derive(Default)]
struct Waiter {
    waits: AtomicBool,
    granted: AtomicBool,
    waker: AtomicWaker,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// For one connection of a party.
    pub fn line(self: &Arc<Self>, party: &Party) -> Line {
        let mut lanes = lock(&self.lanes);
        let known = lanes.get(party).and_then(Weak::upgrade);
        let lane = known.unwrap_or_else(|| {
            let lane = Arc::new(Lane {
                party: party.clone(),
                turns: self.clone(),
                left: AtomicU32::new(READS),
                waiting: Mutex::default(),
            });
            lanes.insert(party.clone(), Arc::downgrade(&lane));
            lane
        });
        Line {
            lane,
            waiter: Arc::default(),
        }
    }

    /// For ever: gives those who wait their turns.
    pub async fn give(&self) {
        loop {
            self.somebody_waits.notified().await;
            // The runtime looks at its sockets before it goes on with a task that yields.
            loop {
                tokio::task::yield_now().await;
                if !self.next() {
                    break;
                }
            }
        }
    }

    /// Whether somebody still waits.
    fn next(&self) -> bool {
        // A waiter that is woken may get in line again before this returns.
        let lanes = std::mem::take(&mut *lock(&self.exhausted));
        for lane in lanes {
            if lane.next() {
                lock(&self.exhausted).push(lane);
            }
        }
        !lock(&self.exhausted).is_empty()
    }
}

impl Lane {
    /// Whether somebody still waits.
    fn next(&self) -> bool {
        let mut left = READS;
        let mut waiting = lock(&self.waiting);
        while left > 0
            && let Some(first) = waiting.pop_front()
        {
            // Those that have ended cost nobody a turn.
            if let Some(waiter) = first.upgrade() {
                left -= 1;
                waiter.granted.store(true, Relaxed);
                waiter.waits.store(false, Relaxed);
                waiter.waker.wake();
            }
        }
        self.left.store(left, Relaxed);
        !waiting.is_empty()
    }

    /// Without waiting.
    fn take(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut lanes = lock(&self.turns.lanes);
        // Another one may have taken its place.
        if lanes
            .get(&self.party)
            .is_some_and(|lane| lane.strong_count() == 0)
        {
            lanes.remove(&self.party);
        }
    }
}

/// One connection in the line of its party.
pub struct Line {
    lane: Arc<Lane>,
    waiter: Arc<Waiter>,
}

impl Line {
    /// Ready: one read may be made.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let waiter = &*self.waiter;
        if !self.is_crowd() && !waiter.waits.load(Relaxed) {
            return Poll::Ready(());
        }
        if waiter.granted.swap(false, Relaxed) {
            return Poll::Ready(());
        }
        if !waiter.waits.load(Relaxed) {
            if self.lane.take() {
                return Poll::Ready(());
            }
            self.get_in_line();
        }
        waiter.waker.register(cx.waker());
        Poll::Pending
    }

    /// There was nothing to be read.
    pub fn give_back(&self) {
        if self.is_crowd() {
            let give = |left: u32| (left < READS).then_some(left + 1);
            let _ = self.lane.left.fetch_update(Relaxed, Relaxed, give);
        }
    }

    /// Each line of a lane holds it.
    fn is_crowd(&self) -> bool {
        Arc::strong_count(&self.lane) > CROWD
    }

    fn get_in_line(&self) {
        self.waiter.waits.store(true, Relaxed);
        let mut waiting = lock(&self.lane.waiting);
        let is_first = waiting.is_empty();
        waiting.push_back(Arc::downgrade(&self.waiter));
        if is_first {
            let turns = &self.lane.turns;
            lock(&turns.exhausted).push(self.lane.clone());
            turns.somebody_waits.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn party(number: u8) -> Party {
        Party::client([192, 0, 2, number].into())
    }

    #[tokio::test]
    async fn who_comes_on_thousands_of_connections_is_not_served_all_of_it_before_another() {
        let turns = Arc::<Turns>::default();
        let served = Arc::<AtomicU32>::default();
        let giving = {
            let turns = turns.clone();
            tokio::spawn(async move { turns.give().await })
        };
        let read = |from| {
            let (line, served) = (turns.line(&party(from)), served.clone());
            tokio::spawn(async move {
                poll_fn(|cx| line.poll(cx)).await;
                served.fetch_add(1, Relaxed)
            })
        };
        let crowd: Vec<_> = (0..2000).map(|_| read(1)).collect();
        let before_the_other = read(2).await.unwrap();
        assert!(before_the_other <= READS, "{before_the_other}");
        for one in crowd {
            one.await.unwrap();
        }
        assert_eq!(served.load(Relaxed), 2001);
        assert!(lock(&turns.lanes).is_empty() && lock(&turns.exhausted).is_empty());
        giving.abort();
    }

    #[tokio::test]
    async fn who_leaves_the_line_costs_nobody_a_turn_and_what_is_given_back_is_there() {
        let turns = Arc::<Turns>::default();
        let _crowd: Vec<_> = (0..CROWD).map(|_| turns.line(&party(1))).collect();
        let lines: Vec<_> = (0..READS + 3).map(|_| turns.line(&party(1))).collect();
        let poll = |line: &Line| {
            let cx = &mut Context::from_waker(std::task::Waker::noop());
            line.poll(cx).is_ready()
        };
        let ready = lines.iter().filter(|line| poll(line)).count();
        assert_eq!(ready, READS as usize);
        let mut waiting = lines.into_iter().skip(READS as usize);
        let (first, second, third) = (waiting.next(), waiting.next(), waiting.next());
        drop(first);
        assert!(!turns.next());
        let (second, third) = (second.unwrap(), third.unwrap());
        assert!(poll(&second) && poll(&third));
        // Two of the turn's reads are taken.
        for _ in 2..READS {
            assert!(poll(&second));
        }
        assert!(!poll(&third));
        assert!(!turns.next());
        third.give_back();
        assert!(poll(&third) && poll(&second));
    }
}
