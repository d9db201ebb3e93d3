//! Tells the servers what is seen: each second, and at once when something changed. The answer renews the lease, counted from the sending.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::client::Client;
use model::compute::InstanceReport;
use model::control::{Demand, Heartbeat, NodeEvent, Notice, Reason, observed_digest};
use model::ids::{Epoch, InstanceId, SessionId};
use model::signals::Level;
use model::timing::{HEARTBEAT_AGAIN_AFTER, HEARTBEAT_EVERY, HEARTBEAT_TIMEOUT};
use plan::agent::Input;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::agent::{Agent, Error};
use crate::clock;
use crate::core::{Core, EVENTS_MAX};
use crate::pause::{self, Pause};
use crate::removal;

/// In one heartbeat.
const NOTICES_MAX: usize = 64;
/// Changes within this go together.
const COALESCE: Duration = Duration::from_millis(20);
/// For the proxy to answer before the first heartbeat: one without its address would take the node off the road.
const PROXY_PATIENCE: Duration = Duration::from_secs(1);

type Reports = BTreeMap<InstanceId, InstanceReport>;

/// One life of the agent, as the servers see it.
struct Session {
    id: SessionId,
    sequence: u64,
    /// What the server has of us; `None`: it must hear all.
    told: Option<Reports>,
    leader: Epoch,
}

/// A thread and a runtime apart, for heartbeats and for telling shims that the lease is renewed: whatever else an agent does, and however slow its
/// disk is, it is heard, and what has a lease keeps it. Ends when it is dropped.
pub struct Heart {
    tasks: Handle,
    _alive: oneshot::Sender<()>,
}

impl Heart {
    pub fn start() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let (alive, over) = oneshot::channel::<()>();
        let tasks = runtime.handle().clone();
        std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                let _ = runtime.block_on(over);
                // Whoever waits for a disk on a thread of its own is not waited for.
                runtime.shutdown_background();
            })
            .map_err(Error::Thread)?;
        Ok(Self {
            tasks,
            _alive: alive,
        })
    }

    /// Where nothing may wait for a disk.
    pub fn tasks(&self) -> Handle {
        self.tasks.clone()
    }

    pub fn begin(&self, agent: &Arc<Agent>) {
        self.tasks.spawn(run(agent.clone()));
    }
}

async fn run(agent: Arc<Agent>) {
    let mut heart = agent.identities.heart();
    let mut session = Session {
        id: SessionId(pause::draw()),
        sequence: 0,
        told: None,
        leader: Epoch::default(),
    };
    let mut acknowledged = agent.signals.acknowledged.subscribe();
    let first = acknowledged.wait_for(|_| agent.with(|core| core.proxy_answers));
    let _ = tokio::time::timeout(PROXY_PATIENCE, first).await;
    let mut pause = Pause::new(HEARTBEAT_AGAIN_AFTER, HEARTBEAT_EVERY);
    loop {
        let sent = Instant::now();
        heart = next_client(heart, agent.identities.heart());
        match beat(&agent, &heart, &mut session).await {
            Beat::Heard => {
                pause.reset();
                wait(&agent, sent).await;
            }
            Beat::SendAll => {}
            Beat::Unheard => pause.wait().await,
            Beat::Over => return,
        }
    }
}

/// Until the next is due, or something changed.
async fn wait(agent: &Agent, sent: Instant) {
    tokio::select! {
        () = tokio::time::sleep_until(sent + HEARTBEAT_EVERY) => {}
        () = agent.signals.report.notified() => tokio::time::sleep(COALESCE).await,
    }
}

enum Beat {
    Heard,
    /// The server's picture is another.
    SendAll,
    Unheard,
    /// This node is none any more.
    Over,
}

/// A client with a new certificate takes over once it is connected, or when the old one's connection is gone.
fn next_client(current: Arc<Client>, newest: Arc<Client>) -> Arc<Client> {
    if Arc::ptr_eq(&current, &newest) || newest.is_connected() || !current.is_connected() {
        return newest;
    }
    newest.begin_to_connect();
    current
}

async fn beat(agent: &Arc<Agent>, client: &Client, session: &mut Session) -> Beat {
    session.sequence += 1;
    let (heartbeat, reports) = agent.with(|core| compose(agent, core, session));
    let sent_at = clock::instant();
    let answer = client
        .heartbeat(&agent.config.name, &heartbeat, HEARTBEAT_TIMEOUT)
        .await;
    match answer {
        Ok(answer) if answer.epoch >= session.leader => {
            session.leader = answer.epoch;
            session.told = (!answer.send_full).then_some(reports);
            agent.with(|core| core.connected = true);
            agent.tell(Input::Renewed {
                epoch: answer.epoch,
                sent_at,
            });
            agent.signals.heard.send_modify(|heard| *heard += 1);
            match answer.send_full && !heartbeat.full {
                true => Beat::SendAll,
                false => Beat::Heard,
            }
        }
        Ok(answer) => {
            tracing::warn!(epoch = %answer.epoch, known = %session.leader, "a fenced leader answered");
            unheard(agent, session, heartbeat.events, None);
            Beat::Unheard
        }
        Err(error) => {
            let was_heard = *agent.signals.heard.borrow() > 0;
            unheard(agent, session, heartbeat.events, Some(&error.to_string()));
            match removal::is_over(agent, &error, was_heard) {
                true => Beat::Over,
                false => Beat::Unheard,
            }
        }
    }
}

/// Whether the server has it is not known: it must hear all, and the events again.
fn unheard(agent: &Agent, session: &mut Session, events: Vec<NodeEvent>, error: Option<&str>) {
    session.told = None;
    agent.with(|core| {
        if std::mem::take(&mut core.connected)
            && let Some(error) = error
        {
            let reason = Reason::new(
                "servers-silent",
                format!("the servers do not answer: {error}"),
            );
            agent.say(core, None, Level::Warning, reason);
        }
        let newer: Vec<NodeEvent> = core.events.drain(..).collect();
        for event in events.into_iter().chain(newer) {
            if core.events.len() < EVENTS_MAX {
                core.events.push_back(event);
            }
        }
    });
}

fn compose(agent: &Agent, core: &mut Core, session: &Session) -> (Heartbeat, Reports) {
    let reports: Reports = core
        .state
        .reports()
        .map(|report| (report.instance.clone(), report.clone()))
        .collect();
    let (changed, gone) = difference(session.told.as_ref(), &reports);
    let heartbeat = Heartbeat {
        session: session.id,
        sequence: session.sequence,
        // What is not on the disk is not taken, and what is there may be about to be.
        acknowledged: core.kept.min(core.state.generation()).unwrap_or_default(),
        unkept: core.unkept.clone(),
        digest: observed_digest(reports.values()),
        full: session.told.is_none(),
        changed,
        gone,
        demand: core
            .demand
            .iter()
            .map(|(service, waiting)| Demand {
                service: service.clone(),
                waiting: *waiting,
            })
            .collect(),
        mesh: core.proxy_answers.then_some(agent.config.mesh),
        pid: std::process::id(),
        version: agent.version.clone(),
        events: core.events.drain(..).collect(),
        at: Some(jiff::Timestamp::now()),
        place: agent.identities.place,
        disk: core.machine.disk,
        programs: core.machine.programs.clone(),
        notices: notices(core),
        not_forgotten: core.not_forgotten.iter().cloned().collect(),
    };
    (heartbeat, reports)
}

fn notices(core: &Core) -> Vec<Notice> {
    let all = core.notices.iter().take(NOTICES_MAX);
    all.map(|(instance, reason)| Notice {
        instance: instance.clone(),
        reason: reason.clone(),
    })
    .collect()
}

fn difference(told: Option<&Reports>, now: &Reports) -> (Vec<InstanceReport>, Vec<InstanceId>) {
    let Some(told) = told else {
        return (now.values().cloned().collect(), Vec::new());
    };
    let changed = now
        .values()
        .filter(|report| told.get(&report.instance) != Some(report));
    let gone = told.keys().filter(|id| !now.contains_key(*id));
    (changed.cloned().collect(), gone.cloned().collect())
}
