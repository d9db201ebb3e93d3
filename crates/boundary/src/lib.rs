//! Who may do what: identities, permissions, secrets, and the record of what was done.
//!
//! | module | what it answers |
//! |---|---|
//! | [`authority`] | who somebody is: the cluster's certificate authority and the short-lived certificates it issues |
//! | [`token`] | who somebody without a certificate is: bearer and join tokens, of which only hashes are kept |
//! | [`authorize`] | whether a principal may do something (`authorize`), and whether it fits the limits (`admit`) |
//! | [`secret`] | how secret values rest: envelopes under a key ring |
//! | [`audit`] | who changed what, and when: a bounded log on disk |
//!
//! A request runs through them in this order: certificates (the crate `tls`) or [`token`] tell the principal, [`authorize::authorize`] and
//! [`authorize::admit`] decide, and [`audit::Filter`] chooses from what is kept of each change.
//!
//! Time is handed in, as a [`jiff::Timestamp`] or, where a library asks for it later, as a [`Clock`]. The randomness of keys,
//! nonces and tokens is not: it comes from the kernel, since a caller who can choose it can choose it badly.

pub mod audit;
pub mod authority;
pub mod authorize;
mod encoding;
mod random;
pub mod secret;
pub mod token;

pub use tls::Clock;
