//! How long to wait before trying again what failed.

use std::time::Duration;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// Doubles from `first` to `most`; half of each pause is drawn.
#[derive(Debug)]
pub struct Pause {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Pause {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first,
        }
    }

    /// For connections to servers.
    pub fn of_connection() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.draw()).await;
    }

    /// The next pause, for whoever waits otherwise.
    pub fn draw(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.most);
        whole / 2
            + whole
                .div_f64(2.0)
                .mul_f64((draw() >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// Chance is for jitter, sessions and seeds here, never for secrets. Without it they are all the same, which does no harm.
pub fn draw() -> u64 {
    OsRng.try_next_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_within_bounds() {
        let mut pause = Pause::of_connection();
        for whole_ms in [100, 200, 400, 800, 1600, 2000, 2000] {
            let drawn = pause.draw();
            let whole = Duration::from_millis(whole_ms);
            assert!(
                drawn >= whole / 2 && drawn <= whole,
                "{drawn:?} of {whole:?}"
            );
        }
        pause.reset();
        assert!(pause.draw() <= Duration::from_millis(100));
    }
}
