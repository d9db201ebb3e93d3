//! The audit log as a chain: each record is bound to all before it by a hash, so that none can be changed, left out, added or put elsewhere
//! without a break that [`Walk`] finds.
//!
//! ```text
//! anchor ─┐ (hash before the oldest record that is kept; of the very first one all zeros)
//!         ▼
//! link 7: hash = SHA-256(anchor, 7, record)
//! link 8: hash = SHA-256(hash of 7, 8, record)      ◀── head: next 9, hash of 8
//! ```
//!
//! The hash has no key: who may rewrite the whole store may also rewrite the whole chain. Against them helps to note a head elsewhere from
//! time to time, and to look whether it is still in the chain ([`Walk::met`]).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::AuditRecord;
use crate::ids::hex;

/// Most lines of detail that a record keeps, and most bytes of each of its texts.
const DETAIL_MOST: usize = 64;
const TEXT_MAX_LENGTH: usize = 1024;

/// One record in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Link {
    /// Counted from 1, without gaps.
    pub sequence: u64,
    /// The record as it was hashed: JSON text.
    pub record: String,
    /// Of the link before, 64 hexadecimal digits.
    pub previous: String,
    pub hash: String,
}

impl Link {
    /// The record, where this program can read it.
    pub fn record(&self) -> Option<AuditRecord> {
        let mut record: AuditRecord = serde_json::from_str(&self.record).ok()?;
        record.sequence = Some(self.sequence);
        Some(record)
    }
}

/// Where a chain begins and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Head {
    /// Of the next record.
    pub next: u64,
    /// Of the newest link.
    pub hash: String,
    /// Of the oldest record that is kept.
    pub first: u64,
    /// The hash before it.
    pub anchor: String,
    /// Of all records that are kept.
    pub bytes: u64,
}

impl Default for Head {
    /// Of a log without records.
    fn default() -> Self {
        let zeros = "0".repeat(64);
        Self {
            next: 1,
            hash: zeros.clone(),
            first: 1,
            anchor: zeros,
            bytes: 0,
        }
    }
}

impl Head {
    /// The next link, and the head once it is there. Texts beyond the bounds are cut, never the record.
    pub fn link(&self, record: &AuditRecord) -> (Link, Self) {
        let record = text(record);
        let hash = hash(&self.hash, self.next, &record);
        let link = Link {
            sequence: self.next,
            previous: self.hash.clone(),
            hash: hash.clone(),
            record,
        };
        let head = Self {
            next: self.next + 1,
            hash,
            bytes: self.bytes + link.record.len() as u64,
            ..self.clone()
        };
        (link, head)
    }

    /// The head without its oldest links, which are those before `first`.
    pub fn pruned(&self, dropped: &[Link], first: &Link) -> Self {
        let bytes: u64 = dropped.iter().map(|link| link.record.len() as u64).sum();
        Self {
            first: first.sequence,
            anchor: first.previous.clone(),
            bytes: self.bytes.saturating_sub(bytes),
            ..self.clone()
        }
    }

    pub fn records(&self) -> u64 {
        self.next - self.first
    }
}

fn text(record: &AuditRecord) -> String {
    let mut record = record.clone();
    let surplus = record.detail.len().saturating_sub(DETAIL_MOST);
    if surplus > 0 {
        record.detail.truncate(DETAIL_MOST - 1);
        record.detail.push(format!("and {} more", surplus + 1));
    }
    let texts = [&mut record.action, &mut record.on];
    for text in texts.into_iter().chain(&mut record.detail) {
        text.truncate(text.floor_char_boundary(TEXT_MAX_LENGTH));
    }
    serde_json::to_string(&record).expect("a record is plain data")
}

fn hash(previous: &str, sequence: u64, record: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(previous.as_bytes());
    hasher.update([b'\n']);
    hasher.update(sequence.to_string().as_bytes());
    hasher.update([b'\n']);
    hasher.update(record.as_bytes());
    hex(&hasher.finalize())
}

/// Where a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Break {
    /// Records are not there.
    Missing { from: u64, to: u64 },
    /// One is there that should not be.
    Surplus { sequence: u64 },
    /// Its text is not what was hashed, or it follows another one than it says.
    Altered { sequence: u64 },
    /// The last one is not the one that the head names.
    OtherEnd { sequence: u64 },
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { from, to } if from == to => write!(f, "record {from} is missing"),
            Self::Missing { from, to } => write!(f, "records {from} to {to} are missing"),
            Self::Surplus { sequence } => {
                write!(f, "record {sequence} is not one that the chain holds")
            }
            Self::Altered { sequence } => {
                write!(f, "record {sequence} is not what was written")
            }
            Self::OtherEnd { sequence } => {
                write!(
                    f,
                    "record {sequence} is not the one that the chain ends with"
                )
            }
        }
    }
}

/// Walks along a chain from its anchor.
#[derive(Debug, Clone)]
pub struct Walk {
    next: u64,
    hash: String,
    noted: Option<(u64, String)>,
    met: bool,
}

impl Walk {
    /// From the oldest record that is kept.
    pub fn begin(head: &Head) -> Self {
        Self {
            next: head.first,
            hash: head.anchor.clone(),
            noted: None,
            met: false,
        }
    }

    /// Looks on the way for a head that was noted earlier: the number of its newest record, and that one's hash.
    pub fn looking_for(mut self, sequence: u64, hash: &str) -> Self {
        self.met = sequence + 1 == self.next && hash == self.hash;
        self.noted = Some((sequence, hash.to_owned()));
        self
    }

    /// One more link.
    pub fn take(&mut self, link: &Link) -> Result<(), Break> {
        let sequence = link.sequence;
        if sequence > self.next {
            let (from, to) = (self.next, sequence - 1);
            return Err(Break::Missing { from, to });
        }
        if sequence < self.next {
            return Err(Break::Surplus { sequence });
        }
        let is_whole = link.previous == self.hash
            && link.hash == hash(&self.hash, sequence, &link.record)
            && link.record().is_some();
        if !is_whole {
            return Err(Break::Altered { sequence });
        }
        self.met |= self
            .noted
            .as_ref()
            .is_some_and(|(at, noted)| *at == sequence && *noted == link.hash);
        self.next += 1;
        self.hash.clone_from(&link.hash);
        Ok(())
    }

    /// The number of the next link.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether the head that was looked for is in the chain.
    pub fn met(&self) -> bool {
        self.met
    }

    /// After the last link: whether it is the one that the head names.
    pub fn end(&self, head: &Head) -> Result<(), Break> {
        if self.next < head.next {
            let (from, to) = (self.next, head.next - 1);
            return Err(Break::Missing { from, to });
        }
        if self.next > head.next {
            return Err(Break::Surplus {
                sequence: head.next,
            });
        }
        if self.hash != head.hash {
            let sequence = self.next - 1;
            return Err(Break::OtherEnd { sequence });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::boundary::{AuditOutcome, PrincipalName};

    fn record(second: i64) -> AuditRecord {
        AuditRecord {
            sequence: None,
            at: Timestamp::from_second(second).unwrap(),
            principal: PrincipalName("admin:root".to_owned()),
            action: "apply".to_owned(),
            on: format!("shop/service-{second}"),
            outcome: AuditOutcome::Done,
            times: 1,
            detail: Vec::new(),
        }
    }

    fn chain(length: u64) -> (Head, Vec<Link>) {
        let mut head = Head::default();
        let links = (0..length).map(|second| {
            let (link, next) = head.link(&record(i64::try_from(second).unwrap()));
            head = next;
            link
        });
        let links = links.collect();
        (head, links)
    }

    fn walk(head: &Head, links: &[Link]) -> Result<(), Break> {
        let mut walk = Walk::begin(head);
        links.iter().try_for_each(|link| walk.take(link))?;
        walk.end(head)
    }

    #[test]
    fn a_chain_is_whole_and_every_kind_of_break_is_named() {
        let (head, links) = chain(6);
        assert_eq!(walk(&head, &links), Ok(()));
        assert_eq!(walk(&Head::default(), &[]), Ok(()));
        let forged = Head::default().link(&record(99)).0;
        type Change = Box<dyn Fn(&mut Vec<Link>)>;
        let text =
            |links: &mut Vec<Link>| links[2].record = links[2].record.replace("apply", "allow");
        let table: [(&str, Change, Break); 8] = [
            ("a text", Box::new(text), Break::Altered { sequence: 3 }),
            // Hashed again: the next one does not follow any more.
            (
                "a text and its hash",
                Box::new(|links| {
                    links[2].record = links[2].record.replace("apply", "allow");
                    links[2].hash = hash(&links[2].previous, 3, &links[2].record);
                }),
                Break::Altered { sequence: 4 },
            ),
            (
                "one gone",
                Box::new(|links| drop(links.remove(2))),
                Break::Missing { from: 3, to: 3 },
            ),
            (
                "the first gone",
                Box::new(|links| drop(links.remove(0))),
                Break::Missing { from: 1, to: 1 },
            ),
            (
                "the end gone",
                Box::new(|links| links.truncate(4)),
                Break::Missing { from: 5, to: 6 },
            ),
            (
                "two exchanged",
                Box::new(|links| links.swap(1, 2)),
                Break::Missing { from: 2, to: 2 },
            ),
            (
                "one twice",
                Box::new(|links| links.insert(3, links[2].clone())),
                Break::Surplus { sequence: 3 },
            ),
            (
                "one added",
                Box::new(move |links| {
                    links.push(Link {
                        sequence: 7,
                        ..forged.clone()
                    });
                }),
                Break::Altered { sequence: 7 },
            ),
        ];
        for (what, change, expect) in table {
            let mut changed = links.clone();
            change(&mut changed);
            assert_eq!(walk(&head, &changed), Err(expect), "{what}");
        }
        // A whole other chain of the same length.
        let mut other = Head::default();
        let others: Vec<_> = (10..16)
            .map(|second| {
                let (link, next) = other.link(&record(second));
                other = next;
                link
            })
            .collect();
        assert_eq!(walk(&head, &others), Err(Break::OtherEnd { sequence: 6 }));
    }

    #[test]
    fn what_was_pruned_leaves_an_anchor() {
        let (head, links) = chain(6);
        let pruned = head.pruned(&links[..4], &links[4]);
        assert_eq!((pruned.first, pruned.records()), (5, 2));
        assert_eq!(walk(&pruned, &links[4..]), Ok(()));
        assert_eq!(
            walk(&pruned, &links[5..]),
            Err(Break::Missing { from: 5, to: 5 })
        );
        let bytes: usize = links[4..].iter().map(|link| link.record.len()).sum();
        assert_eq!(pruned.bytes, bytes as u64);
        // It goes on from there.
        let (link, next) = pruned.link(&record(7));
        assert_eq!(walk(&next, &[&links[4..], &[link]].concat()), Ok(()));
    }

    #[test]
    fn a_head_that_was_noted_is_found_again() {
        let (head, links) = chain(6);
        let look = |sequence: u64, hash: &str| {
            let mut walk = Walk::begin(&head).looking_for(sequence, hash);
            links.iter().for_each(|link| walk.take(link).unwrap());
            walk.met()
        };
        assert!(look(3, &links[2].hash));
        assert!(look(0, &head.anchor));
        assert!(!look(4, &links[2].hash));
        assert!(!look(9, &links[2].hash));
    }

    #[test]
    fn long_texts_are_cut_and_the_record_kept() {
        let long = AuditRecord {
            detail: vec!["ä".repeat(10_000); 1_000],
            ..record(1)
        };
        let (link, _) = Head::default().link(&long);
        let kept = link.record().unwrap();
        assert_eq!(kept.detail.len(), DETAIL_MOST);
        assert_eq!(kept.detail[0], "ä".repeat(TEXT_MAX_LENGTH / 2));
        assert_eq!(kept.detail[DETAIL_MOST - 1], "and 937 more");
    }
}
