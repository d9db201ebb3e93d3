//! Reading certificates: whose they are and when they are valid.

use jiff::Timestamp;
use model::boundary::{KeyFingerprint, SpiffeId};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::encoding::{hex, sha256};

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

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Error::Malformed)?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(Error::Malformed)
    }
}

/// All certificates of a PEM text, at least one.
pub(crate) fn from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::Malformed)?;
    if all.is_empty() {
        return Err(Error::Missing);
    }
    Ok(all)
}

/// The one URI name that a SPIFFE certificate has.
pub(crate) fn uri_name(der: &CertificateDer<'_>) -> Result<String, Error> {
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

pub(crate) fn spiffe_id(der: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    Ok(uri_name(der)?.parse()?)
}

/// Whose key a certificate is for.
pub(crate) fn key(der: &CertificateDer<'_>) -> Result<KeyFingerprint, Error> {
    Ok(fingerprint_of(parse(der)?.public_key().raw))
}

/// Whose key a signing request (PEM) is for. That it was signed with that key is not looked at: whoever signs it looks.
pub(crate) fn key_of_request(pem: &str) -> Result<KeyFingerprint, Error> {
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
pub(crate) fn fingerprint_of(key: &[u8]) -> KeyFingerprint {
    KeyFingerprint(hex(&sha256(key)))
}

/// From when to when a certificate is valid.
pub(crate) fn validity(der: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), Error> {
    let certificate = parse(der)?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|_| Error::Malformed)
    };
    let validity = certificate.validity();
    Ok((at(validity.not_before)?, at(validity.not_after)?))
}
