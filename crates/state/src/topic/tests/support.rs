//! A topic in this process, services that consume it, and a small HTTP client.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::ids::{ProjectName, ResourceName};
use model::state::{EngineFile, EngineSettings, EngineStatus, Retention, Subscription, Topic};
use model::units::{Bytes, Span};
use serde_json::Value;
use sqlite::testing::Disk;
use tokio::sync::{oneshot, watch};

use crate::admin;
use crate::topic::engine::{Clock, Engine};
use crate::topic::http::Door;
use crate::topic::{keep_going, status, storage};

/// The service that calls where no other is named.
pub const CALLER: &str = "puller";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until `condition` yields something.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        #[expect(clippy::disallowed_methods, reason = "the interval between two looks")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the engine is told.
pub fn file(attempts: u32, consumers: &[(&str, u32, &Service)]) -> EngineFile {
    let name = |name: &str| ResourceName::new(name).unwrap();
    let subscription = |max_in_flight| Subscription {
        path: "/events".to_owned(),
        max_in_flight,
        timeout: Span::milliseconds(1500),
    };
    let subscriptions = consumers
        .iter()
        .map(|(consumer, width, _)| (name(consumer), subscription(*width)));
    let doors = consumers
        .iter()
        .map(|(consumer, _, service)| (name(consumer), service.address));
    EngineFile {
        project: ProjectName::new("shop").unwrap(),
        name: name("orders"),
        engine: model::state::Engine::Topic(Topic {
            attempts,
            retention: Retention {
                age: Span::seconds(3600),
                size: Bytes::mebibytes(64),
            },
        }),
        memory: Bytes::mebibytes(64),
        settings: EngineSettings {
            subscriptions: subscriptions.collect(),
            consumers: [name(CALLER)].into(),
            ..EngineSettings::default()
        },
        secret: None,
        doors: doors.collect(),
    }
}

pub fn with_retention(mut file: EngineFile, age: Span, size: Bytes) -> EngineFile {
    if let model::state::Engine::Topic(topic) = &mut file.engine {
        topic.retention = Retention { age, size };
    }
    file
}

/// The engine alone: nothing goes on beside it.
pub fn open(disk: &Disk, file: EngineFile, clock: Clock) -> Arc<Engine> {
    let mut options = storage::options("topic.db");
    options.testing.disk = Some(disk.clone());
    Engine::open(options, Arc::new(file), clock).unwrap()
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// The engine as a process would have it; dropped, it ends like one that is killed, except that its file is closed.
pub struct Running {
    pub engine: Option<Arc<Engine>>,
    pub address: SocketAddr,
    socket: PathBuf,
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl Running {
    /// On a disk of its own, in memory.
    pub fn start(file: EngineFile) -> Self {
        Self::on(&Disk::new(), file)
    }

    pub fn on(disk: &Disk, file: EngineFile) -> Self {
        Self::by(Clock::start(), disk, file)
    }

    pub fn by(clock: Clock, disk: &Disk, file: EngineFile) -> Self {
        let engine = open(disk, file, clock);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (kill, killed) = oneshot::channel();
        let (serving, socket_path) = (engine.clone(), socket.clone());
        let thread = std::thread::spawn(move || serve(serving, listener, socket_path, killed));
        until("the socket is there", || socket.exists().then_some(()));
        Self {
            engine: Some(engine),
            address,
            socket,
            kill: Some(kill),
            thread: Some(thread),
            _folder: Some(folder),
        }
    }

    pub fn told(&self, file: EngineFile) {
        self.engine().told(Arc::new(file));
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().unwrap()
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let caller = format!("shop/{CALLER}");
        let headers = [&[(model::traffic::CALLER, &*caller)][..], headers].concat();
        self.post_as_it_is(path, &headers, body)
    }

    pub fn post_as_it_is(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let stream = TcpStream::connect(self.address).unwrap();
        exchange(stream, "POST", path, headers, body)
    }

    pub fn post_json(&self, path: &str, body: Value) -> Answer {
        self.post(
            path,
            &[("content-type", "application/json")],
            &body.to_string(),
        )
    }

    /// Publishes one message with a key; its position.
    pub fn publish(&self, key: &str, body: &str) -> u64 {
        let mut headers = vec![("content-type", "text/plain")];
        if !key.is_empty() {
            headers.push(("ce-partitionkey", key));
        }
        let answer = self.post("/messages", &headers, body);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["positions"][0].as_u64().unwrap()
    }

    pub fn node(&self, method: &str, path: &str, body: &str) -> Answer {
        let stream = UnixStream::connect(&self.socket).unwrap();
        exchange(
            stream,
            method,
            path,
            &[("content-type", "application/json")],
            body,
        )
    }

    pub fn consumer(&self, name: &str) -> model::state::ConsumerStatus {
        let status = self.node("GET", "/status", "");
        let EngineStatus::Topic { consumers, .. } = serde_json::from_str(&status.text).unwrap()
        else {
            panic!("no topic");
        };
        consumers[&ResourceName::new(name).unwrap()].clone()
    }

    pub fn until_done(&self, consumer: &str) {
        until("the consumer is done", || {
            let status = self.consumer(consumer);
            (status.backlog == 0 && status.in_flight == 0).then_some(())
        });
    }
}

fn serve(
    engine: Arc<Engine>,
    listener: TcpListener,
    socket: PathBuf,
    killed: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let door = Door::new(engine.clone());
        let router = status::router(engine.clone(), door.clone());
        keep_going(&engine);
        let (_stop, stopping) = watch::channel(false);
        tokio::select! {
            () = door.serve(listener, stopping) => {}
            _ = admin::serve(&socket, router) => {}
            _ = killed => {}
        }
    });
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        drop(self.engine.take());
    }
}

pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: topic\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let length = body.len();
    let request = format!("{head}content-length: {length}\r\n\r\n{body}");
    // An answer may come before everything is sent.
    let _ = stream.write_all(request.as_bytes());
    let mut reader = BufReader::new(stream);
    let Head { first, fields } = read_head(&mut reader).expect("an answer");
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    let text = read_body(&mut reader, &fields);
    Answer { status, text }
}

struct Head {
    first: String,
    fields: BTreeMap<String, String>,
}

fn read_head(reader: &mut impl std::io::BufRead) -> Option<Head> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut fields = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(Head { first, fields });
        };
        fields.insert(name.to_lowercase(), value.to_owned());
    }
}

fn read_body(reader: &mut impl Read, fields: &BTreeMap<String, String>) -> String {
    let length = fields
        .get("content-length")
        .map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

/// A message as it came to a service.
#[derive(Debug, Clone)]
pub struct Received {
    pub position: u64,
    pub attempt: u32,
    pub key: Option<String>,
    pub body: String,
    pub headers: BTreeMap<String, String>,
}

/// What a service answers.
pub type Answering = dyn Fn(&Received) -> (u16, String) + Send + Sync;

/// A service that consumes.
pub struct Service {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    _listener: Option<Listening>,
}

struct Listening {
    stop: Arc<std::sync::atomic::AtomicBool>,
    address: SocketAddr,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        // Wakes who accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Service {
    pub fn start(answer: impl Fn(&Received) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), answer)
    }

    pub fn willing() -> Self {
        Self::start(|_| (204, String::new()))
    }

    /// Takes nothing before the gate opens.
    pub fn behind(gate: &Arc<Gate>) -> Self {
        let gate = gate.clone();
        Self::start(move |_| {
            gate.pass();
            (200, String::new())
        })
    }

    pub fn at(
        address: SocketAddr,
        answer: impl Fn(&Received) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (log, stopped) = (received.clone(), stop.clone());
        let answer: Arc<Answering> = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || attend(stream.unwrap(), &log, &*answer));
            }
        });
        Self {
            address,
            received,
            _listener: Some(Listening { stop, address }),
        }
    }

    /// An address where nobody listens.
    pub fn nobody() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
            _listener: None,
        }
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn positions(&self) -> Vec<u64> {
        let mut positions: Vec<u64> = self.received().iter().map(|one| one.position).collect();
        positions.sort_unstable();
        positions
    }

    pub fn until_received(&self, count: usize) -> Vec<Received> {
        until("messages come", || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
    }
}

fn attend(stream: TcpStream, log: &Mutex<Vec<Received>>, answer: &Answering) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(Head { fields, .. }) = read_head(&mut reader) {
        let received = Received {
            position: fields["ce-position"].parse().unwrap(),
            attempt: fields["ce-attempt"].parse().unwrap(),
            key: fields.get("ce-partitionkey").cloned(),
            body: read_body(&mut reader, &fields),
            headers: fields,
        };
        log.lock().unwrap().push(received.clone());
        let (status, body) = answer(&received);
        let length = body.len();
        let text = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}");
        // A 204 has no body, and no length either.
        let text = match status {
            204 => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            _ => text,
        };
        if writer.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// Holds back who passes, until it is opened.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn pass(&self) {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
    }

    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}
