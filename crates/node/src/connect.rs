//! One connection to an instance, for who may operate it: what they send goes to its port, what it answers comes back, both as frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::client::{Body, streamed};
use api::problem::Problem;
use api::stream::{BoxStream, Error, FRAME_MAX_BYTES, Frame, frames};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderValue, Response, header};
use hyper::body::Incoming;
use model::ids::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::listening;
use crate::socket;

/// Frames that the other side has not yet taken.
const FRAMES_MAX: usize = 16;
/// For the instance to accept.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
const READ_BYTES: usize = FRAME_MAX_BYTES / 4;

/// Dials first, so that an instance that does not accept is a problem and no broken connection.
pub async fn answer(
    agent: &Agent,
    id: &InstanceId,
    port: Option<&str>,
    body: Incoming,
) -> Result<Response<Body>, Box<Problem>> {
    let address = address(agent, id, port).await?;
    let dialled = tokio::time::timeout(DIAL_PATIENCE, TcpStream::connect(address)).await;
    let why = match dialled {
        Ok(Ok(stream)) => return Ok(carried(stream, frames(body))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it did not accept within {} s", DIAL_PATIENCE.as_secs()),
    };
    let title = format!("{} can't be reached at {address}: {why}", id.name);
    Err(Problem::unavailable("not-accepted", title).into())
}

/// Its own port, or another on which something of its service listens here.
async fn address(
    agent: &Agent,
    id: &InstanceId,
    port: Option<&str>,
) -> Result<SocketAddr, Box<Problem>> {
    let (own, named, uid) = agent.with(|core| {
        let desired = core.state.instance(id).map(|one| one.desired());
        let named = desired.map(|desired| core.named_ports(desired));
        let uid = desired.map(|desired| desired.uid);
        (core.ports.get(id).copied(), named.unwrap_or_default(), uid)
    });
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    if let Some(port) = port.and_then(|name| named.get(name)) {
        return Ok(SocketAddr::new(loopback, *port));
    }
    let asked = match (port, own) {
        (None, Some(own)) => return Ok(SocketAddr::new(loopback, own)),
        (None, None) => return Err(no_port(id, "it has no port yet")),
        (Some(text), _) => text.parse::<u16>().ok().filter(|port| *port != 0),
    };
    let Some(asked) = asked else {
        let text = port.unwrap_or_default();
        let known: Vec<_> = named.keys().map(|name| name.as_str()).collect();
        let known = match known.is_empty() {
            true => "it has none with a name".to_owned(),
            false => format!("its ports are {}", known.join(", ")),
        };
        return Err(no_port(id, &format!("it has no port `{text}`: {known}")));
    };
    if own == Some(asked) {
        return Ok(SocketAddr::new(loopback, asked));
    }
    let own_uid = rustix::process::geteuid().as_raw();
    let uid = uid.filter(|_| agent.is_root).unwrap_or(own_uid);
    // The kernel's tables have a line for each connection of the machine: with many, reading them takes its time.
    let found = tokio::task::spawn_blocking(move || listens_at(asked, uid)).await;
    if let Ok(Some(ip)) = found {
        return Ok(SocketAddr::new(ip, asked));
    }
    let service = agent.with(|core| {
        let instance = core.state.instance(id);
        instance.map(|instance| instance.desired().service.to_string())
    });
    let service = service.unwrap_or_default();
    Err(no_port(
        id,
        &format!("nothing of {service} listens on port {asked}"),
    ))
}

fn no_port(id: &InstanceId, why: &str) -> Box<Problem> {
    let title = format!("{} can't be reached: {why}", id.name);
    let problem = Problem::new(422, "no-such-port", title);
    problem
        .remedy("leave the port out for the one that its PORT names")
        .into()
}

/// Where a socket of `uid` listens on a port of this machine, if one does.
fn listens_at(port: u16, uid: u32) -> Option<IpAddr> {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let tables = [
        ("/proc/net/tcp", loopback),
        ("/proc/net/tcp6", Ipv6Addr::LOCALHOST.into()),
    ];
    tables.into_iter().find_map(|(table, ip)| {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        let found = listener(&text, port, uid)?;
        // One on all addresses answers at either.
        Some(if found.is_any { loopback } else { ip })
    })
}

/// A socket that listens.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    /// On every address of both kinds, not on one.
    is_any: bool,
}

/// Whether a socket of `uid` listens on a port, by a table of the kernel.
fn listener(table: &str, port: u16, uid: u32) -> Option<Listener> {
    let is_it = |it: &listening::Listener| it.address.port() == port && it.uid == uid;
    let found = listening::listeners(table).find(is_it)?;
    Some(Listener {
        is_any: found.address.ip().is_unspecified(),
    })
}

type Frames = BoxStream<Result<Frame, Error>>;

fn carried(stream: TcpStream, frames: Frames) -> Response<Body> {
    let _ = stream.set_nodelay(true);
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(converse(stream, frames, sender));
    let mut response = Response::new(streamed(socket::into_stream(receiver)));
    let frames = HeaderValue::from_static("application/vnd.mainland.frames");
    response.headers_mut().insert(header::CONTENT_TYPE, frames);
    response
}

/// Carries both ways until both have ended, or who asked is gone: nobody takes what comes then. Where their words break off before their end the
/// connection is reset at once, and not closed: half a message must not pass for a whole one.
async fn converse(mut stream: TcpStream, frames: Frames, sender: mpsc::Sender<Bytes>) {
    let is_whole = AtomicBool::new(false);
    let (reader, writer) = stream.split();
    let sending = send(frames, writer, &is_whole);
    let receiving = async {
        receive(reader, &sender).await;
        Ok(())
    };
    tokio::select! {
        _ = async { tokio::try_join!(sending, receiving) } => {}
        () = sender.closed() => {}
    }
    if !is_whole.load(Ordering::Relaxed) {
        // Of a half of the connection alone nothing is reset: dropping that closes it.
        let _ = stream.set_zero_linger();
    }
}

/// Who asked broke off.
struct BrokenOff;

/// What the other side sends. `is_whole`: it said that this was all.
async fn send(
    mut frames: Frames,
    mut writer: WriteHalf<'_>,
    is_whole: &AtomicBool,
) -> Result<(), BrokenOff> {
    while let Some(Ok(frame)) = frames.next().await {
        match frame {
            // The instance takes no more. What it still says is taken.
            Frame::Stdin(bytes) if writer.write_all(&bytes).await.is_err() => return Ok(()),
            Frame::StdinClosed => {
                is_whole.store(true, Ordering::Relaxed);
                let _ = writer.shutdown().await;
                return Ok(());
            }
            _ => {}
        }
    }
    Err(BrokenOff)
}

/// What the instance answers, and how that ended.
async fn receive(mut reader: ReadHalf<'_>, sender: &mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        let read = (&mut reader)
            .take(READ_BYTES as u64)
            .read_buf(&mut buffer)
            .await;
        let frame = match read {
            Ok(0) => Frame::Exit { code: 0 },
            Ok(_) => Frame::Stdout(buffer.split().freeze()),
            Err(error) => Frame::Failed(error.to_string().into()),
        };
        let is_last = !matches!(frame, Frame::Stdout(_));
        if sender.send(frame.encode()).await.is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// What an instance reads when its caller says this, and then is gone.
    async fn read_of(said: Vec<Result<Frame, Error>>) -> std::io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (mut accepted, _) = listener.accept().await.unwrap();
        let (sender, _taken) = mpsc::channel(FRAMES_MAX);
        let frames = futures_util::stream::iter(said).boxed();
        tokio::spawn(converse(dialled.unwrap(), frames, sender));
        let mut read = Vec::new();
        accepted.read_to_end(&mut read).await?;
        Ok(read)
    }

    #[tokio::test]
    async fn half_a_message_does_not_pass_for_a_whole_one() {
        let half = || Ok(Frame::Stdin(Bytes::from_static(b"half")));
        let whole = read_of(vec![half(), Ok(Frame::StdinClosed)]).await;
        assert_eq!(whole.unwrap(), b"half");
        for broken in [
            vec![half()],
            vec![half(), Err(Error::Broken(String::new()))],
            vec![],
        ] {
            let read = read_of(broken).await;
            let reset = Some(std::io::ErrorKind::ConnectionReset);
            assert_eq!(read.map_err(|error| error.kind()).err(), reset);
        }
    }

    /// An instance that has said all still hears the rest.
    #[tokio::test]
    async fn either_way_ends_for_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (mut accepted, _) = listener.accept().await.unwrap();
        let (sender, mut taken) = mpsc::channel(FRAMES_MAX);
        let (say, said) = mpsc::channel::<Frame>(1);
        let frames = futures_util::stream::unfold(said, |mut said| async move {
            Some((Ok(said.recv().await?), said))
        });
        tokio::spawn(converse(dialled.unwrap(), frames.boxed(), sender));
        accepted.shutdown().await.unwrap();
        assert_eq!(taken.recv().await, Some(Frame::Exit { code: 0 }.encode()));
        say.send(Frame::Stdin(Bytes::from_static(b"rest")))
            .await
            .unwrap();
        say.send(Frame::StdinClosed).await.unwrap();
        let mut read = Vec::new();
        accepted.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"rest");
        assert_eq!(taken.recv().await, None);
    }

    #[test]
    fn who_listens_is_read_from_the_kernels_tables() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                  \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n\
                  \x20  1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     7        0 2 1 0 100 0 0 10 0\n\
                  \x20  2: 0100007F:0051 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     7        0 3 1 0 100 0 0 10 0\n";
        let v6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
                  \x20  0: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     7        0 9\n";
        let one = |is_any| Some(Listener { is_any });
        for (table, port, uid, expect) in [
            (v4, 8080, 1000, one(false)),
            (v4, 8080, 7, None),
            (v4, 80, 7, one(true)),
            // A connection is no listener.
            (v4, 81, 7, None),
            (v6, 81, 7, one(false)),
            (v6, 80, 7, None),
            ("", 80, 7, None),
        ] {
            assert_eq!(listener(table, port, uid), expect, "{port} of {uid}");
        }
    }
}
