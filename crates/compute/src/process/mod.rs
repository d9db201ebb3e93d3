//! The runtime for programs of the machine: a shim per instance, spoken to over its socket.
//!
//! Every running instance has a task here ([`conversation`]) that hears its shim and passes on what is asked. All truth is
//! in the shim and in the instance's directory: this runtime can be dropped at any time, and another adopts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::compute::ExitHow;
use model::ids::InstanceId;
use model::units::Span;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use crate::cgroup::{Cgroups, Group};
use crate::identity::{self, ProcessIdentity};
use crate::instance::{self, Record};
use crate::lease::Moment;
use crate::runtime::{
    Adopted, BoxFuture, Error, Event, ExecCommand, Happening, InstanceSpec, Runtime, Session,
    Started,
};
use crate::shim::protocol::Request;

use conversation::{Found, Run};
pub use elsewhere::runs_elsewhere;
pub use launch::cgroup_name;
use leftovers::Remains;
pub(crate) use leftovers::end_workload;

mod conversation;
mod elsewhere;
mod exec;
mod launch;
mod leftovers;
mod prepare;

/// Requests to one shim that were not yet written; renewals are none of them.
const REQUESTS_MAX: usize = 32;
/// For a killed instance to be gone when it is removed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(30);
/// For a shim to start its workload or say why not.
pub const START_PATIENCE: Duration = Duration::from_secs(30);
/// For what was killed to be gone, until it is said that it is not.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// After the first SIGKILL, for a shim whose workload is gone to say so. One that does not is ended as well.
const MUTE_PATIENCE: Duration = Duration::from_secs(5);

/// For a shim that an earlier agent left to say hello: its node is silent meanwhile, and lost after seconds. One that has recorded its run is taken over
/// without, and heard as soon as it answers.
const ADOPT_PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks for what the kernel holds.
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);
/// Between two SIGKILLs to what is being removed.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// What the runtime is made of.
#[derive(Debug)]
pub struct Options {
    /// The binary whose `shim` and `shim-exec` are the crate's entry points.
    pub binary: PathBuf,
    /// `None` where no cgroup may be used.
    pub cgroups: Option<Cgroups>,
    /// Bounded: when the agent does not keep up, the shims' news wait.
    pub events: mpsc::Sender<Event>,
    /// Where shims are heard and told of renewals: a runtime that no file call holds up.
    pub hearers: Handle,
    /// For a shim to start its workload: [`START_PATIENCE`], but in tests.
    pub start_patience: Duration,
}

/// The process runtime. Its methods must be called inside a tokio runtime.
pub struct ProcessRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    running: Mutex<HashMap<InstanceId, Entry>>,
    /// The newest renewal, for every shim to be told: one that does not answer has nothing waiting for it but this.
    lease: watch::Sender<Option<Moment>>,
}

/// An instance that is being started or runs.
struct Entry {
    requests: mpsc::Sender<Request>,
    /// When it was first to be killed.
    killed_at: Option<Instant>,
    /// Of its workload; 0 while it is being started.
    pid: u32,
    /// What was last told to be still there.
    told: Vec<String>,
}

impl ProcessRuntime {
    pub fn new(options: Options) -> Self {
        let running = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                options,
                running,
                lease: watch::Sender::default(),
            }),
        }
    }
}

/// Dropped, as with a start that is given up half way, nobody hears the instance any more.
struct Registered<'a>(&'a Shared, &'a InstanceId);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, HashMap<InstanceId, Entry>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sender(&self, instance: &InstanceId) -> Option<mpsc::Sender<Request>> {
        let entries = self.entries();
        entries.get(instance).map(|entry| entry.requests.clone())
    }

    fn register(&self, instance: &InstanceId) -> Result<mpsc::Receiver<Request>, Error> {
        let mut entries = self.entries();
        if entries.contains_key(instance) {
            return Err(Error::Running(instance.clone()));
        }
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let entry = Entry {
            requests,
            killed_at: None,
            pid: 0,
            told: Vec::new(),
        };
        entries.insert(instance.clone(), entry);
        Ok(receiver)
    }

    fn is_known_as(&self, instance: &InstanceId, pid: u32) {
        if let Some(entry) = self.entries().get_mut(instance) {
            entry.pid = pid;
        }
    }

    fn forget(&self, instance: &InstanceId) {
        self.entries().remove(instance);
    }

    /// Never waits. A full queue belongs to a shim that does not answer, and holds what was asked of it before.
    fn ask(&self, instance: &InstanceId, request: Request) -> Result<(), Error> {
        let gone = || Error::NotRunning(instance.clone());
        let requests = self.sender(instance).ok_or_else(gone)?;
        requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => Error::Mute(instance.clone()),
            TrySendError::Closed(_) => gone(),
        })
    }

    /// By a hearer, whose connection it will be.
    async fn look_for(&self, directory: &Path) -> Result<Found, Error> {
        let directory = directory.to_owned();
        let looking = async move { conversation::find(&directory, ADOPT_PATIENCE).await };
        match self.options.hearers.spawn(looking).await {
            Ok(found) => found,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn group(&self, instance: &InstanceId, directory: &Path) -> Option<Group> {
        let cgroups = self.options.cgroups.as_ref()?;
        Some(cgroups.locate(&launch::cgroup_name(instance, directory)))
    }

    /// Ends what is left of an instance of which no living shim is known.
    async fn end(
        &self,
        instance: &InstanceId,
        directory: &Path,
        shim: Option<ProcessIdentity>,
    ) -> Result<(), Error> {
        let group = self.group(instance, directory);
        let directory = directory.to_owned();
        blocking(move || Remains::of(&directory, group, shim).end(END_PATIENCE)).await
    }

    /// Returns when nothing of an instance lives, however long the kernel holds it: what is started before would be a second one.
    async fn settle(&self, instance: &InstanceId, directory: &Path, shim: Option<ProcessIdentity>) {
        loop {
            match self.end(instance, directory, shim.clone()).await {
                Ok(()) => return,
                Err(Error::StillThere { processes }) => {
                    self.tell_unkillable(instance, 0, processes).await;
                }
                Err(error) => {
                    tracing::warn!(%instance, %error, "what is left of it can't be looked for");
                }
            }
            tokio::time::sleep(SETTLE_INTERVAL).await;
        }
    }

    /// Where it is news. `pid`: 0 while it is being started.
    async fn tell_unkillable(&self, instance: &InstanceId, pid: u32, processes: Vec<String>) {
        let is_news = self.entries().get_mut(instance).is_some_and(|entry| {
            let is_news = entry.told != processes;
            entry.told.clone_from(&processes);
            is_news
        });
        if is_news {
            let event = Event {
                instance: instance.clone(),
                pid,
                what: Happening::Unkillable { processes },
            };
            let _ = self.options.events.send(event).await;
        }
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<(Started, tokio::process::Child), Error> {
        let (instance, directory) = (&spec.instance, &spec.directory);
        if conversation::answers(directory).await {
            return Err(Error::Running(instance.clone()));
        }
        self.settle(instance, directory, None).await;
        match launch::launch(&self.options, spec, self.lease.subscribe()).await {
            Ok(launched) => Ok(launched),
            Err(failed) => {
                self.settle(instance, directory, failed.shim).await;
                Err(failed.error)
            }
        }
    }

    /// The first time now, or when that was.
    fn killed_at(&self, instance: &InstanceId) -> Option<Instant> {
        let mut entries = self.entries();
        let entry = entries.get_mut(instance)?;
        Some(*entry.killed_at.get_or_insert_with(Instant::now))
    }

    async fn kill(&self, instance: &InstanceId, directory: &Path) -> Result<(), Error> {
        let group = self.group(instance, directory);
        let Some(killed_at) = self.killed_at(instance) else {
            self.end(instance, directory, None).await?;
            return Err(Error::NotRunning(instance.clone()));
        };
        // It notes who asked for the end. One that is stopped, or waits for a disk, does not hear it.
        let _ = self
            .sender(instance)
            .map(|requests| requests.try_send(Request::Kill));
        let since = killed_at.elapsed();
        let directory = directory.to_owned();
        let left = blocking(move || {
            let remains = Remains::of(&directory, group, None);
            let left = remains.kill_workload();
            if left.is_empty() && since >= MUTE_PATIENCE {
                remains.kill_shims();
            }
            Ok(left)
        });
        let left = left.await?;
        if !left.is_empty() && since >= END_PATIENCE {
            let pid = self.entries().get(instance).map_or(0, |entry| entry.pid);
            let processes = identity::describe_all(&left);
            self.tell_unkillable(instance, pid, processes).await;
        }
        Ok(())
    }
}

impl Runtime for ProcessRuntime {
    fn prepare<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<(), Error>> {
        let spec = spec.clone();
        Box::pin(async move { blocking(move || prepare::prepare(&spec)).await })
    }

    fn start<'a>(&'a self, spec: &'a InstanceSpec) -> BoxFuture<'a, Result<Started, Error>> {
        Box::pin(async move {
            let requests = self.shared.register(&spec.instance)?;
            let registered = Registered(&self.shared, &spec.instance);
            match self.shared.start(spec).await {
                Ok((started, shim)) => {
                    let run = Run {
                        pid: started.pid,
                        stopped: None,
                        requests,
                        stream: None,
                        shim: Some(shim),
                    };
                    std::mem::forget(registered);
                    conversation::begin(&self.shared, &spec.instance, &spec.directory, run);
                    Ok(started)
                }
                Err(error) => Err(error),
            }
        })
    }

    fn adopt<'a>(
        &'a self,
        instance: &'a InstanceId,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<Adopted, Error>> {
        Box::pin(async move {
            let requests = self.shared.register(instance)?;
            let registered = Registered(&self.shared, instance);
            match self.shared.look_for(directory).await {
                Ok(Found::Running {
                    stream,
                    record,
                    stopped,
                }) => {
                    std::mem::forget(registered);
                    let heard = (Some(stream), stopped);
                    Ok(self.take_over(instance, directory, requests, &record, heard))
                }
                // It runs, or what is left of it is being ended: its shim is heard as soon as it answers.
                Ok(Found::Mute(Some(record)))
                    if record.workload.is_alive() || record.shim.is_alive() =>
                {
                    std::mem::forget(registered);
                    Ok(self.take_over(instance, directory, requests, &record, (None, None)))
                }
                found => {
                    let ended = self.shared.end(instance, directory, None).await;
                    drop(registered);
                    ended?;
                    Ok(match found? {
                        Found::Ended(exit) => Adopted::Ended { exit },
                        Found::Mute(_) | Found::Gone => Adopted::Ended {
                            exit: unknown_exit(directory).await,
                        },
                        _ => Adopted::NotStarted,
                    })
                }
            }
        })
    }

    fn exec<'a>(
        &'a self,
        spec: &'a InstanceSpec,
        command: ExecCommand,
    ) -> BoxFuture<'a, Result<Session, Error>> {
        Box::pin(async move { exec::exec(&self.shared.options, spec, command).await })
    }

    fn stop<'a>(
        &'a self,
        instance: &'a InstanceId,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let asked = self
            .shared
            .ask(instance, Request::Stop { grace: Span(grace) });
        Box::pin(std::future::ready(asked))
    }

    fn kill<'a>(
        &'a self,
        instance: &'a InstanceId,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.shared.kill(instance, directory))
    }

    fn signal<'a>(
        &'a self,
        instance: &'a InstanceId,
        signal: i32,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let asked = self.shared.ask(instance, Request::Signal { signal });
        Box::pin(std::future::ready(asked))
    }

    fn renew(&self, sent_at: Moment) {
        // An answer that was overtaken takes nothing back.
        self.shared.lease.send_if_modified(|newest| {
            let is_newer = newest.is_none_or(|newest| sent_at > newest);
            *newest = (*newest).max(Some(sent_at));
            is_newer
        });
    }

    fn remove<'a>(
        &'a self,
        instance: &'a InstanceId,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.shared.sender(instance).is_none() {
                // What a former agent left is taken over first, to be killed like any other.
                self.adopt(instance, directory).await?;
            }
            let deadline = Instant::now() + REMOVE_PATIENCE;
            while let Some(requests) = self.shared.sender(instance) {
                if Instant::now() >= deadline {
                    return Err(Error::Running(instance.clone()));
                }
                match self.shared.kill(instance, directory).await {
                    Ok(()) | Err(Error::NotRunning(_)) => {}
                    Err(error) => return Err(error),
                }
                let _ = tokio::time::timeout(KILL_AGAIN, requests.closed()).await;
            }
            self.shared.end(instance, directory, None).await?;
            let cgroup = self.shared.group(instance, directory);
            let directory = directory.to_owned();
            blocking(move || prepare::remove(&directory, cgroup)).await
        })
    }
}

impl ProcessRuntime {
    /// Hears the shim of what runs already.
    fn take_over(
        &self,
        instance: &InstanceId,
        directory: &Path,
        requests: mpsc::Receiver<Request>,
        record: &Record,
        (stream, stopped): (Option<conversation::Stream>, Option<i32>),
    ) -> Adopted {
        let started = Started {
            pid: record.workload.pid,
            at: record.started_at,
        };
        let run = Run {
            pid: started.pid,
            stopped,
            requests,
            stream,
            shim: None,
        };
        conversation::begin(&self.shared, instance, directory, run);
        Adopted::Running {
            started,
            frozen: stopped.is_some(),
        }
    }
}

/// Runs what waits for a disk outside of the runtime's thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// How the run ended whose shim is gone without a word.
async fn unknown_exit(directory: &Path) -> model::compute::Exit {
    let exit = model::compute::Exit {
        how: ExitHow::Unknown,
        at: jiff::Timestamp::now(),
    };
    let (directory, kept) = (directory.to_owned(), exit.clone());
    // Not on disk: the next agent finds out once more.
    let _ = blocking(move || Ok(instance::write_exit(&directory, &kept))).await;
    exit
}
