//! What is beside the services: the doors from outside, and the secrets.

use std::collections::{BTreeMap, HashMap};

use crate::boundary::SecretSource;
use crate::ids::{NameError, ResourceName};
use crate::traffic::Route;

use super::check::{Report, join};
use super::document::Node;

/// The host and path of a route, from `host/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Door {
    pub host: String,
    pub path: String,
}

/// Longest host name (RFC 1035).
const HOST_MAX_LENGTH: usize = 253;

/// Reads `host/path`. A path that ends with `/` is the same door as without.
pub(super) fn door(text: &str) -> Result<Door, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "`{text}` is not a host and a path: write `{rest}` without `{scheme}://`"
        ));
    }
    let (host, path) = match text.find('/') {
        Some(slash) => text.split_at(slash),
        None => (text, "/"),
    };
    check_host(text, host)?;
    if !path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'*'))
        || path.contains("//")
    {
        return Err(format!(
            "`{text}` is not a host and a path: the path is a plain prefix such as `/api`"
        ));
    }
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    Ok(Door {
        host: host.to_owned(),
        path: path.to_owned(),
    })
}

fn check_host(text: &str, host: &str) -> Result<(), String> {
    let wrong = |why: &str| {
        Err(format!(
            "`{text}` is not a host and a path such as `shop.localhost/`: {why}"
        ))
    };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    match host {
        "" => wrong("the host is missing; `*` is every host"),
        "*" => Ok(()),
        _ if host.contains(':') => wrong("a route has no port"),
        _ if host.contains('*') => wrong("`*` stands alone, for every other host"),
        _ if host.bytes().any(|byte| byte.is_ascii_uppercase()) => wrong("use lower-case letters"),
        _ if host.len() > HOST_MAX_LENGTH || !host.split('.').all(label) => {
            wrong("that is not the name of a host")
        }
        _ => Ok(()),
    }
}

/// What a route leads to: a service, and where `:` follows one of its named ports.
pub(super) fn target(text: &str) -> Result<(ResourceName, Option<ResourceName>), NameError> {
    match text.split_once(':') {
        None => Ok((ResourceName::new(text)?, None)),
        Some((service, port)) => Ok((ResourceName::new(service)?, Some(ResourceName::new(port)?))),
    }
}

/// All routes of the file, in its order, each with its `host/path`.
pub(super) fn routes(report: &mut Report, file: &Node) -> Vec<(String, Route)> {
    let mut routes = Vec::new();
    let mut seen: HashMap<String, &str> = HashMap::new();
    for entry in file.get("routes").map(Node::entries).unwrap_or_default() {
        let target = entry.value.text().or_else(|| entry.value.get("to")?.text());
        let (Ok(door), Some(to)) = (
            door(&entry.key),
            target.and_then(|to| self::target(to).ok()),
        ) else {
            continue;
        };
        let key = format!("{}{}", door.host, door.path);
        match seen.get(&key) {
            // The very same text is a duplicate key, and reported as one.
            Some(first) if *first == entry.key => continue,
            Some(first) => {
                let message = format!("the same door as `{first}`");
                report.error(entry.key_position, &join("routes", &entry.key), message);
                continue;
            }
            None => drop(seen.insert(key.clone(), &entry.key)),
        }
        let Door { host, path } = door;
        let (to, port) = to;
        routes.push((
            key,
            Route {
                host,
                path,
                to,
                port,
            },
        ));
    }
    routes
}

/// All secrets of the file.
pub(super) fn secrets(report: &mut Report, file: &Node) -> BTreeMap<ResourceName, SecretSource> {
    let mut secrets = BTreeMap::new();
    for entry in file.get("secrets").map(Node::entries).unwrap_or_default() {
        let Ok(name) = ResourceName::new(entry.key.as_str()) else {
            continue;
        };
        let (file, generate) = (entry.value.get("file"), entry.value.get("generate"));
        if file.is_some() && generate.is_some() {
            let message = "`file` and `generate` are two sources: give one";
            report.error(entry.key_position, &join("secrets", &entry.key), message);
        }
        let source = match (file.and_then(Node::text), entry.value.parsed("generate")) {
            (Some(path), _) => SecretSource::File {
                path: path.to_owned(),
            },
            (None, Some(bytes)) => SecretSource::Generate { bytes },
            (None, None) => SecretSource::Given,
        };
        secrets.entry(name).or_insert(source);
    }
    secrets
}
