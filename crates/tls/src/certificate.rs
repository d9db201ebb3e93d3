//! Reading certificates: whose they are, for which key, and when they are valid.

use jiff::Timestamp;
use model::boundary::{KeyFingerprint, SpiffeId};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use model::ids::hex;

/// Why a certificate could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the certificate is malformed")]
    Malformed,
    #[error("expected one URI name in the certificate, found {0}")]
    UriNames(usize),
    #[error(transparent)]
    NotOurs(#[from] model::boundary::SpiffeError),
    #[error("no certificate in the PEM text")]
    Missing,
}

/// All of it, and nothing behind it.
pub fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Error::Malformed)?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(Error::Malformed)
    }
}

/// All certificates of a PEM text, at least one.
pub fn from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::Malformed)?;
    if all.is_empty() {
        return Err(Error::Missing);
    }
    Ok(all)
}

/// The one URI name that a SPIFFE certificate has.
pub fn uri_name(der: &CertificateDer<'_>) -> Result<String, Error> {
    let certificate = parse(der)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Error::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri.to_owned()),
        _ => Err(Error::UriNames(uris.len())),
    }
}

/// As whom its holder comes.
pub fn spiffe_id(der: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    Ok(uri_name(der)?.parse()?)
}

/// Whose key a certificate is for.
pub fn key(der: &CertificateDer<'_>) -> Result<KeyFingerprint, Error> {
    Ok(fingerprint_of(parse(der)?.public_key().raw))
}

/// Whose key a signing request (PEM) is for. That it was signed with that key is not looked at: whoever signs it looks.
pub fn key_of_request(pem: &str) -> Result<KeyFingerprint, Error> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| Error::Malformed)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| Error::Malformed)?;
    if !rest.is_empty() {
        return Err(Error::Malformed);
    }
    Ok(fingerprint_of(
        request.certification_request_info.subject_pki.raw,
    ))
}

/// `key`: a SubjectPublicKeyInfo, DER.
pub fn fingerprint_of(key: &[u8]) -> KeyFingerprint {
    KeyFingerprint(hex(&sha256(key)))
}

/// From when to when a certificate is valid.
pub fn validity(der: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), Error> {
    let certificate = parse(der)?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|_| Error::Malformed)
    };
    let validity = certificate.validity();
    Ok((at(validity.not_before)?, at(validity.not_after)?))
}

/// When the first of a chain's certificates ends.
pub fn end_of(chain: &[CertificateDer<'_>]) -> Result<Timestamp, Error> {
    let ends: Result<Vec<_>, Error> = chain
        .iter()
        .map(|one| validity(one).map(|(_, end)| end))
        .collect();
    ends?.into_iter().min().ok_or(Error::Missing)
}

/// The id of the cluster whose authority has this certificate: its name is `spiffe://{cluster}`, without a path.
pub fn cluster_of_authority(der: &CertificateDer<'_>) -> Result<String, Error> {
    let name = uri_name(der)?;
    match name.strip_prefix("spiffe://") {
        Some(cluster) if is_cluster_id(cluster) => Ok(cluster.to_owned()),
        _ => Err(Error::Malformed),
    }
}

/// SPIFFE-ID section 2.1: what a trust domain may consist of.
pub fn is_cluster_id(text: &str) -> bool {
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 255 && text.chars().all(allowed)
}

/// The SHA-256 of an authority's certificate (DER): what a join token pins. 64 hexadecimal digits in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub fn of(der: &CertificateDer<'_>) -> Self {
        Self(sha256(der))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Why a text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fingerprint: expected 64 hexadecimal digits")]
pub struct FingerprintError(String);

impl std::str::FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let error = || FingerprintError(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = &text[2 * index..2 * index + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 is 32 bytes")
}
