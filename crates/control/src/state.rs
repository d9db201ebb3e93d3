//! What the handlers, the mirror and the leader share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::problem::Problem;
use boundary::authority::Authority;
use boundary::authorize::Limits;
use bytes::Bytes;
use jiff::Timestamp;
use model::boundary::{KeyFingerprint, PrincipalName};
use model::control::Reason;
use model::ids::{Epoch, NodeName, ResourceId};
use model::machine::Disk;
use model::signals::Level;
use plan::Instant;
use store::{Condition, Revision, Store, Transaction};
use tokio::sync::{Notify, Semaphore, watch};

use crate::artifacts::Artifacts;
use crate::auditor::{Chain, Deed};
use crate::clock::Clock;
use crate::desired::Told;
use crate::draft::Draft;
use crate::events::{About, Recorder};
use crate::observed::Observed;
use crate::problems;
use crate::records::LEADER;
use crate::refusals::Refusals;
use crate::ring::Ring;
use crate::runs::Runs;
use crate::strangers::{Bodies, RefusalRate};
use crate::tunnel::Tunnels;
use crate::world::World;

/// How often a change is tried anew on what others made of the world meanwhile.
const ATTEMPTS: usize = 8;
/// How long an answer waits for the mirror to show what was written.
const MIRROR_PATIENCE: Duration = Duration::from_secs(5);

/// How long somebody waits for the leader to look at the world.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// One server.
pub struct Server {
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub version: &'static str,
    /// Where nodes reach it.
    pub nodes: SocketAddr,
    /// The start of the machine that it runs on, as nodes say theirs ([`model::control::Place::boot`]). `None`: it can't be told.
    pub boot: Option<u64>,
    pub authority: Authority,
    pub ring: Ring,
    pub limits: Limits,
    pub events: Recorder,
    pub refusals: Refusals,
    pub artifacts: Artifacts,
    pub tunnels: Tunnels,
    pub leadership: Leadership,
    pub shared: Mutex<Shared>,
    /// Changes that people ask for are planned and written one after the other: none has to start over for another, and each adds to the
    /// audit log's chain.
    pub changing: tokio::sync::Mutex<Chain>,
    pub gates: Gates,
    pub strangers: Bodies,
    /// Of what is refused.
    pub refusal_rate: RefusalRate,
    /// Wakes the leader.
    pub changed: Notify,
    pub turns: Turns,
    /// Up to where the mirror is.
    pub mirrored: watch::Sender<Revision>,
    /// True once the server ends: bodies that go on must not.
    pub ending: watch::Receiver<bool>,
}

/// What is behind the one lock. It is never held across an await.
pub struct Shared {
    pub world: World,
    pub observed: Observed,
    /// What each node was last told to run.
    pub desired: BTreeMap<NodeName, Channel>,
    /// What people run beside the copies of services.
    pub runs: Runs,
    /// Who connected to which service lately, and when that was last recorded.
    pub connected: BTreeMap<(PrincipalName, ResourceId), Instant>,
    /// Keys of POSTs that are being answered.
    pub running: BTreeSet<String>,
    /// Who is silent, lost, back: fed by each heartbeat, acted on by the leader.
    pub nodes: plan::nodes::State,
    /// What heartbeats made it decide, for the leader to store.
    pub node_outputs: Vec<plan::nodes::Output>,
    /// That the server's own directory is on.
    pub disk: Option<Disk>,
    /// The leader has looked at the world once.
    pub ready: bool,
}

/// Where a node is told what it should run.
pub struct Channel {
    /// Whose it is: a name may go to another.
    key: Option<KeyFingerprint>,
    pub sender: watch::Sender<Told>,
}

impl Shared {
    /// Whether the service has a copy on the node, or something that a person runs as one.
    pub fn is_placed(&self, id: &ResourceId, node: &NodeName) -> bool {
        self.world.is_placed(id, node) || self.runs.is_placed(id, node)
    }

    /// Where who has the name now is told. What an earlier holder of it follows ends.
    pub fn channel(&mut self, name: &NodeName) -> &watch::Sender<Told> {
        let record = self.world.nodes.get(name);
        let key = record.and_then(|record| record.key.clone());
        let channel = self.desired.entry(name.clone());
        let channel = channel.or_insert_with(|| Channel::of(key.clone()));
        if channel.key != key {
            *channel = Channel::of(key);
        }
        &channel.sender
    }
}

impl Channel {
    fn of(key: Option<KeyFingerprint>) -> Self {
        let sender = watch::channel(None).0;
        Self { key, sender }
    }
}

/// How many do something at once. Who finds one shut is refused, or does without.
pub struct Gates {
    /// Changes that go on whether or not who asked still waits.
    pub changes: Arc<Semaphore>,
    /// Machines let in: each costs a signature.
    pub joins: Semaphore,
    /// Refused requests whose body is taken off the wire.
    pub discards: Semaphore,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            changes: Arc::new(Semaphore::new(1024)),
            joins: Semaphore::new(4),
            discards: Semaphore::new(64),
        }
    }
}

/// Counts the leader's turns, so that who asks what it should run is told what a turn begun later has decided.
#[derive(Default)]
pub struct Turns {
    begun: AtomicU64,
    ended: watch::Sender<u64>,
}

impl Turns {
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn end(&self, turn: u64) {
        self.ended.send_replace(turn);
    }

    /// Waits until a turn has ended that begins after now. False: the leader takes too long, or takes none any more.
    pub async fn whole(&self) -> bool {
        let next = self.begun.load(Ordering::Relaxed) + 1;
        let mut ended = self.ended.subscribe();
        let whole = ended.wait_for(|ended| *ended >= next);
        matches!(tokio::time::timeout(TURN_PATIENCE, whole).await, Ok(Ok(_)))
    }
}

/// The claim that every write is conditioned on.
pub struct Leadership {
    pub epoch: Epoch,
    /// The bytes of our leader record.
    pub claim: Bytes,
    pub fenced: AtomicBool,
}

impl Leadership {
    fn condition(&self) -> Condition {
        Condition::Value {
            key: LEADER.to_owned(),
            value: self.claim.clone(),
        }
    }

    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("another server leads")]
    Fenced,
    #[error("`{0}` changed meanwhile")]
    Conflict(String),
    #[error(transparent)]
    Store(store::Error),
}

impl CommitError {
    pub fn problem(&self) -> Problem {
        match self {
            Self::Fenced => problems::fenced(),
            Self::Conflict(key) => {
                Problem::conflict("busy", format!("`{key}` changes all the time"))
                    .remedy("repeat the command")
            }
            Self::Store(error) => problems::of_store(error),
        }
    }
}

impl Server {
    pub fn now(&self) -> Timestamp {
        self.clock.at()
    }

    /// Looks at, or changes, what is shared. Short, and without awaiting.
    pub fn with<T>(&self, look: impl FnOnce(&mut Shared) -> T) -> T {
        look(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        self.with(|shared| look(&shared.world))
    }

    /// Writes a draft as the leader, and waits until the mirror shows it.
    pub async fn commit(&self, draft: Draft) -> Result<Revision, CommitError> {
        match self.write(draft.transaction).await {
            Ok(revision) => {
                self.catch_up(revision).await;
                Ok(revision)
            }
            Err(error) => {
                if matches!(error, CommitError::Conflict(_))
                    && let Ok(revision) = self.store.revision().await
                {
                    self.catch_up(revision).await;
                }
                Err(error)
            }
        }
    }

    /// Writes as the leader: fenced by the epoch, and nothing more. For what the mirror does not hold.
    pub async fn write(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        if self.leadership.is_fenced() {
            return Err(CommitError::Fenced);
        }
        let mut fenced = Transaction::new().condition(self.leadership.condition());
        fenced.conditions.extend(transaction.conditions);
        fenced.operations = transaction.operations;
        match self.store.transact(fenced).await {
            Ok(revision) => Ok(revision),
            Err(store::Error::Conflict(conflict)) if conflict.index == 0 => {
                self.step_down();
                Err(CommitError::Fenced)
            }
            Err(store::Error::Conflict(conflict)) => {
                Err(CommitError::Conflict(conflict.condition.key().to_owned()))
            }
            Err(error) => Err(CommitError::Store(error)),
        }
    }

    /// Waits until the mirror shows the revision.
    async fn catch_up(&self, revision: Revision) {
        let mut mirrored = self.mirrored.subscribe();
        let shown = mirrored.wait_for(|shown| *shown >= revision);
        if tokio::time::timeout(MIRROR_PATIENCE, shown).await.is_err() {
            tracing::warn!("the mirror of the store is late");
        }
    }

    /// Builds a change from the world as it is, writes it with its record in the audit log, and starts over when the world moved on
    /// meanwhile.
    pub async fn change<T>(
        &self,
        deed: &Deed,
        build: impl FnMut(&World) -> Result<(Draft, T), Problem>,
    ) -> Result<(T, Revision), Problem> {
        self.change_as(Some(deed), build).await
    }

    /// The same without a record: for what is asked for every few seconds and decides nothing.
    pub async fn change_unkept<T>(
        &self,
        build: impl FnMut(&World) -> Result<(Draft, T), Problem>,
    ) -> Result<(T, Revision), Problem> {
        self.change_as(None, build).await
    }

    async fn change_as<T>(
        &self,
        deed: Option<&Deed>,
        mut build: impl FnMut(&World) -> Result<(Draft, T), Problem>,
    ) -> Result<(T, Revision), Problem> {
        let mut chain = self.changing.lock().await;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let (draft, answer) = self.look(|world| build(world))?;
            if draft.is_empty() {
                return Ok((answer, self.look(|world| world.revision)));
            }
            let written = match deed {
                Some(deed) => self.commit_kept(&mut chain, deed, draft).await,
                None => self.commit(draft).await,
            };
            match written {
                Ok(revision) => {
                    self.changed.notify_one();
                    return Ok((answer, revision));
                }
                Err(error @ CommitError::Conflict(_)) => last = Some(error),
                Err(error) => return Err(error.problem()),
            }
        }
        Err(last.map_or_else(problems::fenced, |error| error.problem()))
    }

    fn step_down(&self) {
        if self.leadership.fenced.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!("fenced: another server took over; this one decides nothing any more");
        let reason = Reason::new(
            "fenced",
            "another server took over; this one decides nothing any more",
        );
        self.say(Level::Error, About::server(), reason);
    }

    pub fn say(&self, level: Level, about: About, reason: Reason) {
        self.events.say(self.now(), level, about, reason);
    }

    /// Keeps what somebody is about to do that is no change of the store. An error: it must not be done.
    pub async fn keep(&self, deed: &Deed, lines: Vec<String>) -> Result<(), Problem> {
        let mut chain = self.changing.lock().await;
        let mut draft = Draft::new();
        lines.into_iter().for_each(|line| draft.note(line));
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.commit_kept(&mut chain, deed, draft.clone()).await {
                // Of a write that who asked for it did not wait for.
                Err(CommitError::Conflict(_)) if attempts < ATTEMPTS => {}
                kept => return kept.map(drop).map_err(|error| error.problem()),
            }
        }
    }

    /// Writes a draft together with its record in the audit log.
    pub async fn commit_kept(
        &self,
        chain: &mut Chain,
        deed: &Deed,
        mut draft: Draft,
    ) -> Result<Revision, CommitError> {
        let now = self.now();
        let added = chain.add(&*self.store, deed, now, &mut draft).await;
        let head = added.map_err(CommitError::Store)?;
        let revision = self.commit(draft).await?;
        chain.added(head, revision);
        if let Err(error) = self.prune(chain).await {
            tracing::warn!(%error, "the oldest audit records can't be dropped");
        }
        Ok(revision)
    }

    async fn prune(&self, chain: &mut Chain) -> Result<(), CommitError> {
        let pruned = chain.prune(&*self.store).await;
        if let Some((transaction, head)) = pruned.map_err(CommitError::Store)? {
            let revision = self.write(transaction).await?;
            chain.added(head, revision);
        }
        Ok(())
    }

    /// Counts what was refused.
    pub fn refused(&self, deed: &Deed, code: &str, why: &str) {
        self.refusals.count(self.now(), deed, code, why);
    }
}
