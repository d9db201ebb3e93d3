//! Checks of peers in handshakes: the chain up to the cluster's authority, the times, the cluster in the name, and the holder.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use model::boundary::Holder;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::{self, Fingerprint, cluster_of_authority};
use crate::{Clock, Error, Expect, Refused, provider};

/// Whom we believe: a cluster's authority and, of its holders, those expected.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) roots: Arc<RootCertStore>,
    cluster: String,
    expect: Expect,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Peers {
    /// Of the certificates of one cluster's authority (PEM): several while the authority itself is exchanged.
    pub(crate) fn of_authority(pem: &str, expect: Expect) -> Result<Self, Error> {
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

    /// That the authority has signed it, at whatever time: it is looked at as of its own beginning.
    pub(crate) fn check_signed(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let (begins, _) = certificate::validity(certificate)?;
        let begins = u64::try_from(begins.as_second()).unwrap_or(0);
        let at = UnixTime::since_unix_epoch(Duration::from_secs(begins));
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, &[], at, algorithms)?;
        self.check_name(certificate, None).map_err(refuse)?;
        Ok(())
    }

    /// `dialled`: by which name, for who dials.
    fn check_name(
        &self,
        certificate: &CertificateDer<'_>,
        dialled: Option<&ServerName<'_>>,
    ) -> Result<(), Refused> {
        let id = certificate::spiffe_id(certificate)?;
        if id.cluster != self.cluster {
            return Err(Refused::ForeignCluster {
                peer: id.to_string(),
                cluster: self.cluster.clone(),
            });
        }
        if !self.expect.accepts(&id.holder, dialled) {
            return Err(Refused::Unexpected {
                peer: id.to_string(),
                expected: self.expect.to_string(),
            });
        }
        Ok(())
    }
}

impl Expect {
    fn accepts(&self, holder: &Holder, dialled: Option<&ServerName<'_>>) -> bool {
        match self {
            Self::Anyone => true,
            Self::Holder(expected) => expected == holder,
            Self::Dialled => {
                matches!((holder, dialled), (Holder::Node(node), Some(name)) if node.as_str() == name.to_str())
            }
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
            Self::Dialled => f.write_str("the node that was dialled"),
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

/// Only TLS 1.3 is offered, so that nobody can get here.
fn no_older_version() -> rustls::Error {
    PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

/// The part of a verifier that is alike in all: signatures are checked by the algorithms in `self.$algorithms`, and by TLS 1.3 alone.
macro_rules! signatures_by {
    ($($algorithms:tt)+) => {
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
            let algorithms = &self.$($algorithms)+;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.$($algorithms)+.supported_schemes()
        }
    };
}

/// Checks those who dial us.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) chains: Arc<dyn ClientCertVerifier>,
    pub(crate) peers: Peers,
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
        self.peers.check_name(certificate, None).map_err(refuse)?;
        Ok(verified)
    }

    signatures_by!(peers.algorithms);
}

/// Checks whom we dial.
#[derive(Debug)]
pub(crate) struct ServerVerifier(pub(crate) Peers);

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
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
        self.0.check_name(certificate, Some(name)).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_by!(0.algorithms);
}

/// Checks the server that is asked to let us in, by its authority's fingerprint.
#[derive(Debug)]
pub(crate) struct PinnedVerifier {
    pub(crate) authority: Fingerprint,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedVerifier {
    fn peers(&self, shown: &[CertificateDer<'_>]) -> Result<Peers, Refused> {
        let authority = shown
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.authority)
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

    signatures_by!(algorithms);
}

/// The clock that was handed in, as rustls asks for it.
pub(crate) struct HandedIn(pub(crate) Clock);

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
