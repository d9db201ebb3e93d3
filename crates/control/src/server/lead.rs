//! Taking the lead.

use model::ids::Epoch;
use store::{Store, Transaction, list_all};

use super::Error;
use crate::clock::Clock;
use crate::mirror;
use crate::records::{self, Key, LEADER, LeaderRecord, decode, encode};

/// A higher epoch than any before: from now on writes of an older leader fail.
pub(super) async fn take(
    store: &dyn Store,
    clock: &Clock,
    version: &str,
) -> Result<(Epoch, Vec<u8>), Error> {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        let known = store.get(LEADER).await?;
        let before: Option<LeaderRecord> = match &known {
            Some(record) => Some(decode(LEADER, &record.value).map_err(mirror::LoadError::from)?),
            None => None,
        };
        let first_uid = match before.as_ref().and_then(|before| before.first_uid) {
            Some(first) => first,
            None => first_uid(store).await?,
        };
        let shares_since = before.as_ref().and_then(|before| before.shares_since);
        let epoch = before.map_or_else(Epoch::default, |before| before.epoch);
        let record = LeaderRecord {
            epoch: epoch.next(),
            since: clock.at(),
            version: Some(version.to_owned()),
            first_uid: Some(first_uid),
            shares_since: shares_since.or_else(|| Some(clock.at())),
        };
        let claim = encode(&record);
        let version = known.map_or(0, |record| record.version);
        let transaction = Transaction::new()
            .if_version(LEADER, version)
            .put(LEADER, claim.clone());
        match store.transact(transaction).await {
            Ok(_) => return Ok((record.epoch, claim)),
            Err(store::Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Overtaken)
}

/// Where a cloud that keeps no beginning of its uids has begun: at the lowest that it gave, or it begins by chance.
async fn first_uid(store: &dyn Store) -> Result<u32, store::Error> {
    let (given, _) = list_all(store, "uid/").await?;
    let number = |key: &str| match key.parse() {
        Ok(Key::Uid(number)) => Some(number),
        _ => None,
    };
    let lowest = given.iter().filter_map(|record| number(&record.key)).min();
    Ok(lowest.unwrap_or_else(records::first_uid))
}
