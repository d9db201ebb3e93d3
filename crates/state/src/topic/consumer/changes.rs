//! What must be written down of a consumer, and what follows once it is.

use std::collections::BTreeSet;

use super::pauses::retry_pause;
use super::{Consumer, Position, RETRY_AFTER_MAX_MS, State};

/// A failed attempt, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub position: Position,
    pub attempts: u32,
    pub retry_at_ms: u64,
    pub error: String,
}

impl Failure {
    /// As a start at `now_ms` finds it: a clock that was set back since would make it wait for longer than anybody meant.
    pub fn due_again(&self, now_ms: u64) -> Self {
        let is_meant = self.retry_at_ms <= now_ms + RETRY_AFTER_MAX_MS;
        let retry_at_ms = match is_meant {
            true => self.retry_at_ms,
            false => now_ms + retry_pause(self.attempts, 1.0),
        };
        Self {
            retry_at_ms,
            ..self.clone()
        }
    }
}

/// What must be written down for a consumer to go on from here after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub read: Position,
    pub open: Vec<Position>,
    /// Of these, what has an attempt more than it failed: with somebody now.
    pub begun: Vec<Position>,
    pub failed: Vec<Failure>,
    /// For the dead letter.
    pub dead: Vec<Failure>,
    /// Failed before, and done now.
    pub recovered: Vec<Position>,
    /// Out of the dead letter.
    pub redriven: Vec<Position>,
    version: u64,
}

impl Changes {
    /// Up to here everything is done.
    pub fn floor(&self) -> Position {
        self.open
            .first()
            .map_or(self.read, |first| self.read.min(first - 1))
    }
}

impl Consumer {
    /// What is not stored yet; the same again until [`Consumer::recorded`].
    pub fn changes(&self) -> Option<Changes> {
        if self.version == self.recorded {
            return None;
        }
        let (mut failed, mut dead) = (Vec::new(), Vec::new());
        for position in &self.recording {
            let failure = self.failure(*position);
            match failure.attempts >= self.limits.attempts {
                true => dead.push(failure),
                false => failed.push(failure),
            }
        }
        let dying: BTreeSet<Position> = dead.iter().map(|failure| failure.position).collect();
        let open = self.open.keys().copied();
        let begun: BTreeSet<Position> = self.tokens.values().copied().collect();
        Some(Changes {
            read: self.read,
            open: open.filter(|position| !dying.contains(position)).collect(),
            begun: begun.into_iter().collect(),
            failed,
            dead,
            recovered: self.recovered.clone(),
            redriven: self.redriven.clone(),
            version: self.version,
        })
    }

    fn failure(&self, position: Position) -> Failure {
        let open = &self.open[&position];
        let (retry_at_ms, error) = match &open.state {
            State::Recording { retry_at_ms, error } => (*retry_at_ms, error.clone()),
            _ => (0, String::new()),
        };
        Failure {
            position,
            attempts: open.attempts,
            retry_at_ms,
            error,
        }
    }

    /// Whether something waits for being stored.
    pub fn is_urgent(&self) -> bool {
        !self.recording.is_empty() || !self.redriven.is_empty()
    }

    /// `changes` are on the disk.
    pub fn recorded(&mut self, changes: &Changes) {
        self.recorded = changes.version;
        self.recovered.drain(..changes.recovered.len());
        self.redriven.drain(..changes.redriven.len());
        for failure in &changes.failed {
            self.recording.remove(&failure.position);
            self.retry_at(failure.position, failure.retry_at_ms);
        }
        for failure in &changes.dead {
            self.recording.remove(&failure.position);
            self.bury(failure.position);
        }
    }

    /// The stored state says already that it is dead.
    fn bury(&mut self, position: Position) {
        let version = self.version;
        if let Some(open) = self.open.get_mut(&position)
            && open.attempts > 0
        {
            open.attempts = 0;
            self.retrying -= 1;
        }
        self.remove(position);
        self.version = version;
    }
}
