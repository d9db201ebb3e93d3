//! The client's connection below HTTP: what its last moments need.
//!
//! The HTTP library answers what it can't read by a bare status; here that becomes a problem which names the limit or the character. And a
//! connection that is closed while the client still sends takes the answer with it (the kernel resets it), so what still comes is read for a while.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::client::ClientStream;
use super::shares::Keeper;
use super::wire::{MOST_HEADER_BYTES, MOST_HEADERS};
use crate::problem::{Code, Problem};

/// Of a request's beginning, to say what is wrong with it.
const KEPT_BYTES: usize = 2048;
/// The library's own answer is no longer than this.
const LONGEST_BARE: usize = 256;
/// As long as nginx lingers by default: 5 s without a byte, 30 s in all.
const LINGER_IDLE: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_secs(30);
const LINGER_BUFFER: usize = 16 * 1024;

/// How far the exchange on a connection is. A request makes it `UNDER_WAY`; when the library has all of the answer it is `HANDED_OVER`; and when all of
/// that is written, `NONE`.
const NONE: u8 = 0;
const UNDER_WAY: u8 = 1;
const HANDED_OVER: u8 = 2;

/// What the two ends of the HTTP library, its stream and its service, know of each other.
pub struct Talk {
    /// Requests that were read.
    requests: AtomicU32,
    exchange: AtomicU8,
    /// The last answer may come before the client has sent all.
    lingers: AtomicBool,
    returned: Mutex<Option<ClientStream>>,
    /// Of the connection's place: it is not given up while an exchange is under way.
    keeper: Keeper,
}

/// An exchange whose answer is being passed on, until this is dropped.
pub struct UnderWay(Arc<Talk>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.exchange.store(HANDED_OVER, Relaxed);
        self.0.keeper.end();
    }
}

impl Talk {
    pub fn new(keeper: Keeper) -> Self {
        Self {
            requests: AtomicU32::new(0),
            exchange: AtomicU8::new(NONE),
            lingers: AtomicBool::new(false),
            returned: Mutex::default(),
            keeper,
        }
    }

    /// A request has been read.
    pub fn request(&self) -> &Keeper {
        self.requests.fetch_add(1, Relaxed);
        self.exchange.store(UNDER_WAY, Relaxed);
        self.keeper.begin();
        &self.keeper
    }

    /// `last`: no other request will follow on this connection. What is returned lasts as long as the answer's body does.
    pub fn answer(self: &Arc<Self>, last: bool) -> UnderWay {
        if last {
            self.lingers.store(true, Relaxed);
        }
        UnderWay(self.clone())
    }

    fn flushed(&self) {
        let _ = self
            .exchange
            .compare_exchange(HANDED_OVER, NONE, Relaxed, Relaxed);
    }

    /// Once the library is done: reads and drops what still comes, until the client has ended as well or has had its time.
    pub async fn linger(&self) {
        if !self.lingers.load(Relaxed) {
            return;
        }
        let returned = self.returned.lock();
        let stream = returned.unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut stream) = stream else {
            return;
        };
        let end = Instant::now() + LINGER;
        let mut buffer = vec![0; LINGER_BUFFER];
        loop {
            let until = end.min(Instant::now() + LINGER_IDLE);
            match timeout_at(until, stream.read(&mut buffer)).await {
                Ok(Ok(count)) if count > 0 => {}
                _ => return,
            }
        }
    }
}

/// A client's stream.
pub struct Edge {
    /// `None` only while it is dropped.
    stream: Option<ClientStream>,
    talk: Arc<Talk>,
    /// The beginning of the request that is being read.
    kept: Vec<u8>,
    requests: u32,
    /// Written in place of a bare answer.
    instead: Option<Bytes>,
}

impl Edge {
    pub fn new(stream: ClientStream, talk: Arc<Talk>) -> Self {
        Self {
            stream: Some(stream),
            talk,
            kept: Vec::new(),
            requests: 0,
            instead: None,
        }
    }

    fn stream(&mut self) -> Pin<&mut ClientStream> {
        Pin::new(self.stream.as_mut().expect("it is there until the drop"))
    }

    fn keep(&mut self, bytes: &[u8]) {
        let requests = self.talk.requests.load(Relaxed);
        if requests != self.requests {
            self.requests = requests;
            self.kept.clear();
        }
        let room = KEPT_BYTES.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// What to write in place of `bytes`, when they are the library's own answer to what it could not read: it has one only where there is no exchange.
    /// Whatever else reads like one is part of an answer.
    fn in_place_of(&self, bytes: &[u8]) -> Option<Bytes> {
        if self.talk.exchange.load(Relaxed) != NONE {
            return None;
        }
        let status = bare_status(bytes)?;
        self.talk.lingers.store(true, Relaxed);
        Some(worded(bytes, &problem(status, &self.kept)))
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(instead) = self.instead.take() {
            let written = self.stream().poll_write(cx, &instead);
            let Poll::Ready(written) = written else {
                self.instead = Some(instead);
                return Poll::Pending;
            };
            let left = instead.slice(written?..);
            self.instead = (!left.is_empty()).then_some(left);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let mut returned = self.talk.returned.lock();
        let returned = returned.as_deref_mut();
        if let Ok(returned) = returned {
            *returned = self.stream.take();
        }
    }
}

/// The status of an answer that is nothing but a status.
fn bare_status(bytes: &[u8]) -> Option<u16> {
    let is_short_head = bytes.starts_with(b"HTTP/1.") && bytes.ends_with(b"\r\n\r\n");
    if bytes.len() > LONGEST_BARE || !is_short_head {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let is_bare =
        text.contains("\r\ncontent-length: 0\r\n") && text.contains("\r\nconnection: close\r\n");
    let status = text.split(' ').nth(1)?.parse().ok()?;
    (is_bare && matches!(status, 400 | 414 | 431)).then_some(status)
}

/// The bare answer with the problem for its body.
fn worded(bare: &[u8], problem: &Problem) -> Bytes {
    let bare = String::from_utf8_lossy(bare);
    let body = problem.to_json();
    let fields = format!(
        "\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n",
        body.len()
    );
    let head = bare.replacen("\r\ncontent-length: 0\r\n", &fields, 1);
    Bytes::from(head + &body)
}

fn problem(status: u16, kept: &[u8]) -> Problem {
    match status {
        431 => Problem::new(
            Code::HeadTooLarge,
            format!(
                "the head of the request is larger than {MOST_HEADER_BYTES} bytes, or has more than {MOST_HEADERS} fields"
            ),
        ),
        414 => Problem::new(
            Code::TargetTooLong,
            "the request's target is longer than 65534 bytes",
        ),
        _ => Problem::new(Code::RequestBroken, what_is_wrong(kept)),
    }
}

/// Of the first line the character that may not stand in a target; else of the fields the line that is none.
fn what_is_wrong(kept: &[u8]) -> String {
    let mut lines = kept.split(|&byte| byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let mut words = line.splitn(2, |&byte| byte == b' ');
    let method = words.next().unwrap_or_default();
    let rest = words.next().unwrap_or_default();
    let end = rest.iter().rposition(|&byte| byte == b' ');
    let target = &rest[..end.unwrap_or(rest.len())];
    if let Some(at) = target.iter().position(|byte| !may_stand_in_target(*byte)) {
        let byte = target[at];
        let shown = match byte {
            b' '..=b'~' => format!("`{}`", char::from(byte)),
            _ => "a byte that is no printable ASCII".to_owned(),
        };
        return format!(
            "the request's target has {shown} as its byte {}: it must be written as %{byte:02X}",
            at + 1
        );
    }
    if method.is_empty() || end.is_none() {
        return "the request's first line is not METHOD, target and HTTP/1.1".to_owned();
    }
    for (number, field) in lines.enumerate() {
        let field = field.strip_suffix(b"\r").unwrap_or(field);
        if field.is_empty() {
            break;
        }
        if !is_field(field) {
            return format!(
                "field {} of the request's head has no valid name, or a character that must not stand in its value",
                number + 1
            );
        }
    }
    "the request can't be read: its head is not as RFC 9112 wants it".to_owned()
}

fn is_field(field: &[u8]) -> bool {
    let Some(colon) = field.iter().position(|&byte| byte == b':') else {
        return false;
    };
    let (name, value) = field.split_at(colon);
    http::HeaderName::from_bytes(name).is_ok()
        && !value.iter().any(|&byte| byte < b' ' && byte != b'\t')
}

/// What RFC 3986 allows in a path or a query, and what the library takes besides.
fn may_stand_in_target(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(
            byte,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
        )
}

impl AsyncRead for Edge {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let edge = self.get_mut();
        let before = buffer.filled().len();
        ready!(edge.stream().poll_read(cx, buffer))?;
        edge.keep(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Edge {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let edge = self.get_mut();
        if edge.instead.is_none() {
            edge.instead = edge.in_place_of(bytes);
            if edge.instead.is_none() {
                return edge.stream().poll_write(cx, bytes);
            }
        }
        ready!(edge.poll_instead(cx))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let edge = self.get_mut();
        if edge.instead.is_none() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            edge.instead = first.and_then(|first| edge.in_place_of(first));
            if edge.instead.is_none() {
                // The head and what there is of the body leave by one call.
                return edge.stream().poll_write_vectored(cx, slices);
            }
        }
        ready!(edge.poll_instead(cx))?;
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let edge = self.get_mut();
        edge.talk.flushed();
        edge.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::proxy::shares::{Kind, Party, Shares};

    const BARE: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n";

    /// A connection's stream with what its service tells it, and the client.
    async fn edge() -> (Edge, Arc<Talk>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let (socket, from) = listener.accept().await.unwrap();
        let shares = Shares::new(40);
        let place = shares.take(Kind::Gateway, Party::client(from.ip()));
        let stream = ClientStream::patient(socket, place.unwrap());
        let talk = Arc::new(Talk::new(stream.keeper()));
        (Edge::new(stream, talk.clone()), talk, client)
    }

    /// What the client has of it.
    async fn written(edge: Edge, mut client: TcpStream) -> Vec<u8> {
        let talk = edge.talk.clone();
        drop(edge);
        drop(talk.returned.lock().unwrap().take());
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    /// What is written in place of the library's answer counts as all that was to be written.
    #[tokio::test]
    async fn a_bare_answer_is_replaced_however_it_is_written() {
        let (mut edge, _talk, client) = edge().await;
        let count = edge.write_vectored(&[IoSlice::new(BARE)]).await.unwrap();
        assert_eq!(count, BARE.len());
        let answer = written(edge, client).await;
        assert!(String::from_utf8_lossy(&answer).contains("request-broken"));
    }

    /// One system call and one packet for each answer, as the kernel counts them.
    #[tokio::test]
    async fn head_and_body_of_an_answer_leave_by_one_call() {
        let (mut edge, talk, client) = edge().await;
        for _ in 0..3 {
            talk.request();
            let _under_way = talk.answer(false);
            let slices = [HEAD, b"first, ", b"second"].map(IoSlice::new);
            let count = edge.write_vectored(&slices).await.unwrap();
            assert_eq!(count, HEAD.len() + 13);
            edge.flush().await.unwrap();
        }
        assert_eq!(written(edge, client).await.len(), 3 * (HEAD.len() + 13));
    }

    #[tokio::test]
    async fn only_the_library_is_given_words_and_never_an_answer() {
        // All of the answer is handed over with its head.
        let (mut edge, talk, client) = edge().await;
        talk.request();
        drop(talk.answer(true));
        edge.write_all(BARE).await.unwrap();
        assert_eq!(written(edge, client).await, BARE, "a head like that");

        // The body comes later, in pieces of which each is flushed.
        let (mut edge, talk, client) = self::edge().await;
        talk.request();
        let under_way = talk.answer(false);
        edge.write_all(HEAD).await.unwrap();
        edge.flush().await.unwrap();
        edge.write_all(BARE).await.unwrap();
        edge.flush().await.unwrap();
        // The last piece: the library has all of the answer before it writes that.
        drop(under_way);
        edge.write_all(BARE).await.unwrap();
        edge.flush().await.unwrap();
        // Interim answers.
        talk.request();
        edge.write_all(BARE).await.unwrap();
        drop(talk.answer(false));
        edge.write_all(HEAD).await.unwrap();
        edge.flush().await.unwrap();
        let passed = [HEAD, BARE, BARE, BARE, HEAD].concat();
        // And now the library's own.
        edge.write_all(BARE).await.unwrap();
        let text = written(edge, client).await;
        let own = text.strip_prefix(passed.as_slice()).expect("unchanged");
        assert!(String::from_utf8_lossy(own).contains("request-broken"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (kept, expected) in [
            (
                "GET /?q={\"a\":1} HTTP/1.1\r\nHost: a\r\n\r\n",
                "`{` as its byte 5: it must be written as %7B",
            ),
            ("GET /a b HTTP/1.1\r\n\r\n", "must be written as %20"),
            ("GET /k\u{e4}se HTTP/1.1\r\n\r\n", "no printable ASCII"),
            ("GARBAGE\r\n\r\n", "first line"),
            ("GET / HTTP/1.1\r\nHost: a\r\nno field\r\n\r\n", "field 2"),
            ("GET / HTTP/1.1\r\nA b: 1\r\n\r\n", "field 1"),
            ("GET / HTTP/3.7\r\n\r\n", "RFC 9112"),
        ] {
            let wrong = what_is_wrong(kept.as_bytes());
            assert!(wrong.contains(expected), "{kept:?}: {wrong}");
        }
    }

    #[test]
    fn only_the_librarys_own_answer_is_bare() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        assert_eq!(bare_status(bare.as_bytes()), Some(431));
        let worded = worded(bare.as_bytes(), &problem(431, b""));
        let worded = String::from_utf8(worded.to_vec()).unwrap();
        let (head, body) = worded.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{head}"
        );
        assert!(
            body.contains("65536 bytes") && body.contains("256 fields"),
            "{body}"
        );
        for other in [
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 4\r\n\r\n",
        ] {
            assert_eq!(bare_status(other.as_bytes()), None, "{other}");
        }
    }
}
