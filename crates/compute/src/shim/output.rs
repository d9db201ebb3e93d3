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

/// The longest line that is kept whole; a longer one comes in pieces of at most this. As the log has it.
const LINE_MAX_BYTES: usize = 64 << 10;
/// Read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks of one stream between two looks at the other.
const CHUNKS_PER_TURN: usize = 4;

/// Starts the thread, whose first line is `started`, the shim's own. The sink comes back when both pipes are closed.
pub(super) fn pump(
    stdout: ChildStdout,
    stderr: ChildStderr,
    sink: Box<dyn Sink>,
    started: String,
) -> std::io::Result<Receiver<Box<dyn Sink>>> {
    ioctl_fionbio(&stdout, true)?;
    ioctl_fionbio(&stderr, true)?;
    let (finished, receiver) = sync_channel(1);
    std::thread::Builder::new()
        .name("output".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            let mut sink = sink;
            sink.line(Timestamp::now(), Stream::Shim, started.as_bytes());
            sink.flush();
            run(stdout, stderr, sink, &finished);
        })?;
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
            let mut emit = |line: &[u8], goes_on| match goes_on {
                true => sink.piece(Timestamp::now(), stream, line),
                false => sink.line(Timestamp::now(), stream, line),
            };
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

/// Cuts a stream of bytes into lines, and lines that are too long into pieces.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

/// What is cut off: bytes, and whether they are a piece of a line that goes on.
type Emit<'a> = &'a mut dyn FnMut(&[u8], bool);

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], emit: Emit<'_>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = &bytes[..end];
            if self.partial.is_empty() && line.len() <= LINE_MAX_BYTES {
                emit(line, false);
            } else {
                self.keep(line, emit);
                self.end_line(emit);
            }
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes, emit);
    }

    fn keep(&mut self, bytes: &[u8], emit: Emit<'_>) {
        self.partial.extend_from_slice(bytes);
        while self.partial.len() > LINE_MAX_BYTES {
            let end = piece_end(&self.partial[..=LINE_MAX_BYTES]);
            emit(&self.partial[..end], true);
            self.partial.drain(..end);
        }
    }

    fn end_line(&mut self, emit: Emit<'_>) {
        emit(&self.partial, false);
        // Given back: most lines come whole and need no buffer.
        *self = Self::default();
    }

    fn finish(&mut self, emit: Emit<'_>) {
        if !self.partial.is_empty() {
            self.end_line(emit);
        }
    }
}

/// Where a piece ends of which one byte more is known: not within a character of UTF-8, whose later bytes all begin with the bits 10.
fn piece_end(bytes: &[u8]) -> usize {
    let last = bytes.len() - 1;
    let begins = |at: &usize| bytes[*at] & 0xc0 != 0x80;
    (last.saturating_sub(3)..=last)
        .rev()
        .find(begins)
        .unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on ends with `…`.
    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut emit = |line: &[u8], goes_on| {
            let more = if goes_on { "…" } else { "" };
            found.push(format!("{}{more}", String::from_utf8_lossy(line)));
        };
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
    fn a_line_of_the_most_bytes_is_whole_and_a_longer_one_comes_in_pieces() {
        let long = "x".repeat(LINE_MAX_BYTES);
        let bytes = long.as_bytes();
        assert_eq!(lines(&[bytes, b"\nnext\n"]), [long.as_str(), "next"]);
        let piece = format!("{long}…");
        assert_eq!(
            lines(&[bytes, b"yyy", b"yy\nnext\n"]),
            [&piece, "yyyyy", "next"]
        );
        let thrice = [bytes, bytes, b"y\nz"].concat();
        assert_eq!(lines(&[&thrice]), [&piece, &piece, "y", "z"]);
    }

    #[test]
    fn no_character_is_cut_in_two() {
        for text in ["ä", "漢", "🚀"] {
            for shift in 0..4 {
                let line = "x".repeat(LINE_MAX_BYTES - shift) + text + "y";
                let found = lines(&[line.as_bytes()]).concat().replace('…', "");
                assert_eq!(found, line, "{text} {shift}");
            }
        }
        let binary = vec![0x80; LINE_MAX_BYTES + 1];
        assert_eq!(
            lines(&[&binary]).len(),
            2,
            "bytes that are no text end somewhere"
        );
    }
}
