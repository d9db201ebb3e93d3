//! What `run` names, as bytes with a digest, uploaded.
//!
//! A file is sent as it is; a folder as a deterministic tar: entries sorted by path, no times, no owners, mode bits kept. The same files give
//! the same digest on every machine, so nothing is sent twice.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::wire::CHUNK_MAX_BYTES;
use model::compute::{ArtifactForm, ArtifactRef};
use model::ids::Digest;
use model::units::Bytes;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;

/// Files in one folder that is uploaded.
const ENTRIES_MAX: usize = 100_000;

/// Bytes that are ready to be sent.
pub struct Artifact {
    pub reference: ArtifactRef,
    bytes: std::fs::File,
}

/// Makes the artifact of a file or folder. `name` is how `run` names it: `./checkout`.
pub fn make(path: &Path, name: &str) -> Result<Artifact> {
    let metadata =
        std::fs::metadata(path).with_context(|| format!("{} can't be read", path.display()))?;
    if metadata.is_dir() {
        return of_folder(path);
    }
    if !metadata.is_file() {
        bail!("{} is neither a file nor a folder", path.display());
    }
    of_file(path, name, &metadata)
}

fn of_file(path: &Path, name: &str, metadata: &std::fs::Metadata) -> Result<Artifact> {
    use std::os::unix::fs::PermissionsExt;
    let bytes =
        std::fs::File::open(path).with_context(|| format!("{} can't be read", path.display()))?;
    let name = name.trim_start_matches("./").to_owned();
    let executable = metadata.permissions().mode() & 0o111 != 0;
    finish(bytes, ArtifactForm::File { name, executable })
}

fn of_folder(root: &Path) -> Result<Artifact> {
    let mut paths = Vec::new();
    collect(root, Path::new(""), &mut paths)?;
    paths.sort();
    let file = unnamed_file()?;
    let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
    archive.mode(tar::HeaderMode::Deterministic);
    archive.follow_symlinks(false);
    for path in paths {
        append(&mut archive, root, &path)
            .with_context(|| format!("{} can't be packed", root.join(&path).display()))?;
    }
    let file = archive
        .into_inner()?
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    finish(file, ArtifactForm::Folder)
}

fn unnamed_file() -> Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    let directory = std::env::temp_dir();
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(&directory, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("no temporary file can be made in {}", directory.display()))?;
    Ok(file.into())
}

fn collect(root: &Path, inside: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(inside);
    let entries = std::fs::read_dir(&folder)
        .with_context(|| format!("{} can't be read", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = inside.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            paths.push(path.clone());
            collect(root, &path, paths)?;
        } else if kind.is_file() || kind.is_symlink() {
            paths.push(path);
        } else {
            bail!(
                "{} is a socket, pipe or device: it can't be uploaded",
                root.join(path).display()
            );
        }
        if paths.len() > ENTRIES_MAX {
            bail!("{} holds more than {ENTRIES_MAX} files", root.display());
        }
    }
    Ok(())
}

fn append(archive: &mut tar::Builder<impl Write>, root: &Path, path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let full = root.join(path);
    let metadata = std::fs::symlink_metadata(&full)?;
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(metadata.permissions().mode() & 0o777);
    header.set_size(0);
    if metadata.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        let target = std::fs::read_link(&full)?;
        stays_inside(path, &target)?;
        archive.append_link(&mut header, path, target)?;
    } else if metadata.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, path, std::io::empty())?;
    } else {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        let file = std::fs::File::open(&full)?;
        archive.append_data(&mut header, path, file.take(metadata.len()))?;
    }
    Ok(())
}

fn stays_inside(link: &Path, target: &Path) -> Result<()> {
    let mut depth = link.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => depth -= 1,
            std::path::Component::Normal(_) => depth += 1,
            std::path::Component::CurDir => {}
            _ => depth = -1,
        }
        if depth < 0 {
            bail!("the link points out of the folder, to {}", target.display());
        }
    }
    Ok(())
}

fn finish(mut bytes: std::fs::File, form: ArtifactForm) -> Result<Artifact> {
    bytes.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let size = std::io::copy(&mut bytes, &mut hasher)?;
    let digest = Digest(hasher.finalize().into());
    Ok(Artifact {
        reference: ArtifactRef {
            digest,
            form,
            size: Bytes(size),
        },
        bytes,
    })
}

impl Artifact {
    /// Sends what the server does not have yet; resumes where an earlier try ended.
    pub async fn upload(
        &self,
        client: &Client,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Failure> {
        let digest = &self.reference.digest;
        let mut state = client.begin_upload(digest, self.reference.size).await?;
        while !state.complete {
            progress(state.received.0, state.size.0);
            let chunk = self.chunk(state.received.0).map_err(Failure::from_error)?;
            if chunk.is_empty() {
                return Err(Failure::failed(
                    "the file became shorter while it was uploaded",
                ));
            }
            state = client
                .upload_chunk(digest, state.received.0, chunk.into())
                .await?;
        }
        progress(state.size.0, state.size.0);
        Ok(())
    }

    fn chunk(&self, offset: u64) -> std::io::Result<Vec<u8>> {
        let mut file = &self.bytes;
        file.seek(SeekFrom::Start(offset))?;
        let mut chunk = Vec::new();
        file.take(CHUNK_MAX_BYTES as u64).read_to_end(&mut chunk)?;
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_have_the_same_digest_wherever_and_whenever_they_are() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (folder, names) in folders.iter().zip([["a", "b"], ["b", "a"]]) {
            for name in names {
                std::fs::write(folder.path().join(name), name).unwrap();
            }
        }
        let digests = folders
            .each_ref()
            .map(|folder| make(folder.path(), ".").unwrap().reference.digest);
        assert_eq!(digests[0], digests[1]);
        std::fs::write(folders[1].path().join("a"), "other").unwrap();
        assert_ne!(
            digests[0],
            make(folders[1].path(), ".").unwrap().reference.digest
        );
    }

    #[test]
    fn a_link_out_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../secret", folder.path().join("link")).unwrap();
        let error = make(folder.path(), ".").err().unwrap();
        assert!(
            format!("{error:#}").contains("points out of the folder"),
            "{error:#}"
        );
    }
}
