//! A small world to test in: an authority, proxies in threads, instances, and a client that speaks HTTP by hand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use model::ids::{Epoch, Generation, ResourceId};
use model::traffic::*;
use model::units::Span;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};

pub const CLUSTER: &str = "c1";
/// No step of a test takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// At the gateway 160 of them, 40 of one client and 80 of one site; at doors 20 of one caller; at the mesh 20 of one peer, and 20 handshakes.
pub const FEW: usize = 400;

/// Waits until `condition` holds, with a deadline.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::yield_now();
    }
}

/// An address that nobody listens on; each comes from a loopback address of its own, so that tests never meet.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let ip = Ipv4Addr::new(127, 90 + (process >> 8) as u8 % 64, process as u8, number);
    let listener = TcpListener::bind((IpAddr::V4(ip), 0)).unwrap();
    listener.local_addr().unwrap()
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("spiffe://{CLUSTER}");
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn identity(&self, name: &str) -> Identity {
        self.identity_in(CLUSTER, name)
    }

    pub fn identity_in(&self, cluster: &str, name: &str) -> Identity {
        self.identity_from(CertificateParams::default(), cluster, name)
    }

    /// One that ends `seconds` from now, counted in whole seconds.
    pub fn identity_for(&self, name: &str, seconds: u64) -> Identity {
        let mut params = CertificateParams::default();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let end = Duration::from_secs(now.as_secs() + seconds);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
        self.identity_from(params, CLUSTER, name)
    }

    fn identity_from(&self, mut params: CertificateParams, cluster: &str, name: &str) -> Identity {
        let uri = format!("spiffe://{cluster}/{name}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// One node: its proxy in a thread, and the agent's end of the control socket.
pub struct Node {
    pub snapshot: ProxySnapshot,
    directory: Arc<tempfile::TempDir>,
    thread: Option<std::thread::JoinHandle<()>>,
    agent: Agent,
}

impl Node {
    pub fn start(authority: &Authority, name: &str) -> Self {
        Self::start_in(authority, name, Arc::new(tempfile::tempdir().unwrap()))
    }

    pub fn start_in(authority: &Authority, name: &str, directory: Arc<tempfile::TempDir>) -> Self {
        Self::run(authority, name, directory, None)
    }

    /// One that may have no more than [`FEW`] descriptors open, so that shares of them are small.
    pub fn start_small(authority: &Authority, name: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::run(authority, name, directory, Some(FEW))
    }

    fn run(
        authority: &Authority,
        name: &str,
        directory: Arc<tempfile::TempDir>,
        descriptors: Option<usize>,
    ) -> Self {
        let (thread, agent) = run_proxy(directory.path(), descriptors);
        Self {
            snapshot: empty_snapshot(authority, name),
            directory,
            thread: Some(thread),
            agent,
        }
    }

    /// Holds the certificate of `service` and a door from it to `need`.
    pub fn door(
        &mut self,
        authority: &Authority,
        caller: &str,
        need: &str,
        protocol: Protocol,
    ) -> SocketAddr {
        let listen = free_address();
        let caller = id(caller);
        self.snapshot
            .trust
            .services
            .entry(caller.clone())
            .or_insert_with(|| authority.identity(&format!("service/{caller}")));
        self.snapshot.doors.push(Door {
            listen,
            caller,
            uid: 0,
            need: id(need),
            protocol,
            timeout: Span::seconds(10),
            once: false,
            undeclared: false,
        });
        listen
    }

    pub fn gateway(&mut self, routes: &[(&str, &str, &str)]) -> SocketAddr {
        let listen = free_address();
        self.snapshot.gateway = Some(Gateway {
            listen,
            routes: routes
                .iter()
                .map(|(host, path, to)| GatewayRoute {
                    host: (*host).to_owned(),
                    path: (*path).to_owned(),
                    to: id(to),
                })
                .collect(),
            trusted: Vec::new(),
            proxy_protocol: Vec::new(),
        });
        listen
    }

    pub fn runs(&mut self, instance: &str, service: &str, address: SocketAddr) -> Endpoint {
        self.snapshot.local.push(LocalInstance {
            instance: instance.parse().unwrap(),
            service: id(service),
            epoch: Epoch(1),
            address: Address::Tcp { address },
            protocol: Protocol::Http,
            max_in_flight: 64,
            gate: Gate::Open,
            uid: None,
            told_callers: false,
        });
        self.endpoint(instance)
    }

    pub fn endpoint(&self, instance: &str) -> Endpoint {
        Endpoint {
            instance: instance.parse().unwrap(),
            epoch: Epoch(1),
            node: self.snapshot.node.clone(),
            zone: self.snapshot.zone.clone(),
            region: self.snapshot.region.clone(),
            mesh: self.snapshot.mesh,
        }
    }

    pub fn lets_in(&mut self, callee: &str, from: &[&str], gateway: bool) {
        self.snapshot.callers.push(Callers {
            service: id(callee),
            from: from.iter().map(|from| id(from)).collect(),
            gateway,
        });
    }

    pub fn set_gate(&mut self, instance: &str, gate: Gate) {
        let local = self.snapshot.local.iter_mut();
        local
            .filter(|it| it.instance.to_string() == instance)
            .for_each(|it| it.gate = gate);
    }

    pub fn road(&mut self, service: &str, endpoints: Vec<Endpoint>) -> &mut Destination {
        self.snapshot
            .destinations
            .retain(|it| it.service != id(service));
        self.snapshot.destinations.push(Destination {
            service: id(service),
            protocol: Protocol::Http,
            traffic: TrafficOptions::default(),
            endpoints,
            external: Vec::new(),
        });
        self.snapshot.destinations.last_mut().unwrap()
    }

    /// Sends the snapshot and waits until it is in force.
    pub fn apply(&mut self) {
        self.snapshot.generation.counter += 1;
        let generation = self.snapshot.generation;
        let snapshot = Box::new(self.snapshot.clone());
        self.agent.send(&ToProxy::Snapshot { snapshot });
        self.agent.wait(
            "acknowledged",
            |told| matches!(told, FromProxy::Acknowledged { generation: at, .. } if *at == generation),
        );
    }

    /// Sends the snapshot and returns why it was refused.
    pub fn apply_in_vain(&mut self) -> String {
        self.snapshot.generation.counter += 1;
        let snapshot = Box::new(self.snapshot.clone());
        self.agent.send(&ToProxy::Snapshot { snapshot });
        let told = self.wait("refused", |told| matches!(told, FromProxy::Refused { .. }));
        let FromProxy::Refused { error, .. } = told else {
            unreachable!()
        };
        error
    }

    pub fn wait(&mut self, what: &str, wanted: impl Fn(&FromProxy) -> bool) -> FromProxy {
        self.agent.wait(what, wanted)
    }

    /// Whether it has been told by now.
    pub fn has_told(&mut self, wanted: impl Fn(&FromProxy) -> bool) -> bool {
        let agent = &mut self.agent;
        agent.unheard.extend(agent.told.try_iter());
        agent.unheard.iter().any(wanted)
    }

    /// As an agent that was restarted.
    pub fn reconnect(&mut self) {
        self.agent = Agent::connect(&self.directory.path().join("control.sock"));
    }

    pub fn stop(&mut self) -> Arc<tempfile::TempDir> {
        if let Some(thread) = self.thread.take() {
            self.agent.send(&ToProxy::Stop {
                grace: Span::seconds(1),
            });
            thread.join().unwrap();
        }
        self.directory.clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn run_proxy(directory: &Path, descriptors: Option<usize>) -> (std::thread::JoinHandle<()>, Agent) {
    let options = traffic::proxy::Options {
        directory: directory.join("proxy"),
        control_socket: directory.join("control.sock"),
        workers: Some(2),
        descriptors,
    };
    let socket = options.control_socket.clone();
    let thread = std::thread::spawn(move || traffic::proxy::run(options).unwrap());
    (thread, Agent::connect(&socket))
}

fn empty_snapshot(authority: &Authority, name: &str) -> ProxySnapshot {
    ProxySnapshot {
        generation: Generation::default(),
        node: name.parse().unwrap(),
        zone: format!("zone-{name}").parse().unwrap(),
        region: "here".parse().unwrap(),
        mesh: free_address(),
        trust: Trust {
            removed: Default::default(),
            cluster: CLUSTER.to_owned(),
            authority: authority.pem(),
            node: authority.identity(&format!("node/{name}")),
            services: BTreeMap::new(),
        },
        gateway: None,
        destinations: Vec::new(),
        local: Vec::new(),
        callers: Vec::new(),
        doors: Vec::new(),
        enforce_uid: false,
        owners: Vec::new(),
        refusals: None,
    }
}

pub fn id(text: &str) -> ResourceId {
    text.parse().unwrap()
}

/// The agent's end of the control socket.
struct Agent {
    stream: UnixStream,
    told: mpsc::Receiver<FromProxy>,
    /// Told, and not waited for yet.
    unheard: Vec<FromProxy>,
}

impl Agent {
    fn connect(socket: &PathBuf) -> Self {
        let mut connected = None;
        eventually("the proxy listens for its agent", || {
            connected = UnixStream::connect(socket).ok();
            connected.is_some()
        });
        let stream = connected.unwrap();
        let (tell, told) = mpsc::sync_channel(65_536);
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self {
            stream,
            told,
            unheard: Vec::new(),
        }
    }

    fn send(&mut self, message: &ToProxy) {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        self.stream.write_all(&line).unwrap();
    }

    fn wait(&mut self, what: &str, wanted: impl Fn(&FromProxy) -> bool) -> FromProxy {
        if let Some(place) = self.unheard.iter().position(&wanted) {
            return self.unheard.remove(place);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let told = self
                .told
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("never told: {what}"));
            if wanted(&told) {
                return told;
            }
            self.unheard.push(told);
        }
    }
}

/// What an instance does with a request.
pub enum Act {
    Answer(&'static str),
    /// What it saw, head and body, as it came.
    Mirror,
    /// The first part at once, the second when the test lets go.
    Halves(&'static str, Arc<Mutex<mpsc::Receiver<()>>>, &'static str),
    /// These bytes as they are, then the connection is closed.
    Raw(Vec<u8>),
    Close,
    /// Waits until the test lets go (the sender is dropped), then answers.
    Hold(Arc<Mutex<mpsc::Receiver<()>>>, &'static str),
    /// Answers 101 and echoes from then on.
    Echo,
}

/// A request as an instance saw it.
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
}

/// A small HTTP/1.1 server with a thread per connection.
pub struct Instance {
    pub address: SocketAddr,
    requests: Arc<AtomicU32>,
    begun: Arc<Mutex<Vec<String>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Instance {
    pub fn start(act: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let address = free_address();
        let listener = TcpListener::bind(address).unwrap();
        let requests = Arc::new(AtomicU32::new(0));
        let begun = Arc::default();
        let (act, log) = (
            Arc::new(act),
            Log {
                begun: Arc::clone(&begun),
                whole: requests.clone(),
            },
        );
        let open = Arc::new(Mutex::new(Vec::new()));
        let opened = open.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (act, log) = (act.clone(), log.clone());
                opened.lock().unwrap().push(stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    converse(&stream, &*act, &log);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self {
            address,
            requests,
            begun,
            open,
        }
    }

    /// The kernel takes its connections; nobody reads them.
    pub fn nobody_reads(listener: &TcpListener) -> Self {
        Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            begun: Arc::default(),
            open: Arc::default(),
        }
    }

    /// Closes all connections, as servers do with those that have been idle for too long.
    pub fn hang_up(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn answering(text: &'static str) -> Self {
        Self::start(move |_| Act::Answer(text))
    }

    /// Whole requests.
    pub fn count(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    /// The request lines of all requests whose head came, since this was last asked.
    pub fn begun(&self) -> Vec<String> {
        std::mem::take(&mut self.begun.lock().unwrap())
    }
}

#[derive(Clone)]
struct Log {
    begun: Arc<Mutex<Vec<String>>>,
    whole: Arc<AtomicU32>,
}

fn converse(stream: &TcpStream, act: &dyn Fn(&Seen) -> Act, log: &Log) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let head = read_head(&mut reader)?;
        let line = head.lines().next()?.to_owned();
        log.begun.lock().unwrap().push(line);
        let body = read_body(&mut reader, &head)?;
        log.whole.fetch_add(1, Ordering::SeqCst);
        let answer = |mut writer: &TcpStream, text: &str| {
            let length = text.len();
            writer.write_all(
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").as_bytes(),
            )
        };
        let seen = Seen { head, body };
        match act(&seen) {
            Act::Answer(text) => answer(writer, text).ok()?,
            Act::Mirror => {
                let body = String::from_utf8_lossy(&seen.body);
                answer(writer, &format!("{}{body}", seen.head)).ok()?;
            }
            Act::Halves(first, gate, second) => {
                writer.write_all(first.as_bytes()).ok()?;
                let _ = gate.lock().unwrap().recv();
                writer.write_all(second.as_bytes()).ok()?;
            }
            Act::Raw(bytes) => {
                writer.write_all(&bytes).ok()?;
                return None;
            }
            Act::Close => return None,
            Act::Hold(gate, text) => {
                let _ = gate.lock().unwrap().recv();
                answer(writer, text).ok()?;
            }
            Act::Echo => {
                let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                writer.write_all(switch.as_bytes()).ok()?;
                std::io::copy(&mut reader, &mut writer).ok()?;
                return None;
            }
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && head != "\r\n" {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn read_body(reader: &mut impl BufRead, head: &str) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = header(head, "content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).ok()?;
    } else if header(head, "transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            if size == 0 {
                // Trailers belong to what was seen.
                body.extend_from_slice(read_head(reader).as_deref()?.trim_end().as_bytes());
                break;
            }
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            body.extend_from_slice(&chunk[..size]);
        }
    }
    Some(body)
}

/// What the client got.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A client's connection.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::connected(TcpStream::connect(address).unwrap())
    }

    /// From another loopback address than the usual one.
    pub fn connect_from(last: u8, address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let from = SocketAddr::from(([127, 0, 0, last], 0));
        socket.bind(&from.into()).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::connected(socket.into())
    }

    fn connected(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub fn send(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub fn receive_head(&mut self) -> Option<String> {
        read_head(&mut self.reader)
    }

    /// `None`: the connection ended before the answer did.
    pub fn receive(&mut self) -> Option<Answer> {
        let head = read_head(&mut self.reader)?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body = read_body(&mut self.reader, &head)?;
        Some(Answer {
            status,
            head,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    pub fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// One request on a connection of its own.
pub fn ask(address: SocketAddr, text: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(text);
    client.receive().expect("an answer")
}

pub fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
}

pub fn post(address: SocketAddr, host: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    ask(address, &text)
}

/// A peer proxy that takes a request and then moves no more: its whole runtime stands still.
pub struct SilentPeer {
    pub mesh: SocketAddr,
    pub requests: Arc<AtomicU32>,
}

impl SilentPeer {
    pub fn start(authority: &Authority, node: &str) -> Self {
        let mesh = free_address();
        let requests = Arc::new(AtomicU32::new(0));
        let config = Arc::new(silent_config(authority, node));
        let listener = TcpListener::bind(mesh).unwrap();
        listener.set_nonblocking(true).unwrap();
        let counter = requests.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = tokio_rustls::TlsAcceptor::from(config);
                let stream = acceptor.accept(stream).await.unwrap();
                let service = hyper::service::service_fn(|_| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    std::thread::park();
                    async { Err::<hyper::Response<String>, _>(std::io::Error::other("woken")) }
                });
                let _ =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await;
            });
        });
        Self { mesh, requests }
    }
}

/// A peer proxy of a version that knows one application protocol only, `h2`, and nothing of what came later. It answers how long a body was.
pub fn start_old_peer(authority: &Authority, node: &str) -> SocketAddr {
    let mesh = free_address();
    let mut config = silent_config(authority, node);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(mesh).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let stream = acceptor.accept(stream).await.unwrap();
                let service = hyper::service::service_fn(answer_length);
                let io = hyper_util::rt::TokioIo::new(stream);
                let executor = hyper_util::rt::TokioExecutor::new();
                let connection = hyper::server::conn::http2::Builder::new(executor);
                tokio::spawn(connection.serve_connection(io, service));
            }
        });
    });
    mesh
}

async fn answer_length(
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<hyper::Response<String>, hyper::Error> {
    use http_body_util::BodyExt;
    let headers = request.headers();
    let unknown = ["mainland-ticket", "mainland-is-taken"];
    let knows = unknown.iter().all(|name| !headers.contains_key(*name));
    let body = request.into_body().collect().await?.to_bytes();
    let mut answer = hyper::Response::new(body.len().to_string());
    if !knows {
        *answer.status_mut() = hyper::StatusCode::NOT_IMPLEMENTED;
    }
    Ok(answer)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Another proxy as a callee knows it: it opens connections, and asks or does not.
pub struct Caller {
    /// Of a thread that lives as long as the test's process.
    runtime: tokio::runtime::Handle,
    config: Arc<rustls::ClientConfig>,
}

/// One of its connections.
pub struct Connection {
    sender: hyper::client::conn::http2::SendRequest<String>,
    ended: tokio::task::JoinHandle<()>,
}

impl Connection {
    pub fn has_ended(&self) -> bool {
        self.ended.is_finished()
    }
}

impl Caller {
    pub fn new(authority: &Authority, identity: &Identity) -> Self {
        let clock: tls::Clock = Arc::new(jiff::Timestamp::now);
        let expect = tls::Expect::Dialled;
        let config = tls::client_config(identity, &authority.pem(), expect, clock);
        let mut config = config.unwrap();
        config.alpn_protocols = vec![b"mainland-narrow".to_vec()];
        let runtime = runtime();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Self {
            runtime: handle,
            config: Arc::new(config),
        }
    }

    pub fn connect(&self, to: &Node) -> Connection {
        let name = tls::name_of_node(&to.snapshot.node);
        let mesh = to.snapshot.mesh;
        let connector = tokio_rustls::TlsConnector::from(self.config.clone());
        let (tell, told) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let stream = tokio::net::TcpStream::connect(mesh).await.unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            let executor = hyper_util::rt::TokioExecutor::new();
            let io = hyper_util::rt::TokioIo::new(stream);
            let handshake = hyper::client::conn::http2::handshake(executor, io).await;
            let (sender, connection) = handshake.unwrap();
            let ended = tokio::spawn(async move { drop(connection.await) });
            tell.send(Connection { sender, ended }).unwrap();
        });
        told.recv_timeout(PATIENCE).expect("a connection")
    }

    /// Asks an instance in its first epoch; the status of the answer comes later.
    pub fn get(&self, on: &Connection, instance: &str) -> mpsc::Receiver<u16> {
        let service = instance.rsplit_once('-').unwrap().0;
        let request = hyper::Request::get("http://mesh/")
            .header("host", "x")
            .header("mainland-service", service)
            .header("mainland-instance", instance)
            .header("mainland-epoch", "1")
            .body(String::new())
            .unwrap();
        let mut sender = on.sender.clone();
        let (tell, told) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let answer = sender.send_request(request).await;
            tell.send(answer.map_or(0, |answer| answer.status().as_u16()))
        });
        told
    }
}

fn silent_config(authority: &Authority, node: &str) -> rustls::ServerConfig {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let identity = authority.identity(&format!("node/{node}"));
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // It takes whatever application protocol it is offered.
    rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// An instance that speaks no HTTP: it reads to the end, then answers what it read, backwards.
pub fn start_tcp_instance() -> SocketAddr {
    let address = free_address();
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes.reverse();
                stream.write_all(&bytes).unwrap();
            });
        }
    });
    address
}
