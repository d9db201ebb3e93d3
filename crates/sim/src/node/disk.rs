//! What a machine keeps, and a disk that stands still for a while: heartbeats go on, and whatever is to be written waits.

use std::collections::BTreeMap;

use model::compute::{DesiredInstance, Exit, ExitHow};
use model::control::NodeDesired;
use model::ids::{Generation, InstanceId, NodeName, ResourceName};
use plan::agent::{History, Input, Run};

use crate::invariants::Volumes;
use crate::world::{Event, Life, World, short};

#[derive(Default)]
pub(super) struct Disk {
    pub(super) desired: Option<NodeDesired>,
    /// Of the last desired state that is here, with all that it says to forget forgotten.
    pub(super) kept: Option<Generation>,
    pub(super) instances: BTreeMap<InstanceId, (DesiredInstance, History)>,
    /// What the shims wrote while no agent looked.
    pub(super) exits: BTreeMap<InstanceId, Exit>,
    /// Each set of volumes, with the life of its service that wrote it.
    pub(super) volumes: BTreeMap<(ResourceName, u32), usize>,
    pub(super) stalls_until_ms: u64,
    /// It was told that it is no node any more.
    pub(super) is_removed: bool,
}

/// A start that waits for the disk.
pub(super) struct HeldUp {
    pub(super) life: Life,
    pub(super) run: Run,
    pub(super) desired: DesiredInstance,
}

impl World {
    pub(super) fn disk_stalls(&self, name: &NodeName) -> bool {
        self.now_ms < self.nodes[name].disk.stalls_until_ms
    }

    pub(crate) fn stall_disk(&mut self, name: &NodeName, for_ms: u64) {
        let until = self.now_ms + for_ms;
        let disk = &mut self.node(name).disk;
        disk.stalls_until_ms = disk.stalls_until_ms.max(until);
        self.note(|| format!("{name}: the disk stands still until {until}"));
        self.schedule(for_ms, Event::DiskGoesOn(name.clone()));
    }

    pub(crate) fn end_stall(&mut self, name: &NodeName) {
        self.node(name).disk.stalls_until_ms = 0;
        self.schedule(0, Event::DiskGoesOn(name.clone()));
    }

    pub(crate) fn disk_goes_on(&mut self, name: &NodeName) {
        if self.disk_stalls(name) {
            return;
        }
        self.write_records(name);
        self.keep_desired(name);
        let held_up = std::mem::take(&mut self.node(name).held_up);
        for (instance, start) in held_up {
            self.come_up(name, instance, start);
        }
    }

    fn write_records(&mut self, name: &NodeName) {
        let node = self.node(name);
        let Some(agent) = &mut node.agent else { return };
        let unwritten = std::mem::take(&mut agent.unwritten);
        let written: Vec<_> = unwritten.keys().cloned().collect();
        for (instance, record) in unwritten {
            match record {
                Some(record) => drop(node.disk.instances.insert(instance, record)),
                None => drop(node.disk.instances.remove(&instance)),
            }
        }
        for instance in written {
            self.has_written(name, &instance);
        }
    }

    /// What the next agent will know of an instance. `None`: nothing.
    pub(super) fn write_record(
        &mut self,
        name: &NodeName,
        instance: &InstanceId,
        record: Option<(DesiredInstance, History)>,
    ) {
        if let Some(agent) = &mut self.node(name).agent {
            agent.unwritten.insert(instance.clone(), record);
        }
        if !self.disk_stalls(name) {
            self.write_records(name);
        }
    }

    /// That a copy was ready is said ever after from now on: its volumes are somebody's.
    fn has_written(&mut self, name: &NodeName, instance: &InstanceId) {
        let record = self.nodes[name].disk.instances.get(instance);
        let Some((desired, _)) = record.filter(|(_, history)| history.was_ready) else {
            return;
        };
        if let Some(volumes) = self.volumes_of(&desired.clone()) {
            self.invariants.has_data(&volumes, name);
        }
    }

    pub(super) fn volumes_of(&self, desired: &DesiredInstance) -> Option<Volumes> {
        let service = desired.service.clone();
        let era = self.store.services[&service].era(desired.epoch);
        let slot = desired.slot?;
        Some(Volumes { service, slot, era })
    }

    /// What is to be forgotten is, and then the rest is kept.
    pub(super) fn keep_desired(&mut self, name: &NodeName) {
        if self.disk_stalls(name) {
            return;
        }
        let node = self.node(name);
        let Some(agent) = &mut node.agent else { return };
        let Some(mut desired) = agent.to_keep.take() else {
            return;
        };
        let life = agent.life;
        for forgotten in std::mem::take(&mut desired.forget_volumes) {
            node.disk
                .volumes
                .retain(|(service, _), _| *service != forgotten.name);
        }
        node.disk.kept = Some(desired.generation);
        node.disk.desired = Some(desired);
        self.beat_soon(name, life);
    }

    /// Its shim goes on, whether or not the agent that asked for it lives, and looks at the lease first.
    fn come_up(&mut self, name: &NodeName, instance: InstanceId, start: HeldUp) {
        let ignores = self.options.bug == Some(crate::Bug::StartsOnOldLease);
        let now = self.now_on(self.nodes[name].offset_ms).instant;
        let node = &self.nodes[name];
        let agent = node.agent.as_ref().filter(|agent| agent.life == start.life);
        let lease = agent.and_then(|agent| agent.state.lease().sent_at());
        let holds =
            lease.is_some_and(|sent_at| now.since(sent_at) < model::timing::TERMINATE_AFTER);
        if !start.desired.needs_lease() || holds || ignores {
            return self.runs(name, instance, start);
        }
        self.note(|| format!("{name}: {} has no lease to start with", short(&instance)));
        let exit = Exit {
            how: ExitHow::LeaseLost,
            at: self.now().at,
        };
        let input = Input::Exited {
            instance,
            run: start.run,
            exit,
            last_words: None,
        };
        self.tell_agent(1, name, start.life, input);
    }
}
