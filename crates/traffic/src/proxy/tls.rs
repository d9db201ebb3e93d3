//! Mutual TLS 1.3 between proxies: the cluster's authority is believed, and who the peer is stands in its SPIFFE name.
//!
//! A proxy answers as its node and calls as the service that calls, or, as a gateway, as its node. The name of the expected
//! peer is checked with the chain; what the peer may call is checked for each request, elsewhere.
//!
//! No session is resumed, by neither side: a resumed one would not look at certificates again. For the same reason a connection ends when
//! the first certificate of either side does ([`Life`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::tls::{ClientAuth, Expect, certificate};
use jiff::Timestamp;
use model::boundary::KeyFingerprint;
use model::ids::ResourceId;
use model::traffic::{Identity, Trust};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::window::Width;

/// This long before a certificate ends, no new stream begins on a connection made with it. A connection that lives shorter than ten times this
/// is closed to new streams after nine tenths of its life.
const NOTICE_MOST: Duration = Duration::from_secs(60);
/// The clock is looked at again this often: it may be set, and the timers of a machine stand still while it sleeps.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
#[error("{whose}: {source}")]
pub struct Error {
    whose: String,
    source: ::tls::Error,
}

/// The configurations made from one [`Trust`]. A configuration whose identity did not change is the same `Arc` as before, so the
/// connections made with it stay in use.
#[derive(Clone)]
pub struct Tls {
    trust: Trust,
    pub server: Arc<ServerConfig>,
    /// When the node's own certificate ends.
    pub server_end: SystemTime,
    node: Arc<ClientIdentity>,
    services: HashMap<ResourceId, Arc<ClientIdentity>>,
}

/// What calls are made with.
pub struct ClientIdentity {
    pub config: Arc<ClientConfig>,
    /// When its certificate ends.
    pub end: SystemTime,
}

/// How long a connection may live: as long as the certificates of both sides.
///
/// ```text
///   made ──────────── notice ── end
///   new streams begin │ none    │ what is left is cut
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    notice: SystemTime,
    end: SystemTime,
}

impl Life {
    /// `own_end`: of our certificate. A peer whose certificate can't be read has no life at all.
    pub fn new(made: SystemTime, own_end: SystemTime, peer: &[CertificateDer<'_>]) -> Self {
        let end = own_end.min(end_of(peer).unwrap_or(made));
        let left = end.duration_since(made).unwrap_or_default();
        Self {
            notice: end - NOTICE_MOST.min(left / 10),
            end,
        }
    }

    /// No new stream begins from here on; the peer is told.
    pub async fn until_notice(self) {
        until(self.notice).await;
    }

    /// What is left is cut.
    pub async fn until_end(self) {
        until(self.end).await;
    }
}

async fn until(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK_AT_CLOCK)).await;
    }
}

impl Tls {
    pub fn new(trust: &Trust, before: Option<&Tls>) -> Result<Self, Error> {
        let before = before.filter(|old| {
            old.trust.authority == trust.authority && old.trust.cluster == trust.cluster
        });
        let same_node = before.filter(|old| old.trust.node == trust.node);
        let (server, node) = match same_node {
            Some(old) => (old.server.clone(), old.node.clone()),
            None => (
                server_config(trust)?,
                client_identity(trust, &trust.node, "the node's certificate")?,
            ),
        };
        let mut services = HashMap::new();
        for (service, identity) in &trust.services {
            let kept = before
                .filter(|old| old.trust.services.get(service) == Some(identity))
                .and_then(|old| old.services.get(service));
            let config = match kept {
                Some(config) => config.clone(),
                None => client_identity(trust, identity, &format!("the certificate of {service}"))?,
            };
            services.insert(service.clone(), config);
        }
        Ok(Self {
            trust: trust.clone(),
            server,
            server_end: node.end,
            node,
            services,
        })
    }

    /// What a call is made with: as the service, or as the node when a gateway calls.
    pub fn client(&self, caller: Option<&ResourceId>) -> Option<&Arc<ClientIdentity>> {
        match caller {
            None => Some(&self.node),
            Some(service) => self.services.get(service),
        }
    }

    pub fn cluster(&self) -> &str {
        &self.trust.cluster
    }

    /// Whether who holds this key is let in: not when its node was removed, whatever its certificate says.
    pub fn admits(&self, key: &KeyFingerprint) -> bool {
        !self.trust.removed.contains(key)
    }
}

/// Who the peer is, by the certificate that it has shown; `None` when that says nothing, or when its node was removed.
pub fn peer_id(trust: &Tls, chain: &[CertificateDer<'_>]) -> Option<::tls::PeerId> {
    let id = ::tls::peer_id(chain).ok()?;
    trust.admits(&id.key).then_some(id)
}

fn clock() -> ::tls::Clock {
    Arc::new(Timestamp::now)
}

fn end_of(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    certificate::end_of(chain).ok().map(SystemTime::from)
}

fn server_config(trust: &Trust) -> Result<Arc<ServerConfig>, Error> {
    let auth = ClientAuth::Required;
    let config = ::tls::server_config(&trust.node, &trust.authority, auth, Expect::Anyone, clock());
    let mut config = config.map_err(of("the node's certificate"))?;
    config.alpn_protocols = Width::taken();
    Ok(Arc::new(config))
}

fn client_identity(
    trust: &Trust,
    identity: &Identity,
    whose: &str,
) -> Result<Arc<ClientIdentity>, Error> {
    let config = ::tls::client_config(identity, &trust.authority, Expect::Dialled, clock());
    let mut config = config.map_err(of(whose))?;
    config.enable_sni = false;
    let chain = certificate::from_pem(&identity.certificate);
    let end = chain.and_then(|chain| certificate::end_of(&chain));
    let end = end.map_err(|error| of(whose)(error.into()))?;
    Ok(Arc::new(ClientIdentity {
        config: Arc::new(config),
        end: end.into(),
    }))
}

fn of(whose: &str) -> impl FnOnce(::tls::Error) -> Error {
    let whose = whose.to_owned();
    |source| Error { whose, source }
}

#[cfg(test)]
pub mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use rustls::client::Resumption;
    use rustls::{ClientConnection, HandshakeKind, ServerConnection};

    use super::*;

    pub fn trust() -> Trust {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "spiffe://c1".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(name)];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        let name = "spiffe://c1/node/a".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(name)];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        Trust {
            cluster: "c1".to_owned(),
            authority: authority.pem(),
            node: Identity {
                certificate: certificate.pem(),
                key: key.serialize_pem(),
            },
            services: Default::default(),
            removed: Default::default(),
        }
    }

    /// How the second handshake between the two went.
    fn second_handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> HandshakeKind {
        let mut kind = None;
        for _ in 0..2 {
            let name = ::tls::name_of_node(&"a".parse().unwrap());
            let mut client = ClientConnection::new(client.clone(), name).unwrap();
            let mut server = ServerConnection::new(server.clone()).unwrap();
            let mut bytes = Vec::new();
            while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
                bytes.clear();
                client.write_tls(&mut bytes).unwrap();
                server.read_tls(&mut bytes.as_slice()).unwrap();
                server.process_new_packets().unwrap();
                bytes.clear();
                server.write_tls(&mut bytes).unwrap();
                client.read_tls(&mut bytes.as_slice()).unwrap();
                client.process_new_packets().unwrap();
            }
            kind = client.handshake_kind();
        }
        kind.unwrap()
    }

    #[test]
    fn no_side_resumes_a_session() {
        let tls = Tls::new(&trust(), None).unwrap();
        let client = tls.client(None).unwrap().config.clone();
        let mut willing_client = (*client).clone();
        willing_client.resumption = Resumption::in_memory_sessions(8);
        let willing_client = Arc::new(willing_client);
        let mut willing_server = (*tls.server).clone();
        willing_server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
        willing_server.send_tls13_tickets = 2;
        let willing_server = Arc::new(willing_server);
        for (client, server, expected) in [
            (&willing_client, &willing_server, HandshakeKind::Resumed),
            (&willing_client, &tls.server, HandshakeKind::Full),
            (&client, &willing_server, HandshakeKind::Full),
        ] {
            assert_eq!(second_handshake(client, server), expected);
        }
    }

    #[test]
    fn a_connection_lives_as_long_as_the_first_certificate_to_end() {
        let tls = Tls::new(&trust(), None).unwrap();
        let own = certificate::from_pem(&tls.trust.node.certificate).unwrap();
        let end = end_of(&own).unwrap();
        let seconds = Duration::from_secs;
        for (made, own_end, peer, expected) in [
            // A long life: a minute's notice.
            (end - seconds(7200), end, &own[..], (60, 0)),
            (end - seconds(7200), end - seconds(30), &own, (90, 30)),
            // A short one: a tenth of it.
            (end - seconds(100), end, &own, (10, 0)),
            // Over already, or not to be known.
            (end + seconds(5), end, &own, (0, 0)),
            (end - seconds(50), end, &[], (50, 50)),
        ] {
            let life = Life::new(made, own_end, peer);
            let (notice, cut) = (end - seconds(expected.0), end - seconds(expected.1));
            assert_eq!((life.notice, life.end), (notice, cut));
        }
    }
}
