//! Randomness, from the operating system.

use rand::TryRngCore as _;
use rand::rngs::OsRng;

/// A name that nobody can guess: 20 hexadecimal digits.
pub fn identifier() -> String {
    let mut random = [0; 10];
    fill(&mut random);
    crate::service::hexadecimal(&random)
}

/// From 0 to 1, without 1.
pub fn fraction() -> f64 {
    let mut random = [0; 4];
    fill(&mut random);
    f64::from(u32::from_le_bytes(random)) / (f64::from(u32::MAX) + 1.0)
}

fn fill(bytes: &mut [u8]) {
    OsRng
        .try_fill_bytes(bytes)
        .expect("an operating system has randomness");
}
