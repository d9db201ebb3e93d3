//! How long a process that just ended rests before it is started again.

use std::time::{Duration, Instant};

use node::pause::Pause;

/// A process that dies again and again is started anew no faster than this.
const MOST: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_millis(50);
/// After this long without a death, the next one counts as the first again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// The rests of one process.
pub(super) struct Rest {
    pause: Pause,
    died: Instant,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            pause: Pause::new(FIRST, MOST),
            died: Instant::now(),
        }
    }
}

impl Rest {
    /// Waits before the next start of what just ended.
    pub(super) async fn wait(&mut self) {
        if self.died.elapsed() >= FORGOTTEN_AFTER {
            self.pause.reset();
        }
        self.died = Instant::now();
        self.pause.wait().await;
    }
}
