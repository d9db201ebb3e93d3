//! A server that says what a test wants: real TLS, real certificates, no decisions of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::client::{Body, streamed, whole};
use api::problem::Problem;
use api::stream::{BoxStream, Frame, json_line};
use api::wire;
use base64::Engine as _;
use boundary::authority::{Authority, Terms};
use boundary::token::JoinToken;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use model::boundary::{Holder, SpiffeId};
use model::compute::{DesiredInstance, InstanceReport};
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired, NodeEvent, Notice};
use model::ids::{Digest, Epoch, Generation, InstanceId, ResourceName};
use model::machine::{Disk, Programs};
use model::traffic::Road;
use tls::{ClientAuth, Expect};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub struct Server {
    pub address: SocketAddr,
    authority: Authority,
    identity: model::traffic::Identity,
    pub state: Mutex<State>,
    desired: watch::Sender<NodeDesired>,
    /// False: nothing is answered any more, and connections hang.
    answers: watch::Sender<bool>,
}

#[derive(Default)]
pub struct State {
    pub reports: BTreeMap<InstanceId, InstanceReport>,
    pub heartbeats: u64,
    pub mesh: Option<SocketAddr>,
    pub disk: Option<Disk>,
    pub programs: Option<Programs>,
    pub notices: Vec<Notice>,
    /// What it said that it has when it joined.
    pub joined_with: Option<Programs>,
    pub events: Vec<NodeEvent>,
    pub acknowledged: Generation,
    /// Why it follows a later one from memory alone.
    pub unkept: Option<model::control::Reason>,
    pub secrets: BTreeMap<ResourceName, Vec<u8>>,
    pub artifacts: BTreeMap<Digest, Bytes>,
    pub certified: u64,
    /// Certificates of the node that were asked for by its key.
    pub renewed: u64,
    /// So many of them are refused, since the server still waits for another place of the node.
    pub awaits: u64,
    /// The node is told that it is none any more.
    pub removed: bool,
    /// The node is told that its name is another's.
    pub left: bool,
    /// So many joins are done, and their answers lost.
    pub loses_joins: u64,
    /// Whatever token is shown, it was used already.
    pub refuses_joins: bool,
    /// Keys that joined, as they came.
    pub joined: Vec<model::boundary::KeyFingerprint>,
    /// What it said last that it could not forget.
    pub not_forgotten: Vec<model::ids::ResourceId>,
    pub asked_secrets: u64,
    pub watches: u64,
    pub epoch: u64,
    tunnel: Option<SendRequest<Body>>,
}

impl Server {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = Authority::generate("c1", Timestamp::now()).unwrap();
        let id = SpiffeId {
            cluster: "c1".to_owned(),
            holder: Holder::Server,
        };
        let identity = authority
            .identity(&id, &Terms::default(), Timestamp::now())
            .unwrap();
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            authority,
            identity,
            state: Mutex::new(State {
                epoch: 1,
                ..State::default()
            }),
            desired: watch::Sender::new(NodeDesired {
                generation: Generation {
                    epoch: Epoch(1),
                    counter: 1,
                },
                instances: Vec::new(),
                foreign: Vec::new(),
                road: Road {
                    complete: true,
                    ..Road::default()
                },
                forget_volumes: Vec::new(),
                removed: Default::default(),
            }),
            answers: watch::Sender::new(true),
        });
        tokio::spawn(server.clone().serve(listener));
        server
    }

    pub fn token(&self) -> String {
        let expires = Timestamp::now() + Duration::from_secs(600);
        JoinToken::generate(self.authority.fingerprint(), None, expires)
            .reveal()
            .to_string()
    }

    pub fn want(&self, instances: Vec<DesiredInstance>) {
        self.change(|desired| desired.instances = instances);
    }

    pub fn change(&self, change: impl FnOnce(&mut NodeDesired)) {
        self.desired.send_modify(|desired| {
            desired.generation.counter += 1;
            change(desired);
        });
    }

    /// Of what it said last.
    pub fn generation(&self) -> Generation {
        self.desired.borrow().generation
    }

    pub fn falls_silent(&self, silent: bool) {
        self.answers.send_replace(!silent);
    }

    pub fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub fn report(&self, name: &str) -> Option<InstanceReport> {
        self.look(|state| {
            state
                .reports
                .values()
                .find(|report| report.instance.name.as_str() == name)
                .cloned()
        })
    }

    /// Asks the node through its tunnel.
    pub async fn ask_node(&self, path: &str) -> Option<Bytes> {
        let mut sender = self.look(|state| state.tunnel.clone())?;
        let request = api::client::request(Method::GET, &format!("http://node{path}"), Vec::new());
        let answer = sender.send_request(request).await.ok()?;
        Some(answer.into_body().collect().await.ok()?.to_bytes())
    }

    /// Asks the node something whose answer goes on for as long as what is answered is kept.
    pub fn begin_to_ask_node(
        &self,
        path: &str,
    ) -> tokio::task::JoinHandle<Option<Response<Incoming>>> {
        let sender = self.look(|state| state.tunnel.clone());
        let request = api::client::request(Method::GET, &format!("http://node{path}"), "");
        tokio::spawn(async move { sender?.send_request(request).await.ok() })
    }

    /// Sends a node frames through its tunnel.
    pub async fn converse_with_node(
        &self,
        path: &str,
        body: Body,
    ) -> Option<BoxStream<Result<Frame, api::stream::Error>>> {
        let mut sender = self.look(|state| state.tunnel.clone())?;
        let mut request = api::client::request(Method::POST, &format!("http://node{path}"), "");
        *request.body_mut() = body;
        let answer = sender.send_request(request).await.ok()?;
        Some(api::stream::frames(answer.into_body()))
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let clock: boundary::Clock = Arc::new(Timestamp::now);
        let mut config = tls::server_config(
            &self.identity,
            self.authority.certificate(),
            ClientAuth::Optional,
            Expect::Anyone,
            clock,
        )
        .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (server, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request| server.clone().answer(request));
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn until_it_answers(&self) {
        let _ = self.answers.subscribe().wait_for(|answers| *answers).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        self.until_it_answers().await;
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').skip(1).collect();
        let response = match parts.as_slice() {
            ["join"] => {
                let join: wire::Join = body(request).await;
                self.look(|state| state.joined_with.clone_from(&join.programs));
                let key = boundary::authority::key_of_request(&join.request).unwrap();
                let lost = self.look(|state| {
                    state.joined.push(key);
                    let lost = state.loses_joins > 0;
                    state.loses_joins = state.loses_joins.saturating_sub(1);
                    lost
                });
                if lost {
                    std::future::pending::<()>().await;
                }
                if self.look(|state| state.refuses_joins) {
                    return Ok(refuses_join());
                }
                json(&self.joined(&join.request, Holder::Node(join.name)))
            }
            ["nodes", name, "renew"] => {
                let ask: wire::Renew = body(request).await;
                let awaits = self.look(|state| {
                    state.renewed += 1;
                    state.renewed <= state.awaits
                });
                match self.look(|state| state.removed) {
                    _ if awaits => {
                        let title = "node a ran elsewhere when it was last heard";
                        problem(&Problem::unavailable("node-awaited", title))
                    }
                    true => removed(),
                    false => json(&self.joined(&ask.request, Holder::Node(name.parse().unwrap()))),
                }
            }
            ["nodes", _, "certificates", project, service] => {
                let ask: wire::CertificateRequest = body(request).await;
                let holder = Holder::Service(format!("{project}/{service}").parse().unwrap());
                self.look(|state| state.certified += 1);
                json(&wire::CertificateAnswer {
                    certificate: self.joined(&ask.request, holder).certificate,
                })
            }
            ["nodes", _, "secrets", ..] => json(&self.secrets()),
            ["nodes", _, "heartbeat"] if self.look(|state| state.removed) => removed(),
            ["nodes", _, "heartbeat"] if self.look(|state| state.left) => {
                let title = "node a of this cluster has another key than this machine";
                problem(&Problem::new(410, "node-left", title))
            }
            ["nodes", _, "heartbeat"] => json(&self.hear(body(request).await)),
            ["nodes", _, "desired"] => self.watch(),
            ["nodes", _, "tunnel"] => self.tunnel(request),
            ["artifacts", digest] => self.artifact(digest.parse().unwrap(), request.uri().query()),
            _ => problem(&Problem::not_found(path)),
        };
        Ok(response)
    }

    fn joined(&self, request: &str, holder: Holder) -> wire::Joined {
        let id = SpiffeId {
            cluster: "c1".to_owned(),
            holder,
        };
        wire::Joined {
            cluster: "c1".to_owned(),
            authority: self.authority.certificate().to_owned(),
            certificate: self
                .authority
                .issue(request, &id, &Terms::default(), Timestamp::now())
                .unwrap(),
            at: None,
        }
    }

    fn secrets(&self) -> wire::SecretValues {
        let encode = |bytes: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(bytes);
        let values = self.look(|state| {
            state.asked_secrets += 1;
            state
                .secrets
                .iter()
                .map(|(name, value)| (name.clone(), encode(value)))
                .collect()
        });
        wire::SecretValues { values }
    }

    /// The rules of the wire are checked here: what is folded must have the digest that the node says.
    fn hear(&self, heartbeat: Heartbeat) -> HeartbeatAnswer {
        self.look(|state| {
            if heartbeat.full {
                state.reports.clear();
            }
            for id in &heartbeat.gone {
                state.reports.remove(id);
            }
            state.reports.extend(
                heartbeat
                    .changed
                    .into_iter()
                    .map(|report| (report.instance.clone(), report)),
            );
            state.heartbeats += 1;
            state.mesh = heartbeat.mesh;
            state.disk = heartbeat.disk;
            state.programs = heartbeat.programs;
            state.notices = heartbeat.notices;
            state.acknowledged = heartbeat.acknowledged;
            state.unkept = heartbeat.unkept;
            state.events.extend(heartbeat.events);
            state.not_forgotten = heartbeat.not_forgotten;
            let digest = model::control::observed_digest(state.reports.values());
            HeartbeatAnswer {
                epoch: Epoch(state.epoch),
                send_full: digest != heartbeat.digest,
            }
        })
    }

    fn watch(self: &Arc<Self>) -> Response<Body> {
        self.look(|state| state.watches += 1);
        let mut desired = self.desired.subscribe();
        desired.mark_changed();
        let stream = futures_util::stream::unfold(
            (self.clone(), desired),
            |(server, mut desired)| async move {
                desired.changed().await.ok()?;
                server.until_it_answers().await;
                let line = json_line(&*desired.borrow_and_update());
                Some((line, (server, desired)))
            },
        );
        Response::new(streamed(stream))
    }

    fn tunnel(self: &Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let server = self.clone();
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, driver) = builder
                .handshake(TokioIo::new(TokioIo::new(upgraded)))
                .await
                .unwrap();
            server.look(|state| state.tunnel = Some(sender));
            let _ = driver.await;
        });
        let mut response = Response::new(whole(Vec::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [("connection", "upgrade"), ("upgrade", "mainland-tunnel")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    }

    fn artifact(&self, digest: Digest, query: Option<&str>) -> Response<Body> {
        let offset = query
            .and_then(|query| query.strip_prefix("offset="))
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        match self.look(|state| state.artifacts.get(&digest).cloned()) {
            Some(bytes) => Response::new(whole(bytes.slice(offset..))),
            None => problem(&Problem::not_found(digest)),
        }
    }
}

fn refuses_join() -> Response<Body> {
    let title = "the join token is not known here, or was used already";
    problem(&Problem::new(401, "join-refused", title))
}

fn removed() -> Response<Body> {
    problem(&Problem::new(
        410,
        "node-removed",
        "node a was removed from this cluster",
    ))
}

async fn body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> T {
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    Response::new(whole(serde_json::to_vec(value).unwrap()))
}

fn problem(problem: &Problem) -> Response<Body> {
    let mut response = Response::new(whole(serde_json::to_vec(problem).unwrap()));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap();
    response
}
