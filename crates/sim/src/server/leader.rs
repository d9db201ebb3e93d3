//! Looks at everything ever so often, writes each decision, and has the checker look at what was written.

use std::collections::{BTreeMap, BTreeSet};

use model::control::{Reason, Standing};
use model::ids::{NodeName, ResourceName};
use plan::check::{self, Plan};
use plan::nodes::{self, Input, Output};
use plan::service::{ServiceDecision, ServiceView, Sight};

use super::Server;
use crate::Bug;
use crate::faults::Fault;
use crate::store::Fenced;
use crate::workload;
use crate::world::{Event, Life, World};

/// Between two looks at everything.
const RECONCILE_EVERY_MS: u64 = 200;
/// Steps of one service in one look: it comes to rest long before.
const MOST_STEPS: usize = 20;

impl World {
    pub(crate) fn reconcile(&mut self, life: Life) {
        let of_life =
            |server: &Option<Server>| server.as_ref().is_some_and(|server| server.life == life);
        let stalled = self
            .server
            .iter()
            .chain(&self.old_server)
            .find(|server| server.life == life)
            .map(|server| server.stalled_until_ms);
        let Some(until) = stalled else { return };
        if self.now_ms < until {
            return self.put_off(until, Event::Reconcile(life));
        }
        if of_life(&self.old_server) {
            return self.wake_up_late();
        }
        self.look();
        self.schedule(RECONCILE_EVERY_MS, Event::Reconcile(life));
    }

    /// A server that was followed while it was stopped goes on where it was, until the store says that it leads no more.
    fn wake_up_late(&mut self) {
        let current = self.server.take();
        self.server = self.old_server.take();
        self.note(|| "server: the old leader goes on".to_owned());
        self.look();
        self.server = current;
    }

    fn look(&mut self) {
        if self.look_at_all() == Err(Fenced) {
            self.note(|| "server: fenced, ends".to_owned());
            self.server = None;
        }
    }

    fn look_at_all(&mut self) -> Result<(), Fenced> {
        let now = self.now();
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let outputs = nodes::step(&mut server.watch, Input::Tick, now);
        self.take_node_outputs(outputs);
        self.lose_early(None);
        let names: Vec<_> = self.store.services.keys().cloned().collect();
        for name in names {
            self.step_service(&name)?;
        }
        self.tell_nodes();
        Ok(())
    }

    pub(super) fn take_node_outputs(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let (node, standing, reason) = match output {
                Output::Lost { node, reason } => (node, Standing::Lost, reason),
                Output::Present { node, reason } => (node, Standing::Present, reason),
                Output::BrakeOn { reason } => {
                    self.note(|| format!("server: {reason}"));
                    self.release_in_a_moment();
                    continue;
                }
                Output::BrakeOff { reason } => {
                    self.note(|| format!("server: {reason}"));
                    continue;
                }
            };
            self.note(|| format!("server: {reason}"));
            self.summary.lost_nodes += u64::from(standing == Standing::Lost);
            self.set_standing(&node, standing, reason);
        }
    }

    /// In every other world there is somebody who thinks that he knows better than the brake. Drawn from what is drawn already, so that the
    /// worlds without him stay what they are.
    fn release_in_a_moment(&mut self) {
        if !self.seed.is_multiple_of(2) {
            let after_ms = self.now_ms * 7 % 3_000;
            self.schedule(after_ms, Event::Fault(Fault::ReleaseBrake));
        }
    }

    pub(crate) fn release_brake(&mut self) {
        let now = self.now();
        let Some(server) = &mut self.server else {
            return;
        };
        let missing = server.watch.brake().map(|brake| brake.missing.clone());
        let outputs = nodes::step(&mut server.watch, Input::ReleaseBrake, now);
        self.take_node_outputs(outputs);
        if self.options.bug == Some(Bug::GivesUpEarly) {
            for node in missing.into_iter().flatten() {
                let reason = Reason::new("node-lost", "given up");
                self.set_standing(&node, Standing::Lost, reason);
            }
        }
    }

    /// With the bug: a node is lost as soon as it is silent, until it is heard.
    pub(super) fn lose_early(&mut self, heard: Option<&NodeName>) {
        if self.options.bug != Some(Bug::ReplacesBeforeLeaseEnd) {
            return;
        }
        let now = self.now();
        let Some(server) = &self.server else { return };
        let standing = |node: &NodeName| match server.watch.sight(node, now) {
            Sight::Silent => Standing::Lost,
            _ if heard == Some(node) => Standing::Present,
            _ => server.nodes[node].standing,
        };
        let changed: Vec<_> = server
            .nodes
            .values()
            .map(|record| (record.name.clone(), standing(&record.name)))
            .collect();
        for (node, standing) in changed {
            self.set_standing(&node, standing, Reason::new("planted", "a planted bug"));
        }
    }

    fn set_standing(&mut self, node: &NodeName, standing: Standing, reason: Reason) {
        let Some(server) = &mut self.server else {
            return;
        };
        let Some(record) = server.nodes.get_mut(node) else {
            return;
        };
        record.standing = standing;
        record.reason = reason;
        server.cluster.set_node(record);
        if self.store.write_node(server.epoch, record.clone()) == Err(Fenced) {
            self.server = None;
        } else if standing == Standing::Lost {
            self.check_leases_over(node);
        }
    }

    /// Steps one service until it rests, writing each decision.
    fn step_service(&mut self, name: &ResourceName) -> Result<(), Fenced> {
        for _ in 0..MOST_STEPS {
            let now = self.now();
            let Some(server) = &mut self.server else {
                return Ok(());
            };
            if self.options.bug == Some(Bug::ForgetsDeadlines) {
                server.memories.clear();
            }
            if server.services[name].is_gone {
                return Ok(());
            }
            let (decision, empty) = server.decide(name, now);
            let record = &server.services[name];
            if decision.group == record.group && decision.rollout == record.rollout {
                return self.finish_removal(name);
            }
            self.write(name, decision)?;
            self.forget_also(name, empty)?;
        }
        self.violated(format!("{name} does not come to rest"));
        Ok(())
    }

    fn write(&mut self, name: &ResourceName, decision: ServiceDecision) -> Result<(), Fenced> {
        for (_, subject, reason) in &decision.events {
            self.note(|| format!("server: {subject}: {reason}"));
        }
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let before = self.store.services[name].group.clone();
        let known = server.services[name].version;
        let found = self.store.write_plan(
            server.epoch,
            name,
            decision.group.clone(),
            decision.rollout.clone(),
        )?;
        let record = server
            .services
            .get_mut(name)
            .expect("it was just decided about");
        record.group = decision.group;
        record.rollout = decision.rollout;
        record.version = known + 1;
        if found != known {
            self.violated(format!(
                "an acknowledged write of the plan of {name} was undone"
            ));
        } else {
            self.lint(name, &before);
        }
        Ok(())
    }

    /// What was just written, by the checker.
    fn lint(&mut self, name: &ResourceName, before: &model::compute::PlacementGroup) {
        let record = &self.store.services[name];
        let releases = record
            .releases
            .iter()
            .map(|(number, spec)| (*number, spec))
            .collect();
        let id = workload::id(name);
        let plan = Plan {
            id: &id,
            group: &record.group,
            releases: &releases,
        };
        let mut wrong = check::check_step(&self.store.nodes, before, &plan);
        // What waits for a node that was removed has been told when it was.
        let stood = Plan {
            group: before,
            ..plan
        };
        let known = check::check(&self.store.nodes, &[stood]);
        let found = check::check(&self.store.nodes, &[plan]);
        wrong.extend(found.into_iter().filter(|one| !known.contains(one)));
        let twice = self.invariants.placed(name, &record.group);
        if let Some(what) = wrong.first().map(ToString::to_string).or(twice) {
            self.violated(what);
        }
    }
}

impl Server {
    /// With it, the nodes that are left without anything ever having begun there.
    fn decide(
        &mut self,
        name: &ResourceName,
        now: plan::Now,
    ) -> (ServiceDecision, BTreeSet<NodeName>) {
        let record = &self.services[name];
        let releases = record
            .releases
            .iter()
            .map(|(number, spec)| (*number, spec))
            .collect();
        let reports: BTreeMap<_, _> = record
            .group
            .placements
            .iter()
            .filter_map(|placement| {
                Some((
                    placement.instance.clone(),
                    self.pictures
                        .get(&placement.node)?
                        .reports
                        .get(&placement.instance)?,
                ))
            })
            .collect();
        let watch = &self.watch;
        let nodes = &self.nodes;
        let sight = |node: &NodeName| match nodes.get(node).map(|record| record.standing) {
            None | Some(Standing::Lost) => Sight::Lost,
            Some(Standing::Present) => watch.sight(node, now),
        };
        let id = workload::id(name);
        let target = record.removing.is_none().then_some(record.target);
        let barred = self.barred(record);
        let view = ServiceView {
            id: &id,
            target,
            applied: target,
            replicas: record.replicas,
            releases: &releases,
            rollout: record.rollout.as_ref(),
            group: &record.group,
            reports: &reports,
            barred: &barred,
            sight: &sight,
            hold: self.watch.brake().map(|brake| &brake.reason),
        };
        let memory = self.memories.entry(name.clone()).or_default();
        let mut decision = plan::service::step(&view, memory, &mut self.cluster, now);
        let left = plan::service::left_behind(&record.group, &decision.group, &reports);
        decision.group.left.extend(left.written);
        (decision, left.empty)
    }
}
