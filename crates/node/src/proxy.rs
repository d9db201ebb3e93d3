//! The proxy process and the socket to it. A living one is adopted, a dead one started anew; it outlives the agent.

mod liveness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::control::Reason;
use model::ids::{Epoch, Generation};
use model::signals::Level;
use model::traffic::{FromProxy, ToProxy};
use model::units::Span;
use plan::agent::Input;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::agent::Agent;
use crate::core::Core;
use crate::layout;
use crate::pause::Pause;
use liveness::{LOOK_EVERY, Liveness};

/// For a new proxy to answer on its socket.
const START_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// A proxy that does not take what it is told is hung up on.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// For what is in flight when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// A refused pair of caller and callee is an event at most this often.
const REFUSED_INTERVAL: Duration = Duration::from_secs(60);
const REFUSED_PAIRS_MAX: usize = 256;
const REFUSED_ERRORS_MAX: usize = 64;
const LAST_WORDS_BYTES: usize = 500;

/// Keeps a proxy running and told for as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut pause = Pause::new(Duration::from_millis(20), Duration::from_secs(5));
    loop {
        match connect(&agent).await {
            Some(stream) => {
                let since = Instant::now();
                let ended = converse(&agent, stream).await;
                lost(&agent);
                if ended {
                    agent.signals.proxy_stopped.send_replace(true);
                    return;
                }
                if since.elapsed() > Duration::from_secs(10) {
                    pause.reset();
                }
            }
            None if *agent.signals.stop_proxy.borrow() => {
                agent.signals.proxy_stopped.send_replace(true);
                return;
            }
            None => {}
        }
        pause.wait().await;
    }
}

/// Until it answers again, nothing of this node is on the road.
fn lost(agent: &Agent) {
    agent.with(|core| {
        core.proxy_answers = false;
        core.proxy_refuses = None;
        core.demand.clear();
    });
    agent.signals.report.notify_one();
}

async fn connect(agent: &Agent) -> Option<UnixStream> {
    let socket = agent.layout.proxy_socket();
    if let Ok(stream) = UnixStream::connect(&socket).await {
        return Some(stream);
    }
    if *agent.signals.stop_proxy.borrow() {
        return None;
    }
    let mut child = match start(agent) {
        Ok(child) => child,
        Err(error) => {
            failed(agent, format!("the proxy can't be started: {error}"));
            return None;
        }
    };
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        if let Ok(stream) = UnixStream::connect(&socket).await {
            // Somebody must take its exit status.
            tokio::spawn(async move { child.wait().await });
            return Some(stream);
        }
        if let Ok(Some(status)) = child.try_wait() {
            failed(
                agent,
                format!("the proxy ended at once ({status}): {}", last_words(agent)),
            );
            return None;
        }
        if Instant::now() > deadline {
            failed(agent, "the proxy does not answer on its socket".to_owned());
            let _ = child.kill().await;
            return None;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// It makes a session of its own, so that it outlives the agent and its terminal.
fn start(agent: &Agent) -> std::io::Result<Child> {
    let log = layout::aside(|| open_log(agent))?;
    Command::new(&agent.executable)
        .arg("proxy")
        .arg(agent.layout.proxy())
        .arg(agent.layout.proxy_socket())
        .current_dir("/")
        .env_remove("MAINLAND_JOIN_TOKEN")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// An empty one, which the proxy keeps within bounds itself; what the one before has said is kept beside it.
fn open_log(agent: &Agent) -> std::io::Result<std::fs::File> {
    let path = agent.layout.proxy().join("proxy.log");
    match std::fs::rename(&path, path.with_extension("log.1")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)
}

fn last_words(agent: &Agent) -> String {
    let log = agent.layout.proxy().join("proxy.log");
    let said = layout::aside(|| std::fs::read(log)).unwrap_or_default();
    let from = said.len().saturating_sub(LAST_WORDS_BYTES);
    String::from_utf8_lossy(&said[from..]).trim().to_owned()
}

fn failed(agent: &Agent, message: String) {
    agent.with(|core| {
        agent.say(
            core,
            None,
            Level::Error,
            Reason::new("proxy-failed", message),
        )
    });
}

/// True: it was told to stop, and has.
async fn converse(agent: &Arc<Agent>, stream: UnixStream) -> bool {
    let mut liveness = Liveness::of(&stream);
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut road = agent.signals.road.subscribe();
    road.mark_changed();
    let mut stop = agent.signals.stop_proxy.subscribe();
    agent.with(|core| core.told_snapshot = None);
    let mut refused = Refused::default();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => liveness.heard(hear(agent, &line, &mut refused)),
                Ok(None) | Err(_) => return *agent.signals.stop_proxy.borrow(),
            },
            _ = road.changed() => {
                if let Some(message) = next_snapshot(agent)
                    && let Err(error) = write(&mut writer, &message).await
                {
                    tracing::warn!(%error, "the proxy does not take what it is told");
                    return false;
                }
            }
            _ = looks.tick() => if let Some(why) = liveness.look() {
                let message = format!("{why}: it is killed, and another one starts");
                failed(agent, message);
                liveness.kill();
                return false;
            },
            () = until(&mut stop) => break,
        }
    }
    let message = ToProxy::Stop {
        grace: Span(STOP_GRACE),
    };
    let _ = write(&mut writer, &message).await;
    let patience = STOP_GRACE + Duration::from_secs(1);
    let ending = async { while let Ok(Some(_)) = lines.next_line().await {} };
    let _ = tokio::time::timeout(patience, ending).await;
    true
}

/// The guard that `wait_for` returns must not live across an await.
async fn until(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What is new since the last one that was told on this connection.
fn next_snapshot(agent: &Agent) -> Option<ToProxy> {
    let snapshot = agent.with(|core| {
        if agent.has_told_all(core) {
            return None;
        }
        let known = core
            .state
            .generation()
            .map_or(Epoch::default(), |generation| generation.epoch);
        core.told = Generation {
            epoch: core.told.epoch.max(known),
            counter: core.told.counter + 1,
        };
        let snapshot = agent.snapshot(core, core.told);
        core.told_snapshot = Some(snapshot.clone());
        Some(snapshot)
    })?;
    Some(ToProxy::Snapshot {
        snapshot: Box::new(snapshot),
    })
}

async fn write(writer: &mut OwnedWriteHalf, message: &ToProxy) -> std::io::Result<()> {
    let line = api::stream::json_line(message);
    match tokio::time::timeout(WRITE_PATIENCE, writer.write_all(&line)).await {
        Ok(written) => written,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// What was refused, as far as it was said.
#[derive(Default)]
struct Refused {
    /// When a pair was last said.
    pairs: BTreeMap<String, Instant>,
    /// Why a snapshot was refused, each said once.
    errors: BTreeSet<String>,
}

impl Refused {
    fn is_new_error(&mut self, error: &str) -> bool {
        self.errors.len() < REFUSED_ERRORS_MAX && self.errors.insert(error.to_owned())
    }

    fn is_news(&mut self, pair: String) -> bool {
        let now = Instant::now();
        self.pairs
            .retain(|_, at| now.duration_since(*at) < REFUSED_INTERVAL);
        if self.pairs.len() >= REFUSED_PAIRS_MAX || self.pairs.contains_key(&pair) {
            return false;
        }
        self.pairs.insert(pair, now);
        true
    }
}

/// It lasts until the proxy acknowledges a snapshot without it; people read of it once.
fn hear_refusal(agent: &Agent, error: String, refused: &mut Refused) {
    let is_new = refused.is_new_error(&error);
    agent.with(|core| {
        if is_new {
            let reason = Reason::new("proxy-refused", format!("the proxy refuses: {error}"));
            agent.say(core, None, Level::Error, reason);
        }
        core.proxy_refuses = Some(error);
    });
}

/// Of an earlier snapshot than the last nothing is concluded: the word on that one is on its way.
fn note_doors(core: &mut Core, generation: Generation, missing: BTreeSet<SocketAddr>) {
    let told = core.told_snapshot.as_ref();
    if let Some(told) = told.filter(|told| told.generation == generation) {
        let doors = told.doors.iter().map(|door| door.listen);
        let open = doors.filter(|door| !missing.contains(door)).collect();
        core.open_doors = Some(open);
        core.refused_doors = missing;
    }
}

/// Whether it was that the proxy lives.
fn hear(agent: &Arc<Agent>, line: &str, refused: &mut Refused) -> bool {
    match serde_json::from_str(line) {
        Ok(FromProxy::Alive) => return true,
        Ok(FromProxy::Acknowledged {
            generation,
            missing,
        }) => {
            agent.with(|core| {
                note_doors(core, generation, missing);
                core.proxy_answers = true;
                // What it can't do of this one it says next.
                core.proxy_refuses = None;
            });
            agent.signals.acknowledged.send_replace(generation);
            agent.signals.report.notify_one();
        }
        Ok(FromProxy::Refused { generation, error }) => {
            tracing::debug!(%generation, error, "the proxy refuses");
            hear_refusal(agent, error, refused);
        }
        Ok(FromProxy::Drained { instance }) => {
            if let Some(instance) = agent.with(|core| core.drained(instance)) {
                agent.tell(Input::Drained { instance });
            }
        }
        Ok(FromProxy::Demand { service, waiting }) => {
            agent.with(|core| match waiting {
                0 => core.demand.remove(&service),
                _ => core.demand.insert(service, waiting),
            });
            agent.signals.report.notify_one();
        }
        Ok(FromProxy::CallRefused {
            caller,
            callee,
            count,
            reason,
        }) => {
            if refused.is_news(format!("{caller}>{callee}")) {
                let calls = if count == 1 { "call" } else { "calls" };
                let message = format!("refused {count} {calls} of {caller} to {callee}: {reason}");
                agent.with(|core| {
                    agent.say(
                        core,
                        None,
                        Level::Warning,
                        Reason::new("call-refused", message),
                    )
                });
            }
        }
        Err(error) => tracing::warn!(%error, "the proxy said what is not understood"),
    }
    false
}
