//! Benchmarks of the whole system, beside its peers in the same run.
//!
//! | module | what it holds |
//! |---|---|
//! | [`up`] | exec to ready and to serving; memory and CPU at rest |
//! | [`store`] | durable writes over the wire, beside etcd on the same disk |
//! | [`shop`] | orders a second of the example store, and where the time of one goes |
//! | [`topics`] | durable publishes, beside NATS JetStream and RabbitMQ at equal sync |
//! | [`floods`] | what others notice of a client that means ill, and what it costs in memory; uploads beside the direct rate |
//! | [`gateway`] | CPU per proxied request, beside nginx and HAProxy |
//! | [`table`] | what a bench has to say: rows, where they were measured, what had to hold |
//! | [`peers`] | finding, configuring and running the programs of others |
//! | [`cpu`] | the CPU time of processes over a stretch, and which core they may use |
//! | `wire` | one closed-loop load for all that speak HTTP/2, so that no server has the cheaper client |
//!
//! Peers run with the configurations in `bench/peers`, where each says what of it is not the default and why.

pub mod cpu;
pub mod floods;
pub mod gateway;
pub mod peers;
pub mod shop;
pub mod store;
pub mod table;
pub mod topics;
pub mod up;
mod wire;

use std::path::PathBuf;

/// What every bench needs to know.
#[derive(Debug, Clone)]
pub struct Place {
    /// The workspace: examples and peers' configurations stand there.
    pub root: PathBuf,
    /// A folder on a real disk; what is made in it is gone afterwards.
    pub scratch: PathBuf,
}

/// The middle of several measurements.
///
/// # Panics
///
/// Without any.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    assert!(!values.is_empty(), "a median needs a measurement");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_middle_is_in_the_middle() {
        assert_eq!(median([3.0]), 3.0);
        assert_eq!(median([9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
