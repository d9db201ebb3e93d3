//! The whole system from a seed: fake time, network, disks and runtimes around the production step functions.
//!
//! Three nodes in three zones, a front door and one server run [`plan::nodes`], [`plan::service`], [`plan::place`], [`plan::road`] and [`plan::agent`]: the very
//! functions that the binary links. Around them is a world that a seed draws: what crashes, what is lost, late or out of order, who can't hear
//! whom, and what a user asks for meanwhile. The same seed gives the same world, so a seed that fails is a regression test.
//!
//! | module | what it plays |
//! |---|---|
//! | [`world`] | time, the queue of events, who talks to whom |
//! | [`server`] | what `control` does around the decisions |
//! | [`node`] | what the agent's executor, the shims and the proxy do |
//! | [`workload`] | what the user declares: a service of each temper |
//! | [`store`] | the control plane's records, fenced by the leader's epoch |
//! | [`faults`] | what goes wrong, and what the user does |
//! | [`invariants`] | what must hold at every moment, and what must come to hold once the faults end |
//!
//! [`Bug`] takes one guard away from what surrounds the decisions: a simulator that does not notice is no evidence.

mod faults;
mod invariants;
mod node;
mod server;
mod store;
mod workload;
mod world;

use std::ops::Range;

/// How long, how hard, and with which guard taken away.
#[derive(Debug, Clone)]
pub struct Options {
    /// Faults happen in this first part of the run. Milliseconds.
    pub faults_for_ms: u64,
    /// After the faults, everything is as wanted within this. Milliseconds.
    pub recover_within_ms: u64,
    pub bug: Option<Bug>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            faults_for_ms: 40_000,
            recover_within_ms: 180_000,
            bug: None,
        }
    }
}

/// A guard that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A silent node counts as lost before its leases have run out.
    ReplacesBeforeLeaseEnd,
    /// A shim goes on when its lease has run out.
    ShimIgnoresLease,
    /// The time that a machine stands still does not count for the leases on it.
    FrozenTimeDoesNotCount,
    /// What was asked for before the lease was lost counts as asked for after.
    TrustsOldDesired,
    /// A node goes by a partial road as if it were whole.
    PartialRoadReplaces,
    /// A leader that has not heard from everyone says that its road is whole.
    SaysCompleteTooSoon,
    /// A machine that was down goes by no road until it is told one.
    ForgetsRoad,
    /// A server takes what it has of a node for all there is, whatever the digest says.
    TrustsDeltas,
    /// A server forgets each deadline at once, so that nothing is ever quiet for long enough to even copies out.
    ForgetsDeadlines,
    /// The store takes writes of a leader that was followed by another.
    NoFence,
    /// Who releases the brake loses all that is missing, though its leases run on.
    GivesUpEarly,
    /// A node acknowledges what it has not kept, and not forgotten what it was told to.
    AcknowledgesUnkept,
    /// Of a service that was deleted without its data nobody remembers where that is.
    ForgetsHomes,
    /// A node that was removed is heard, and told what to run.
    ServesRemoved,
    /// What a disk held up starts without a look at the lease.
    StartsOnOldLease,
}

impl Bug {
    pub const ALL: [Self; 15] = [
        Self::ReplacesBeforeLeaseEnd,
        Self::ShimIgnoresLease,
        Self::FrozenTimeDoesNotCount,
        Self::TrustsOldDesired,
        Self::PartialRoadReplaces,
        Self::SaysCompleteTooSoon,
        Self::ForgetsRoad,
        Self::TrustsDeltas,
        Self::ForgetsDeadlines,
        Self::NoFence,
        Self::GivesUpEarly,
        Self::AcknowledgesUnkept,
        Self::ForgetsHomes,
        Self::ServesRemoved,
        Self::StartsOnOldLease,
    ];
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub events: u64,
    pub faults: u64,
    pub leaders: u64,
    pub starts: u64,
    pub lost_nodes: u64,
    pub releases: u64,
    /// From the end of the faults until all was as wanted. Milliseconds.
    pub recovered_after_ms: u64,
}

/// Something that must hold did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, event {step}: {what}\n{}", trace.join("\n"))]
pub struct Failure {
    pub seed: u64,
    /// The number of the event after which it was seen.
    pub step: u64,
    pub what: String,
    /// The last things that happened, oldest first.
    pub trace: Vec<String>,
}

/// Runs the world of one seed to its end.
pub fn run(seed: u64, options: &Options) -> Result<Summary, Failure> {
    world::World::new(seed, options.clone()).run()
}

/// Runs seed after seed, saying how it goes; the first failure ends it.
pub fn main_loop(seeds: Range<u64>) -> Result<(), Failure> {
    let options = Options::default();
    let mut slowest = (0, 0);
    let first = seeds.start;
    for seed in seeds {
        let summary = run(seed, &options)?;
        slowest = slowest.max((summary.recovered_after_ms, seed));
        let done = seed - first + 1;
        if done.is_multiple_of(100) {
            println!("{done} seeds hold; last: {summary:?}");
        }
    }
    println!(
        "all seeds hold; the slowest recovery took {} ms (seed {})",
        slowest.0, slowest.1
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_seeds_hold() {
        let mut total = Summary::default();
        for seed in 0..100 {
            let summary =
                run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
            total.faults += summary.faults;
            total.leaders += summary.leaders;
            total.lost_nodes += summary.lost_nodes;
            total.starts += summary.starts;
        }
        // A simulator in which nothing happens proves nothing.
        assert!(
            total.faults > 1_000 && total.leaders > 200 && total.lost_nodes > 100,
            "{total:?}"
        );
    }

    /// Many more, in an optimised build: `SEEDS=0..10000 cargo test --release -p sim -- --ignored`.
    #[test]
    #[ignore = "as long as one likes"]
    fn many_seeds_hold() {
        let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "0..1000".to_owned());
        let (first, last) = seeds.split_once("..").expect("FIRST..LAST");
        let seeds = first.parse().expect("a number")..last.parse().expect("a number");
        main_loop(seeds).unwrap_or_else(|failure| panic!("{failure}"));
    }

    #[test]
    fn the_same_seed_gives_the_same_world() {
        let options = Options::default();
        assert_eq!(run(7, &options), run(7, &options));
        assert_ne!(run(7, &options), run(8, &options));
    }

    #[test]
    fn every_guard_that_is_taken_away_is_missed() {
        for bug in Bug::ALL {
            let options = Options {
                bug: Some(bug),
                ..Options::default()
            };
            // Some are missed by one seed in a thousand: there is one among these.
            let caught = (950..1150).find_map(|seed| run(seed, &options).err());
            let caught = caught.unwrap_or_else(|| panic!("nobody missed the guard: {bug:?}"));
            println!("{bug:?}: seed {}: {}", caught.seed, caught.what);
        }
    }
}
