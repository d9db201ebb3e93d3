//! The search of one request, or connection, for an endpoint: choosing, passing over what was tried, waiting when there is none.

mod chosen;
mod pool;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use model::ids::{NodeName, ResourceId};
use model::traffic::Balance;
use model::units::Span;
use tokio::time::{Instant, sleep, timeout};

pub use self::chosen::{Asked, Chosen, Slot};
use self::pool::Pool;
use self::waiting::{MOST_WAITING, Waiting};
use super::failure::Failure;
use super::kept::{Kept, Upload};
use super::shares::Party;
use super::upgrades::{self, Holding, Most};
use super::view::{Destination, View};
use super::worker::Worker;
use crate::balance::{self, Candidates};
use crate::load::{self, Load};
use crate::problem::{Code, Problem};
use crate::retry::{self, Facts, Stage, Verdict};

/// Times that all endpoints are tried anew; the time bound ends it sooner.
const MOST_ROUNDS: u32 = 256;
/// Tries that may have begun.
const MOST_REPEATS: u32 = 3;

/// Requests of one party and one service that wait for its share: as many as may wait for an endpoint, whose room they don't take.
const MOST_WAITING_FOR_SHARE: Most = Most::of_one(MOST_WAITING);

pub struct Search<'a> {
    worker: &'a Worker,
    service: &'a ResourceId,
    /// [`model::traffic::Door::once`].
    once: bool,
    began: Instant,
    tried: Vec<Arc<Load>>,
    /// Where the last try broke off: all of that node may be dying, so its other copies come last.
    broke_on: Option<NodeName>,
    round: u32,
    repeats: u32,
    /// The request has brought its share of the retry budget.
    counted: bool,
    last_reason: Option<String>,
    /// Nothing changes when two copies work on it: it may go to one that lately hung.
    safe: bool,
    /// Of the request, where its client may keep its endpoint.
    headers: Option<&'a HeaderMap>,
    /// The request's body, where it has one.
    body: Option<&'a Kept>,
    /// Whose request it is.
    party: &'a Party,
    /// How often it has waited for its party's share.
    share_waits: u32,
    /// As one of those that wait for it: kept until it has a place, or a newcomer would take its own.
    waits_for_share: Option<Holding>,
}

impl<'a> Search<'a> {
    /// `safe`: two copies may work on it at the same time. `once`: what may have begun is not repeated.
    pub fn new(
        worker: &'a Worker,
        party: &'a Party,
        service: &'a ResourceId,
        safe: bool,
        once: bool,
    ) -> Self {
        Self {
            worker,
            service,
            once,
            began: Instant::now(),
            tried: Vec::new(),
            broke_on: None,
            round: 0,
            repeats: 0,
            counted: false,
            last_reason: None,
            safe,
            headers: None,
            body: None,
            party,
            share_waits: 0,
            waits_for_share: None,
        }
    }

    /// No copy is judged by how long the client takes to send this.
    pub fn sending(mut self, body: &'a Kept) -> Self {
        self.body = Some(body);
        self
    }

    /// The client may keep an endpoint, by a cookie in these.
    pub fn keeping(mut self, headers: &'a HeaderMap) -> Self {
        self.headers = Some(headers);
        self
    }

    /// The endpoint to try next; waits for one when there is none.
    pub async fn next(&mut self) -> Result<Chosen, Problem> {
        loop {
            let view = self.worker.view();
            let Some(destination) = view.destinations.get(self.service) else {
                return Err(Problem::new(
                    Code::UnknownService,
                    format!("this proxy has no road to service {}", self.service),
                ));
            };
            if let Some(index) = self.choose(destination) {
                let Some(holding) = self.holding(&view, destination, index) else {
                    let destination = destination.clone();
                    drop(view);
                    Box::pin(self.wait_for_share(&destination)).await?;
                    continue;
                };
                self.waits_for_share = None;
                if !std::mem::replace(&mut self.counted, true) {
                    destination.shared.budget.deposit(self.worker.now());
                }
                let destination = destination.clone();
                return Ok(self.chosen(view, destination, index, holding));
            }
            let destination = destination.clone();
            Box::pin(self.wait(view, &destination)).await?;
        }
    }

    /// The party's own at the copy, where places are scarce. The outer `None`: it has its share of them.
    #[expect(clippy::option_option, reason = "none to have, none needed, one")]
    fn holding(&self, view: &View, to: &Destination, index: usize) -> Option<Option<Holding>> {
        match (self.party, upgrades::part_of_scarce(to, index)) {
            (Party::Balancer(_), _) | (_, None) => Some(None),
            (Party::Caller(_), _) if view.has_one_caller(&to.service) => Some(None),
            (party, Some(most)) => {
                let places = self.worker.places();
                places.take(party, &to.service, most).map(Some)
            }
        }
    }

    /// What its party has in flight may end.
    async fn wait_for_share(&mut self, destination: &Destination) -> Result<(), Problem> {
        let wait = destination.traffic.wait.duration();
        let left = wait.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            return Err(upgrades::share_is_taken(self.service));
        }
        if self.waits_for_share.is_none() {
            let waits = self.worker.share_waits();
            let waiting = waits.take(self.party, self.service, MOST_WAITING_FOR_SHARE);
            let waiting = waiting.ok_or_else(|| upgrades::share_is_taken(self.service))?;
            self.waits_for_share = Some(waiting);
        }
        let pause = self
            .worker
            .with_random(|random| retry::pause(self.share_waits, random));
        self.share_waits += 1;
        // At least a moment: the jitter may be none.
        sleep(pause.max(Duration::from_millis(1)).min(left)).await;
        Ok(())
    }

    fn chosen(
        &self,
        view: Arc<View>,
        destination: Arc<Destination>,
        index: usize,
        holding: Option<Holding>,
    ) -> Chosen {
        let began = self.worker.now();
        let load = &destination.endpoints[index].load;
        Chosen {
            slot: Some(Slot {
                in_flight: load.begin(),
                holding,
            }),
            insists: self.round > 0,
            settled: AtomicBool::new(false),
            asked: Asked {
                suspect: load.is_suspect(began),
                upload: self.body.map_or_else(Upload::none, Kept::upload),
                destination,
                index,
                began,
                at: Instant::now(),
            },
            view,
        }
    }

    /// A try has had its time without an answer. `Some`: where the request may be sent as well, now and within the retry budget; never when its body
    /// can't be sent again. A copy that the client keeps is waited for, and by itself no word about the copy: long polls are answered late.
    pub fn silent(&mut self, slow: &Asked) -> Option<Chosen> {
        if self.kept(&slow.destination) == Some(slow.index) {
            return None;
        }
        let hangs = self.hangs(slow);
        let now = self.worker.now();
        self.tried.push(slow.endpoint().load.clone());
        self.last_reason = Some("a copy does not answer".to_owned());
        if !self.safe || self.body.is_some_and(|body| !body.replayable()) {
            return None;
        }
        let view = self.worker.view();
        let destination = view.destinations.get(self.service)?.clone();
        let index = self.choose(&destination)?;
        let holding = self.holding(&view, &destination, index)?;
        // What is only slow is slow elsewhere as well, most likely.
        let free = self.repeats == 0 && hangs && slow.most_others_are_well(now);
        if self.repeats >= MOST_REPEATS || !(free || destination.shared.budget.withdraw(now)) {
            return None;
        }
        self.repeats += 1;
        Some(self.chosen(view, destination, index, holding))
    }

    /// The time for the whole request is over. A copy that the client keeps is found to hang only now.
    pub fn out_of_time(&self, slow: &Asked) {
        if self.kept(&slow.destination) == Some(slow.index) {
            self.hangs(slow);
        }
    }

    /// Whether a copy that does not answer has answered nobody meanwhile; noted with the copy.
    fn hangs(&self, slow: &Asked) -> bool {
        let Some(waited) = slow.waited() else {
            return false;
        };
        let now = self.worker.now();
        let began = load::Instant(now.0.saturating_sub(waited.as_nanos() as u64));
        let load = &slow.endpoint().load;
        load.silent(began, now, slow.may_eject(now))
    }

    /// The endpoint that the client keeps.
    fn kept(&self, destination: &Destination) -> Option<usize> {
        let (cookie, headers) = destination.cookie.as_ref().zip(self.headers)?;
        cookie.asked_for(headers)
    }

    fn choose(&self, destination: &Destination) -> Option<usize> {
        let pool = Pool {
            endpoints: &destination.endpoints,
            tried: &self.tried,
            broke_on: self.broke_on.as_ref(),
            safe: self.safe,
            now: self.worker.now(),
        };
        // That it may hang is no reason to leave it: nobody else knows the client.
        let kept = self.kept(destination);
        if let Some(kept) = kept.filter(|&kept| !pool.tried(kept) && !pool.is_out(kept)) {
            return Some(kept);
        }
        match destination.traffic.balance {
            Balance::LeastLatency => self.worker.with_random(|random| {
                balance::least_latency(&pool, &destination.near, &destination.far, random)
            }),
            Balance::RoundRobin => {
                let turn = destination.shared.turn.fetch_add(1, Ordering::Relaxed);
                balance::round_robin(&pool, destination.endpoints.len(), turn)
            }
        }
    }

    /// Every endpoint was tried, or there is none: waits for a new snapshot, or a little and begins anew.
    async fn wait(&mut self, seen: Arc<View>, destination: &Destination) -> Result<(), Problem> {
        let shared = &destination.shared;
        let none_at_all = destination.endpoints.is_empty();
        if none_at_all && self.once {
            return Err(self.no_endpoint(None));
        }
        let left = destination
            .traffic
            .wait
            .duration()
            .saturating_sub(self.began.elapsed());
        if left.is_zero() || self.round >= MOST_ROUNDS {
            return Err(self.no_endpoint(Some(destination.traffic.wait)));
        }
        let _waiting = Waiting::new(shared, none_at_all.then_some(self.worker.reports()))
            .ok_or_else(|| self.too_many())?;
        let arrived = shared.arrived.notified();
        if Arc::ptr_eq(&seen, &self.worker.view()) {
            // Held no longer than needed: it keeps what a newer one has left behind.
            drop(seen);
            let pause = if none_at_all {
                left
            } else {
                left.min(self.pause())
            };
            let _ = timeout(pause, arrived).await;
        }
        self.round += u32::from(!none_at_all);
        self.tried.clear();
        Ok(())
    }

    fn pause(&self) -> Duration {
        self.worker
            .with_random(|random| retry::pause(self.round, random))
    }

    /// A try failed. `Ok`: another one may be made.
    pub async fn failed(
        &mut self,
        chosen: Chosen,
        failure: Failure,
        facts: Facts,
    ) -> Result<(), Problem> {
        let (stage, reason) = match failure {
            Failure::Refused { reason } => {
                return Err(Problem::new(Code::CallerNotDeclared, reason));
            }
            Failure::Try { stage, reason } => (stage, reason),
        };
        self.note(&chosen, stage);
        let problem = self.problem(stage, &reason);
        self.last_reason = Some(reason);
        match retry::verdict(stage, facts) {
            Verdict::Elsewhere => Ok(()),
            Verdict::GiveUp => Err(problem),
            Verdict::IfBudget => {
                self.repeats += 1;
                let now = self.worker.now();
                let budget = &chosen.asked.destination.shared.budget;
                let asked = &chosen.asked;
                let first = self.repeats == 1;
                let free = asked.was_in_hand(now) || first && asked.most_others_are_well(now);
                if self.repeats > MOST_REPEATS || !(free || budget.withdraw(now)) {
                    return Err(problem);
                }
                drop(chosen);
                let pause = self
                    .worker
                    .with_random(|random| retry::pause(self.repeats - 1, random));
                tokio::time::sleep(pause).await;
                Ok(())
            }
        }
    }

    /// A try failed while others of the same request go on.
    pub fn failed_beside_others(&mut self, chosen: &Chosen, failure: &Failure) {
        if let Failure::Try { stage, .. } = failure {
            self.note(chosen, *stage);
        }
    }

    fn note(&mut self, chosen: &Chosen, stage: Stage) {
        let now = self.worker.now();
        chosen.settled.store(true, Ordering::Relaxed);
        let load = &chosen.endpoint().load;
        match stage {
            Stage::NotBegun => load.rest(now),
            Stage::Unreachable | Stage::Broken => load.failed(now, chosen.asked.may_eject(now)),
        }
        if stage == Stage::Broken {
            self.broke_on = chosen.endpoint().node().cloned();
        }
        self.tried.push(load.clone());
    }

    fn problem(&self, stage: Stage, reason: &str) -> Problem {
        let service = self.service;
        match stage {
            Stage::NotBegun | Stage::Unreachable => Problem::new(
                Code::NoEndpoint,
                format!(
                    "the copy of service {service} that was asked did not take the request ({reason}), and its body can't be sent again"
                ),
            ),
            Stage::Broken => Problem::new(
                Code::UpstreamBroken,
                format!(
                    "service {service} took the request and broke off ({reason}); whether it was done is unknown"
                ),
            ),
        }
    }

    /// Whether a try that failed may have been done.
    pub fn may_have_begun(&self) -> bool {
        self.repeats > 0
    }

    /// The time for the whole request ended while nobody took it.
    pub fn nobody_in_time(&self) -> Problem {
        let waited = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.no_endpoint(Some(Span::milliseconds(waited)))
    }

    fn no_endpoint(&self, waited: Option<Span>) -> Problem {
        let service = self.service;
        let why = match &self.last_reason {
            Some(reason) => format!("no copy of service {service} takes requests ({reason})"),
            None => format!("service {service} has no copy that is ready"),
        };
        let waited = waited.map(|waited| format!("; waited {waited} for one"));
        Problem::new(
            Code::NoEndpoint,
            format!("{why}{}", waited.unwrap_or_default()),
        )
    }

    fn too_many(&self) -> Problem {
        Problem::new(
            Code::NoEndpoint,
            format!(
                "no copy of service {} takes requests, and {MOST_WAITING} requests wait for one already",
                self.service
            ),
        )
    }
}
