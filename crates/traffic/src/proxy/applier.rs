//! Takes snapshots: sockets first, then the view, then the workers' word, then the disk.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::traffic::ProxySnapshot;

use super::disk::{self, Saver};
use super::sockets;
use super::tls::Tls;
use super::view::View;
use super::worker::Common;

/// Addresses that were taken are asked for again this often.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// For the last snapshot to reach the disk when the proxy ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

pub struct Applier {
    directory: PathBuf,
    saver: Saver,
    common: Arc<Common>,
    /// The snapshot that is in force, while some of its addresses could not be claimed.
    incomplete: Option<ProxySnapshot>,
}

impl Applier {
    pub fn new(directory: PathBuf, common: Arc<Common>) -> io::Result<Self> {
        Ok(Self {
            saver: Saver::start(directory.clone())?,
            directory,
            common,
            incomplete: None,
        })
    }

    /// Starts on what an earlier proxy kept.
    pub async fn restore(&mut self) {
        match disk::load(&self.directory) {
            Ok(None) => {}
            Ok(Some(snapshot)) => drop(self.take(snapshot).await),
            Err(error) => tracing::warn!(%error, "the kept snapshot is of no use"),
        }
    }

    pub async fn apply(&mut self, snapshot: ProxySnapshot) {
        if let Some(snapshot) = self.take(snapshot).await {
            self.saver.save(snapshot);
        }
    }

    /// What is in force is kept, or the disk has had its time. Blocks the thread.
    pub fn flush(&self) {
        self.saver.flush(FLUSH_PATIENCE);
    }

    /// Waits a moment and tries once more to claim what was taken; waits for ever when nothing is missing.
    pub async fn retry(&mut self) {
        if self.incomplete.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep(RETRY_EVERY).await;
        // It stays until it is taken: a command may come meanwhile, and end this.
        if let Some(snapshot) = self.incomplete.clone() {
            self.take(snapshot).await;
        }
    }

    /// Brings a snapshot into force and returns it; `None` when it could not be taken and the last good one stays.
    async fn take(&mut self, snapshot: ProxySnapshot) -> Option<ProxySnapshot> {
        let reports = self.common.reports.clone();
        let before = self.common.view();
        let tls = match Tls::new(&snapshot.trust, before.as_deref().map(|view| &view.tls)) {
            Ok(tls) => tls,
            Err(error) => {
                reports.refused(Some((snapshot.generation, error.to_string())));
                return None;
            }
        };
        let held = before.as_deref().map(|view| &view.sockets);
        let (sockets, missing) = sockets::claim(&snapshot, held);
        let view = View::new(&snapshot, tls, sockets, before.as_deref(), &reports);
        drop(before);
        // Old and new view share the gates: from here on nobody enters by either whom the snapshot keeps out.
        view.set_gates(&snapshot);
        self.common.publish(Arc::new(view)).await;
        self.incomplete = (!missing.is_empty()).then(|| snapshot.clone());
        // In this order: what is refused of it is told after it.
        reports.acknowledged(snapshot.generation, missing.keys().copied().collect());
        let why: Vec<String> = missing.into_values().collect();
        reports.refused((!why.is_empty()).then(|| (snapshot.generation, why.join("; "))));
        Some(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::proxy::view::tests::snapshot;

    #[tokio::test]
    async fn addresses_that_were_taken_are_asked_for_until_they_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let nobody_works = Common::new(0, None);
        let mut applier = Applier::new(directory.path().to_owned(), nobody_works).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut snapshot = snapshot();
        snapshot.mesh = taken.local_addr().unwrap();
        applier.apply(snapshot).await;
        assert!(applier.incomplete.is_some());
        // A worker takes its time, and a command comes meanwhile.
        applier.common = Common::new(1, None);
        let ended = tokio::time::timeout(RETRY_EVERY * 2, applier.retry()).await;
        assert!(ended.is_err() && applier.incomplete.is_some());
        applier.common = Common::new(0, None);
        drop(taken);
        applier.retry().await;
        assert!(applier.incomplete.is_none());
    }
}
