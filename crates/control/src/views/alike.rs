//! What differs in its name alone is one line with a count.

use std::collections::BTreeMap;
use std::fmt::Display;

/// The first of each key, with how many others have it; in the order in which they came.
pub fn alike<T, K: Ord>(all: impl IntoIterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<(T, u32)> {
    let mut found: Vec<(T, u32)> = Vec::new();
    let mut known: BTreeMap<K, usize> = BTreeMap::new();
    for one in all {
        let index = *known.entry(key(&one)).or_insert(found.len());
        match found.get_mut(index) {
            Some((_, others)) => *others += 1,
            None => found.push((one, 0)),
        }
    }
    found
}

/// `web-3`, or `web-3 and 252 more`.
pub fn with_others(first: impl Display, others: u32) -> String {
    match others {
        0 => first.to_string(),
        _ => format!("{first} and {others} more"),
    }
}
