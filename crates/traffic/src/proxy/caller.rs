//! Who owns the other end of a loopback connection: the kernel's inet_diag, asked for the one socket by its addresses.
//! `man 7 sock_diag`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// One answer is under 200 bytes.
const ANSWER_BYTES: usize = 8192;

/// The uid that owns the socket bound to `client` and connected to `server`; `None` when it is gone.
///
/// The kernel answers within the call; it blocks for about ten microseconds.
pub fn owner(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&request(client, server), 0)?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer, 0)?;
    read_answer(&answer, client)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn request(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (client, server) = (canonical(client), canonical(server));
    let family = match client.ip() {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    };
    let ask = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: client.port(),
            destination_port: server.port(),
            source_address: client.ip(),
            destination_address: server.ip(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(ask).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn read_answer(bytes: &[u8], client: SocketAddr) -> io::Result<Option<u32>> {
    let message =
        NetlinkMessage::<SockDiagMessage>::deserialize(bytes).map_err(io::Error::other)?;
    match message.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
            let header = &found.header;
            // A socket of IPv6 that speaks IPv4, as those of Java and gRPC do, is found by its IPv4 address and told as ::ffff:a.b.c.d.
            let address = header.socket_id.source_address.to_canonical();
            let exact = header.state != TCP_LISTEN
                && header.socket_id.source_port == client.port()
                && address == client.ip().to_canonical();
            Ok(exact.then_some(header.uid))
        }
        NetlinkPayload::Error(error) => match error.to_io() {
            gone if gone.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Err(other),
        },
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_loopback_connection_is_who_opened_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(server).unwrap();
        let client = stream.local_addr().unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert_eq!(owner(client, server).unwrap(), Some(me));
        // A socket for both families, as most runtimes open them.
        let both =
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        let std::net::IpAddr::V4(ip) = server.ip() else {
            unreachable!("it listens on IPv4");
        };
        let mapped = SocketAddr::new(ip.to_ipv6_mapped().into(), server.port());
        both.connect(&mapped.into()).unwrap();
        let client_of_both = both.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(owner(client_of_both, mapped).unwrap(), Some(me));
        let (_, seen) = listener.accept().and_then(|_| listener.accept()).unwrap();
        assert_eq!(owner(seen, server).unwrap(), Some(me));
        let nobody = SocketAddr::new(client.ip(), 1);
        assert_eq!(owner(nobody, server).unwrap(), None);
        // A listening socket on the client's address is not the client.
        assert_eq!(owner(server, nobody).unwrap(), None);
    }
}
