//! The cluster's certificate authority.
//!
//! ```text
//! requester                                authority
//! Key::generate() ── Key::request() ──▶    issue(request, name, ...)
//!       ▲                                        │
//!       └───────────── chain (PEM) ◀─────────────┘
//!          needs_rotation() after half a day: ask anew, with the same key
//! ```
//!
//! A requester's key never leaves it: it sends a signing request, of which the authority takes the public key and nothing
//! else. The name in the certificate is what the authority has decided to call the requester, not what the request claims.
//!
//! Who somebody is, is its key: a certificate only says so for a while. Certificates live for thirty days and are renewed after half a day,
//! so that nodes call each other on though no server is there for weeks. Whoever is away for longer asks anew with its key. They are backdated
//! by two hours: a clock that jumps by one hour, on either side, breaks nothing. See `docs/decisions/013-a-node-is-its-key.md`.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use model::boundary::{KeyFingerprint, SpiffeId};
use model::traffic::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use tls::certificate::{self, cluster_of_authority};

use crate::secret::{self, Binding, Envelope, Keyring, SecretValue};

pub use tls::certificate::{Error as CertificateError, Fingerprint, FingerprintError};

/// How long a certificate is good for, unless its requester asks for less: for so long may all servers be away before traffic between nodes
/// stops. A node that is removed is refused by its key, at once.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long after its making a certificate is renewed; half of its life where that is less.
pub const RENEWED_AFTER: Duration = Duration::from_secs(12 * 60 * 60);
/// How far before its making a certificate begins to be valid.
pub const BACKDATED: Duration = Duration::from_secs(2 * 60 * 60);
/// How long the authority itself is good for. webpki does not look at a trust anchor's times; other readers do.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Largest signing request that is looked at, in bytes of PEM. One with a P-256 key has about 400.
pub const REQUEST_MAX_LENGTH: usize = 16 * 1024;

/// Why an authority could not be made, read or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't make a certificate: {0}")]
    Making(#[from] rcgen::Error),
    #[error("can't read a certificate: {0}")]
    Reading(#[from] certificate::Error),
    #[error("the authority's key does not belong to its certificate")]
    WrongKey,
    #[error("`{0}` is no cluster id: use letters, digits, `-`, `_` and `.`")]
    ClusterId(String),
    #[error("asked to issue {id}, but this is the authority of cluster `{cluster}`")]
    ForeignName { id: String, cluster: String },
    #[error("the signing request is longer than {REQUEST_MAX_LENGTH} bytes")]
    RequestTooLong,
    #[error("`{0}` can't stand in a certificate")]
    Name(String),
    #[error("the time {0} can't stand in a certificate")]
    Time(Timestamp),
    #[error("can't unseal the authority's key: {0}")]
    Sealed(#[from] secret::Error),
}

/// Signs the certificates of one cluster. Debug shows its certificate's fingerprint, never the key.
pub struct Authority {
    cluster: String,
    certificate: String,
    fingerprint: Fingerprint,
    issuer: Issuer<'static, KeyPair>,
    key: Zeroizing<String>,
}

/// An authority at rest: the certificate as it is, the key in an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedAuthority {
    pub certificate: String,
    pub key: Envelope,
}

/// What a certificate says beside the SPIFFE name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub lifetime: Duration,
    /// For servers: how people and programs that know no SPIFFE names reach them.
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lifetime: LIFETIME,
            dns_names: Vec::new(),
            addresses: Vec::new(),
        }
    }
}

/// A requester's own key, made where it will be used.
pub struct Key(KeyPair);

impl Key {
    /// A new P-256 key.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads a key that was kept as [`Identity::key`].
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        Ok(Self(KeyPair::from_pem(pem)?))
    }

    /// Who holds it.
    pub fn fingerprint(&self) -> KeyFingerprint {
        certificate::fingerprint_of(&self.0.subject_public_key_info())
    }

    /// The signing request (PEM) that proves possession of the key. It names nobody: the authority decides on names.
    pub fn request(&self) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    /// Joins the key with the chain that the authority has issued for its request.
    pub fn into_identity(self, chain: String) -> Identity {
        Identity {
            certificate: chain,
            key: self.0.serialize_pem(),
        }
    }
}

impl Authority {
    /// A new authority with a new key.
    pub fn generate(cluster: &str, now: Timestamp) -> Result<Self, Error> {
        check_cluster(cluster)?;
        let key = KeyPair::generate()?;
        let certificate = authority_params(cluster, now)?.self_signed(&key)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads an authority back from its certificate and key.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Error> {
        let der = certificate::from_pem(certificate)?.remove(0);
        let key_pair = KeyPair::from_pem(key)?;
        let parsed = certificate::parse(&der)?;
        if *parsed.public_key().subject_public_key.data != *key_pair.der_bytes() {
            return Err(Error::WrongKey);
        }
        Ok(Self {
            cluster: cluster_of_authority(&der)?,
            certificate: certificate.to_owned(),
            fingerprint: Fingerprint::of(&der),
            issuer: Issuer::from_ca_cert_der(&der, key_pair)?,
            key: Zeroizing::new(key.to_owned()),
        })
    }

    /// Opens what [`Authority::seal`] has made.
    pub fn unseal(sealed: &SealedAuthority, keyring: &Keyring) -> Result<Self, Error> {
        let der = certificate::from_pem(&sealed.certificate)?.remove(0);
        let binding = Binding::Authority {
            cluster: cluster_of_authority(&der)?,
        };
        let key = keyring.open(&binding, &sealed.key)?;
        let key = std::str::from_utf8(key.expose()).map_err(|_| Error::WrongKey)?;
        Self::from_pem(&sealed.certificate, key)
    }

    /// The form in which an authority rests.
    pub fn seal(&self, keyring: &Keyring) -> Result<SealedAuthority, Error> {
        let binding = Binding::Authority {
            cluster: self.cluster.clone(),
        };
        let key = SecretValue::from(self.key.as_str());
        Ok(SealedAuthority {
            certificate: self.certificate.clone(),
            key: keyring.seal(&binding, &key)?,
        })
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The authority's certificate (PEM), which everybody may know.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's key (PEM, PKCS #8), for a caller that keeps it in a file of mode 0600.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// A certificate chain (PEM) named `id` for the key that signed `request`. Whatever else the request says is ignored.
    ///
    /// A server's chain ends with the authority's own certificate, so that who joins can compare it with the fingerprint
    /// in its token. Others leave it out: their peers have it.
    pub fn issue(
        &self,
        request: &str,
        id: &SpiffeId,
        terms: &Terms,
        now: Timestamp,
    ) -> Result<String, Error> {
        if request.len() > REQUEST_MAX_LENGTH {
            return Err(Error::RequestTooLong);
        }
        let request = CertificateSigningRequestParams::from_pem(request)?;
        self.sign(&request.public_key, id, terms, now)
    }

    /// The same authority with a certificate that begins now, once the old one has lived half of its life. Key and name stay, so that what
    /// either has signed is believed by who knows the other.
    pub fn renewed(&self, now: Timestamp) -> Result<Option<Self>, Error> {
        let der = certificate::from_pem(&self.certificate)?.remove(0);
        let (begins, ends) = certificate::validity(&der)?;
        if now < begins + begins.duration_until(ends) / 2 {
            return Ok(None);
        }
        let key = KeyPair::from_pem(&self.key)?;
        let certificate = authority_params(&self.cluster, now)?.self_signed(&key)?;
        Self::from_pem(&certificate.pem(), &self.key).map(Some)
    }

    /// A certificate with a key made here: for the server itself.
    pub fn identity(
        &self,
        id: &SpiffeId,
        terms: &Terms,
        now: Timestamp,
    ) -> Result<Identity, Error> {
        let key = Key::generate()?;
        let chain = self.sign(&key.0, id, terms, now)?;
        Ok(key.into_identity(chain))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        terms: &Terms,
        now: Timestamp,
    ) -> Result<String, Error> {
        if id.cluster != self.cluster {
            return Err(Error::ForeignName {
                id: id.to_string(),
                cluster: self.cluster.clone(),
            });
        }
        let params = holder_params(id, terms, now)?;
        let mut chain = params.signed_by(key, &self.issuer)?.pem();
        if id.holder == model::boundary::Holder::Server {
            chain.push_str(&self.certificate);
        }
        Ok(chain)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .field("fingerprint", &self.fingerprint.to_string())
            .finish_non_exhaustive()
    }
}

/// Whether the first certificate of a chain (PEM) should be asked for anew: [`RENEWED_AFTER`], or half of its life, is over.
///
/// The life counts from the making, not from the backdated beginning. A certificate that is not yet valid as seen from here
/// needs it too: a clock was set back by more than [`BACKDATED`].
pub fn needs_rotation(chain: &str, now: Timestamp) -> Result<bool, CertificateError> {
    let der = certificate::from_pem(chain)?.remove(0);
    let (begins, ends) = certificate::validity(&der)?;
    let made = begins + BACKDATED;
    let life = made.duration_until(ends);
    let due = (life / 2).min(jiff::SignedDuration::try_from(RENEWED_AFTER).unwrap_or(life));
    Ok(now < begins || now >= made + due)
}

/// The SPIFFE name in the first certificate of a chain (PEM).
pub fn name_in(chain: &str) -> Result<SpiffeId, CertificateError> {
    certificate::spiffe_id(&certificate::from_pem(chain)?.remove(0))
}

/// Whose key the first certificate of a chain (PEM) is for.
pub fn key_in(chain: &str) -> Result<KeyFingerprint, CertificateError> {
    certificate::key(&certificate::from_pem(chain)?.remove(0))
}

/// Whose key a signing request (PEM) is for. [`Authority::issue`] checks that it was signed with that key.
pub fn key_of_request(request: &str) -> Result<KeyFingerprint, Error> {
    if request.len() > REQUEST_MAX_LENGTH {
        return Err(Error::RequestTooLong);
    }
    Ok(certificate::key_of_request(request)?)
}

/// When the first certificate of a chain (PEM) ends.
pub fn expires_at(chain: &str) -> Result<Timestamp, CertificateError> {
    let der = certificate::from_pem(chain)?.remove(0);
    Ok(certificate::validity(&der)?.1)
}

fn check_cluster(cluster: &str) -> Result<(), Error> {
    match certificate::is_cluster_id(cluster) {
        true => Ok(()),
        false => Err(Error::ClusterId(cluster.to_owned())),
    }
}

fn authority_params(cluster: &str, now: Timestamp) -> Result<CertificateParams, Error> {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, format!("Mainland {cluster}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(ia5(format!("spiffe://{cluster}"))?)];
    set_times(&mut params, AUTHORITY_LIFETIME, now)?;
    Ok(params)
}

fn holder_params(id: &SpiffeId, terms: &Terms, now: Timestamp) -> Result<CertificateParams, Error> {
    let mut names = vec![SanType::URI(ia5(id.to_string())?)];
    for name in &terms.dns_names {
        names.push(SanType::DnsName(ia5(name.clone())?));
    }
    names.extend(terms.addresses.iter().copied().map(SanType::IpAddress));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Proxies and servers both call and are called, with one certificate.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    set_times(&mut params, terms.lifetime, now)?;
    Ok(params)
}

fn set_times(
    params: &mut CertificateParams,
    lifetime: Duration,
    now: Timestamp,
) -> Result<(), Error> {
    let seconds = u64::try_from(now.as_second()).map_err(|_| Error::Time(now))?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let made = epoch
        .checked_add(
            Duration::from_secs(seconds)
                .try_into()
                .map_err(|_| Error::Time(now))?,
        )
        .ok_or(Error::Time(now))?;
    params.not_before = made - BACKDATED;
    params.not_after = made + lifetime;
    Ok(())
}

fn ia5(text: String) -> Result<Ia5String, Error> {
    Ia5String::try_from(text.as_str()).map_err(|_| Error::Name(text))
}

#[cfg(test)]
mod tests {
    use model::boundary::Holder;
    use rustls_pki_types::CertificateSigningRequestDer;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn node(cluster: &str, name: &str) -> SpiffeId {
        SpiffeId {
            cluster: cluster.to_owned(),
            holder: Holder::Node(name.parse().unwrap()),
        }
    }

    #[test]
    fn a_certificate_is_named_by_the_authority_not_by_the_request() {
        let authority = Authority::generate("c1", now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .subject_alt_names
            .push(SanType::URI(ia5("spiffe://c1/server".to_owned()).unwrap()));
        let request = params.serialize_request(&key).unwrap().pem().unwrap();

        let chain = authority
            .issue(&request, &node("c1", "a"), &Terms::default(), now())
            .unwrap();

        assert_eq!(name_in(&chain).unwrap(), node("c1", "a"));
        let der = certificate::from_pem(&chain).unwrap().remove(0);
        let parsed = certificate::parse(&der).unwrap();
        assert!(!parsed.is_ca());
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert_eq!(
            *parsed.public_key().subject_public_key.data,
            *key.der_bytes()
        );
    }

    #[test]
    fn only_the_own_cluster_is_named() {
        let authority = Authority::generate("c1", now()).unwrap();
        let request = Key::generate().unwrap().request().unwrap();
        let refused = authority.issue(&request, &node("c2", "a"), &Terms::default(), now());
        assert!(matches!(refused, Err(Error::ForeignName { .. })));
        for bad in ["", "A", "a/b", "a b"] {
            assert!(Authority::generate(bad, now()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tampered_or_huge_request_is_refused() {
        let authority = Authority::generate("c1", now()).unwrap();
        let huge = "-".repeat(REQUEST_MAX_LENGTH + 1);
        for bad in ["", "nonsense", huge.as_str()] {
            assert!(
                authority
                    .issue(bad, &node("c1", "a"), &Terms::default(), now())
                    .is_err()
            );
        }
    }

    /// The signature covers the key; of the shell around both a byte may change and mean the same.
    #[test]
    fn no_changed_request_puts_another_key_into_a_certificate() {
        let request = Key::generate().unwrap().request().unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
        let key_in = |der: &[u8]| {
            let request = CertificateSigningRequestParams::from_der(&der.to_vec().into());
            Some(request.ok()?.public_key.der_bytes().to_vec())
        };
        let key = key_in(&der).unwrap();
        let mut refused = 0;
        for index in 0..der.len() {
            let mut changed = der.to_vec();
            changed[index] ^= 0x10;
            match key_in(&changed) {
                Some(other) => assert_eq!(other, key, "byte {index}"),
                None => refused += 1,
            }
            assert_eq!(key_in(&der[..index]), None, "the first {index} bytes");
        }
        assert!(
            refused > key.len() + 64,
            "key and signature at least: {refused}"
        );
    }

    #[test]
    fn rotation_is_due_after_half_a_day_or_half_of_the_life() {
        let authority = Authority::generate("c1", now()).unwrap();
        let identity = authority
            .identity(&node("c1", "a"), &Terms::default(), now())
            .unwrap();
        let hours = |hours: i64| now() + jiff::SignedDuration::from_hours(hours);
        for (at, expected) in [(-3, true), (-2, false), (0, false), (11, false), (12, true)] {
            let due = needs_rotation(&identity.certificate, hours(at)).unwrap();
            assert_eq!(due, expected, "{at} h after its making");
        }
        assert_eq!(expires_at(&identity.certificate).unwrap(), hours(30 * 24));
        let short = Terms {
            lifetime: Duration::from_secs(2 * 3600),
            ..Terms::default()
        };
        let short = authority.identity(&node("c1", "a"), &short, now()).unwrap();
        assert!(!needs_rotation(&short.certificate, hours(0)).unwrap());
        assert!(needs_rotation(&short.certificate, hours(1)).unwrap());
    }

    #[test]
    fn a_key_is_the_same_in_requests_certificates_and_files() {
        let authority = Authority::generate("c1", now()).unwrap();
        let key = Key::generate().unwrap();
        let (own, request) = (key.fingerprint(), key.request().unwrap());
        assert_eq!(key_of_request(&request).unwrap(), own);
        let chain = authority
            .issue(&request, &node("c1", "a"), &Terms::default(), now())
            .unwrap();
        assert_eq!(key_in(&chain).unwrap(), own);
        let kept = key.into_identity(chain).key;
        assert_eq!(Key::from_pem(&kept).unwrap().fingerprint(), own);
        assert_ne!(Key::generate().unwrap().fingerprint(), own);
    }

    #[test]
    fn an_authority_is_made_anew_in_the_second_half_of_its_life_with_the_same_key() {
        let authority = Authority::generate("c1", now()).unwrap();
        let years = |years: i64| now() + jiff::SignedDuration::from_hours(years * 365 * 24);
        assert!(authority.renewed(years(4)).unwrap().is_none());
        let renewed = authority.renewed(years(6)).unwrap().unwrap();
        assert_eq!((renewed.cluster(), renewed.key()), ("c1", authority.key()));
        assert_ne!(renewed.fingerprint(), authority.fingerprint());
        assert!(renewed.renewed(years(10)).unwrap().is_none());
    }

    #[test]
    fn an_authority_survives_its_resting_forms() {
        let authority = Authority::generate("c1", now()).unwrap();
        let again = Authority::from_pem(authority.certificate(), authority.key()).unwrap();
        assert_eq!(again.fingerprint(), authority.fingerprint());
        assert_eq!(again.cluster(), "c1");

        let keyring = Keyring::generate();
        let sealed = authority.seal(&keyring).unwrap();
        let text = serde_json::to_string(&sealed).unwrap();
        assert!(!text.contains("PRIVATE KEY"));
        let sealed: SealedAuthority = serde_json::from_str(&text).unwrap();
        let unsealed = Authority::unseal(&sealed, &keyring).unwrap();
        assert_eq!(unsealed.key(), authority.key());
        assert!(Authority::unseal(&sealed, &Keyring::generate()).is_err());
    }

    #[test]
    fn a_foreign_key_is_not_taken_for_the_authoritys() {
        let one = Authority::generate("c1", now()).unwrap();
        let other = Authority::generate("c1", now()).unwrap();
        let mixed = Authority::from_pem(one.certificate(), other.key());
        assert!(matches!(mixed, Err(Error::WrongKey)));
    }

    #[test]
    fn debug_shows_no_key() {
        let authority = Authority::generate("c1", now()).unwrap();
        let text = format!("{authority:?}");
        assert!(text.contains("c1") && !text.contains("PRIVATE"), "{text}");
    }
}
