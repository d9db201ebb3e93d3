//! `agent`, `proxy`, `shim` and `shim-exec` as the binary has them, and `web`, a workload that answers over HTTP; `engine`, one
//! that is told what engines are told.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;
use model::machine::POSTGRES;
use model::signals::Stream;
use node::agent::Options;
use node::options::Given;
use signals::logs::{Limits, Writer};

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let kind = words.remove(0);
    match kind.to_str() {
        Some("shim") => compute::shim::run(&words, &|folder| open_sink(folder)),
        Some("shim-exec") => compute::shim::exec_main(&words),
        Some("shim-watchdog") => compute::shim::watchdog_main(&words),
        Some("proxy") => proxy(&words),
        Some("agent") => agent(&words),
        Some("web") => web(),
        Some("engine") => engine(&words),
        _ => ExitCode::from(2),
    }
}

struct LogSink(Writer);

fn open_sink(folder: &Path) -> io::Result<Box<dyn compute::shim::Sink>> {
    let writer = Writer::open(
        folder,
        Limits {
            files: 2,
            file_bytes: 1 << 20,
        },
    );
    Ok(Box::new(LogSink(writer.map_err(io::Error::other)?)))
}

impl compute::shim::Sink for LogSink {
    fn line(&mut self, at: Timestamp, stream: Stream, line: &[u8]) {
        let _ = self.0.append(at, stream, line);
    }
    fn piece(&mut self, at: Timestamp, stream: Stream, piece: &[u8]) {
        let _ = self.0.append_piece(at, stream, piece);
    }
    fn flush(&mut self) {
        let _ = self.0.flush();
    }
}

fn proxy(words: &[OsString]) -> ExitCode {
    let _ = rustix::process::setsid();
    let options = traffic::proxy::Options {
        directory: PathBuf::from(&words[0]),
        control_socket: PathBuf::from(&words[1]),
        workers: Some(1),
        descriptors: None,
    };
    match traffic::proxy::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// `agent DIR [NAME SERVER TOKEN BLOCK PORTS]`
fn agent(words: &[OsString]) -> ExitCode {
    let text = |index: usize| words.get(index).and_then(|word| word.to_str());
    let given = Given {
        name: text(1).map(|name| name.parse().expect("a name")),
        zone: text(1).map(|zone| zone.parse().expect("a zone")),
        server: text(2).map(|server| server.parse::<SocketAddr>().expect("an address")),
        join_token: text(3).map(str::to_owned),
        mesh_block: text(4).map(|block| block.parse().expect("a block")),
        ports: text(5).map(|ports| ports.parse().expect("ports")),
        ..Given::default()
    };
    let options = Options {
        data_dir: PathBuf::from(&words[0]),
        executable: std::env::current_exe().expect("a path"),
        version: "test".to_owned(),
        clock: Arc::new(Timestamp::now),
        programs: || BTreeMap::from([(POSTGRES.to_owned(), BTreeSet::from([15]))]),
        given,
    };
    let runtime = node::agent::runtime().expect("a runtime");
    let outcome = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).expect("a signal");
        node::agent::run(options, async move {
            let _ = terminate.recv().await;
        })
        .await
    });
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// `/env` answers its environment, `/volume` counts in a file, everything else `200` unless there is a file `sick`.
fn web() -> ExitCode {
    let port = std::env::var("PORT").expect("a port");
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("the port is free");
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || respond(stream));
    }
    ExitCode::SUCCESS
}

fn respond(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or("/");
    let (status, body) = match path {
        "/env" => (
            "200 OK",
            std::env::vars()
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect(),
        ),
        _ if Path::new("sick").exists() => ("500 Sick", String::new()),
        _ => (
            "200 OK",
            std::env::var("MAINLAND_INSTANCE").unwrap_or_default(),
        ),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// `/health` is good once there is a file `healthy` in its volume; everything else is answered with the request and what the engine was told.
fn engine(words: &[OsString]) -> ExitCode {
    let variable = |name| std::env::var(name).expect(name);
    if words[0] == "beside" {
        println!("beside {}", rustix::process::getuid().as_raw());
        return ExitCode::SUCCESS;
    }
    let socket = variable(model::state::ENGINE_SOCKET);
    let _ = std::fs::remove_file(&socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
    let file = PathBuf::from(variable(model::state::ENGINE_FILE));
    let healthy = Path::new(&variable("DATA_DIR")).join("healthy");
    for stream in listener.incoming().flatten() {
        let _ = answer_agent(stream, &file, &healthy);
    }
    ExitCode::SUCCESS
}

fn answer_agent(
    mut stream: std::os::unix::net::UnixStream,
    file: &Path,
    healthy: &Path,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut asked = vec![0; length];
    io::Read::read_exact(&mut reader, &mut asked)?;
    let (status, body) = match first.split(' ').nth(1) {
        Some("/health") if healthy.exists() => ("200 OK", String::new()),
        Some("/health") => ("503 Not Yet", "reads its log\nand more".to_owned()),
        _ => {
            let told = std::fs::read_to_string(file)?;
            let asked = String::from_utf8_lossy(&asked);
            ("200 OK", format!("{}\n{asked}\n{told}", first.trim()))
        }
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
