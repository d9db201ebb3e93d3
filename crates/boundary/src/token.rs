//! Bearer tokens: 256 random bits that are shown once and kept only as SHA-256.
//!
//! A plain SHA-256 suffices, where a password would want a slow hash: nobody guesses 256 bits.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use model::ids::NodeName;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::authority::Fingerprint;
use crate::encoding::{equal_in_constant_time, from_hex, from_url_safe, hex, sha256, url_safe};
use crate::random;

/// Why a token was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("this is not a token: expected `ml_admin_...` or `ml_join_...`")]
    Malformed,
    #[error("the token is not known here")]
    Unknown,
    #[error("the token expired at {0}; ask for a new one")]
    Expired(Timestamp),
    #[error("the token is for node `{0}`")]
    OtherNode(NodeName),
}

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The API, as an administrator.
    Admin,
    /// The way in for a node.
    Join,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Admin => "ml_admin_",
            Self::Join => "ml_join_",
        }
    }

    fn of(text: &str) -> Option<(Self, &str)> {
        [Self::Admin, Self::Join]
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)))
    }
}

/// The 256 bits themselves. Zeroed when dropped; Debug does not show them.
#[derive(Clone, PartialEq, Eq)]
struct Secret([u8; 32]);

impl Secret {
    fn generate() -> Self {
        Self(random::bytes())
    }

    fn hash(&self) -> Hash {
        Hash(sha256(&self.0))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What is kept of a token. 64 hexadecimal digits in text, fit for a key in the store: who can read it can't use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

/// A token that opens the API. Given away as text once, by [`Token::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Secret);

impl Token {
    pub fn generate() -> Self {
        Self(Secret::generate())
    }

    /// `ml_admin_` and 43 characters.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{}", Kind::Admin.prefix(), url_safe(&self.0.0)))
    }

    pub fn hash(&self) -> Hash {
        self.0.hash()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl FromStr for Token {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((Kind::Admin, rest)) = Kind::of(text) else {
            return Err(Error::Malformed);
        };
        let bytes = Zeroizing::new(from_url_safe(rest).ok_or(Error::Malformed)?);
        let bytes = bytes[..].try_into().map_err(|_| Error::Malformed)?;
        Ok(Self(Secret(bytes)))
    }
}

/// What a machine needs to join: whom to believe, and why it should be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The authority of the cluster that it may trust.
    pub authority: Fingerprint,
    /// The only node that may use it; `None`: any that is new.
    pub node: Option<NodeName>,
    pub expires_at: Timestamp,
    secret: Secret,
}

/// Of the bytes in the text form; a change of it takes a new number.
const JOIN_VERSION: u8 = 1;

impl JoinToken {
    pub fn generate(authority: Fingerprint, node: Option<NodeName>, expires_at: Timestamp) -> Self {
        Self {
            authority,
            node,
            expires_at: Timestamp::from_second(expires_at.as_second()).unwrap_or(expires_at),
            secret: Secret::generate(),
        }
    }

    /// `ml_join_` and base64 of: version, fingerprint, secret, expiry in seconds, name of the node.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(vec![JOIN_VERSION]);
        bytes.extend(self.authority.0);
        bytes.extend(self.secret.0);
        bytes.extend(self.expires_at.as_second().to_be_bytes());
        bytes.extend(self.node.iter().flat_map(|node| node.as_str().bytes()));
        Zeroizing::new(format!("{}{}", Kind::Join.prefix(), url_safe(&bytes)))
    }

    pub fn hash(&self) -> Hash {
        self.secret.hash()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, bytes) = bytes.split_first()?;
        let (authority, bytes) = bytes.split_first_chunk()?;
        let (secret, bytes) = bytes.split_first_chunk()?;
        let (expires, name) = bytes.split_first_chunk()?;
        let name = std::str::from_utf8(name).ok()?;
        Some(Self {
            authority: Fingerprint(*authority),
            node: match name {
                "" => None,
                name => Some(name.parse().ok()?),
            },
            expires_at: Timestamp::from_second(i64::from_be_bytes(*expires)).ok()?,
            secret: Secret(*secret),
        })
        .filter(|_| *version == JOIN_VERSION)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("authority", &self.authority.to_string())
            .field("node", &self.node)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((Kind::Join, rest)) = Kind::of(text) else {
            return Err(Error::Malformed);
        };
        let bytes = Zeroizing::new(from_url_safe(rest).ok_or(Error::Malformed)?);
        Self::from_bytes(&bytes).ok_or(Error::Malformed)
    }
}

/// What the server keeps of a token that it has given away: one record each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub kind: Kind,
    /// Whom it stands for, for people: `root`, `laptop`.
    pub name: String,
    pub hash: Hash,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// For a join token: the only node that may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
}

impl Record {
    pub fn of_admin(token: &Token, name: &str, expires_at: Option<Timestamp>) -> Self {
        Self {
            kind: Kind::Admin,
            name: name.to_owned(),
            hash: token.hash(),
            expires_at,
            node: None,
        }
    }

    pub fn of_join(token: &JoinToken, name: &str) -> Self {
        Self {
            kind: Kind::Join,
            name: name.to_owned(),
            hash: token.hash(),
            expires_at: Some(token.expires_at),
            node: token.node.clone(),
        }
    }

    /// Whether this is the record of an administrator's token, which is still good. What the token's own text says is not asked.
    pub fn admits(&self, token: &Token, now: Timestamp) -> Result<(), Error> {
        self.admits_hash(token.hash(), now)
    }

    /// The same of a token that was hashed already.
    pub fn admits_hash(&self, hash: Hash, now: Timestamp) -> Result<(), Error> {
        self.check(Kind::Admin, hash, now)
    }

    /// Whether this is the record of a join token that is still good: for whom is not asked.
    pub fn admits_some_node(&self, token: &JoinToken, now: Timestamp) -> Result<(), Error> {
        self.check(Kind::Join, token.hash(), now)
    }

    /// Whether this is the record of a join token, which is still good for `node`.
    pub fn admits_node(
        &self,
        token: &JoinToken,
        node: &NodeName,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.check(Kind::Join, token.hash(), now)?;
        match &self.node {
            Some(expected) if expected != node => Err(Error::OtherNode(expected.clone())),
            _ => Ok(()),
        }
    }

    fn check(&self, kind: Kind, hash: Hash, now: Timestamp) -> Result<(), Error> {
        if self.kind != kind || !equal_in_constant_time(&self.hash.0, &hash.0) {
            return Err(Error::Unknown);
        }
        match self.expires_at {
            Some(end) if now >= end => Err(Error::Expired(end)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for Hash {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        from_hex(text).map(Self).ok_or(Error::Malformed)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("expected 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn join(node: Option<&str>) -> JoinToken {
        let end = now() + SignedDuration::from_hours(1);
        let node = node.map(|name| name.parse().unwrap());
        JoinToken::generate(Fingerprint([7; 32]), node, end)
    }

    #[test]
    fn tokens_survive_their_text_form() {
        let token = Token::generate();
        assert!(token.reveal().starts_with("ml_admin_"));
        assert_eq!(token.reveal().len(), "ml_admin_".len() + 43);
        assert_eq!(token.reveal().parse::<Token>().unwrap(), token);
        for token in [join(None), join(Some("a"))] {
            assert!(token.reveal().starts_with("ml_join_"));
            assert_eq!(token.reveal().parse::<JoinToken>().unwrap(), token);
        }
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let admin = Token::generate().reveal();
        let mut join = join(None);
        join.authority = Fingerprint([0; 32]);
        let join = join.reveal();
        for bad in [
            "",
            "ml_admin_",
            "ml_admin_AAAA",
            "ml_join_AAAA",
            "hunter2",
            &join,
        ] {
            assert_eq!(bad.parse::<Token>(), Err(Error::Malformed), "{bad}");
        }
        let next_version = join.replacen("ml_join_AQ", "ml_join_Ag", 1);
        assert_ne!(next_version, *join);
        for bad in ["", "ml_join_", "ml_join_AAAA", &next_version, &admin] {
            assert_eq!(bad.parse::<JoinToken>(), Err(Error::Malformed), "{bad}");
        }
    }

    #[test]
    fn no_part_of_a_token_is_a_token() {
        let (admin, join) = (Token::generate().reveal(), join(None).reveal());
        for length in 0..admin.len() {
            assert!(admin[..length].parse::<Token>().is_err(), "{length}");
        }
        // What is cut off at the end may be the node's name, and the rest a token for any node: the server's record decides.
        let least = "ml_join_".len() + (1 + 32 + 32 + 8) * 4 / 3;
        for length in 0..least {
            assert!(join[..length].parse::<JoinToken>().is_err(), "{length}");
        }
    }

    #[test]
    fn an_administrators_token_opens_until_its_end() {
        let token = Token::generate();
        let end = now() + SignedDuration::from_hours(1);
        let record = Record::of_admin(&token, "root", Some(end));
        assert_eq!(record.admits(&token, now()), Ok(()));
        assert_eq!(record.admits(&token, end), Err(Error::Expired(end)));
        assert_eq!(
            record.admits(&Token::generate(), now()),
            Err(Error::Unknown)
        );
    }

    #[test]
    fn a_join_token_opens_for_its_node_until_its_end() {
        let token = join(Some("a"));
        let record = Record::of_join(&token, "for a");
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(record.admits_node(&token, &a, now()), Ok(()));
        assert!(matches!(
            record.admits_node(&token, &b, now()),
            Err(Error::OtherNode(_))
        ));
        assert!(matches!(
            record.admits_node(&token, &a, token.expires_at),
            Err(Error::Expired(_))
        ));
        assert_eq!(
            record.admits_node(&join(Some("a")), &a, now()),
            Err(Error::Unknown)
        );
    }

    #[test]
    fn a_join_secret_is_no_administrators_token() {
        let token = join(None);
        let forged = Token(token.secret.clone());
        let record = Record::of_join(&token, "any");
        assert_eq!(record.admits(&forged, now()), Err(Error::Unknown));
    }

    #[test]
    fn a_later_end_in_the_text_changes_nothing() {
        let mut token = join(None);
        let record = Record::of_join(&token, "any");
        let end = token.expires_at;
        token.expires_at = end + SignedDuration::from_hours(99);
        let verdict = record.admits_node(&token, &"a".parse().unwrap(), end);
        assert_eq!(verdict, Err(Error::Expired(end)));
    }

    #[test]
    fn records_hold_no_secret() {
        let token = Token::generate();
        let record = Record::of_admin(&token, "root", None);
        let json = serde_json::to_string(&record).unwrap();
        let secret = token.reveal();
        assert!(!json.contains(secret.strip_prefix("ml_admin_").unwrap()));
        assert!(!format!("{token:?} {:?}", join(None)).contains(&hex(&token.0.0)));
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }
}
