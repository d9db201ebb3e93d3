//! What a node keeps of an instance beside the runtime's own records, so that the next agent knows it.

use std::collections::BTreeMap;
use std::path::Path;

use compute::runtime::Started;
use model::compute::{DesiredInstance, default_grace};
use model::ids::{Epoch, InstanceId, ReleaseNumber, ResourceId, ResourceName};
use model::traffic::{Door, Gate, LocalInstance, Protocol, ProxySnapshot};
use model::units::Span;
use plan::agent::{History, Whose};
use serde::{Deserialize, Serialize};

use crate::layout::{self, Layout};

/// `instances/P/I.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub desired: DesiredInstance,
    #[serde(flatten)]
    pub held: Ports,
    #[serde(default)]
    pub history: History,
}

/// The ports of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Its own for as long as it is on this node.
    #[serde(default)]
    pub port: Option<u16>,
    /// Those beside it, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<ResourceName, u16>,
}

/// What can be read of a record in which a later version said something in words that this one does not know: enough to leave what runs on the road, to
/// renew its lease and keep others from its ports and volumes, to go on with it once it is named in words that are known, and to end it.
#[derive(Debug, Clone)]
pub struct Foreign {
    pub instance: InstanceId,
    pub service: ResourceName,
    release: ReleaseNumber,
    epoch: Epoch,
    slot: Option<u32>,
    /// Whom it runs as.
    pub uid: u32,
    /// Between SIGTERM and SIGKILL.
    pub grace: Span,
    pub held: Ports,
    history: History,
    /// Its process, if one was found.
    pub process: Option<Process>,
    /// How the proxy knows it, at each of its ports, and its doors: as they were.
    local: Vec<LocalInstance>,
    doors: Vec<Door>,
    /// It is being ended.
    pub is_going: bool,
}

/// What runs of it.
#[derive(Debug, Clone)]
pub struct Process {
    pub started: Started,
    /// Stopped by a signal.
    pub frozen: bool,
}

impl Foreign {
    pub fn whose(&self) -> Whose {
        Whose {
            service: self.service.clone(),
            slot: self.slot,
        }
    }

    pub fn service(&self) -> ResourceId {
        ResourceId::new(self.instance.project.clone(), self.service.clone())
    }

    /// As the proxy last kept it.
    pub fn keep_ways(&mut self, kept: &ProxySnapshot) {
        let at_ports = self.held.ports.keys();
        let at_ports = at_ports
            .filter_map(|port| crate::core::named_at_port(&self.instance, &self.service, port));
        let own: Vec<_> = at_ports.chain([self.instance.clone()]).collect();
        let local = kept.local.iter().filter(|one| own.contains(&one.instance));
        self.local = local.cloned().collect();
        let service = self.service();
        let doors = kept.doors.iter().filter(|door| door.caller == service);
        self.doors = doors.cloned().collect();
    }

    /// On its way out, it takes nothing new.
    pub fn local(&self) -> impl Iterator<Item = LocalInstance> {
        let leaves = |gate| self.is_going && gate != Gate::Shut;
        let gate = move |gate| if leaves(gate) { Gate::Leaving } else { gate };
        self.local.iter().map(move |one| LocalInstance {
            gate: gate(one.gate),
            ..one.clone()
        })
    }

    /// Whether somebody may be inside who is waited for before it is ended. The pools of a database's callers never end by themselves.
    pub fn has_callers(&self) -> bool {
        let keeps = |one: &LocalInstance| one.told_callers && one.protocol == Protocol::Tcp;
        self.gate() != Gate::Shut && !self.local.iter().any(keeps)
    }

    pub fn doors(&self) -> &[Door] {
        &self.doors
    }

    /// As it stood.
    pub fn gate(&self) -> Gate {
        let own = self.local.iter().find(|one| one.instance == self.instance);
        own.map_or(Gate::Shut, |own| own.gate)
    }

    /// The record of an instance that is named so. `None`: that is another release of it, or another placement, and is begun anew.
    pub fn named(&self, desired: DesiredInstance) -> Option<Record> {
        let is_it = (desired.release, desired.epoch) == (self.release, self.epoch);
        is_it.then_some(Record {
            desired,
            held: self.held.clone(),
            history: self.history.clone(),
        })
    }

    fn read(path: &Path) -> Option<Self> {
        #[derive(Deserialize)]
        struct Kept {
            desired: Named,
            #[serde(flatten)]
            held: Ports,
            #[serde(default)]
            history: Option<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Named {
            instance: InstanceId,
            service: ResourceName,
            release: ReleaseNumber,
            epoch: Epoch,
            #[serde(default)]
            slot: Option<u32>,
            uid: u32,
            #[serde(default)]
            spec: serde_json::Value,
        }
        let kept = layout::read::<Kept>(path).ok().flatten()?;
        let history = kept.history.map(serde_json::from_value::<History>);
        let grace = kept.desired.spec.get("grace").cloned();
        let grace = grace.and_then(|grace| serde_json::from_value(grace).ok());
        Some(Self {
            slot: kept.desired.slot,
            uid: kept.desired.uid,
            grace: grace.unwrap_or_else(default_grace),
            process: None,
            local: Vec::new(),
            doors: Vec::new(),
            is_going: false,
            instance: kept.desired.instance,
            service: kept.desired.service,
            release: kept.desired.release,
            epoch: kept.desired.epoch,
            held: kept.held,
            history: history.and_then(Result::ok).unwrap_or_default(),
        })
    }
}

/// All that an earlier agent kept.
#[derive(Debug, Default)]
pub struct Kept {
    pub records: Vec<Record>,
    pub foreign: Vec<Foreign>,
}

/// One that can't be read at all is left out, and said.
pub fn read_all(layout: &Layout) -> Kept {
    let mut kept = Kept::default();
    for project in entries(&layout.instances()) {
        for path in entries(&project) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match layout::read::<Record>(&path) {
                Ok(record) => kept.records.extend(record),
                Err(error) => match Foreign::read(&path) {
                    Some(foreign) => {
                        tracing::warn!(%error, instance = %foreign.instance, "its record is of a later version: what runs goes on as it is");
                        kept.foreign.push(foreign);
                    }
                    None => tracing::warn!(%error, "an instance's record is lost"),
                },
            }
        }
    }
    kept
}

/// Directories of instances of which no record can be read: the node alone does not know what they should be.
pub fn strays(layout: &Layout) -> Vec<InstanceId> {
    let mut strays = Vec::new();
    for project in entries(&layout.instances()) {
        for directory in entries(&project).into_iter().filter(|path| path.is_dir()) {
            let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
            let names = name(&project).zip(name(&directory));
            let id = names.and_then(|(project, name)| format!("{project}/{name}").parse().ok());
            strays.extend(id.filter(|id: &InstanceId| {
                !matches!(layout::read::<Record>(&layout.record(id)), Ok(Some(_)))
            }));
        }
    }
    strays
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// As an earlier version wrote it.
    fn earlier(name: &str) -> Value {
        json!({
            "desired": testing::desired(name), "port": 22001,
            "history": { "starts": 2, "backoff": { "streak": 1 } },
        })
    }

    fn kept(records: &[(&str, Value)]) -> Kept {
        let folder = tempfile::tempdir().unwrap();
        let (layout, _lock) = Layout::open(folder.path()).unwrap();
        let project = layout.instances().join("shop");
        std::fs::create_dir_all(&project).unwrap();
        for (name, record) in records {
            std::fs::write(project.join(format!("{name}.json")), record.to_string()).unwrap();
        }
        read_all(&layout)
    }

    #[test]
    fn records_of_other_versions_are_read_as_far_as_that_goes() {
        let mut more = earlier("web-2");
        for place in [
            "",
            "/desired",
            "/desired/spec",
            "/desired/spec/traffic",
            "/history",
        ] {
            more.pointer_mut(place).unwrap()["invented"] = json!([1]);
        }
        let mut other = earlier("web-3");
        other["desired"]["spec"]["on_partition"] = json!("invented");
        let records = [
            ("web-1", earlier("web-1")),
            ("web-2", more),
            ("web-3", other),
            ("web-4", json!("torn")),
        ];
        let read = kept(&records);
        assert_eq!(read.records.len(), 2);
        for record in &read.records {
            let held = (record.held.port, record.history.starts);
            assert_eq!(held, (Some(22001), 2), "{record:?}");
        }
        assert_eq!(read.foreign.len(), 1);
        let desired = testing::desired("web-3");
        let named = read.foreign[0].clone().named(desired.clone()).unwrap();
        assert_eq!((named.held.port, named.history.starts), (Some(22001), 2));
        let mut later = desired;
        later.epoch = Epoch(2);
        assert!(read.foreign[0].clone().named(later).is_none());
    }
}

#[cfg(test)]
pub mod testing {
    use std::collections::BTreeMap;

    use model::compute::*;
    use model::ids::*;
    use model::units::Bytes;

    pub fn desired(instance: &str) -> DesiredInstance {
        let service = instance.rsplit_once('-').unwrap().0;
        DesiredInstance {
            instance: InstanceId::new(
                ProjectName::new("shop").unwrap(),
                InstanceName::new(instance).unwrap(),
            ),
            service: ResourceName::new(service).unwrap(),
            release: ReleaseNumber(1),
            epoch: Epoch(1),
            slot: None,
            role: Role::Member,
            purpose: model::compute::Purpose::Serve,
            wanted: Wanted::Run,
            uid: 70_001,
            spec: service_of(vec!["./server".to_owned()]),
            secrets: Vec::new(),
            start_after: Vec::new(),
            logins: BTreeMap::new(),
            need_ports: BTreeMap::new(),
            settings: None,
        }
    }

    pub fn service_of(run: Vec<String>) -> Service {
        let work = Work::Process {
            run,
            artifact: None,
        };
        Service {
            memory: Bytes::mebibytes(64),
            ..Service::of(work)
        }
    }
}
