//! Quantities with units: typed, so that a number can't be read in the wrong one.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct QuantityError {
    pub text: String,
    pub expected: &'static str,
}

/// A number of bytes: `128Mi`, `1Gi`, `500M`, `4096` in text. `Ki Mi Gi Ti` are powers of 1024, `k M G T` of 1000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl Bytes {
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }
}

macro_rules! bounded_arithmetic {
    ($name:ident) => {
        /// There is no plain `-` and no `+`: a quantity is never less than nothing, nor does it begin anew at its end.
        impl $name {
            pub const fn saturating_add(self, more: Self) -> Self {
                Self(self.0.saturating_add(more.0))
            }

            pub const fn saturating_sub(self, less: Self) -> Self {
                Self(self.0.saturating_sub(less.0))
            }

            pub const fn saturating_mul(self, times: u64) -> Self {
                Self(self.0.saturating_mul(times))
            }
        }
    };
}

bounded_arithmetic!(Bytes);
bounded_arithmetic!(MilliCpu);

impl FromStr for Bytes {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.to_owned(),
            expected: "a size: a number with `Ki`, `Mi`, `Gi`, `Ti`, `k`, `M`, `G` or `T`, such as `128Mi`",
        };
        let unit = BYTE_UNITS.iter().find(|(suffix, _)| text.ends_with(suffix));
        let (number, factor) = match unit {
            Some((suffix, factor)) => (&text[..text.len() - suffix.len()], *factor),
            None => (text, 1),
        };
        scaled(number, factor).map(Self).ok_or_else(error)
    }
}

/// `number × factor`, exactly, for a decimal number; `None` where that is not a whole `u64`.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return None;
    }
    let tenths = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value: u128 = format!("{whole}{fraction}").parse().ok()?;
    let product = value.checked_mul(u128::from(factor))?;
    if product % tenths != 0 {
        return None;
    }
    u64::try_from(product / tenths).ok()
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 != 0 && self.0.is_multiple_of(factor);
        match BYTE_UNITS[..4]
            .iter()
            .rev()
            .find(|(_, factor)| fits(*factor))
        {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Thousandths of a CPU: `0.25` or `250m` in text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MilliCpu(pub u64);

impl FromStr for MilliCpu {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.to_owned(),
            expected: "an amount of CPU: cores such as `0.25`, or thousandths such as `250m`",
        };
        match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse().map(Self).map_err(|_| error()),
            None => scaled(text, 1000).map(Self).ok_or_else(error),
        }
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            return write!(f, "{}", self.0 / 1000);
        }
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0'))
    }
}

/// A length of time: `250ms`, `2s`, `5m`, `1h`, `1h30m` in text. Millisecond grain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }
    pub const fn milliseconds(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.to_owned(),
            expected: "a length of time: a number with `ms`, `s`, `m`, `h` or `d`, such as `2s`",
        };
        let mut rest = text;
        let mut total_ms: u64 = 0;
        while !rest.is_empty() {
            let unit_at = rest
                .find(|c: char| c.is_ascii_alphabetic())
                .ok_or_else(error)?;
            let (number, tail) = rest.split_at(unit_at);
            let unit_end = tail
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let factor = unit_milliseconds(unit).ok_or_else(error)?;
            let part = scaled(number, factor).ok_or_else(error)?;
            total_ms = total_ms.checked_add(part).ok_or_else(error)?;
            rest = tail;
        }
        if text.is_empty() {
            return Err(error());
        }
        Ok(Self(Duration::from_millis(total_ms)))
    }
}

fn unit_milliseconds(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest_ms = self.0.as_millis();
        if rest_ms == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if rest_ms >= factor {
                write!(f, "{}{unit}", rest_ms / factor)?;
                rest_ms %= factor;
            }
        }
        Ok(())
    }
}

macro_rules! text_form {
    ($name:ident, $example:expr) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "examples": [$example] })
            }
        }
    };
}

text_form!(Bytes, "128Mi");
text_form!(MilliCpu, "0.25");
text_form!(Span, "2s");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_like_a_table() {
        let table = [
            ("4096", 4096),
            ("128Mi", 128 << 20),
            ("1.5Gi", 3 << 29),
            ("2k", 2000),
            ("0", 0),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "Mi", "-1", "1.Mi", "1 Mi", "1mi", "0.3", "99999999Ti"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_read_like_a_table() {
        let table = [("1", 1000), ("0.25", 250), ("250m", 250), ("2.5", 2500)];
        for (text, thousandths) in table {
            assert_eq!(text.parse(), Ok(MilliCpu(thousandths)), "{text}");
        }
        assert_eq!(MilliCpu(250).to_string(), "0.25");
        assert!("0.0001".parse::<MilliCpu>().is_err());
    }

    #[test]
    fn spans_read_like_a_table() {
        let table = [
            ("250ms", 250),
            ("2s", 2000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("1d", 86_400_000),
        ];
        for (text, ms) in table {
            assert_eq!(text.parse(), Ok(Span::milliseconds(ms)), "{text}");
        }
        for bad in ["", "5", "s", "5x", "1s2"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(Span::milliseconds(61_500).to_string(), "1m1s500ms");
    }
}
