//! What a node keeps of an instance beside the runtime's own records, so that the next agent knows it.

use std::collections::BTreeMap;
use std::path::Path;

use model::compute::DesiredInstance;
use model::ids::{InstanceId, ResourceName};
use plan::agent::History;
use serde::{Deserialize, Serialize};

use crate::layout::{self, Layout};

/// `instances/P/I.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub desired: DesiredInstance,
    /// Its own for as long as it is on this node.
    #[serde(default)]
    pub port: Option<u16>,
    /// Those beside it, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<ResourceName, u16>,
    #[serde(default)]
    pub history: History,
}

/// All that an earlier agent kept. One that can't be read is left out, and said.
pub fn read_all(layout: &Layout) -> Vec<Record> {
    let mut records = Vec::new();
    for project in entries(&layout.instances()) {
        for path in entries(&project) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match layout::read::<Record>(&path) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%error, "an instance's record is lost"),
            }
        }
    }
    records
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
