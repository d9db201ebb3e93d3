//! The shim at work: one thread that waits for signals, the timer and the socket.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use jiff::Timestamp;
use model::compute::{Exit, ExitHow};
use model::signals::Stream;
use model::timing::TERMINATE_AFTER;
use model::units::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use signal_hook::consts::{SIGCHLD, SIGTERM};

use super::protocol::{Launch, Notice, Program, Request};
use super::socket::Clients;
use super::step::{Before, Step};
use super::supervision::{Action, Cause, Ended, Input, Supervision, exit_how};
use super::watchdog::Watchdog;
use super::{Sink, output, told, workload};
use crate::cgroup::Group;
use crate::identity::ProcessIdentity;
use crate::instance::{self, Record};
use crate::lease::Moment;

/// Why nothing was started where the servers were silent for too long; no fault of the workload's.
pub(super) const LEASE_OVER: &str = "its lease ran out before it was started";
/// For the pipes to close after everything was killed. Without a cgroup a process that escaped may hold them for ever.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);
/// The nice value of the thread that enforces the lease; it sleeps nearly always.
const URGENT: i32 = -10;
/// Tries to remove the cgroup, which the kernel may hold for a moment after its last process.
const REMOVE_TRIES: usize = 50;

pub(super) struct Shim {
    pid: Pid,
    record: Record,
    grace: Duration,
    memory: Bytes,
    cgroup: Option<Group>,
    /// Out-of-memory kills before this run.
    kills_before: u64,
    supervision: Supervision,
    /// SIGKILL was sent.
    killed: bool,
    /// The signal that froze the workload.
    stopped: Option<i32>,
    clients: Clients,
    signals: Signals,
    timer: OwnedFd,
    output: Receiver<Box<dyn Sink>>,
    /// What the shim has to say in the log, once the output thread has ended.
    remarks: Vec<(Timestamp, String)>,
    watchdog: Watchdog,
    _place: Place,
}

/// Where the instance is.
pub(super) struct Place {
    /// As the agent names it.
    pub directory: PathBuf,
    /// Held as long as this process and its watchdog live: one shim per directory.
    pub lock: File,
}

/// Pipes that a signal writes a byte to.
struct Signals {
    child: UnixStream,
    terminate: UnixStream,
}

impl Signals {
    fn register() -> io::Result<Self> {
        let on = |signal| {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, theirs)?;
            io::Result::Ok(ours)
        };
        Ok(Self {
            child: on(SIGCHLD)?,
            terminate: on(SIGTERM)?,
        })
    }

    /// Whether the signal came since the last call.
    fn take(mut pipe: &UnixStream) -> bool {
        let mut bytes = [0; 64];
        let mut came = false;
        while pipe.read(&mut bytes).is_ok_and(|count| count > 0) {
            came = true;
        }
        came
    }
}

impl Shim {
    pub(super) fn start(
        launch: Launch,
        sink: Box<dyn Sink>,
        place: Place,
        before: Before<'_>,
    ) -> Result<Self, String> {
        before(Step::Listen);
        let mut clients =
            Clients::listen(instance::SOCKET).map_err(told("listening on the shim's socket"))?;
        let signals = Signals::register().map_err(told("registering for signals"))?;
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        );
        let timer = timer.map_err(|error| told("making the lease timer")(error.into()))?;
        // Whatever the workload orphans becomes our child, and is found when everything has to end.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let cgroup = launch.program.cgroup.clone();
        let kills_before = cgroup.as_ref().map_or(0, Group::out_of_memory_kills);
        let begun = begin(&launch, &place, &mut clients, before)?;
        let Begun {
            spawned,
            record,
            watchdog,
            lease_sent_at,
        } = begun;
        let pid = spawned.pid;
        let started = format!("{} {}", instance::STARTED, record.workload.pid);
        let output = output::pump(spawned.stdout, spawned.stderr, sink, started);
        let output = output.map_err(|error| {
            let _ = workload::kill_all(pid, cgroup.as_ref(), None);
            let _ = workload::kill_rest(cgroup.as_ref(), None);
            format!("taking in the output: {error}")
        })?;
        Ok(Self {
            pid,
            record,
            grace: launch.grace.duration(),
            memory: launch.memory,
            cgroup,
            kills_before,
            supervision: Supervision::new(lease_sent_at),
            killed: false,
            stopped: None,
            clients,
            signals,
            timer,
            output,
            remarks: Vec::new(),
            watchdog,
            _place: place,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.record.workload.pid
    }

    pub(super) fn started_at(&self) -> Timestamp {
        self.record.started_at
    }

    /// Until the workload has ended and its exit is recorded.
    pub(super) fn serve(mut self) -> ExitCode {
        // A lease ends in time on a machine whose processors are all busy. Refused without privilege; this thread alone.
        let _ = rustix::process::setpriority_process(None, URGENT);
        let ended = loop {
            self.arm_timer();
            self.wait_for_something();
            if let Some(ended) = self.reap() {
                break ended;
            }
            if Signals::take(&self.signals.terminate) {
                self.input(Input::Stop { grace: self.grace });
            }
            let hello = Notice::Hello {
                record: self.record.clone(),
                stopped: self.stopped,
            };
            // Before what waits is read: after a stall from here on it is read once more before anything ends.
            let now = Moment::now();
            self.clients.accept(&hello);
            for request in self.clients.requests() {
                self.serve_request(request);
            }
            self.input_at(Input::Tick, now);
        };
        self.finish(ended);
        ExitCode::SUCCESS
    }

    fn arm_timer(&self) {
        let nanoseconds = self
            .supervision
            .next_deadline()
            .map_or(0, |moment| moment.0.max(1));
        let it_value = Timespec {
            tv_sec: (nanoseconds / 1_000_000_000) as i64,
            tv_nsec: (nanoseconds % 1_000_000_000) as i64,
        };
        let it_interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Setting it also takes back an expiry that was not read. It can't fail with valid arguments.
        let _ = timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec {
                it_interval,
                it_value,
            },
        );
    }

    fn wait_for_something(&self) {
        let mut fds = Vec::with_capacity(8);
        fds.push(PollFd::new(&self.signals.child, PollFlags::IN));
        fds.push(PollFd::new(&self.signals.terminate, PollFlags::IN));
        fds.push(PollFd::new(&self.timer, PollFlags::IN));
        fds.push(PollFd::new(&self.clients.listener, PollFlags::IN));
        for client in &self.clients.clients {
            fds.push(PollFd::new(&client.stream, PollFlags::IN));
        }
        // Interrupted: everything is looked at anyway.
        let _ = poll(&mut fds, None);
    }

    /// Takes in what became of our children; the end of the main one is the answer.
    fn reap(&mut self) -> Option<Ended> {
        Signals::take(&self.signals.child);
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
        while let Ok(Some((pid, status))) = wait(options) {
            // Another one is an orphan of the workload that we inherited.
            if pid != self.pid {
                continue;
            }
            if let Some(code) = status.exit_status() {
                return Some(Ended::Code(code));
            }
            if let Some(signal) = status.terminating_signal() {
                return Some(Ended::Signal(signal));
            }
            self.stopped = status.stopping_signal();
            self.clients.tell(&match self.stopped {
                Some(signal) => Notice::Stopped { signal },
                None => Notice::Continued,
            });
        }
        None
    }

    fn serve_request(&mut self, request: Request) {
        match request {
            Request::Stop { grace } => self.input(Input::Stop {
                grace: grace.duration(),
            }),
            Request::Kill => self.input(Input::Kill),
            Request::Renew { sent_at } => self.input(Input::Renewed { sent_at }),
            Request::Signal { signal } => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    let _ = kill_process(self.pid, signal);
                }
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.input_at(input, Moment::now());
    }

    fn input_at(&mut self, input: Input, now: Moment) {
        match self.supervision.step(input, now) {
            None => {}
            Some(Action::Terminate) => {
                self.remark(match self.supervision.cause() {
                    Some(Cause::Lease) => "SIGTERM: its lease was not renewed for 2.5 s",
                    _ => "SIGTERM",
                });
                let _ = kill_process(self.pid, Signal::TERM);
                // A frozen process takes SIGTERM only once it runs again.
                let _ = kill_process(self.pid, Signal::CONT);
            }
            Some(Action::Kill) => {
                let killed =
                    workload::kill_all(self.pid, self.cgroup.as_ref(), self.watchdog.pid());
                // Said once, however often it is done.
                if !std::mem::replace(&mut self.killed, true) {
                    self.remark("SIGKILL");
                    if let Err(error) = killed {
                        self.remark(&error);
                    }
                }
            }
        }
    }

    fn remark(&mut self, text: &str) {
        self.remarks.push((Timestamp::now(), text.to_owned()));
    }

    /// The order matters: a new shim may start here as soon as the exit is known, so all that is ours goes before.
    fn finish(mut self, ended: Ended) {
        let at = Timestamp::now();
        let kills = self.cgroup.as_ref().map_or(0, Group::out_of_memory_kills);
        let kills = kills.saturating_sub(self.kills_before);
        let background = self.in_background(&ended);
        self.end_rest();
        let how = background
            .unwrap_or_else(|| exit_how(ended, self.supervision.cause(), kills > 0, self.memory));
        self.remarks.push((at, describe(&how, kills)));
        self.close_log();
        self.remove_cgroup();
        let _ = instance::remove_if_there(Path::new(instance::SOCKET));
        let exit = Exit { how, at };
        // Told over the socket as well, so that even a disk that fails altogether hides no exit from an agent that is there.
        let _ = instance::write_exit(Path::new("."), &exit);
        self.clients.tell(&Notice::Exited { exit });
    }

    /// What ends well and unasked while others of it live on has put itself into the background.
    fn in_background(&self, ended: &Ended) -> Option<ExitHow> {
        if !matches!(ended, Ended::Code(0)) || self.supervision.cause().is_some() {
            return None;
        }
        let processes = workload::left_running(self.cgroup.as_ref(), self.watchdog.pid());
        (!processes.is_empty()).then_some(ExitHow::Background { processes })
    }

    /// Nothing is recorded, and the directory's lock held, as long as anything of it lives: what is started next would run beside it.
    fn end_rest(&mut self) {
        self.watchdog.let_go();
        let watchdog = self.watchdog.pid();
        let mut tries = 0_u64;
        while let Err(error) = workload::kill_rest(self.cgroup.as_ref(), watchdog) {
            if tries == 0 {
                self.remark(&error);
            }
            tries += 1;
            self.clients.accept(&Notice::Hello {
                record: self.record.clone(),
                stopped: self.stopped,
            });
            self.clients.tell(&Notice::Unkillable {
                processes: workload::left(self.cgroup.as_ref(), watchdog),
            });
            // Nothing can be asked of it any more.
            let _ = self.clients.requests();
        }
    }

    fn close_log(&mut self) {
        let Ok(mut sink) = self.output.recv_timeout(OUTPUT_PATIENCE) else {
            return;
        };
        for (at, text) in self.remarks.drain(..) {
            sink.line(at, Stream::Shim, text.as_bytes());
        }
        sink.flush();
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a poll interval, inside a bounded wait"
    )]
    fn remove_cgroup(&self) {
        let Some(group) = &self.cgroup else { return };
        for _ in 0..REMOVE_TRIES {
            if group.remove().is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A start that has come to the workload.
struct Begun {
    spawned: workload::Spawned,
    record: Record,
    watchdog: Watchdog,
    lease_sent_at: Option<Moment>,
}

/// The newest renewal that the agent has told while the start went on: a disk may have held that up for longer than a lease lasts.
fn renewed(clients: &mut Clients, record: &Record) -> Moment {
    clients.accept(&Notice::Hello {
        record: record.clone(),
        stopped: None,
    });
    let renewals = clients
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::Renew { sent_at } => Some(sent_at),
            _ => None,
        });
    renewals.max().unwrap_or(Moment(0)).min(Moment::now())
}

/// On record before anything of it runs, so that whatever comes finds it; and after that without a disk, so that the timer starts at once.
fn begin(
    launch: &Launch,
    place: &Place,
    clients: &mut Clients,
    before: Before<'_>,
) -> Result<Begun, String> {
    before(Step::Spawn);
    let work = instance::work_directory(Path::new("."));
    let program = Program {
        dies_with: Some(std::process::id()),
        ..launch.program.clone()
    };
    let waiting = workload::spawn(&program, &work)?;
    let pid = waiting.pid().ok_or("the workload has no pid")?;
    before(Step::Record);
    let record = || {
        let record = Record {
            shim: ProcessIdentity::of(std::process::id())?,
            workload: ProcessIdentity::of(pid.as_raw_nonzero().get().unsigned_abs())?,
            started_at: Timestamp::now(),
            cgroup: program.cgroup.clone(),
        };
        instance::write_record(Path::new("."), &record)?;
        io::Result::Ok(record)
    };
    let record = record().map_err(told("recording the start"))?;
    before(Step::Watch);
    // From here on nothing that the workload forks outlives this process.
    let watchdog = Watchdog::start(&place.directory, &record, &place.lock);
    let watchdog = watchdog.map_err(told("starting the watchdog"))?;
    before(Step::Release);
    let is_late = |sent: Moment| Moment::now() >= sent.after(TERMINATE_AFTER);
    let lease_sent_at = launch
        .lease_sent_at
        .map(|sent| sent.max(renewed(clients, &record)));
    if lease_sent_at.is_some_and(is_late) {
        return Err(LEASE_OVER.to_owned());
    }
    Ok(Begun {
        spawned: waiting.release()?,
        record,
        watchdog,
        lease_sent_at,
    })
}

fn describe(how: &ExitHow, out_of_memory_kills: u64) -> String {
    let text = match how {
        ExitHow::Code { code } => format!("exited with code {code}"),
        ExitHow::Signal { signal } => format!("ended by signal {signal}"),
        ExitHow::Background { processes } => format!(
            "exited with code 0 and left {} running, which was ended",
            processes.join(", ")
        ),
        ExitHow::OutOfMemory { limit } => {
            return format!("killed by the kernel: over its memory limit of {limit}");
        }
        ExitHow::LeaseLost => "stopped: its lease was lost".to_owned(),
        ExitHow::NotStarted { error } => error.clone(),
        ExitHow::Unknown => "ended".to_owned(),
    };
    match out_of_memory_kills {
        0 => text,
        count => format!("{text}; the kernel killed {count} processes of it over its memory limit"),
    }
}
