//! Databases and topics: declared in a few words, resolved to ordinary services whose work is an engine.

use std::collections::{BTreeMap, BTreeSet};

use crate::compute::{
    Ask, ExternalLogin, Need, OnPartition, Probe, ProbeTimes, RolloutOptions, Service, Work,
};
use crate::ids::ResourceName;
use crate::state::extensions::{self, Wish};
use crate::state::{
    Access, ENGINE_VOLUME, Engine, Login, Postgres, Retention, Subscription, Topic, Volume,
};
use crate::traffic::Protocol;
use crate::units::{Bytes, MilliCpu, Span};

use super::DeclaredService;
use super::check::{Report, join, shown};
use super::document::{Entry, Node};
use super::service::{base, is_host_and_port, text_map};

/// Enough for a small PostgreSQL with its connections; a process of its own takes 10 MB.
const DATABASE_MEMORY: Bytes = Bytes::mebibytes(256);
const TOPIC_MEMORY: Bytes = Bytes::mebibytes(128);
const DISK: Bytes = Bytes::mebibytes(1024);
const CPU: MilliCpu = MilliCpu(100);
/// As long as a smart shutdown may take before what is open is cut off, and a checkpoint after that.
const GRACE: Span = Span::seconds(20);
/// A first start makes the files of the database, and a start after a crash replays its log.
const READY_WITHIN: Span = Span::seconds(120);
/// As RabbitMQ's quorum queues and the push subscriptions of others have it, give or take.
const ATTEMPTS: u32 = 5;
const RETENTION: Span = Span::seconds(24 * 3600);
const MAX_IN_FLIGHT: u32 = 16;
const DELIVERY_TIMEOUT: Span = Span::seconds(30);
const POSTGRES_PORT: u16 = 5432;
/// What means something for a database that runs elsewhere.
const OF_EXTERNAL: [&str; 2] = ["url", "password"];

type Reader = fn(&mut Report, &Entry) -> Option<Service>;

/// All databases and topics of the file. What can't be read has been or is reported.
pub(super) fn read_all(
    report: &mut Report,
    file: &Node,
) -> BTreeMap<ResourceName, DeclaredService> {
    let mut services = BTreeMap::new();
    let sections: [(&str, Reader); 2] = [("databases", database), ("topics", topic)];
    for (section, read) in sections {
        for entry in file.get(section).map(Node::entries).unwrap_or_default() {
            let Ok(name) = ResourceName::new(entry.key.as_str()) else {
                continue;
            };
            let Some(spec) = read(report, entry) else {
                continue;
            };
            let declared = DeclaredService {
                spec,
                files: None,
                position: entry.key_position,
                needs: BTreeMap::new(),
            };
            services.entry(name).or_insert(declared);
        }
    }
    services
}

fn database(report: &mut Report, entry: &Entry) -> Option<Service> {
    let path = join("databases", &entry.key);
    let node = &entry.value;
    match (node.get("postgres"), node.get("url")) {
        (_, Some(url)) => elsewhere(report, entry, url, &path),
        (Some(_), None) => {
            if let Some(password) = node.get("password") {
                let message = "`password` is for a database that runs elsewhere (`url`): this one's passwords are made by Mainland";
                report.error(password.position, &path, message);
            }
            check_extensions(report, node, &path);
            Some(postgres(node, node.parsed("postgres")?))
        }
        (None, None) => {
            let message = "nothing says which database: missing key `postgres` with its major version (or `url` for one that runs elsewhere)";
            report.error(entry.key_position, &path, message);
            None
        }
    }
}

fn postgres(node: &Node, version: u32) -> Service {
    let outbox: Option<ResourceName> = node
        .get("outbox")
        .and_then(Node::text)
        .and_then(|topic| ResourceName::new(topic).ok());
    let needs = outbox
        .iter()
        .map(|topic| {
            // The rows wait in the table: the database serves without the topic.
            let need = Need {
                optional: true,
                ..Need::default()
            };
            (topic.clone(), need)
        })
        .collect();
    let engine = Engine::Postgres(Postgres {
        version,
        outbox,
        extensions: wishes(node),
    });
    Service {
        needs,
        protocol: Protocol::Tcp,
        memory: node.parsed("memory").unwrap_or(DATABASE_MEMORY),
        ..engine_service(node, engine)
    }
}

fn wishes(node: &Node) -> BTreeMap<String, Wish> {
    let items = node.get("extensions").map(Node::items).unwrap_or_default();
    let wish = |item: &Node| match item.entries().first() {
        None => Some((item.text()?.to_owned(), Wish::Create)),
        Some(entry) => Some((entry.key.clone(), Wish::Drop)),
    };
    items.iter().filter_map(wish).collect()
}

/// Whether each is named once, in a database that this version can hold.
fn check_extensions(report: &mut Report, node: &Node, path: &str) {
    let Some(list) = node.get("extensions") else {
        return;
    };
    let path = join(path, "extensions");
    let mut named = BTreeSet::new();
    for item in list.items() {
        let name = item.text().or_else(|| item.keys().first().copied());
        if let Some(name) = name.filter(|name| !named.insert(*name)) {
            let message = format!("{} is named twice", shown(name));
            report.error(item.position, &path, message);
        }
    }
    if named.len() > extensions::MOST {
        let message = format!("at most {} extensions", extensions::MOST);
        report.error(list.position, &path, message);
    }
}

fn topic(_: &mut Report, entry: &Entry) -> Option<Service> {
    let node = &entry.value;
    let disk = node.parsed("disk").unwrap_or(DISK);
    let retention = node.get("retention");
    let engine = Engine::Topic(Topic {
        attempts: node.parsed("attempts").unwrap_or(ATTEMPTS),
        retention: Retention {
            age: retention
                .and_then(|retention| retention.parsed("age"))
                .unwrap_or(RETENTION),
            size: retention
                .and_then(|retention| retention.parsed("size"))
                .unwrap_or(Bytes(disk.0 / 4 * 3)),
        },
    });
    Some(Service {
        memory: node.parsed("memory").unwrap_or(TOPIC_MEMORY),
        ..engine_service(node, engine)
    })
}

/// What all engines have: one copy with one volume, replaced in place.
fn engine_service(node: &Node, engine: Engine) -> Service {
    let volume = Volume {
        size: node.parsed("disk").unwrap_or(DISK),
    };
    let name = ResourceName::new(ENGINE_VOLUME).expect("a name");
    Service {
        cpu: node.parsed("cpu").unwrap_or(CPU),
        health: Probe {
            port: None,
            ask: Ask::Engine,
            times: ProbeTimes::default(),
        },
        on_partition: OnPartition::Stop,
        volumes: [(name, volume)].into(),
        rollout: RolloutOptions {
            surge: 0,
            unavailable: 1,
            ready_within: READY_WITHIN,
            // Its one copy is replaced in place: nothing is held back by watching it longer.
            ready_for: RolloutOptions::SETTLED_AFTER,
        },
        grace: GRACE,
        labels: text_map(node.get("labels")),
        ..base(node, Work::Engine { engine }, true)
    }
}

fn elsewhere(report: &mut Report, entry: &Entry, url: &Node, path: &str) -> Option<Service> {
    for other in entry.value.entries() {
        if !OF_EXTERNAL.contains(&other.key.as_str()) {
            let message = format!(
                "{} means nothing for a database that runs elsewhere (`url`)",
                shown(&other.key)
            );
            report.error(other.key_position, path, message);
        }
    }
    // A bad one has been reported by its form.
    let external = external_database(url.text()?).ok()?;
    let password = entry.value.get("password").and_then(Node::text);
    let work = Work::External {
        addresses: vec![external.address],
        login: Some(ExternalLogin {
            login: external.login,
            password: password.and_then(|name| ResourceName::new(name).ok()),
        }),
    };
    Some(Service {
        replicas: 0,
        cpu: MilliCpu(0),
        memory: Bytes(0),
        protocol: Protocol::Tcp,
        ..base(&entry.value, work, false)
    })
}

/// A database that runs elsewhere, from its URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExternalDatabase {
    pub address: String,
    pub login: Login,
}

/// Reads `postgres://USER@HOST[:PORT]/NAME`.
pub(super) fn external_database(text: &str) -> Result<ExternalDatabase, String> {
    let wrong = |why: &str| format!("`{text}` is not `postgres://USER@HOST:PORT/NAME`: {why}");
    let rest = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"))
        .ok_or_else(|| wrong("it begins with `postgres://`"))?;
    let (user, rest) = rest
        .split_once('@')
        .ok_or_else(|| wrong("the user is missing"))?;
    if user.contains(':') {
        // The text is not shown: it holds the password.
        return Err(
            "the password does not belong in the file: give it as a secret, and name that with `password`"
                .to_owned(),
        );
    }
    let (address, database) = rest
        .split_once('/')
        .ok_or_else(|| wrong("the name of the database is missing"))?;
    let address = match address.contains(':') {
        true => address.to_owned(),
        false => format!("{address}:{POSTGRES_PORT}"),
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    if !plain(user) || !plain(database) {
        return Err(wrong(
            "user and name are letters, digits, `_`, `-` and `.`; options are not supported",
        ));
    }
    if !is_host_and_port(&address) {
        return Err(wrong("that is no host and port"));
    }
    Ok(ExternalDatabase {
        address,
        login: Login {
            user: user.to_owned(),
            database: database.to_owned(),
        },
    })
}

/// The topics that a service consumes.
pub(super) fn subscriptions(node: &Node) -> BTreeMap<ResourceName, Subscription> {
    let entries = node.get("on").map(Node::entries).unwrap_or_default();
    let subscription = |entry: &Entry| {
        let value = &entry.value;
        let path = value.text().or_else(|| value.get("path")?.text())?;
        let subscription = Subscription {
            path: path.to_owned(),
            max_in_flight: value.parsed("max_in_flight").unwrap_or(MAX_IN_FLIGHT),
            timeout: value.parsed("timeout").unwrap_or(DELIVERY_TIMEOUT),
        };
        Some((ResourceName::new(entry.key.as_str()).ok()?, subscription))
    };
    entries.iter().filter_map(subscription).collect()
}

/// What a need asks for, in the short form: `orders-db: read`, `order-events: consume`.
pub(super) fn access(options: &Node) -> Access {
    let word = options
        .text()
        .or_else(|| options.get("access").and_then(Node::text));
    match word {
        Some("read") => Access::Read,
        Some("consume") => Access::Consume,
        _ => Access::Write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_elsewhere_is_read_from_its_url() {
        let login = |user: &str, database: &str| Login {
            user: user.to_owned(),
            database: database.to_owned(),
        };
        let table = [
            (
                "postgres://orders@10.0.0.7:6432/shop",
                Ok(("10.0.0.7:6432", login("orders", "shop"))),
            ),
            (
                "postgresql://me@db.example.org/shop",
                Ok(("db.example.org:5432", login("me", "shop"))),
            ),
            ("mysql://me@host/shop", Err("it begins with")),
            ("postgres://host/shop", Err("the user is missing")),
            (
                "postgres://me:pw@host/shop",
                Err("the password does not belong"),
            ),
            (
                "postgres://me@host",
                Err("the name of the database is missing"),
            ),
            ("postgres://me@host/", Err("user and name")),
            (
                "postgres://me@host/shop?sslmode=require",
                Err("user and name"),
            ),
            ("postgres://me@:5432/shop", Err("no host and port")),
        ];
        for (text, expected) in table {
            match (external_database(text), expected) {
                (Ok(read), Ok((address, login))) => {
                    assert_eq!((read.address.as_str(), &read.login), (address, &login));
                }
                (Err(message), Err(part)) => {
                    assert!(message.contains(part), "{message}");
                    assert!(!message.contains(":pw"), "{message}");
                }
                (read, expected) => panic!("{text}: {read:?}, expected {expected:?}"),
            }
        }
    }
}
