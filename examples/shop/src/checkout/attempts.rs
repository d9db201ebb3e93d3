//! The attempts at checkout, one row per key. Who owns a row drives it; an owner whose lease ends may be followed by another, and
//! can't write the end any more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ring::digest;
use serde_json::{Value, json};

use super::answers::{self, Said};
use super::saga::{Ending, Placed};
use crate::batch::Batcher;
use crate::database::{Database, Error};
use crate::service::hexadecimal;

/// Renewed long before by a living owner.
pub const LEASE_SECONDS: f64 = 3.0;
/// Until what was left is taken up.
const LEFT_SECONDS: f64 = 0.0;
/// What a buyer's own request gets ahead of the sweep, which can only undo.
const BUYERS_FIRST_SECONDS: f64 = 4.0;

pub struct Attempts {
    pub database: Arc<Database>,
    /// This process.
    owner: String,
    /// By key and hash of the body.
    beginning: Batcher<(String, String), bool>,
    ending: Batcher<Compensated, bool>,
}

/// What a key that comes may do.
#[derive(Debug, PartialEq)]
pub enum Admission {
    /// It is ours to drive.
    Ours,
    /// It has ended, so.
    Ended(Said),
    /// Somebody else drives it.
    Running,
    /// The key came with another request.
    OtherRequest,
}

/// An attempt as it is found under a key.
#[derive(Debug, Clone)]
struct Found {
    body_hash: String,
    owner: String,
    is_leased: bool,
    end: Option<Said>,
}

/// What an attempt says of itself, taken over.
#[derive(Debug)]
pub struct Orphan {
    pub key: String,
    pub reason: Option<String>,
}

/// An attempt that was not completed, as it is to be written down.
#[derive(Debug, Clone)]
struct Compensated {
    key: String,
    reason: Option<String>,
    said: Said,
}

/// A completed attempt, as it is to be written down.
#[derive(Debug)]
pub struct Completed {
    pub key: String,
    pub placed: Placed,
}

impl Attempts {
    pub fn new(database: Database, owner: String) -> Self {
        let database = Arc::new(database);
        let (by, on) = (owner.clone(), Arc::clone(&database));
        let (ended_by, ended_on) = (owner.clone(), Arc::clone(&database));
        Self {
            database,
            owner,
            ending: Batcher::new(Duration::ZERO, move |ends| {
                end_all(Arc::clone(&ended_on), ended_by.clone(), ends)
            }),
            beginning: Batcher::new(Duration::ZERO, move |asked| {
                begin_all(Arc::clone(&on), by.clone(), asked)
            }),
        }
    }

    pub async fn begin(&self, key: &str, body_hash: &str) -> Result<Admission, Error> {
        let asked = (key.to_owned(), body_hash.to_owned());
        if self.beginning.ask(asked).await? {
            return Ok(Admission::Ours);
        }
        let Some(found) = self.find(key).await? else {
            return Err(Error::Unavailable(
                "the attempt was lost sight of".to_owned(),
            ));
        };
        let owner = found.owner.clone();
        match admit(found, body_hash) {
            Admission::Ours => self.take_over(key, &owner).await,
            other => Ok(other),
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Found>, Error> {
        const FIND: &str = "select body_hash, owner, lease_until > now(), status, answer from attempts where key = $1";
        let row = self.database.row(FIND, &[&key]).await?;
        Ok(row.map(|row| Found {
            body_hash: row.get(0),
            owner: row.get(1),
            is_leased: row.get(2),
            end: said(row.get(3), row.get(4)),
        }))
    }

    /// From an owner whose lease has ended; of several who try, one gets it.
    async fn take_over(&self, key: &str, from: &str) -> Result<Admission, Error> {
        const TAKE: &str = "update attempts set owner = $3, lease_until = now() + $4 * interval '1 second', takeovers = takeovers + 1
            where key = $1 and owner = $2 and lease_until <= now() and state in ('running', 'compensating') returning key";
        let parameters: [crate::database::Parameter<'_>; 4] =
            [&key, &from, &self.owner, &LEASE_SECONDS];
        let taken = self.database.row(TAKE, &parameters).await?;
        Ok(match taken {
            Some(_) => Admission::Ours,
            None => Admission::Running,
        })
    }

    /// Those whose owners are gone, a few at a time; the same one is never given to two.
    pub async fn orphans(&self, limit: i64) -> Result<Vec<Orphan>, Error> {
        const TAKE: &str =
            "update attempts set owner = $1, lease_until = now() + $2 * interval '1 second',
                state = 'compensating', takeovers = takeovers + 1
            where key in (
                select key from attempts where state in ('running', 'compensating')
                    and lease_until <= now() - $4 * interval '1 second'
                order by lease_until limit $3 for update skip locked)
            returning key, reason";
        let rows = self
            .database
            .rows(
                TAKE,
                &[&self.owner, &LEASE_SECONDS, &limit, &BUYERS_FIRST_SECONDS],
            )
            .await?;
        let orphan = |row: &tokio_postgres::Row| Orphan {
            key: row.get(0),
            reason: row.get(1),
        };
        Ok(rows.iter().map(orphan).collect())
    }

    /// What is locked is being ended by one of ours, and needs no lease: waiting for it, with others locked, could be a deadlock.
    pub async fn renew(&self, keys: &[String]) -> Result<(), Error> {
        const RENEW: &str = "update attempts set lease_until = now() + $3 * interval '1 second'
            where key in (
                select key from attempts where key = any($1) and owner = $2 and state in ('running', 'compensating')
                for update skip locked)";
        self.database
            .rows(RENEW, &[&keys, &self.owner, &LEASE_SECONDS])
            .await
            .map(drop)
    }

    /// Writes that these are completed, unless somebody else owns them by now.
    ///
    /// Neither this write nor that of [`Attempts::end`] is waited for to be safe on disk: if one is lost, the attempt is taken up again
    /// and ends the same.
    pub async fn complete(&self, completed: &[Completed], settled: bool) -> Result<(), Error> {
        const COMPLETE: &str = "with relaxed as materialized (select set_config('synchronous_commit', 'off', true))
            update attempts a set state = 'completed', reason = null, order_id = e.order_id, status = e.status, answer = e.answer,
                settled = $6, changed_at = now()
            from relaxed, unnest($2::text[], $3::text[], $4::smallint[], $5::jsonb[]) as e (key, order_id, status, answer)
            where a.key = e.key and a.owner = $1 and a.state in ('running', 'compensating')";
        let keys: Vec<&str> = completed.iter().map(|c| c.key.as_str()).collect();
        let orders: Vec<&str> = completed
            .iter()
            .map(|c| c.placed.order_id.as_str())
            .collect();
        let said = |c: &Completed| answers::said(&Ending::Completed(c.placed.clone()));
        let (statuses, bodies): (Vec<i16>, Vec<Value>) = completed
            .iter()
            .map(said)
            .map(|said| (i16::try_from(said.status).unwrap_or_default(), said.body))
            .unzip();
        self.database
            .rows(
                COMPLETE,
                &[&self.owner, &keys, &orders, &statuses, &bodies, &settled],
            )
            .await
            .map(drop)
    }

    /// Writes that it was not completed, unless somebody else owns the attempt by now; whether it did.
    pub async fn end(&self, key: &str, ending: &Ending) -> Result<bool, Error> {
        let compensated = Compensated {
            key: key.to_owned(),
            reason: answers::reason(ending),
            said: answers::said(ending),
        };
        self.ending.ask(compensated).await
    }

    /// Writes what the buyer is told, before what is left to undo is undone: a refusal is final once the order can't be placed any more.
    pub async fn decide(&self, key: &str, ending: &Ending) -> Result<(), Error> {
        const DECIDE: &str = "update attempts set reason = $3, status = $4, answer = $5
            where key = $1 and owner = $2 and state in ('running', 'compensating') and status is null";
        let said = answers::said(ending);
        let status = i16::try_from(said.status).unwrap_or_default();
        let reason = answers::reason(ending);
        self.database
            .rows(DECIDE, &[&key, &self.owner, &reason, &status, &said.body])
            .await
            .map(drop)
    }

    /// Gives it up for others, soon.
    pub async fn leave(&self, key: &str, reason: &str) -> Result<(), Error> {
        const LEAVE: &str = "update attempts set state = 'compensating', reason = $3, lease_until = now() + $4 * interval '1 second'
            where key = $1 and owner = $2 and state in ('running', 'compensating')";
        self.database
            .rows(LEAVE, &[&key, &self.owner, &reason, &LEFT_SECONDS])
            .await
            .map(drop)
    }

    /// Completed ones whose stock nobody has settled, though there was time.
    pub async fn unsettled(&self, limit: i64) -> Result<Vec<String>, Error> {
        const UNSETTLED: &str = "select key from attempts where state = 'completed' and not settled
            and changed_at < now() - interval '3 seconds' order by changed_at limit $1";
        let rows = self.database.rows(UNSETTLED, &[&limit]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub async fn settled(&self, keys: &[String]) -> Result<(), Error> {
        const SETTLED: &str =
            "update attempts set settled = true where key = any($1) and state = 'completed'";
        self.database.rows(SETTLED, &[&keys]).await.map(drop)
    }
}

/// Tells of each whether its key is new; of two with the same key the first one's is.
async fn begin_all(
    database: Arc<Database>,
    owner: String,
    asked: Vec<(String, String)>,
) -> Result<Vec<bool>, Error> {
    const BEGIN: &str = "insert into attempts (key, body_hash, state, owner, lease_until)
        select distinct on (key) key, body_hash, 'running', $1, now() + $2 * interval '1 second'
        from unnest($3::text[], $4::text[]) with ordinality as asked (key, body_hash, place) order by key, place
        on conflict (key) do nothing returning key";
    let (keys, hashes): (Vec<&str>, Vec<&str>) = asked
        .iter()
        .map(|(key, hash)| (key.as_str(), hash.as_str()))
        .unzip();
    let rows = database
        .rows(BEGIN, &[&owner, &LEASE_SECONDS, &keys, &hashes])
        .await?;
    let mut begun: HashSet<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(keys.iter().map(|key| begun.remove(key)).collect())
}

/// Tells of each whether it was written.
async fn end_all(
    database: Arc<Database>,
    owner: String,
    ends: Vec<Compensated>,
) -> Result<Vec<bool>, Error> {
    const END: &str = "with relaxed as materialized (select set_config('synchronous_commit', 'off', true))
        update attempts a set state = 'compensated', reason = case when a.status is null then e.reason else a.reason end,
            status = coalesce(a.status, e.status), answer = coalesce(a.answer, e.answer),
            settled = true, changed_at = now()
        from relaxed, unnest($2::text[], $3::text[], $4::smallint[], $5::jsonb[]) as e (key, reason, status, answer)
        where a.key = e.key and a.owner = $1 and a.state in ('running', 'compensating') returning a.key";
    let keys: Vec<&str> = ends.iter().map(|end| end.key.as_str()).collect();
    let reasons: Vec<Option<&str>> = ends.iter().map(|end| end.reason.as_deref()).collect();
    let (statuses, bodies): (Vec<i16>, Vec<&Value>) = ends
        .iter()
        .map(|end| {
            (
                i16::try_from(end.said.status).unwrap_or_default(),
                &end.said.body,
            )
        })
        .unzip();
    let rows = database
        .rows(END, &[&owner, &keys, &reasons, &statuses, &bodies])
        .await?;
    let written: HashSet<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(keys.iter().map(|key| written.contains(key)).collect())
}

fn said(status: Option<i16>, body: Option<Value>) -> Option<Said> {
    Some(Said {
        status: u16::try_from(status?).ok()?,
        body: body?,
    })
}

fn admit(found: Found, body_hash: &str) -> Admission {
    if found.body_hash != body_hash {
        return Admission::OtherRequest;
    }
    match found.end {
        Some(said) => Admission::Ended(said),
        None if found.is_leased => Admission::Running,
        None => Admission::Ours,
    }
}

/// Of what is asked, under its key: the card itself is never written down.
pub fn body_hash(key: &str, body: &super::Body) -> String {
    let text = json!([key, body.items, body.card]).to_string();
    hexadecimal(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_comes_again() {
        let end = Said {
            status: 201,
            body: Value::Null,
        };
        for (body_hash, is_leased, ended, expected) in [
            ("other", true, false, Admission::OtherRequest),
            ("other", false, true, Admission::OtherRequest),
            ("same", true, false, Admission::Running),
            ("same", false, false, Admission::Ours),
            ("same", true, true, Admission::Ended(end.clone())),
            ("same", false, true, Admission::Ended(end.clone())),
        ] {
            let found = Found {
                body_hash: body_hash.to_owned(),
                owner: "a".to_owned(),
                is_leased,
                end: ended.then(|| end.clone()),
            };
            assert_eq!(admit(found.clone(), "same"), expected, "{found:?}");
        }
    }
}
