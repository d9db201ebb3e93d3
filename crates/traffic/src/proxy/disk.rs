//! The last good snapshot on disk, so that a proxy that starts without an agent has a road.
//! It holds keys: mode 0600, replaced by rename.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::traffic::ProxySnapshot;

const NAME: &str = "snapshot.json";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is not a snapshot: {source}")]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

/// `None` when there is none yet.
pub fn load(directory: &Path) -> Result<Option<ProxySnapshot>, Error> {
    let path = directory.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(other) => return Err(failed("reading", &path)(other)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| Error::Malformed { path, source })
}

/// Written beside, renamed over: a crash leaves the old or the new one. Not synced: after a power loss the agent sends it again.
pub fn save(directory: &Path, snapshot: &ProxySnapshot) -> Result<(), Error> {
    let path = directory.join(NAME);
    let beside = directory.join("snapshot.json.new");
    let text = serde_json::to_vec(snapshot).map_err(|source| Error::Malformed {
        path: path.clone(),
        source,
    })?;
    create_private(&beside)
        .and_then(|mut file| file.write_all(&text))
        .map_err(failed("writing", &beside))?;
    fs::rename(&beside, &path).map_err(failed("replacing", &path))
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}
