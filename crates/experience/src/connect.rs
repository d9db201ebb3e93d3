//! A port of this machine that leads to a service. Each connection goes to a ready copy, by the API and the node's own connection to it: no port is
//! opened anywhere but here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::client::{Client, Error};
use api::stream::{BoxStream, FRAME_MAX_BYTES, Frame};
use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::stream;
use model::ids::{ProjectName, ResourceName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::failure::Failure;
use crate::{Globals, notice, output};

/// Connections at one time. Who comes next waits.
const CONNECTIONS_MAX: usize = 128;
/// Frames of one connection that wait to be sent.
const QUEUE: usize = 16;
const READ_BYTES: usize = FRAME_MAX_BYTES / 4;
/// For a program to end that was answered, and sends on.
const LINGER: Duration = Duration::from_secs(2);
/// After an accept that failed, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "It leads to the port that PORT names to the service, to one of its named ports, or by number to another on \
                  which the service's copies listen. Each connection goes \
                  to a copy that is ready; without one it is closed, and the reason is said. ctrl-C ends it.\n\n\
                  Examples:\n  mainland connect web\n  mainland connect web 9000\n  mainland connect broker:amqp 5672\n  \
                  mainland connect web 127.0.0.2:80"
)]
pub struct Connect {
    /// The service, and where that is not its PORT, the port by name or number
    #[arg(value_name = "SERVICE[:PORT]")]
    target: Target,
    /// Where to listen: a port of 127.0.0.1, or ADDRESS:PORT (default: any free port)
    #[arg(value_name = "LOCAL", value_parser = local)]
    local: Option<SocketAddr>,
}

/// What is led to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    service: ResourceName,
    port: Option<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Port {
    Number(NonZeroU16),
    Name(ResourceName),
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (service, port) = match text.split_once(':') {
            None => (text, None),
            Some((service, port)) => {
                let number = port.parse().map(Port::Number);
                let read = number.or_else(|_| port.parse().map(Port::Name));
                let read =
                    read.map_err(|_| format!("`{port}` is not a port: a name, or 1 to 65535"))?;
                (service, Some(read))
            }
        };
        let service = service.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { service, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.port {
            Some(port) => write!(f, "{}:{port}", self.service),
            None => write!(f, "{}", self.service),
        }
    }
}

fn local(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse::<u16>();
    let port = port.map(|port| SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), port));
    port.or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is not a place to listen: a port, or ADDRESS:PORT"))
}

impl Connect {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = Arc::new(globals.client()?);
        let project = globals.project(&client).await?;
        let way = Way {
            path: path(&project, &self.target).into(),
            client: Arc::new(Mutex::new(client)),
            globals: Arc::new(globals.clone()),
        };
        way.try_out().await?;
        let any = SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), 0);
        let asked = self.local.unwrap_or(any);
        let listener = TcpListener::bind(asked).await.map_err(|error| {
            let remedy = "name another port, or none: then a free one is taken";
            Failure::failed(format!(
                "{asked} can't be listened on: {error}\n  remedy: {remedy}"
            ))
        })?;
        let address = listener.local_addr().map_err(Failure::from_error)?;
        output::say(&format!(
            "{address} leads to {}; ctrl-C ends it",
            self.target
        ))?;
        if !address.ip().is_loopback() {
            notice(&format!(
                "whoever reaches {address} reaches {}",
                self.target
            ));
        }
        tokio::select! {
            () = serve(listener, way) => Ok(0),
            _ = tokio::signal::ctrl_c() => Ok(0),
        }
    }
}

fn path(project: &ProjectName, target: &Target) -> String {
    let query = target
        .port
        .as_ref()
        .map_or(String::new(), |port| format!("?port={port}"));
    format!(
        "/v1/projects/{project}/services/{}/connect{query}",
        target.service
    )
}

async fn serve(listener: TcpListener, way: Way) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let way = way.clone();
        tokio::spawn(async move {
            if let Err(failure) = way.carry(stream).await {
                notice(&failure.message);
            }
            drop(place);
        });
    }
}

/// How a copy is reached.
#[derive(Clone)]
struct Way {
    /// Made anew when the cloud was: its server has another token and authority then, and perhaps another address.
    client: Arc<Mutex<Arc<Client>>>,
    globals: Arc<Globals>,
    path: Arc<str>,
}

/// Whether a server that began anew answers so to who knows the one before.
fn may_be_another(error: &Error) -> bool {
    matches!(
        error,
        Error::Unreachable { .. } | Error::NotTheServer { .. }
    ) || error.code() == Some("unauthenticated")
}

type Answer = BoxStream<Result<Frame, api::stream::Error>>;

impl Way {
    /// Opens a connection and lets go of it: that there is no such service, port or ready copy is known before anything is listened on.
    async fn try_out(&self) -> Result<(), Failure> {
        let (frames, answer, _client) = self.open().await?;
        let _ = frames.send(Frame::StdinClosed).await;
        drop(answer);
        Ok(())
    }

    /// Over a connection to the server of its own: what waits in one that nobody reads holds up no other.
    async fn open(&self) -> Result<(mpsc::Sender<Frame>, Answer, Client), Failure> {
        let known = || self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let client = known().another();
        match self.open_by(client).await {
            Err(error) if may_be_another(&error) => {
                let Ok(client) = self.globals.client().map(Arc::new) else {
                    return Err(error.into());
                };
                let opened = self.open_by(client.another()).await?;
                *known() = client;
                Ok(opened)
            }
            other => Ok(other?),
        }
    }

    async fn open_by(
        &self,
        client: Client,
    ) -> Result<(mpsc::Sender<Frame>, Answer, Client), Error> {
        let (frames, queue) = mpsc::channel(QUEUE);
        let body = stream::unfold(queue, |mut queue| async move {
            let frame: Frame = queue.recv().await?;
            Some((frame.encode(), queue))
        });
        let answer = client.duplex(&self.path, body).await?;
        Ok((frames, answer, client))
    }

    async fn carry(&self, stream: TcpStream) -> Result<(), Failure> {
        let _ = stream.set_nodelay(true);
        match self.open().await {
            Ok((frames, answer, _client)) => converse(stream, frames, answer).await,
            Err(failure) => {
                // What was asked of it is not answered: that is no clean end.
                let _ = stream.set_zero_linger();
                Err(failure)
            }
        }
    }
}

/// How a conversation ends before both have said all.
enum Broken {
    /// Who dialled here is gone.
    Here,
    There(Failure),
}

/// Carries both ways until both have ended. What breaks off is reset at once and not closed: half an answer must not pass for a whole one.
async fn converse(
    mut stream: TcpStream,
    frames: mpsc::Sender<Frame>,
    mut answer: Answer,
) -> Result<(), Failure> {
    let (reader, writer) = stream.split();
    let carried = tokio::try_join!(send(reader, frames), take(&mut answer, writer));
    let Err(broken) = carried else {
        discard(&mut stream).await;
        return Ok(());
    };
    // Of a half of the connection alone nothing is reset: dropping that closes it.
    let _ = stream.set_zero_linger();
    match broken {
        Broken::Here => Ok(()),
        Broken::There(failure) => Err(failure),
    }
}

/// What a program still sends that the copy has no ear for. A connection that is closed with something unread takes the answer along that the
/// program has not read yet.
async fn discard(stream: &mut TcpStream) {
    let mut unread = [0; 4096];
    let discarding = async { while matches!(stream.read(&mut unread).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(LINGER, discarding).await;
}

/// What is typed here. That it breaks off ends the frames without a word, and the copy sees a broken connection too.
async fn send(mut reader: ReadHalf<'_>, frames: mpsc::Sender<Frame>) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        let mut room = (&mut reader).take(READ_BYTES as u64);
        let read = tokio::select! {
            read = room.read_buf(&mut buffer) => read,
            // The copy is gone, or takes no more.
            () = frames.closed() => return Ok(()),
        };
        let frame = match read {
            Ok(0) => Frame::StdinClosed,
            Ok(_) => Frame::Stdin(buffer.split().freeze()),
            Err(_) => return Err(Broken::Here),
        };
        let is_last = frame == Frame::StdinClosed;
        if frames.send(frame).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// What the copy answers.
async fn take(answer: &mut Answer, mut writer: WriteHalf<'_>) -> Result<(), Broken> {
    let broken = |why: &str| {
        let failure = Failure::failed(format!("a connection broke: {why}"));
        Err(Broken::There(failure))
    };
    while let Some(frame) = answer.next().await {
        match frame {
            Ok(Frame::Stdout(bytes)) => {
                if writer.write_all(&bytes).await.is_err() {
                    return Err(Broken::Here);
                }
            }
            Ok(Frame::Exit { .. }) => {
                let _ = writer.shutdown().await;
                return Ok(());
            }
            Ok(Frame::Failed(why)) => return broken(&String::from_utf8_lossy(&why)),
            Ok(_) => {}
            Err(error) => return broken(&error.to_string()),
        }
    }
    broken("the server is gone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// What a program reads here when this is what comes of the copy, and nothing more.
    async fn read_of(
        said: Vec<Frame>,
        is_whole: bool,
        sends: &'static [u8],
    ) -> std::io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (accepted, _) = listener.accept().await.unwrap();
        let mut dialled = dialled.unwrap();
        dialled.write_all(sends).await.unwrap();
        let (frames, taken) = mpsc::channel(1);
        // As of a copy that is gone: it hears nothing.
        drop(taken);
        // The program reads once all is on its way to it.
        let (is_said, mut all_said) = tokio::sync::watch::channel(false);
        let end = stream::once(async move {
            is_said.send_replace(true);
            Frame::Exit { code: 0 }
        });
        let said = stream::iter(said);
        let answer = match is_whole {
            true => said.chain(end).map(Ok).boxed(),
            false => {
                drop(end);
                said.map(Ok).boxed()
            }
        };
        let carrying = tokio::spawn(converse(accepted, frames, answer));
        let _ = all_said.wait_for(|said| *said).await;
        let mut read = Vec::new();
        let outcome = dialled.read_to_end(&mut read).await;
        drop(dialled);
        let _ = carrying.await.unwrap();
        outcome.map(|_| read)
    }

    #[tokio::test]
    async fn half_an_answer_does_not_pass_for_a_whole_one() {
        let half = || Frame::Stdout(Bytes::from_static(b"half"));
        let failed = Frame::Failed(Bytes::from_static(b"reset"));
        let whole = read_of(vec![half()], true, b"").await;
        assert_eq!(whole.unwrap(), b"half");
        for broken in [vec![half()], vec![half(), failed], vec![]] {
            let read = read_of(broken, false, b"").await;
            let reset = Some(std::io::ErrorKind::ConnectionReset);
            assert_eq!(read.map_err(|error| error.kind()).err(), reset);
        }
    }

    /// A copy that answers before it has heard all, and goes.
    #[tokio::test]
    async fn what_a_program_still_sends_costs_it_no_answer() {
        static UPLOAD: [u8; 65_536] = [0; 65_536];
        let said = vec![Frame::Stdout(vec![1; 65_536].into()); 4];
        let read = read_of(said, true, &UPLOAD).await;
        assert_eq!(read.unwrap().len(), 4 * 65_536);
    }

    #[test]
    fn what_is_led_to_is_read() {
        let number = |number| NonZeroU16::new(number).map(Port::Number);
        let name = |name: &str| name.parse().ok().map(Port::Name);
        for (text, expect) in [
            ("web", Ok(("web", None))),
            ("web:80", Ok(("web", number(80)))),
            ("web:admin", Ok(("web", name("admin")))),
            ("web:0", Err("`0` is not a port: a name, or 1 to 65535")),
            ("web:", Err("`` is not a port: a name, or 1 to 65535")),
            (
                "web:70000",
                Err("`70000` is not a port: a name, or 1 to 65535"),
            ),
        ] {
            let read: Result<Target, _> = text.parse();
            let read = read.map(|target| (target.service.to_string(), target.port));
            let expect = expect.map(|(name, port)| (name.to_owned(), port));
            assert_eq!(read, expect.map_err(str::to_owned), "{text}");
        }
        assert!("Web:80".parse::<Target>().is_err());
    }

    /// A server that takes this token alone.
    async fn server(token: &'static str) -> SocketAddr {
        use hyper_util::rt::{TokioExecutor, TokioIo};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = hyper::service::service_fn(
            move |request: http::Request<hyper::body::Incoming>| async move {
                let shown = request.headers().get(http::header::AUTHORIZATION);
                let is_known =
                    shown.is_some_and(|shown| shown == format!("Bearer {token}").as_str());
                let (status, body) = match is_known {
                    true => (200, String::new()),
                    false => {
                        let problem = api::problem::Problem::unauthenticated();
                        (401, serde_json::to_string(&problem).unwrap())
                    }
                };
                let answer = http::Response::builder().status(status);
                let body = http_body_util::Full::new(bytes::Bytes::from(body));
                Ok::<_, std::convert::Infallible>(answer.body(body).unwrap())
            },
        );
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_cloud_that_began_anew_is_found_again() {
        let data = tempfile::tempdir().unwrap();
        let leaves = |api: SocketAddr, token: &str| {
            let text = serde_json::json!({ "api": api, "token": token }).to_string();
            std::fs::write(data.path().join("client.json"), text).unwrap();
        };
        let mut globals = Globals::default();
        globals.data_dir = Some(data.path().to_owned());
        let first = server("first").await;
        leaves(first, "first");
        let way = Way {
            client: Arc::new(Mutex::new(Arc::new(globals.client().unwrap()))),
            globals: Arc::new(globals),
            path: "/v1/x".into(),
        };
        drop(way.open().await.expect("it is known there"));
        // One elsewhere, with another token; then the token alone is another.
        leaves(server("second").await, "second");
        drop(way.open().await.expect("the first goes on as it was"));
        let third = server("third").await;
        leaves(third, "wrong");
        *way.client.lock().unwrap() = Arc::new(way.globals.client().unwrap());
        let refused = way.open().await.map(drop).unwrap_err();
        assert!(refused.is("unauthenticated"), "{}", refused.message);
        leaves(third, "third");
        drop(way.open().await.expect("the newer token is shown"));
        // Nobody answers where it was.
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        leaves(gone.local_addr().unwrap(), "third");
        *way.client.lock().unwrap() = Arc::new(way.globals.client().unwrap());
        drop(gone);
        leaves(third, "third");
        drop(way.open().await.expect("the newer address is dialled"));
    }

    #[test]
    fn where_to_listen_is_read() {
        for (text, expect) in [
            ("8080", Some("127.0.0.1:8080")),
            ("0", Some("127.0.0.1:0")),
            ("127.0.0.2:80", Some("127.0.0.2:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("localhost:80", None),
            ("-1", None),
            ("65536", None),
        ] {
            let read = local(text).ok().map(|address| address.to_string());
            assert_eq!(read.as_deref(), expect, "{text}");
        }
    }
}
