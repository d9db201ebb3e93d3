//! Spawning the workload through the trampoline, and ending all of it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait};

use super::protocol::{Failure, Program};
use super::trampoline::{RELEASE, encode};
use crate::beneath::Folder;
use crate::cgroup::Group;
use crate::identity;

/// For the trampoline to become the program: it does a handful of system calls.
const EXEC_PATIENCE: Duration = Duration::from_secs(20);
/// For processes to vanish after SIGKILL, until it is said that they do not. Longer only when the kernel holds them, on a dead disk for instance.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// The same, where the thread has a timer to serve.
const KILL_ROUND: Duration = Duration::from_millis(250);
/// Names of the working directory that are told when the program is missing.
const TOLD_NAMES: usize = 12;

/// The workload's main process and the pipes that come from it.
pub(super) struct Spawned {
    pub pid: Pid,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

/// A trampoline that has not become the program yet. Dropped, it is killed: on no path does it outlive its start.
pub(super) struct Waiting<'a> {
    program: &'a Program,
    work: PathBuf,
    child: Option<Child>,
    socket: UnixStream,
}

/// Starts a trampoline in the folder `work`; it waits to be released. The error is what a user should read.
pub(super) fn spawn<'a>(program: &'a Program, work: &Path) -> Result<Waiting<'a>, String> {
    let told = |error: io::Error| format!("starting {}: {error}", program.argv.join(" "));
    let (ours, theirs) = UnixStream::pair().map_err(told)?;
    ours.set_read_timeout(Some(EXEC_PATIENCE)).map_err(told)?;
    ours.set_write_timeout(Some(EXEC_PATIENCE)).map_err(told)?;
    // Our own executable, even after an update has replaced or removed its file.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("mainland")
        .arg("shim-exec")
        .env_clear()
        .current_dir(work)
        .process_group(0);
    command
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().map_err(told)?;
    // Its end of the socket must be its own alone, for the end of file to mean that it let go.
    drop(command);
    let mut waiting = Waiting {
        program,
        work: work.to_owned(),
        child: Some(child),
        socket: ours,
    };
    let text = encode(program).map_err(told)?;
    // One that has failed already says why when it is released.
    match waiting.socket.write_all(&text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(told(error)),
        _ => Ok(waiting),
    }
}

impl Waiting<'_> {
    pub(super) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.as_ref()?.id() as i32)
    }

    /// Returns once the exec has succeeded.
    pub(super) fn release(mut self) -> Result<Spawned, String> {
        let failure = self
            .hand_over()
            .map_err(|error| format!("starting {}: {error}", self.program.argv.join(" ")))?;
        if let Some(failure) = failure {
            return Err(explain(&failure, self.program, &self.work));
        }
        let pid = self.pid().ok_or("the workload has no pid")?;
        let child = self.child.as_mut().ok_or("the workload is gone")?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("the workload has no pipes".to_owned());
        };
        // From here on it is the shim's to end.
        self.child = None;
        Ok(Spawned {
            pid,
            stdout,
            stderr,
        })
    }

    /// Waits for what comes of it. `None`: it became the program.
    fn hand_over(&mut self) -> io::Result<Option<Failure>> {
        match self.socket.write_all(&[RELEASE]) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        let mut text = Vec::new();
        self.socket.read_to_end(&mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&text)?))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        let _ = kill_all(pid, self.program.cgroup.as_ref(), None);
        // Reaps it as well. What the kernel still holds dies before it does anything more, and the agent waits for that.
        let _ = kill_rest(self.program.cgroup.as_ref(), None);
    }
}

/// What a user should read when the program could not be executed.
fn explain(failure: &Failure, program: &Program, work: &Path) -> String {
    let name = program.argv.first().map_or("", String::as_str);
    if failure.doing != name {
        return format!("{}: {}", failure.doing, failure.error);
    }
    let is_path = name.contains('/');
    let file = work.join(name);
    match failure.errno.map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) if is_path && file.exists() => missing_interpreter(name, work),
        Some(Errno::NOENT) if is_path => format!("{name}: no such file; {}", holds(work)),
        Some(Errno::NOENT) => {
            let path = program.environment.0.get("PATH").map_or("", String::as_str);
            format!("{name}: no such program in PATH ({path})")
        }
        Some(Errno::ACCESS) => {
            let mode = fs::metadata(&file).map(|metadata| metadata.permissions().mode() & 0o777);
            match mode {
                Ok(mode) if mode & 0o111 == 0 => {
                    format!("{name}: not executable (mode {mode:03o}): run `chmod +x` on it")
                }
                _ => format!("{name}: permission denied for the workload's user"),
            }
        }
        Some(Errno::TOOBIG) => format!(
            "{name}: arguments and environment are larger than this node's kernel takes: raise the limit of the stack (`ulimit -Hs`), or give secrets as files"
        ),
        Some(Errno::NOEXEC) => format!(
            "{name}: not a program of this machine: neither a script with `#!` nor built for {}",
            std::env::consts::ARCH
        ),
        _ => format!("{name}: {}", failure.error),
    }
}

fn missing_interpreter(name: &str, work: &Path) -> String {
    let mut start = [0; 256];
    // What stands there is the workload's: a link may lead to what it must not read, and of a pipe nobody knows when it ends.
    let opened = match Path::new(name).strip_prefix("/") {
        Ok(of_machine) => Folder::open(Path::new("/")).and_then(|root| root.file(of_machine)),
        Err(_) => Folder::open(work).and_then(|work| work.file(Path::new(name))),
    };
    let count = opened
        .and_then(|mut file| file.read(&mut start))
        .unwrap_or(0);
    let text = String::from_utf8_lossy(&start[..count]);
    match text.lines().next().and_then(|line| line.strip_prefix("#!")) {
        Some(interpreter) => format!(
            "{name}: its interpreter `{}` is not on this machine",
            interpreter.trim()
        ),
        None => format!(
            "{name}: its dynamic loader is not on this machine: it was built for another system (try linking it statically)"
        ),
    }
}

fn holds(work: &Path) -> String {
    let entries = fs::read_dir(work).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(TOLD_NAMES);
    names.truncate(TOLD_NAMES);
    match (names.is_empty(), more) {
        (true, _) => "the working directory is empty: name what to upload with `files`".to_owned(),
        (_, 0) => format!("the artifact holds: {}", names.join(", ")),
        (_, more) => format!("the artifact holds: {} and {more} more", names.join(", ")),
    }
}

/// SIGKILL to the whole workload, known by its process group, its cgroup, and by parentage: whatever is orphaned below the
/// shim becomes its child. The main process must not have been reaped, or the group's number may be another's. `watchdog`: it stays.
pub(super) fn kill_all(
    pid: Pid,
    cgroup: Option<&Group>,
    watchdog: Option<Pid>,
) -> Result<(), String> {
    let _ = kill_process_group(pid, Signal::KILL);
    kill_known(cgroup, watchdog, KILL_ROUND)
}

fn kill_known(
    cgroup: Option<&Group>,
    spared: Option<Pid>,
    patience: Duration,
) -> Result<(), String> {
    let result = cgroup.map_or(Ok(()), |group| group.kill_all(patience));
    for child in children(spared) {
        let _ = kill_process(child, Signal::KILL);
    }
    result.map_err(|error| error.to_string())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a poll interval, inside a wait with a deadline"
)]
/// After the main process was reaped: kills and reaps until the shim has no child and the group is empty. `watchdog`: it goes last.
pub(super) fn kill_rest(cgroup: Option<&Group>, watchdog: Option<Pid>) -> Result<(), String> {
    let deadline = Instant::now() + KILL_PATIENCE;
    let result = kill_known(cgroup, watchdog, KILL_PATIENCE);
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if Instant::now() < deadline => {
                // A child that was just killed, or one that was orphaned by that.
                let is_last = children(watchdog).is_empty() && result.is_ok();
                let spared = watchdog.filter(|_| !is_last);
                let _ = kill_known(None, spared, KILL_ROUND);
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(None) => return Err("processes of it are still there after SIGKILL".to_owned()),
            Err(_) => return result,
        }
    }
}

/// What is still there of it, in words.
pub(super) fn left(cgroup: Option<&Group>, watchdog: Option<Pid>) -> Vec<String> {
    let mut left = cgroup.map_or_else(Vec::new, Group::processes);
    left.extend(children(watchdog));
    identity::describe_all(&left)
}

/// The names of what the workload has started and left running.
pub(super) fn left_running(cgroup: Option<&Group>, watchdog: Option<Pid>) -> Vec<String> {
    let mut left = cgroup.map_or_else(Vec::new, Group::processes_of_workload);
    left.extend(children(watchdog));
    identity::names(&left)
}

/// Our children now, but for one. A thread's list holds those that it started or inherited.
fn children(spared: Option<Pid>) -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let text: Vec<String> = lists.collect();
    let numbers = text.iter().flat_map(|list| list.split_ascii_whitespace());
    numbers
        .filter_map(|number| Pid::from_raw(number.parse().ok()?))
        .filter(|pid| Some(*pid) != spared)
        .collect()
}
