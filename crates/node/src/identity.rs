//! Who the node is, and as whom its services call: keys made here, certificates asked for, kept, renewed at half of their life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::client::{Client, Transport};
use api::wire;
use boundary::Clock;
use boundary::authority::{Key, needs_rotation};
use boundary::tls::{self, Expect};
use boundary::token::JoinToken;
use model::boundary::Holder;
use model::ids::ResourceId;
use model::traffic::Identity;
use serde::{Deserialize, Serialize};

use crate::layout::{self, Layout};
use crate::options::Config;
use crate::pause::Pause;

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
    Certificate(#[from] boundary::tls::Error),
    #[error("{0}")]
    Layout(#[from] layout::Error),
}

/// `identity.json`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub cluster: String,
    pub authority: String,
    pub identity: Identity,
}

/// Who we are now, and the connections made as such.
pub struct Identities {
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
    services: BTreeMap<ResourceId, Identity>,
}

impl Identities {
    /// Reads what was kept, or joins; that is tried until the servers answer.
    pub async fn open(
        config: Config,
        layout: Layout,
        clock: Clock,
        token: Option<&str>,
    ) -> Result<Self, Error> {
        let node = match layout::read(&layout.identity())? {
            Some(kept) => kept,
            None => {
                let joined = join(&config, &clock, token.ok_or(Error::NoToken)?).await?;
                layout::write(&layout.identity(), &joined)?;
                joined
            }
        };
        let (client, bulk) = clients(&config, &node, &clock)?;
        let services = read_services(&layout);
        let state = Mutex::new(State {
            node,
            client,
            bulk,
            services,
        });
        Ok(Self {
            config,
            layout,
            clock,
            state,
            asking: tokio::sync::Mutex::default(),
        })
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

    /// A fresh certificate for the node if the old one has lived half of its life. True: it was changed.
    pub async fn renew(&self) -> Result<bool, Error> {
        let node = self.node();
        if !self.is_due(&node.identity) {
            return Ok(false);
        }
        let key = Key::generate()?;
        let ask = wire::CertificateRequest {
            request: key.request()?,
        };
        let joined = self.client().renew(&self.config.name, &ask).await?;
        let node = NodeIdentity {
            cluster: joined.cluster,
            authority: joined.authority,
            identity: key.into_identity(joined.certificate),
        };
        layout::write(&self.layout.identity(), &node)?;
        let (client, bulk) = clients(&self.config, &node, &self.clock)?;
        let mut state = self.state();
        (state.node, state.client, state.bulk) = (node, client, bulk);
        Ok(true)
    }

    /// A certificate for a service placed here, if there is none that is fresh. True: it was changed.
    pub async fn certify(&self, service: &ResourceId) -> Result<bool, Error> {
        let _turn = self.asking.lock().await;
        let kept = self.state().services.get(service).cloned();
        if kept.is_some_and(|kept| !self.is_due(&kept)) {
            return Ok(false);
        }
        let key = Key::generate()?;
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
        layout::write(&self.layout.service(service), &(service, identity))?;
        Ok(true)
    }

    /// Forgets the keys of services that have no instance here any more. True: something was forgotten.
    pub fn keep_only(&self, services: &BTreeSet<ResourceId>) -> bool {
        let mut state = self.state();
        let before = state.services.len();
        state.services.retain(|service, _| {
            let keep = services.contains(service);
            if !keep {
                layout::remove(&self.layout.service(service));
            }
            keep
        });
        state.services.len() != before
    }

    fn is_due(&self, identity: &Identity) -> bool {
        needs_rotation(&identity.certificate, (self.clock)()).unwrap_or(true)
    }
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

fn clients(
    config: &Config,
    node: &NodeIdentity,
    clock: &Clock,
) -> Result<(Arc<Client>, Arc<Client>), Error> {
    let transport = transport(config, node, clock, b"h2")?;
    let client = || Arc::new(Client::new(transport.clone(), None));
    Ok((client(), client()))
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
    Ok(Transport::Tls {
        address: config.server,
        config: Arc::new(tls),
        name: tls::server_name(),
    })
}

async fn join(config: &Config, clock: &Clock, token: &str) -> Result<NodeIdentity, Error> {
    let authority = token.parse::<JoinToken>()?.authority;
    let mut tls = tls::join_config(authority, clock.clone())?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let transport = Transport::Tls {
        address: config.server,
        config: Arc::new(tls),
        name: tls::server_name(),
    };
    let client = Client::new(transport, Some(token.to_owned()));
    let key = Key::generate()?;
    let ask = wire::Join {
        name: config.name.clone(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        role: config.role,
        capacity: config.capacity,
        labels: config.labels.clone(),
        request: key.request()?,
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
