//! What the agent is told: a level, not a stream. Whoever changes something touches; each agent connection then tells what differs
//! from what it has told so far, so an agent that connects anew hears all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ids::{Generation, InstanceId, ResourceId};
use model::traffic::FromProxy;
use tokio::sync::watch;

use super::view::View;
use crate::load::Instant;

/// Refused pairs beyond this are not counted one by one: a program that dials everything must not fill the memory.
const MOST_REFUSED_PAIRS: usize = 1024;

/// A pair of which no call was refused for so long is forgotten, and its count begins anew.
const PAIR_LASTS: Duration = Duration::from_secs(600);

/// How often a growing count is told.
pub const TELL_EVERY: Duration = Duration::from_secs(1);

pub struct Reports {
    changed: watch::Sender<()>,
    /// Of what is counted: told with others, at most every [`TELL_EVERY`].
    counted: watch::Sender<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    acknowledged: Option<(Generation, BTreeSet<SocketAddr>)>,
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
            counted: watch::Sender::new(()),
            state: Mutex::default(),
        })
    }

    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Marked when a count has grown: whoever tells it takes its time.
    pub fn subscribe_counted(&self) -> watch::Receiver<()> {
        self.counted.subscribe()
    }

    /// A count has grown.
    pub fn touch_counted(&self) {
        self.counted.send_replace(());
    }

    /// Something that is told may have changed.
    pub fn touch(&self) {
        self.changed.send_replace(());
    }

    /// `missing`: where it can't listen.
    pub fn acknowledged(&self, generation: Generation, missing: BTreeSet<SocketAddr>) {
        self.state().acknowledged = Some((generation, missing));
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
        self.touch_counted();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one agent connection has told so far.
#[derive(Default)]
pub struct Told {
    acknowledged: Option<(Generation, BTreeSet<SocketAddr>)>,
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
            (state.acknowledged.clone(), state.refused.clone())
        };
        // Acknowledged once more when nothing of it is missing any longer.
        let completed = refused.is_none() && self.refused.is_some();
        if acknowledged != self.acknowledged || completed {
            self.acknowledged.clone_from(&acknowledged);
            let told = |(generation, missing)| FromProxy::Acknowledged {
                generation,
                missing,
            };
            news.extend(acknowledged.map(told));
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
        let told = &mut self.calls;
        reports.state().calls.retain(|pair, calls| {
            match told.get(pair) {
                Some((count, at)) if *count == calls.count => {
                    return now < after(*at, PAIR_LASTS);
                }
                Some((_, at)) if now < later(*at) => {
                    held = true;
                    return true;
                }
                _ => {}
            }
            told.insert(pair.clone(), (calls.count, now));
            news.push(FromProxy::CallRefused {
                caller: pair.0.clone(),
                callee: pair.1.clone(),
                count: calls.count,
                reason: calls.reason.clone(),
            });
            true
        });
        told.retain(|_, (_, at)| now < after(*at, PAIR_LASTS));
        held
    }
}

fn later(at: Instant) -> Instant {
    after(at, TELL_EVERY)
}

fn after(at: Instant, span: Duration) -> Instant {
    Instant(at.0 + span.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(reports: &Reports, caller: &str) {
        let callee = "shop/cart".parse().unwrap();
        reports.call_refused(caller.to_owned(), callee, "not declared".to_owned());
    }

    /// The counts that are told at a second, and whether some were held back.
    fn counts(told: &mut Told, reports: &Reports, second: u64) -> (Vec<u64>, bool) {
        let mut news = Vec::new();
        let held = told.calls(reports, Instant(second * 1_000_000_000), &mut news);
        let count = |it: FromProxy| match it {
            FromProxy::CallRefused { count, .. } => count,
            other => panic!("{other:?}"),
        };
        (news.into_iter().map(count).collect(), held)
    }

    #[test]
    fn refused_calls_are_counted_told_now_and_then_and_forgotten() {
        let reports = Reports::new();
        let mut told = Told::default();
        let (now, counted) = (reports.subscribe(), reports.subscribe_counted());
        refuse(&reports, "a");
        assert!(counted.has_changed().unwrap() && !now.has_changed().unwrap());
        assert_eq!(counts(&mut told, &reports, 10), (vec![1], false));
        (0..1000).for_each(|_| refuse(&reports, "a"));
        assert_eq!(counts(&mut told, &reports, 10), (vec![], true));
        assert_eq!(counts(&mut told, &reports, 11), (vec![1001], false));
        assert_eq!(counts(&mut told, &reports, 620), (vec![], false));
        refuse(&reports, "b");
        assert_eq!(counts(&mut told, &reports, 621), (vec![1], false));
        assert_eq!((told.calls.len(), reports.state().calls.len()), (1, 1));
        refuse(&reports, "a");
        assert_eq!(counts(&mut told, &reports, 630), (vec![1], false));
    }

    #[test]
    fn callers_without_end_are_not_counted_without_end() {
        let reports = Reports::new();
        for number in 0..5_000 {
            refuse(&reports, &number.to_string());
        }
        assert_eq!(reports.state().calls.len(), MOST_REFUSED_PAIRS);
    }
}
