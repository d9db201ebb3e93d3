//! Unpredictable bytes, from the kernel.

use ring::rand::{SecureRandom, SystemRandom};

/// Fills an array of `N` bytes.
///
/// # Panics
/// When the kernel gives no randomness: nothing safe can be done without it.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

pub(crate) fn fill(bytes: &mut [u8]) {
    SystemRandom::new()
        .fill(bytes)
        .expect("the kernel gives randomness");
}
