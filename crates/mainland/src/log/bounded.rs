//! What a long-lived process of ours says: appended to the file that its standard output is, and begun anew before that fills a disk.
//!
//! Who starts such a process gives it a file; the process itself bounds it, since nobody else may live as long. One old file is kept beside it:
//! `server.log.1`. Standard error follows, so that the words of a panic are found in the same place. Where standard output is no file (a terminal,
//! the journal), what is said just goes there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

/// A log is begun anew beyond this: with the old one, 8 MiB for each process.
pub const MAX_BYTES: u64 = 4 << 20;

/// Standard output, within its bound.
pub struct Bounded {
    /// `None`: not a file of ours to begin anew.
    path: Option<PathBuf>,
    bytes: u64,
    max_bytes: u64,
}

impl Bounded {
    pub fn standard_output() -> Self {
        let stdout = io::stdout();
        let file = rustix::fs::fstat(&stdout)
            .ok()
            .filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        Self {
            path: file
                .and_then(|_| rustix::fs::readlink("/proc/self/fd/1", Vec::new()).ok())
                .and_then(|path| Some(PathBuf::from(path.into_string().ok()?))),
            bytes: file.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0)),
            max_bytes: MAX_BYTES,
        }
    }

    /// Where that fails the old file goes on growing, until as much again has come.
    fn begin_anew_if_full(&mut self) -> io::Result<()> {
        let Some(path) = self.path.as_deref().filter(|_| self.bytes > self.max_bytes) else {
            return Ok(());
        };
        self.bytes = 0;
        let log = begin_anew(path)?;
        let errors_go_there = same_file(io::stdout().as_fd(), io::stderr().as_fd());
        io::stdout().flush()?;
        rustix::stdio::dup2_stdout(&log)?;
        if errors_go_there {
            rustix::stdio::dup2_stderr(&log)?;
        }
        Ok(())
    }
}

impl Write for Bounded {
    fn write(&mut self, words: &[u8]) -> io::Result<usize> {
        // What can't be begun anew is still written.
        let _ = self.begin_anew_if_full();
        let count = io::stdout().write(words)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Moves a log aside, over the one that was moved aside before, and opens an empty one.
fn begin_anew(path: &Path) -> io::Result<File> {
    std::fs::rename(path, aside(path))?;
    append_to(path)
}

/// Opens a log; one that is too long already is moved aside.
pub fn open(path: &Path) -> io::Result<File> {
    match std::fs::metadata(path).is_ok_and(|log| log.len() > MAX_BYTES) {
        true => begin_anew(path),
        false => append_to(path),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// `server.log.1` for `server.log`.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn same_file(one: impl AsFd, other: impl AsFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "MAINLAND_TEST_LOG_CHILD";
    const NAME: &str = "log::bounded::tests::a_process_begins_its_log_anew_and_goes_on_in_it";

    #[test]
    fn a_process_begins_its_log_anew_and_goes_on_in_it() {
        if std::env::var_os(CHILD).is_some() {
            let mut log = Bounded {
                max_bytes: 10_000,
                ..Bounded::standard_output()
            };
            for line in 0..1000 {
                writeln!(log, "line {line:03} of what a process has to say").unwrap();
            }
            eprintln!("its last words");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let log = open(&path).unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .status()
            .unwrap();
        assert!(status.success());
        let (new, old) = (
            std::fs::read_to_string(&path).unwrap(),
            std::fs::read_to_string(aside(&path)).unwrap(),
        );
        assert!(new.len() < 11_000 && old.len() < 11_000);
        assert!(old.contains("line 9") || new.contains("line 9"));
        assert!(new.contains("line 999") && new.contains("its last words"));
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 2);
    }

    #[test]
    fn a_log_that_is_long_already_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        std::fs::write(&path, "short\n").unwrap();
        open(&path).unwrap();
        assert!(!aside(&path).exists());
        std::fs::write(&path, vec![b'x'; MAX_BYTES as usize + 1]).unwrap();
        open(&path).unwrap();
        assert!(aside(&path).exists() && path.metadata().unwrap().len() == 0);
    }
}
