//! What lives of an instance, found and ended without the help of its shim: nothing of a run may go on beside what comes after it, or write to its
//! volumes, however its start failed and whoever was killed.
//!
//! | found by | needs |
//! |---|---|
//! | the cgroup, whose name follows from instance and directory | cgroups |
//! | the process group of the workload, the session of the shim | the record in the directory, or the shim's pid from whoever started it |
//! | the command line of the shim and of its watchdog | nothing: a shim that stalled before it wrote anything is found too |
//!
//! Without a cgroup, what made itself a session of its own is not found once its shim is dead.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::compute::ExitHow;
use rustix::process::{Pid, Signal, kill_process};

use super::conversation::is_locked;
use crate::cgroup::Group;
use crate::identity::{self, ProcessIdentity};
use crate::instance::{self, Record};
use crate::runtime::Error;
use crate::shim::WATCHDOG;

/// Between the first two looks at what was killed, each of which reads all of `/proc`; then twice as long each time.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_MOST: Duration = Duration::from_millis(100);

/// Ends the workload of a run whose shim is dead, however long the kernel holds it, and removes its group. The caller holds the directory's lock.
pub(crate) fn end_workload(directory: &Path, record: Record) {
    let remains = Remains {
        directory: directory.to_owned(),
        is_grouped: record.cgroup.is_some(),
        groups: record.cgroup.into_iter().collect(),
        shim: Some(record.shim),
        workload: Some(record.workload),
        was_started: true,
    };
    let mut pause = LOOK_FIRST;
    loop {
        let left = remains.kill_workload();
        if left.is_empty() && remains.groups.iter().all(|group| group.remove().is_ok()) {
            return;
        }
        rest(&mut pause);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a poll interval, growing to a bound"
)]
fn rest(pause: &mut Duration) {
    std::thread::sleep(*pause);
    *pause = (*pause * 2).min(LOOK_MOST);
}

/// Where to look for what lives of an instance.
#[derive(Debug)]
pub(super) struct Remains {
    directory: PathBuf,
    groups: Vec<Group>,
    /// Shim and workload of the last run, dead or alive.
    shim: Option<ProcessIdentity>,
    workload: Option<ProcessIdentity>,
    /// A shim of this agent's was there a moment ago.
    was_started: bool,
    /// All of it is in the groups, but for its shim.
    is_grouped: bool,
}

impl Remains {
    /// `group`: by name. `shim`: the one that was just started, where that is known.
    pub(super) fn of(
        directory: &Path,
        group: Option<Group>,
        shim: Option<ProcessIdentity>,
    ) -> Self {
        let record = instance::read_record(directory);
        // That of a former agent may be in another place.
        let recorded = record.as_ref().and_then(|record| record.cgroup.clone());
        let recorded = recorded.filter(|recorded| Some(recorded) != group.as_ref());
        Self {
            directory: directory.to_owned(),
            workload: record.as_ref().map(|record| record.workload.clone()),
            was_started: shim.is_some(),
            is_grouped: group.is_some()
                && record.as_ref().is_none_or(|record| record.cgroup.is_some()),
            groups: group.into_iter().chain(recorded).collect(),
            shim: shim.or_else(|| record.map(|record| record.shim)),
        }
    }

    /// SIGKILL to the workload, once; what of it was there. The shim is none of it.
    pub(super) fn kill_workload(&self) -> Vec<Pid> {
        self.groups.iter().for_each(Group::kill_once);
        let found = self.look(!self.was_started).workload;
        kill(&found);
        found
    }

    /// SIGKILL to every shim of the directory.
    pub(super) fn kill_shims(&self) {
        kill(&self.look(true).shims);
    }

    /// One look at the groups, and at every process of the machine where those do not say it all, or `is_thorough`.
    fn look(&self, is_thorough: bool) -> Found {
        let mut found = Found {
            workload: self.groups.iter().flat_map(Group::processes).collect(),
            shims: self.known_shim().into_iter().collect(),
        };
        let leaders: Vec<&ProcessIdentity> = match self.is_grouped {
            true => Vec::new(),
            false => self.workload.iter().chain(&self.shim).collect(),
        };
        let leaders: Vec<&ProcessIdentity> = leaders
            .into_iter()
            .filter(|leader| leader.has_its_number())
            .collect();
        // A shim that was just started is the only one, and its trampoline dies with it.
        if leaders.is_empty() && self.is_grouped && !is_thorough {
            return found;
        }
        for process in identity::all_processes() {
            let Some(stat) = identity::look_at(process) else {
                continue;
            };
            if is_shim_of(&self.directory, process) {
                found.shims.push(process);
            } else if leaders.iter().any(|leader| leader.leads(&stat)) {
                found.workload.push(process);
            }
        }
        found.workload.sort_unstable_by_key(|pid| number(*pid));
        found.workload.dedup();
        found
    }

    fn known_shim(&self) -> Option<Pid> {
        let shim = self.shim.as_ref().filter(|shim| shim.is_alive())?;
        Pid::from_raw(i32::try_from(shim.pid).ok()?)
    }

    /// Whether a shim lives there, in whatever state.
    pub(super) fn has_shim(&self) -> Result<bool, Error> {
        is_locked(&self.directory).map_err(Error::io("looking at", &self.directory))
    }

    /// Ends all of it, the shim first, and removes the empty groups.
    ///
    /// # Errors
    ///
    /// What is still there after `patience`: nothing may be started before it is gone.
    pub(super) fn end(&self, patience: Duration) -> Result<(), Error> {
        if self.is_surely_nothing()? {
            return Ok(());
        }
        let deadline = Instant::now() + patience;
        let mut pause = LOOK_FIRST;
        let mut is_thorough = !self.was_started;
        loop {
            self.groups.iter().for_each(Group::kill_once);
            let found = self.look(is_thorough);
            kill(&found.shims);
            kill(&found.workload);
            let is_gone = found.shims.is_empty() && found.workload.is_empty();
            let late = Instant::now() >= deadline;
            if is_gone && !self.has_shim()? {
                // The kernel holds an empty group for a moment.
                match self.groups.iter().try_for_each(Group::remove) {
                    Err(error) if late => return Err(error.into()),
                    Err(_) => {}
                    Ok(()) => return Ok(()),
                }
            } else if late {
                return Err(found.still_there());
            }
            // Its watchdog may stand still.
            is_thorough |= pause == LOOK_MOST;
            rest(&mut pause);
        }
    }

    /// Without a look at every process of the machine. The group is made before a shim is started, and removed by one that has ended all.
    fn is_surely_nothing(&self) -> Result<bool, Error> {
        let settled = instance::read_exit(&self.directory)
            .is_some_and(|exit| !matches!(exit.how, ExitHow::Unknown));
        let known = !self.groups.is_empty() && !self.groups.iter().any(Group::exists);
        let is_first = self.shim.is_none() && self.workload.is_none();
        Ok(known && !self.was_started && (settled || is_first) && !self.has_shim()?)
    }
}

/// What lives.
struct Found {
    workload: Vec<Pid>,
    shims: Vec<Pid>,
}

impl Found {
    fn still_there(self) -> Error {
        let all: Vec<Pid> = self.shims.into_iter().chain(self.workload).collect();
        let mut processes = identity::describe_all(&all);
        if processes.is_empty() {
            processes.push("whoever holds its directory's lock".to_owned());
        }
        Error::StillThere { processes }
    }
}

fn kill(processes: &[Pid]) {
    for pid in processes {
        let _ = kill_process(*pid, Signal::KILL);
    }
}

/// Ours by user, and by the command line that only [`super::launch`] makes: a program that imitates it has only itself killed.
fn is_shim_of(directory: &Path, process: Pid) -> bool {
    let folder = format!("/proc/{}", number(process));
    let me = rustix::process::geteuid().as_raw();
    if fs::metadata(&folder).map(|metadata| metadata.uid()).ok() != Some(me) {
        return false;
    }
    let line = fs::read(format!("{folder}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let ours = [super::launch::SHIM, WATCHDOG].map(str::as_bytes);
    words.next().is_some_and(|word| ours.contains(&word))
        && words.next() == Some(directory.as_os_str().as_bytes())
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
