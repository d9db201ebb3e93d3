//! Starts and runs a server: its directory, its identity, its listeners, the mirror and the leader.
//!
//! ```text
//! directory/
//!   lock          held while a server runs here
//!   keyring       the keys that seal secrets and the authority's key (0600)
//!   store.db      what was decided, and the audit log
//!   artifacts/    what was uploaded
//!   events/       what happened, bounded
//! ```

mod lead;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boundary::authority::{Authority, SealedAuthority};
use boundary::authorize::Limits;
use boundary::secret::Keyring;
use boundary::token::{self, Record, Token};
use model::boundary::Principal;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use store::{Store, Transaction};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::alone;
use crate::artifacts::Artifacts;
use crate::auditor::Deed;
use crate::clock::Clock;
use crate::disk;
use crate::dispatch;
use crate::draft::Draft;
use crate::events::Recorder;
use crate::leader::Leader;
use crate::listen::{self, Certificate, Speaks};
use crate::mirror;
use crate::observed::Observed;
use crate::records::{AUTHORITY, Key, decode, encode};
use crate::refusals::{self, Refusals};
use crate::ring::{self, Ring};
use crate::runs::Runs;
use crate::state::{CommitError, Gates, Leadership, Server, Shared, Turns};
use crate::strangers::{Bodies, RefusalRate};
use crate::tunnel::Tunnels;
use crate::world::World;

/// Opens the store in a directory that is locked for it.
pub type OpenStore = Box<dyn FnOnce(&Path) -> Result<Arc<dyn Store>, store::Error> + Send>;

/// How a server is to run.
pub struct Options {
    pub directory: PathBuf,
    /// For people and scripts: TLS, and on loopback plain HTTP as well.
    pub api: SocketAddr,
    /// For nodes: always TLS.
    pub nodes: SocketAddr,
    /// Where the commands of the machine's owner find address and token.
    pub client_file: PathBuf,
    pub open_store: OpenStore,
    pub clock: boundary::Clock,
    pub version: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} can't be written: {source}\n  remedy: choose another directory with --data-dir, or make this one yours", path = path.display())]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("another server runs in {path}\n  remedy: stop it first (`mainland down`), or choose another directory with --data-dir", path = path.display())]
    Locked { path: PathBuf },
    #[error(
        "{address} is taken by another program\n  remedy: stop it, or choose another address with {flag}"
    )]
    PortTaken {
        address: SocketAddr,
        flag: &'static str,
    },
    #[error("can't listen on {address}: {source}\n  remedy: choose another address with {flag}")]
    Listen {
        address: SocketAddr,
        flag: &'static str,
        source: std::io::Error,
    },
    #[error("the store can't be opened: {0}\n  remedy: see that the disk has room and works")]
    Store(#[from] store::Error),
    #[error("the store in {path} can't be read: {source}", path = path.display())]
    Load {
        path: PathBuf,
        source: mirror::LoadError,
    },
    #[error("the store can't be read: {0}")]
    Reload(#[from] mirror::LoadError),
    #[error("the keys of this server can't be read: {0}")]
    Keyring(#[from] boundary::secret::Error),
    #[error(
        "the cluster's authority can't be used: {0}\n  remedy: restore the `keyring` file that belongs to this store"
    )]
    Authority(#[from] boundary::authority::Error),
    #[error(transparent)]
    Tls(#[from] listen::Error),
    #[error(transparent)]
    Events(#[from] signals::events::Error),
    #[error(transparent)]
    Artifacts(#[from] compute::artifact::Error),
    #[error("the owner's token can't be stored: {0}")]
    Token(#[from] CommitError),
    #[error("another server took over the store while this one started")]
    Overtaken,
}

/// What the client file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    pub api: SocketAddr,
    pub nodes: SocketAddr,
    pub token: String,
    /// The certificates (PEM) by which a server proves that it is one of this cluster, before it is shown the token.
    #[serde(default)]
    pub authority: Option<String>,
}

/// Between two looks at whether the server's certificate is to be exchanged: somebody may set the clock.
const ROTATION_EVERY: Duration = Duration::from_secs(2);

/// How long the end waits for what was refused to be stored.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);

/// Runs until `shutdown` is done. The client file is written once requests are answered.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let _lock = lock(&options.directory)?;
    // Bound before anything else is done: a taken port is told at once.
    let api = bind(options.api, "--api").await?;
    let nodes = bind(options.nodes, "--nodes").await?;
    let addresses = [local(&api, options.api)?, local(&nodes, options.nodes)?];
    let store = (options.open_store)(&options.directory)?;
    let (ending_sender, ending) = watch::channel(false);
    let begun = Begun {
        directory: &options.directory,
        store,
        clock: Clock::new(options.clock.clone()),
        version: options.version,
        nodes: addresses[1],
        ending,
    };
    let server = Arc::new(begin(begun).await?);
    let certificate = Arc::new(Certificate::new(
        &server.authority,
        &addresses,
        &server.clock,
    )?);
    let router = dispatch::router(&server);
    let speaks = match addresses[0].ip().is_loopback() {
        true => Speaks::Either(certificate.clone()),
        false => Speaks::Tls(certificate.clone()),
    };
    let refusals = tokio::spawn(refusals::run(server.clone()));
    let tasks = begin_tasks(&server, &certificate, options.directory);
    // Once the mirror runs, so that the token in it is known when somebody reads it.
    write_client_file(&server, &options.client_file, addresses).await?;
    let listen = |listener, speaks| {
        let (clock, ending) = (server.clock.clone(), server.ending.clone());
        listen::serve(listener, speaks, router.clone(), clock, ending)
    };
    let serving =
        async { tokio::join!(listen(api, speaks), listen(nodes, Speaks::Tls(certificate))) };
    tokio::select! {
        _ = serving => {}
        () = shutdown => {}
    }
    ending_sender.send_replace(true);
    // Answers under way end, watches are closed.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _ = tokio::time::timeout(ENDING_PATIENCE, refusals).await;
    tasks.iter().for_each(JoinHandle::abort);
    Ok(())
}

/// What goes on beside the answers, for as long as the server runs.
fn begin_tasks(
    server: &Arc<Server>,
    certificate: &Arc<Certificate>,
    directory: PathBuf,
) -> [JoinHandle<()>; 6] {
    [
        tokio::spawn(mirror::run(server.clone())),
        tokio::spawn(Leader::new(server.clone()).run()),
        tokio::spawn(store::maintain(server.store.clone())),
        tokio::spawn(rotate(server.clone(), certificate.clone())),
        tokio::spawn(ring::go_on(server.clone())),
        tokio::spawn(disk::watch(server.clone(), directory)),
    ]
}

/// Makes the directory and takes it for this process.
fn lock(directory: &Path) -> Result<File, Error> {
    let failed = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked {
            path: directory.to_owned(),
        }),
        Err(error) => Err(failed(error.into())),
    }
}

async fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => Error::PortTaken { address, flag },
            _ => Error::Listen {
                address,
                flag,
                source,
            },
        })
}

fn local(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|source| Error::Listen {
        address: asked,
        flag: "",
        source,
    })
}

struct Begun<'a> {
    directory: &'a Path,
    store: Arc<dyn Store>,
    clock: Clock,
    version: &'static str,
    nodes: SocketAddr,
    ending: watch::Receiver<bool>,
}

/// Reads what is there, makes what is missing, and takes the lead.
async fn begin(begun: Begun<'_>) -> Result<Server, Error> {
    let directory = begun.directory;
    mirror::check(&*begun.store, begun.version)
        .await
        .map_err(|source| Error::Load {
            path: directory.to_owned(),
            source,
        })?;
    let ring = Ring::open(&directory.join("keyring"))?;
    let authority = authority(&*begun.store, &ring.keys(), &begun.clock).await?;
    let (epoch, claim) = lead::take(&*begun.store, &begun.clock, begun.version).await?;
    let world = mirror::load(&*begun.store).await?;
    let revision = world.revision;
    let now = begun.clock.now();
    let nodes = plan::nodes::State::new(world.nodes.values().map(|node| &node.value), now);
    Ok(Server {
        store: begun.store,
        version: begun.version,
        nodes: begun.nodes,
        boot: alone::our_boot(),
        authority,
        ring,
        limits: limits(),
        events: Recorder::open(&directory.join("events"))?,
        refusals: Refusals::default(),
        artifacts: Artifacts::open(&directory.join("artifacts"))?,
        tunnels: Tunnels::default(),
        leadership: Leadership {
            epoch,
            claim: claim.into(),
            fenced: AtomicBool::new(false),
        },
        shared: Mutex::new(shared(world, nodes)),
        changing: tokio::sync::Mutex::default(),
        gates: Gates::default(),
        strangers: Bodies::default(),
        refusal_rate: RefusalRate::default(),
        changed: Notify::new(),
        turns: Turns::default(),
        mirrored: watch::Sender::new(revision),
        ending: begun.ending,
        clock: begun.clock,
    })
}

/// All placements of a service are one record, which the store bounds at 1 MiB: some 400 bytes for each copy.
fn limits() -> Limits {
    Limits {
        replicas_per_service: 2_000,
        ..Limits::default()
    }
}

fn shared(world: World, nodes: plan::nodes::State) -> Shared {
    Shared {
        world,
        observed: Observed::default(),
        desired: BTreeMap::new(),
        runs: Runs::default(),
        connected: BTreeMap::new(),
        running: BTreeSet::new(),
        nodes,
        node_outputs: Vec::new(),
        disk: None,
        ready: false,
    }
}

/// The cluster's authority: read, or made at the first start. Its id is the cluster's.
async fn authority(
    store: &dyn Store,
    keyring: &Keyring,
    clock: &Clock,
) -> Result<Authority, Error> {
    if let Some(record) = store.get(AUTHORITY).await? {
        let known = open_authority(&record.value, keyring)?;
        return renew_authority(store, keyring, clock, known, record.version).await;
    }
    let id = Token::generate().hash().to_string();
    let authority = Authority::generate(&format!("c{}", &id[..12]), clock.at())?;
    let sealed = encode(&authority.seal(keyring)?);
    match store
        .transact(
            Transaction::new()
                .if_absent(AUTHORITY)
                .put(AUTHORITY, sealed),
        )
        .await
    {
        Ok(_) => Ok(authority),
        Err(store::Error::Conflict(_)) => {
            let record = store.get(AUTHORITY).await?.ok_or(Error::Overtaken)?;
            open_authority(&record.value, keyring)
        }
        Err(error) => Err(error.into()),
    }
}

/// The authority's own certificate is made anew in the second half of its life, with the same key. One that could not be stored is made by the
/// next start.
async fn renew_authority(
    store: &dyn Store,
    keyring: &Keyring,
    clock: &Clock,
    known: Authority,
    version: u64,
) -> Result<Authority, Error> {
    let Some(renewed) = known.renewed(clock.at())? else {
        return Ok(known);
    };
    let sealed = encode(&renewed.seal(keyring)?);
    let transaction = Transaction::new()
        .if_version(AUTHORITY, version)
        .put(AUTHORITY, sealed);
    match store.transact(transaction).await {
        Ok(_) => Ok(renewed),
        Err(store::Error::Conflict(_)) => Ok(known),
        Err(error) => Err(error.into()),
    }
}

fn open_authority(value: &[u8], keyring: &Keyring) -> Result<Authority, Error> {
    let sealed: SealedAuthority = decode(AUTHORITY, value).map_err(mirror::LoadError::from)?;
    Ok(Authority::unseal(&sealed, keyring)?)
}

/// Leaves address and token for the owner's commands. The token stays what it was as long as the file is there.
async fn write_client_file(
    server: &Server,
    path: &Path,
    [api, nodes]: [SocketAddr; 2],
) -> Result<(), Error> {
    let failed = |source| Error::Directory {
        path: path.to_owned(),
        source,
    };
    let known = fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice::<ClientFile>(&text).ok());
    let token = match known.filter(|known| is_valid(server, &known.token)) {
        Some(known) => known.token,
        None => make_token(server).await?,
    };
    let file = ClientFile {
        api,
        nodes,
        token,
        authority: Some(server.authority.certificate().to_owned()),
    };
    let text = serde_json::to_vec_pretty(&file).expect("plain data");
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed)?;
    }
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(&fresh)
        .and_then(|mut file| file.write_all(&text))
        .map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)
}

fn is_valid(server: &Server, text: &str) -> bool {
    let Ok(token) = text.parse::<Token>() else {
        return false;
    };
    let known = server.look(|world| {
        world
            .tokens
            .get(&token.hash())
            .map(|record| record.value.clone())
    });
    known.is_some_and(|record| record.admits(&token, server.now()).is_ok())
}

/// A new token of the owner. Those of files that are gone are forgotten.
async fn make_token(server: &Server) -> Result<String, Error> {
    const OWNER: &str = "owner";
    let token = Token::generate();
    let record = Record::of_admin(&token, OWNER, None);
    let old: Vec<token::Hash> = server.look(|world| {
        let owners = world
            .tokens
            .iter()
            .filter(|(_, known)| known.kind == record.kind && known.name == OWNER);
        owners.map(|(hash, _)| *hash).take(100).collect()
    });
    let mut draft = Draft::new();
    draft.put_anyway(Key::Token(token.hash()), &record);
    for hash in old {
        draft.delete_anyway(Key::Token(hash));
    }
    draft.note(format!("token of {OWNER}"));
    let by = Principal::Administrator {
        name: "server".to_owned(),
    };
    let deed = Deed::new(by.name(), "token.make", format!("token/{OWNER}"));
    let mut chain = server.changing.lock().await;
    server.commit_kept(&mut chain, &deed, draft).await?;
    Ok(token.reveal().to_string())
}

async fn rotate(server: Arc<Server>, certificate: Arc<Certificate>) {
    loop {
        tokio::time::sleep(ROTATION_EVERY).await;
        match certificate.rotate(&server.authority, &server.clock) {
            Ok(true) => tracing::info!("the server's certificate was exchanged"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the server's certificate can't be exchanged"),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use store::memory::MemoryStore;

    use super::*;

    /// One that answers nobody; its world follows its store.
    pub async fn begun_in(directory: &Path) -> Arc<Server> {
        let begun = Begun {
            directory,
            store: Arc::new(MemoryStore::default()),
            clock: Clock::new(Arc::new(jiff::Timestamp::now)),
            version: "test",
            nodes: SocketAddr::from(([127, 0, 0, 1], 1)),
            ending: watch::channel(false).1,
        };
        let server = Arc::new(begin(begun).await.expect("a server"));
        tokio::spawn(mirror::run(server.clone()));
        server
    }
}
