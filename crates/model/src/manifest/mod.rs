//! `mainland.yaml`: text to resources, with positions in every error.
//!
//! ```text
//! text ── document ──▶ nodes with positions ── merge ──▶ environment merged in ── check ──▶ shapes hold
//!                                                           (keys: one table for reader and schema)
//!      ── service, route, secret ──▶ resources ── references ──▶ every name leads somewhere
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `document` | YAML to nodes, within bounds |
//! | `merge` | environments (RFC 7396) and defaults |
//! | `keys` | which keys a mapping has, their shapes and their docs |
//! | `check` | nodes against shapes; collects problems |
//! | `foreign` | words of other systems, and ours |
//! | `service` | one service, resolved |
//! | `outside` | routes and secrets |
//! | `state` | databases and topics, resolved to services |
//! | `references` | needs and routes lead to something declared |
//! | `connections` | databases have the connections that are declared |
//! | `limits` | the kernel takes what programs are given |
//! | `variables` | something gives the variables that are used |
//! | `schema` | the table of keys as a JSON Schema |
//!
//! Nothing stops at the first error: what can't be read is reported, and the rest is read on.

mod check;
mod connections;
mod document;
mod foreign;
mod keys;
mod limits;
mod merge;
mod outside;
mod references;
mod schema;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::BTreeMap;
use std::fmt;

use crate::boundary::SecretSource;
use crate::compute::Service;
use crate::ids::{ProjectName, ResourceName};
use crate::traffic::Route;

use check::{Mode, Report};
use document::Node;

pub use document::SIZE_MAX;
pub use schema::schema;

/// A file, by name and content.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// As the user wrote it; only for messages.
    pub file: &'a str,
    pub text: &'a str,
}

/// What a file declares, resolved: the environment and the defaults merged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `NAME`, or `NAME-ENVIRONMENT` where an environment was chosen.
    pub project: ProjectName,
    pub services: BTreeMap<ResourceName, DeclaredService>,
    /// In the order of the file; each with its `host/path`.
    pub routes: Vec<(String, Route)>,
    pub secrets: BTreeMap<ResourceName, SecretSource>,
    /// The environments that the file knows, in its order.
    pub environments: Vec<String>,
    /// What works and is probably not meant.
    pub warnings: Vec<Problem>,
}

/// A service as declared, before anything is uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredService {
    /// Complete but for the artifact.
    pub spec: Service,
    /// The file or folder to upload, relative to the manifest. Also set where `files` was left out and `run` names an executable by a
    /// relative path: then it is that path.
    pub files: Option<String>,
    /// Where its name stands.
    pub position: Position,
    /// Where each need stands that it writes itself.
    pub needs: BTreeMap<ResourceName, Position>,
}

/// What is declared, by name.
type Services = BTreeMap<ResourceName, DeclaredService>;

/// A place in the file, both counted from 1; columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub const START: Self = Self { line: 1, column: 1 };
}

/// Something wrong with the file: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    pub line: usize,
    pub column: usize,
    /// `services.checkout.replicas`; empty at the top.
    pub path: String,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Parses, merges defaults and the chosen environment (JSON merge patch, RFC 7396, over the file), resolves.
///
/// # Errors
///
/// Every problem of the file, in its order, up to 100 of them.
pub fn read(source: Source<'_>, environment: Option<&str>) -> Result<Manifest, Vec<Problem>> {
    let mut report = Report::new(source.file);
    let manifest = read_into(&mut report, source.text, environment);
    report.finish(manifest)
}

fn read_into(report: &mut Report, text: &str, environment: Option<&str>) -> Option<Manifest> {
    let file = match document::load(text) {
        Ok(node) => node,
        Err(fault) => {
            report.error(fault.position, "", fault.message);
            return None;
        }
    };
    // An environment may add what the file itself leaves out, so a key is missing only from the merged whole.
    let mode = Mode {
        patch: false,
        required: environment.is_none(),
    };
    report.check(&file, &keys::ROOT, "", file.position, mode);
    if report.is_full() {
        return None;
    }
    let file = match environment {
        None => file,
        Some(name) => with_environment(report, file, name)?,
    };
    resolve(report, &file, environment)
}

fn with_environment(report: &mut Report, file: Node, name: &str) -> Option<Node> {
    let environments = file.get("environments");
    let Some(patch) = environments.and_then(|known| known.get(name)) else {
        let known: Vec<&str> = environments.map(Node::keys).unwrap_or_default();
        let position = environments.map_or(Position::START, |node| node.position);
        let hint = check::nearest(name, known.iter().copied()).or_else(|| check::listed(&known));
        report
            .error(position, "environments", format!("no environment `{name}`"))
            .hint(hint);
        return None;
    };
    let merged = merge::environment(file.clone(), patch);
    let mode = Mode {
        patch: false,
        required: true,
    };
    report.check(&merged, &keys::ROOT, "", merged.position, mode);
    Some(merged)
}

fn resolve(report: &mut Report, file: &Node, environment: Option<&str>) -> Option<Manifest> {
    let project = project(report, file, environment);
    let mut services = service::read_all(report, file);
    for (name, engine) in state::read_all(report, file) {
        services.entry(name).or_insert(engine);
    }
    let secrets = outside::secrets(report, file);
    let routes = outside::routes(report, file);
    references::check(report, file, &services);
    connections::check(report, &services);
    limits::check(report, file, &services, &secrets);
    Some(Manifest {
        project: project?,
        services,
        routes,
        secrets,
        environments: file
            .get("environments")
            .map(|known| known.keys().into_iter().map(str::to_owned).collect())
            .unwrap_or_default(),
        warnings: Vec::new(),
    })
}

fn project(report: &mut Report, file: &Node, environment: Option<&str>) -> Option<ProjectName> {
    let node = file.get("project")?;
    let name = node.text()?;
    // A bad name has been reported by its shape.
    let name = ProjectName::new(name).ok()?;
    let Some(environment) = environment else {
        return Some(name);
    };
    match ProjectName::new(format!("{name}-{environment}")) {
        Ok(name) => Some(name),
        Err(error) => {
            report.error(node.position, "project", error.to_string());
            None
        }
    }
}
