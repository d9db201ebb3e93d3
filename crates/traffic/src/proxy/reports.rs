//! What the agent is told: a level, not a stream. Whoever changes something touches; each agent connection then tells what differs
//! from what it has told so far, so an agent that connects anew hears all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ids::{Generation, InstanceId, ResourceId};
use model::traffic::FromProxy;
use tokio::sync::watch;

use super::view::View;
use crate::load::Instant;

/// Refused pairs beyond this are not counted one by one: a program that dials everything must not fill the memory.
const MOST_REFUSED_PAIRS: usize = 1024;

/// How often a growing count is told.
pub const TELL_EVERY: Duration = Duration::from_secs(1);

pub struct Reports {
    changed: watch::Sender<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    acknowledged: Option<Generation>,
    refused: Option<(Generation, String)>,
    calls: HashMap<(String, ResourceId), RefusedCalls>,
}

#[derive(Clone)]
struct RefusedCalls {
    count: u64,
    reason: String,
}

impl Reports {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            changed: watch::Sender::new(()),
            state: Mutex::default(),
        })
    }

    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Something that is told may have changed.
    pub fn touch(&self) {
        self.changed.send_replace(());
    }

    pub fn acknowledged(&self, generation: Generation) {
        self.state().acknowledged = Some(generation);
        self.touch();
    }

    /// `None`: the snapshot was taken without complaint.
    pub fn refused(&self, refusal: Option<(Generation, String)>) {
        self.state().refused = refusal;
        self.touch();
    }

    pub fn call_refused(&self, caller: String, callee: ResourceId, reason: String) {
        let mut state = self.state();
        let full = state.calls.len() >= MOST_REFUSED_PAIRS;
        let key = (caller, callee);
        if full && !state.calls.contains_key(&key) {
            return;
        }
        let calls = state
            .calls
            .entry(key)
            .or_insert(RefusedCalls { count: 0, reason });
        calls.count += 1;
        drop(state);
        self.touch();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one agent connection has told so far.
#[derive(Default)]
pub struct Told {
    acknowledged: Option<Generation>,
    refused: Option<(Generation, String)>,
    drained: BTreeSet<InstanceId>,
    demand: BTreeMap<ResourceId, u32>,
    demand_at: Option<Instant>,
    calls: HashMap<(String, ResourceId), (u64, Instant)>,
}

impl Told {
    /// What is new since the last time, and whether something was held back that must be told within [`TELL_EVERY`].
    pub fn news(&mut self, reports: &Reports, view: &View, now: Instant) -> (Vec<FromProxy>, bool) {
        let mut news = Vec::new();
        self.snapshots(reports, &mut news);
        self.drained(view, &mut news);
        let demand_held = self.demand(view, now, &mut news);
        let calls_held = self.calls(reports, now, &mut news);
        (news, demand_held || calls_held)
    }

    /// Before the first snapshot there is only word of refused ones.
    pub fn without_view(&mut self, reports: &Reports) -> (Vec<FromProxy>, bool) {
        let mut news = Vec::new();
        self.snapshots(reports, &mut news);
        (news, false)
    }

    fn snapshots(&mut self, reports: &Reports, news: &mut Vec<FromProxy>) {
        let (acknowledged, refused) = {
            let state = reports.state();
            (state.acknowledged, state.refused.clone())
        };
        // Acknowledged once more when nothing of it is missing any longer.
        let completed = refused.is_none() && self.refused.is_some();
        if acknowledged != self.acknowledged || completed {
            self.acknowledged = acknowledged;
            news.extend(acknowledged.map(|generation| FromProxy::Acknowledged { generation }));
        }
        if refused != self.refused {
            self.refused = refused.clone();
            news.extend(
                refused.map(|(generation, error)| FromProxy::Refused { generation, error }),
            );
        }
    }

    fn drained(&mut self, view: &View, news: &mut Vec<FromProxy>) {
        let drained: BTreeSet<InstanceId> = view
            .local
            .iter()
            .filter(|(_, local)| local.gate.is_drained())
            .map(|(instance, _)| instance.clone())
            .collect();
        for instance in drained.difference(&self.drained) {
            news.push(FromProxy::Drained {
                instance: instance.clone(),
            });
        }
        self.drained = drained;
    }

    /// Its beginning and its end are told at once, what grows in between once a second.
    fn demand(&mut self, view: &View, now: Instant, news: &mut Vec<FromProxy>) -> bool {
        let demand: BTreeMap<ResourceId, u32> = view
            .destinations
            .values()
            .map(|destination| (destination.service.clone(), destination.shared.demand()))
            .filter(|(_, waiting)| *waiting > 0)
            .collect();
        let recent = self.demand_at.is_some_and(|at| now < later(at));
        let same_services = demand.keys().eq(self.demand.keys());
        if demand == self.demand || (same_services && recent) {
            return demand != self.demand;
        }
        for (service, waiting) in &demand {
            if self.demand.get(service) != Some(waiting) {
                news.push(FromProxy::Demand {
                    service: service.clone(),
                    waiting: *waiting,
                });
            }
        }
        for service in self
            .demand
            .keys()
            .filter(|&service| !demand.contains_key(service))
        {
            news.push(FromProxy::Demand {
                service: service.clone(),
                waiting: 0,
            });
        }
        self.demand = demand;
        self.demand_at = Some(now);
        false
    }

    fn calls(&mut self, reports: &Reports, now: Instant, news: &mut Vec<FromProxy>) -> bool {
        let mut held = false;
        for (pair, calls) in &reports.state().calls {
            match self.calls.get(pair) {
                Some((count, _)) if *count == calls.count => continue,
                Some((_, at)) if now < later(*at) => {
                    held = true;
                    continue;
                }
                _ => {}
            }
            self.calls.insert(pair.clone(), (calls.count, now));
            news.push(FromProxy::CallRefused {
                caller: pair.0.clone(),
                callee: pair.1.clone(),
                count: calls.count,
                reason: calls.reason.clone(),
            });
        }
        held
    }
}

fn later(at: Instant) -> Instant {
    Instant(at.0 + TELL_EVERY.as_nanos() as u64)
}
