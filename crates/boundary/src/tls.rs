//! Mutual TLS 1.3 between the processes of a cluster.
//!
//! Who a peer is stands in the SPIFFE name of its certificate, not in a host name: the configurations here check the chain
//! up to the cluster's authority, the times against a clock that was handed in, the cluster in the name, and then ask the
//! caller's [`Expect`] about the holder. Any server name may be dialled; [`server_name`] is one.
//!
//! Sessions are never resumed: a resumed session skips the certificate, and would outlive its end.
//!
//! Protocols (ALPN) are left to the caller: the returned configurations are not yet shared.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use model::boundary::{Holder, KeyFingerprint, Principal, SpiffeId};
use model::traffic::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::authority::{Fingerprint, cluster_of_authority};
use crate::encoding::sha256;
use crate::{Clock, certificate};

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

/// A certificate whose time is not now names both clocks.
fn name_clocks(error: rustls::Error) -> rustls::Error {
    let (time, what, limit) = match &error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            (time, "has ended at", not_after)
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        }) => (time, "begins at", not_before),
        _ => return error,
    };
    refuse(Refused::Clock {
        clock: in_words(*time),
        what,
        limit: in_words(*limit),
    })
}

fn in_words(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "never".to_owned(), |at| at.to_string())
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

/// Whom we believe: a cluster's authority and, of its holders, those expected.
#[derive(Debug)]
struct Peers {
    roots: Arc<RootCertStore>,
    cluster: String,
    expect: Expect,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Peers {
    /// Of the certificates of one cluster's authority (PEM): several while the authority itself is exchanged.
    fn of_authority(pem: &str, expect: Expect) -> Result<Self, Error> {
        let certificates = certificate::from_pem(pem)?;
        let cluster = cluster_of_authority(&certificates[0])?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            if cluster_of_authority(&certificate)? != cluster {
                return Err(Error::Authority("it names several clusters".to_owned()));
            }
            roots.add(certificate)?;
        }
        Ok(Self {
            roots: Arc::new(roots),
            cluster,
            expect,
            algorithms: provider().signature_verification_algorithms,
        })
    }

    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Refused> {
        let id = certificate::spiffe_id(certificate)?;
        if id.cluster != self.cluster {
            return Err(Refused::ForeignCluster {
                peer: id.to_string(),
                cluster: self.cluster.clone(),
            });
        }
        if !self.expect.accepts(&id.holder) {
            return Err(Refused::Unexpected {
                peer: id.to_string(),
                expected: self.expect.to_string(),
            });
        }
        Ok(())
    }
}

impl Expect {
    fn accepts(&self, holder: &Holder) -> bool {
        match self {
            Self::Anyone => true,
            Self::Holder(expected) => expected == holder,
            Self::Matching(_, accepts) => accepts(holder),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::Holder(Holder::Server) => f.write_str("the server"),
            Self::Holder(Holder::Node(name)) => write!(f, "node {name}"),
            Self::Holder(Holder::Service(id)) => write!(f, "service {id}"),
            Self::Matching(what, _) => f.write_str(what),
        }
    }
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expect({self})")
    }
}

fn refuse(refused: Refused) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
}

/// Only TLS 1.3 is offered, so that nobody can get here.
fn no_older_version() -> rustls::Error {
    PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

/// Checks those who dial us.
#[derive(Debug)]
struct ClientVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    peers: Peers,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chains
            .verify_client_cert(certificate, intermediates, now)?;
        self.peers.check_name(certificate).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_older_version())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.peers.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.peers.algorithms.supported_schemes()
    }
}

/// Checks whom we dial.
#[derive(Debug)]
struct ServerVerifier(Peers);

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &self.0.roots,
            intermediates,
            now,
            self.0.algorithms.all,
        )
        .map_err(name_clocks)?;
        self.0.check_name(certificate).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_older_version())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// Checks the server that is asked to let us in, by its authority's fingerprint.
#[derive(Debug)]
struct PinnedVerifier {
    authority: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedVerifier {
    fn peers(&self, shown: &[CertificateDer<'_>]) -> Result<Peers, Refused> {
        let authority = shown
            .iter()
            .find(|certificate| sha256(certificate) == self.authority.0)
            .ok_or(Refused::OtherAuthority)?;
        let mut roots = RootCertStore::empty();
        roots
            .add(authority.clone().into_owned())
            .map_err(|_| Refused::OtherAuthority)?;
        Ok(Peers {
            roots: Arc::new(roots),
            cluster: cluster_of_authority(authority)?,
            expect: Expect::Holder(Holder::Server),
            algorithms: self.algorithms,
        })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let peers = self.peers(intermediates).map_err(refuse)?;
        ServerVerifier(peers).verify_server_cert(
            certificate,
            intermediates,
            name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_older_version())
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

/// The clock that was handed in, as rustls asks for it.
struct HandedIn(Clock);

impl fmt::Debug for HandedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandedIn(..)")
    }
}

impl TimeProvider for HandedIn {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(Timestamp::UNIX_EPOCH);
        Some(UnixTime::since_unix_epoch(since.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Terms};

    /// The authority refuses to issue such a name; if it ever did, its chain alone must not suffice.
    #[test]
    fn a_name_of_another_cluster_is_refused_whatever_its_chain() {
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        let ours = Authority::generate("c1", now).unwrap();
        let theirs = Authority::generate("c2", now).unwrap();
        let foreign = SpiffeId {
            cluster: "c2".to_owned(),
            holder: Holder::Server,
        };
        let identity = theirs.identity(&foreign, &Terms::default(), now).unwrap();
        let leaf = certificate::from_pem(&identity.certificate)
            .unwrap()
            .remove(0);
        let peers = Peers::of_authority(ours.certificate(), Expect::Anyone).unwrap();
        let refused = peers.check_name(&leaf).unwrap_err();
        assert!(matches!(refused, Refused::ForeignCluster { .. }));

        let mixed = format!("{}{}", ours.certificate(), theirs.certificate());
        assert!(Peers::of_authority(&mixed, Expect::Anyone).is_err());
    }

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
