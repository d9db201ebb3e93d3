//! A folder as the bytes that clients upload, and as it is found on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use compute::artifact::digest_of;
use model::compute::{ArtifactForm, ArtifactRef};
use model::units::Bytes;
use tar::{EntryType, Header};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub path: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Folder { mode: u32 },
    File { mode: u32, text: String },
    Symlink { target: String },
}

pub fn folder(path: &str, mode: u32) -> Entry {
    let (path, what) = (path.to_owned(), What::Folder { mode });
    Entry { path, what }
}

pub fn file(path: &str, mode: u32, text: &str) -> Entry {
    let text = text.to_owned();
    let (path, what) = (path.to_owned(), What::File { mode, text });
    Entry { path, what }
}

pub fn link(path: &str, target: &str) -> Entry {
    let target = target.to_owned();
    let (path, what) = (path.to_owned(), What::Symlink { target });
    Entry { path, what }
}

/// The folder's artifact and its bytes.
pub fn pack(entries: &[Entry]) -> (ArtifactRef, Vec<u8>) {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        append(&mut builder, entry).expect("packed");
    }
    let tar = builder.into_inner().expect("a tar");
    let (digest, size) = digest_of(&*tar).expect("a digest");
    let reference = ArtifactRef {
        digest,
        form: ArtifactForm::Folder,
        size: Bytes(size),
    };
    (reference, tar)
}

fn append(builder: &mut tar::Builder<Vec<u8>>, entry: &Entry) -> std::io::Result<()> {
    let (kind, mode, text) = match &entry.what {
        What::Folder { mode } => (EntryType::Directory, *mode, ""),
        What::File { mode, text } => (EntryType::Regular, *mode, text.as_str()),
        What::Symlink { .. } => (EntryType::Symlink, 0o777, ""),
    };
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(text.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    match &entry.what {
        What::Symlink { target } => builder.append_link(&mut header, &entry.path, target),
        _ => builder.append_data(&mut header, &entry.path, text.as_bytes()),
    }
}

/// All that is below `root`, sorted.
pub fn found(root: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("an entry").path();
            let entry = found_at(root, &path);
            if matches!(entry.what, What::Folder { .. }) {
                folders.push(path);
            }
            entries.push(entry);
        }
    }
    entries.sort();
    entries
}

fn found_at(root: &Path, full: &Path) -> Entry {
    let path = full.strip_prefix(root).expect("below").to_string_lossy();
    let metadata = fs::symlink_metadata(full).expect("there");
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_symlink() {
        link(
            &path,
            &fs::read_link(full).expect("a link").to_string_lossy(),
        )
    } else if metadata.is_dir() {
        folder(&path, mode)
    } else {
        file(&path, mode, &fs::read_to_string(full).expect("its text"))
    }
}
