//! `shim`, `shim-exec` and `shim-watchdog` as the binary has them, with a sink that writes `LETTER TEXT` lines to `logs/output`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use compute::shim::{Sink, Step, exec_main_with, run_with, watchdog_main};
use jiff::Timestamp;
use model::signals::Stream;

struct Lines(io::BufWriter<File>);

impl Sink for Lines {
    fn line(&mut self, _: Timestamp, stream: Stream, line: &[u8]) {
        let letter: &[u8] = match stream {
            Stream::Stdout => b"o ",
            Stream::Stderr => b"e ",
            Stream::Shim => b"s ",
        };
        for part in [letter, line, b"\n"] {
            let _ = self.0.write_all(part);
        }
    }

    fn piece(&mut self, at: Timestamp, stream: Stream, piece: &[u8]) {
        self.line(at, stream, piece);
    }

    fn flush(&mut self) {
        let _ = self.0.flush();
    }
}

fn open(folder: &Path) -> io::Result<Box<dyn Sink>> {
    fs::create_dir_all(folder)?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(folder.join("output"))?;
    Ok(Box::new(Lines(io::BufWriter::new(file))))
}

/// Stands still before the step that the file `stall` names: `STEP` until a signal continues or kills it, `STEP FREEZER` in that frozen cgroup, where
/// even SIGKILL waits, as it does for a disk. Once.
fn stall(directory: &Path, step: Step) {
    let file = directory.join("stall");
    let Ok(text) = fs::read_to_string(&file) else {
        return;
    };
    let mut words = text.split(' ');
    if words.next() != Some(format!("{step:?}").as_str()) || fs::remove_file(&file).is_err() {
        return;
    }
    let me = rustix::process::getpid();
    match words.next() {
        Some(freezer) => {
            let _ = fs::write(
                Path::new(freezer).join("cgroup.procs"),
                me.as_raw_nonzero().to_string(),
            );
        }
        None => {
            let _ = rustix::process::kill_process(me, rustix::process::Signal::STOP);
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|name| name.to_str()) {
        Some("shim") => {
            let directory = arguments.get(1).map(PathBuf::from).unwrap_or_default();
            run_with(&arguments[1..], &open, &|step| stall(&directory, step))
        }
        // Its working directory lies in the instance's.
        Some("shim-exec") => exec_main_with(&arguments[1..], &|step| stall(Path::new(".."), step)),
        Some("shim-watchdog") => watchdog_main(&arguments[1..]),
        _ => ExitCode::from(2),
    }
}
