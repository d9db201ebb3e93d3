//! The order of all changes, as a token that only the store understands.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in the history of a store. A number inside; outside, in URLs, ETags and JSON, an opaque token.
///
/// The token is scrambled and carries a check, so that nobody comes to count on its order or computes one: what was not
/// handed out is refused. It hides nothing and grants nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// Before the first change.
    pub const ZERO: Revision = Revision(0);

    /// For engines and tests; everyone else gets revisions from a store.
    pub const fn from_number(number: u64) -> Revision {
        Revision(number)
    }

    pub const fn number(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

/// The text is no revision of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no revision; use one that the API answered, unchanged")]
pub struct InvalidRevision {
    text: String,
}

const PREFIX: &str = "r-";
/// Without letters and digits that look alike (Crockford's base 32, lower case).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 64 bits of number and the rest check, five to a digit.
const DIGITS: usize = 20;
const CHECK_BITS: u32 = 36;

/// Odd, hence invertible modulo 2^64; the multiplier of splitmix64's increment.
const SCRAMBLE: u64 = 0x9e37_79b9_7f4a_7c15;
const UNSCRAMBLE: u64 = inverse(SCRAMBLE);
/// Keeps revision zero from looking like zero.
const MASK: u64 = 0x6d61_696e_6c61_6e64;

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the right bits.
const fn inverse(odd: u64) -> u64 {
    let mut result = odd;
    let mut step = 0;
    while step < 6 {
        result = result.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(result)));
        step += 1;
    }
    result
}

fn scramble(number: u64) -> u64 {
    (number ^ MASK).wrapping_mul(SCRAMBLE).rotate_left(32)
}

fn unscramble(scrambled: u64) -> u64 {
    scrambled.rotate_right(32).wrapping_mul(UNSCRAMBLE) ^ MASK
}

/// Bits that depend on every bit of the number (the finalizer of splitmix64).
fn check(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(SCRAMBLE);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) >> (64 - CHECK_BITS)
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(scramble(self.0)) << CHECK_BITS | u128::from(check(self.0));
        let mut token = [0; PREFIX.len() + DIGITS];
        let (prefix, digits) = token.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        for (place, digit) in digits.iter_mut().rev().enumerate() {
            *digit = ALPHABET[(bits >> (5 * place)) as usize & 31];
        }
        // In one piece: every answer to a write has it twice.
        formatter.write_str(std::str::from_utf8(&token).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Revision {
    type Err = InvalidRevision;

    fn from_str(text: &str) -> Result<Self, InvalidRevision> {
        let invalid = || InvalidRevision {
            text: text.chars().take(64).collect(),
        };
        let digits = text
            .strip_prefix(PREFIX)
            .filter(|digits| digits.len() == DIGITS)
            .ok_or_else(invalid)?;
        let bits = digits.bytes().try_fold(0u128, |bits, digit| {
            let value = ALPHABET.iter().position(|known| *known == digit)?;
            Some(bits << 5 | value as u128)
        });
        let bits = bits.ok_or_else(invalid)?;
        let number = unscramble((bits >> CHECK_BITS) as u64);
        if u128::from(check(number)) == bits & ((1 << CHECK_BITS) - 1) {
            Ok(Revision(number))
        } else {
            Err(invalid())
        }
    }
}

impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_parses_to_the_same_revision() {
        for number in [0, 1, 2, 255, 1 << 32, (1 << 63) + 7, u64::MAX] {
            let token = Revision(number).to_string();
            assert_eq!(token.parse(), Ok(Revision(number)), "{token}");
            assert_eq!(token.len(), PREFIX.len() + DIGITS);
        }
    }

    #[test]
    fn neighbours_look_nothing_alike() {
        let (one, two) = (Revision(41).to_string(), Revision(42).to_string());
        let same = one
            .bytes()
            .zip(two.bytes())
            .skip(PREFIX.len())
            .filter(|(a, b)| a == b)
            .count();
        assert!(same < DIGITS / 2, "{one} {two}");
    }

    #[test]
    fn what_was_not_handed_out_is_refused() {
        let token = Revision(42).to_string();
        for forged in [
            "",
            "42",
            "r-",
            "r-42",
            "r-00000000000000000000",
            &token[1..],
            &format!("{token}0"),
            &token.to_uppercase(),
        ] {
            assert!(forged.parse::<Revision>().is_err(), "{forged}");
        }
    }

    #[test]
    fn one_changed_digit_is_noticed() {
        let token = Revision(42).to_string();
        let mut accepted = 0;
        for position in PREFIX.len()..token.len() {
            for digit in ALPHABET {
                let mut bytes = token.clone().into_bytes();
                bytes[position] = *digit;
                let forged = String::from_utf8(bytes).unwrap();
                accepted += usize::from(forged != token && forged.parse::<Revision>().is_ok());
            }
        }
        assert_eq!(accepted, 0);
    }
}
