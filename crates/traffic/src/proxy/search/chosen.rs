//! The endpoint that is tried, and what its load learns of the try.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::load::{self, InFlight};
use crate::proxy::forward::Tried;
use crate::proxy::kept::Upload;
use crate::proxy::upgrades::Holding;
use crate::proxy::view::{Destination, Endpoint, View};

/// A place at a copy, until it is dropped.
pub struct Slot {
    #[expect(dead_code, reason = "held for what its drop does")]
    pub(super) in_flight: InFlight,
    /// As one of its party's, where places are scarce.
    #[expect(dead_code, reason = "held for what its drop does")]
    pub(super) holding: Option<Holding>,
}

/// The endpoint to try, in the view in which it was chosen.
pub struct Chosen {
    pub view: Arc<View>,
    pub asked: Asked,
    /// Every copy has refused once, so one whose probe fails is better than none (Envoy calls it panic).
    pub insists: bool,
    pub(super) slot: Option<Slot>,
    /// It is known what became of the try.
    pub(super) settled: AtomicBool,
}

/// Which endpoint was asked, and since when.
#[derive(Clone)]
pub struct Asked {
    pub destination: Arc<Destination>,
    pub(super) index: usize,
    pub(super) began: load::Instant,
    pub at: Instant,
    /// It was known to have hung lately.
    pub suspect: bool,
    pub(super) upload: Upload,
}

/// Whoever leaves before the answer has learned something as well: it would have taken longer. A copy that hangs gets no cheaper by
/// clients that have no patience, and none dearer by clients that take their time to send.
impl Drop for Chosen {
    fn drop(&mut self) {
        if !self.settled.load(Ordering::Relaxed)
            && let Some(waited) = self.asked.waited()
        {
            let passed = self.asked.at.elapsed().as_nanos() as u64;
            let now = load::Instant(self.asked.began.0 + passed);
            self.endpoint().load.waited(waited, now);
        }
    }
}

impl Chosen {
    pub fn endpoint(&self) -> &Endpoint {
        self.asked.endpoint()
    }

    /// In flight for as long as the guard lives.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.slot.take()
    }

    /// An answer began. `well`: it was not one of those that say that something behind is broken.
    pub fn answered(&self, now: load::Instant, well: bool) {
        self.settled.store(true, Ordering::Relaxed);
        let load = &self.endpoint().load;
        match self.asked.waited() {
            Some(waited) => load.observe(waited, now),
            None => load.answers(now),
        }
        if well {
            load.succeeded();
        } else {
            load.failed(now, self.asked.may_eject(now));
        }
    }

    /// Tells the client to keep this endpoint, where the service asks for that.
    pub fn keep(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        if let Some(cookie) = &self.asked.destination.cookie {
            cookie.set(self.asked.index, asked, answer);
        }
    }

    /// It was taken for silent; an answer shows that it was only slow.
    pub fn after_all(&self, tried: Tried) -> Tried {
        if matches!(tried, Tried::Answered(_)) {
            self.endpoint().load.revive();
        }
        tried
    }
}

impl Asked {
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.destination.endpoints[self.index]
    }

    /// How long the copy has been waited for. `None`: it is the client that is waited for.
    pub(super) fn waited(&self) -> Option<Duration> {
        let since = self.upload.copy_waited_for(self.at)?;
        Some(since.elapsed())
    }

    /// Whether the others that are well are at least half of all: then what broke off is one copy's death, and what it had in hand, however much, is
    /// no storm when it goes elsewhere once (`docs/decisions/010-a-copys-death-costs-no-budget.md`).
    pub(super) fn most_others_are_well(&self, now: load::Instant) -> bool {
        let endpoints = &self.destination.endpoints;
        let others = endpoints.iter().enumerate();
        let well = others
            .filter(|(index, it)| *index != self.index && !it.load.ejected(now))
            .count();
        well * 2 >= endpoints.len()
    }

    /// Its copy died with this in hand (`docs/decisions/010-a-copys-death-costs-no-budget.md`). Asked once of each try that broke off.
    pub(super) fn was_in_hand(&self, now: load::Instant) -> bool {
        self.endpoint().load.broke_off(self.began, now)
    }

    /// At most half of the endpoints are ejected.
    pub(super) fn may_eject(&self, now: load::Instant) -> bool {
        let endpoints = &self.destination.endpoints;
        let ejected = endpoints.iter().filter(|it| it.load.ejected(now)).count();
        (ejected + 1) * 2 <= endpoints.len()
    }
}
