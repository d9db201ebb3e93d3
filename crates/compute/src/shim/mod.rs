//! The shim: one process per instance, parent of the workload. It holds its pipes, its exit status and its lease timer, so
//! that an agent may be restarted, updated or killed at any time.
//!
//! ```text
//! launch on stdin ─► directory locked ─► trampoline waits ─► recorded ─► exec succeeded ─► serving ─► workload ended ─► all killed
//!                                              │               │             │               ▲                            │
//!                                              └─ not started ─┴─────────────┴► exit.json    └ agents come and go         ▼
//!                                                                                                              exit.json, then end
//! ```
//!
//! A disk may stall at any of it. Until the start is on record the trampoline waits, and nothing of the workload runs; afterwards no disk stands
//! between the exec and the timer. Trampoline and workload die with their shim: the main process by a death signal, all that it forked by the hand of
//! the [`watchdog`], a process that waits for the shim's end.
//!
//! One thread serves signals, timer and socket and never waits for a disk; a second one carries the output ([`output`]).
//! The lease is enforced here, by the pure steps of [`supervision`], with or without an agent.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use model::compute::{Exit, ExitHow};
use model::signals::Stream;

use crate::instance;

mod inherited;
mod output;
pub(crate) mod protocol;
mod serve;
mod socket;
mod step;
pub(crate) mod supervision;
mod trampoline;
mod watchdog;
mod workload;

pub use inherited::hear_signals;
pub use step::{Before, Step};
pub(crate) use trampoline::encode;
pub use trampoline::{exec_main, exec_main_with};
pub(crate) use watchdog::WATCHDOG;
pub use watchdog::watchdog_main;

use protocol::{LAUNCH_MAX_BYTES, Launch, Launched};

/// For a shim that has recorded its exit to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Where the output goes; the binary implements it with the log writer. It must not wait for a disk that is full: what
/// can't be written is dropped, and counted there.
pub trait Sink: Send {
    /// One line without its newline.
    fn line(&mut self, at: Timestamp, stream: Stream, line: &[u8]);
    /// A piece of a line that is too long to be kept whole; what follows of its stream goes on with it.
    fn piece(&mut self, at: Timestamp, stream: Stream, piece: &[u8]);
    /// After some lines: they should be visible to readers.
    fn flush(&mut self);
}

/// Opens the sink for the folder where the instance's logs are.
pub type OpenSink<'a> = &'a dyn Fn(&Path) -> io::Result<Box<dyn Sink>>;

/// The entry point of `mainland hold`: nothing, until a signal ends it. What a node runs where only what is executed beside it counts.
pub fn hold_main() -> ExitCode {
    loop {
        std::thread::park();
    }
}

/// The entry point of `mainland shim`; `arguments` are those after it: the instance's directory.
///
/// The process must have one thread when this is called. Returns when the workload has ended.
pub fn run(arguments: &[OsString], open_sink: OpenSink<'_>) -> ExitCode {
    run_with(arguments, open_sink, &|_| {})
}

/// As [`run`], with something to be done before each step.
pub fn run_with(arguments: &[OsString], open_sink: OpenSink<'_>, before: Before<'_>) -> ExitCode {
    let Some(directory) = arguments.first().map(Path::new) else {
        // Nobody but us calls it: a usage error is for whoever tries it by hand.
        let _ = writeln!(
            io::stderr(),
            "usage: mainland shim DIRECTORY (started by the agent, with a launch on stdin)"
        );
        return ExitCode::from(2);
    };
    let started = std::path::absolute(directory)
        .map_err(|error| Refusal {
            error: error.to_string(),
            directory: None,
        })
        .and_then(|directory| start(&directory, open_sink, before));
    match started {
        Ok(shim) => shim.serve(),
        Err(refusal) => refuse(refusal),
    }
}

/// Why nothing was started.
struct Refusal {
    error: String,
    /// Where to record it; `None` when the directory is not ours, since another shim runs in it.
    directory: Option<PathBuf>,
}

fn start(
    directory: &Path,
    open_sink: OpenSink<'_>,
    before: Before<'_>,
) -> Result<serve::Shim, Refusal> {
    hear_signals();
    // Fails for the leader of a process group, which has no session to leave; then it already has its own.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    before(Step::Enter);
    let (launch, lock) = enter(directory).map_err(|error| Refusal {
        error,
        directory: None,
    })?;
    let place = serve::Place {
        directory: directory.to_owned(),
        lock,
    };
    let shim = prepare(launch, place, open_sink, before).map_err(|error| Refusal {
        error,
        directory: Some(directory.to_owned()),
    })?;
    before(Step::Reply);
    reply(&Launched::Started {
        pid: shim.pid(),
        at: shim.started_at(),
    });
    Ok(shim)
}

fn told(doing: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{doing}: {error}")
}

/// Reads the launch and takes the directory: one shim at a time.
fn enter(directory: &Path) -> Result<(Launch, File), String> {
    let launch = read_launch().map_err(told("reading the launch"))?;
    std::env::set_current_dir(directory).map_err(told("entering the instance's directory"))?;
    let lock = File::open(".").map_err(told("opening the instance's directory"))?;
    take(&lock)?;
    Ok((launch, lock))
}

/// Takes the lock. A shim that has recorded its exit holds it for a moment still.
#[expect(
    clippy::disallowed_methods,
    reason = "a poll interval, inside a wait with a deadline"
)]
fn take(lock: &File) -> Result<(), String> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    while lock.try_lock().is_err() {
        if instance::read_exit(Path::new(".")).is_none() || Instant::now() >= deadline {
            return Err("another shim runs in this directory".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn prepare(
    launch: Launch,
    place: serve::Place,
    open_sink: OpenSink<'_>,
    before: Before<'_>,
) -> Result<serve::Shim, String> {
    before(Step::Reserve);
    instance::reserve_exit(Path::new(".")).map_err(told("setting room aside for the exit"))?;
    before(Step::OpenLog);
    let sink =
        open_sink(&instance::log_directory(Path::new("."))).map_err(told("opening the log"))?;
    serve::Shim::start(launch, sink, place, before)
}

fn read_launch() -> io::Result<Launch> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(LAUNCH_MAX_BYTES)
        .read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Tells the agent, then lets go of its pipe: it waits for the end of it, or may be long gone.
fn reply(launched: &Launched) {
    if let Ok(mut text) = serde_json::to_vec(launched) {
        text.push(b'\n');
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(&text).and_then(|()| stdout.flush());
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

fn refuse(refusal: Refusal) -> ExitCode {
    let error = refusal.error;
    if let Some(directory) = refusal.directory {
        let exit = Exit {
            how: ExitHow::NotStarted {
                error: error.clone(),
            },
            at: Timestamp::now(),
        };
        // The agent is told as well.
        let _ = instance::write_exit(&directory, &exit);
    }
    reply(&Launched::NotStarted {
        lease_over: error == serve::LEASE_OVER,
        error,
    });
    ExitCode::FAILURE
}
