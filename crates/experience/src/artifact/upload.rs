//! Sending an artifact, chunk by chunk; the server says which byte it wants next.

use std::io;
use std::os::unix::fs::FileExt;

use api::client::Client;
use api::wire::CHUNK_MAX_BYTES;
use model::units::Bytes;

use super::{Artifact, Error};
use crate::failure::Failure;

impl Artifact {
    /// Sends what the server does not have yet; resumes where an earlier try ended.
    pub async fn upload(
        &self,
        client: &Client,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Failure> {
        let Bytes(size) = self.reference.size;
        let digest = &self.reference.digest;
        let mut state = client.begin_upload(digest, Bytes(size)).await?;
        while !state.complete {
            let offset = state.received.0;
            progress(offset, size);
            let chunk = self.chunk(offset).map_err(Failure::from_error)?;
            state = client.upload_chunk(digest, offset, chunk.into()).await?;
            if !state.complete && state.received.0 <= offset {
                return Err(Failure::failed(format!(
                    "the server took nothing of {digest} at byte {offset}"
                )));
            }
        }
        progress(size, size);
        Ok(())
    }

    /// The bytes at `offset`; none at the end, where an empty chunk has the server complete what it has.
    pub(super) fn chunk(&self, offset: u64) -> Result<Vec<u8>, Error> {
        let left = self.reference.size.0.saturating_sub(offset);
        let length =
            usize::try_from(left).map_or(CHUNK_MAX_BYTES, |left| left.min(CHUNK_MAX_BYTES));
        let mut chunk = vec![0; length];
        let read = self.bytes.read_exact_at(&mut chunk, offset);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Changed(self.source.clone()),
            _ => Error::io("reading", &self.source)(error),
        })?;
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Limits, make};
    use super::*;

    #[test]
    fn chunks_are_bounded_and_end_with_the_artifact() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        let length = CHUNK_MAX_BYTES as u64 + 5;
        fs::write(&file, vec![7; CHUNK_MAX_BYTES + 5]).expect("written");
        let artifact = make(&file, "file", Limits::default(), folder.path()).expect("made");
        // What is added later is not part of it.
        fs::write(&file, vec![7; CHUNK_MAX_BYTES + 9]).expect("grown");
        let table = [(0, CHUNK_MAX_BYTES), (length - 5, 5), (length, 0)];
        for (offset, expected) in table {
            let chunk = artifact.chunk(offset).expect("a chunk");
            assert_eq!(chunk.len(), expected, "at {offset}");
        }
        fs::write(&file, "short").expect("cut");
        assert!(matches!(artifact.chunk(length - 5), Err(Error::Changed(_))));
    }
}
