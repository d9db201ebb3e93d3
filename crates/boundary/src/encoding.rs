//! Bytes as text: base64 inside JSON, hexadecimal for people.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest(&SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 is 32 bytes")
}

pub(crate) use model::ids::hex;

pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Base64 that survives URLs, shells and double clicks.
pub(crate) fn url_safe(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn from_url_safe(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Whether both are equal, in a time that depends on their length alone.
pub(crate) fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    let differences = left
        .iter()
        .zip(right)
        .fold(0, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
    left.len() == right.len() && differences == 0
}

/// For `#[serde(with = "...")]`: bytes as base64 text.
pub(crate) mod base64_text {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_survives_its_text_form() {
        assert_eq!(from_hex(&hex(&[0, 0xab, 0xff])), Some([0, 0xab, 0xff]));
        for bad in ["", "0", "+1", "zz", "0000"] {
            assert_eq!(from_hex::<1>(bad), None, "{bad}");
        }
    }

    #[test]
    fn equality_sees_every_byte_and_the_length() {
        assert!(equal_in_constant_time(b"abc", b"abc"));
        for other in [&b"abd"[..], b"bbc", b"ab", b"abcd", b""] {
            assert!(!equal_in_constant_time(b"abc", other), "{other:?}");
        }
    }
}
