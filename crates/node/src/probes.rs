//! Asks an instance once how it does.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use compute::runtime::{ExecCommand, InstanceSpec, Runtime};
use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use model::compute::{Ask, ExitHow};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nobody listens there.
pub const REFUSED: &str = "connection refused";
/// A status line is shorter than this, with the informational answers before it.
const HEAD_MAX_BYTES: usize = 16 << 10;
/// For the last words of a failing program to be read.
const REST_PATIENCE: Duration = Duration::from_millis(100);
/// Of what a failing program said.
const SAID_MAX_BYTES: usize = 200;

/// Why there is no good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// What came instead.
    Answer(String),
    /// This node has no more of what it takes to ask, and why. Of the instance that says nothing.
    NotAsked(String),
}

impl From<String> for Failure {
    fn from(said: String) -> Self {
        Self::Answer(said)
    }
}

impl From<&str> for Failure {
    fn from(said: &str) -> Self {
        Self::Answer(said.to_owned())
    }
}

impl Failure {
    /// Of a connection, or of a file that leads to one.
    pub fn of_connecting(error: &io::Error) -> Self {
        match is_lack(error) {
            true => Self::NotAsked(error.to_string()),
            false => Self::Answer(error.to_string()),
        }
    }

    /// Of a program that was to be started beside the instance.
    fn of_executing(error: &compute::runtime::Error) -> Self {
        let source = match error {
            compute::runtime::Error::Io { source, .. } => Some(source),
            _ => None,
        };
        // What the kernel says where there may be no further process; as yet it is none of the instance's.
        let is_fork = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::AGAIN);
        match source.is_some_and(|error| is_lack(error) || is_fork(error)) {
            true => Self::NotAsked(error.to_string()),
            false => Self::Answer(error.to_string()),
        }
    }
}

/// Descriptors, memory or ports that this process, or this machine, has no more of.
fn is_lack(error: &io::Error) -> bool {
    use Errno as E;
    let lacks = [E::MFILE, E::NFILE, E::NOMEM, E::NOBUFS, E::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|error| lacks.contains(&error))
}

/// `engine` asks it, where it is one.
pub async fn ask(
    ask: &Ask,
    address: Option<SocketAddr>,
    timeout: Duration,
    runtime: &dyn Runtime,
    spec: impl FnOnce() -> Option<InstanceSpec>,
    engine: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let asking = async {
        let address = || address.ok_or("it has no address");
        match ask {
            Ask::None => Ok(()),
            Ask::Engine => engine.await,
            Ask::Connect => connect(address()?).await.map(drop),
            Ask::Http { path, host } => http(address()?, path, host.as_deref()).await,
            Ask::Exec { run } => exec(runtime, spec().ok_or("it does not run")?, run).await,
        }
    };
    match tokio::time::timeout(timeout, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis()).into()),
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => REFUSED.into(),
            _ => Failure::of_connecting(&error),
        })?;
    // A connection to a port of one's own range may meet itself when nobody listens.
    if stream.local_addr().ok() == Some(address) {
        return Err(REFUSED.into());
    }
    Ok(stream)
}

/// One request on a connection of its own; of the answer only the status line matters.
async fn http(address: SocketAddr, path: &str, host: Option<&str>) -> Result<(), Failure> {
    let mut stream = connect(address).await?;
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mainland-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let failed = |error: io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(256);
    while !is_told(&head) && head.len() < HEAD_MAX_BYTES {
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            break;
        }
    }
    match status(final_head(&head)) {
        Some(200..=399) => Ok(()),
        Some(other) => Err(format!("GET {path} answered {other}").into()),
        None => Err(format!("GET {path} was not answered in HTTP").into()),
    }
}

/// What follows the informational answers (100, 103) that may come before the one that counts. 101 is an answer.
fn final_head(mut head: &[u8]) -> &[u8] {
    while let Some(100 | 102..=199) = status(head) {
        let crlf = find(head, b"\r\n\r\n").map(|at| at + 4);
        let lf = find(head, b"\n\n").map(|at| at + 2);
        let Some(end) = crlf.into_iter().chain(lf).min() else {
            return &[];
        };
        head = &head[end..];
    }
    head
}

/// Whether the status line that counts is there.
fn is_told(head: &[u8]) -> bool {
    final_head(head).contains(&b'\n')
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}

pub fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.trim().parse().ok()
}

async fn exec(runtime: &dyn Runtime, spec: InstanceSpec, run: &[String]) -> Result<(), Failure> {
    let argv = run
        .iter()
        .map(|argument| compute::runtime::expand(argument, &spec.environment))
        .collect();
    let command = ExecCommand {
        argv,
        terminal: None,
        apart: true,
    };
    let mut session = runtime
        .exec(&spec, command)
        .await
        .map_err(|error| Failure::of_executing(&error))?;
    drop(session.input);
    let mut said = Vec::new();
    let mut ignored = tokio::io::sink();
    let output = tokio::io::copy(&mut session.output, &mut ignored);
    let error = async {
        let mut limited = (&mut session.error).take(SAID_MAX_BYTES as u64);
        let _ = limited.read_to_end(&mut said).await;
        tokio::io::copy(&mut session.error, &mut tokio::io::sink()).await
    };
    let exit = {
        let mut reading = std::pin::pin!(async { tokio::join!(output, error) }.fuse());
        let exit = tokio::select! {
            exit = session.exit => exit,
            () = async { let _ = (&mut reading).await; std::future::pending().await } => unreachable!("it is pending"),
        };
        // What it left in the background may hold the pipes open for ever.
        if !matches!(exit, Ok(ExitHow::Code { code: 0 })) && !reading.is_terminated() {
            let _ = tokio::time::timeout(REST_PATIENCE, reading).await;
        }
        exit
    };
    match exit.map_err(|error| error.to_string())? {
        ExitHow::Code { code: 0 } => Ok(()),
        how => {
            let said = String::from_utf8_lossy(&said);
            let said = said.lines().next().unwrap_or_default();
            let ended = plan::backoff::ended(&how);
            let told = format!("`{}`: {ended} {said}", run.join(" "));
            Err(told.trim_end().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_lacks_is_no_fault_of_who_is_asked() {
        let of = |error: Errno| io::Error::from(error);
        let executing = |error: Errno| compute::runtime::Error::Io {
            doing: "executing in",
            path: "/x".into(),
            source: of(error),
        };
        for (error, of_connection, of_program) in [
            (Errno::MFILE, true, true),
            (Errno::NFILE, true, true),
            (Errno::NOMEM, true, true),
            (Errno::NOBUFS, true, true),
            (Errno::ADDRNOTAVAIL, true, true),
            // Its queue of connections is full; this node can't fork.
            (Errno::AGAIN, false, true),
            (Errno::CONNREFUSED, false, false),
            (Errno::TIMEDOUT, false, false),
            (Errno::NOENT, false, false),
        ] {
            let is_own = |failure| matches!(failure, Failure::NotAsked(_));
            let connecting = Failure::of_connecting(&of(error));
            assert_eq!(is_own(connecting), of_connection, "{error:?}");
            let executing = Failure::of_executing(&executing(error));
            assert_eq!(is_own(executing), of_program, "{error:?}");
        }
        let gone = compute::runtime::Error::NotRunning("shop/web-1".parse().unwrap());
        assert!(matches!(Failure::of_executing(&gone), Failure::Answer(_)));
    }

    #[test]
    fn a_status_line_reads_like_a_table() {
        let table: [(&[u8], Option<u16>); 6] = [
            (b"HTTP/1.1 200 OK\r\n", Some(200)),
            (b"HTTP/1.0 503\r\n", Some(503)),
            (b"HTTP/1.1 204 \r\nX: y", Some(204)),
            (b"HTTP/2 200\r\n", None),
            (b"SSH-2.0-x\r\n", None),
            (b"", None),
        ];
        for (head, expected) in table {
            assert_eq!(status(head), expected, "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn the_answer_that_counts_comes_after_the_informational_ones() {
        let table: [(&[u8], bool, Option<u16>); 7] = [
            (b"HTTP/1.1 200 OK\r\n", true, Some(200)),
            (b"HTTP/1.1 100 Continue\r\n", false, None),
            (b"HTTP/1.1 100 Continue\r\n\r\n", false, None),
            (
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
                true,
                Some(200),
            ),
            (b"HTTP/1.1 103 X\n\nHTTP/1.1 503 Y\n", true, Some(503)),
            (b"HTTP/1.1 101 Switching Protocols\r\n", true, Some(101)),
            (b"HTTP/1.1 103 X\r\n\r\ngarbage\n", true, None),
        ];
        for (head, told, expected) in table {
            let shown = String::from_utf8_lossy(head);
            assert_eq!(is_told(head), told, "{shown}");
            assert_eq!(status(final_head(head)), expected, "{shown}");
        }
    }

    /// One that answers each request as it is told, and what it was asked.
    async fn answering(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let count = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        (address, asked)
    }

    #[tokio::test]
    async fn a_probe_asks_for_the_name_it_is_given() {
        let answer = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        let (address, asked) = answering(answer).await;
        assert_eq!(http(address, "/up", Some("shop.example.org")).await, Ok(()));
        assert!(
            asked
                .await
                .unwrap()
                .contains("\r\nHost: shop.example.org\r\n")
        );
        let (address, asked) = answering("HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(http(address, "/up", None).await, Ok(()));
        assert!(
            asked
                .await
                .unwrap()
                .contains(&format!("\r\nHost: {address}\r\n"))
        );
    }
}
