//! `audit`: who changed what, and what was refused; `audit verify`: whether that log is whole.

use std::time::Duration;

use api::client::Client;
use jiff::Timestamp;
use model::boundary::audit::{Break, Head, Walk};
use model::boundary::{AuditOutcome, AuditRecord};
use serde::Serialize;

use crate::Globals;
use crate::failure::Failure;
use crate::output::{Output, table};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Newest last, as `events` has them. A change and its record are one: neither is ever there without the other. Requests that were refused are counted, and have \
                  no number.\n\n\
                  Examples:\n  mainland audit --action secret --since 24h\n  mainland audit --on shop/web -o json\n  mainland audit verify"
)]
pub struct Audit {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Walk along the whole log and say whether it is as it was written
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only what this principal did, such as admin:owner or node:a
    #[arg(long, value_name = "PRINCIPAL")]
    by: Option<String>,
    /// Only this action, or those that begin with it: `secret` finds secret.set
    #[arg(long)]
    action: Option<String>,
    /// Only what was done to this: a project, a resource as shop/web, a node as node/a
    #[arg(long, value_name = "NAME")]
    on: Option<String>,
    /// Only what was done within this time, such as 90s, 10m or 24h
    #[arg(long, value_name = "TIME", value_parser = crate::parse_span)]
    since: Option<Duration>,
    /// How many at most
    #[arg(long, short = 'n', value_name = "RECORDS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=5000))]
    tail: u32,
    /// Newest first
    #[arg(long)]
    reverse: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each record is bound to all before it by a hash. Names the first break and exits with 1 where there is one. Who may rewrite the whole \
                  store may rewrite the whole log: note the head that is printed somewhere else, and look later whether it is still in the log.\n\n\
                  Examples:\n  mainland audit verify\n  mainland audit verify --noted 1204:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
)]
struct Verify {
    /// A head that was printed earlier, which must still be in the log
    #[arg(long, value_name = "HEAD", value_parser = noted)]
    noted: Option<(u64, String)>,
    #[command(flatten)]
    output: Output,
}

fn noted(text: &str) -> Result<(u64, String), String> {
    let parts = text.split_once(':');
    let read = parts.and_then(|(sequence, hash)| {
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some((sequence.parse().ok()?, is_hash.then(|| hash.to_owned())?))
    });
    read.ok_or_else(|| "a head is a number, a colon and 64 hexadecimal digits".to_owned())
}

impl Audit {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self.command {
            Some(Command::Verify(command)) => command.run(globals).await,
            None => self.list.run(globals).await,
        }
    }
}

impl List {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let since = self.since.map(|since| {
            let since = jiff::SignedDuration::try_from(since).unwrap_or(jiff::SignedDuration::MAX);
            let since = Timestamp::now().checked_sub(since);
            since.unwrap_or(Timestamp::UNIX_EPOCH).to_string()
        });
        let filter = [
            ("principal", self.by),
            ("action", self.action),
            ("on", self.on),
            ("since", since),
        ];
        let filter = filter
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let filter: Vec<_> = filter.collect();
        let mut records = client.audit_of(self.tail, &filter).await?.items;
        // They come newest first.
        if !self.reverse {
            records.reverse();
        }
        self.output
            .list(&records, "no such change is recorded", || {
                table(
                    ["NUMBER", "TIME", "BY", "ACTION", "ON", "WHAT"],
                    records.iter().map(row),
                )
            })?;
        Ok(0)
    }
}

fn row(record: &AuditRecord) -> [String; 6] {
    let number = record
        .sequence
        .map_or("-".to_owned(), |number| number.to_string());
    [
        number,
        record.at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        record.principal.to_string(),
        record.action.clone(),
        record.on.clone(),
        what(record),
    ]
}

/// What was done, in a line.
fn what(record: &AuditRecord) -> String {
    match &record.outcome {
        AuditOutcome::Refused { why } if record.times > 1 => {
            format!("refused {} times: {why}", record.times)
        }
        AuditOutcome::Refused { why } => format!("refused: {why}"),
        AuditOutcome::Done => match &record.detail[..] {
            [] => "done".to_owned(),
            [only] => only.clone(),
            [first, more @ ..] => format!("{first} (and {} more)", more.len()),
        },
    }
}

/// What programs are told of a walk along the log.
#[derive(Debug, Serialize)]
struct Verified {
    whole: bool,
    records: u64,
    first: u64,
    /// To be noted: number and hash of the newest record.
    head: String,
    #[serde(rename = "break")]
    first_break: Option<Break>,
    /// Whether the head that was noted is in it.
    noted: Option<bool>,
}

impl Verify {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let verified = verify(&client, self.noted.as_ref()).await?;
        self.output.print(&verified, || in_words(&verified))?;
        Ok(u8::from(!verified.whole))
    }
}

async fn verify(client: &Client, noted: Option<&(u64, String)>) -> Result<Verified, Failure> {
    let mut piece = client.audit_chain(1).await?;
    let first = piece.head.first;
    let mut walk = Walk::begin(&piece.head);
    if let Some((sequence, hash)) = noted {
        walk = walk.looking_for(*sequence, hash);
    }
    let mut first_break = None;
    while first_break.is_none() && !piece.links.is_empty() {
        first_break = piece.links.iter().find_map(|link| walk.take(link).err());
        piece = client.audit_chain(walk.next()).await?;
        if piece.head.first > walk.next() {
            return Err(Failure::failed(
                "the oldest records were dropped while they were read [pruned]\n  remedy: repeat the command",
            ));
        }
    }
    let first_break = first_break.or_else(|| walk.end(&piece.head).err());
    let noted = noted.map(|_| walk.met());
    Ok(Verified {
        whole: first_break.is_none() && noted != Some(false),
        records: walk.next() - first,
        first,
        head: head(&piece.head),
        first_break,
        noted,
    })
}

fn head(head: &Head) -> String {
    format!("{}:{}", head.next - 1, head.hash)
}

fn in_words(verified: &Verified) -> String {
    let Verified { records, first, .. } = verified;
    if let Some(first_break) = &verified.first_break {
        return format!(
            "the audit log is broken: {first_break}; the {records} records before, from {first} on, are as they were written"
        );
    }
    let text = format!(
        "the audit log is whole: {records} records, from {first} on\nhead {}",
        verified.head
    );
    match verified.noted {
        Some(true) => text + "\nthe head that was noted is in it",
        Some(false) => {
            text + "\nbut the head that was noted is not in it: it was rewritten since, or the record was dropped for its age"
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_printed() {
        let chain = Head {
            next: 8,
            hash: "ab".repeat(32),
            ..Head::default()
        };
        assert_eq!(noted(&head(&chain)), Ok((7, "ab".repeat(32))));
        for bad in ["", "7", "7:ab", "x:abab", &format!("7:{}", "zz".repeat(32))] {
            assert!(noted(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_is_told_in_a_line() {
        let record = |outcome, times, detail: &[&str]| AuditRecord {
            sequence: Some(7),
            at: Timestamp::UNIX_EPOCH,
            principal: model::boundary::PrincipalName("admin:owner".to_owned()),
            action: "apply".to_owned(),
            on: "shop".to_owned(),
            outcome,
            times,
            detail: detail.iter().map(|line| (*line).to_owned()).collect(),
        };
        let refused = || AuditOutcome::Refused {
            why: "show a token".to_owned(),
        };
        let table = [
            (record(AuditOutcome::Done, 1, &[]), "done"),
            (record(AuditOutcome::Done, 1, &["a"]), "a"),
            (
                record(AuditOutcome::Done, 1, &["a", "b", "c"]),
                "a (and 2 more)",
            ),
            (record(refused(), 1, &[]), "refused: show a token"),
            (
                record(refused(), 900, &[]),
                "refused 900 times: show a token",
            ),
        ];
        for (record, expect) in table {
            assert_eq!(what(&record), expect);
        }
    }
}
