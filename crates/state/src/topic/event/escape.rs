//! Values of attributes as headers.

use std::borrow::Cow;
use std::fmt::Write as _;

/// As the HTTP binding has it: spaces, quotes, percent signs and what is not printable ASCII are percent-encoded UTF-8.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%';
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match plain(byte) {
            true => encoded.push(char::from(byte)),
            false => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

pub(super) fn decoded(bytes: &[u8]) -> Option<String> {
    let bytes = unquoted(bytes);
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = &*bytes;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(hex_byte);
        decoded.push(escaped.unwrap_or(*first));
        rest = match escaped {
            Some(_) => &tail[2..],
            None => tail,
        };
    }
    String::from_utf8(decoded).ok()
}

/// As older versions of the binding have it: between double quotes, with backslashes before what means something else.
fn unquoted(bytes: &[u8]) -> Cow<'_, [u8]> {
    let quoted = bytes.strip_prefix(b"\"");
    let Some(quoted) = quoted.and_then(|rest| rest.strip_suffix(b"\"")) else {
        return bytes.into();
    };
    let mut plain = Vec::with_capacity(quoted.len());
    let mut quoted = quoted.iter();
    while let Some(byte) = quoted.next() {
        let byte = match byte {
            b'\\' => quoted.next().unwrap_or(byte),
            byte => byte,
        };
        plain.push(*byte);
    }
    plain.into()
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digits = str::from_utf8(digits).ok()?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
