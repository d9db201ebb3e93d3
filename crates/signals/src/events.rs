//! The log of events: bounded on disk (JSON lines in numbered files) and a tail in memory, in order, each with a sequence
//! number. A reader remembers the last number it saw and asks [`EventLog::since`].
//!
//! A full disk loses no event of the memory: it is told once, and what is missing on disk is written when it works again.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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

/// The log. Shared by reference; every call is short.
pub struct EventLog {
    state: Mutex<State>,
}

struct State {
    appender: Appender,
    tail: VecDeque<Event>,
    memory_events: usize,
    last: u64,
    /// The last event that is on disk.
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
        let state = State {
            appender,
            tail,
            memory_events: options.memory_events,
            last,
            written: last,
            failing: false,
        };
        Ok(Self {
            state: Mutex::new(state),
        })
    }

    /// Adds an event; its `sequence` is given here.
    pub fn append(&self, mut event: Event) -> Appended {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last += 1;
        event.sequence = state.last;
        state.tail.push_back(event);
        while state.tail.len() > state.memory_events {
            state.tail.pop_front();
        }
        let disk_failed = state.write_missing();
        Appended {
            sequence: state.last,
            disk_failed,
        }
    }

    /// The events after `sequence` that are in memory, oldest first. `since(0)` is all of them.
    ///
    /// When the first one's number is not `sequence + 1`, those between were dropped to hold the bound.
    pub fn since(&self, sequence: u64) -> Vec<Event> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = state
            .tail
            .partition_point(|event| event.sequence <= sequence);
        state.tail.range(start..).cloned().collect()
    }

    /// The number of the newest event; 0 before the first.
    pub fn last(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last
    }
}

impl State {
    /// Writes what is in memory and not on disk. The error is told when it is the first of a row.
    fn write_missing(&mut self) -> Option<io::Error> {
        let start = self
            .tail
            .partition_point(|event| event.sequence <= self.written);
        for event in self.tail.range(start..) {
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
