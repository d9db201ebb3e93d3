//! The log of events: bounded on disk (JSON lines in numbered files) and a tail in memory, in order, each with a sequence
//! number. A reader remembers the last number it saw and asks [`EventLog::since`].
//!
//! A full disk loses no event of the memory: it is told once, and what is missing on disk is written when it works again.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::signals::Event;

pub use crate::segments::Limits;
use crate::segments::{self, Appender};

const EXTENSION: &str = "events";

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub disk: Limits,
    /// Events in memory; more than `disk` holds is of use while the disk is full.
    pub memory_events: usize,
}

impl Default for Options {
    fn default() -> Self {
        let disk = Limits {
            files: 4,
            file_bytes: 1 << 20,
        };
        Self {
            disk,
            memory_events: 4096,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("opening the events in {folder}: {source}", folder = folder.display())]
    Open { folder: PathBuf, source: io::Error },
}

/// What became of an event.
#[derive(Debug)]
pub struct Appended {
    pub sequence: u64,
    /// The disk began to refuse: told with the first event that it refuses, not with the following ones.
    pub disk_failed: Option<io::Error>,
}

/// The log. Shared by reference. What is in memory is told while the disk stands still: only [`append`](EventLog::append) waits for it.
pub struct EventLog {
    memory: Mutex<Memory>,
    disk: Mutex<Disk>,
}

/// Locked for moments.
struct Memory {
    tail: VecDeque<Event>,
    most: usize,
    last: u64,
}

/// Locked for as long as the disk takes.
struct Disk {
    appender: Appender,
    /// The last event that is on it.
    written: u64,
    failing: bool,
}

impl EventLog {
    /// Opens the folder, making it when missing, and reads the tail of what it holds.
    pub fn open(folder: &Path, options: Options) -> Result<Self, Error> {
        let failed = |source| Error::Open {
            folder: folder.to_owned(),
            source,
        };
        let appender = Appender::open(folder, EXTENSION, options.disk).map_err(failed)?;
        let tail = read_tail(folder, options.memory_events).map_err(failed)?;
        let last = tail.back().map_or(0, |event| event.sequence);
        Ok(Self {
            memory: Mutex::new(Memory {
                tail,
                most: options.memory_events,
                last,
            }),
            disk: Mutex::new(Disk {
                appender,
                written: last,
                failing: false,
            }),
        })
    }

    /// Adds an event; its `sequence` is given here. Readers see it at once; the call returns when the disk has it or has refused it.
    pub fn append(&self, event: Event) -> Appended {
        let sequence = self.memory().push(event);
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = self.since(disk.written);
        Appended {
            sequence,
            disk_failed: disk.write(&missing),
        }
    }

    /// The events after `sequence` that are in memory, oldest first. `since(0)` is all of them.
    ///
    /// When the first one's number is not `sequence + 1`, those between were dropped to hold the bound.
    pub fn since(&self, sequence: u64) -> Vec<Event> {
        let memory = self.memory();
        let start = memory
            .tail
            .partition_point(|event| event.sequence <= sequence);
        memory.tail.range(start..).cloned().collect()
    }

    /// The number of the newest event; 0 before the first.
    pub fn last(&self) -> u64 {
        self.memory().last
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn push(&mut self, mut event: Event) -> u64 {
        self.last += 1;
        event.sequence = self.last;
        self.tail.push_back(event);
        while self.tail.len() > self.most {
            self.tail.pop_front();
        }
        self.last
    }
}

impl Disk {
    /// Writes what it does not have yet. The error is told when it is the first of a row.
    fn write(&mut self, missing: &[Event]) -> Option<io::Error> {
        for event in missing {
            // Plain data: it has no map with keys that are not text, so it can't fail.
            let Ok(mut record) = serde_json::to_vec(event) else {
                continue;
            };
            record.push(b'\n');
            if let Err(error) = self.appender.append(&record) {
                let first = !std::mem::replace(&mut self.failing, true);
                return first.then_some(error);
            }
            self.written = event.sequence;
        }
        self.failing = false;
        None
    }
}

fn read_tail(folder: &Path, most: usize) -> io::Result<VecDeque<Event>> {
    let mut tail = VecDeque::new();
    for number in segments::numbers(folder, EXTENSION)? {
        let file = std::fs::File::open(segments::path(folder, number, EXTENSION))?;
        for record in BufReader::new(file).split(b'\n') {
            // A torn record is passed over: it was never told to have been kept.
            let Ok(event) = serde_json::from_slice::<Event>(&record?) else {
                continue;
            };
            tail.push_back(event);
            if tail.len() > most {
                tail.pop_front();
            }
        }
    }
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use model::control::Reason;
    use model::signals::Level;

    use super::*;

    fn event(text: &str) -> Event {
        Event {
            sequence: 0,
            at: jiff::Timestamp::UNIX_EPOCH,
            level: Level::Info,
            project: None,
            node: None,
            subject: text.to_owned(),
            reason: Reason::new("test", text),
        }
    }

    #[test]
    fn a_disk_that_stands_still_stops_no_reader() {
        let folder = tempfile::tempdir().unwrap();
        let log = EventLog::open(folder.path(), Options::default()).unwrap();
        log.append(event("first"));
        // What a write holds for as long as it takes.
        let standing = log.disk.lock().unwrap();
        std::thread::scope(|threads| {
            let (said, seen) = sync_channel(1);
            let log = &log;
            threads.spawn(move || log.append(event("second")));
            threads.spawn(move || {
                while log.last() < 2 {
                    std::thread::yield_now();
                }
                said.send(log.since(1)).unwrap();
            });
            let told = seen.recv_timeout(Duration::from_secs(10));
            drop(standing);
            let subjects =
                told.map(|events| events.iter().map(|e| e.subject.clone()).collect::<Vec<_>>());
            assert_eq!(subjects.as_deref(), Ok(&["second".to_owned()][..]));
        });
        drop(log);
        let again = EventLog::open(folder.path(), Options::default()).unwrap();
        assert_eq!(again.since(0).len(), 2, "both are on disk");
    }
}
