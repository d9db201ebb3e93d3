//! A change in the making: what must still hold, and what then happens together.

use serde::Serialize;
use store::{Revision, Transaction};

use crate::records::{Key, encode};
use crate::world::Stored;

/// Operations and conditions of one step. Several fit into one transaction, or one follows the other.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    pub transaction: Transaction,
    /// What the audit log keeps of it.
    pub lines: Vec<String>,
    bytes: usize,
}

/// What a transaction may hold at most, with room for the fence, an answer to remember, who deploys, and the audit log's link and head.
const OPERATIONS_MOST: usize = 122;
const CONDITIONS_MOST: usize = 122;
const BYTES_MOST: usize = 1 << 20;

impl Draft {
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a record, if it is still what was read (`None`: absent).
    pub fn put<T>(&mut self, key: Key, before: Option<&Stored<T>>, value: &impl Serialize) {
        self.expect(key.to_string(), before.map(|stored| stored.modified));
        self.put_anyway(key, value);
    }

    /// Writes a record whatever is there.
    pub fn put_anyway(&mut self, key: Key, value: &impl Serialize) {
        let value = encode(value);
        self.bytes += value.len();
        self.transaction = std::mem::take(&mut self.transaction).put(key, value);
    }

    /// Writes a record that is no part of the world, if it is not there.
    pub fn add_record(&mut self, key: String, value: &impl Serialize) {
        self.expect(key.clone(), None);
        self.set_record(&key, value);
    }

    /// Writes a record that is no part of the world, if it is still what was read.
    pub fn replace_record(&mut self, key: &str, read: Revision, value: &impl Serialize) {
        self.expect(key.to_owned(), Some(read));
        self.set_record(key, value);
    }

    pub fn set_record(&mut self, key: &str, value: &impl Serialize) {
        let value = encode(value);
        self.transaction = std::mem::take(&mut self.transaction).put(key, value);
    }

    /// Says in the audit log what it does.
    pub fn note(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// Deletes a record, if it is still what was read.
    pub fn delete<T>(&mut self, key: Key, before: &Stored<T>) {
        self.expect(key.to_string(), Some(before.modified));
        self.delete_anyway(key);
    }

    pub fn delete_anyway(&mut self, key: Key) {
        self.transaction = std::mem::take(&mut self.transaction).delete(key);
    }

    /// Only if the record is still what was read.
    pub fn only_if<T>(&mut self, key: Key, before: Option<&Stored<T>>) {
        self.expect(key.to_string(), before.map(|stored| stored.modified));
    }

    fn expect(&mut self, key: String, revision: Option<Revision>) {
        let transaction = std::mem::take(&mut self.transaction);
        self.transaction = match revision {
            Some(revision) => transaction.if_modified(key, revision),
            None => transaction.if_absent(key),
        };
    }

    pub fn is_empty(&self) -> bool {
        self.transaction.operations.is_empty()
    }

    /// Takes the other in if both fit into one transaction; else gives it back.
    pub fn join(&mut self, other: Self) -> Result<(), Self> {
        let operations = self.transaction.operations.len() + other.transaction.operations.len();
        let conditions = self.transaction.conditions.len() + other.transaction.conditions.len();
        let fits = operations <= OPERATIONS_MOST
            && conditions <= CONDITIONS_MOST
            && self.bytes + other.bytes <= BYTES_MOST;
        if !fits && !self.is_empty() {
            return Err(other);
        }
        self.bytes += other.bytes;
        self.lines.extend(other.lines);
        self.transaction
            .operations
            .extend(other.transaction.operations);
        self.transaction
            .conditions
            .extend(other.transaction.conditions);
        Ok(())
    }

    /// As few drafts as they fit into, in their order.
    pub fn pack(drafts: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut packed: Vec<Self> = Vec::new();
        for draft in drafts.into_iter().filter(|draft| !draft.is_empty()) {
            let left = match packed.last_mut() {
                Some(last) => last.join(draft).err(),
                None => Some(draft),
            };
            packed.extend(left);
        }
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::UidRecord;

    #[test]
    fn steps_are_packed_whole_into_bounded_transactions() {
        let record = UidRecord {
            service: "shop/web".parse().unwrap(),
            freed_at: None,
        };
        let draft = |first: u32| {
            let mut draft = Draft::new();
            for uid in first..first + 6 {
                draft.put::<UidRecord>(Key::Uid(uid), None, &record);
            }
            draft
        };
        let packed = Draft::pack((0..50).map(|index| draft(index * 6)));
        let sizes: Vec<_> = packed
            .iter()
            .map(|draft| draft.transaction.operations.len())
            .collect();
        assert_eq!(sizes, [120, 120, 60]);
    }
}
