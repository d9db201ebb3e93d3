//! Hearing a shim for as long as it lives.
//!
//! ```text
//! find ─► connected ── notices ──► events
//!             │ the connection ends
//!             ├─ exit.json is there ──► Exited
//!             ├─ the shim lives ──────► connected again
//!             ├─ it does not answer ──► tried again, until it does or is killed
//!             └─ the shim is gone ────► what is left is killed ──► Exited, unknown how
//! ```

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::compute::Exit;
use model::ids::InstanceId;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Shared, blocking, unknown_exit};
use crate::instance::{self, Record};
use crate::lease::Moment;
use crate::runtime::{Error, Event, Happening};
use crate::shim::protocol::{Notice, Request};

/// For a shim to say hello, or for one that has just been started to record itself.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// For a shim to say hello where none should be.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks for a shim that does not answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

pub(super) type Stream = BufReader<UnixStream>;

/// What is in an instance's directory.
pub(super) enum Found {
    Running {
        stream: Stream,
        record: Box<Record>,
        stopped: Option<i32>,
    },
    /// One lives and does not answer: it is stopped, or waits for a disk. With what is on record of its run.
    Mute(Option<Box<Record>>),
    Ended(Exit),
    /// There was one, and it is gone without a word: the machine was restarted, or somebody killed it.
    Gone,
    Nothing,
}

/// Connects to the shim of a directory, or finds out what became of it. `patience`: for one that lives to say hello.
pub(super) async fn find(directory: &Path, patience: Duration) -> Result<Found, Error> {
    let deadline = Instant::now() + patience;
    loop {
        let (locked, record, exit) = look(directory).await?;
        if let Some(exit) = exit {
            return Ok(Found::Ended(exit));
        }
        match (locked, record) {
            (false, None) => return Ok(Found::Nothing),
            // Looked at again after the lock: it may have ended in between.
            (false, Some(_)) => {
                let (_, _, exit) = look(directory).await?;
                return Ok(exit.map_or(Found::Gone, Found::Ended));
            }
            (true, record) => {
                // A shim lives; it may be starting or ending.
                if let Ok(found) = timeout_at(deadline, connect(directory)).await
                    && let Ok(found) = found
                {
                    return Ok(found);
                }
                if Instant::now() >= deadline {
                    return Ok(Found::Mute(record.map(Box::new)));
                }
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Tells a shim that says nothing yet of each renewal, as soon as it listens: it starts its workload, or stands still.
pub(super) async fn renew(
    directory: &Path,
    mut lease: watch::Receiver<Option<Moment>>,
) -> Infallible {
    loop {
        if let Ok(mut stream) = dialled(directory).await {
            lease.mark_changed();
            while lease.changed().await.is_ok() {
                let newest = *lease.borrow_and_update();
                let Some(sent_at) = newest else { continue };
                if ask(&mut stream, &Request::Renew { sent_at }).await.is_err() {
                    break;
                }
            }
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// Whether a shim lives in a directory and answers at once.
pub(super) async fn answers(directory: &Path) -> bool {
    let hello = timeout(ANSWER_PATIENCE, connect(directory));
    matches!(hello.await, Ok(Ok(Found::Running { .. })))
}

type Look = (bool, Option<Record>, Option<Exit>);

/// The exit first: what is locked after that has one still to come.
async fn look(directory: &Path) -> Result<Look, Error> {
    let directory = directory.to_owned();
    blocking(move || {
        let exit = instance::read_exit(&directory);
        let locked = is_locked(&directory).map_err(Error::io("looking at", &directory))?;
        Ok((locked, instance::read_record(&directory), exit))
    })
    .await
}

/// Whether a shim lives there: it holds the directory's lock to its end.
pub(super) fn is_locked(directory: &Path) -> io::Result<bool> {
    let file = match File::open(directory) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

async fn dialled(directory: &Path) -> io::Result<Stream> {
    let directory = directory.to_owned();
    let dialled = blocking(move || Ok(dial(&directory))).await;
    let stream = dialled.map_err(io::Error::other)??;
    Ok(BufReader::new(UnixStream::from_std(stream)?))
}

/// Waits for the disk that the directory is on, never for the shim: one that has taken no connection for long takes no more.
///
/// The directory's path may be longer than the address of a socket: it is named by an open file instead.
fn dial(directory: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let folder = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), instance::SOCKET);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

async fn connect(directory: &Path) -> io::Result<Found> {
    let mut stream = dialled(directory).await?;
    match next_notice(&mut stream).await? {
        Notice::Hello { record, stopped } => Ok(Found::Running {
            stream,
            record: Box::new(record),
            stopped,
        }),
        other => Err(io::Error::other(format!("the shim began with {other:?}"))),
    }
}

async fn ask(stream: &mut Stream, request: &Request) -> io::Result<()> {
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.get_mut().write_all(&text).await
}

async fn next_notice(stream: &mut Stream) -> io::Result<Notice> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

/// A run that is to be heard.
pub(super) struct Run {
    pub pid: u32,
    /// The signal that froze it, as far as the agent knows.
    pub stopped: Option<i32>,
    pub requests: mpsc::Receiver<Request>,
    /// When it is already connected.
    pub stream: Option<Stream>,
    /// Our child, to be reaped.
    pub shim: Option<Child>,
}

/// Starts the task that hears the shim.
pub(super) fn begin(shared: &Arc<Shared>, instance: &InstanceId, directory: &Path, run: Run) {
    shared.is_known_as(instance, run.pid);
    let hearer = Hearer {
        shared: shared.clone(),
        instance: instance.clone(),
        directory: directory.to_owned(),
        pid: run.pid,
        stopped: run.stopped,
        asked: Asked::default(),
    };
    let hearers = shared.options.hearers.clone();
    hearers.spawn(hearer.run(run.requests, run.stream, run.shim));
}

struct Hearer {
    shared: Arc<Shared>,
    instance: InstanceId,
    directory: PathBuf,
    pid: u32,
    stopped: Option<i32>,
    asked: Asked,
}

/// What was asked of a shim, to be said again on the next connection: one that broke may have kept what was written to it.
#[derive(Debug, Default)]
struct Asked {
    /// Stop, or kill. Where it was heard, to hear it again changes nothing.
    end: Option<Request>,
    /// Anything else that was not written wholly.
    unsaid: Option<Request>,
}

impl Asked {
    fn note(&mut self, request: &Request) {
        match request {
            Request::Kill => self.end = Some(Request::Kill),
            // A grace is only ever shortened.
            Request::Stop { .. } if self.end != Some(Request::Kill) => {
                self.end = Some(request.clone());
            }
            Request::Signal { .. } => self.unsaid = Some(request.clone()),
            // The newest renewal is told on each connection.
            Request::Stop { .. } | Request::Renew { .. } => {}
        }
    }

    fn again(&self) -> impl Iterator<Item = Request> + use<> {
        self.end.clone().into_iter().chain(self.unsaid.clone())
    }
}

impl Hearer {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut stream: Option<Stream>,
        shim: Option<Child>,
    ) {
        let mut said = false;
        let exit = loop {
            if let Some(stream) = stream.take()
                && let Some(exit) = self.converse(stream, &mut requests).await
            {
                break exit;
            }
            match self.find().await {
                Ok(Found::Ended(exit)) => break exit,
                Ok(Found::Nothing | Found::Gone) => {
                    self.shared
                        .settle(&self.instance, &self.directory, None)
                        .await;
                    break unknown_exit(&self.directory).await;
                }
                // Dead, and its watchdog still at it: some of it the kernel holds, which is to be named.
                Ok(Found::Mute(Some(record))) if !record.shim.is_alive() => {
                    self.shared
                        .settle(&self.instance, &self.directory, None)
                        .await;
                    break unknown_exit(&self.directory).await;
                }
                Ok(Found::Mute(_)) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(instance = %self.instance, "its shim does not answer; trying on");
                    }
                }
                Ok(Found::Running {
                    stream: found,
                    stopped,
                    ..
                }) => {
                    // What happened while nobody heard.
                    self.freeze(stopped).await;
                    stream = Some(found);
                }
                Err(error) => {
                    tracing::warn!(instance = %self.instance, %error, "the shim can't be reached; trying on");
                    sleep(RETRY_INTERVAL).await;
                }
            }
        };
        if let Some(mut shim) = shim {
            // Its last act was to tell the exit.
            let _ = timeout(HELLO_PATIENCE, shim.wait()).await;
        }
        // Before the event: who hears it may start the instance at once.
        self.shared.forget(&self.instance);
        drop(requests);
        self.tell(Happening::Exited(exit)).await;
    }

    /// A shim that stands still says no hello. Once it goes on, the first that it reads must be the newest renewal.
    async fn find(&self) -> Result<Found, Error> {
        let lease = self.shared.lease.subscribe();
        let renewing = async {
            sleep(RETRY_INTERVAL).await;
            renew(&self.directory, lease).await
        };
        tokio::select! {
            found = find(&self.directory, HELLO_PATIENCE) => found,
            never = renewing => match never {},
        }
    }

    /// Until the connection ends; the exit when that was told.
    async fn converse(
        &mut self,
        mut stream: Stream,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Option<Exit> {
        let mut line = Vec::new();
        let mut lease = self.shared.lease.subscribe();
        // What was renewed while nobody heard is told as well.
        lease.mark_changed();
        for request in self.asked.again() {
            if !self.say(&mut stream, &request).await {
                return None;
            }
        }
        loop {
            let request = tokio::select! {
                // Cancelled half way through a line, `read_until` keeps in `line` what it has read.
                read = stream.read_until(b'\n', &mut line) => {
                    if !matches!(read, Ok(1..)) {
                        return None;
                    }
                    // A shim of a later version may say more than this one knows.
                    let Ok(notice) = serde_json::from_slice(&std::mem::take(&mut line)) else {
                        continue;
                    };
                    if let Some(exit) = self.hear(notice).await {
                        return Some(exit);
                    }
                    continue;
                }
                Some(request) = requests.recv() => request,
                Ok(()) = lease.changed() => {
                    let Some(sent_at) = *lease.borrow_and_update() else { continue };
                    Request::Renew { sent_at }
                }
            };
            self.asked.note(&request);
            if !self.say(&mut stream, &request).await {
                return None;
            }
        }
    }

    /// False: the connection is over. What a shim that ends while it is asked has said before is still to be read.
    async fn say(&mut self, stream: &mut Stream, request: &Request) -> bool {
        let asked = timeout(HELLO_PATIENCE, ask(stream, request)).await;
        if matches!(asked, Ok(Ok(()))) && matches!(request, Request::Signal { .. }) {
            self.asked.unsaid = None;
        }
        // One that takes nothing is found anew.
        asked.is_ok()
    }

    async fn hear(&mut self, notice: Notice) -> Option<Exit> {
        match notice {
            Notice::Exited { exit } => return Some(exit),
            Notice::Stopped { signal } => self.freeze(Some(signal)).await,
            Notice::Continued => self.freeze(None).await,
            Notice::Unkillable { processes } => {
                self.shared
                    .tell_unkillable(&self.instance, self.pid, processes)
                    .await;
            }
            Notice::Refused { error } => {
                tracing::warn!(instance = %self.instance, error, "the shim refused a request");
            }
            Notice::Hello { .. } => {}
        }
        None
    }

    /// Tells what froze it or that it goes on, if that is news.
    async fn freeze(&mut self, stopped: Option<i32>) {
        if self.stopped == stopped {
            return;
        }
        self.stopped = stopped;
        self.tell(match stopped {
            Some(signal) => Happening::Stopped { signal },
            None => Happening::Continued,
        })
        .await;
    }

    async fn tell(&self, what: Happening) {
        let event = Event {
            instance: self.instance.clone(),
            pid: self.pid,
            what,
        };
        // Nobody listens when the agent is ending: the next one adopts and reads the state.
        let _ = self.shared.options.events.send(event).await;
    }
}
