//! A group below that of an instance: for a command beside the workload that has to be ended apart from it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::{Error, Group, KILL_POLL, MOVE_ROUNDS, make, processes, tree};

/// What the names of leaves begin with.
const BESIDE: &str = "exec-";
/// Where what commands have left runs on.
const LEFT: &str = "exec-left";

impl Group {
    /// Makes a group below this one, for a command beside the workload: it may have to be ended apart from the rest, and is no part of what the
    /// workload has started. It needs no controller of its own: what it uses counts as this group's.
    pub(crate) fn leaf(&self, name: &str) -> Result<Option<Leaf>, Error> {
        let Some(parent) = self.unified.as_ref().or(self.legacy.last()) else {
            return Ok(None);
        };
        let path = make(parent, &format!("{BESIDE}{name}"))?;
        let below = |one: &PathBuf| match one == parent {
            true => path.clone(),
            false => one.clone(),
        };
        let joined = Self {
            unified: self.unified.as_ref().map(below),
            legacy: self.legacy.iter().map(below).collect(),
            out_of_memory: None,
        };
        let own = match &self.unified {
            Some(_) => Self {
                unified: Some(path),
                ..Self::default()
            },
            None => Self {
                legacy: vec![path],
                ..Self::default()
            },
        };
        let parent = parent.clone();
        Ok(Some(Leaf {
            joined,
            own,
            parent,
        }))
    }
}

impl Group {
    /// The processes in it and in the groups below it, but for commands beside the workload and what they have started.
    pub(crate) fn processes_of_workload(&self) -> Vec<Pid> {
        let is_beside = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(BESIDE)
        };
        let below = self.paths().flat_map(|path| tree(path));
        let beside: Vec<Pid> = below
            .filter(is_beside)
            .flat_map(|path| processes(&path))
            .collect();
        let mut all = self.processes();
        all.retain(|pid| !beside.contains(pid));
        all
    }
}

/// A group below that of an instance.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// What a process joins: the leaf, and the instance's group in the other hierarchies.
    pub(crate) joined: Group,
    own: Group,
    parent: PathBuf,
}

/// On no path does an empty group stay.
impl Drop for Leaf {
    fn drop(&mut self) {
        let _ = self.own.remove();
    }
}

impl Leaf {
    /// Ends all in it and removes it.
    pub(crate) fn end(&self, patience: Duration) -> Result<(), Error> {
        self.own.kill_all(patience)?;
        until_done(patience, || self.own.remove())
    }

    /// As [`Leaf::dissolve`], where what is in it may be on its way out: the kernel moves no process that exits, and holds its group for a moment.
    pub(crate) fn dissolve_within(&self, patience: Duration) -> Result<(), Error> {
        until_done(patience, || self.dissolve())
    }

    /// Removes it. What is still in it is the instance's, beside its workload.
    pub(crate) fn dissolve(&self) -> Result<(), Error> {
        if self.own.remove().is_ok() {
            return Ok(());
        }
        let left = make(&self.parent, LEFT)?;
        for _ in 0..MOVE_ROUNDS {
            for pid in self.own.processes() {
                // It may have ended.
                let _ = fs::write(left.join("cgroup.procs"), pid.as_raw_nonzero().to_string());
            }
            if self.own.remove().is_ok() {
                return Ok(());
            }
        }
        self.own.remove()
    }
}

#[expect(clippy::disallowed_methods, reason = "a poll interval, within a bound")]
fn until_done(
    patience: Duration,
    mut done: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    loop {
        match done() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(KILL_POLL),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use model::units::{Bytes, MilliCpu};

    use crate::cgroup::{Limits, Support, detect};

    #[test]
    fn a_leaf_that_nobody_came_to_use_is_gone() {
        let Support::Groups(groups) = detect() else {
            return eprintln!("no cgroups here");
        };
        let limits = Limits {
            memory: Bytes::mebibytes(16),
            cpu: MilliCpu(100),
            pids: 16,
        };
        let name = format!("mainland-test-leaf-{}", std::process::id());
        let group = groups.create(&name, limits).unwrap();
        let leaf = group.leaf("1").unwrap().unwrap();
        let own = leaf.own.clone();
        assert!(own.exists());
        drop(leaf);
        assert!(!own.exists());
        group.remove().unwrap();
    }
}
