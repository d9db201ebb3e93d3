//! Says what happened: to the event log, on a thread of its own, since it writes files.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use model::control::Reason;
use model::ids::{NodeName, ProjectName};
use model::signals::{Event, Level};
use signals::events::{self, EventLog};
use tokio::sync::watch;

/// Events that wait for the disk at most. Beyond it they are dropped and counted in the log of the process.
const WAITING_MOST: usize = 4096;

/// What an event is about.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub project: Option<ProjectName>,
    pub node: Option<NodeName>,
    pub subject: String,
}

impl About {
    pub fn node(name: &NodeName) -> Self {
        Self {
            project: None,
            node: Some(name.clone()),
            subject: name.to_string(),
        }
    }

    pub fn resource(project: &ProjectName, subject: impl ToString) -> Self {
        Self {
            project: Some(project.clone()),
            node: None,
            subject: subject.to_string(),
        }
    }

    pub fn server() -> Self {
        Self {
            subject: "server".to_owned(),
            ..Self::default()
        }
    }

    pub fn on(self, node: &NodeName) -> Self {
        Self {
            node: Some(node.clone()),
            ..self
        }
    }
}

pub struct Recorder {
    sender: SyncSender<Event>,
    log: Arc<EventLog>,
    newest: watch::Receiver<u64>,
}

impl Recorder {
    /// Opens the log in `folder`.
    pub fn open(folder: &Path) -> Result<Self, events::Error> {
        let log = Arc::new(EventLog::open(folder, events::Options::default())?);
        let (sender, receiver) = sync_channel(WAITING_MOST);
        let (newest_sender, newest) = watch::channel(log.last());
        let thread_log = log.clone();
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || write(&thread_log, &receiver, &newest_sender))
            .expect("the machine can start a thread");
        Ok(Self {
            sender,
            log,
            newest,
        })
    }

    pub fn say(&self, at: jiff::Timestamp, level: Level, about: About, reason: Reason) {
        let event = Event {
            sequence: 0,
            at,
            level,
            project: about.project,
            node: about.node,
            subject: about.subject,
            reason,
        };
        if let Err(refused) = self.sender.try_send(event) {
            tracing::warn!(%refused, "an event was dropped: the disk is too slow");
        }
    }

    /// Events after a number, oldest first.
    pub fn since(&self, sequence: u64) -> Vec<Event> {
        self.log.since(sequence)
    }

    /// Changes with each event.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }
}

fn write(log: &EventLog, receiver: &Receiver<Event>, newest: &watch::Sender<u64>) {
    while let Ok(event) = receiver.recv() {
        let appended = log.append(event);
        if let Some(error) = appended.disk_failed {
            tracing::error!(%error, "events can't be written to disk; they are kept in memory until they can");
        }
        newest.send_replace(appended.sequence);
    }
}
