//! The node's directory.
//!
//! ```text
//! DIR/                         0711: services pass through on the way to their own folders, only the owner lists
//!   agent.json                 who the node is
//!   agent.lock                 held while an agent lives
//!   identity.json        0600  the node's key, which never changes, and its certificate
//!   joining.json         0600  the key of a first join, until that has ended
//!   removed.json               that it was removed: it runs nothing
//!   desired.json         0600  what it should run, as last told
//!   doors.json                 which loopback address belongs to which caller and need
//!   services/P.S.json    0600  the certificate and key of a service placed here
//!   instances/P/I.json   0600  what is kept of an instance: its desired state, port and history
//!   instances/P/I/             the runtime's: working directory, logs, records
//!   volumes/P/S/SLOT/NAME      data of users; kept until somebody says otherwise
//!   artifacts/                 by digest
//!   proxy/                     the proxy's own
//!   proxy.sock, node.sock      sockets, 0600
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use compute::beneath::remove_tree;
use compute::runtime::Identity;
use compute::volume;
use model::compute::DesiredInstance;
use model::control::{Place, fingerprint};
use model::ids::{InstanceId, ResourceId, ResourceName};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Held while an agent lives.
pub const LOCK: &str = "agent.lock";

/// No service has such a name.
const FORGOTTEN: &str = ".forgotten-";
/// Of one service's volumes that wait to be deleted.
const PUT_ASIDE_MOST: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another agent (pid {pid}) runs on {path}: end it first, or give this one a directory of its own", path = path.display())]
    Taken { path: PathBuf, pid: String },
    #[error("{path} can't be read: {source}", path = path.display())]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Error {
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// Instances that are gone whose output is kept.
const LOGS_KEPT: usize = 16;

#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// Held by the one agent of a directory.
pub struct Lock {
    _file: File,
}

impl Layout {
    /// Makes what is missing, and takes the lock.
    pub fn open(root: &Path) -> Result<(Self, Lock), Error> {
        let layout = Self {
            root: root.to_owned(),
        };
        make_passage(root)?;
        let lock = layout.lock()?;
        for folder in ["instances", "volumes"] {
            make_passage(&root.join(folder))?;
        }
        make_private(&root.join("services"))?;
        make_private(&layout.gone())?;
        make_private(&layout.proxy())?;
        Ok((layout, lock))
    }

    fn lock(&self) -> Result<Lock, Error> {
        let path = self.root.join(LOCK);
        let mut options = OpenOptions::new();
        options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600);
        let mut file = options.open(&path).map_err(Error::io("opening", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(Error::Taken {
                    path: self.root.clone(),
                    pid,
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("locking", &path)(error)),
        }
        file.set_len(0).map_err(Error::io("writing", &path))?;
        // Who it is matters to people only; the lock is what holds.
        let _ = write!(file, "{}", std::process::id());
        Ok(Lock { _file: file })
    }

    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }
    pub fn config(&self) -> PathBuf {
        self.root.join("agent.json")
    }
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity.json")
    }

    /// The key of a first join, until its outcome is known.
    pub fn joining(&self) -> PathBuf {
        self.root.join("joining.json")
    }

    /// Says that the node was removed: it is to run nothing, whether or not a server can be asked.
    pub fn removed(&self) -> PathBuf {
        self.root.join("removed.json")
    }

    /// Where an agent of this directory runs. `None`: that can't be told. The folder goes by what a restart of the machine leaves as it is, and a copy
    /// has otherwise: its number and its birth. The number of its disk may be another after each start; it counts where no birth is kept.
    pub fn place(&self) -> Option<Place> {
        use std::os::unix::fs::MetadataExt;
        let boot = compute::identity::boot_id().ok()?;
        let folder = fs::metadata(&self.root).ok()?;
        let born = folder.created().ok();
        let born = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        let other = born.map_or_else(
            || format!("on {}", folder.dev()),
            |born| format!("born {}", born.as_nanos()),
        );
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let folder = format!("{} {} {other}", machine.trim(), folder.ino());
        Some(Place {
            folder: fingerprint(folder.as_bytes()),
            boot: fingerprint(boot.as_bytes()),
        })
    }

    pub fn desired(&self) -> PathBuf {
        self.root.join("desired.json")
    }
    pub fn doors(&self) -> PathBuf {
        self.root.join("doors.json")
    }
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
    pub fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }
    pub fn proxy(&self) -> PathBuf {
        self.root.join("proxy")
    }
    /// What the proxy was last told, as it keeps it.
    pub fn kept_snapshot(&self) -> PathBuf {
        self.proxy().join("snapshot.json")
    }
    pub fn proxy_socket(&self) -> PathBuf {
        self.root.join("proxy.sock")
    }
    pub fn socket(&self) -> PathBuf {
        self.root.join("node.sock")
    }
    pub fn service(&self, service: &ResourceId) -> PathBuf {
        self.root
            .join("services")
            .join(format!("{}.{}.json", service.project, service.name))
    }
    pub fn services(&self) -> PathBuf {
        self.root.join("services")
    }
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }
    pub fn instance(&self, id: &InstanceId) -> PathBuf {
        self.instances()
            .join(id.project.as_str())
            .join(id.name.as_str())
    }
    pub fn record(&self, id: &InstanceId) -> PathBuf {
        self.instances()
            .join(id.project.as_str())
            .join(format!("{}.json", id.name))
    }

    fn gone(&self) -> PathBuf {
        self.root.join("gone")
    }

    /// The output of an instance that is gone, if it is still kept.
    pub fn kept_log(&self, id: &InstanceId) -> PathBuf {
        self.gone().join(format!("{}.{}", id.project, id.name))
    }

    /// Keeps the output of an instance that goes, so that one can see why it did; those that went longest ago make room.
    pub fn keep_log(&self, id: &InstanceId, log: &Path) -> io::Result<()> {
        if !log.is_dir() {
            return Ok(());
        }
        let kept = self.kept_log(id);
        let _ = remove_tree(&kept);
        fs::rename(log, &kept)?;
        let mut all: Vec<_> = fs::read_dir(self.gone())?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        all.sort();
        for (_, oldest) in all.iter().take(all.len().saturating_sub(LOGS_KEPT)) {
            remove_tree(oldest)?;
        }
        Ok(())
    }

    /// Puts a service's volumes aside at once; where they are then, to be deleted at leisure. `None`: there were none.
    pub fn forget_volumes(&self, service: &ResourceId) -> Result<Option<PathBuf>, Error> {
        let project = self.root.join("volumes").join(service.project.as_str());
        let kept = project.join(service.name.as_str());
        let pid = std::process::id();
        let gone =
            (0..).map(|number| project.join(format!("{FORGOTTEN}{}.{pid}.{number}", service.name)));
        let Some(gone) = gone.take(PUT_ASIDE_MOST).find(|gone| !gone.exists()) else {
            let many = io::Error::other("what was put aside before can't be deleted");
            return Err(Error::io("putting aside", &kept)(many));
        };
        match aside(|| fs::rename(&kept, &gone)) {
            Ok(()) => {
                // A machine that loses its power must not bring it back.
                let synced = aside(|| File::open(&project).and_then(|folder| folder.sync_all()));
                synced.map_err(Error::io("syncing", &project))?;
                Ok(Some(gone))
            }
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("putting aside", &kept)(error)),
        }
    }

    /// The folder above an instance's own.
    pub fn make_project(&self, id: &InstanceId) -> Result<(), Error> {
        make_passage(&self.instances().join(id.project.as_str()))
    }

    pub fn volume(&self, desired: &DesiredInstance, name: &ResourceName) -> PathBuf {
        let slot = desired.slot.unwrap_or(0).to_string();
        let mut path = self.volumes();
        path.extend([
            desired.instance.project.as_str(),
            desired.service.as_str(),
            &slot,
            name.as_str(),
        ]);
        path
    }

    /// A volume's folder; only its service may look inside. One that was another's is its service's from now on, with all that was that other's.
    pub fn make_volume(
        &self,
        desired: &DesiredInstance,
        name: &ResourceName,
        owner: Option<Identity>,
    ) -> Result<(), Error> {
        let path = self.volume(desired, name);
        let mut above: Vec<&Path> = path.ancestors().skip(1).take(3).collect();
        above.reverse();
        above.into_iter().try_for_each(make_passage)?;
        make_private(&path)?;
        match owner {
            Some(owner) => volume::take_over(&path, owner).map_err(Error::io("giving away", &path)),
            None => Ok(()),
        }
    }
}

/// Deletes what was put aside to be deleted by an agent that did not come to it. It may take minutes.
pub fn sweep(volumes: &Path) {
    for project in fs::read_dir(volumes).into_iter().flatten().flatten() {
        for entry in fs::read_dir(project.path()).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(FORGOTTEN) {
                continue;
            }
            let gone = entry.path();
            if let Err(error) = remove_tree(&gone) {
                tracing::warn!(%error, path = %gone.display(), "volumes that are to be deleted are still there");
            }
        }
    }
}

/// A folder that others pass through and only its owner lists.
pub fn make_passage(path: &Path) -> Result<(), Error> {
    make(path, 0o711)
}

fn make_private(path: &Path) -> Result<(), Error> {
    make(path, 0o700)
}

fn make(path: &Path, mode: u32) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(Error::io("making", path))?;
    let current = fs::metadata(path)
        .map_err(Error::io("reading", path))?
        .permissions()
        .mode()
        & 0o7777;
    if current != mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(Error::io("setting the mode of", path))?;
    }
    Ok(())
}

/// `None` when there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match aside(|| fs::read(path)) {
        Ok(text) => text,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("reading", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| Error::Malformed {
            path: path.to_owned(),
            source,
        })
}

/// Written beside and renamed over, so that a crash leaves the old or the new one. Mode 0600.
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(value).expect("what is kept is plain data");
    aside(|| write_text(path, &text))
}

/// Keeps what differs from what was kept before. Where the disk refuses (it is full, or may only be read), an agent goes on with what it knows: the next
/// one has what was kept before, and finds out again.
///
/// # Errors
///
/// What the disk refuses where nothing was kept.
pub fn keep<T: PartialEq>(
    before: Option<&T>,
    now: &T,
    write: impl FnOnce(&T) -> Result<(), Error>,
) -> Result<(), Error> {
    if before == Some(now) {
        return Ok(());
    }
    match (write(now), before) {
        (Err(error), Some(_)) => {
            tracing::warn!(%error, "the next agent will not know of it");
            Ok(())
        }
        (written, _) => written,
    }
}

/// As [`write`], and on the disk when it returns: what a machine without power must not forget.
pub fn write_durably(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(value).expect("what is kept is plain data");
    aside(|| write_text_durably(path, &text))
}

pub fn write_text_durably(path: &Path, text: &[u8]) -> Result<(), Error> {
    write_text_by(path, text, File::sync_all)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(Error::io("syncing", folder))
}

/// A disk may take its time: where other tasks share the thread, they are carried on by another meanwhile.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

pub fn write_text(path: &Path, text: &[u8]) -> Result<(), Error> {
    write_text_by(path, text, |_| Ok(()))
}

/// `settle`: before the old one is replaced.
fn write_text_by(
    path: &Path,
    text: &[u8],
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), Error> {
    let beside = path.with_extension("json.new");
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    let mut file = options
        .open(&beside)
        .map_err(Error::io("writing", &beside))?;
    file.write_all(text)
        .and_then(|()| settle(&file))
        .map_err(Error::io("writing", &beside))?;
    fs::rename(&beside, path).map_err(Error::io("replacing", path))
}

pub fn remove(path: &Path) {
    if let Err(error) = aside(|| fs::remove_file(path))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a file can't be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is stored of it is compared by a later build, after a restart of the machine: it rests on nothing that either may change.
    #[test]
    fn a_copy_of_a_directory_is_another_place_and_the_same_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let layout = |name: &str| Layout::open(&folder.path().join(name)).unwrap().0;
        let [first, copy] = ["first", "copy"].map(layout);
        let place = first.place().unwrap();
        assert_eq!(layout("first").place(), Some(place));
        let other = copy.place().unwrap();
        assert_eq!(other.boot, place.boot);
        assert_ne!(other.folder, place.folder);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(place.boot, fingerprint(boot.trim().as_bytes()));
        // Known values of FNV-1a.
        let known = [
            ("", 0xcbf2_9ce4_8422_2325),
            ("foobar", 0x8594_4171_f739_67e8),
        ];
        for (text, expected) in known {
            assert_eq!(fingerprint(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn one_agent_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (_layout, lock) = Layout::open(folder.path()).unwrap();
        let second = Layout::open(folder.path());
        let error = second.err().expect("the second is refused").to_string();
        assert!(
            error.contains(&format!("another agent (pid {})", std::process::id())),
            "{error}"
        );
        drop(lock);
        assert!(Layout::open(folder.path()).is_ok());
    }

    /// A start is heard before anything is deleted, which may take minutes.
    #[test]
    fn opening_deletes_nothing_and_a_sweep_only_what_was_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let project = folder.path().join("volumes/shop");
        let forgotten = project.join(format!("{FORGOTTEN}db.1.0"));
        let kept = project.join("db/0/data");
        for path in [&forgotten, &kept] {
            fs::create_dir_all(path).unwrap();
        }
        let (layout, _lock) = Layout::open(folder.path()).unwrap();
        assert!(forgotten.exists());
        sweep(&layout.volumes());
        assert_eq!((forgotten.exists(), kept.exists()), (false, true));
    }

    #[test]
    fn what_is_kept_is_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write(&path, &[1, 2]).unwrap();
        assert_eq!(read::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            read::<Vec<u8>>(&folder.path().join("y.json")).unwrap(),
            None
        );
    }
}
