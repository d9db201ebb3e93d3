//! The topic while it runs: its consumers, and what happens to them.
//!
//! Nothing here waits for a consumer: [`Engine::plan`] says what can begin now, others do it and tell the outcome. What has changed is written
//! down in groups ([`Engine::flush`]): receipts within [`GROUP`], failures at once, attempts before they begin.
//!
//! | module | what it holds |
//! |---|---|
//! | [`entries`] | each consumer, and what is known of all |
//! | [`upkeep`] | writing down, removing, dead letters |
//! | [`asking`] | what pulling and looking at the topic need |

mod asking;
mod entries;
mod upkeep;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::ids::ResourceName;
use model::state::{self, EngineFile, Subscription};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, Semaphore};

pub use self::asking::conflict;
use self::entries::{Entry, State};
use super::consumer::{Delivery, Limits, Position, Token};
use super::event::Event;
use super::problem::Problem;
use super::storage::retention::Measure;
use super::storage::{Published, Storage};

/// How long a receipt may wait to be written down. After a crash, what was received within is delivered again.
pub const GROUP: Duration = Duration::from_millis(25);
/// How long a failed write waits until it is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// Messages that a consumer that is behind reads from the disk at a time.
const LOOK: usize = 256;
/// Pulls that wait at a time: half of all connections.
const WAITING_MAX: usize = if cfg!(test) { 8 } else { 512 };
/// Deliveries to one pull consumer at a time.
pub const PULL_IN_FLIGHT: u32 = 1024;

/// Milliseconds since 1970 that never go back while the process lives: for leases and waits.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started_ms: u64,
    started: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self::start_at(Self::wall_ms())
    }

    pub fn start_at(started_ms: u64) -> Self {
        Self {
            started_ms,
            started: Instant::now(),
        }
    }

    /// What the machine's clock says, which may be set, and goes on while the machine sleeps: for the times that messages bear.
    pub fn wall_ms() -> u64 {
        u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
    }

    pub fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_ms.saturating_add(elapsed)
    }
}

pub struct Engine {
    pub storage: Storage,
    pub clock: Clock,
    state: Mutex<State>,
    /// Something is worth being written down: soon, and at once.
    dirty: Notify,
    urgent: Notify,
    /// A delivery has ended.
    ended: Notify,
    /// One write of consumers at a time.
    flushing: Semaphore,
    /// Pulls that wait, each on a connection that nobody else has meanwhile.
    pub waiting: Semaphore,
}

/// A delivery that may begin.
#[derive(Debug, Clone)]
pub struct Errand {
    pub consumer: ResourceName,
    pub subscription: Subscription,
    /// Where the consumer answers; `None`: not told yet.
    pub door: Option<SocketAddr>,
    pub delivery: Delivery,
}

/// What can be done now.
#[derive(Debug, Default)]
pub struct Plan {
    pub errands: Vec<Errand>,
    /// Consumers for which messages are to be read, and behind which.
    pub looks: Vec<(ResourceName, Position)>,
    /// When there is more to do, if nothing happens before.
    pub next_ms: Option<u64>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed {
        error: String,
        retry_after_ms: Option<u64>,
    },
    /// Nobody was there.
    Absent,
    /// It was not brought to the consumer.
    Untouched,
}

/// What the file of the engine says of a topic.
fn declared(file: &EngineFile) -> state::Topic {
    match &file.engine {
        state::Engine::Topic(topic) => topic.clone(),
        state::Engine::Postgres(_) => unreachable!("a topic's engine is told of a topic"),
    }
}

impl Engine {
    /// Goes on where the file was left.
    ///
    /// # Errors
    ///
    /// The file can't be opened.
    pub fn open(
        options: sqlite::Options,
        file: Arc<EngineFile>,
        clock: Clock,
    ) -> Result<Arc<Self>, sqlite::Error> {
        let (storage, left) = Storage::open(options)?;
        let mut random = SmallRng::from_os_rng();
        let (attempts, now_ms) = (declared(&file).attempts, clock.now_ms());
        let entries = left.into_iter().filter_map(|left| {
            let name = ResourceName::new(left.name.clone()).ok()?;
            let entry = Entry::restored(left, attempts, random.random(), now_ms);
            Some((name, entry))
        });
        let consumers = entries.collect();
        let state = State {
            file: file.clone(),
            consumers,
            newcomers: false,
            measure: Measure::default(),
            measured: None,
            random,
            stopping: false,
        };
        let engine = Arc::new(Self {
            storage,
            clock,
            state: Mutex::new(state),
            dirty: Notify::new(),
            urgent: Notify::new(),
            ended: Notify::new(),
            flushing: Semaphore::new(1),
            waiting: Semaphore::new(WAITING_MAX),
        });
        engine.told(file);
        Ok(engine)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn topic(&self) -> String {
        self.state().file.name.to_string()
    }

    /// The source of events that name none.
    pub fn source(&self) -> String {
        let state = self.state();
        format!(
            "/projects/{}/topics/{}",
            state.file.project, state.file.name
        )
    }

    /// Who consumes, and how, as the leader says now. A new consumer begins with what is published from now on.
    pub fn told(&self, file: Arc<EngineFile>) {
        let (now_ms, newest) = (self.clock.now_ms(), self.storage.hub().newest());
        let mut state = self.state();
        let attempts = declared(&file).attempts;
        let first_token = state.first_token();
        for (name, subscription) in &file.settings.subscriptions {
            let is_new = !state.consumers.contains_key(name);
            state.newcomers |= is_new;
            let entry = state
                .consumers
                .entry(name.clone())
                .or_insert_with(|| Entry::new(newest, now_ms, first_token));
            entry.subscribe(subscription, attempts, now_ms);
        }
        for (name, entry) in &mut state.consumers {
            if !file.settings.subscriptions.contains_key(name)
                && entry.subscription.take().is_some()
            {
                entry.unsubscribe(attempts, now_ms);
            }
            if entry.pull {
                entry.consumer.set_limits(Limits {
                    in_flight: PULL_IN_FLIGHT,
                    attempts,
                });
            }
        }
        self.storage.hub().listen(!state.consumers.is_empty());
        state.file = file;
        drop(state);
        self.urgent.notify_one();
        self.wake();
    }

    /// Somebody should ask for a plan.
    pub fn wake(&self) {
        self.storage.hub().wake();
    }

    /// What can begin now. Whoever asks does it.
    pub fn plan(&self) -> Plan {
        let (now_ms, newest) = (self.clock.now_ms(), self.storage.hub().newest());
        let mut state = self.state();
        let State {
            file,
            consumers,
            stopping,
            ..
        } = &mut *state;
        let mut plan = Plan::default();
        if *stopping {
            return plan;
        }
        for (name, entry) in consumers {
            entry.consumer.tick(now_ms);
            if entry.look_at_hand(&self.storage, newest) {
                plan.looks
                    .push((name.clone(), entry.consumer.next_position() - 1));
            }
            entry.hand_out(name, file, now_ms, &mut plan);
            plan.next_ms = [plan.next_ms, entry.consumer.next_timer()]
                .into_iter()
                .flatten()
                .min();
            if entry.is_urgent() {
                self.urgent.notify_one();
            }
        }
        drop(state);
        self.dirty.notify_one();
        plan
    }

    /// Reads for a consumer that is behind what is at hand.
    pub async fn look(&self, name: ResourceName, after: Position) {
        let newest = self.storage.hub().newest();
        let read = self.storage.keys_after(after, LOOK).await;
        if let Err(error) = &read {
            tracing::warn!(consumer = %name, %error, "messages can't be read; trying again");
            tokio::time::sleep(AGAIN).await;
        }
        if let Some(entry) = self.state().consumers.get_mut(&name) {
            entry.looking = false;
            entry.look_at(read.ok(), newest);
        }
        self.wake();
    }

    /// What became of a delivery. False: who says so had it no more.
    pub fn settle(&self, name: &ResourceName, token: Token, outcome: &Outcome) -> bool {
        let now_ms = self.clock.now_ms();
        let mut state = self.state();
        let random = state.random.random();
        let Some(entry) = state.consumers.get_mut(name) else {
            return false;
        };
        let consumer = &mut entry.consumer;
        let known = match outcome {
            Outcome::Done => consumer.done(token),
            Outcome::Failed {
                error,
                retry_after_ms,
            } => consumer.failed(token, error, *retry_after_ms, now_ms, random),
            Outcome::Absent => consumer.absent(token, now_ms, random),
            Outcome::Untouched => consumer.untouched(token),
        };
        drop(state);
        match outcome {
            Outcome::Failed { .. } => self.urgent.notify_one(),
            _ => self.dirty.notify_one(),
        }
        self.ended.notify_waiters();
        self.wake();
        known
    }

    /// Publishes; answers after the sync.
    ///
    /// # Errors
    ///
    /// The topic is full, or its storage failed. Nothing was stored, unless the problem says that this is unknown.
    pub async fn publish(&self, events: Vec<Event>) -> Result<Vec<Published>, Problem> {
        let bytes: u64 = events.iter().map(Event::size).sum();
        if self.state().newcomers {
            // Were the topic to end now, what is published would be before them.
            self.flush().await?;
        }
        if self.check_room(bytes).is_err() {
            // What is done with is not known to be so at once.
            self.flush().await?;
            self.check_room(bytes)?;
        }
        let events = events.into_iter().map(Arc::new).collect();
        Ok(self.storage.publish(events).await?)
    }

    /// Begins nothing new from now on; who waits for a message is told that there is none.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        for entry in state.consumers.values_mut() {
            entry.take_back();
            entry.ready.notify_waiters();
        }
    }

    fn is_pushing(&self) -> bool {
        let state = self.state();
        let mut pushed = state.consumers.values().filter(|entry| !entry.pull);
        pushed.any(|entry| entry.consumer.in_flight() > 0)
    }

    /// Until nothing is pushed any more.
    pub async fn until_idle(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.is_pushing() {
                return;
            }
            ended.await;
        }
    }
}
