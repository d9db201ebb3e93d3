//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `condition` yields something; panics with `what` and the last hindrance after `within`.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> (T, Duration) {
    let begin = Instant::now();
    loop {
        match condition() {
            Ok(value) => return (value, begin.elapsed()),
            Err(hindrance) if begin.elapsed() > within => {
                panic!("{what}: not within {within:?}: {hindrance}")
            }
            Err(_) => pause(LOOK_INTERVAL),
        }
    }
}

/// Lets time pass between two looks.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a look at a condition is spaced out"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
