//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `condition` yields something; panics with `what` and the last hindrance after `within`.
pub fn until<T>(
    what: &str,
    within: Duration,
    condition: impl FnMut() -> Result<T, String>,
) -> (T, Duration) {
    looking_each(LOOK_INTERVAL, within, condition)
        .unwrap_or_else(|hindrance| panic!("{what}: not within {within:?}: {hindrance}"))
}

/// Looks every `interval`; the last hindrance after `within`.
pub fn looking_each<T>(
    interval: Duration,
    within: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<(T, Duration), String> {
    let begin = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok((value, begin.elapsed())),
            Err(hindrance) if begin.elapsed() > within => return Err(hindrance),
            Err(_) => pause(interval),
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
