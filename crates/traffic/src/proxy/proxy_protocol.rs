//! The PROXY protocol, versions 1 and 2: before the first request a balancer says whose connection it passes on.
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1 (2.1), its end included.
const LONGEST_LINE: usize = 107;
/// Addresses and what else a balancer adds in version 2; the protocol allows 65,535.
const MOST_BYTES: usize = 4096;

/// Reads what stands before the first request, and not a byte more. `None`: the balancer speaks for itself (a health check), or does not know.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    // Both versions are longer than this.
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return read_binary(stream).await;
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(broken());
        }
        line.push(stream.read_u8().await?);
    }
    parse_line(&line).ok_or_else(broken)
}

async fn read_binary(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let [command, family] = [stream.read_u8().await?, stream.read_u8().await?];
    let length = usize::from(stream.read_u16().await?);
    if length > MOST_BYTES {
        return Err(broken());
    }
    let mut addresses = vec![0; length];
    stream.read_exact(&mut addresses).await?;
    parse_binary(command, family, &addresses).ok_or_else(broken)
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the connection does not begin with the PROXY protocol",
    )
}

/// The outer `None`: it is no such line.
#[expect(clippy::option_option, reason = "broken, unknown, known")]
fn parse_line(line: &[u8]) -> Option<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = line.split(' ');
    if words.next()? != "PROXY" {
        return None;
    }
    let is_four = match words.next()? {
        "UNKNOWN" => return Some(None),
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let [from, _to, port, _at] = [words.next()?, words.next()?, words.next()?, words.next()?];
    let from: IpAddr = from.parse().ok()?;
    let fits = from.is_ipv4() == is_four && words.next().is_none();
    let known = SocketAddr::new(from, port.parse().ok()?);
    fits.then_some(Some(known))
}

/// The outer `None`: it is not of version 2.
#[expect(clippy::option_option, reason = "broken, unknown, known")]
fn parse_binary(command: u8, family: u8, addresses: &[u8]) -> Option<Option<SocketAddr>> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const TCP_OVER_4: u8 = 0x11;
    const TCP_OVER_6: u8 = 0x21;
    let port = |at: usize| {
        Some(u16::from_be_bytes(
            addresses.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    match (command, family) {
        (LOCAL, _) => Some(None),
        (PROXY, TCP_OVER_4) => {
            let from: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            Some(Some(SocketAddr::new(Ipv4Addr::from(from).into(), port(8)?)))
        }
        (PROXY, TCP_OVER_6) => {
            let from: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            Some(Some(SocketAddr::new(
                Ipv6Addr::from(from).into(),
                port(32)?,
            )))
        }
        // Neither TCP nor an address of the internet.
        (PROXY, _) => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, and what is left for the first request.
    fn check(bytes: &[u8]) -> (Result<Option<String>, io::ErrorKind>, usize) {
        let mut left = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let read = runtime.block_on(read(&mut left));
        let read = read.map(|it| it.map(|it| it.to_string()));
        (read.map_err(|error| error.kind()), left.len())
    }

    #[test]
    fn lines_of_version_1() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        let known = |text: &str| Ok(Some(text.to_owned()));
        for (line, expected) in [
            (
                "PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n",
                known("192.0.2.1:56324"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 56324 443\r\n",
                known("[2001:db8::1]:56324"),
            ),
            ("PROXY UNKNOWN\r\n", Ok(None)),
            ("PROXY UNKNOWN ffff::1 ::1 1 2\r\n", Ok(None)),
            (
                "PROXY TCP6 192.0.2.1 10.0.0.1 56324 443\r\n",
                Err(InvalidData),
            ),
            (
                "PROXY TCP4 192.0.2.1 10.0.0.1 99999 443\r\n",
                Err(InvalidData),
            ),
            ("PROXY TCP4 192.0.2.1 10.0.0.1 1 2 3\r\n", Err(InvalidData)),
            ("PROXY TCP4 192.0.2.1\r\n", Err(InvalidData)),
            ("GET / HTTP/1.1\r\n", Err(InvalidData)),
            ("PROXY TCP4 192.0.2.1", Err(UnexpectedEof)),
        ] {
            let (read, left) = check(format!("{line}GET /").as_bytes());
            if expected == Err(UnexpectedEof) {
                assert_eq!(read, expected, "{line}");
                continue;
            }
            assert_eq!((read, left), (expected, 5), "{line}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        assert_eq!(check(long.as_bytes()).0, Err(InvalidData));
    }

    #[test]
    fn headers_of_version_2() {
        let header = |command: u8, family: u8, addresses: &[u8]| {
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend([command, family]);
            bytes.extend((addresses.len() as u16).to_be_bytes());
            bytes.extend(addresses);
            bytes.extend(b"GET /");
            bytes
        };
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0xdc, 0x04, 1, 187, 4, 0, 1, 9];
        let six: Vec<u8> = [0x20, 1, 0x0d, 0xb8]
            .into_iter()
            .chain([0; 11])
            .chain([7])
            .chain([0; 16])
            .chain([0, 80, 1, 187])
            .collect();
        let known = |text: &str| Ok(Some(text.to_owned()));
        let invalid = Err(io::ErrorKind::InvalidData);
        for (bytes, expected) in [
            (header(0x21, 0x11, &four), known("192.0.2.1:56324")),
            (header(0x21, 0x21, &six), known("[2001:db8::7]:80")),
            (header(0x20, 0x00, &[]), Ok(None)),
            (header(0x21, 0x31, &[0; 216]), Ok(None)),
            (header(0x21, 0x11, &four[..6]), invalid.clone()),
            (header(0x31, 0x11, &four), invalid),
        ] {
            assert_eq!(check(&bytes), (expected, 5), "{bytes:?}");
        }
        let long = header(0x21, 0x11, &[0; MOST_BYTES + 1]);
        assert_eq!(check(&long).0, Err(io::ErrorKind::InvalidData));
    }
}
