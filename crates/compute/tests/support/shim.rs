//! `shim` and `shim-exec` as the binary has them, with a sink that writes `LETTER TEXT` lines to `logs/output`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use compute::shim::{Sink, exec_main, run};
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

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|name| name.to_str()) {
        Some("shim") => run(&arguments[1..], &open),
        Some("shim-exec") => exec_main(&arguments[1..]),
        _ => ExitCode::from(2),
    }
}
