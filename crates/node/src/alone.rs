//! A node runs once: a copy of its directory, started beside it, is refused before it touches anything of the first.
//!
//! Three things tell a copy. On one machine, a lock that goes by the node's key; where the first one's agent is dead, its shims, which live and
//! hold another directory; and on two machines, the servers, who still hear the first ([`crate::identity`]).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use compute::process;

use crate::layout::{self, Layout};
use crate::{identity, prepare, record};

/// A shim that ends lets go of its directory a moment before it is gone.
const ENDING: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} is a copy of the directory of a node that runs: {first}; nothing was touched\n  remedy: end that one first, or give this machine a directory of its own and let it join under another name", path = path.display())]
    Copy { path: PathBuf, first: String },
    #[error(transparent)]
    Layout(#[from] layout::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
}

/// Held by the one agent of a key on this machine.
pub struct Alone {
    _file: Option<File>,
}

/// # Errors
///
/// [`Error::Copy`] when another agent has the node's key, or what the directory describes runs for another directory.
pub async fn make_sure(layout: &Layout, root: &Path, is_root: bool) -> Result<Alone, Error> {
    let lock = lock(layout, root, is_root)?;
    let deadline = tokio::time::Instant::now() + ENDING;
    while let Some(pid) = runs_elsewhere(layout) {
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::Copy {
                path: root.to_owned(),
                first: format!("an instance of it (shim pid {pid}) runs for another directory"),
            });
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(lock)
}

/// Once a node that has just joined has its key, which it had not at [`make_sure`].
pub fn with_key(held: Alone, layout: &Layout, root: &Path, is_root: bool) -> Result<Alone, Error> {
    match held._file {
        Some(_) => Ok(held),
        None => lock(layout, root, is_root),
    }
}

fn lock(layout: &Layout, root: &Path, is_root: bool) -> Result<Alone, Error> {
    let kept: Option<identity::NodeIdentity> = layout::read(&layout.identity())?;
    let Some((kept, memory)) = kept.zip(prepare::memory(is_root)) else {
        return Ok(Alone { _file: None });
    };
    let key = identity::fingerprint(&kept)?;
    let path = memory.join(format!("node-{key}.lock"));
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let opened = options.mode(0o600).open(&path);
    let Ok(mut file) = opened.inspect_err(|error| {
        tracing::warn!(%error, path = %path.display(), "a copy of this directory would not be noticed");
    }) else {
        return Ok(Alone { _file: None });
    };
    match file.try_lock() {
        Ok(()) => {
            // Who it is matters to people only.
            let _ = file.set_len(0);
            let _ = file.rewind();
            let said = format!(
                "its agent (pid {}) runs on {}",
                std::process::id(),
                root.display()
            );
            let _ = file.write_all(said.as_bytes());
            Ok(Alone { _file: Some(file) })
        }
        Err(TryLockError::WouldBlock) => {
            let mut first = String::new();
            let _ = file.read_to_string(&mut first);
            Err(Error::Copy {
                path: root.to_owned(),
                first,
            })
        }
        Err(TryLockError::Error(error)) => {
            tracing::warn!(%error, "a copy of this directory would not be noticed");
            Ok(Alone { _file: None })
        }
    }
}

fn runs_elsewhere(layout: &Layout) -> Option<u32> {
    let kept = record::read_all(layout);
    let known = kept.records.iter().map(|record| &record.desired.instance);
    let foreign = kept.foreign.iter().map(|left| &left.instance);
    known
        .chain(foreign)
        .find_map(|instance| process::runs_elsewhere(&layout.instance(instance)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::traffic::Identity;

    #[tokio::test]
    async fn a_copy_beside_a_running_agent_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let key = boundary::authority::Key::generate().unwrap();
        let identity = key.into_identity(String::new());
        let place = |name: &str, identity: &Identity| {
            let root = folder.path().join(name);
            let (layout, lock) = Layout::open(&root).unwrap();
            let kept = identity::NodeIdentity {
                cluster: "c1".to_owned(),
                authority: String::new(),
                identity: identity.clone(),
            };
            layout::write(&layout.identity(), &kept).unwrap();
            (layout, root, lock)
        };
        let (one, one_root, _one_lock) = place("one", &identity);
        let (copy, copy_root, _copy_lock) = place("copy", &identity);
        let first = make_sure(&one, &one_root, is_root).await.unwrap();
        let refused = make_sure(&copy, &copy_root, is_root).await.err().unwrap();
        let said = refused.to_string();
        let pid = format!("pid {}", std::process::id());
        for part in ["copy of the directory", &pid, one_root.to_str().unwrap()] {
            assert!(said.contains(part), "{part}: {said}");
        }
        drop(first);
        // One that was there before its key was.
        std::fs::rename(one.identity(), one_root.join("later")).unwrap();
        let young = make_sure(&one, &one_root, is_root).await.unwrap();
        std::fs::rename(one_root.join("later"), one.identity()).unwrap();
        let young = with_key(young, &one, &one_root, is_root).unwrap();
        assert!(make_sure(&copy, &copy_root, is_root).await.is_err());
        drop(young);
        assert!(make_sure(&copy, &copy_root, is_root).await.is_ok());
    }
}
