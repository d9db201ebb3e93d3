//! Connections to instances: HTTP/1.1, kept and used again, one pool per worker.
//!
//! An instance may close a connection that it keeps idle at any time, just when the next request is on its way. So a request on a
//! used connection asks the kernel, right before its first byte, whether the other end is still there; if not, nothing was sent and
//! it goes elsewhere at no cost. What must not be sent twice also only takes connections that were used a moment ago.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use model::traffic::Address;
use tokio::net::{TcpStream, UnixStream};

use super::body::{REPLAY_BYTES, RequestBody};
use super::failure::{Failure, chain};
use super::stream::{Stream, Watch};
use super::wire::{self, MOST_HEADER_BYTES, MOST_HEADERS};

/// Idle connections that are kept for each instance by each worker.
const MOST_IDLE: usize = 64;
/// Common servers close after 2 to 75 s (gunicorn 2 s, Node.js 5 s, nginx 75 s).
const IDLE_FOR_SAFE: Duration = Duration::from_secs(10);
/// Long enough that a server which closes after each answer has done so, short enough that none is about to.
const IDLE_FOR_UNSAFE: std::ops::Range<Duration> = Duration::from_millis(2)..Duration::from_secs(1);
/// What may be sent twice does not look at a connection that was used this recently: it costs a system call.
const SURELY_OPEN: Duration = Duration::from_millis(5);
/// Connections whose last answer is still being tidied up are passed over, this many at most.
const LOOKED_AT: usize = 8;

/// The idle connections of one worker.
pub struct Instances {
    idle: Mutex<HashMap<Address, Vec<Idle>>>,
    /// Of each connection.
    buffer_bytes: usize,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    watch: Arc<Watch>,
    since: Instant,
}

/// A connection in use. Given back when its answer has passed; dropped, it is closed.
pub struct Lease {
    pool: Arc<Instances>,
    address: Address,
    connection: Idle,
}

impl Lease {
    pub fn give_back(mut self) {
        if self.connection.sender.is_closed() {
            return;
        }
        self.connection.since = Instant::now();
        let mut idle = self.pool.lock();
        let kept = match idle.get_mut(&self.address) {
            Some(kept) => kept,
            None => idle.entry(self.address).or_default(),
        };
        if kept.len() < MOST_IDLE {
            kept.push(self.connection);
        }
    }
}

/// An answer with a length *and* a transfer coding has two ends (RFC 9112, 6.3), and one with another coding than `chunked` would lose it here.
fn is_framed_once(response: &Response<Incoming>) -> Result<(), Failure> {
    let headers = response.headers();
    if !headers.contains_key(TRANSFER_ENCODING) {
        return Ok(());
    }
    if headers.contains_key(CONTENT_LENGTH) {
        let why = "its answer has a Content-Length and a Transfer-Encoding";
        return Err(Failure::broken(why));
    }
    if !wire::is_chunked_only(headers) {
        let why = "its answer has a Transfer-Encoding other than chunked";
        return Err(Failure::broken(why));
    }
    Ok(())
}

impl Instances {
    pub fn new(buffer_bytes: usize) -> Self {
        Self {
            idle: Mutex::default(),
            buffer_bytes,
        }
    }

    /// Sends one request and waits for the head of the answer. `idempotent`: it does no harm to send it on a connection that may
    /// turn out to be closed.
    pub async fn send(
        self: &Arc<Self>,
        address: &Address,
        mut request: Request<RequestBody>,
        idempotent: bool,
        patience: Duration,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        loop {
            // More than is kept might be read off the client before the first byte is written.
            let small = request
                .body()
                .size_hint()
                .upper()
                .is_some_and(|most| most <= REPLAY_BYTES as u64);
            let used = small.then(|| self.take(address, idempotent)).flatten();
            let (mut connection, reused) = match used {
                Some(connection) => (connection, true),
                None => (
                    Box::pin(connect_http(address, patience, self.buffer_bytes)).await?,
                    false,
                ),
            };
            let fresh = !reused || (idempotent && connection.since.elapsed() < SURELY_OPEN);
            connection.watch.begin(!fresh);
            match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    connection.watch.answered();
                    is_framed_once(&response)?;
                    let lease = Lease {
                        pool: self.clone(),
                        address: address.clone(),
                        connection,
                    };
                    return Ok((response, lease));
                }
                Err(mut error) => match error.take_message() {
                    // Not a byte was written: the connection had closed while it was idle.
                    Some(unsent) if reused => request = unsent,
                    Some(_) => return Err(Failure::unreachable(chain(error.error()))),
                    None if connection.watch.nothing_sent() => {
                        return Err(Failure::not_begun("the connection had been closed"));
                    }
                    None => return Err(Failure::broken(chain(error.error()))),
                },
            }
        }
    }

    fn take(&self, address: &Address, idempotent: bool) -> Option<Idle> {
        let mut idle = self.lock();
        let kept = idle.get_mut(address)?;
        let most = if idempotent { LOOKED_AT } else { MOST_IDLE };
        let mut place = kept.len();
        for _ in 0..most.min(kept.len()) {
            place -= 1;
            let age = kept[place].since.elapsed();
            if kept[place].sender.is_closed() || age > IDLE_FOR_SAFE {
                kept.swap_remove(place);
            } else if kept[place].sender.is_ready()
                && (idempotent || IDLE_FOR_UNSAFE.contains(&age))
            {
                return Some(kept.swap_remove(place));
            }
        }
        None
    }

    /// Closes what has been idle for too long, and forgets instances that have no connection left.
    pub fn tidy(&self) {
        self.lock().retain(|_, kept| {
            kept.retain(|it| !it.sender.is_closed() && it.since.elapsed() < IDLE_FOR_SAFE);
            !kept.is_empty()
        });
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials an instance, or a place outside, within `patience`.
pub async fn connect(address: &Address, patience: Duration) -> Result<Stream, Failure> {
    let dialled = async {
        match address {
            Address::Tcp { address } => Stream::tcp(TcpStream::connect(address).await?),
            Address::External { host, port } => {
                Stream::tcp(TcpStream::connect((host.as_str(), *port)).await?)
            }
            Address::Unix { path } => Ok(Stream::unix(UnixStream::connect(path).await?)),
        }
    };
    match tokio::time::timeout(patience, dialled).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Failure::unreachable(format!("connecting: {error}"))),
        Err(_) => Err(Failure::unreachable(format!(
            "connecting took more than {} ms",
            patience.as_millis()
        ))),
    }
}

async fn connect_http(
    address: &Address,
    patience: Duration,
    buffer_bytes: usize,
) -> Result<Idle, Failure> {
    let stream = connect(address, patience).await?;
    let watch = stream.watch();
    let (sender, connection) = http1::Builder::new()
        .max_headers(MOST_HEADERS)
        .max_header_size(MOST_HEADER_BYTES)
        .max_buf_size(buffer_bytes)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::unreachable(chain(&error)))?;
    tokio::spawn(async move {
        // Its errors reach the request that waits.
        let _ = connection.await;
    });
    Ok(Idle {
        sender,
        watch,
        since: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::proxy::body::{Guards, ResponseBody};
    use crate::retry::LONGEST_DIAL;

    fn post() -> Request<RequestBody> {
        Request::post("/")
            .header("host", "x")
            .body(RequestBody::Empty)
            .unwrap()
    }

    /// Answers one request, and closes the connection when told to.
    fn answer_once(listener: &TcpListener, close: &Receiver<()>) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).unwrap();
        close.recv().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_unnoticed_is_found_out_before_the_first_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp {
            address: listener.local_addr().unwrap(),
        };
        let (close, closing) = sync_channel(1);
        let server = std::thread::spawn(move || answer_once(&listener, &closing));
        let instances = Arc::new(Instances::new(crate::proxy::stream::READ_BYTES));
        let (response, lease) = instances
            .send(&address, post(), true, LONGEST_DIAL)
            .await
            .unwrap();
        let guards = Guards {
            lease: Some(lease),
            ..Guards::default()
        };
        drop(ResponseBody::incoming(response.into_body(), guards));
        assert!(!instances.is_empty(), "the connection was kept");
        // Blocks the thread: the runtime has no chance to notice that the other end is gone.
        let kept = Instant::now();
        while kept.elapsed() <= SURELY_OPEN {
            std::thread::yield_now();
        }
        close.send(()).unwrap();
        server.join().unwrap();
        let failure = instances
            .send(&address, post(), true, LONGEST_DIAL)
            .await
            .err()
            .unwrap();
        assert_eq!(
            failure,
            Failure::not_begun("the connection had been closed")
        );
    }
}
