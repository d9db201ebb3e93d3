//! What the agent tells the server: each second, and soon when something changed. One at a time, and only what the server does not have.

use std::collections::BTreeMap;

use model::compute::InstanceReport;
use model::control::{Heartbeat, HeartbeatAnswer, observed_digest};
use model::ids::{Epoch, Generation, InstanceId, NodeName};
use model::timing::{HEARTBEAT_EVERY, HEARTBEAT_TIMEOUT};
use plan::Instant;
use plan::agent::Input;

use super::Agent;
use crate::Bug;
use crate::world::{Event, Life, ToServer, World};

const EVERY_MS: u64 = HEARTBEAT_EVERY.as_millis() as u64;
/// Changes within this go together.
const COALESCE_MS: u64 = 20;
/// An answer that takes longer is not waited for.
const ANSWER_TIMEOUT_MS: u64 = HEARTBEAT_TIMEOUT.as_millis() as u64;
/// A watch that brought nothing for so long is asked for anew.
const WATCH_AGAIN_MS: u64 = 2_000;

pub(super) type Reports = BTreeMap<InstanceId, InstanceReport>;

/// What an agent knows of what the server knows.
#[derive(Default)]
pub(super) struct Telling {
    sequence: u64,
    /// What the server has; `None`: it must hear all.
    told: Option<Reports>,
    awaited: Option<Awaited>,
    leader: Epoch,
    /// Something happened since the last heartbeat.
    changed: bool,
    due_ms: u64,
}

/// A heartbeat without an answer yet.
struct Awaited {
    sequence: u64,
    sent_ms: u64,
    full: bool,
    reports: Reports,
}

impl World {
    pub(crate) fn beat(&mut self, name: &NodeName, life: Life) {
        let sent_at = self.now_on(self.nodes[name].offset_ms).instant;
        let now_ms = self.now_ms;
        let unkept = self.options.bug == Some(Bug::AcknowledgesUnkept);
        let node = self.node(name);
        let (kept, is_removed) = (node.disk.kept, node.disk.is_removed);
        let Some(agent) = node.of_life(life).filter(|_| !is_removed) else {
            return;
        };
        let taken = agent.state.generation();
        let acknowledged = if unkept { taken } else { kept.min(taken) };
        if now_ms < agent.stalled_until_ms {
            let until = agent.stalled_until_ms;
            let node = name.clone();
            return self.put_off(until, Event::Heartbeat { node, life });
        }
        if now_ms < agent.telling.due_ms {
            return;
        }
        let heartbeat = agent.compose(now_ms, acknowledged);
        let observed = agent.state.reports().cloned().collect();
        let watch_is_old = now_ms >= agent.asked_ms + WATCH_AGAIN_MS;
        let message = ToServer::Heartbeat {
            heartbeat: Box::new(heartbeat),
            sent_at,
            observed,
        };
        self.send_to_server(name, message);
        if watch_is_old {
            self.ask_watch(name);
        }
        self.beat_at(name, life, now_ms + ANSWER_TIMEOUT_MS);
    }

    /// The only one that is due from now on.
    pub(super) fn beat_at(&mut self, name: &NodeName, life: Life, at_ms: u64) {
        let now_ms = self.now_ms;
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        let at_ms = at_ms.max(now_ms);
        agent.telling.due_ms = at_ms;
        let node = name.clone();
        self.schedule(at_ms - now_ms, Event::Heartbeat { node, life });
    }

    /// Something changed: a heartbeat of its own, a few changes at a time, once the last one is answered.
    pub(super) fn beat_soon(&mut self, name: &NodeName, life: Life) {
        let soon_ms = self.now_ms + COALESCE_MS;
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        agent.telling.changed = true;
        if agent.telling.awaited.is_none() && soon_ms < agent.telling.due_ms {
            self.beat_at(name, life, soon_ms);
        }
    }

    pub(super) fn take_answer(
        &mut self,
        name: &NodeName,
        life: Life,
        sequence: u64,
        answer: &HeartbeatAnswer,
        sent_at: Instant,
    ) {
        let now_ms = self.now_ms;
        let Some(agent) = self.node(name).of_life(life) else {
            return;
        };
        if let Some(due_ms) = agent.telling.hear(sequence, answer, now_ms) {
            self.beat_at(name, life, due_ms);
        }
        let epoch = answer.epoch;
        self.agent_takes(name, life, Input::Renewed { epoch, sent_at });
    }
}

impl Agent {
    fn compose(&mut self, now_ms: u64, acknowledged: Option<Generation>) -> Heartbeat {
        let reports: Reports = self
            .state
            .reports()
            .map(|report| (report.instance.clone(), report.clone()))
            .collect();
        let telling = &mut self.telling;
        // Whether the server has what was not answered is not known.
        if telling.awaited.take().is_some() {
            telling.told = None;
        }
        telling.sequence += 1;
        telling.changed = false;
        let full = telling.told.is_none();
        let (changed, gone) = difference(telling.told.as_ref(), &reports);
        let heartbeat = Heartbeat {
            session: self.session,
            sequence: telling.sequence,
            acknowledged: acknowledged.unwrap_or_default(),
            unkept: None,
            digest: observed_digest(reports.values()),
            full,
            changed,
            gone,
            demand: Vec::new(),
            mesh: None,
            pid: 0,
            version: String::new(),
            events: Vec::new(),
            at: None,
            place: None,
            disk: None,
            programs: None,
            notices: Vec::new(),
            not_forgotten: Vec::new(),
        };
        telling.awaited = Some(Awaited {
            sequence: telling.sequence,
            sent_ms: now_ms,
            full,
            reports,
        });
        heartbeat
    }
}

impl Telling {
    /// Answers when the next is due, if this is the answer that was waited for.
    fn hear(&mut self, sequence: u64, answer: &HeartbeatAnswer, now_ms: u64) -> Option<u64> {
        if answer.epoch < self.leader {
            return None;
        }
        self.leader = answer.epoch;
        let awaited = self
            .awaited
            .take_if(|awaited| awaited.sequence == sequence)?;
        self.told = (!answer.send_full).then_some(awaited.reports);
        Some(match (answer.send_full && !awaited.full, self.changed) {
            (true, _) => now_ms,
            (false, true) => now_ms + COALESCE_MS,
            (false, false) => awaited.sent_ms + EVERY_MS,
        })
    }
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
