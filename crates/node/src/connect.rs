//! One connection to an instance, for who may operate it: what they send goes to its port, what it answers comes back, both as frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::socket;

/// Frames that the other side has not yet taken.
const FRAMES_MAX: usize = 16;
/// For the instance to accept.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
const READ_BYTES: usize = FRAME_MAX_BYTES / 4;
/// The state of a socket that listens, as the kernel's tables write it.
const LISTENS: &str = "0A";

/// Dials first, so that an instance that does not accept is a problem and no broken connection.
pub async fn answer(
    agent: &Agent,
    id: &InstanceId,
    port: Option<&str>,
    body: Incoming,
) -> Result<Response<Body>, Box<Problem>> {
    let address = address(agent, id, port)?;
    let dialled = tokio::time::timeout(DIAL_PATIENCE, TcpStream::connect(address)).await;
    let why = match dialled {
        Ok(Ok(stream)) => return Ok(carried(stream, body)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it did not accept within {} s", DIAL_PATIENCE.as_secs()),
    };
    let title = format!("{} can't be reached at {address}: {why}", id.name);
    Err(Problem::unavailable("not-accepted", title).into())
}

/// Its own port, or another on which something of its service listens here.
fn address(agent: &Agent, id: &InstanceId, port: Option<&str>) -> Result<SocketAddr, Box<Problem>> {
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
    for (table, ip) in [
        ("/proc/net/tcp", loopback),
        ("/proc/net/tcp6", Ipv6Addr::LOCALHOST.into()),
    ] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        if let Some(listener) = listener(&text, asked, uid) {
            // One on all addresses answers at either.
            return Ok(SocketAddr::new(
                if listener.is_any { loopback } else { ip },
                asked,
            ));
        }
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

/// A socket that listens.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    /// On every address of both kinds, not on one.
    is_any: bool,
}

/// Whether a socket of `uid` listens on a port, by a table of the kernel (proc(5)).
fn listener(table: &str, port: u16, uid: u32) -> Option<Listener> {
    let own = format!("{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, found) = fields.next()?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let owner = fields.nth(3)?.parse::<u32>().ok()?;
        let is_it = found == own && state == LISTENS && owner == uid;
        is_it.then(|| Listener {
            is_any: address.bytes().all(|byte| byte == b'0'),
        })
    })
}

fn carried(stream: TcpStream, body: Incoming) -> Response<Body> {
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let gone = sender.clone();
    tokio::spawn(async move {
        let both = async {
            let sending = tokio::spawn(send(frames(body), writer));
            receive(reader, &sender).await;
            let _ = sending.await;
        };
        tokio::select! {
            () = both => {}
            // Who asked is gone: nobody takes what comes.
            () = gone.closed() => {}
        }
    });
    let mut response = Response::new(streamed(socket::into_stream(receiver)));
    let frames = HeaderValue::from_static("application/vnd.mainland.frames");
    response.headers_mut().insert(header::CONTENT_TYPE, frames);
    response
}

/// What the other side sends. Where its words break off the connection is reset and not closed: half a message must not pass for a whole one.
async fn send(mut frames: BoxStream<Result<Frame, Error>>, mut writer: OwnedWriteHalf) {
    while let Some(Ok(frame)) = frames.next().await {
        let is_open = match frame {
            Frame::Stdin(bytes) => writer.write_all(&bytes).await.is_ok(),
            Frame::StdinClosed => {
                let _ = writer.shutdown().await;
                false
            }
            _ => true,
        };
        if !is_open {
            return;
        }
    }
    let _ = writer.as_ref().set_zero_linger();
}

/// What the instance answers, and how that ended.
async fn receive(mut reader: OwnedReadHalf, sender: &mpsc::Sender<Bytes>) {
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
