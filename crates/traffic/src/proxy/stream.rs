//! A connected byte stream, TCP or Unix, that can be asked whether a request on it was ever sent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Clones are the same connection; it closes with the last one.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    socket: Socket,
    /// Look whether the other end is there before the next write.
    look_first: AtomicBool,
    /// Something was written since the request began.
    sent: AtomicBool,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::new(Socket::Tcp(stream)))
    }

    pub fn unix(stream: UnixStream) -> Self {
        Self::new(Socket::Unix(stream))
    }

    fn new(socket: Socket) -> Self {
        Self(Arc::new(Inner {
            socket,
            look_first: AtomicBool::new(false),
            sent: AtomicBool::new(false),
        }))
    }

    /// A request begins. `look_first`: the connection has been idle, and may have been closed by the other end.
    pub fn begin(&self, look_first: bool) {
        self.0.sent.store(false, Relaxed);
        self.0.look_first.store(look_first, Relaxed);
    }

    /// Not a byte was written since the request began.
    pub fn nothing_sent(&self) -> bool {
        !self.0.sent.load(Relaxed)
    }

    /// Open, and nothing has come that nobody asked for.
    fn is_quiet(&self) -> bool {
        let mut byte = [0_u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(self.fd(), &mut byte, flags)
            .is_err_and(|error| error == rustix::io::Errno::AGAIN)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.0.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }

    /// Writes by `attempt` until it does not say that it would block.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        attempt: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.0.look_first.swap(false, Relaxed) && !self.is_quiet() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        loop {
            ready!(self.0.socket.poll_writable(cx))?;
            match attempt(&self.0.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.0.sent.store(true, Relaxed);
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }
}

impl Socket {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Into the buffer as it is: no zeroes are written where bytes will be.
    fn try_read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read_buf(buffer),
            Self::Unix(stream) => stream.try_read_buf(buffer),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.socket.poll_readable(cx))?;
            match self.0.socket.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| match socket {
            Socket::Tcp(stream) => stream.try_write(bytes),
            Socket::Unix(stream) => stream.try_write(bytes),
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| match socket {
            Socket::Tcp(stream) => stream.try_write_vectored(slices),
            Socket::Unix(stream) => stream.try_write_vectored(slices),
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(self.fd(), Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
