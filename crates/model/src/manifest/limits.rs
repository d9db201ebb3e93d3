//! Whether the kernel would take what the programs of each service are given, and the store its spec.

use std::collections::BTreeMap;

use crate::boundary::SecretSource;
use crate::compute::programs::{
    Brings, Fault, PASSWORD_BYTES, Part, SPEC_MAX_BYTES, SecretShape, faults,
};
use crate::compute::variables::collisions;
use crate::compute::{Service, Work};
use crate::ids::ResourceName;
use crate::state::Engine;

use super::check::{Report, join};
use super::document::{Entry, Node};
use super::{DeclaredService, Manifest, Position, Problem};

type Services = BTreeMap<ResourceName, DeclaredService>;
type Secrets = BTreeMap<ResourceName, SecretSource>;
type Values = BTreeMap<ResourceName, SecretShape>;

/// What an artifact adds to a spec beside the name of its file. Bytes.
const ARTIFACT_BYTES: usize = 256;

/// With no value of a secret known but how long a generated one will be.
pub(super) fn check(report: &mut Report, file: &Node, services: &Services, secrets: &Secrets) {
    for entry in file.get("services").map(Node::entries).unwrap_or_default() {
        let Some(service) = services.get(entry.key.as_str()) else {
            continue;
        };
        let path = join("services", &entry.key);
        let needs = brings(&service.spec, services, secrets, &Values::new());
        for fault in faults(&service.spec, &needs) {
            let (position, below) = place(file, entry, &fault.part);
            report
                .error(position, &format!("{path}{below}"), fault.message)
                .hint(fault.remedy.to_owned());
        }
        let ports = |need: &ResourceName| {
            let needed = services.get(need).into_iter();
            let ports = needed.flat_map(|needed| needed.spec.ports_of(need));
            ports.map(|(on_road, ..)| on_road).collect()
        };
        for fault in collisions(&service.spec, &needs, &ports) {
            let (position, below) = place(file, entry, &fault.part);
            let message = format!("{} {}", fault.part, fault.message);
            report
                .error(position, &format!("{path}{below}"), message)
                .hint(fault.remedy.to_owned());
        }
        let length = spec_length(service);
        if length > SPEC_MAX_BYTES {
            let message = format!(
                "takes {length} bytes as JSON: {SPEC_MAX_BYTES} is the most that is kept of one service"
            );
            report
                .error(entry.key_position, &path, message)
                .hint("put large values into a file in `files`, or into secrets".to_owned());
        }
    }
}

impl Manifest {
    /// What of the services the kernel would refuse, once the values of secrets are known that come from files. `file`: as the user wrote it.
    pub fn refused_values(&self, file: &str, values: &Values) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, service) in &self.services {
            let needs = brings(&service.spec, &self.services, &self.secrets, values);
            for fault in faults(&service.spec, &needs) {
                problems.push(problem(file, name, service, fault));
            }
        }
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems
    }
}

fn problem(file: &str, name: &ResourceName, service: &DeclaredService, fault: Fault) -> Problem {
    let position = match &fault.part {
        Part::Secret(need) | Part::Need(need) => service.needs.get(need).copied(),
        Part::Argument { .. }
        | Part::Variable(_)
        | Part::Volume(_)
        | Part::Port(_)
        | Part::Whole => None,
    };
    let position = position.unwrap_or(service.position);
    Problem {
        file: file.to_owned(),
        line: position.line,
        column: position.column,
        path: format!("services.{name}"),
        message: format!("{} {}", fault.part, fault.message),
        hint: Some(fault.remedy.to_owned()),
    }
}

/// What the needs of a service bring that are more than an address.
fn brings(
    spec: &Service,
    services: &Services,
    secrets: &Secrets,
    values: &Values,
) -> BTreeMap<ResourceName, Brings> {
    let secret = |name: &ResourceName| {
        let length = match secrets.get(name)? {
            SecretSource::Generate { bytes } => 2 * *bytes as usize,
            SecretSource::File { .. } | SecretSource::Given => 0,
        };
        let generated = SecretShape {
            length,
            is_binary: false,
        };
        Some(values.get(name).copied().unwrap_or(generated))
    };
    let database = |name: &ResourceName| match &services.get(name)?.spec.work {
        Work::Engine {
            engine: Engine::Postgres(_),
        } => Some(SecretShape {
            length: PASSWORD_BYTES,
            is_binary: false,
        }),
        Work::External {
            login: Some(login), ..
        } => Some(login.password.as_ref().and_then(secret).unwrap_or_default()),
        Work::Engine { .. } | Work::External { .. } | Work::Process { .. } => None,
    };
    let needs = spec.needs.keys();
    needs
        .filter_map(|name| {
            let brings = secret(name)
                .map(Brings::Secret)
                .or_else(|| database(name).map(Brings::Database))?;
            Some((name.clone(), brings))
        })
        .collect()
}

/// Where a part stands in the file, and what its path goes on with.
fn place(file: &Node, entry: &Entry, part: &Part) -> (Position, String) {
    let written = |keys: &[&str]| {
        let written = below(&entry.value, keys);
        written.or_else(|| below(file.get("defaults")?, keys))
    };
    let (node, path) = match part {
        Part::Argument { key, index } => {
            let keys: Vec<&str> = key.split('.').collect();
            let item = written(&keys).and_then(|list| list.items().get(*index));
            (item, format!(".{key}[{index}]"))
        }
        Part::Variable(name) => (written(&["env", name]), format!(".env.{name}")),
        Part::Secret(need) | Part::Need(need) => {
            let needs = written(&["needs"]);
            let is_named = |item: &&Node| {
                item.text().or_else(|| item.keys().first().copied()) == Some(need.as_str())
            };
            let item = needs.and_then(|needs| needs.items().iter().find(is_named));
            (item.or(needs), ".needs".to_owned())
        }
        Part::Volume(name) => (
            written(&["volumes", name.as_str()]),
            format!(".volumes.{name}"),
        ),
        Part::Port(name) => (written(&["ports", name.as_str()]), format!(".ports.{name}")),
        Part::Whole => (None, String::new()),
    };
    (node.map_or(entry.key_position, |node| node.position), path)
}

fn below<'file>(node: &'file Node, keys: &[&str]) -> Option<&'file Node> {
    keys.iter().try_fold(node, |node, key| node.get(key))
}

/// As it is stored and sent.
fn spec_length(service: &DeclaredService) -> usize {
    let spec = serde_json::to_vec(&service.spec).map_or(0, |spec| spec.len());
    let files = service.files.as_ref();
    spec + files.map_or(0, |files| files.len() + ARTIFACT_BYTES)
}
