//! Mutual TLS 1.3 between proxies: the cluster's authority is believed, and who the peer is stands in its SPIFFE name.
//!
//! A proxy answers as its node and calls as the service that calls, or, as a gateway, as its node. The name of the expected
//! peer is checked with the chain; what the peer may call is checked for each request, elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use model::boundary::{Holder, SpiffeId};
use model::ids::{NodeName, ResourceId};
use model::traffic::{Identity, Trust};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const PROTOCOL: &[u8] = b"h2";

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
    node: Arc<ClientConfig>,
    services: HashMap<ResourceId, Arc<ClientConfig>>,
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
                client_config(&roots, trust, &trust.node, "the node's certificate")?,
            ),
        };
        let mut services = HashMap::new();
        for (service, identity) in &trust.services {
            let kept = before
                .filter(|old| old.trust.services.get(service) == Some(identity))
                .and_then(|old| old.services.get(service));
            let config = match kept {
                Some(config) => config.clone(),
                None => client_config(
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
            node,
            services,
        })
    }

    /// What a call is made with: as the service, or as the node when a gateway calls.
    pub fn client(&self, caller: Option<&ResourceId>) -> Option<&Arc<ClientConfig>> {
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
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

fn client_config(
    roots: &Arc<RootCertStore>,
    trust: &Trust,
    identity: &Identity,
    whose: &str,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
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
        .with_client_auth_cert(
            certificates(&identity.certificate, whose)?,
            key(identity, whose)?,
        )
        .map_err(tls)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.enable_sni = false;
    Ok(Arc::new(config))
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
