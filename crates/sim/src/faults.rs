//! What goes wrong, and what the user does meanwhile.

use model::compute::ExitHow;
use model::control::RolloutPhase;
use model::ids::{NodeName, ResourceName};
use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};

use crate::workload::{self, BROKEN, SHELF, SINGLE, STORE, WEB};
use crate::world::{Event, World};

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Draws the next thing to go wrong.
    Next,
    /// The user asks for something.
    Ask,
    StartServer,
    StartAgent(NodeName),
    StartMachine(NodeName),
    /// The network is well again.
    CalmNetwork,
    StartsWork,
    /// The user says that what vanished at once is gone.
    ReleaseBrake,
    /// Nothing goes wrong any more.
    End,
    /// The user deletes the service that comes and goes, or makes it anew.
    Turn,
    /// The user lets a node in again that was removed, until that is acknowledged.
    LetIn(NodeName),
    /// The user asks for what should be there in the end, until it is acknowledged.
    LastWish(ResourceName),
}

pub(crate) fn schedule(world: &mut World) {
    world.schedule(5_000, Event::Fault(Fault::Next));
    world.schedule(6_000, Event::Fault(Fault::Ask));
    world.schedule(7_000, Event::Fault(Fault::Turn));
    world.schedule(world.options.faults_for_ms, Event::Fault(Fault::End));
}

impl World {
    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Next if self.faults_are_over() => {}
            Fault::Next => self.next_fault(),
            Fault::Ask if self.faults_are_over() => {}
            Fault::Ask => self.user_asks(),
            Fault::Turn if self.faults_are_over() => {}
            Fault::Turn => self.turn_shelf(),
            Fault::LetIn(node) => self.let_in(node),
            Fault::StartServer => {
                if self.server.is_none() {
                    self.start_server();
                }
            }
            Fault::StartAgent(node) => self.start_agent(&node),
            Fault::StartMachine(node) => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.down = false;
                }
                self.start_agent(&node);
            }
            Fault::CalmNetwork => {
                self.network.loss = 0;
                self.network.most_delay_ms = 20;
            }
            Fault::StartsWork => self.failing_starts = 0,
            Fault::ReleaseBrake => self.release_brake(),
            Fault::End => self.end_faults(),
            Fault::LastWish(service) => self.last_wish(service),
        }
    }

    pub(crate) fn faults_are_over(&self) -> bool {
        self.now_ms >= self.options.faults_for_ms
    }

    fn next_fault(&mut self) {
        self.summary.faults += 1;
        match self.rng.random_range(0..100) {
            0..12 => self.crash_process(),
            12..20 => self.freeze_some_machine(),
            20..28 => self.kill_some_agent(),
            28..38 => self.crash_some_machine(),
            38..60 => self.cut_some_node(),
            60..70 => self.kill_server(),
            70..77 => self.stall_server(),
            77..82 => self.follow_stalled_server(),
            82..88 => self.stall_some_agent(),
            88..91 => self.disturb_network(),
            91..96 => self.stall_some_disk(),
            96..98 => self.remove_some_node(),
            _ => self.fail_starts(),
        }
        let pause = self.rng.random_range(100..3_000);
        self.schedule(pause, Event::Fault(Fault::Next));
    }

    fn some_node(&mut self) -> NodeName {
        let names = self.nodes.keys().cloned();
        names.choose(&mut self.rng).expect("there are some")
    }

    fn crash_process(&mut self) {
        let node = self.some_node();
        let process = self.nodes[&node]
            .processes
            .values()
            .choose(&mut self.rng)
            .cloned();
        if let Some(process) = process {
            self.end_process(&node, &process, 0, ExitHow::Signal { signal: 11 });
        }
    }

    fn kill_some_agent(&mut self) {
        let node = self.some_node();
        if self.nodes[&node].is_frozen(self.now_ms) {
            return;
        }
        self.kill_agent(&node);
        let after = self.rng.random_range(100..6_000);
        self.schedule(after, Event::Fault(Fault::StartAgent(node)));
    }

    fn crash_some_machine(&mut self) {
        let node = self.some_node();
        self.crash_machine(&node);
        let after = self.rng.random_range(500..15_000);
        self.schedule(after, Event::Fault(Fault::StartMachine(node)));
    }

    fn freeze_some_machine(&mut self) {
        let node = self.some_node();
        let for_ms = self.rng.random_range(500..10_000);
        self.freeze_machine(&node, for_ms);
    }

    /// Both ways, or only one.
    fn cut_some_node(&mut self) {
        let node = self.some_node();
        let until = self.now_ms + self.rng.random_range(500..12_000);
        let way = self.rng.random_range(0..3);
        if way != 0 {
            self.network.cut_from.insert(node.clone(), until);
        }
        if way != 1 {
            self.network.cut_to.insert(node.clone(), until);
        }
        self.note(|| {
            format!(
                "network: {node} is cut off ({}) until {until}",
                ["to", "from", "both ways"][way]
            )
        });
    }

    fn kill_server(&mut self) {
        self.server = None;
        self.note(|| "server: killed".to_owned());
        let after = self.rng.random_range(100..8_000);
        self.schedule(after, Event::Fault(Fault::StartServer));
    }

    fn stall_server(&mut self) {
        let until = self.now_ms + self.rng.random_range(500..8_000);
        if let Some(server) = &mut self.server {
            server.stalled_until_ms = until;
            self.note(|| format!("server: stopped until {until}"));
        }
    }

    /// The server is stopped, another one leads meanwhile, and then the first goes on.
    fn follow_stalled_server(&mut self) {
        self.stall_server();
        if self.server.is_some() {
            self.old_server = self.server.take();
            let after = self.rng.random_range(100..2_000);
            self.schedule(after, Event::Fault(Fault::StartServer));
        }
    }

    fn stall_some_agent(&mut self) {
        let node = self.some_node();
        let until = self.now_ms + self.rng.random_range(500..7_000);
        if let Some(agent) = self
            .nodes
            .get_mut(&node)
            .and_then(|node| node.agent.as_mut())
        {
            agent.stalled_until_ms = until;
            self.note(|| format!("{node}: agent is stopped until {until}"));
        }
    }

    fn disturb_network(&mut self) {
        self.network.loss = self.rng.random_range(0..40);
        self.network.most_delay_ms = *[50, 500, 3_000]
            .choose(&mut self.rng)
            .expect("there are three");
        let (loss, delay) = (self.network.loss, self.network.most_delay_ms);
        self.note(|| format!("network: {loss} % are lost, up to {delay} ms under way"));
        let after = self.rng.random_range(500..8_000);
        self.schedule(after, Event::Fault(Fault::CalmNetwork));
    }

    fn stall_some_disk(&mut self) {
        let node = self.some_node();
        let for_ms = self.rng.random_range(1_000..30_000);
        self.stall_disk(&node, for_ms);
        // What ends meanwhile is started anew, and that waits.
        let process = self.nodes[&node].processes.values();
        if let Some(process) = process.choose(&mut self.rng).cloned() {
            let after = self.rng.random_range(1..3_000);
            self.end_process(&node, &process, after, ExitHow::Signal { signal: 11 });
        }
    }

    /// One at a time, and not for long.
    fn remove_some_node(&mut self) {
        if !self.store.removed.is_empty() {
            return;
        }
        if let Some(node) = self.remove_lost_node() {
            let after = self.rng.random_range(1_000..20_000);
            self.schedule(after, Event::Fault(Fault::LetIn(node)));
        }
    }

    /// With a fresh token, which an agent is started with anew.
    fn let_in(&mut self, node: NodeName) {
        if !self.store.removed.contains(&node) {
            return;
        }
        if !self.let_in_again(&node) {
            return self.schedule(300, Event::Fault(Fault::LetIn(node)));
        }
        self.kill_agent(&node);
        self.is_node_again(&node);
        self.start_agent(&node);
    }

    /// The service that comes and goes: deleted, with its data or without, or made anew, or another release of it.
    fn turn_shelf(&mut self) {
        let name = workload::name(SHELF);
        let with_data = self.rng.random::<bool>();
        let deletes = self.rng.random_range(0..3) > 0;
        let record = &self.store.services[&name];
        let (is_live, replicas) = (record.is_live(), self.rng.random_range(1..4));
        if record.is_gone {
            if self.ask_anew(&name) {
                self.note(|| format!("user: {name} is made anew"));
            }
        } else if is_live && deletes {
            if self.ask_to_delete(&name, with_data) {
                self.note(|| format!("user: {name} is deleted, data: {with_data}"));
            }
        } else if is_live {
            let spec = workload::spec(SHELF, false);
            self.ask(&name, replicas, Some(spec));
        }
        let pause = self.rng.random_range(500..6_000);
        self.schedule(pause, Event::Fault(Fault::Turn));
    }

    fn fail_starts(&mut self) {
        self.failing_starts = self.rng.random_range(10..100);
        let after = self.rng.random_range(500..8_000);
        self.schedule(after, Event::Fault(Fault::StartsWork));
    }

    fn user_asks(&mut self) {
        let service = *[WEB, WEB, SINGLE, STORE]
            .choose(&mut self.rng)
            .expect("there are some");
        let name = workload::name(service);
        let replicas = match service {
            SINGLE => 1,
            _ => self.rng.random_range(1..5),
        };
        let broken = self.rng.random_range(0..4) == 0;
        let release = self
            .rng
            .random::<bool>()
            .then(|| workload::spec(service, broken));
        let releases = release.is_some();
        if self.ask(&name, replicas, release) {
            self.summary.releases += u64::from(releases);
            self.note(|| {
                format!(
                    "user: {name}: {replicas} copies, new release: {releases}, broken: {broken}"
                )
            });
        }
        let pause = self.rng.random_range(500..8_000);
        self.schedule(pause, Event::Fault(Fault::Ask));
    }

    fn end_faults(&mut self) {
        self.note(|| "the faults end".to_owned());
        self.network.cut_from.clear();
        self.network.cut_to.clear();
        self.strike(Fault::CalmNetwork);
        self.strike(Fault::StartsWork);
        if let Some(server) = &mut self.server {
            server.stalled_until_ms = 0;
        }
        self.strike(Fault::StartServer);
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if let Some(agent) = self
                .nodes
                .get_mut(&node)
                .and_then(|node| node.agent.as_mut())
            {
                agent.stalled_until_ms = 0;
            }
            self.end_stall(&node);
            self.strike(Fault::StartMachine(node));
        }
        for node in self.store.removed.clone() {
            self.schedule(50, Event::Fault(Fault::LetIn(node)));
        }
        for service in [WEB, SINGLE, STORE, SHELF] {
            self.schedule(100, Event::Fault(Fault::LastWish(workload::name(service))));
        }
    }

    fn last_wish(&mut self, service: ResourceName) {
        if !self.store.services[&service].is_live() {
            self.ask_anew(&service);
            return self.schedule(200, Event::Fault(Fault::LastWish(service)));
        }
        let record = &self.store.services[&service];
        // What is rolled out and well stays as the faults have left it: a new release would spread it anew.
        let is_out = record.rollout.as_ref().is_some_and(|rollout| {
            rollout.to == record.target && rollout.phase == RolloutPhase::Done
        });
        let is_broken = record.releases[&record.target].env.contains_key(BROKEN);
        let replicas = record.replicas;
        let release = (is_broken || !is_out).then(|| workload::spec(service.as_str(), false));
        if !self.ask(&service, replicas, release) {
            self.schedule(200, Event::Fault(Fault::LastWish(service)));
        }
    }
}
