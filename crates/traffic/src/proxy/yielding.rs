//! A connection that carries what many ask, in turns with the worker's others: on a fast path it could be written to and read from for tens of
//! milliseconds on end, and whoever else the worker serves would wait.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes each way in one turn: some 0.3 ms of encrypting.
const TURN_BYTES: usize = 256 * 1024;

pub struct Yielding<S> {
    io: S,
    read: Turn,
    written: Turn,
}

/// What is left of one.
struct Turn(usize);

impl Turn {
    /// Pending where it has ended: the runtime looks at its sockets, and serves others, before the next one.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 > 0 {
            return Poll::Ready(());
        }
        self.0 = TURN_BYTES;
        pin!(tokio::task::yield_now()).poll(cx)
    }

    fn take(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

impl<S> Yielding<S> {
    pub fn new(io: S) -> Self {
        Self {
            io,
            read: Turn(TURN_BYTES),
            written: Turn(TURN_BYTES),
        }
    }

    /// Others had their turns while it waited for its socket.
    fn wrote(&mut self, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &wrote {
            Poll::Ready(Ok(bytes)) => self.written.take(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.written = Turn(TURN_BYTES),
        }
        wrote
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Yielding<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.read.poll(cx));
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        match &read {
            Poll::Ready(_) => self.read.take(buffer.filled().len() - before),
            Poll::Pending => self.read = Turn(TURN_BYTES),
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Yielding<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.written.poll(cx));
        let wrote = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.written.poll(cx));
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.wrote(wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_writes_and_reads_without_end_lets_others_have_their_turns() {
        static TURNS: AtomicUsize = AtomicUsize::new(0);
        let other = tokio::spawn(async {
            loop {
                TURNS.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let bytes = vec![b'x'; 16 * TURN_BYTES];
        let count = bytes.chunks(16 * 1024);
        let mut sink = Yielding::new(tokio::io::sink());
        for chunk in count {
            sink.write_all(chunk).await.unwrap();
        }
        let turns = TURNS.swap(0, Relaxed);
        assert!(turns >= 15, "{turns} turns while it was written");

        let mut source = Yielding::new(bytes.as_slice());
        let mut chunk = vec![0; 16 * 1024];
        let mut length = 0;
        while let read @ 1.. = source.read(&mut chunk).await.unwrap() {
            length += read;
        }
        assert_eq!(length, bytes.len());
        let turns = TURNS.load(Relaxed);
        assert!(turns >= 15, "{turns} turns while it was read");
        other.abort();
    }
}
