//! What is heard of several instances at once: put in order, and told once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use futures_util::stream::SelectAll;
use jiff::Timestamp;
use model::signals::LogLine;

use super::Lines;

/// Lines that are held in memory; beyond it the oldest are printed, sorted or not.
const HELD_MAX: usize = 100_000;
/// Their bytes, likewise: a line may have 64 KiB.
const HELD_BYTES_MAX: usize = 64 << 20;

/// A line that waits: its time, the order in which it came, its instance, and what it says.
type Held = (Timestamp, u64, String, Line);

/// Ordered by nothing of its own: the count before it is there once.
struct Line(LogLine);

impl PartialEq for Line {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Line {}

impl PartialOrd for Line {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Line {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// How far an instance has been heard: so that what is asked for again, whole, is told once.
#[derive(Debug, Default)]
struct HeardUntil {
    at: Option<Timestamp>,
    /// Lines of that very time.
    count: usize,
    /// Of those, what came again.
    again: usize,
}

/// Puts the lines of several instances in the order of their times, as far as they come within [`HOLD`] of each other.
#[derive(Default)]
pub(super) struct Sorter {
    held: BinaryHeap<Reverse<Held>>,
    bytes: usize,
    count: u64,
}

impl Sorter {
    pub fn hold(&mut self, name: String, line: LogLine) {
        self.count += 1;
        self.bytes += line.text.len();
        self.held
            .push(Reverse((line.at, self.count, name, Line(line))));
    }

    /// The oldest line, if it is older than `before` or too many are held.
    pub fn take(&mut self, before: Timestamp) -> Option<(String, LogLine)> {
        let due = self.held.len() > HELD_MAX
            || self.bytes > HELD_BYTES_MAX
            || self
                .held
                .peek()
                .is_some_and(|Reverse(oldest)| oldest.0 < before);
        let Reverse((_, _, name, Line(line))) = due.then(|| self.held.pop())??;
        self.bytes -= line.text.len();
        Some((name, line))
    }
}

impl HeardUntil {
    /// Whether a line is news. Those of one instance come in the order of their times.
    fn is_news(&mut self, at: Timestamp) -> bool {
        match self.at {
            Some(last) if at < last => false,
            Some(last) if at == last && self.again > 0 => {
                self.again -= 1;
                false
            }
            Some(last) if at == last => {
                self.count += 1;
                true
            }
            _ => {
                (self.at, self.count, self.again) = (Some(at), 1, 0);
                true
            }
        }
    }

    /// All of it is about to come again.
    fn begin_again(&mut self) {
        self.again = self.count;
    }
}

/// What is followed and printed.
#[derive(Default)]
pub(super) struct Following {
    /// Instances whose output is open, or could not be opened.
    pub seen: BTreeSet<String>,
    /// Those that could not be, and that this was said of.
    pub told: BTreeSet<String>,
    until: BTreeMap<String, HeardUntil>,
    pub merged: SelectAll<Lines>,
}

impl Following {
    pub fn is_news(&mut self, name: &str, at: Timestamp) -> bool {
        let until = self.until.entry(name.to_owned()).or_default();
        until.is_news(at)
    }

    pub fn add(&mut self, name: String, lines: Lines) {
        if let Some(until) = self.until.get_mut(&name) {
            until.begin_again();
        }
        self.told.remove(&name);
        self.merged.push(lines);
        self.seen.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::signals::Stream;

    #[test]
    fn what_comes_again_is_told_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut until = HeardUntil::default();
        let news = |until: &mut HeardUntil, seconds: &[i64]| -> Vec<bool> {
            seconds
                .iter()
                .map(|second| until.is_news(at(*second)))
                .collect()
        };
        assert_eq!(news(&mut until, &[1, 2, 2]), [true; 3]);
        until.begin_again();
        let again = news(&mut until, &[1, 2, 2, 2, 3]);
        assert_eq!(again, [false, false, false, true, true]);
        until.begin_again();
        assert_eq!(news(&mut until, &[2, 3, 4]), [false, false, true]);
    }

    #[test]
    fn lines_of_several_instances_come_in_the_order_of_their_times() {
        let mut sorter = Sorter::default();
        let line = |second| {
            let at = Timestamp::from_second(second).unwrap();
            LogLine::new(at, Stream::Stdout, second.to_string())
        };
        for (name, second) in [("a", 1), ("a", 4), ("b", 2), ("b", 3)] {
            sorter.hold(name.to_owned(), line(second));
        }
        let mut taken = Vec::new();
        while let Some((name, line)) = sorter.take(Timestamp::from_second(4).unwrap()) {
            taken.push(format!("{name}{}", line.text));
        }
        assert_eq!(
            taken,
            ["a1", "b2", "b3"],
            "the newest waits for what may be older"
        );
    }
}
