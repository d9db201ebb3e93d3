//! The runtime for programs of the machine: a shim per instance, spoken to over its socket.
//!
//! Every running instance has a task here ([`conversation`]) that hears its shim and passes on what is asked. All truth is
//! in the shim and in the instance's directory: this runtime can be dropped at any time, and another adopts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::compute::ExitHow;
use model::ids::InstanceId;
use model::units::Span;
use tokio::sync::mpsc;

use crate::cgroup::Cgroups;
use crate::instance;
use crate::lease::Moment;
use crate::runtime::{
    Adopted, BoxFuture, Error, Event, ExecCommand, InstanceSpec, Runtime, Session, Started,
};
use crate::shim::protocol::Request;

use conversation::{Found, Run};
pub use elsewhere::runs_elsewhere;
pub use launch::cgroup_name;

mod conversation;
mod elsewhere;
mod exec;
mod launch;
mod leftovers;
mod prepare;

/// Requests to one shim that were not yet written.
const REQUESTS_MAX: usize = 32;
/// For a killed instance to be gone when it is removed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(30);

/// What the runtime is made of.
#[derive(Debug)]
pub struct Options {
    /// The binary whose `shim` and `shim-exec` are the crate's entry points.
    pub binary: PathBuf,
    /// `None` where no cgroup may be used.
    pub cgroups: Option<Cgroups>,
    /// Bounded: when the agent does not keep up, the shims' news wait.
    pub events: mpsc::Sender<Event>,
}

/// The process runtime. Its methods must be called inside a tokio runtime.
pub struct ProcessRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    running: Mutex<HashMap<InstanceId, mpsc::Sender<Request>>>,
}

impl ProcessRuntime {
    pub fn new(options: Options) -> Self {
        let running = Mutex::default();
        Self {
            shared: Arc::new(Shared { options, running }),
        }
    }
}

impl Shared {
    fn sender(&self, instance: &InstanceId) -> Option<mpsc::Sender<Request>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(instance).cloned()
    }

    fn register(&self, instance: &InstanceId) -> Result<mpsc::Receiver<Request>, Error> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.contains_key(instance) {
            return Err(Error::Running(instance.clone()));
        }
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        running.insert(instance.clone(), requests);
        Ok(receiver)
    }

    fn forget(&self, instance: &InstanceId) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(instance);
    }

    async fn ask(&self, instance: &InstanceId, request: Request) -> Result<(), Error> {
        let gone = || Error::NotRunning(instance.clone());
        self.sender(instance)
            .ok_or_else(gone)?
            .send(request)
            .await
            .map_err(|_| gone())
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
            let launched = match end_leftovers(&spec.directory).await {
                Ok(()) => launch::launch(&self.shared.options, spec).await,
                Err(error) => Err(error),
            };
            match launched {
                Ok((started, shim)) => {
                    let run = Run {
                        pid: started.pid,
                        stopped: None,
                        requests,
                        stream: None,
                        shim: Some(shim),
                    };
                    conversation::begin(&self.shared, &spec.instance, &spec.directory, run);
                    Ok(started)
                }
                Err(error) => {
                    self.shared.forget(&spec.instance);
                    Err(error)
                }
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
            match conversation::find(directory).await {
                Ok(Found::Running {
                    stream,
                    record,
                    stopped,
                }) => {
                    let started = Started {
                        pid: record.workload.pid,
                        at: record.started_at,
                    };
                    let run = Run {
                        pid: started.pid,
                        stopped,
                        requests,
                        stream: Some(stream),
                        shim: None,
                    };
                    conversation::begin(&self.shared, instance, directory, run);
                    Ok(Adopted::Running {
                        started,
                        frozen: stopped.is_some(),
                    })
                }
                Ok(Found::Ended(exit)) => {
                    let ended = end_leftovers(directory).await;
                    self.shared.forget(instance);
                    ended.map(|()| Adopted::Ended { exit })
                }
                Ok(Found::Nothing) => {
                    self.shared.forget(instance);
                    Ok(Adopted::NotStarted)
                }
                Err(error) => {
                    self.shared.forget(instance);
                    Err(error)
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
        Box::pin(
            self.shared
                .ask(instance, Request::Stop { grace: Span(grace) }),
        )
    }

    fn kill<'a>(&'a self, instance: &'a InstanceId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.shared.ask(instance, Request::Kill))
    }

    fn signal<'a>(
        &'a self,
        instance: &'a InstanceId,
        signal: i32,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.shared.ask(instance, Request::Signal { signal }))
    }

    fn renew(&self, sent_at: Moment) {
        let running = self
            .shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for requests in running.values() {
            // A full queue holds an earlier renewal, or belongs to a shim that does not answer: the next one tells more.
            let _ = requests.try_send(Request::Renew { sent_at });
        }
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
            if let Some(requests) = self.shared.sender(instance) {
                let _ = requests.send(Request::Kill).await;
                let _ = tokio::time::timeout(REMOVE_PATIENCE, requests.closed()).await;
            }
            if self.shared.sender(instance).is_some() {
                return Err(Error::Running(instance.clone()));
            }
            let name = launch::cgroup_name(instance, directory);
            let cgroups = self.shared.options.cgroups.as_ref();
            let cgroup = cgroups.map(|cgroups| cgroups.locate(&name));
            end_leftovers(directory).await?;
            let directory = directory.to_owned();
            blocking(move || prepare::remove(&directory, cgroup)).await
        })
    }
}

/// Where no shim lives, nothing that it should have ended does afterwards.
async fn end_leftovers(directory: &Path) -> Result<(), Error> {
    let directory = directory.to_owned();
    blocking(move || leftovers::end_in(&directory)).await
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
fn unknown_exit(directory: &Path) -> model::compute::Exit {
    let exit = model::compute::Exit {
        how: ExitHow::Unknown,
        at: jiff::Timestamp::now(),
    };
    // Not on disk: the next agent finds out once more.
    let _ = instance::write_exit(directory, &exit);
    exit
}
