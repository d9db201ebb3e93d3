//! Connections and exchanges over HTTP/1.1.
//!
//! A request goes onto the wire at most once. One that a closed connection handed back unwritten takes the next connection: that is no retry,
//! the shop has seen nothing of it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// A page of a ledger has 5000 rows of some hundred bytes.
const BODY_MAX: usize = 32 << 20;
/// Servers close what is idle; a request that meets such a close on the wire would count as failed through no fault of the shop.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Files that are not connections.
const OTHER_FILES: u64 = 64;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Where the shop is.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: SocketAddr,
    /// The `Host` that is asked for.
    pub host: HeaderValue,
}

/// What to ask.
#[derive(Debug)]
pub enum Question {
    Get(String),
    /// A checkout with its key and JSON body.
    Checkout {
        key: String,
        body: Bytes,
    },
}

/// What came back, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// No whole answer: whether the request was done is unknown.
#[derive(Debug, Error)]
pub enum Unanswered {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection was free in time")]
    Busy,
    #[error("can't connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[source] hyper::Error),
    #[error("the answer broke off: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A bounded pool of connections to one address, each with one request at a time.
pub struct Client {
    target: Target,
    permits: Semaphore,
    /// The most recently used last, so that the others grow old and go.
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

impl Client {
    pub fn new(target: Target, connections: usize) -> Self {
        let connections = connections.min(files_allowed());
        Self {
            target,
            permits: Semaphore::new(connections),
            idle: RefCell::default(),
        }
    }

    /// Asks once, until the deadline.
    pub async fn ask(&self, question: Question, deadline: Instant) -> Result<Answer, Unanswered> {
        let permit = tokio::time::timeout_at(deadline, self.permits.acquire());
        let _permit = permit.await.map_err(|_| Unanswered::Busy)?;
        let exchange = self.exchange(self.request(question));
        let answer = tokio::time::timeout_at(deadline, exchange).await;
        answer.unwrap_or(Err(Unanswered::Timeout))
    }

    fn request(&self, question: Question) -> Request<Full<Bytes>> {
        let (method, path, body) = match &question {
            Question::Get(path) => (Method::GET, path.as_str(), Bytes::new()),
            Question::Checkout { body, .. } => (Method::POST, "/api/checkout", body.clone()),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("paths are made of what URIs allow");
        let headers = request.headers_mut();
        headers.insert(HOST, self.target.host.clone());
        if let Question::Checkout { key, .. } = &question {
            let key = HeaderValue::from_str(key).expect("keys are hexadecimal");
            headers.insert(IDEMPOTENCY_KEY, key);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        request
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, Unanswered> {
        while let Some(mut sender) = self.reusable().await {
            match sender.try_send_request(request).await {
                Ok(response) => return self.read(response, sender).await,
                Err(mut error) => match error.take_message() {
                    Some(unwritten) => request = unwritten,
                    None => return Err(Unanswered::Broken(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await;
        self.read(response.map_err(Unanswered::Broken)?, sender)
            .await
    }

    async fn read(
        &self,
        response: http::Response<hyper::body::Incoming>,
        sender: SendRequest<Full<Bytes>>,
    ) -> Result<Answer, Unanswered> {
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(Unanswered::Body)?.to_bytes();
        let since = Instant::now();
        self.idle.borrow_mut().push(Idle { sender, since });
        Ok(Answer { status, body })
    }

    async fn reusable(&self) -> Option<SendRequest<Full<Bytes>>> {
        loop {
            let idle = self.idle.borrow_mut().pop()?;
            if idle.since.elapsed() > IDLE_MAX {
                // All others are older.
                self.idle.borrow_mut().clear();
                return None;
            }
            let mut sender = idle.sender;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Unanswered> {
        let stream = TcpStream::connect(self.target.address).await;
        let stream = stream.map_err(Unanswered::Connect)?;
        stream.set_nodelay(true).map_err(Unanswered::Connect)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(Unanswered::Broken)?;
        tokio::task::spawn_local(driver);
        Ok(sender)
    }
}

/// How many connections this process may have, after it has asked for all that it may ask for.
fn files_allowed() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let files = allowed.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    usize::try_from(files)
        .unwrap_or(usize::MAX)
        .clamp(1, Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::Ipv4Addr;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::tests::run;

    /// Answers each connection's first request and closes without a word. Counts all requests.
    async fn curt_server(listener: TcpListener, seen: Rc<Cell<u32>>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            if stream.read(&mut request).await.unwrap() > 0 {
                seen.set(seen.get() + 1);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
        }
    }

    #[test]
    fn a_connection_that_closed_in_silence_costs_no_request() {
        run(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let target = Target {
                address: listener.local_addr().unwrap(),
                host: HeaderValue::from_static("shop.localhost"),
            };
            let seen = Rc::new(Cell::new(0));
            tokio::task::spawn_local(curt_server(listener, seen.clone()));
            let client = Client::new(target, 4);
            for number in 1..=50 {
                let deadline = Instant::now() + Duration::from_secs(10);
                let answer = client.ask(Question::Get("/".to_owned()), deadline).await;
                assert_eq!(answer.unwrap().status, StatusCode::OK, "request {number}");
                assert_eq!(seen.get(), number, "each is sent once");
                // The close has come before the next request leaves.
                while !client
                    .idle
                    .borrow()
                    .iter()
                    .all(|idle| idle.sender.is_closed())
                {
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    #[test]
    fn nobody_there_is_an_error() {
        run(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            drop(listener);
            let host = HeaderValue::from_static("shop.localhost");
            let client = Client::new(Target { address, host }, 4);
            let deadline = Instant::now() + Duration::from_secs(10);
            let answer = client.ask(Question::Get("/".to_owned()), deadline).await;
            assert!(matches!(answer, Err(Unanswered::Connect(_))), "{answer:?}");
        });
    }
}
