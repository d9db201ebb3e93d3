//! How long a message waits for its next attempt, and a consumer that is away for its next message.

/// The first retry comes within this, each further one within four times as much: five attempts outlast a consumer's restart, or what it needs
/// being gone for a while. Tests have less patience.
pub(super) const RETRY_FIRST_MS: u64 = if cfg!(test) { 20 } else { 500 };
pub(super) const RETRY_FACTOR: u64 = 4;
pub(super) const RETRY_MAX_MS: u64 = if cfg!(test) { 2_000 } else { 30_000 };
/// A consumer that is away is asked again within this, then within twice as much, and so on.
pub(super) const AWAY_FIRST_MS: u64 = 100;
pub(super) const AWAY_MAX_MS: u64 = 2_000;

/// Exponential, half of it jitter: many who failed together do not come back together, and none comes back at once.
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
pub(super) fn retry_pause(failures: u32, random: f64) -> u64 {
    let factor = RETRY_FACTOR.saturating_pow(failures.saturating_sub(1));
    let bound_ms = RETRY_FIRST_MS.saturating_mul(factor).min(RETRY_MAX_MS);
    bound_ms / 2 + jitter(bound_ms / 2, random)
}

/// Exponential with full jitter.
pub(super) fn away_pause(times: u32, random: f64) -> u64 {
    let doublings = times.saturating_sub(1).min(20);
    jitter((AWAY_FIRST_MS << doublings).min(AWAY_MAX_MS), random)
}

fn jitter(bound_ms: u64, random: f64) -> u64 {
    (bound_ms as f64 * random.clamp(0.0, 1.0)) as u64
}
