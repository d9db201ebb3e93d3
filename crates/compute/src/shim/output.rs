//! The workload's stdout and stderr, cut into lines and handed to the sink, in a thread of its own: a disk that stalls must
//! not delay the lease timer.

use std::io::{ErrorKind, Read};
use std::process::{ChildStderr, ChildStdout};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use jiff::Timestamp;
use model::signals::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionbio;

use super::Sink;

/// Longest line that is kept; what follows it up to the newline is counted and dropped.
const LINE_MAX_BYTES: usize = (16 << 10) - 64;
/// Read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks of one stream between two looks at the other.
const CHUNKS_PER_TURN: usize = 4;

/// Starts the thread. The sink comes back when both pipes are closed.
pub(super) fn pump(
    stdout: ChildStdout,
    stderr: ChildStderr,
    sink: Box<dyn Sink>,
) -> std::io::Result<Receiver<Box<dyn Sink>>> {
    ioctl_fionbio(&stdout, true)?;
    ioctl_fionbio(&stderr, true)?;
    let (finished, receiver) = sync_channel(1);
    std::thread::Builder::new()
        .name("output".to_owned())
        .stack_size(128 << 10)
        .spawn(move || run(stdout, stderr, sink, &finished))?;
    Ok(receiver)
}

fn run(
    stdout: ChildStdout,
    stderr: ChildStderr,
    mut sink: Box<dyn Sink>,
    finished: &SyncSender<Box<dyn Sink>>,
) {
    let mut out = Pipe::new(stdout, Stream::Stdout);
    let mut err = Pipe::new(stderr, Stream::Stderr);
    while !(out.closed && err.closed) {
        let mut fds = Vec::with_capacity(2);
        if !out.closed {
            fds.push(PollFd::new(&out.source, PollFlags::IN));
        }
        if !err.closed {
            fds.push(PollFd::new(&err.source, PollFlags::IN));
        }
        // Interrupted by a signal: look anyway, reading does not block.
        let _ = poll(&mut fds, None);
        out.drain(sink.as_mut());
        err.drain(sink.as_mut());
        sink.flush();
    }
    // Nobody waits any more when the shim gave up on the pipes.
    let _ = finished.send(sink);
}

struct Pipe<R> {
    source: R,
    stream: Stream,
    lines: Lines,
    closed: bool,
}

impl<R: Read> Pipe<R> {
    fn new(source: R, stream: Stream) -> Self {
        Self {
            source,
            stream,
            lines: Lines::default(),
            closed: false,
        }
    }

    fn drain(&mut self, sink: &mut dyn Sink) {
        let mut chunk = [0; CHUNK_BYTES];
        let stream = self.stream;
        for _ in 0..CHUNKS_PER_TURN {
            if self.closed {
                return;
            }
            let mut emit = |line: &[u8]| sink.line(Timestamp::now(), stream, line);
            match self.source.read(&mut chunk) {
                Ok(0) => {
                    self.lines.finish(&mut emit);
                    self.closed = true;
                }
                Ok(count) => self.lines.feed(&chunk[..count], &mut emit),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
    }
}

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    /// Bytes of the present line that were dropped.
    dropped: u64,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], emit: &mut dyn FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = &bytes[..end];
            if self.partial.is_empty() && self.dropped == 0 && line.len() <= LINE_MAX_BYTES {
                emit(line);
            } else {
                self.keep(line);
                self.end_line(emit);
            }
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_MAX_BYTES - self.partial.len();
        let kept = bytes.len().min(room);
        self.partial.extend_from_slice(&bytes[..kept]);
        self.dropped += (bytes.len() - kept) as u64;
    }

    fn end_line(&mut self, emit: &mut dyn FnMut(&[u8])) {
        if self.dropped > 0 {
            let note = format!(" [{} bytes cut]", self.dropped);
            self.partial.extend_from_slice(note.as_bytes());
        }
        emit(&self.partial);
        // Given back: most lines come whole and need no buffer.
        *self = Self::default();
    }

    fn finish(&mut self, emit: &mut dyn FnMut(&[u8])) {
        if !self.partial.is_empty() {
            self.end_line(emit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut emit = |line: &[u8]| found.push(String::from_utf8_lossy(line).into_owned());
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.feed(chunk, &mut emit);
        }
        lines.finish(&mut emit);
        found
    }

    #[test]
    fn bytes_are_cut_into_lines_like_a_table() {
        let table: [(&[&[u8]], &[&str]); 6] = [
            (&[b"a\nb\n"], &["a", "b"]),
            (&[b"a", b"b\n", b"c"], &["ab", "c"]),
            (&[b"\n\n"], &["", ""]),
            (&[b"a\n", b"\n", b"b"], &["a", "", "b"]),
            (&[], &[]),
            (&[b"a\r\n"], &["a\r"]),
        ];
        for (chunks, expected) in table {
            assert_eq!(lines(chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_what_follows_is_whole() {
        let long = vec![b'x'; LINE_MAX_BYTES];
        let found = lines(&[&long, b"yyy", b"yy\nnext\n"]);
        assert_eq!(found[0].len(), LINE_MAX_BYTES + " [5 bytes cut]".len());
        assert!(
            found[0].ends_with("x [5 bytes cut]"),
            "{}",
            &found[0][LINE_MAX_BYTES - 4..]
        );
        assert_eq!(found[1..], ["next"]);
        let whole = lines(&[&[long.as_slice(), b"y\nz"].concat()]);
        assert!(whole[0].ends_with("x [1 bytes cut]") && whole[1] == "z");
    }
}
