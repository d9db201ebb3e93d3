//! How an agent begins: who it is, what earlier agents left, what it was last told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use compute::artifact::store::ArtifactStore;
use compute::cgroup::{self, Support};
use compute::process::{self, ProcessRuntime};
use compute::runtime::{Adopted, Event};
use futures_util::StreamExt as _;
use model::ids::{InstanceId, ResourceId, ResourceName};
use model::timing::SERVERS_CHANCE;
use model::traffic::Gate;
use plan::agent::{self as decide, Input};
use tokio::runtime::Handle;
use tokio::sync::{RwLock, Semaphore, mpsc};

use crate::agent::{Agent, Error};
use crate::alone::{self, Alone};
use crate::core::{Core, Running, Signals, kept_snapshot, named_at_port};
use crate::firewall::{self, Firewall};
use crate::heartbeat::Heart;
use crate::identity::{Identities, Ticket};
use crate::keeper::Keeper;
use crate::layout::{self, Layout, Lock};
use crate::machine::Machine;
use crate::options::{self, Config, Options};
use crate::prepare::service_of;
use crate::record::{self, Foreign, Ports, Process, Record};
use crate::{
    addresses, artifacts, clock, desired, instances, leftovers, listening, prepare, removal,
};

/// Probes that are out at the same time.
const PROBES_MAX: usize = 64;
const RUNTIME_EVENTS_MAX: usize = 256;
/// Instances of an earlier agent that are looked for at the same time.
const ADOPTED_AT_ONCE: usize = 64;

/// What an agent holds for as long as it lives: its directory, and its key.
pub struct Held {
    _directory: Lock,
    _key: Alone,
    pub heart: Heart,
}

type Begun = (Arc<Agent>, Held, mpsc::Receiver<Event>);

pub async fn begin(options: Options) -> Result<Begun, Error> {
    let (layout, lock) = Layout::open(&options.data_dir)?;
    let is_root = rustix::process::geteuid().is_root();
    let alone = alone::make_sure(&layout, &options.data_dir, is_root).await?;
    let kept: Option<Config> = layout::read(&layout.config())?;
    let mut config = options::resolve(kept.clone(), &options.given, options::machine())?;
    addresses::choose(&mut config, &options.given, &layout)?;
    let machine = Machine::look(&layout, options.programs).await;
    let token = options.given.join_token.as_deref().map(|token| Ticket {
        token,
        programs: machine.programs.clone(),
    });
    let (own, of, clock) = (config.clone(), layout.clone(), options.clock);
    let (identities, standing) = Identities::open(own, of, clock, token.as_ref()).await?;
    let alone = alone::with_key(alone, &layout, &options.data_dir, is_root)?;
    // Only now: a directory with this file is one of a node that has joined.
    layout::keep(kept.as_ref(), &config, |config| {
        layout::write(&layout.config(), config)
    })?;
    let table = firewall::table_name(&config.name, &options.data_dir);
    leftovers::mark(&table, &options.data_dir, is_root);
    let firewall = Firewall::detect(table, crate::snapshot::refusals(&config), is_root).await;
    let mut limits = Vec::new();
    let cgroups = detect_cgroups(&mut limits);
    tell_limits(&mut limits, firewall.limit(), is_root);
    let heart = Heart::start()?;
    let (runtime, events) = make_runtime(&options.executable, cgroups, &heart);
    let store = Arc::new(ArtifactStore::open(&layout.artifacts())?);
    let core = Core::open(&layout, machine);
    let agent = Agent {
        config,
        layout,
        version: options.version,
        executable: options.executable,
        programs: options.programs,
        identities,
        store,
        fetches: artifacts::Turns::default(),
        runtime: Arc::new(runtime),
        firewall,
        is_root,
        limits,
        places: RwLock::new(()),
        stopped: AtomicBool::new(false),
        signals: Signals::default(),
        probes: Semaphore::new(PROBES_MAX),
        readings: Arc::new(Semaphore::new(instances::READINGS_MAX)),
        looks: Arc::new(Semaphore::new(listening::LOOKS_MOST)),
        core: Mutex::new(core),
        keeper: Keeper::start().map_err(Error::Thread)?,
        tasks: Handle::current(),
    };
    removal::learn(&agent, standing);
    let held = Held {
        _directory: lock,
        _key: alone,
        heart,
    };
    Ok((Arc::new(agent), held, events))
}

fn make_runtime(
    binary: &Path,
    cgroups: Option<cgroup::Cgroups>,
    heart: &Heart,
) -> (ProcessRuntime, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(RUNTIME_EVENTS_MAX);
    let runtime = ProcessRuntime::new(process::Options {
        binary: binary.to_owned(),
        cgroups,
        events: sender,
        hearers: heart.tasks(),
        start_patience: process::START_PATIENCE,
    });
    (runtime, events)
}

/// Says what this node can't enforce or keep.
fn tell_limits(limits: &mut Vec<String>, of_firewall: Option<String>, is_root: bool) {
    if prepare::memory(is_root).is_none() {
        limits.push("secrets that are files lie on the disk, not in memory: /dev/shm has no folder for them that this user alone can write to".to_owned());
    }
    for limit in limits.iter().chain(&of_firewall) {
        tracing::warn!("{limit}");
    }
}

fn detect_cgroups(limits: &mut Vec<String>) -> Option<cgroup::Cgroups> {
    match cgroup::detect() {
        Support::Groups(groups) => {
            if !groups.not_enforced.is_empty() {
                limits.push(format!(
                    "cgroups: not enforced here: {}",
                    groups.not_enforced.join(", ")
                ));
            }
            Some(groups)
        }
        Support::None { why } => {
            limits.push(format!("memory and CPU limits are not enforced: {why}"));
            None
        }
    }
}

fn take_ports(core: &mut Core, id: &InstanceId, service: &ResourceName, held: &Ports) {
    let own = held.port.map(|port| (id.clone(), port));
    core.ports.extend(own);
    for (name, port) in &held.ports {
        if let Some(at_port) = named_at_port(id, service, name) {
            core.port_owners.insert(at_port.clone(), id.clone());
            core.ports.insert(at_port, *port);
        }
    }
}

/// What earlier agents left is taken over before anything else is decided.
pub async fn adopt_all(agent: &Arc<Agent>) {
    agent.with(|core| {
        core.state
            .wait_for_servers(clock::instant().after(SERVERS_CHANCE))
    });
    let snapshot = kept_snapshot(&agent.layout);
    let locals = snapshot.iter().flat_map(|snapshot| &snapshot.local);
    let gates: BTreeMap<InstanceId, Gate> = locals
        .map(|local| (local.instance.clone(), local.gate))
        .collect();
    let kept = record::read_all(&agent.layout);
    let mut strays = record::strays(&agent.layout);
    agent.with(|core| {
        for mut left in kept.foreign {
            take_ports(core, &left.instance, &left.service, &left.held);
            if let Some(kept) = &snapshot {
                left.keep_ways(kept);
            }
            // Its directory may be gone.
            if !strays.contains(&left.instance) {
                strays.push(left.instance.clone());
            }
            core.foreign.insert(left.instance.clone(), left);
        }
    });
    let finding = strays.into_iter().map(|id| find(agent, id));
    let finding = futures_util::stream::iter(finding).buffer_unordered(ADOPTED_AT_ONCE);
    let adopting = kept
        .records
        .into_iter()
        .map(|record| adopt(agent, record, &gates));
    // Side by side: the node is silent until all are, and each may wait for its shim.
    let adopting = futures_util::stream::iter(adopting).buffer_unordered(ADOPTED_AT_ONCE);
    let adopting = adopting.filter_map(std::future::ready).collect();
    let (mut running, ()): (BTreeSet<ResourceId>, ()) = tokio::join!(adopting, finding.collect());
    running.extend(agent.with(|core| core.left_services()));
    addresses::give_up_taken(agent, &running);
    // Beside the rest: the node is silent until this has ended. What the earlier agent closed is closed.
    agent.firewall.wants();
}

/// What was found of a process that was looked for.
#[derive(Clone, Copy)]
enum Found {
    Lives { pid: u32 },
    MayLive,
    Ended,
}

/// Tells what was found, and what was heard of it meanwhile: whether it was stopped by a signal. False: its end was heard. Then it is to be looked for
/// again, since what it has left says how it ended.
fn tell_found(
    agent: &Arc<Agent>,
    id: &InstanceId,
    found: Found,
    input: impl FnOnce(&mut Core, Option<bool>) -> Input,
) -> bool {
    agent.with(|core| {
        // Another step must not come in between: an end that is heard after this is one of what this tells.
        let Some(running) = core.running.get_mut(id) else {
            return false;
        };
        let frozen = running.frozen;
        match found {
            Found::Lives { pid } => running.pid = Some(pid),
            // Its end is still to be heard.
            Found::MayLive => {}
            Found::Ended => drop(core.running.remove(id)),
        }
        let input = input(core, frozen);
        agent.tell_in(core, input);
        true
    })
}

/// Its service, where it runs.
pub async fn adopt(
    agent: &Arc<Agent>,
    record: Record,
    gates: &BTreeMap<InstanceId, Gate>,
) -> Option<ResourceId> {
    let id = record.desired.instance.clone();
    let directory = agent.layout.instance(&id);
    agent.with(|core| take_ports(core, &id, &record.desired.service, &record.held));
    let gate = gates.get(&id).copied().unwrap_or(Gate::Shut);
    loop {
        agent.with(|core| core.running.insert(id.clone(), Running::new(1, None)));
        let found = agent.runtime.adopt(&id, &directory).await;
        let process = adopted(found, &record, gate);
        let found = match process {
            decide::Adopted::Running { pid, .. } => Found::Lives { pid },
            decide::Adopted::Unknown => Found::MayLive,
            _ => Found::Ended,
        };
        let is_told = tell_found(agent, &id, found, |_, frozen| Input::Adopted {
            desired: Box::new(record.desired.clone()),
            history: record.history.clone(),
            process: as_heard(process, frozen),
        });
        if is_told {
            let is_running = matches!(found, Found::Lives { .. });
            return is_running.then(|| service_of(&record.desired));
        }
    }
}

fn as_heard(mut process: decide::Adopted, frozen: Option<bool>) -> decide::Adopted {
    if let (decide::Adopted::Running { suspended, .. }, Some(frozen)) = (&mut process, frozen) {
        *suspended = frozen;
    }
    process
}

/// What was left as it was, now that it is named in words that are known.
pub async fn go_on(agent: &Arc<Agent>, record: Record, left: Foreign) {
    let id = left.instance.clone();
    let gate = left.gate();
    let goes_on = agent.with(|core| {
        // Else it has ended, and its end is told of it as it was known.
        let lives = core.running.contains_key(&id);
        // As it is now: it was others' turn before.
        let now = core.foreign.get(&id).and_then(|left| left.process.clone());
        let Some(Process { started, frozen }) = now.filter(|_| lives) else {
            return false;
        };
        core.foreign.remove(&id);
        let found = Ok(Adopted::Running { started, frozen });
        let input = Input::Adopted {
            desired: Box::new(record.desired.clone()),
            history: record.history.clone(),
            process: adopted(found, &record, gate),
        };
        agent.tell_in(core, input);
        true
    });
    if !goes_on {
        adopt(agent, record, &BTreeMap::from([(id.clone(), gate)])).await;
        agent.with(|core| core.foreign.remove(&id));
    }
}

/// What is left of an instance of which no record can be read, or not wholly. What runs goes on until it is known whether it should.
async fn find(agent: &Arc<Agent>, id: InstanceId) {
    let whose = agent.with(|core| core.foreign.get(&id).map(Foreign::whose));
    let directory = agent.layout.instance(&id);
    loop {
        agent.with(|core| core.running.insert(id.clone(), Running::new(1, None)));
        let looked_at = agent.runtime.adopt(&id, &directory).await;
        let (found, process) = match &looked_at {
            Ok(Adopted::Running { started, .. }) => {
                let pid = started.pid;
                (Found::Lives { pid }, decide::Adopted::Living)
            }
            Ok(Adopted::Ended { exit }) => (Found::Ended, decide::Adopted::Exited(exit.clone())),
            Ok(Adopted::NotStarted) => (Found::Ended, decide::Adopted::Absent),
            Err(error) => {
                tracing::warn!(instance = %id, %error, "what is left of it can't be looked at");
                (Found::MayLive, decide::Adopted::Unknown)
            }
        };
        let is_told = tell_found(agent, &id, found, |core, heard| {
            if let Ok(Adopted::Running { started, frozen }) = looked_at
                && let Some(left) = core.foreign.get_mut(&id)
            {
                let frozen = heard.unwrap_or(frozen);
                left.process = Some(Process { started, frozen });
            }
            let (instance, whose) = (id.clone(), whose.clone());
            Input::Found {
                instance,
                whose,
                process,
            }
        });
        if is_told {
            return;
        }
    }
}

/// Removes what is left of instances of which no record is there, or one that is torn: once a server has said what the node should run, since until then nobody knows
/// whether one of them is wanted, and what runs may be all that there is of it.
pub async fn remove_strays(agent: Arc<Agent>) {
    let mut told = agent.signals.told.subscribe();
    if told.wait_for(|told| *told).await.is_err() {
        return;
    }
    let of = agent.clone();
    let strays = tokio::task::spawn_blocking(move || record::strays(&of.layout)).await;
    for id in strays.unwrap_or_default() {
        agent.with(|core| {
            // What is wanted is prepared and started by its worker, which ends what is in its place. What a later version wrote of may be wanted too.
            let is_foreign = core.foreign.contains_key(&id) || core.state.is_foreign(&id);
            let is_known = core.state.instance(&id).is_some() || core.workers.contains_key(&id);
            if !is_foreign && !is_known {
                tracing::warn!(instance = %id, "what is left of an instance without a record is removed");
                agent.order(core, id.clone(), instances::Order::Remove);
            }
        });
    }
}

fn adopted(
    found: Result<Adopted, compute::runtime::Error>,
    record: &Record,
    gate: Gate,
) -> decide::Adopted {
    match found {
        Ok(Adopted::Running { started, frozen }) => decide::Adopted::Running {
            pid: started.pid,
            address: instances::address(record.held.port.unwrap_or(0)),
            started_at: Some(started.at),
            gate,
            suspended: frozen,
        },
        // The exit that the step already knows of is not one more.
        Ok(Adopted::Ended { exit }) if record.history.last_exit.as_ref() != Some(&exit) => {
            decide::Adopted::Exited(exit)
        }
        Ok(Adopted::Ended { .. } | Adopted::NotStarted) => decide::Adopted::Absent,
        Err(error) => {
            tracing::warn!(instance = %record.desired.instance, %error, "can't be adopted: it is ended");
            decide::Adopted::Unknown
        }
    }
}

/// With the servers gone, a restarted agent goes on from what it was last told.
pub async fn take_kept_desired(agent: &Arc<Agent>) {
    match layout::read(&agent.layout.desired()) {
        Ok(Some(kept)) => {
            desired::adopt_named(agent, &kept).await;
            desired::take(agent, kept, None);
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "what the node should run is asked anew"),
    }
}
