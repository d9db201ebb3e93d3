//! A connected byte stream, TCP or Unix, that can be asked whether a request on it was ever sent, and takes only so much before an answer's head is
//! there: interim answers (1xx) are read and dropped, and a server may send them for ever.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// Read at once off an instance.
pub const READ_BYTES: usize = 2 * super::wire::MOST_HEADER_BYTES;
/// Bytes until an answer's head has been seen: one head, interim answers before it, and as much of the body as comes along.
const MOST_HEAD_BYTES: u32 = 2 * READ_BYTES as u32;
/// Read at once after the first read, while the head has not been seen: some hundred interim answers, after which others have their turn.
const TURN_BYTES: usize = 2 * 1024;
/// No head is awaited.
const ANSWERED: u32 = u32::MAX;

pub struct Stream {
    socket: Either<TcpStream, UnixStream>,
    watch: Arc<Watch>,
    /// Other tasks have had their turn since the last read of a head.
    has_yielded: bool,
}

/// What is known of the request on a stream, for the one who sent it.
pub struct Watch {
    /// Look whether the other end is there before the next write.
    look_first: AtomicBool,
    /// Something was written since the request began.
    sent: AtomicBool,
    /// A request is on it, whose answer may lie here although the other end takes no more.
    may_be_answered: AtomicBool,
    /// Bytes that came since the request began, until its answer has.
    head_bytes: AtomicU32,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            look_first: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            may_be_answered: AtomicBool::new(false),
            head_bytes: AtomicU32::new(ANSWERED),
        }
    }
}

impl Watch {
    /// A request begins. `look_first`: the connection has been idle, and may have been closed by the other end.
    pub fn begin(&self, look_first: bool) {
        self.sent.store(false, Relaxed);
        self.look_first.store(look_first, Relaxed);
        self.may_be_answered.store(true, Relaxed);
        self.head_bytes.store(0, Relaxed);
    }

    /// The head of the answer is there.
    pub fn answered(&self) {
        self.head_bytes.store(ANSWERED, Relaxed);
    }

    /// Not a byte was written since the request began.
    pub fn nothing_sent(&self) -> bool {
        !self.sent.load(Relaxed)
    }
}

impl Stream {
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::new(Either::Left(stream)))
    }

    pub fn unix(stream: UnixStream) -> Self {
        Self::new(Either::Right(stream))
    }

    fn new(socket: Either<TcpStream, UnixStream>) -> Self {
        Self {
            socket,
            watch: Arc::default(),
            has_yielded: false,
        }
    }

    pub fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }

    /// Open, and nothing has come that nobody asked for.
    fn is_quiet(&self) -> bool {
        let fd = match &self.socket {
            Either::Left(tcp) => tcp.as_fd(),
            Either::Right(unix) => unix.as_fd(),
        };
        let mut byte = [0_u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(fd, &mut byte, flags)
            .is_err_and(|error| error == rustix::io::Errno::AGAIN)
    }

    fn before_write(&self) -> io::Result<()> {
        if self.watch.look_first.swap(false, Relaxed) && !self.is_quiet() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(())
    }

    /// How much the next read may bring; it has to wait for other tasks when the one before brought bytes, and not yet the answer's head.
    fn before_read(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<usize>> {
        let head_bytes = self.watch.head_bytes.load(Relaxed);
        if matches!(head_bytes, 0 | ANSWERED) {
            self.has_yielded = false;
            return Ok(Poll::Ready(usize::MAX));
        }
        if head_bytes > MOST_HEAD_BYTES {
            return Err(io::Error::other("too many interim answers"));
        }
        self.has_yielded = !self.has_yielded;
        if self.has_yielded {
            // Woken by itself it would only go behind the tasks that are ready; so the runtime looks at its sockets first.
            let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
            return Ok(Poll::Pending);
        }
        Ok(Poll::Ready(TURN_BYTES))
    }

    /// An answer that is the first that comes, as nearly all are, is no interim one: of its head the HTTP library takes only so much. It looks for its
    /// end by another read before who waits for the answer has had a turn, so that is not to be waited for.
    fn after_read(&self, came: &[u8]) {
        let head_bytes = self.watch.head_bytes.load(Relaxed);
        if head_bytes == ANSWERED {
            return;
        }
        if head_bytes == 0 && is_final(came) {
            return self.watch.answered();
        }
        let sum = head_bytes.saturating_add(came.len() as u32);
        self.watch.head_bytes.store(sum.min(ANSWERED - 1), Relaxed);
    }

    /// Who answers before it has read all, and closes, resets the connection; the answer lies here all the same. So what can't be sent any more counts
    /// as sent, and the end is told by reading: first the answer, if there is one, then the error.
    fn after_write(
        &self,
        written: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(_)) => self.watch.sent.store(true, Relaxed),
            Poll::Ready(Err(error))
                if is_gone(error)
                    && self.watch.may_be_answered.load(Relaxed)
                    && self.watch.sent.load(Relaxed) =>
            {
                return Poll::Ready(Ok(length));
            }
            _ => {}
        }
        written
    }
}

/// Whether these are the first bytes of an answer that is not an interim one.
fn is_final(bytes: &[u8]) -> bool {
    let is_http = bytes.starts_with(b"HTTP/1.1 ") || bytes.starts_with(b"HTTP/1.0 ");
    is_http && bytes.get(9).is_some_and(|it| matches!(it, b'2'..=b'9'))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let most = ready!(stream.before_read(cx)?);
        let before = buffer.filled().len();
        if buffer.remaining() <= most {
            ready!(Pin::new(&mut stream.socket).poll_read(cx, buffer))?;
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
            ready!(Pin::new(&mut stream.socket).poll_read(cx, &mut part))?;
            let count = part.filled().len();
            buffer.advance(count);
        }
        stream.after_read(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.before_write()?;
        let written = Pin::new(&mut stream.socket).poll_write(cx, bytes);
        stream.after_write(written, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.before_write()?;
        let written = Pin::new(&mut stream.socket).poll_write_vectored(cx, slices);
        stream.after_write(written, slices.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_comes_before_an_answer_comes_in_turns_and_ends() {
        let (inner, mut server) = UnixStream::pair().unwrap();
        let mut stream = Stream::unix(inner);
        let watch = stream.watch();
        watch.begin(false);
        tokio::spawn(async move { while server.write_all(&[b'x'; 64 * 1024]).await.is_ok() {} });
        let mut buffer = vec![0; READ_BYTES];
        let mut sum = stream.read(&mut buffer).await.unwrap();
        let error = loop {
            match stream.read(&mut buffer).await {
                Ok(count) => {
                    assert!((1..=TURN_BYTES).contains(&count), "{count} at once");
                    sum += count;
                }
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("interim"), "{error}");
        assert!(sum <= MOST_HEAD_BYTES as usize + TURN_BYTES, "{sum}");
        watch.answered();
        let mut large = 0;
        for _ in 0..100 {
            large = large.max(stream.read(&mut buffer).await.unwrap());
        }
        assert!(large > TURN_BYTES, "an answer's body comes in turns too");
    }

    /// What comes after these first bytes of an answer, by one read.
    async fn read_after(first: &[u8]) -> usize {
        let (inner, mut server) = UnixStream::pair().unwrap();
        let mut stream = Stream::unix(inner);
        stream.watch().begin(false);
        server.write_all(first).await.unwrap();
        let mut buffer = vec![0; READ_BYTES];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), first.len());
        server.write_all(&[b'x'; 2 * TURN_BYTES]).await.unwrap();
        stream.read(&mut buffer).await.unwrap()
    }

    #[tokio::test]
    async fn only_who_may_send_interim_answers_for_ever_waits_for_its_turn() {
        let all = 2 * TURN_BYTES;
        for (first, expected) in [
            ("HTTP/1.1 200 OK\r\n", all),
            ("HTTP/1.0 404 \r\n", all),
            ("HTTP/1.1 103 Early Hints\r\n\r\n", TURN_BYTES),
            ("HTTP/1.1 ", TURN_BYTES),
            ("xxxxxxxxx 200", TURN_BYTES),
        ] {
            assert_eq!(read_after(first.as_bytes()).await, expected, "{first}");
        }
    }
}
