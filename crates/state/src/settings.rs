//! What an engine is told by its node: a file that is replaced while the engine runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::state::{ENGINE_FILE, ENGINE_SOCKET, EngineFile};
use tokio::sync::watch;

/// How often the file is looked at. A new consumer or reader waits this long at most.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` is not set: an engine is started by a node's agent")]
    Unset(&'static str),
    #[error("reading {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not what an engine is told: {source}")]
    Broken {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// The environment of an engine's process. Not to be printed: what it was told holds a secret.
#[derive(Clone)]
pub struct Settings {
    file: PathBuf,
    /// Where it answers its node.
    pub socket: PathBuf,
    /// Its volume.
    pub data: PathBuf,
    /// Where it answers its callers.
    pub port: u16,
    current: watch::Receiver<Arc<EngineFile>>,
    tell: Arc<watch::Sender<Arc<EngineFile>>>,
}

impl Settings {
    /// # Errors
    ///
    /// A variable is missing, or the file can't be read.
    pub fn from_environment() -> Result<Self, Error> {
        let path = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .ok_or(Error::Unset(name))
        };
        let port = std::env::var("PORT")
            .ok()
            .and_then(|port| port.parse().ok())
            .ok_or(Error::Unset("PORT"))?;
        Self::new(
            path(ENGINE_FILE)?,
            path(ENGINE_SOCKET)?,
            path("DATA_DIR")?,
            port,
        )
    }

    /// # Errors
    ///
    /// The file can't be read.
    pub fn new(file: PathBuf, socket: PathBuf, data: PathBuf, port: u16) -> Result<Self, Error> {
        let (tell, current) = watch::channel(Arc::new(read(&file)?));
        Ok(Self {
            file,
            socket,
            data,
            port,
            current,
            tell: Arc::new(tell),
        })
    }

    /// As last read.
    pub fn current(&self) -> Arc<EngineFile> {
        self.current.borrow().clone()
    }

    /// Wakes with each change, once [`Settings::follow`] runs.
    pub fn changes(&self) -> watch::Receiver<Arc<EngineFile>> {
        self.current.clone()
    }

    /// Looks at the file again and again. What can't be read leaves the last good settings and is said once.
    pub async fn follow(self) {
        let mut said = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match read(&self.file) {
                Ok(new) => {
                    said = None;
                    self.tell.send_if_modified(|current| {
                        let changed = **current != new;
                        if changed {
                            *current = Arc::new(new);
                        }
                        changed
                    });
                }
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::warn!("{error}; going on with the settings before");
                        said = Some(error);
                    }
                }
            }
        }
    }
}

fn read(path: &Path) -> Result<EngineFile, Error> {
    let text = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| Error::Broken {
        path: path.to_owned(),
        source,
    })
}
