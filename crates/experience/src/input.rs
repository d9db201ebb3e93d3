//! What a person hands in: files and standard input, within bounds.

use std::io::Read;

/// One byte more than `most` at the most, so that what is longer is seen.
pub fn read(source: impl Read, most: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
