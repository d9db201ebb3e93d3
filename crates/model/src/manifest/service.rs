//! One service, resolved: every option present.

use std::collections::BTreeMap;

use crate::compute::ports;
use crate::compute::{
    Ask, Need, OnPartition, Probe, ProbeTimes, RolloutOptions, Service, Spread, SpreadBy, Work,
};
use crate::ids::{NAME_MAX_LENGTH, ResourceName};
use crate::state::Volume;
use crate::traffic::{Affinity, Balance, Protocol, TrafficOptions};
use crate::units::{Bytes, MilliCpu};

use super::DeclaredService;
use super::check::{Report, join, shown};
use super::document::{Entry, Node, Value};
use super::{keys, merge, state};
pub(super) use keys::is_host_and_port;

/// Where the file says nothing. A weight, so small is no harm; it is what the scheduler counts.
/// What means something for a service that runs elsewhere.
const OF_EXTERNAL: [&str; 3] = ["external", "protocol", "traffic"];
/// Arguments that end so are most likely files that the program is to read.
const SOURCE_ENDINGS: [&str; 7] = [".py", ".js", ".mjs", ".rb", ".pl", ".sh", ".jar"];

/// All services of the file. What can't be read has been or is reported.
pub(super) fn read_all(
    report: &mut Report,
    file: &Node,
) -> BTreeMap<ResourceName, DeclaredService> {
    let defaults = file.get("defaults");
    let mut services = BTreeMap::new();
    let written = file.get("services").map(Node::entries).unwrap_or_default();
    for entry in &written[..written.len().min(keys::SERVICES_MAX)] {
        let Ok(name) = ResourceName::new(entry.key.as_str()) else {
            continue;
        };
        let service = Reader {
            path: join("services", &entry.key),
            entry,
            report: &mut *report,
        }
        .read(defaults);
        if let Some(service) = service {
            services.entry(name).or_insert(service);
        }
    }
    services
}

struct Reader<'a> {
    path: String,
    entry: &'a Entry,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn read(mut self, defaults: Option<&Node>) -> Option<DeclaredService> {
        let written = &self.entry.value;
        if let Some(external) = written.get("external") {
            let spec = self.external(external);
            return Some(self.declared(spec, None));
        }
        let Some(run) = written.get("run") else {
            self.not_runnable();
            return None;
        };
        let files = self.files(run);
        let whole = merge::with_defaults(written, defaults);
        let work = Work::Process {
            run: texts(run),
            artifact: None,
        };
        let spec = self.spec(&whole, work);
        Some(self.declared(spec, files))
    }

    fn declared(&self, spec: Service, files: Option<String>) -> DeclaredService {
        let needs = self.entry.value.get("needs");
        let named = |item: &Node| {
            let name = ResourceName::new(need(item).0?).ok()?;
            Some((name, item.position))
        };
        DeclaredService {
            spec,
            files,
            position: self.entry.key_position,
            needs: needs
                .map(Node::items)
                .unwrap_or_default()
                .iter()
                .filter_map(named)
                .collect(),
        }
    }

    /// Nothing says what runs. Where a kind of work is named that is not supported yet, that has been said.
    fn not_runnable(&mut self) {
        let written = &self.entry.value;
        let later = ["image", "wasm", "vm"]
            .iter()
            .any(|key| written.get(key).is_some());
        let mapping = matches!(written.value, Value::Map(_)) || written.is_nothing();
        if !later && mapping {
            let message = "nothing says what runs: missing key `run` (or `external`)";
            self.report
                .error(self.entry.key_position, &self.path, message);
        }
    }

    fn external(&mut self, external: &Node) -> Service {
        for entry in self.entry.value.entries() {
            if !OF_EXTERNAL.contains(&entry.key.as_str()) {
                let message = format!(
                    "{} means nothing for a service that runs elsewhere (`external`)",
                    shown(&entry.key)
                );
                self.report.error(entry.key_position, &self.path, message);
            }
        }
        if external.items().is_empty() {
            let message =
                "an external service needs at least one address, such as [\"10.0.0.7:443\"]";
            self.report
                .error(external.position, &join(&self.path, "external"), message);
        }
        let work = Work::External {
            addresses: texts(external),
            login: None,
        };
        Service {
            replicas: 0,
            cpu: MilliCpu(0),
            memory: Bytes(0),
            ..base(&self.entry.value, work, false)
        }
    }

    fn spec(&mut self, node: &Node, work: Work) -> Service {
        let volumes = volumes(node);
        let has_volume = !volumes.is_empty();
        let base = base(node, work, has_volume);
        Service {
            replicas: node.parsed("replicas").unwrap_or(base.replicas),
            cpu: node.parsed("cpu").unwrap_or(base.cpu),
            memory: node.parsed("memory").unwrap_or(base.memory),
            pids: node.parsed("pids").unwrap_or(base.pids),
            env: text_map(node.get("env")),
            needs: self.needs(node),
            on: state::subscriptions(node),
            ports: self.ports(node),
            before_deploy: node.get("before_deploy").map(texts).unwrap_or_default(),
            health: self.probe(node, "health").unwrap_or_default(),
            alive: self
                .probe(node, "alive")
                .filter(|probe| probe.ask != Ask::None),
            spread: spread(node.get("spread")),
            volumes,
            rollout: self.rollout(node, has_volume),
            grace: node.parsed("grace").unwrap_or(base.grace),
            labels: text_map(node.get("labels")),
            ..base
        }
    }

    /// What is to be uploaded.
    fn files(&mut self, run: &Node) -> Option<String> {
        let path = join(&self.path, "run");
        let Some(program) = run
            .items()
            .first()
            .and_then(Node::text)
            .filter(|program| !program.is_empty())
        else {
            if run.items().is_empty() && matches!(run.value, Value::List(_)) || run.is_nothing() {
                self.report.error(
                    run.position,
                    &path,
                    "`run` needs at least the program, such as [\"./checkout\"]",
                );
            } else if run
                .items()
                .first()
                .is_some_and(|first| first.text() == Some(""))
            {
                self.report
                    .error(run.position, &path, "the program can't be an empty text");
            }
            return None;
        };
        let relative = program.contains('/') && !program.starts_with(['/', '$']);
        if relative && program.split('/').any(|part| part == "..") {
            let message = format!("{} leads out of the working directory", shown(program));
            self.report
                .error(run.items()[0].position, &path, message)
                .hint("name its folder with `files`, and the program inside of it".to_owned());
        }
        if let Some(files) = self.entry.value.get("files") {
            return files.text().map(str::to_owned);
        }
        if relative {
            return Some(program.to_owned());
        }
        self.warn_of_files_left_behind(run, &path);
        None
    }

    fn warn_of_files_left_behind(&mut self, run: &Node, path: &str) {
        for argument in run.items().iter().skip(1) {
            let Some(text) = argument.text() else {
                continue;
            };
            let source = SOURCE_ENDINGS.iter().any(|ending| text.ends_with(ending))
                && !text.contains(char::is_whitespace);
            if text.starts_with("./") || source && !text.starts_with(['/', '$', '-']) {
                let message = format!(
                    "{} is not uploaded, so it will not be in the working directory",
                    shown(text)
                );
                self.report
                    .warning(argument.position, path, message)
                    .hint("name it or its folder with `files`".to_owned());
            }
        }
    }

    fn needs(&mut self, node: &Node) -> BTreeMap<ResourceName, Need> {
        let mut needs = BTreeMap::new();
        for item in node.get("needs").map(Node::items).unwrap_or_default() {
            let (name, need) = need(item);
            let Some(name) = name.and_then(|name| ResourceName::new(name).ok()) else {
                continue;
            };
            if needs.contains_key(&name) {
                let message = format!("`{name}` is needed twice");
                self.report
                    .error(item.position, &join(&self.path, "needs"), message);
            }
            needs.insert(name, need);
        }
        needs
    }

    fn probe(&mut self, node: &Node, key: &str) -> Option<Probe> {
        let probe = node.get(key)?;
        let inherited = self.entry.value.get(key).is_none();
        if inherited && asks_http(probe) && node.get("protocol").and_then(Node::text) == Some("tcp")
        {
            // A path that the defaults ask of everyone is not meant for a service that can't answer it.
            return None;
        }
        if let Some(text) = probe.text() {
            let path = text.to_owned();
            let ask = if text == "none" {
                Ask::None
            } else {
                Ask::Http { path, host: None }
            };
            return Some(Probe {
                ask,
                port: None,
                times: ProbeTimes::default(),
            });
        }
        let asked: Vec<&str> = ["http", "exec", "connect"]
            .into_iter()
            .filter(|way| probe.get(way).is_some())
            .collect();
        if let [first, second, ..] = asked[..] {
            let message = format!("`{first}` and `{second}` are two ways to ask: give one");
            self.report
                .error(probe.position, &join(&self.path, key), message);
        }
        if let (Some(host), None) = (probe.get("host"), probe.get("http")) {
            let message = "`host` is the name that `http` asks for: give `http` as well";
            self.report
                .error(host.position, &join(&self.path, key), message);
        }
        if probe.get("exec").is_some_and(|run| run.items().is_empty()) {
            let message = "`exec` needs at least the program, such as [\"./check\"]";
            self.report
                .error(probe.position, &join(&self.path, key), message);
        }
        self.check_probed_port(node, probe, &join(&self.path, key));
        Some(Probe {
            ask: ask(probe),
            port: probe.parsed("port"),
            times: times(probe),
        })
    }

    fn check_probed_port(&mut self, node: &Node, probe: &Node, path: &str) {
        let Some(port) = probe.get("port") else {
            return;
        };
        let declared = node.get("ports").map(Node::keys).unwrap_or_default();
        let message = match port.text() {
            _ if probe.get("exec").is_some() => {
                "`port` means nothing for `exec`: a program is asked, and no port".to_owned()
            }
            Some(name) if !declared.contains(&name) => {
                format!("{} is none of its `ports`", shown(name))
            }
            _ => return,
        };
        self.report.error(port.position, path, message);
    }

    /// What each port speaks. Their names and the service's together are names as well.
    fn ports(&mut self, node: &Node) -> BTreeMap<ResourceName, Protocol> {
        let mut ports = BTreeMap::new();
        let service = ResourceName::new(self.entry.key.as_str()).ok();
        for entry in node.get("ports").map(Node::entries).unwrap_or_default() {
            let Ok(port) = ResourceName::new(entry.key.as_str()) else {
                continue;
            };
            let is_named = |service| ports::name_of(service, &port).is_some();
            if service.as_ref().is_some_and(|service| !is_named(service)) {
                let message = format!(
                    "{} is too long: with the service's name and `-` between, {NAME_MAX_LENGTH} characters are the most",
                    shown(&entry.key)
                );
                self.report
                    .error(entry.key_position, &join(&self.path, "ports"), message);
            }
            let protocol = match entry.value.text() {
                Some("tcp") => Protocol::Tcp,
                _ => Protocol::Http,
            };
            ports.insert(port, protocol);
        }
        ports
    }

    fn rollout(&mut self, node: &Node, has_volume: bool) -> RolloutOptions {
        let given = node.get("rollout");
        let option = |key| given.and_then(|rollout| rollout.parsed::<u32>(key));
        let (surge, unavailable) = (option("surge"), option("unavailable"));
        let position = given.map_or(node.position, |given| given.position);
        let path = join(&self.path, "rollout");
        if has_volume && (surge.unwrap_or(0) > 0 || unavailable == Some(0)) {
            let message = "a copy with a volume can't run twice, so it is replaced in place: `surge` must be 0 and `unavailable` at least 1";
            self.report.error(position, &path, message);
        } else if surge == Some(0) && unavailable == Some(0) {
            let message = "with both `surge` and `unavailable` 0 nothing could ever change: one must be at least 1";
            self.report.error(position, &path, message);
        }
        let in_place = has_volume || surge == Some(0);
        RolloutOptions {
            surge: surge.unwrap_or(u32::from(!in_place)),
            unavailable: unavailable.unwrap_or(u32::from(in_place)),
            ready_within: given
                .and_then(|rollout| rollout.parsed("ready_within"))
                .unwrap_or(RolloutOptions::default().ready_within),
            ready_for: given
                .and_then(|rollout| rollout.parsed("ready_for"))
                .unwrap_or(RolloutOptions::default_ready_for()),
        }
    }
}

/// What every service has, wherever it runs.
pub(super) fn base(node: &Node, work: Work, has_volume: bool) -> Service {
    Service {
        protocol: match node.get("protocol").and_then(Node::text) {
            Some("tcp") => Protocol::Tcp,
            _ => Protocol::Http,
        },
        on_partition: on_partition(node, has_volume),
        traffic: traffic(node.get("traffic")),
        ..Service::of(work)
    }
}

fn texts(list: &Node) -> Vec<String> {
    list.items()
        .iter()
        .filter_map(Node::text)
        .map(str::to_owned)
        .collect()
}

pub(super) fn text_map(node: Option<&Node>) -> BTreeMap<String, String> {
    let entries = node.map(Node::entries).unwrap_or_default();
    let pair = |entry: &Entry| Some((entry.key.clone(), entry.value.text()?.to_owned()));
    entries.iter().filter_map(pair).collect()
}

fn volumes(node: &Node) -> BTreeMap<ResourceName, Volume> {
    let entries = node.get("volumes").map(Node::entries).unwrap_or_default();
    let volume = |entry: &Entry| {
        let size = entry.value.text()?.parse().ok()?;
        Some((ResourceName::new(entry.key.as_str()).ok()?, Volume { size }))
    };
    entries.iter().filter_map(volume).collect()
}

fn need(item: &Node) -> (Option<&str>, Need) {
    let Some(entry) = item.entries().first() else {
        return (item.text(), Need::default());
    };
    let options = &entry.value;
    let need = Need {
        timeout: options.parsed("timeout"),
        optional: options.text() == Some("optional") || options.parsed("optional") == Some(true),
        file: options.parsed("file") == Some(true),
        access: state::access(options),
        connections: options.parsed("connections"),
    };
    (Some(&entry.key), need)
}

fn asks_http(probe: &Node) -> bool {
    probe.get("http").is_some() || probe.text().is_some_and(|text| text != "none")
}

fn ask(probe: &Node) -> Ask {
    if let Some(path) = probe.get("http").and_then(Node::text) {
        return Ask::Http {
            path: path.to_owned(),
            host: probe.get("host").and_then(Node::text).map(str::to_owned),
        };
    }
    match probe.get("exec") {
        Some(run) => Ask::Exec { run: texts(run) },
        None => Ask::Connect,
    }
}

fn times(probe: &Node) -> ProbeTimes {
    let default = ProbeTimes::default();
    ProbeTimes {
        every: probe.parsed("every").unwrap_or(default.every),
        timeout: probe.parsed("timeout").unwrap_or(default.timeout),
        failures: probe.parsed("failures").unwrap_or(default.failures),
    }
}

fn spread(node: Option<&Node>) -> Spread {
    let by = node.and_then(|node| node.text().or_else(|| node.get("by")?.text()));
    Spread {
        by: match by {
            Some("node") => SpreadBy::Node,
            Some("region") => SpreadBy::Region,
            _ => SpreadBy::Zone,
        },
        require: node.and_then(|node| node.parsed("require")) == Some(true),
    }
}

fn on_partition(node: &Node, has_volume: bool) -> OnPartition {
    match node.get("on_partition").and_then(Node::text) {
        Some("stop") => OnPartition::Stop,
        Some(_) => OnPartition::Keep,
        None if has_volume => OnPartition::Stop,
        None => OnPartition::Keep,
    }
}

fn traffic(node: Option<&Node>) -> TrafficOptions {
    let default = TrafficOptions::default();
    let Some(node) = node else {
        return default;
    };
    TrafficOptions {
        timeout: node.parsed("timeout").unwrap_or(default.timeout),
        wait: node.parsed("wait").unwrap_or(default.wait),
        balance: match node.get("balance").and_then(Node::text) {
            Some("round-robin") => Balance::RoundRobin,
            _ => default.balance,
        },
        max_in_flight: node
            .parsed("max_in_flight")
            .unwrap_or(default.max_in_flight),
        affinity: match node.get("affinity").and_then(Node::text) {
            Some("cookie") => Affinity::Cookie,
            _ => default.affinity,
        },
    }
}
