//! The gate of one local instance: who may enter, who is inside, and when the last one has left.
//!
//! ```text
//!       open ⇄ held ⇄ shut            all but open refuse as "not begun"
//!           ↘   ↓   ↙                 shut also gives up those who wait for an answer
//!             leaving ── nobody inside ──→ drained
//! ```
//!
//! State and count share one atomic word, so that nobody slips in between the closing of the gate and the count.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use model::traffic::Gate as State;
use tokio::sync::Notify;

use super::reports::Reports;

const INSIDE: u64 = u32::MAX as u64;
const OPEN: u64 = 0;
const SHUT: u64 = 1 << 32;
const LEAVING: u64 = 2 << 32;
const HELD: u64 = 3 << 32;

pub struct Gate {
    /// The state above, the number of those inside below.
    word: AtomicU64,
    most_inside: AtomicU32,
    shut: Notify,
    reports: Arc<Reports>,
}

/// Why nobody enters. The texts travel in the `mainland-not-begun` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Shut,
    Leaving,
    Full,
}

impl Refused {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shut => "not ready",
            Self::Leaving => "leaving",
            Self::Full => "busy",
        }
    }
}

impl Gate {
    pub fn new(reports: Arc<Reports>) -> Arc<Self> {
        Arc::new(Self {
            word: AtomicU64::new(SHUT),
            most_inside: AtomicU32::new(0),
            shut: Notify::new(),
            reports,
        })
    }

    /// Sets what the snapshot says. Those inside stay inside.
    pub fn set(&self, state: State, most_inside: u32) {
        self.most_inside
            .store(most_inside.max(1), Ordering::Relaxed);
        let wanted = match state {
            State::Open => OPEN,
            State::Held => HELD,
            State::Shut => SHUT,
            State::Leaving => LEAVING,
        };
        let update = |word| Some((word & INSIDE) | wanted);
        let _ = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        if wanted == SHUT {
            self.shut.notify_waiters();
        }
    }

    /// `insist`: also where the gate is only held.
    pub fn enter(self: &Arc<Self>, insist: bool) -> Result<Pass, Refused> {
        let most = u64::from(self.most_inside.load(Ordering::Relaxed));
        let step = |word: u64| {
            (admits(word & !INSIDE, insist) && (word & INSIDE) < most).then_some(word + 1)
        };
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
            .map(|_| Pass(self.clone()))
            .map_err(|word| match word & !INSIDE {
                SHUT | HELD => Refused::Shut,
                LEAVING => Refused::Leaving,
                _ => Refused::Full,
            })
    }

    /// The gate is closed for good and nobody is behind it.
    pub fn is_drained(&self) -> bool {
        self.word.load(Ordering::Acquire) == LEAVING
    }

    #[cfg(test)]
    fn inside(&self) -> u32 {
        (self.word.load(Ordering::Acquire) & INSIDE) as u32
    }

    /// Completes when the gate is shut. Whoever waits for the instance waits for this beside it.
    pub fn when_shut(&self) -> impl Future<Output = ()> + Send + '_ {
        let shut = self.shut.notified();
        async move {
            if self.word.load(Ordering::Acquire) & !INSIDE != SHUT {
                shut.await;
            }
        }
    }
}

fn admits(state: u64, insist: bool) -> bool {
    state == OPEN || (insist && state == HELD)
}

/// One request or connection behind the gate; dropping it leaves.
pub struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        let before = self.0.word.fetch_sub(1, Ordering::AcqRel);
        if before == LEAVING + 1 {
            self.0.reports.touch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_enter() {
        for (state, inside, expected) in [
            (State::Open, 0, Ok(())),
            (State::Open, 2, Err(Refused::Full)),
            (State::Shut, 0, Err(Refused::Shut)),
            (State::Held, 1, Err(Refused::Shut)),
            (State::Leaving, 1, Err(Refused::Leaving)),
        ] {
            let gate = Gate::new(Reports::new());
            gate.set(State::Open, 2);
            let passes: Vec<_> = (0..inside)
                .map(|_| gate.enter(false).ok().unwrap())
                .collect();
            gate.set(state, 2);
            assert_eq!(
                gate.enter(false).map(|_| ()),
                expected,
                "{state:?} {inside}"
            );
            assert_eq!(gate.inside(), inside);
            let insisting = gate.enter(true).is_ok();
            assert_eq!(insisting, expected.is_ok() || state == State::Held);
            drop(passes);
        }
    }

    #[test]
    fn drained_is_leaving_and_empty() {
        let reports = Reports::new();
        let changed = reports.subscribe();
        let gate = Gate::new(reports);
        gate.set(State::Open, 9);
        let pass = gate.enter(false).ok().unwrap();
        gate.set(State::Leaving, 9);
        assert!(!gate.is_drained() && !changed.has_changed().unwrap());
        drop(pass);
        assert!(gate.is_drained() && changed.has_changed().unwrap());
        gate.set(State::Open, 9);
        assert!(!gate.is_drained());
    }

    #[tokio::test]
    async fn shutting_wakes_who_waits_and_who_comes_later() {
        let gate = Gate::new(Reports::new());
        gate.set(State::Open, 1);
        let mut waiting = std::pin::pin!(gate.when_shut());
        gate.set(State::Held, 1);
        let held = std::future::poll_fn(|context| {
            std::task::Poll::Ready(waiting.as_mut().poll(context).is_pending())
        });
        assert!(
            held.await,
            "what is in flight goes on while the gate is held"
        );
        gate.set(State::Shut, 1);
        waiting.await;
        gate.when_shut().await;
    }
}
