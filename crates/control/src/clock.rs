//! What time it is, on both clocks: one for deadlines, which nobody sets, and one to stamp records with.

use std::time::Instant;

use jiff::Timestamp;
use plan::Now;

#[derive(Clone)]
pub struct Clock {
    wall: boundary::Clock,
    began: Instant,
}

impl Clock {
    /// Stamps by `wall`; deadlines run on the machine's monotonic clock.
    pub fn new(wall: boundary::Clock) -> Self {
        Self {
            wall,
            began: Instant::now(),
        }
    }

    pub fn now(&self) -> Now {
        Now {
            instant: plan::Instant(self.began.elapsed()),
            at: self.at(),
        }
    }

    pub fn at(&self) -> Timestamp {
        (self.wall)()
    }

    pub fn wall(&self) -> boundary::Clock {
        self.wall.clone()
    }
}
