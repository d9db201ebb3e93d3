//! A folder of numbered append-only files. The highest number is written; the lowest are removed to hold the bound.
//!
//! A file is never renamed, so `(number, offset)` names one byte for ever, and a reader can't lose or repeat a line when
//! the writer goes on to the next file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How much a folder may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub files: u32,
    pub file_bytes: u64,
}

/// The path of one numbered file.
pub(crate) fn path(folder: &Path, number: u64, extension: &str) -> PathBuf {
    folder.join(format!("{number:08}.{extension}"))
}

/// The numbers of all files in the folder, ascending. A missing folder is empty.
pub(crate) fn numbers(folder: &Path, extension: &str) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = Path::new(&name);
        let stem = name.file_stem().and_then(|stem| stem.to_str());
        if name.extension().is_some_and(|found| found == extension)
            && let Some(number) = stem.and_then(|stem| stem.parse().ok())
        {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Appends whole records to the newest file.
pub(crate) struct Appender {
    folder: PathBuf,
    extension: &'static str,
    limits: Limits,
    number: u64,
    file: File,
    /// Bytes of whole records in `file`.
    length: u64,
}

impl Appender {
    pub(crate) fn open(folder: &Path, extension: &'static str, limits: Limits) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let number = numbers(folder, extension)?.last().copied().unwrap_or(1);
        let (file, length) = open_end(&path(folder, number, extension))?;
        Ok(Self {
            folder: folder.to_owned(),
            extension,
            limits,
            number,
            file,
            length,
        })
    }

    /// Writes `records`, which ends with a newline, wholly or not at all.
    pub(crate) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + records.len() as u64 > self.limits.file_bytes {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(records) {
            // A half-written record would make a line of nonsense: take it back. When even this fails, the next opening
            // of the file closes the torn line.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += records.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = self.number + 1;
        // Room first: on a full disk the removal of the oldest is what lets the new file grow.
        for number in numbers(&self.folder, self.extension)? {
            if number + u64::from(self.limits.files) <= next {
                fs::remove_file(path(&self.folder, number, self.extension))?;
            }
        }
        let (file, length) = open_end(&path(&self.folder, next, self.extension))?;
        (self.file, self.length, self.number) = (file, length, next);
        Ok(())
    }
}

/// Opens a file for appending, closing a line that a crash has torn.
fn open_end(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)?;
    let mut length = file.metadata()?.len();
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            length += 1;
        }
    }
    Ok((file, length))
}
