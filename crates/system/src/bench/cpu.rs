//! The CPU time of processes over a stretch, and which core they may use.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::CpuSet;

use crate::proc;

/// CPU time of some processes from [`Stretch::begin`] on. A thread that is born and dies within is not seen.
pub struct Stretch {
    before: BTreeMap<(u32, u32), Duration>,
    processes: Vec<u32>,
}

impl Stretch {
    pub fn begin(processes: Vec<u32>) -> Self {
        Self {
            before: times(&processes),
            processes,
        }
    }

    /// What they have used until now.
    pub fn used(&self) -> Duration {
        let after = times(&self.processes);
        let used = after.into_iter().map(|(thread, time)| {
            let before = self.before.get(&thread).copied().unwrap_or_default();
            time.saturating_sub(before)
        });
        used.sum()
    }
}

/// CPU time of each thread, by process and thread.
fn times(processes: &[u32]) -> BTreeMap<(u32, u32), Duration> {
    let of = |process: u32| {
        let threads = proc::thread_times(process).into_iter();
        threads.map(move |(thread, time)| ((process, thread), time))
    };
    processes.iter().copied().flat_map(of).collect()
}

/// CPU time of the calling thread.
pub fn of_this_thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// CPU time of this process, of threads too that have ended.
pub fn of_this_process() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// While it lives, this thread and what it starts use one core alone; what was started goes on so afterwards.
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    pub fn to(core: usize) -> Result<Self> {
        let before = rustix::thread::sched_getaffinity(None)?;
        let mut one = CpuSet::new();
        one.set(core);
        rustix::thread::sched_setaffinity(None, &one)
            .with_context(|| format!("can't stay on core {core}"))?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // These cores were allowed a moment ago.
        let _ = rustix::thread::sched_setaffinity(None, &self.before);
    }
}

/// Runs `start` so that what it starts stays on a core; where there is but one, it makes no difference.
pub fn on_core<T>(core: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let cores = std::thread::available_parallelism()?.get();
    let _pinned = Pinned::to(core % cores)?;
    start()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_as_cpu_time() {
        let stretch = Stretch::begin(vec![std::process::id()]);
        let before = of_this_thread();
        while of_this_thread() - before < Duration::from_millis(20) {
            std::hint::black_box(0);
        }
        assert!(
            stretch.used() >= Duration::from_millis(10),
            "{:?}",
            stretch.used()
        );
    }
}
