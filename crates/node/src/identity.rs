//! Who the node is, and as whom its services call: a key made here at the first start and kept for ever, and certificates for it, renewed long
//! before they end.
//!
//! The key is what counts. A certificate may end while the node, or all servers, are away: whoever holds the key is given another. So is asked
//! at each start, before anything on the machine is touched, which also tells whether the node was removed meanwhile, or runs elsewhere.

mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::client::{Client, Transport};
use api::problem::Problem;
use api::wire;
use boundary::Clock;
use boundary::authority::{Key, expires_at, needs_rotation};
use boundary::token::JoinToken;
use model::boundary::{Holder, KeyFingerprint};
use model::control::Place;
use model::ids::ResourceId;
use model::machine::Programs;
use model::timing::ASK_AGAIN_AFTER;
use model::traffic::Identity;
use serde::{Deserialize, Serialize};
use tls::Expect;

use crate::layout::{self, Layout};
use crate::options::Config;
use crate::pause::Pause;
use crate::removal::{AWAITED, TWICE};
use waiting::Waiting;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this node has not joined yet: its start needs a join token (MAINLAND_JOIN_TOKEN)")]
    NoToken,
    #[error("the join token can't be read: {0}")]
    Token(#[from] boundary::token::Error),
    #[error("the servers did not let this node in: {0}")]
    Refused(api::client::Error),
    #[error("the servers did not give a certificate: {0}")]
    Servers(#[from] api::client::Error),
    #[error("a key can't be made: {0}")]
    Key(#[from] boundary::authority::Error),
    #[error("a certificate can't be used: {0}")]
    Certificate(#[from] tls::Error),
    #[error("{0}")]
    Layout(#[from] layout::Error),
    #[error("{0}")]
    Twice(Box<Problem>),
}

/// How the servers see a node that begins.
pub enum Standing {
    /// True: a server has just said so.
    Known(bool),
    /// It is to run nothing.
    Removed(Box<Problem>),
}

/// At a start, for the servers to answer before the agent goes on with what it has.
const SERVERS_PATIENCE: Duration = Duration::from_secs(1);
/// Between two askings with a clock that is known to be wrong.
const CLOCK_PATIENCE: Duration = Duration::from_secs(600);
/// Clocks this far apart are told.
const CLOCKS_APART: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// `identity.json`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub cluster: String,
    pub authority: String,
    pub identity: Identity,
}

impl NodeIdentity {
    fn is_of_one_cluster_with(&self, other: &Self) -> bool {
        (&self.cluster, &self.authority) == (&other.cluster, &other.authority)
    }
}

/// Whose directory it is in: the same for every copy of it.
pub fn fingerprint(node: &NodeIdentity) -> Result<KeyFingerprint, Error> {
    Ok(Key::from_pem(&node.identity.key)?.fingerprint())
}

/// Who we are now, and the connections made as such.
pub struct Identities {
    /// Where this agent runs, for the servers to tell it from a copy.
    pub place: Option<Place>,
    config: Config,
    layout: Layout,
    clock: Clock,
    state: Mutex<State>,
    /// One certificate is asked for at a time, so that none is asked for twice.
    asking: tokio::sync::Mutex<()>,
}

struct State {
    node: NodeIdentity,
    /// For calls; and apart from them for the bytes of artifacts, so that a heartbeat never waits behind those.
    client: Arc<Client>,
    bulk: Arc<Client>,
    /// For heartbeats alone: its connection lives where they do.
    heart: Arc<Client>,
    services: BTreeMap<ResourceId, Identity>,
    /// A certificate that has just come is due by our clock: it is our clock that is wrong, and asking at once again helps nobody.
    patient_until: Option<tokio::time::Instant>,
}

/// What a node joins with.
pub struct Ticket<'a> {
    pub token: &'a str,
    /// What engines can run on here, as far as it is known.
    pub programs: Option<Programs>,
}

impl Identities {
    /// Joins, which is tried until the servers answer; or proves itself by the key that was kept, and goes on with what else was kept when no
    /// server answers.
    pub async fn open(
        config: Config,
        layout: Layout,
        clock: Clock,
        ticket: Option<&Ticket<'_>>,
    ) -> Result<(Self, Standing), Error> {
        let place = layout.place();
        let kept = layout::read::<NodeIdentity>(&layout.identity())?;
        let (node, standing) = match kept.clone() {
            None => {
                let ticket = ticket.ok_or(Error::NoToken)?;
                let key = first_key(&layout)?;
                let node = join(&config, &clock, ticket, key, None).await?;
                (node, Standing::Known(true))
            }
            Some(kept) => come_back(&config, &clock, ticket, kept, place).await?,
        };
        // Who one was in another cluster is nothing to fall back on.
        let kept = kept.filter(|kept| kept.is_of_one_cluster_with(&node));
        layout::keep(kept.as_ref(), &node, |node| {
            layout::write_durably(&layout.identity(), node)
        })?;
        layout::remove(&layout.joining());
        let [client, bulk, heart] = clients(&config, &node, &clock)?;
        let services = read_services(&layout);
        let state = Mutex::new(State {
            node,
            client,
            bulk,
            heart,
            services,
            patient_until: None,
        });
        let identities = Self {
            place,
            config,
            layout,
            clock,
            state,
            asking: tokio::sync::Mutex::default(),
        };
        Ok((identities, standing))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn client(&self) -> Arc<Client> {
        self.state().client.clone()
    }

    pub fn bulk(&self) -> Arc<Client> {
        self.state().bulk.clone()
    }

    pub fn heart(&self) -> Arc<Client> {
        self.state().heart.clone()
    }

    pub fn node(&self) -> NodeIdentity {
        self.state().node.clone()
    }

    pub fn services(&self) -> BTreeMap<ResourceId, Identity> {
        self.state().services.clone()
    }

    /// For a connection that is upgraded: HTTP/1.1 only.
    pub fn tunnel_transport(&self) -> Result<Transport, Error> {
        transport(&self.config, &self.node(), &self.clock, b"http/1.1")
    }

    /// A fresh certificate for the node if the old one is due, or, by `anyway`, may be none to the servers, whose clock is another. True: it was
    /// changed.
    pub async fn renew(&self, anyway: bool) -> Result<bool, Error> {
        let node = self.node();
        if !anyway && !self.is_due(&node.identity) {
            return Ok(false);
        }
        let before = node;
        let node = renewed(&self.config, &self.clock, &before, self.place).await?;
        layout::keep(Some(&before), &node, |node| {
            layout::write_durably(&self.layout.identity(), node)
        })?;
        let [client, bulk, heart] = clients(&self.config, &node, &self.clock)?;
        let mut state = self.state();
        if needs_rotation(&node.identity.certificate, (self.clock)()).unwrap_or(false) {
            state.patient_until = Some(tokio::time::Instant::now() + CLOCK_PATIENCE);
        }
        (state.client, state.bulk, state.heart) = (client, bulk, heart);
        state.node = node;
        Ok(true)
    }

    /// A certificate for a service placed here, if there is none that is fresh. True: it was changed.
    pub async fn certify(&self, service: &ResourceId) -> Result<bool, Error> {
        let _turn = self.asking.lock().await;
        let kept = self.state().services.get(service).cloned();
        let own = self.node().identity.key;
        if kept.is_some_and(|kept| kept.key == own && !self.is_due(&kept)) {
            return Ok(false);
        }
        // The node's own: who refuses the node by its key refuses what it calls as.
        let key = Key::from_pem(&own)?;
        let ask = wire::CertificateRequest {
            request: key.request()?,
        };
        let answer = self
            .client()
            .service_certificate(&self.config.name, service, &ask)
            .await?;
        let identity = key.into_identity(answer.certificate);
        self.state()
            .services
            .insert(service.clone(), identity.clone());
        if let Err(error) = layout::write(&self.layout.service(service), &(service, identity)) {
            tracing::warn!(%error, "the next agent asks for a certificate of {service} again");
        }
        Ok(true)
    }

    /// Forgets the keys of services that have no instance here any more. True: something was forgotten.
    pub fn keep_only(&self, services: &BTreeSet<ResourceId>) -> bool {
        let mut state = self.state();
        let gone: Vec<ResourceId> = state.services.keys().cloned().collect();
        let gone: Vec<_> = gone
            .into_iter()
            .filter(|service| !services.contains(service))
            .collect();
        for service in &gone {
            state.services.remove(service);
        }
        // A heartbeat takes this lock: it waits for no disk.
        drop(state);
        for service in &gone {
            layout::remove(&self.layout.service(service));
        }
        !gone.is_empty()
    }

    fn is_due(&self, identity: &Identity) -> bool {
        let patient_until = self.state().patient_until;
        if patient_until.is_some_and(|until| tokio::time::Instant::now() < until) {
            return false;
        }
        needs_rotation(&identity.certificate, (self.clock)()).unwrap_or(true)
    }
}

/// The key that a first join is begun with is on the disk before anybody hears of it: who is let in, and ends before it hears so, or before
/// that is on the disk, asks again with the same key, and is known by it.
fn first_key(layout: &Layout) -> Result<Key, Error> {
    if let Some(begun) = layout::read::<Identity>(&layout.joining())? {
        return Ok(Key::from_pem(&begun.key)?);
    }
    let begun = Key::generate()?.into_identity(String::new());
    layout::write_durably(&layout.joining(), &begun)?;
    Ok(Key::from_pem(&begun.key)?)
}

fn read_services(layout: &Layout) -> BTreeMap<ResourceId, Identity> {
    let entries = std::fs::read_dir(layout.services())
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            layout::read::<(ResourceId, Identity)>(&entry.path())
                .ok()
                .flatten()
        })
        .collect()
}

fn clients(config: &Config, node: &NodeIdentity, clock: &Clock) -> Result<[Arc<Client>; 3], Error> {
    let transport = transport(config, node, clock, b"h2")?;
    let client = || Arc::new(Client::new(transport.clone(), None));
    Ok([client(), client(), client()])
}

fn transport(
    config: &Config,
    node: &NodeIdentity,
    clock: &Clock,
    protocol: &[u8],
) -> Result<Transport, Error> {
    let expect = Expect::Holder(Holder::Server);
    let mut tls = tls::client_config(&node.identity, &node.authority, expect, clock.clone())?;
    tls.alpn_protocols = vec![protocol.to_vec()];
    Ok(dial(config, tls))
}

/// At a start with a key that was kept.
async fn come_back(
    config: &Config,
    clock: &Clock,
    ticket: Option<&Ticket<'_>>,
    kept: NodeIdentity,
    place: Option<Place>,
) -> Result<(NodeIdentity, Standing), Error> {
    let mut waiting = Waiting::default();
    loop {
        let asked = renewed(config, clock, &kept, place);
        let problem = match tokio::time::timeout(SERVERS_PATIENCE, asked).await {
            Ok(Ok(node)) => return Ok((node, Standing::Known(true))),
            Ok(Err(Error::Servers(api::client::Error::Refused(problem)))) => problem,
            // A server that says nothing more has not said that the other is gone.
            _ if waiting.was_told_lately() => {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
                continue;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the servers can't be asked for a certificate; going on with what was kept");
                return Ok((kept, Standing::Known(false)));
            }
            Err(_) => {
                tracing::warn!("the servers do not answer; going on with what was kept");
                return Ok((kept, Standing::Known(false)));
            }
        };
        match (problem.code.as_str(), ticket) {
            ("node-removed" | "node-left", Some(ticket)) => {
                let key = Key::from_pem(&kept.identity.key)?;
                let before = kept.identity.certificate.clone();
                let refused = match join(config, clock, ticket, key, Some(before)).await {
                    Ok(node) => return Ok((node, Standing::Known(true))),
                    Err(error) => error,
                };
                // A token of an earlier start, used up since: without it what runs here would never be stopped.
                tracing::warn!(error = %refused, "the join token lets this node in no more; going on without it");
                return Ok(match problem.code.as_str() {
                    "node-removed" => (kept, Standing::Removed(problem)),
                    _ => (kept, Standing::Known(false)),
                });
            }
            ("node-removed", None) => return Ok((kept, Standing::Removed(problem))),
            (code @ (AWAITED | TWICE), _) => {
                if waiting.is_over(code) {
                    return Err(Error::Twice(problem));
                }
                tracing::info!(%problem, "waiting to be heard");
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
            _ => {
                tracing::warn!(%problem, "the servers give no certificate; going on with what was kept");
                return Ok((kept, Standing::Known(false)));
            }
        }
    }
}

/// A certificate for the key that is there, whatever became of the last one. That is shown as long as it is good by our clock; a server to which
/// it is not, is asked without it.
async fn renewed(
    config: &Config,
    clock: &Clock,
    node: &NodeIdentity,
    place: Option<Place>,
) -> Result<NodeIdentity, Error> {
    let is_good = expires_at(&node.identity.certificate).is_ok_and(|end| clock() < end);
    if is_good {
        let client = Client::new(transport(config, node, clock, b"h2")?, None);
        match renewed_over(&client, config, clock, node, place).await {
            Err(Error::Servers(api::client::Error::Refused(problem))) => {
                return Err(Error::Servers(api::client::Error::Refused(problem)));
            }
            Err(error) => tracing::debug!(%error, "asking without the certificate"),
            renewed => return renewed,
        }
    }
    let expect = Expect::Holder(Holder::Server);
    let mut tls = tls::client_config_without_identity(&node.authority, expect, clock.clone())?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let client = Client::new(dial(config, tls), None);
    renewed_over(&client, config, clock, node, place).await
}

async fn renewed_over(
    client: &Client,
    config: &Config,
    clock: &Clock,
    node: &NodeIdentity,
    place: Option<Place>,
) -> Result<NodeIdentity, Error> {
    let key = Key::from_pem(&node.identity.key)?;
    let at = clock();
    let ask = wire::Renew {
        request: key.request()?,
        place,
        at: Some(at),
    };
    let joined = client.renew(&config.name, &ask).await?;
    tell_clocks(at, joined.at);
    Ok(NodeIdentity {
        cluster: joined.cluster,
        authority: joined.authority,
        identity: key.into_identity(joined.certificate),
    })
}

fn tell_clocks(node: jiff::Timestamp, server: Option<jiff::Timestamp>) {
    let apart = server.map(|server| node.duration_since(server).abs());
    if let Some(server) = server.filter(|_| apart >= Some(CLOCKS_APART)) {
        tracing::warn!(
            "this machine's clock says {node}, the server's says {server}: set the one that is wrong"
        );
    }
}

fn dial(config: &Config, tls: rustls::ClientConfig) -> Transport {
    Transport::Tls {
        address: config.server,
        config: Arc::new(tls),
        name: tls::server_name(),
    }
}

/// `before`: the certificate that it had, whether or not that has ended. It shows whose the volumes are that are here.
async fn join(
    config: &Config,
    clock: &Clock,
    ticket: &Ticket<'_>,
    key: Key,
    before: Option<String>,
) -> Result<NodeIdentity, Error> {
    let authority = ticket.token.parse::<JoinToken>()?.authority;
    let mut tls = tls::join_config(authority, clock.clone())?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let client = Client::new(dial(config, tls), Some(ticket.token.to_owned()));
    let ask = wire::Join {
        name: config.name.clone(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        role: config.role,
        capacity: config.capacity,
        labels: config.labels.clone(),
        programs: ticket.programs.clone(),
        request: key.request()?,
        certificate: before,
    };
    let joined = ask_until_answered(&client, &ask).await?;
    Ok(NodeIdentity {
        cluster: joined.cluster,
        authority: joined.authority,
        identity: key.into_identity(joined.certificate),
    })
}

/// What a server refuses is refused; one that does not answer, or is not ready, is asked again. The same request is sent each time, so that
/// an answer that was lost does no harm.
async fn ask_until_answered(client: &Client, ask: &wire::Join) -> Result<wire::Joined, Error> {
    let mut pause = Pause::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut said = false;
    loop {
        match client.join(ask).await {
            Ok(joined) => return Ok(joined),
            Err(api::client::Error::Refused(problem)) if problem.status < 500 => {
                return Err(Error::Refused(api::client::Error::Refused(problem)));
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, "joining; tried until the servers answer");
                }
            }
        }
        pause.wait().await;
    }
}
