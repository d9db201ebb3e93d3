//! The output of one instance: a record per line, in a folder of size-bound files.
//!
//! A record is `MICROSECONDS STREAM TEXT\n`: the wall clock since 1970, one letter (`o` stdout, `e` stderr, `s` said by the
//! shim; `O` and `E` for a piece of a longer line, which goes on in the next record of that stream), and the line's bytes. No byte of it is escaped, so `cat` and `grep` read it too. A record torn by a crash is one
//! line that does not parse, or a shortened one; it takes no other with it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use model::signals::{LogLine, Stream};

pub use crate::segments::Limits;
use crate::segments::{self, Appender};

/// The longest line that is one record; the shim makes pieces of longer ones.
pub const LINE_MAX_BYTES: usize = 64 << 10;
/// What an instance's output may take on disk if nothing else is said.
pub const DEFAULT_LIMITS: Limits = Limits {
    files: 4,
    file_bytes: 4 << 20,
};
const EXTENSION: &str = "log";
/// Records gathered before they are written: one system call for many lines.
const BUFFER_BYTES: usize = 64 << 10;
/// Bounds of one batch, so that a reader of a huge log stays small.
const BATCH_BYTES: usize = 256 << 10;
/// How often [`Reader::next_batch`] looks while there is nothing new.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
#[error("{doing} the log in {folder}: {source}", folder = folder.display())]
pub struct Error {
    pub doing: &'static str,
    pub folder: PathBuf,
    pub source: io::Error,
}

/// Writes records. One writer per folder.
///
/// It never blocks on a full disk: the lines are dropped and counted, and when writing works again a line of the shim says
/// how many were lost.
pub struct Writer {
    appender: Appender,
    folder: PathBuf,
    buffer: Vec<u8>,
    buffered_lines: u64,
    lost_lines: u64,
    lost_total: u64,
}

impl Writer {
    /// Opens the folder, making it when missing.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, Error> {
        let appender = Appender::open(folder, EXTENSION, limits).map_err(|source| Error {
            doing: "opening",
            folder: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            appender,
            folder: folder.to_owned(),
            buffer: Vec::new(),
            buffered_lines: 0,
            lost_lines: 0,
            lost_total: 0,
        })
    }

    /// Adds one line, without its newline, to what the next [`flush`](Self::flush) writes. Longer than
    /// [`LINE_MAX_BYTES`]: cut.
    pub fn append(&mut self, at: Timestamp, stream: Stream, line: &[u8]) -> Result<(), Error> {
        self.add(at, letter(stream), line)
    }

    /// Adds a piece of a line that goes on with the next of the same stream.
    pub fn append_piece(
        &mut self,
        at: Timestamp,
        stream: Stream,
        piece: &[u8],
    ) -> Result<(), Error> {
        self.add(at, letter(stream).to_ascii_uppercase(), piece)
    }

    fn add(&mut self, at: Timestamp, letter: char, line: &[u8]) -> Result<(), Error> {
        if self.buffer.len() + line.len() > BUFFER_BYTES {
            self.flush()?;
        }
        write_record(&mut self.buffer, at, letter, line);
        self.buffered_lines += 1;
        Ok(())
    }

    /// Writes what was added. On an error those lines are lost and counted.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = self.write_buffer();
        self.buffer.clear();
        // An idle instance shall not hold the memory that one burst needed.
        self.buffer.shrink_to(BUFFER_BYTES / 16);
        let lines = std::mem::take(&mut self.buffered_lines);
        match result {
            Ok(()) => {
                self.lost_lines = 0;
                Ok(())
            }
            Err(source) => {
                self.lost_lines += lines;
                self.lost_total += lines;
                Err(Error {
                    doing: "writing",
                    folder: self.folder.clone(),
                    source,
                })
            }
        }
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        if self.lost_lines == 0 {
            return self.appender.append(&self.buffer);
        }
        let mut records = Vec::with_capacity(self.buffer.len() + 128);
        let text = format!("{} lines lost: the disk refused them", self.lost_lines);
        let at = record_time(&self.buffer).unwrap_or(Timestamp::UNIX_EPOCH);
        write_record(&mut records, at, letter(Stream::Shim), text.as_bytes());
        records.extend_from_slice(&self.buffer);
        self.appender.append(&records)
    }

    /// Lines that could not be written since this writer was opened.
    pub fn lost(&self) -> u64 {
        self.lost_total
    }
}

fn letter(stream: Stream) -> char {
    match stream {
        Stream::Stdout => 'o',
        Stream::Stderr => 'e',
        Stream::Shim => 's',
    }
}

fn write_record(buffer: &mut Vec<u8>, at: Timestamp, letter: char, line: &[u8]) {
    let line = &line[..line.len().min(LINE_MAX_BYTES)];
    // Writing into a vector can't fail.
    let _ = write!(buffer, "{} {letter} ", at.as_microsecond());
    let start = buffer.len();
    buffer.extend_from_slice(line);
    // The newline separates records; one inside a line would forge another.
    for byte in &mut buffer[start..] {
        if *byte == b'\n' {
            *byte = b' ';
        }
    }
    buffer.push(b'\n');
}

fn record_time(record: &[u8]) -> Option<Timestamp> {
    let digits = record.split(|byte| *byte == b' ').next()?;
    let microseconds = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Timestamp::from_microsecond(microseconds).ok()
}

/// One record without its newline, or `None` for what a torn write left.
fn parse_record(record: &[u8]) -> Option<LogLine> {
    let at = record_time(record)?;
    let mut parts = record.splitn(3, |byte| *byte == b' ');
    let (_, stream, text) = (parts.next()?, parts.next()?, parts.next()?);
    let (stream, partial) = match stream {
        b"o" => (Stream::Stdout, false),
        b"O" => (Stream::Stdout, true),
        b"e" => (Stream::Stderr, false),
        b"E" => (Stream::Stderr, true),
        b"s" => (Stream::Shim, false),
        _ => return None,
    };
    let decoded = String::from_utf8_lossy(text);
    let base64 = match &decoded {
        Cow::Borrowed(_) => None,
        Cow::Owned(_) => Some(STANDARD.encode(text)),
    };
    Some(LogLine {
        at,
        stream,
        text: decoded.into_owned(),
        partial,
        base64,
    })
}

/// A place between two records of a log. It stays right across rotation and restarts of writer and reader.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Position {
    pub file: u64,
    pub offset: u64,
}

/// Some lines, oldest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub lines: Vec<LogLine>,
    /// Older lines were removed to hold the bound before this reader came to them.
    pub missed: bool,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.missed
    }
}

/// Reads a log from a position on, while it is being written.
///
/// Holds no file open between calls, and never blocks in [`read_batch`](Self::read_batch): an async caller asks on a timer,
/// a thread uses [`next_batch`](Self::next_batch).
pub struct Reader {
    folder: PathBuf,
    position: Position,
    /// Lines before it are passed over, until the first that is not.
    since: Option<Timestamp>,
}

impl Reader {
    /// Everything kept.
    pub fn from_start(folder: &Path) -> Self {
        Self::from_position(folder, Position::default())
    }

    pub fn from_position(folder: &Path, position: Position) -> Self {
        Self {
            folder: folder.to_owned(),
            position,
            since: None,
        }
    }

    /// From the first line written at `since` or later.
    pub fn since(folder: &Path, since: Timestamp) -> Self {
        let mut reader = Self::from_start(folder);
        reader.since = Some(since);
        reader
    }

    /// The last `count` lines, and what follows.
    pub fn tail(folder: &Path, count: usize) -> Result<Self, Error> {
        let position = tail_position(folder, count).map_err(|source| Error {
            doing: "reading the end of",
            folder: folder.to_owned(),
            source,
        })?;
        Ok(Self::from_position(folder, position))
    }

    /// Where the next batch begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next lines that are there now; empty at the end.
    pub fn read_batch(&mut self) -> Result<Batch, Error> {
        let folder = self.folder.clone();
        self.read_some().map_err(|source| Error {
            doing: "reading",
            folder,
            source,
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a poll interval, inside a wait with a deadline"
    )]
    /// Waits for lines until `deadline`; empty when none came.
    pub fn next_batch(&mut self, deadline: Instant) -> Result<Batch, Error> {
        loop {
            let batch = self.read_batch()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !batch.is_empty() || left.is_zero() {
                return Ok(batch);
            }
            std::thread::sleep(left.min(POLL_INTERVAL));
        }
    }

    fn read_some(&mut self) -> io::Result<Batch> {
        let mut batch = Batch::default();
        loop {
            // The numbers are read before the file: when a later file existed by then, the end found below is final.
            let numbers = segments::numbers(&self.folder, EXTENSION)?;
            let Some(file) = numbers.iter().copied().find(|n| *n >= self.position.file) else {
                return Ok(batch);
            };
            if file != self.position.file {
                batch.missed |= self.position.file != 0;
                self.position = Position { file, offset: 0 };
            }
            let chunk = read_chunk(
                &segments::path(&self.folder, file, EXTENSION),
                self.position.offset,
            )?;
            let whole = chunk
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |last| last + 1);
            self.take_lines(&chunk[..whole], &mut batch);
            self.position.offset += whole as u64;
            let later = numbers.iter().copied().find(|n| *n > file);
            match later {
                _ if !batch.lines.is_empty() => return Ok(batch),
                // All lines were passed over or did not parse: go on in the same file.
                _ if whole > 0 => {}
                Some(later) => {
                    batch.missed |= later != file + 1;
                    self.position = Position {
                        file: later,
                        offset: 0,
                    };
                }
                None => return Ok(batch),
            }
        }
    }

    fn take_lines(&mut self, records: &[u8], batch: &mut Batch) {
        for record in records.split(|byte| *byte == b'\n') {
            let Some(line) = parse_record(record) else {
                continue;
            };
            if self.since.is_some_and(|since| line.at < since) {
                continue;
            }
            self.since = None;
            batch.lines.push(line);
        }
    }
}

/// Up to [`BATCH_BYTES`] from `offset` on. A file that is gone reads as empty: the caller looks for the next.
fn read_chunk(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::new();
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(chunk),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset))?;
    file.take(BATCH_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn tail_position(folder: &Path, count: usize) -> io::Result<Position> {
    let numbers = segments::numbers(folder, EXTENSION)?;
    let mut wanted = count;
    let mut start = Position::default();
    for file in numbers.into_iter().rev() {
        let (offset, found) = tail_offset(&segments::path(folder, file, EXTENSION), wanted)?;
        start = Position { file, offset };
        wanted -= found;
        if wanted == 0 {
            break;
        }
    }
    Ok(start)
}

/// Where the last `wanted` whole lines of a file begin, and how many of them it has.
fn tail_offset(path: &Path, wanted: usize) -> io::Result<(u64, usize)> {
    let mut file = File::open(path)?;
    let mut end = file.metadata()?.len();
    let mut newlines = 0;
    let mut block = vec![0; BUFFER_BYTES];
    while end > 0 {
        let start = end.saturating_sub(BUFFER_BYTES as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        for (index, _) in block
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            if newlines == wanted {
                return Ok((start + index as u64 + 1, wanted));
            }
            newlines += 1;
        }
        end = start;
    }
    Ok((0, newlines))
}
