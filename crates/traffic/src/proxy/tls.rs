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

use model::boundary::{Holder, SpiffeId};
use model::ids::{NodeName, ResourceId};
use model::traffic::{Identity, Trust};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::window::Width;

/// This long before a certificate ends, no new stream begins on a connection made with it. A connection that lives shorter than ten times this
/// is closed to new streams after nine tenths of its life.
const NOTICE_MOST: Duration = Duration::from_secs(60);
/// The clock is looked at again this often: it may be set, and the timers of a machine stand still while it sleeps.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{whose}: the PEM text can't be read: {source}")]
    Pem {
        whose: String,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{whose}: no certificate in the PEM text")]
    Empty { whose: String },
    #[error("{whose}: {source}")]
    Tls {
        whose: String,
        source: rustls::Error,
    },
    #[error("the verifier of client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
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

/// When the first of a chain's certificates ends; `None` when one can't be read, or there is none.
fn end_of(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let end = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let ends: Option<Vec<SystemTime>> = chain.iter().map(end).collect();
    ends?.into_iter().min()
}

impl Tls {
    pub fn new(trust: &Trust, before: Option<&Tls>) -> Result<Self, Error> {
        let before = before.filter(|old| {
            old.trust.authority == trust.authority && old.trust.cluster == trust.cluster
        });
        let roots = Arc::new(roots(&trust.authority)?);
        let same_node = before.filter(|old| old.trust.node == trust.node);
        let (server, node) = match same_node {
            Some(old) => (old.server.clone(), old.node.clone()),
            None => (
                server_config(&roots, &trust.node)?,
                client_identity(&roots, trust, &trust.node, "the node's certificate")?,
            ),
        };
        let mut services = HashMap::new();
        for (service, identity) in &trust.services {
            let kept = before
                .filter(|old| old.trust.services.get(service) == Some(identity))
                .and_then(|old| old.services.get(service));
            let config = match kept {
                Some(config) => config.clone(),
                None => client_identity(
                    &roots,
                    trust,
                    identity,
                    &format!("the certificate of {service}"),
                )?,
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
}

/// The name a node's certificate is asked for: node names are DNS labels.
pub fn server_name(node: &NodeName) -> ServerName<'static> {
    ServerName::try_from(node.to_string()).expect("a node's name is a DNS label")
}

/// The SPIFFE name in a certificate: its one URI name.
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}

fn certificates(pem: &str, whose: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Pem {
            whose: whose.to_owned(),
            source,
        })?;
    if chain.is_empty() {
        return Err(Error::Empty {
            whose: whose.to_owned(),
        });
    }
    Ok(chain)
}

fn roots(authority: &str) -> Result<RootCertStore, Error> {
    let whose = "the cluster's authority";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority, whose)? {
        roots.add(certificate).map_err(|source| Error::Tls {
            whose: whose.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}

fn key(identity: &Identity, whose: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(|source| Error::Pem {
        whose: format!("{whose}, its key"),
        source,
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server_config(roots: &Arc<RootCertStore>, node: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let whose = "the node's certificate";
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let tls = |source| Error::Tls {
        whose: whose.to_owned(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&node.certificate, whose)?, key(node, whose)?)
        .map_err(tls)?;
    config.alpn_protocols = Width::ALL.map(Width::protocol).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client_identity(
    roots: &Arc<RootCertStore>,
    trust: &Trust,
    identity: &Identity,
    whose: &str,
) -> Result<Arc<ClientIdentity>, Error> {
    let provider = provider();
    let chain = certificates(&identity.certificate, whose)?;
    let end = end_of(&chain).ok_or_else(|| Error::Empty {
        whose: whose.to_owned(),
    })?;
    let verifier = NodeVerifier {
        cluster: trust.cluster.clone(),
        roots: roots.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let tls = |source| Error::Tls {
        whose: whose.to_owned(),
        source,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key(identity, whose)?)
        .map_err(tls)?;
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(ClientIdentity {
        config: Arc::new(config),
        end,
    }))
}

/// Believes the authority, and of those whom it vouches for only the node that was meant.
#[derive(Debug)]
struct NodeVerifier {
    cluster: String,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl NodeVerifier {
    fn is_meant(&self, certificate: &CertificateDer<'_>, server_name: &ServerName<'_>) -> bool {
        spiffe_id(certificate).is_some_and(|id| {
            id.cluster == self.cluster
                && matches!(id.holder, Holder::Node(node) if node.as_str() == server_name.to_str())
        })
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if !self.is_meant(end_entity, server_name) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    /// TLS 1.2 is never offered.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    use rustls::{ClientConnection, HandshakeKind, ServerConnection};

    use super::*;

    fn trust() -> Trust {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
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
            let name = server_name(&"a".parse().unwrap());
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
        let own = certificates(&tls.trust.node.certificate, "a").unwrap();
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
