//! What PostgreSQL keeps of a password (RFC 5802, RFC 7677): enough to check it, too little to log in with.
//!
//! Salt and password both follow from the database's secret, so what is kept follows too, and comparing texts shows whether a role must change.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use model::ids::ResourceName;
use model::state::role_password;
use ring::{digest, hmac, pbkdf2};

/// PostgreSQL's own number. The password has 256 bits of its own.
const ROUNDS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");
const SALT_BYTES: usize = 16;

/// For `PASSWORD '...'` of a role.
pub fn verifier(secret: &str, role: &ResourceName) -> String {
    let salt = sign(secret.as_bytes(), format!("salt of {role}").as_bytes());
    of(&role_password(secret, role), &salt.as_ref()[..SALT_BYTES])
}

/// The password's characters are those of hexadecimal numbers, which SASLprep leaves as they are.
fn of(password: &str, salt: &[u8]) -> String {
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(algorithm, ROUNDS, salt, password.as_bytes(), &mut salted);
    let client = sign(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client.as_ref());
    let server = sign(&salted, b"Server Key");
    format!(
        "SCRAM-SHA-256${ROUNDS}:{}${}:{}",
        BASE64.encode(salt),
        BASE64.encode(stored),
        BASE64.encode(server)
    )
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The salt, password and server's key of RFC 7677's exchange: its server signature is made with that key.
    #[test]
    fn a_verifier_is_that_of_the_rfc() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = of("pencil", &salt);
        let server = verifier.rsplit_once(':').unwrap().1;
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = sign(&BASE64.decode(server).unwrap(), message.as_bytes());
        assert_eq!(
            BASE64.encode(signature),
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        assert!(verifier.starts_with("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"));
    }

    #[test]
    fn it_follows_from_secret_and_role_alone() {
        let role = |name| ResourceName::new(name).unwrap();
        let one = verifier("secret", &role("cart"));
        assert_eq!(one, verifier("secret", &role("cart")));
        assert_ne!(one, verifier("secret", &role("shop")));
        assert_ne!(one, verifier("other", &role("cart")));
    }
}
