//! One thread with one single-threaded runtime: its own connections and pools, beside what all workers share.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use model::boundary::KeyFingerprint;
use model::ids::ResourceId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bulkhead::Bulkhead;
use super::client::Stalled;
use super::instances::Instances;
use super::peers::{Peers, Whose};
use super::reports::Reports;
use super::shares::{Kind, Party, Place, Shares};
use super::stream::READ_BYTES;
use super::upgrades::Holdings;
use super::view::{Caller, View, missing_need};
use super::window::Room;
use super::{callee, entrance, refusal, wire};
use crate::load;

/// After a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// For a worker to take a view.
const TAKE_PATIENCE: Duration = Duration::from_secs(5);
/// For what comes with the largest head.
const BESIDE_HEAD_BYTES: usize = 8 * 1024;
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// What all workers, and the one who tells them, share.
pub struct Common {
    view: ArcSwapOption<View>,
    /// Counts the views, so that workers can say which one they have taken.
    sequence: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    taken: Vec<AtomicU64>,
    taken_changed: Notify,
    pub reports: Arc<Reports>,
    /// For what the streams of the mesh hold unread.
    pub room: Arc<Room>,
    shares: Shares,
    /// Upgraded connections of each party.
    upgrades: Arc<Holdings>,
    /// Places at copies that each party holds, where they are scarce.
    places: Arc<Holdings>,
    /// Requests of each party that wait for such a place.
    share_waits: Arc<Holdings>,
    /// Clients that take nothing of their answers.
    pub stalled: Stalled,
    started: std::time::Instant,
}

impl Common {
    /// `descriptors`: as many as may be open; `None`: the process's limit.
    pub fn new(workers: usize, descriptors: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwapOption::empty(),
            sequence: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            taken: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            taken_changed: Notify::new(),
            reports: Reports::new(),
            room: Arc::default(),
            shares: descriptors.map_or_else(Shares::of_this_process, Shares::new),
            upgrades: Arc::default(),
            places: Arc::default(),
            share_waits: Arc::default(),
            stalled: Stalled::default(),
            started: std::time::Instant::now(),
        })
    }

    pub fn view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    pub fn now(&self) -> load::Instant {
        load::Instant(self.started.elapsed().as_nanos() as u64)
    }

    /// New requests see `view` from here on; returns when every worker has its sockets too. One that has ended, or is stuck, is not waited for.
    pub async fn publish(&self, view: Arc<View>) {
        self.view.store(Some(view.clone()));
        let mut number = 0;
        self.sequence.send_modify(|sequence| {
            *sequence += 1;
            number = *sequence;
        });
        for destination in view.destinations.values() {
            destination.shared.arrived.notify_waiters();
        }
        let taken = tokio::time::timeout(TAKE_PATIENCE, self.all_have_taken(number));
        if taken.await.is_err() {
            tracing::error!("a worker does not take what it is told");
        }
    }

    async fn all_have_taken(&self, number: u64) {
        loop {
            let mut changed = std::pin::pin!(self.taken_changed.notified());
            changed.as_mut().enable();
            let has_taken = |taken: &AtomicU64| taken.load(Ordering::Acquire) >= number;
            if self.taken.iter().all(has_taken) {
                return;
            }
            changed.await;
        }
    }

    /// Completes when a view is there of which `holds` is true.
    pub async fn until_view(&self, holds: impl Fn(&View) -> bool) {
        let mut sequence = self.sequence.subscribe();
        while !self.view().is_some_and(|view| holds(&view)) {
            // An error means that the sender is gone, and with it all that is done here.
            if sequence.changed().await.is_err() {
                return;
            }
        }
    }

    /// Completes when a view is there in which `key` is let in no more.
    pub async fn until_removed(&self, key: &KeyFingerprint) {
        self.until_view(|view| !view.tls.admits(key)).await;
    }

    /// Completes when a service may no longer call another that runs here: what it has open ends, and that is told.
    pub async fn until_forbidden(&self, caller: &Caller, callee: &ResourceId) {
        // What came by a route goes on when the route leads elsewhere.
        let Caller::Service(service) = caller else {
            return std::future::pending().await;
        };
        self.until_view(|view| view.forbids(caller, callee)).await;
        let why = missing_need(service, callee);
        self.reports
            .call_refused(caller.to_string(), callee.clone(), why);
    }

    fn has_taken(&self, worker: usize, number: u64) {
        self.taken[worker].store(number, Ordering::Release);
        self.taken_changed.notify_waiters();
    }

    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}

/// What the tasks of one worker share.
pub struct Worker {
    /// `None`: it is a bulkhead, and accepts nothing itself.
    index: Option<usize>,
    common: Arc<Common>,
    pub instances: Arc<Instances>,
    pub peers: Peers,
    /// None of a bulkhead.
    bulkhead: OnceLock<Bulkhead>,
    random: Mutex<SmallRng>,
    /// Closed when the last connection has ended.
    alive: mpsc::Sender<Infallible>,
}

impl Worker {
    /// `index`: `None` of a bulkhead. With what ends when it and all its connections have.
    pub fn new(
        common: Arc<Common>,
        index: Option<usize>,
        seed: u64,
    ) -> (Arc<Self>, mpsc::Receiver<Infallible>) {
        let (alive, ended) = mpsc::channel(1);
        let whose = match index {
            Some(_) => Whose::Anybodys,
            None => Whose::Crowds,
        };
        let worker = Self {
            index,
            instances: Arc::new(Instances::new(buffer_bytes(index))),
            peers: Peers::new(common.clone(), whose),
            common,
            bulkhead: OnceLock::new(),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            alive,
        };
        (Arc::new(worker), ended)
    }

    /// The view that new requests see.
    pub fn view(&self) -> Arc<View> {
        self.common
            .view()
            .expect("sockets come with a view, and connections with sockets")
    }

    /// A short look at that view: it costs no counter that all workers share.
    pub fn look<T>(&self, at: impl FnOnce(&View) -> T) -> T {
        let view = self.common.view.load();
        at(view.as_ref().expect("as above"))
    }

    /// For what outlives a request.
    pub fn common(&self) -> Arc<Common> {
        self.common.clone()
    }

    pub fn reports(&self) -> &Reports {
        &self.common.reports
    }

    pub fn now(&self) -> load::Instant {
        self.common.now()
    }

    pub fn with_random<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for a connection; `None`: it is to be closed.
    pub fn place(&self, kind: Kind, party: Party) -> Option<Place> {
        let place = self.common.shares.take(kind, party);
        if place.is_none() {
            tracing::debug!(?kind, "a connection finds no place");
        }
        place
    }

    /// Starts the thread for parties with many connections. Not to be called from a runtime: where the thread can't be had, its own ends here.
    pub fn start_bulkhead(&self) -> std::io::Result<()> {
        let seed = self.with_random(Rng::random);
        let started = Bulkhead::start(self.common.clone(), seed, self.alive.clone())?;
        let _ = self.bulkhead.set(started);
        Ok(())
    }

    /// Where parties with many connections are served. `None`: here.
    pub fn bulkhead(&self) -> Option<&Bulkhead> {
        self.bulkhead.get()
    }

    pub fn buffer_bytes(&self) -> usize {
        buffer_bytes(self.index)
    }

    /// For a task that is to be waited for before the worker ends.
    pub fn alive(&self) -> mpsc::Sender<Infallible> {
        self.alive.clone()
    }

    pub fn upgrades(&self) -> &Arc<Holdings> {
        &self.common.upgrades
    }

    pub fn places(&self) -> &Arc<Holdings> {
        &self.common.places
    }

    pub fn share_waits(&self) -> &Arc<Holdings> {
        &self.common.share_waits
    }

    pub async fn until_removed(&self, key: &KeyFingerprint) {
        self.common.until_removed(key).await;
    }

    pub fn stalled(&self) -> Stalled {
        self.common.stalled.clone()
    }

    /// Completes when the proxy stops.
    pub async fn stopping(&self) {
        let mut stopping = self.common.stopping.subscribe();
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

/// Of one connection of a client or to an instance, in each direction: a head at least. One of many of its party gets no more.
fn buffer_bytes(index: Option<usize>) -> usize {
    match index {
        Some(_) => READ_BYTES,
        None => wire::MOST_HEADER_BYTES + BESIDE_HEAD_BYTES,
    }
}

/// Runs worker `index` on this thread until it is stopped and its connections have ended. `seed`: for its random choices.
pub fn run(common: Arc<Common>, index: usize, seed: u64) -> std::io::Result<()> {
    let _ended = Ended {
        common: common.clone(),
        index,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (worker, ended) = Worker::new(common, Some(index), seed);
    // Now, since a crowd comes when there is no time to fail.
    worker.start_bulkhead()?;
    runtime.block_on(work(worker, ended));
    Ok(())
}

/// Nobody waits for a worker whose thread ends, however it ends.
struct Ended {
    common: Arc<Common>,
    index: usize,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.common.has_taken(self.index, u64::MAX);
    }
}

/// Until it is stopped and its connections have ended.
pub async fn work(worker: Arc<Worker>, mut ended: mpsc::Receiver<Infallible>) {
    let mut sequence = worker.common.sequence.subscribe();
    let mut accepting = Accepting::default();
    let mut tidy_at = Instant::now() + TIDY_EVERY;
    loop {
        let number = *sequence.borrow_and_update();
        if let Some(view) = worker.common.view() {
            if worker.index.is_some() {
                accepting.follow(&worker, &view);
            }
            worker.peers.tidy(&view);
        }
        if let Some(index) = worker.index {
            worker.common.has_taken(index, number);
        }
        tokio::select! {
            changed = sequence.changed() => if changed.is_err() { break },
            () = worker.stopping() => break,
            () = tokio::time::sleep_until(tidy_at) => {
                worker.instances.tidy();
                tidy_at = Instant::now() + TIDY_EVERY;
            }
        }
    }
    accepting.stop();
    drop(worker);
    // Nothing is ever sent: this ends when the last connection has dropped its end.
    let _ = ended.recv().await;
}

/// The listening sockets of one worker: a task each.
#[derive(Default)]
struct Accepting {
    tasks: HashMap<SocketAddr, (Arc<TcpListener>, JoinHandle<()>)>,
}

impl Accepting {
    /// Sockets that stay are not touched.
    fn follow(&mut self, worker: &Arc<Worker>, view: &View) {
        self.tasks.retain(|address, (socket, task)| {
            let stays = view
                .sockets
                .get(address)
                .is_some_and(|it| Arc::ptr_eq(it, socket));
            if !stays {
                task.abort();
            }
            stays
        });
        for (&address, socket) in &view.sockets {
            if self.tasks.contains_key(&address) {
                continue;
            }
            match listen(socket) {
                Ok(listener) => {
                    let task = tokio::spawn(accept(worker.clone(), address, listener));
                    self.tasks.insert(address, (socket.clone(), task));
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "a worker can't share a listening socket")
                }
            }
        }
    }

    fn stop(self) {
        for (_, task) in self.tasks.into_values() {
            task.abort();
        }
    }
}

/// Every worker accepts from the same kernel queue by a descriptor of its own, so nothing that is queued is lost when workers
/// come and go, and a port that is claimed stays exclusively ours.
fn listen(socket: &TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(socket.try_clone()?)
}

async fn accept(worker: Arc<Worker>, address: SocketAddr, listener: tokio::net::TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let worker = worker.clone();
                let alive = worker.alive.clone();
                tokio::spawn(async move {
                    serve(worker, address, stream, client).await;
                    drop(alive);
                });
            }
            Err(error) => {
                tracing::warn!(%address, %error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What an address is for is asked of the view at hand: it may change while its socket stays.
async fn serve(worker: Arc<Worker>, address: SocketAddr, stream: TcpStream, client: SocketAddr) {
    let view = worker.view();
    if address == view.mesh {
        drop(view);
        // Few, and large: kept out of what each client costs.
        return Box::pin(callee::serve(worker, stream, client)).await;
    }
    if view
        .gateway
        .as_ref()
        .is_some_and(|gateway| gateway.listen == address)
    {
        drop(view);
        return entrance::serve_gateway(worker, stream, client).await;
    }
    if view.refusals == Some(address) {
        drop(view);
        return refusal::serve(worker, stream, client).await;
    }
    if let Some(door) = view.doors.get(&address).cloned() {
        drop(view);
        entrance::serve_door(worker, stream, client, door).await;
    }
}
