//! `mainland shim-watchdog DIRECTORY`: ends the workload of a shim that was killed, whether an agent is there or not.
//!
//! A death signal reaches the main process alone, since the kernel forgets it with each fork: what that forked would live on, with its sockets, its
//! volumes and no timer. So a process beside the shim waits for the shim's end, and then kills all of the workload.
//!
//! | | |
//! |---|---|
//! | stdin | a line of JSON, the run's [`Record`]; then nothing, until the end of file says that the shim is gone |
//! | stdout | the instance's directory with the shim's lock: nothing is started in it before the watchdog has done its work |
//!
//! A shim that ends in order kills its watchdog first. A watchdog that is killed is replaced. Where both are killed at once, the agent ends what is
//! left, or the next agent.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::instance::Record;
use crate::process::end_workload;

/// The word of its command line.
pub(crate) const WATCHDOG: &str = "shim-watchdog";
/// Until one that was killed is replaced.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Its thread in the shim does next to nothing.
const STACK_BYTES: usize = 128 << 10;

/// The entry point of `mainland shim-watchdog`; `arguments` are those after it: the instance's directory.
pub fn watchdog_main(arguments: &[OsString]) -> ExitCode {
    let Some(directory) = arguments.first().map(Path::new) else {
        // Nobody but a shim calls it: a usage error is for whoever tries it by hand.
        let _ = writeln!(
            io::stderr(),
            "usage: mainland shim-watchdog DIRECTORY (started by the shim)"
        );
        return ExitCode::from(2);
    };
    // Out of the shim's session, which is killed as a whole where there is no cgroup.
    let _ = rustix::process::setsid();
    // Who asks for an end asks the shim, which takes its time.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    match wait_for_end_of_shim() {
        Ok(record) => {
            end_workload(directory, record);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "reading what to watch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait_for_end_of_shim() -> io::Result<Record> {
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    let record = serde_json::from_str(&line)?;
    io::copy(&mut stdin, &mut io::sink())?;
    Ok(record)
}

/// The shim's side: one is there from before the workload begins until the shim lets go of it.
#[derive(Debug)]
pub(super) struct Watchdog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// As the agent names it.
    directory: PathBuf,
    /// The run's [`Record`], and a newline.
    order: Vec<u8>,
    lock: File,
    pid: AtomicI32,
    over: AtomicBool,
}

impl Watchdog {
    pub(super) fn start(directory: &Path, record: &Record, lock: &File) -> io::Result<Self> {
        let mut order = serde_json::to_vec(record)?;
        order.push(b'\n');
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            order,
            lock: lock.try_clone()?,
            pid: AtomicI32::new(0),
            over: AtomicBool::new(false),
        });
        let life = shared.spawn()?;
        let kept = shared.clone();
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || kept.keep(life))?;
        Ok(Self(shared))
    }

    /// Not to be killed with the workload.
    pub(super) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.0.pid.load(Ordering::Relaxed))
    }

    /// It is the shim's to kill now, and is not replaced.
    pub(super) fn let_go(&self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// Our end of its stdin: it is read to its end when the watchdog is gone.
    fn spawn(&self) -> io::Result<UnixStream> {
        let (mut ours, theirs) = UnixStream::pair()?;
        // Our own executable, even after an update has replaced or removed its file.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("mainland")
            .arg(WATCHDOG)
            .arg(&self.directory)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(self.lock.try_clone()?);
        let child = command.spawn()?;
        // Its end of the socket must be its own alone.
        drop(command);
        self.pid.store(child.id().cast_signed(), Ordering::Relaxed);
        ours.write_all(&self.order)?;
        Ok(ours)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a pace: what kills watchdogs is not to keep a processor busy"
    )]
    /// On a thread of its own, since the program is read from a disk.
    fn keep(&self, mut life: UnixStream) {
        loop {
            // The shim's main thread reaps it.
            let _ = life.read(&mut [0; 1]);
            std::thread::sleep(AGAIN_AFTER);
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            if let Ok(again) = self.spawn() {
                life = again;
            }
        }
    }
}
