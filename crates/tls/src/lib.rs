//! Mutual TLS 1.3 between the processes of a cluster: one way to check who a peer is, for the API and between proxies.
//!
//! | module | what it does |
//! |---|---|
//! | [`certificate`] | reads certificates: whose they are, for which key, and when they are valid |
//! | `verify` | checks peers in handshakes |
//!
//! Who a peer is stands in the SPIFFE name of its certificate, not in a host name: the configurations here check the chain
//! up to the cluster's authority, the times against a clock that was handed in, the cluster in the name, and then ask the
//! caller's [`Expect`] about the holder. Any server name may be dialled; [`server_name`] is one.
//!
//! Sessions are never resumed: a resumed session skips the certificate, and would outlive its end.
//!
//! Protocols (ALPN) are left to the caller: the returned configurations are not yet shared.

pub mod certificate;
mod verify;

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use model::boundary::{Holder, KeyFingerprint, Principal, SpiffeId};
use model::ids::NodeName;
use model::traffic::Identity;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

pub use certificate::{Fingerprint, FingerprintError};
use verify::{ClientVerifier, HandedIn, Peers, PinnedVerifier, ServerVerifier};

/// Tells the time when a handshake asks for it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Why a configuration could not be made, or a peer not be named.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read a certificate: {0}")]
    Certificate(#[from] certificate::Error),
    #[error("the identity's key is malformed")]
    Key,
    #[error("the identity can't be used: {0}")]
    Identity(#[from] rustls::Error),
    #[error("the authority can't be used: {0}")]
    Authority(String),
    #[error("the peer has shown no certificate")]
    NoCertificate,
}

/// Why a peer was turned away. Carried inside [`rustls::Error`], which shows its debug form to people: that is the same words.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the peer has no SPIFFE name: {0}")]
    Unnamed(#[from] certificate::Error),
    #[error("the peer {peer} belongs to another cluster than `{cluster}`")]
    ForeignCluster { peer: String, cluster: String },
    #[error("the peer is {peer}, expected {expected}")]
    Unexpected { peer: String, expected: String },
    #[error("the server's authority is not the one that the join token names")]
    OtherAuthority,
    #[error(
        "this machine's clock says {clock}, and the certificate that was shown {what} {limit} by the clock of the server that made it: one of the two clocks is wrong"
    )]
    Clock {
        clock: String,
        what: &'static str,
        limit: String,
    },
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Whom a configuration accepts, within the own cluster.
#[derive(Clone)]
pub enum Expect {
    Anyone,
    Holder(Holder),
    /// The node whose name was dialled: see [`name_of_node`].
    Dialled,
    /// Asked at each handshake; the text says in errors what was expected.
    Matching(&'static str, Arc<dyn Fn(&Holder) -> bool + Send + Sync>),
}

/// Whether a server insists on a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// Who joins has only a token, and an administrator too. A certificate that *is* shown must be valid.
    Optional,
}

/// A name to dial by, since rustls wants one. No certificate is compared with it.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("server.mainland.internal").expect("a DNS name")
}

/// The name to dial a node by where [`Expect::Dialled`] is asked: node names are DNS labels.
pub fn name_of_node(node: &NodeName) -> ServerName<'static> {
    ServerName::try_from(node.to_string()).expect("a node's name is a DNS label")
}

/// The configuration of who is dialled.
pub fn server_config(
    identity: &Identity,
    authority: &str,
    client_auth: ClientAuth,
    expect: Expect,
    clock: Clock,
) -> Result<ServerConfig, Error> {
    let peers = Peers::of_authority(authority, expect)?;
    let chains = WebPkiClientVerifier::builder_with_provider(peers.roots.clone(), provider());
    let chains = match client_auth {
        ClientAuth::Required => chains,
        ClientAuth::Optional => chains.allow_unauthenticated(),
    };
    let chains = chains
        .build()
        .map_err(|error| Error::Authority(error.to_string()))?;
    let (chain, key) = read_identity(identity)?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(HandedIn(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier { chains, peers }))
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The configuration of who dials.
pub fn client_config(
    identity: &Identity,
    authority: &str,
    expect: Expect,
    clock: Clock,
) -> Result<ClientConfig, Error> {
    let (chain, key) = read_identity(identity)?;
    let peers = Peers::of_authority(authority, expect)?;
    let mut config = client_builder(Arc::new(ServerVerifier(peers)), clock)?
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The configuration of who dials with a token instead of a certificate, and knows the authority: the CLI.
pub fn client_config_without_identity(
    authority: &str,
    expect: Expect,
    clock: Clock,
) -> Result<ClientConfig, Error> {
    let peers = Peers::of_authority(authority, expect)?;
    let mut config = client_builder(Arc::new(ServerVerifier(peers)), clock)?.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The configuration of who joins: it knows of the authority only the fingerprint in its token, and gets the certificate itself
/// at the end of the server's chain.
pub fn join_config(authority: Fingerprint, clock: Clock) -> Result<ClientConfig, Error> {
    let verifier = PinnedVerifier {
        authority,
        algorithms: provider().signature_verification_algorithms,
    };
    let mut config = client_builder(Arc::new(verifier), clock)?.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Who a peer is: as whom it comes, and whose key that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerId {
    pub name: SpiffeId,
    pub key: KeyFingerprint,
}

/// Whose certificate a peer has shown. To be asked after the handshake, which has checked it.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<PeerId, Error> {
    let first = chain.first().ok_or(Error::NoCertificate)?;
    Ok(PeerId {
        name: certificate::spiffe_id(first)?,
        key: certificate::key(first)?,
    })
}

/// Whose certificate (PEM) it is that a cluster's authority (PEM) has signed, whether or not it has ended. It proves nothing of who shows it:
/// that takes the key.
pub fn signed_by(authority: &str, chain: &str) -> Result<PeerId, Error> {
    let peers = Peers::of_authority(authority, Expect::Anyone)?;
    let chain = certificate::from_pem(chain)?;
    peers.check_signed(&chain[0])?;
    peer_id(&chain)
}

/// Who asks, when a certificate of this name has been shown. A server is an administrator: it holds the authority's key.
pub fn principal(id: &SpiffeId) -> Principal {
    match &id.holder {
        Holder::Server => Principal::Administrator {
            name: "server".to_owned(),
        },
        Holder::Node(name) => Principal::Node { name: name.clone() },
        Holder::Service(id) => Principal::Service { id: id.clone() },
    }
}

/// What a failed handshake says to people: rustls shows a refusal of ours in its debug form.
pub fn explain(error: &rustls::Error) -> String {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error
        && let Some(refused) = other.0.downcast_ref::<Refused>()
    {
        return refused.to_string();
    }
    error.to_string()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
    clock: Clock,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    Ok(
        ClientConfig::builder_with_details(provider(), Arc::new(HandedIn(clock)))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier),
    )
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_identity(identity: &Identity) -> Result<ChainAndKey, Error> {
    let chain = certificate::from_pem(&identity.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(|_| Error::Key)?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_principals() {
        for (name, principal_name) in [
            ("spiffe://c1/server", "admin:server"),
            ("spiffe://c1/node/a", "node:a"),
            ("spiffe://c1/service/shop/cart", "service:shop/cart"),
        ] {
            assert_eq!(
                principal(&name.parse().unwrap()).to_string(),
                principal_name
            );
        }
        assert!(matches!(peer_id(&[]), Err(Error::NoCertificate)));
    }
}
