//! What time it is, on both clocks: one for deadlines, which nobody sets, and one to stamp records with.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use plan::Now;

/// Between two looks at the clock by which records are stamped, of who waits for a time of it: somebody may set it.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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

    /// Until the wall's clock says this. `None`: for ever.
    pub async fn until(&self, end: Option<Timestamp>) {
        let Some(end) = end else {
            return std::future::pending().await;
        };
        while let Ok(left) = Duration::try_from(end.duration_since(self.at()))
            && !left.is_zero()
        {
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }
}
