//! Secret values: in memory a type that does not show them, at rest an envelope.
//!
//! ```text
//! value ──AES-256-GCM── data key (one per envelope) ──AES-256-GCM── key of the ring, by id
//!            both bound to what the value is: project/name/version, so that envelopes can't be exchanged
//! ```
//!
//! Rotation of the ring re-wraps the data keys and leaves the values' ciphertext as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use model::ids::ResourceId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::encoding::{base64_text, equal_in_constant_time, hex};
use crate::random;

/// Longest value of a secret: 64 KiB, more than any key or certificate chain has.
pub const VALUE_MAX_LENGTH: usize = 64 * 1024;
/// Most keys in a ring: the current one and those whose envelopes have not yet been re-wrapped.
pub const KEYS_MOST: usize = 64;
/// Largest key file that is read, in bytes.
const FILE_MAX_LENGTH: u64 = 64 * 1024;

/// Why a secret could not be sealed or opened, or a ring not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no key `{0}` in the key ring; the secret was sealed by another ring")]
    UnknownKey(KeyId),
    #[error("the envelope of {what} does not open: it was changed, or belongs to something else")]
    Tampered { what: String },
    #[error("the envelope is of version {0}; this program knows only {ENVELOPE_VERSION}")]
    Version(u32),
    #[error("a secret can't be longer than {VALUE_MAX_LENGTH} bytes")]
    TooLong,
    #[error("the key ring is full: {KEYS_MOST} keys; retire those that seal nothing any more")]
    RingFull,
    #[error("can't {doing} the key file {path}: {source}")]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the key file {0} may be read by others: `chmod 600` it")]
    Exposed(PathBuf),
    #[error("the key file {0} is malformed; restore it from a copy, for nothing opens without it")]
    Malformed(PathBuf),
}

/// A secret's value. Not shown by Debug, has no `Serialize`, zeroed when dropped.
///
/// ```compile_fail,E0277
/// let value = boundary::secret::SecretValue::from("s3cret");
/// serde_json::to_string(&value).unwrap();
/// ```
#[derive(Clone, Eq)]
pub struct SecretValue(Vec<u8>);

impl SecretValue {
    /// Random bytes as lower-case hexadecimal, twice as many characters: for `generate: BYTES` in the manifest.
    pub fn generate(bytes: u32) -> Self {
        let mut random = Zeroizing::new(vec![0; bytes as usize]);
        random::fill(&mut random);
        Self(hex(&random).into_bytes())
    }

    /// The value itself. Each call is a place to look at when one asks where secrets go.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for SecretValue {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for SecretValue {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl PartialEq for SecretValue {
    fn eq(&self, other: &Self) -> bool {
        equal_in_constant_time(&self.0, &other.0)
    }
}

impl Drop for SecretValue {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

/// What an envelope's value is. An envelope opens only for the binding that it was sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// The version of a secret, counted from 1 by its owner.
    Secret { id: ResourceId, version: u64 },
    /// The key of a cluster's authority.
    Authority { cluster: String },
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { id, version } => write!(f, "secret {id}/{version}"),
            Self::Authority { cluster } => write!(f, "authority {cluster}"),
        }
    }
}

/// Names a key of a ring: eight hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const ENVELOPE_VERSION: u32 = 1;
const KEY_LENGTH: usize = 32;

/// A sealed value: what the store holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Of this form.
    pub version: u32,
    /// The key of the ring that wraps the data key.
    pub key_id: KeyId,
    /// Nonce, then the data key sealed by the ring's key.
    #[serde(with = "base64_text")]
    wrapped_key: Vec<u8>,
    /// Nonce, then the value sealed by the data key.
    #[serde(with = "base64_text")]
    ciphertext: Vec<u8>,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("version", &self.version)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// A 256-bit key, zeroed when dropped.
type Key = Zeroizing<[u8; KEY_LENGTH]>;

/// The keys that wrap data keys: one current, and older ones for envelopes that are not yet re-wrapped.
#[derive(Clone)]
pub struct Keyring {
    current: KeyId,
    keys: BTreeMap<KeyId, Key>,
}

impl Keyring {
    /// A ring with one new key.
    pub fn generate() -> Self {
        let (id, key) = new_key();
        Self {
            current: id.clone(),
            keys: BTreeMap::from([(id, key)]),
        }
    }

    /// Reads the ring from its file, or makes both. The file has mode 0600; one that others may read is refused.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match File::open(path) {
            Ok(file) => Self::read(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ring = Self::generate();
                ring.save(path)?;
                Ok(ring)
            }
            Err(source) => Err(file_error("open", path)(source)),
        }
    }

    /// Writes the ring beside its file and renames it into place: a crash leaves the old ring or the new one.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text =
            Zeroizing::new(serde_json::to_vec(&KeyFile::from(self)).expect("a ring is plain data"));
        let fresh = path.with_extension("new");
        write_synced(&fresh, &text).map_err(file_error("write", &fresh))?;
        fs::rename(&fresh, path).map_err(file_error("replace", path))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(file_error("sync", path))
    }

    pub fn current(&self) -> &KeyId {
        &self.current
    }

    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    /// Adds a new key and makes it the current one. Save the ring before sealing anything with it.
    pub fn rotate(&mut self) -> Result<KeyId, Error> {
        if self.keys.len() >= KEYS_MOST {
            return Err(Error::RingFull);
        }
        let (id, key) = new_key();
        self.keys.insert(id.clone(), key);
        self.current = id.clone();
        Ok(id)
    }

    /// Forgets a key that wraps nothing any more. The current one stays. True: it was there.
    pub fn retire(&mut self, id: &KeyId) -> bool {
        *id != self.current && self.keys.remove(id).is_some()
    }

    /// Seals a value under a new data key, wrapped by the current key.
    pub fn seal(&self, binding: &Binding, value: &SecretValue) -> Result<Envelope, Error> {
        if value.expose().len() > VALUE_MAX_LENGTH {
            return Err(Error::TooLong);
        }
        let data_key = Key::new(random::bytes());
        Ok(Envelope {
            version: ENVELOPE_VERSION,
            key_id: self.current.clone(),
            wrapped_key: self.wrap(binding, &data_key),
            ciphertext: seal(&data_key, &value_aad(binding), value.expose()),
        })
    }

    /// Opens an envelope that was sealed for `binding`.
    pub fn open(&self, binding: &Binding, envelope: &Envelope) -> Result<SecretValue, Error> {
        let data_key = self.unwrap(binding, envelope)?;
        let mut value = open(&data_key, &value_aad(binding), &envelope.ciphertext)
            .ok_or_else(|| tampered(binding))?;
        Ok(SecretValue(std::mem::take(&mut *value)))
    }

    /// The same envelope, its data key wrapped by the current key. `None`: it already is.
    pub fn rewrap(
        &self,
        binding: &Binding,
        envelope: &Envelope,
    ) -> Result<Option<Envelope>, Error> {
        let data_key = self.unwrap(binding, envelope)?;
        if envelope.key_id == self.current {
            return Ok(None);
        }
        Ok(Some(Envelope {
            key_id: self.current.clone(),
            wrapped_key: self.wrap(binding, &data_key),
            ..envelope.clone()
        }))
    }

    fn wrap(&self, binding: &Binding, data_key: &Key) -> Vec<u8> {
        let key = &self.keys[&self.current];
        seal(key, &key_aad(binding, &self.current), &data_key[..])
    }

    fn unwrap(&self, binding: &Binding, envelope: &Envelope) -> Result<Key, Error> {
        if envelope.version != ENVELOPE_VERSION {
            return Err(Error::Version(envelope.version));
        }
        let id = &envelope.key_id;
        let key = self
            .keys
            .get(id)
            .ok_or_else(|| Error::UnknownKey(id.clone()))?;
        let plain = open(key, &key_aad(binding, id), &envelope.wrapped_key)
            .ok_or_else(|| tampered(binding))?;
        let plain = plain[..].try_into().map_err(|_| tampered(binding))?;
        Ok(Key::new(plain))
    }

    fn read(file: File, path: &Path) -> Result<Self, Error> {
        let metadata = file.metadata().map_err(file_error("look at", path))?;
        if metadata.mode() & 0o077 != 0 {
            return Err(Error::Exposed(path.to_owned()));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_MAX_LENGTH as usize));
        file.take(FILE_MAX_LENGTH)
            .read_to_end(&mut text)
            .map_err(file_error("read", path))?;
        serde_json::from_slice::<KeyFile>(&text)
            .ok()
            .and_then(KeyFile::into_ring)
            .ok_or_else(|| Error::Malformed(path.to_owned()))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("current", &self.current)
            .field("keys", &self.keys.len())
            .finish()
    }
}

/// A ring as its file holds it.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    current: KeyId,
    keys: BTreeMap<KeyId, KeyText>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct KeyText(#[serde(with = "base64_text")] Vec<u8>);

impl Drop for KeyText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl From<&Keyring> for KeyFile {
    fn from(ring: &Keyring) -> Self {
        let text = |(id, key): (&KeyId, &Key)| (id.clone(), KeyText(key.to_vec()));
        Self {
            current: ring.current.clone(),
            keys: ring.keys.iter().map(text).collect(),
        }
    }
}

impl KeyFile {
    fn into_ring(self) -> Option<Keyring> {
        let key = |(id, text): (&KeyId, &KeyText)| {
            Some((id.clone(), Key::new(text.0[..].try_into().ok()?)))
        };
        let keys: BTreeMap<_, _> = self.keys.iter().map(key).collect::<Option<_>>()?;
        keys.contains_key(&self.current).then_some(Keyring {
            current: self.current,
            keys,
        })
    }
}

fn new_key() -> (KeyId, Key) {
    let id = KeyId(hex(&random::bytes::<4>()));
    (id, Key::new(random::bytes()))
}

fn value_aad(binding: &Binding) -> String {
    format!("mainland value of {binding}")
}

fn key_aad(binding: &Binding, id: &KeyId) -> String {
    format!("mainland data key of {binding} under {id}")
}

fn tampered(binding: &Binding) -> Error {
    Error::Tampered {
        what: binding.to_string(),
    }
}

fn cipher(key: &Key) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has 256 bits");
    LessSafeKey::new(key)
}

/// Nonce and ciphertext. Nonces are random: a data key seals once, a ring's key far less often than the 2³² times at which
/// NIST SP 800-38D (section 8.3) wants another.
fn seal(key: &Key, aad: &str, plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = random::bytes();
    let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
    sealed.extend(nonce);
    sealed.extend(plain);
    let tag = cipher(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad.as_bytes()),
            &mut sealed[NONCE_LEN..],
        )
        .expect("AES-GCM seals up to 64 GiB");
    sealed.extend(tag.as_ref());
    sealed
}

fn open(key: &Key, aad: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut plain = Zeroizing::new(rest.to_vec());
    let length = cipher(key)
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(aad.as_bytes()),
            &mut plain,
        )
        .ok()?
        .len();
    plain.truncate(length);
    Some(plain)
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    // What a crash left there may have another mode: it must not be written into.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn binding(id: &str, version: u64) -> Binding {
        Binding::Secret {
            id: id.parse().unwrap(),
            version,
        }
    }

    fn sealed(ring: &Keyring) -> Envelope {
        ring.seal(&binding("shop/key", 1), &"hunter2".into())
            .unwrap()
    }

    #[test]
    fn a_value_comes_back_from_its_envelope() {
        let ring = Keyring::generate();
        let longest = SecretValue::from(vec![7; VALUE_MAX_LENGTH]);
        for value in ["".into(), "hunter2".into(), longest] {
            let envelope = ring.seal(&binding("shop/key", 1), &value).unwrap();
            let json = serde_json::to_string(&envelope).unwrap();
            let envelope = serde_json::from_str(&json).unwrap();
            assert_eq!(
                ring.open(&binding("shop/key", 1), &envelope).unwrap(),
                value
            );
        }
        let too_long = SecretValue::from(vec![7; VALUE_MAX_LENGTH + 1]);
        let refused = ring.seal(&binding("shop/key", 1), &too_long);
        assert!(matches!(refused, Err(Error::TooLong)));
    }

    #[test]
    fn an_envelope_opens_only_for_what_it_was_sealed_for() {
        let ring = Keyring::generate();
        let envelope = sealed(&ring);
        let authority = Binding::Authority {
            cluster: "shop/key/1".to_owned(),
        };
        for other in [
            binding("shop/key", 2),
            binding("shop/other", 1),
            binding("bank/key", 1),
            authority,
        ] {
            let refused = ring.open(&other, &envelope);
            assert!(matches!(refused, Err(Error::Tampered { .. })), "{other}");
            // Nor with the data key at hand.
            let data_key = ring.unwrap(&binding("shop/key", 1), &envelope).unwrap();
            assert!(open(&data_key, &value_aad(&other), &envelope.ciphertext).is_none());
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let ring = Keyring::generate();
        let envelope = sealed(&ring);
        let opens = |envelope: &Envelope| ring.open(&binding("shop/key", 1), envelope).is_ok();
        assert!(opens(&envelope));
        for index in 0..envelope.ciphertext.len() {
            let mut changed = envelope.clone();
            changed.ciphertext[index] ^= 1;
            assert!(!opens(&changed), "ciphertext byte {index}");
        }
        for index in 0..envelope.wrapped_key.len() {
            let mut changed = envelope.clone();
            changed.wrapped_key[index] ^= 1;
            assert!(!opens(&changed), "wrapped key byte {index}");
        }
        for length in 0..envelope.ciphertext.len() {
            let mut changed = envelope.clone();
            changed.ciphertext.truncate(length);
            assert!(!opens(&changed), "ciphertext of {length} bytes");
        }
    }

    #[test]
    fn errors_tell_a_missing_key_from_a_changed_envelope_and_a_later_form() {
        let ring = Keyring::generate();
        let what = binding("shop/key", 1);
        let foreign = Keyring::generate().open(&what, &sealed(&ring));
        assert!(matches!(foreign, Err(Error::UnknownKey(_))));
        let mut later = sealed(&ring);
        later.version = 2;
        assert!(matches!(ring.open(&what, &later), Err(Error::Version(2))));
    }

    #[test]
    fn rotation_rewraps_until_the_old_key_can_go() {
        let mut ring = Keyring::generate();
        let what = binding("shop/key", 1);
        let old = sealed(&ring);
        let old_id = ring.current().clone();
        assert!(ring.rewrap(&what, &old).unwrap().is_none());

        let new_id = ring.rotate().unwrap();
        assert_eq!(ring.open(&what, &old).unwrap(), "hunter2".into());
        let new = ring.rewrap(&what, &old).unwrap().unwrap();
        assert_eq!(new.key_id, new_id);
        assert_eq!(new.ciphertext, old.ciphertext);

        assert!(!ring.retire(&new_id), "the current key stays");
        assert!(ring.retire(&old_id));
        assert_eq!(ring.open(&what, &new).unwrap(), "hunter2".into());
        assert!(matches!(ring.open(&what, &old), Err(Error::UnknownKey(_))));
    }

    #[test]
    fn a_ring_is_bounded() {
        let mut ring = Keyring::generate();
        for _ in 1..KEYS_MOST {
            ring.rotate().unwrap();
        }
        assert!(matches!(ring.rotate(), Err(Error::RingFull)));
    }

    #[test]
    fn a_ring_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let mut ring = Keyring::load_or_create(&path).unwrap();
        let before = sealed(&ring);
        ring.rotate().unwrap();
        ring.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let again = Keyring::load_or_create(&path).unwrap();
        assert_eq!(again.current(), ring.current());
        assert_eq!(
            again.open(&binding("shop/key", 1), &before).unwrap(),
            "hunter2".into()
        );
    }

    #[test]
    fn an_exposed_or_broken_key_file_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        Keyring::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = Keyring::load_or_create(&path);
        assert!(matches!(exposed, Err(Error::Exposed(_))));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for broken in ["", "{}", r#"{"current":"x","keys":{}}"#] {
            fs::write(&path, broken).unwrap();
            let refused = Keyring::load_or_create(&path);
            assert!(matches!(refused, Err(Error::Malformed(_))), "{broken}");
            assert_eq!(fs::read_to_string(&path).unwrap(), broken);
        }
    }

    #[test]
    fn nothing_shows_a_value() {
        let ring = Keyring::generate();
        let value = SecretValue::from("hunter2");
        let shown = format!("{value:?} {:?} {ring:?}", sealed(&ring));
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(SecretValue::generate(32).expose().len(), 64);
        assert_ne!(SecretValue::generate(32), SecretValue::generate(32));
    }
}
