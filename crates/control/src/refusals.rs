//! Requests that were refused, counted: who asks for the same in vain ten thousand times makes one record, not ten thousand. They lie beside
//! the audit log's chain, within a bound of their own, so that nobody who may do nothing can push out what was done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use model::boundary::{AuditOutcome, AuditRecord, PrincipalName};
use store::{Error, List, Store, Transaction};

use crate::records::{REFUSED, encode};
use crate::state::{CommitError, Server};

/// Kinds that are told apart within a minute. What is beyond is counted together.
const KINDS_MOST: usize = 64;
/// How often what was counted is stored.
pub const STORED_EVERY: Duration = Duration::from_secs(60);
/// Such records that are kept: with the most kinds in each some 15 MiB.
const STORED_MOST: usize = 500;
/// Beyond the bound that are dropped at once.
const DROPPED_MOST: usize = 64;

type Kind = (PrincipalName, String, String);

/// What was refused since it was last stored.
#[derive(Default)]
pub struct Refusals {
    counted: Mutex<BTreeMap<Kind, AuditRecord>>,
}

impl Refusals {
    /// Counts one, by who asked, what for, and the code of why not.
    pub fn count(&self, at: Timestamp, deed: &crate::auditor::Deed, code: &str, why: &str) {
        let mut kind = (deed.by.clone(), deed.action.to_owned(), code.to_owned());
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !counted.contains_key(&kind);
        let (mut on, mut why) = (deed.on.as_str(), why);
        if is_new && counted.len() >= KINDS_MOST {
            kind = (
                PrincipalName("others".to_owned()),
                "many".to_owned(),
                String::new(),
            );
            (on, why) = ("", "more kinds than are told apart within a minute");
        }
        let record = counted
            .entry(kind)
            .or_insert_with_key(|(by, action, _)| AuditRecord {
                sequence: None,
                at,
                principal: by.clone(),
                action: action.clone(),
                on: cut(on),
                outcome: AuditOutcome::Refused { why: cut(why) },
                times: 0,
                detail: Vec::new(),
            });
        record.times += 1;
    }

    /// What is not stored yet.
    pub fn counted(&self) -> Vec<AuditRecord> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.values().cloned().collect()
    }

    fn take(&self) -> BTreeMap<Kind, AuditRecord> {
        std::mem::take(&mut *self.counted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts again what could not be stored.
    fn restore(&self, taken: BTreeMap<Kind, AuditRecord>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, record) in taken {
            if let Some(known) = counted.get_mut(&kind) {
                known.times += record.times;
            } else if counted.len() <= KINDS_MOST {
                counted.insert(kind, record);
            }
        }
    }
}

fn cut(text: &str) -> String {
    const MOST: usize = 200;
    text[..text.floor_char_boundary(MOST)].to_owned()
}

/// Stores what was counted now and then, and at the end.
pub async fn run(server: Arc<Server>) {
    let mut ending = server.ending.clone();
    loop {
        let ends = tokio::time::timeout(STORED_EVERY, ending.wait_for(|ending| *ending));
        let ends = ends.await.is_ok();
        if let Err(error) = store(&server).await {
            tracing::warn!(%error, "what was refused can't be stored");
        }
        if ends {
            return;
        }
    }
}

async fn store(server: &Server) -> Result<(), CommitError> {
    let counted = server.refusals.take();
    if counted.is_empty() {
        return Ok(());
    }
    let records: Vec<_> = counted.values().cloned().collect();
    let written = write(server, &records).await;
    if written.is_err() {
        server.refusals.restore(counted);
    }
    written
}

async fn write(server: &Server, records: &[AuditRecord]) -> Result<(), CommitError> {
    let place = format!("{REFUSED}{:015}", server.now().as_millisecond());
    let transaction = Transaction::new().put(place, encode(&records));
    let list = List::prefix(REFUSED).limit(STORED_MOST + DROPPED_MOST);
    let kept = server.store.list(list).await.map_err(CommitError::Store)?;
    let surplus = (kept.records.len() + 1).saturating_sub(STORED_MOST);
    let oldest = kept.records[..surplus].iter();
    let transaction = oldest.fold(transaction, |transaction, record| {
        transaction.delete(record.key.to_string())
    });
    server.write(transaction).await.map(drop)
}

/// What was refused and stored.
pub async fn stored(store: &dyn Store) -> Result<Vec<AuditRecord>, Error> {
    let page = store.list(List::prefix(REFUSED).limit(STORED_MOST)).await?;
    let records = page.records.iter();
    let read = records.filter_map(|record| serde_json::from_slice::<Vec<_>>(&record.value).ok());
    Ok(read.flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auditor::Deed;

    #[test]
    fn the_same_is_counted_and_kinds_are_bounded() {
        let refusals = Refusals::default();
        let at = Timestamp::UNIX_EPOCH;
        let anonymous = PrincipalName("anonymous".to_owned());
        for index in 0..10_000 {
            let deed = Deed::new(anonymous.clone(), "putService", format!("/v1/{index}"));
            refusals.count(at, &deed, "unauthenticated", "show a token");
        }
        let counted = refusals.counted();
        assert_eq!(counted.len(), 1);
        assert_eq!(
            (counted[0].times, counted[0].on.as_str()),
            (10_000, "/v1/0")
        );
        for index in 0..1_000 {
            let deed = Deed::new(
                PrincipalName(format!("node:{index}")),
                "scale",
                "x".repeat(9_000),
            );
            refusals.count(at, &deed, "not-permitted", &"ä".repeat(9_000));
        }
        let counted = refusals.counted();
        assert_eq!(counted.len(), KINDS_MOST + 1);
        assert_eq!(
            counted.iter().map(|record| record.times).sum::<u64>(),
            11_000
        );
        assert!(encode(&counted).len() < 64 << 10);
    }
}
