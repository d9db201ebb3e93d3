//! A daemon's own log, written by a thread of its own: a disk that stands still stops no answer and no heartbeat.

mod bounded;

pub use bounded::{Bounded, open};

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the disk at most; beyond it they are dropped, and how many is said.
const WAITING_MOST: usize = 1024;
/// How long the end of a process waits for its last lines.
const FLUSH_PATIENCE: Duration = Duration::from_millis(200);

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Takes lines and never waits.
#[derive(Clone)]
pub struct Lines {
    sender: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// To be written there, in order.
    pub fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_MOST);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(output, &receiver, &counted))?;
        Ok(Self { sender, dropped })
    }

    /// Waits for a moment until what was said is written.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.sender.try_send(Entry::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_PATIENCE);
        }
    }
}

/// What can't be written is not said elsewhere: it would be on the same disk.
fn write(mut output: impl Write, receiver: &Receiver<Entry>, dropped: &AtomicU64) {
    while let Ok(entry) = receiver.recv() {
        match entry {
            Entry::Line(line) => {
                let _ = output.write_all(&line);
            }
            Entry::Flush(done) => {
                let _ = output.flush();
                let _ = done.try_send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(
                output,
                "{lost} lines of the log were dropped: the disk is too slow"
            );
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands still until it is told to go on.
    struct Standing(Receiver<()>, SyncSender<Vec<u8>>);

    impl Write for Standing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_says_something_never_waits_and_what_is_lost_is_counted() {
        let (go, stands) = sync_channel(1);
        let (sender, written) = sync_channel(2 * WAITING_MOST);
        let mut lines = Lines::to(Standing(stands, sender)).unwrap();
        let begun = std::time::Instant::now();
        for index in 0..WAITING_MOST + 100 {
            lines.write_all(format!("{index}\n").as_bytes()).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop((go, lines));
        let text: Vec<u8> = written.into_iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let (first, lost) = (
            text.lines().next(),
            text.lines().find(|line| line.contains("dropped")),
        );
        assert_eq!(first, Some("0"));
        let lost = lost.and_then(|line| line.split(' ').next()?.parse::<usize>().ok());
        // One line, or its end, may have been taken out of the queue already.
        assert!(lost.is_some_and(|lost| lost >= 99), "{lost:?}");
    }
}
