//! A connected byte stream, TCP or Unix, that can be asked whether a request on it was ever sent.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

pub struct Stream {
    socket: Socket,
    watch: Arc<Watch>,
}

/// What is known of the request on a stream, for the one who sent it.
#[derive(Default)]
pub struct Watch {
    /// Look whether the other end is there before the next write.
    look_first: AtomicBool,
    /// Something was written since the request began.
    sent: AtomicBool,
    /// A request is on it, whose answer may lie here although the other end takes no more.
    may_be_answered: AtomicBool,
}

impl Watch {
    /// A request begins. `look_first`: the connection has been idle, and may have been closed by the other end.
    pub fn begin(&self, look_first: bool) {
        self.sent.store(false, Relaxed);
        self.look_first.store(look_first, Relaxed);
        self.may_be_answered.store(true, Relaxed);
    }

    /// Not a byte was written since the request began.
    pub fn nothing_sent(&self) -> bool {
        !self.sent.load(Relaxed)
    }
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
        Self {
            socket,
            watch: Arc::default(),
        }
    }

    pub fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }

    /// Open, and nothing has come that nobody asked for.
    fn is_quiet(&self) -> bool {
        let fd = match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
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
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
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
        let written = match &mut stream.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Socket::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
        };
        stream.after_write(written, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.before_write()?;
        let written = match &mut stream.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
        };
        stream.after_write(written, slices.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
