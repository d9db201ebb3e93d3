//! What a node keeps on its machine outside of its directory: the firewall's table, and in memory the secrets of its instances and the
//! sockets of its engines.
//!
//! A node that stops takes its own away. One that was killed and never comes back can't, and its table would close ports of the machine for
//! good. So each leaves a mark that says where its directory is, in memory as the rest is, and whoever begins or ends nodes on the machine
//! looks for marks of the dead.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use compute::beneath::remove_tree;
use serde::{Deserialize, Serialize};

use crate::{engine, firewall, layout, prepare};

/// No instance has a folder of this name: theirs end in a number.
const MARK: &str = "node.json";

#[derive(Serialize, Deserialize)]
struct Mark {
    directory: PathBuf,
    /// Where a path means another directory, or none, nobody can say whether a node is dead.
    namespace: PathBuf,
}

/// What is left of a node whose agent is dead. Until it is dropped no other agent begins there.
pub struct Leftovers {
    /// The node's directory, which may be gone.
    pub directory: PathBuf,
    table: String,
    memory: PathBuf,
    _lock: Option<File>,
}

/// Says whose the things are that are named as the table.
pub fn mark(table: &str, directory: &Path, is_root: bool) {
    let directory = std::path::absolute(directory);
    let Some(((memory, directory), namespace)) = prepare::memory_of_node(table, is_root)
        .zip(directory.ok())
        .zip(namespace().ok())
    else {
        return;
    };
    let mark = Mark {
        directory,
        namespace,
    };
    if let Err(error) = layout::write(&memory.join(MARK), &mark) {
        tracing::warn!(%error, "what this node leaves if it is killed will not be known as its own");
    }
}

/// Of every node of this user whose agent is dead. What it started may live on.
pub fn find() -> Vec<Leftovers> {
    let is_root = rustix::process::geteuid().is_root();
    let own = prepare::memory(is_root);
    let Some((own, here)) = own.zip(namespace().ok()) else {
        return Vec::new();
    };
    let nodes = std::fs::read_dir(own).into_iter().flatten().flatten();
    nodes
        .filter_map(|node| of_dead(node.path(), &here))
        .collect()
}

fn of_dead(memory: PathBuf, here: &Path) -> Option<Leftovers> {
    let table = memory.file_name()?.to_str()?.to_owned();
    let mark: Mark = layout::read(&memory.join(MARK)).ok()??;
    if mark.namespace != here {
        return None;
    }
    let lock = match File::open(mark.directory.join(layout::LOCK)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(_) => return None,
    };
    Some(Leftovers {
        directory: mark.directory,
        table,
        memory,
        _lock: lock,
    })
}

impl Leftovers {
    /// The caller knows that nothing of the node lives.
    ///
    /// # Errors
    ///
    /// What can't be taken away, and why.
    pub async fn remove(self) -> Result<(), String> {
        if rustix::process::geteuid().is_root() {
            let removed = firewall::remove(&self.table).await;
            removed.map_err(|error| error.to_string())?;
        }
        if let Some(own) = self.memory.parent() {
            let _ = remove_tree(&own.join(engine::sockets_name(&self.table)));
        }
        // The mark goes with it, so it goes last.
        remove_tree(&self.memory).map_err(|error| format!("{}: {error}", self.memory.display()))
    }
}

/// Which mounts this process sees.
fn namespace() -> io::Result<PathBuf> {
    std::fs::read_link("/proc/self/ns/mnt")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        here: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
                here: namespace().unwrap(),
            }
        }

        fn node(&self) -> PathBuf {
            self.folder.path().join("node")
        }

        /// As `mark` does, in memory that is the test's own.
        fn marked(&self, namespace: &Path) -> PathBuf {
            let memory = self.folder.path().join("memory/mainland_a_1234abcd");
            std::fs::create_dir_all(&memory).unwrap();
            let mark = Mark {
                directory: self.node(),
                namespace: namespace.to_owned(),
            };
            layout::write(&memory.join(MARK), &mark).unwrap();
            memory
        }
    }

    #[test]
    fn what_an_agent_holds_is_nobodys_leftovers() {
        let place = Place::new();
        let memory = place.marked(&place.here);
        let (_layout, lock) = layout::Layout::open(&place.node()).unwrap();
        assert!(of_dead(memory.clone(), &place.here).is_none());
        drop(lock);
        let dead = of_dead(memory.clone(), &place.here).unwrap();
        assert_eq!(dead.directory, place.node());
        assert_eq!(dead.table, "mainland_a_1234abcd");
        let begun = layout::Layout::open(&place.node());
        assert!(begun.is_err(), "none begins while it is taken away");
        drop(dead);
        std::fs::remove_dir_all(place.node()).unwrap();
        assert!(of_dead(memory, &place.here).is_some(), "its data is gone");
    }

    #[test]
    fn what_can_not_be_looked_at_from_here_is_left() {
        let place = Place::new();
        let memory = place.marked(Path::new("mnt:[1]"));
        assert!(of_dead(memory, &place.here).is_none());
        let unmarked = place.folder.path().join("memory/1234abcd");
        std::fs::create_dir_all(&unmarked).unwrap();
        assert!(of_dead(unmarked, &place.here).is_none());
    }
}
