//! Who changed what, and when: JSON lines in numbered files, synced before `append` returns, bounded in size and count.
//!
//! ```text
//! audit-00000007.jsonl   oldest, deleted when there are more than `files`
//! audit-00000008.jsonl
//! audit-00000009.jsonl   written to, until it has `file_length` bytes
//! ```
//!
//! A crash can tear the last line, nothing else. The next `open` closes it with a line break, and readers skip what is no
//! record. Files are told apart by number and never renamed, so that no crash can lose one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use model::boundary::{AuditRecord, PrincipalName};

/// Most lines of detail that a record keeps, and most bytes of each of its texts.
const DETAIL_MOST: usize = 64;
const TEXT_MAX_LENGTH: usize = 1024;
/// Longest line that a reader takes for a record: what the two bounds above allow, with room for JSON's escapes.
const LINE_MAX_LENGTH: u64 = 1024 * 1024;

/// Why the log could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing} the audit log {path}: {source}")]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes after which a new file is begun.
    pub file_length: u64,
    /// Files kept, the one written to among them. At least 1.
    pub files: usize,
}

impl Default for Bounds {
    /// 64 MiB in all: some 300,000 changes.
    fn default() -> Self {
        Self {
            file_length: 8 * 1024 * 1024,
            files: 8,
        }
    }
}

/// The log of one server. One writer per directory; readers need not be the same process.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    bounds: Bounds,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    number: u64,
    file: File,
    length: u64,
}

/// Which records a reader wants. Empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub principal: Option<PrincipalName>,
    /// The whole action, or its beginning up to a dot: `secret` finds `secret.set`.
    pub action: Option<String>,
    /// The whole of what was changed, or its beginning up to a slash: `shop` finds `shop/checkout`.
    pub on: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Filter {
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let principal = |wanted: &PrincipalName| *wanted == record.principal;
        self.principal.as_ref().is_none_or(principal)
            && is_at_or_below(self.action.as_deref(), &record.action, '.')
            && is_at_or_below(self.on.as_deref(), &record.on, '/')
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
    }
}

fn is_at_or_below(wanted: Option<&str>, text: &str, separator: char) -> bool {
    let below = |rest: &str| rest.is_empty() || rest.starts_with(separator);
    wanted.is_none_or(|wanted| text.strip_prefix(wanted).is_some_and(below))
}

impl Log {
    /// Opens the log in `directory`, which is made if it is not there.
    pub fn open(directory: &Path, bounds: Bounds) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(error("make", directory))?;
        let number = numbers(directory)?.pop().unwrap_or(1);
        Ok(Self {
            directory: directory.to_owned(),
            bounds,
            writer: Mutex::new(Writer::open(directory, number)?),
        })
    }

    /// Writes a record and waits until it is on disk. Texts beyond the bounds are cut, never the record.
    pub fn append(&self, record: &AuditRecord) -> Result<(), Error> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Writes several records with one sync.
    pub fn append_all(&self, records: &[AuditRecord]) -> Result<(), Error> {
        let lines: Vec<u8> = records.iter().flat_map(line).collect();
        // A panic while writing leaves at most a torn line, which the reader skips.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.length >= self.bounds.file_length {
            let next = writer.number + 1;
            *writer = Writer::open(&self.directory, next)?;
            self.delete_oldest()?;
        }
        let path = file_path(&self.directory, writer.number);
        writer.write(&lines).map_err(error("write", &path))
    }

    /// The newest records that match, newest first, at most `most`.
    pub fn newest(&self, filter: &Filter, most: usize) -> Result<Vec<AuditRecord>, Error> {
        newest(&self.directory, filter, most)
    }

    fn delete_oldest(&self) -> Result<(), Error> {
        let numbers = numbers(&self.directory)?;
        let surplus = numbers.len().saturating_sub(self.bounds.files.max(1));
        for number in &numbers[..surplus] {
            let path = file_path(&self.directory, *number);
            fs::remove_file(&path).map_err(error("trim", &path))?;
        }
        Ok(())
    }
}

impl Writer {
    fn open(directory: &Path, number: u64) -> Result<Self, Error> {
        let path = file_path(directory, number);
        let mut file = OpenOptions::new()
            .append(true)
            .read(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(error("open", &path))?;
        let length = close_torn_line(&mut file).map_err(error("mend", &path))?;
        // The file's name must survive a crash as well as its lines.
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(error("sync", directory))?;
        Ok(Self {
            number,
            file,
            length,
        })
    }

    /// A failed write may leave part of a line: it is taken back, so that the next record does not run into it.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.length += lines.len() as u64,
            Err(_) => self.file.set_len(self.length)?,
        }
        written
    }
}

/// The newest records in `directory` that match, newest first, at most `most`. Holds one file's matches in memory.
pub fn newest(directory: &Path, filter: &Filter, most: usize) -> Result<Vec<AuditRecord>, Error> {
    let mut found = Vec::new();
    for number in numbers(directory)?.into_iter().rev() {
        let path = file_path(directory, number);
        let mut records = match read_file(&path) {
            // Trimmed since we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            records => records.map_err(error("read", &path))?,
        };
        records.retain(|record| filter.matches(record));
        found.extend(records.into_iter().rev().take(most - found.len()));
        if found.len() == most {
            break;
        }
    }
    Ok(found)
}

fn read_file(path: &Path) -> io::Result<Vec<AuditRecord>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut records = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = reader.by_ref().take(LINE_MAX_LENGTH);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(records);
        }
        records.extend(serde_json::from_slice::<AuditRecord>(&line).ok());
    }
}

fn line(record: &AuditRecord) -> Vec<u8> {
    let mut record = record.clone();
    record.detail.truncate(DETAIL_MOST);
    let texts = [&mut record.action, &mut record.on];
    for text in texts.into_iter().chain(&mut record.detail) {
        text.truncate(text.floor_char_boundary(TEXT_MAX_LENGTH));
    }
    let mut line = serde_json::to_vec(&record).expect("a record is plain data");
    line.push(b'\n');
    line
}

/// Ends a line that a crash has torn. Returns the file's length.
fn close_torn_line(file: &mut File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    if length == 0 {
        return Ok(0);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(length);
    }
    file.write_all(b"\n")?;
    file.sync_data()?;
    Ok(length + 1)
}

/// The numbers of the files that are there, oldest first.
fn numbers(directory: &Path) -> Result<Vec<u64>, Error> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(error("list", directory))? {
        let name = entry.map_err(error("list", directory))?.file_name();
        numbers.extend(name.to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    digits.parse().ok()
}

fn file_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("audit-{number:08}.jsonl"))
}

fn error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use model::boundary::AuditOutcome;

    use super::*;

    fn record(second: i64) -> AuditRecord {
        AuditRecord {
            at: Timestamp::from_second(second).unwrap(),
            principal: PrincipalName("admin:root".to_owned()),
            action: "apply".to_owned(),
            on: format!("shop/service-{second}"),
            outcome: AuditOutcome::Done,
            detail: Vec::new(),
        }
    }

    fn seconds(records: &[AuditRecord]) -> Vec<i64> {
        records.iter().map(|record| record.at.as_second()).collect()
    }

    fn all(log: &Log) -> Vec<i64> {
        seconds(&log.newest(&Filter::default(), 1000).unwrap())
    }

    #[test]
    fn records_come_back_newest_first_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), Bounds::default()).unwrap();
        assert_eq!(all(&log), [0; 0]);
        log.append(&record(1)).unwrap();
        log.append_all(&[record(2), record(3)]).unwrap();
        assert_eq!(all(&log), [3, 2, 1]);
        let two = log.newest(&Filter::default(), 2).unwrap();
        assert_eq!(two, [record(3), record(2)]);
        assert_eq!(log.newest(&Filter::default(), 0).unwrap(), []);
    }

    #[test]
    fn the_oldest_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let bounds = Bounds {
            file_length: 1,
            files: 3,
        };
        let log = Log::open(directory.path(), bounds).unwrap();
        for second in 1..=5 {
            log.append(&record(second)).unwrap();
        }
        assert_eq!(all(&log), [5, 4, 3]);
        assert_eq!(numbers(directory.path()).unwrap(), [3, 4, 5]);
        drop(log);
        let log = Log::open(directory.path(), bounds).unwrap();
        log.append(&record(6)).unwrap();
        assert_eq!(all(&log), [6, 5, 4]);
    }

    #[test]
    fn a_line_torn_at_any_byte_costs_only_itself() {
        let whole = line(&record(2));
        for length in 0..whole.len() - 1 {
            let directory = tempfile::tempdir().unwrap();
            let log = Log::open(directory.path(), Bounds::default()).unwrap();
            log.append(&record(1)).unwrap();
            let mut file = OpenOptions::new()
                .append(true)
                .open(file_path(directory.path(), 1))
                .unwrap();
            file.write_all(&whole[..length]).unwrap();
            drop(log);

            let log = Log::open(directory.path(), Bounds::default()).unwrap();
            log.append(&record(3)).unwrap();
            assert_eq!(all(&log), [3, 1], "torn after {length} bytes");
        }
    }

    #[test]
    fn filters_choose() {
        let set = AuditRecord {
            action: "secret.set".to_owned(),
            on: "bank/key".to_owned(),
            principal: PrincipalName("node:a".to_owned()),
            ..record(2)
        };
        let by = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            [record(1), set.clone(), record(3)]
                .iter()
                .filter(|record| filter.matches(record))
                .map(|record| record.at.as_second())
                .collect::<Vec<_>>()
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(by(&|_| ()), [1, 2, 3]);
        assert_eq!(by(&|filter| filter.action = text("secret")), [2]);
        assert_eq!(by(&|filter| filter.action = text("sec")), [0; 0]);
        assert_eq!(by(&|filter| filter.on = text("shop")), [1, 3]);
        assert_eq!(by(&|filter| filter.on = text("shop/service-3")), [3]);
        assert_eq!(by(&|filter| filter.since = Some(set.at)), [2, 3]);
        assert_eq!(by(&|filter| filter.until = Some(set.at)), [1]);
        let node = PrincipalName("node:a".to_owned());
        assert_eq!(by(&|filter| filter.principal = Some(node.clone())), [2]);
    }

    #[test]
    fn long_texts_are_cut_and_the_record_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), Bounds::default()).unwrap();
        let long = AuditRecord {
            detail: vec!["ä".repeat(10_000); 1_000],
            ..record(1)
        };
        log.append(&long).unwrap();
        let kept = log.newest(&Filter::default(), 1).unwrap().remove(0);
        assert_eq!(kept.detail.len(), DETAIL_MOST);
        assert_eq!(kept.detail[0], "ä".repeat(TEXT_MAX_LENGTH / 2));
    }

    #[test]
    fn an_unwritable_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let taken = directory.path().join("taken");
        fs::write(&taken, "").unwrap();
        let error = Log::open(&taken, Bounds::default()).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }
}
