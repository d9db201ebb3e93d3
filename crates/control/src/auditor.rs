//! Keeps the audit log: on a thread of its own, since each record is synced.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use boundary::audit::{Bounds, Error, Filter, Log};
use model::boundary::AuditRecord;
use tokio::sync::oneshot;

const WAITING_MOST: usize = 1024;
/// Records written with one sync.
const AT_ONCE: usize = 64;

type Entry = (AuditRecord, oneshot::Sender<()>);

pub struct Auditor {
    sender: SyncSender<Entry>,
    log: Arc<Log>,
}

impl Auditor {
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let log = Arc::new(Log::open(folder, Bounds::default())?);
        let (sender, receiver) = sync_channel(WAITING_MOST);
        let thread_log = log.clone();
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(&thread_log, &receiver))
            .expect("the machine can start a thread");
        Ok(Self { sender, log })
    }

    /// Hands a record over; the answer comes when it is on disk, or could not be written, which is logged.
    pub fn keep(&self, record: AuditRecord) -> oneshot::Receiver<()> {
        let (done, kept) = oneshot::channel();
        if let Err(refused) = self.sender.try_send((record, done)) {
            tracing::error!(%refused, "an audit record was dropped: the disk is too slow");
        }
        kept
    }

    /// Reads files: to be called where that may take its time.
    pub fn newest(&self, most: usize) -> Result<Vec<AuditRecord>, Error> {
        self.log.newest(&Filter::default(), most)
    }
}

fn write(log: &Log, receiver: &Receiver<Entry>) {
    while let Ok(first) = receiver.recv() {
        let more = std::iter::from_fn(|| receiver.try_recv().ok());
        let (records, waiting): (Vec<_>, Vec<_>) =
            std::iter::once(first).chain(more.take(AT_ONCE - 1)).unzip();
        if let Err(error) = log.append_all(&records) {
            tracing::error!(%error, "audit records can't be written");
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}
