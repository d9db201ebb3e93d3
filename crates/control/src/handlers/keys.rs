//! Keys: a project's small durable values, read and written one by one.
//!
//! They are no part of the world: no change of them is planned, takes turns, wakes the leader or is audited. Each write is one transaction,
//! fenced as all are, and the store takes many of them to the disk at once.

use std::sync::Arc;

use api::problem::Problem;
use api::wire::{KeyView, KeyWritten, Keys};
use model::ids::ProjectName;
use model::units::Bytes;
use store::{Condition, List, Revision, Transaction};

use crate::call::{self, Answer, Call, IfMatch};
use crate::problems;
use crate::records::KEYS;
use crate::state::{CommitError, Server};

const NAME_MAX_LENGTH: usize = 200;
/// Of one page: with the longest values it holds 16 MiB for a moment.
const PAGE: usize = 256;

/// As many as fit in one transaction.
const DELETED_AT_ONCE: usize = 128;

pub async fn list(server: Arc<Server>, call: Call) -> Answer {
    let folder = folder(&call.project()?);
    let of = |name: &str| call.query.get(name).map_or("", String::as_str);
    let (prefix, after) = (of("prefix"), of("after"));
    if !prefix.chars().chain(after.chars()).all(may_be_in_name) {
        return Err(Problem::invalid(
            "`prefix` or `after` holds what no key's name holds",
        ));
    }
    let list = List {
        after: (!after.is_empty()).then(|| format!("{folder}{after}").into()),
        ..List::prefix(format!("{folder}{prefix}")).limit(PAGE)
    };
    let page = server.store.list(list).await;
    let page = page.map_err(|error| problems::of_store(&error))?;
    let view = |record: &store::Record| KeyView {
        name: record
            .key
            .strip_prefix(&folder)
            .unwrap_or_default()
            .to_owned(),
        revision: record.modified.to_string(),
        size: Bytes(record.value.len() as u64),
    };
    Ok(call::json(&Keys {
        items: page.records.iter().map(view).collect(),
        revision: page.revision.to_string(),
        more: page.next().is_some(),
    }))
}

pub async fn get(server: Arc<Server>, call: Call) -> Answer {
    let place = place(&call)?;
    let record = server.store.get(&place).await;
    let record = record
        .map_err(|error| problems::of_store(&error))?
        .ok_or_else(|| missing(&call))?;
    Ok(call::tagged_bytes(record.value, record.modified))
}

pub async fn put(server: Arc<Server>, mut call: Call) -> Answer {
    let place = place(&call)?;
    let mut conditions = conditions(&call, &place)?;
    if call.if_none_match()? {
        conditions.push(Condition::Absent { key: place.clone() });
    }
    let value = call.bytes().await?;
    let mut transaction = Transaction::new().put(place, value);
    transaction.conditions = conditions;
    match server.write(transaction).await {
        Ok(revision) => Ok(written(revision)),
        Err(CommitError::Conflict(_)) => Err(changed_meanwhile(&call)),
        Err(error) => Err(error.problem()),
    }
}

pub async fn delete(server: Arc<Server>, call: Call) -> Answer {
    let place = place(&call)?;
    let mut conditions = conditions(&call, &place)?;
    let is_conditional = !conditions.is_empty();
    conditions.push(Condition::Exists { key: place.clone() });
    let mut transaction = Transaction::new().delete(place);
    transaction.conditions = conditions;
    match server.write(transaction).await {
        Ok(revision) => Ok(written(revision)),
        Err(CommitError::Conflict(_)) if is_conditional => Err(changed_meanwhile(&call)),
        Err(CommitError::Conflict(_)) => Err(missing(&call)),
        Err(error) => Err(error.problem()),
    }
}

/// Whether a project has keys.
pub async fn are_any(server: &Server, project: &ProjectName) -> Result<bool, Problem> {
    let page = server
        .store
        .list(List::prefix(folder(project)).limit(1))
        .await;
    let page = page.map_err(|error| problems::of_store(&error))?;
    Ok(!page.records.is_empty())
}

/// Deletes all keys of a project, some at a time; answers how many.
pub async fn clear(server: &Server, project: &ProjectName) -> Result<usize, Problem> {
    let mut next = Some(List::prefix(folder(project)).limit(DELETED_AT_ONCE));
    let mut deleted = 0;
    while let Some(list) = next {
        let page = server.store.list(list).await;
        let page = page.map_err(|error| problems::of_store(&error))?;
        let keys = page.records.iter().map(|record| record.key.to_string());
        let transaction = keys.fold(Transaction::new(), Transaction::delete);
        let written = server.write(transaction).await;
        written.map_err(|error| error.problem())?;
        deleted += page.records.len();
        // As of now, not of the first page: that past may be forgotten meanwhile.
        next = page.next().map(|next| List { at: None, ..next });
    }
    Ok(deleted)
}

/// Where the keys of a project lie.
fn folder(project: &ProjectName) -> String {
    format!("{KEYS}{project}/")
}

/// Where the key lies that the path names.
fn place(call: &Call) -> Result<String, Problem> {
    let name = call.text("name");
    check_name(name)?;
    Ok(folder(&call.project()?) + name)
}

fn check_name(name: &str) -> Result<(), Problem> {
    let is_plain = (1..=NAME_MAX_LENGTH).contains(&name.len()) && name.chars().all(may_be_in_name);
    // Clients resolve such parts of a path before they send it: what they name would depend on the client.
    let is_stable = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if is_plain && is_stable {
        return Ok(());
    }
    let remedy = "a name has 1 to 200 characters of a-z, A-Z, 0-9, `.`, `_`, `-`, and `/` between parts that are not empty, `.` or `..`";
    Err(Problem::invalid(format!("`{name}` is no name of a key")).remedy(remedy))
}

fn may_be_in_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '/' | '-')
}

fn conditions(call: &Call, place: &str) -> Result<Vec<Condition>, Problem> {
    let key = place.to_owned();
    Ok(match call.if_match()? {
        IfMatch::Nothing => Vec::new(),
        IfMatch::Any => vec![Condition::Exists { key }],
        IfMatch::Revision(revision) => vec![Condition::Modified { key, revision }],
    })
}

fn written(revision: Revision) -> axum::response::Response {
    let told = KeyWritten {
        revision: revision.to_string(),
    };
    call::tagged(&told, revision)
}

fn named(call: &Call) -> String {
    format!("key {}/{}", call.text("project"), call.text("name"))
}

fn missing(call: &Call) -> Problem {
    Problem::not_found(named(call)).remedy("`mainland key list` names those that are there")
}

fn changed_meanwhile(call: &Call) -> Problem {
    let title = format!("{} is not what the request's condition says", named(call));
    Problem::new(412, "changed-meanwhile", title)
        .remedy("read it again and repeat the change on what it is now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_every_client_sends_alike() {
        let longest = "n".repeat(200);
        for good in ["a", "a/b.c", "A_b-9", "...", "x/.hidden", &longest] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let too_long = "n".repeat(201);
        for bad in [
            "", "/a", "a/", "a//b", ".", "a/../b", "a b", "a%2Fb", "ä", &too_long,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
