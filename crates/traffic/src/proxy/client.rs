//! The connection of a client, at the gateway or a door: it has a place among the others, and an end when it takes nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::bulkhead;
use super::shares::{Keeper, Place};

/// A client of the gateway that takes nothing of an answer for this long is gone (`send_timeout` of nginx).
const TAKES_NOTHING: Duration = Duration::from_secs(60);
/// So many that take nothing are no coincidence,
const CROWD: usize = 256;
/// and then this has to do: what they hold up to here is a few hundred KiB each.
const TAKES_NOTHING_IN_A_CROWD: Duration = Duration::from_secs(10);
/// How much of an answer the kernel holds unsent: more would hide from us for long that a client takes nothing.
const UNSENT_BYTES: u32 = 128 * 1024;
/// Of one of many of its party: together they ask for as much work.
const UNSENT_BYTES_OF_MANY: u32 = 16 * 1024;

/// A client from outside may vanish without a word, its machine or its network. One that is silent for this long is asked whether it is there,
const ASKED_AFTER: Duration = Duration::from_secs(30);
/// again after this, so many times, and is gone then.
const ASKED_EVERY: Duration = Duration::from_secs(10);
const ASKED_TIMES: u32 = 3;
/// As is one that does not acknowledge for this long what was sent to it.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

fn notice_vanishing(socket: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(ASKED_AFTER)
        .with_interval(ASKED_EVERY)
        .with_retries(ASKED_TIMES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// How many clients of this proxy take nothing at the moment.
pub type Stalled = Arc<AtomicUsize>;

pub struct ClientStream {
    socket: TcpStream,
    place: Place,
    stall: Option<Stall>,
}

impl ClientStream {
    /// Of a service of this node: it may take its time, since that costs nobody but itself.
    pub fn patient(socket: TcpStream, place: Place) -> Self {
        // Both can only fail where the client has left already.
        let _ = socket.set_nodelay(true);
        let unsent_bytes = match bulkhead::is_one_of_many(&place) {
            true => UNSENT_BYTES_OF_MANY,
            false => UNSENT_BYTES,
        };
        let _ = socket2::SockRef::from(&socket).set_tcp_notsent_lowat(unsent_bytes);
        Self {
            socket,
            place,
            stall: None,
        }
    }

    /// Of anybody: ended when it takes nothing of what it asked for.
    pub fn impatient(socket: TcpStream, place: Place, stalled: Stalled) -> Self {
        // As before: only who has left already can't be told.
        let _ = notice_vanishing(&socket);
        let mut stream = Self::patient(socket, place);
        stream.stall = Some(Stall::new(stalled));
        stream
    }

    pub fn keeper(&self) -> Keeper {
        self.place.keeper()
    }

    /// Waits for the first byte, and holds next to nothing meanwhile. False: it won't come.
    pub async fn speaks(&self, patience: Duration) -> bool {
        tokio::select! {
            ready = self.socket.readable() => ready.is_ok(),
            () = self.place.given_up() => false,
            () = sleep(patience) => false,
        }
    }

    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_pending() {
            if self.stall.as_mut().is_some_and(|stall| stall.is_over(cx)) {
                tracing::debug!("a client took nothing of its answer");
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return written;
        }
        if let Some(stall) = &mut self.stall {
            stall.end();
        }
        self.place.used();
        written
    }
}

/// The time in which a client takes nothing.
struct Stall {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    stalled: Stalled,
}

impl Stall {
    fn new(stalled: Stalled) -> Self {
        Self {
            since: None,
            timer: None,
            stalled,
        }
    }

    /// It takes nothing now. Whether it has done so for too long; else `cx` is woken in time.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(TAKES_NOTHING_IN_A_CROWD)));
        let since = match self.since {
            Some(since) => since,
            None => {
                let now = Instant::now();
                self.stalled.fetch_add(1, Relaxed);
                timer.as_mut().reset(now + TAKES_NOTHING_IN_A_CROWD);
                *self.since.insert(now)
            }
        };
        while timer.as_mut().poll(cx).is_ready() {
            let crowded = self.stalled.load(Relaxed) > CROWD;
            let elapsed = since.elapsed();
            if elapsed >= TAKES_NOTHING || (crowded && elapsed >= TAKES_NOTHING_IN_A_CROWD) {
                return true;
            }
            timer
                .as_mut()
                .reset(Instant::now() + TAKES_NOTHING_IN_A_CROWD);
        }
        false
    }

    fn end(&mut self) {
        if self.since.take().is_some() {
            self.stalled.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if let Poll::Ready(read) = Pin::new(&mut stream.socket).poll_read(cx, buffer) {
            stream.place.used();
            return Poll::Ready(read);
        }
        match stream.place.poll_given_up(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let written = Pin::new(&mut stream.socket).poll_write(cx, bytes);
        stream.wrote(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let written = Pin::new(&mut stream.socket).poll_write_vectored(cx, slices);
        stream.wrote(cx, written)
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
    use super::*;
    use crate::proxy::shares::{Kind, Party, Shares};

    #[tokio::test]
    async fn a_client_from_outside_that_vanishes_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (socket, from) = listener.accept().await.unwrap();
        let place = Shares::new(40).take(Kind::Gateway, Party::client(from.ip()));
        let stream = ClientStream::impatient(socket, place.unwrap(), Stalled::default());
        let socket = socket2::SockRef::from(&stream.socket);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), ASKED_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), ASKED_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), ASKED_TIMES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
}
