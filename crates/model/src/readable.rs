//! Lists of which a part may be said in words of a later version.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Said<T> {
    Known(T),
    Foreign(IgnoredAny),
}

/// Those that can be read; the others are left out, and cost only themselves.
pub(crate) fn those<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let all = Vec::<Said<T>>::deserialize(deserializer)?.into_iter();
    let known = all.filter_map(|said| match said {
        Said::Known(known) => Some(known),
        Said::Foreign(_) => None,
    });
    Ok(known.collect())
}
