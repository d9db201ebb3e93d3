//! What a workload finds in its environment: the conventions of others, and nothing of the agent's own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use compute::runtime::{Environment, OWN_PROGRAM, expand};
use model::compute::{DesiredInstance, Purpose, Work, environment_name};
use model::ids::{NodeName, ResourceName, ZoneName};
use model::state::Login;
use model::traffic::Protocol;

use crate::engine;

/// As a login shell on Debian has it, for root and others alike.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The argument by which the binary does nothing until it is ended: see [`compute::shim::hold_main`].
const HOLD: &str = "hold";

/// All that goes in.
pub struct Given<'a> {
    pub desired: &'a DesiredInstance,
    pub node: &'a NodeName,
    pub zone: &'a ZoneName,
    pub port: u16,
    /// Those beside it, by their names.
    pub ports: &'a BTreeMap<ResourceName, u16>,
    pub work: &'a Path,
    /// Where each needed service answers for this caller.
    pub doors: &'a BTreeMap<ResourceName, (SocketAddr, Protocol)>,
    pub secrets: &'a BTreeMap<ResourceName, Secret>,
    pub volumes: &'a BTreeMap<ResourceName, PathBuf>,
}

/// A secret as the workload gets it.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Value(String),
    File(PathBuf),
}

/// The whole environment. What the spec says comes last and may replace the rest; its values see all that came before, and of one another
/// those that come earlier by name.
pub fn environment(given: &Given<'_>) -> Environment {
    let mut all = Environment::default();
    let mut set = |name: String, value: String| {
        all.0.insert(name, value);
    };
    for (name, value) in fixed(given) {
        set(name.to_owned(), value);
    }
    for (name, port) in given.ports {
        set(format!("PORT_{}", environment_name(name)), port.to_string());
    }
    for (need, (address, protocol)) in given.doors {
        let name = environment_name(need);
        let url = match (given.desired.logins.get(need), protocol) {
            (Some(login), _) => {
                let password = password(given, need);
                set(format!("{name}_USER"), login.user.clone());
                set(format!("{name}_DATABASE"), login.database.clone());
                if let Some(password) = password {
                    set(format!("{name}_PASSWORD"), password.to_owned());
                }
                database_url(login, password, *address)
            }
            (None, Protocol::Http) => format!("http://{address}"),
            (None, Protocol::Tcp) => format!("tcp://{address}"),
        };
        set(format!("{name}_URL"), url);
        set(format!("{name}_HOST"), address.ip().to_string());
        set(format!("{name}_PORT"), address.port().to_string());
    }
    for (name, secret) in given.secrets {
        if given.desired.logins.contains_key(name) {
            continue;
        }
        let name = environment_name(name);
        match secret {
            Secret::Value(value) => set(name, value.clone()),
            Secret::File(path) => set(format!("{name}_FILE"), path.display().to_string()),
        }
    }
    for (name, path) in given.volumes {
        set(
            format!("{}_DIR", environment_name(name)),
            path.display().to_string(),
        );
    }
    for (name, value) in &given.desired.spec.env {
        let value = expand(value, &all);
        all.0.insert(name.clone(), value);
    }
    all
}

/// Of a database, which comes as a secret of its name.
fn password<'a>(given: &Given<'a>, need: &ResourceName) -> Option<&'a str> {
    match given.secrets.get(need)? {
        Secret::Value(password) => Some(password),
        Secret::File(_) => None,
    }
}

/// As libpq and all drivers after it read it.
fn database_url(login: &Login, password: Option<&str>, address: SocketAddr) -> String {
    let password = password.map(|password| format!(":{}", percent_encoded(password)));
    format!(
        "postgres://{}{}@{address}/{}",
        percent_encoded(&login.user),
        password.unwrap_or_default(),
        percent_encoded(&login.database)
    )
}

/// All but what means nothing in any part of a URL (RFC 3986, 2.3).
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encoded = text.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    encoded.collect()
}

fn fixed(given: &Given<'_>) -> [(&'static str, String); 10] {
    let desired = given.desired;
    [
        ("PORT", given.port.to_string()),
        ("HOST", "127.0.0.1".to_owned()),
        ("PATH", PATH.to_owned()),
        ("HOME", given.work.display().to_string()),
        ("LANG", "C.UTF-8".to_owned()),
        ("MAINLAND_PROJECT", desired.instance.project.to_string()),
        ("MAINLAND_SERVICE", desired.service.to_string()),
        ("MAINLAND_INSTANCE", desired.instance.name.to_string()),
        ("MAINLAND_NODE", given.node.to_string()),
        ("MAINLAND_ZONE", given.zone.to_string()),
    ]
}

/// The command, with variables replaced.
pub fn arguments(desired: &DesiredInstance, environment: &Environment) -> Vec<String> {
    match &desired.spec.work {
        // Only there for what runs beside it.
        Work::Process { .. } if desired.purpose == Purpose::Run => {
            vec![OWN_PROGRAM.to_owned(), HOLD.to_owned()]
        }
        Work::Process { run, .. } => run
            .iter()
            .map(|argument| expand(argument, environment))
            .collect(),
        Work::Engine { engine } => engine::arguments(desired, engine),
        Work::External { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::desired;

    fn name(text: &str) -> ResourceName {
        ResourceName::new(text).unwrap()
    }

    #[test]
    fn a_workload_sees_conventions_and_what_it_declared() {
        let mut desired = desired("checkout-3");
        desired.spec.env = [
            ("ADDRESS", "$HOST:$PORT"),
            ("KEEP", "$$X $NOPE"),
            ("ORDERS_DB_PORT", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let login = Login {
            user: "checkout".to_owned(),
            database: "stock_db".to_owned(),
        };
        desired.logins = [(name("stock-db"), login)].into();
        let doors = [
            (
                name("orders-db"),
                ("127.77.16.1:7080".parse().unwrap(), Protocol::Tcp),
            ),
            (
                name("cart"),
                ("127.77.16.2:7080".parse().unwrap(), Protocol::Http),
            ),
            (
                name("stock-db"),
                ("127.77.16.3:7080".parse().unwrap(), Protocol::Tcp),
            ),
        ];
        let secrets = [
            (name("payment-key"), Secret::Value("s3cret".to_owned())),
            (name("stock-db"), Secret::Value("a/b:c".to_owned())),
            (name("tls-key"), Secret::File("/dev/shm/x".into())),
        ];
        let environment = environment(&Given {
            ports: &[("admin".parse().unwrap(), 4001)].into(),
            desired: &desired,
            node: &NodeName::new("a").unwrap(),
            zone: &ZoneName::new("z").unwrap(),
            port: 20_001,
            work: Path::new("/d/work"),
            doors: &doors.into(),
            secrets: &secrets.into(),
            volumes: &[(name("data"), PathBuf::from("/v/data"))].into(),
        });
        let table = [
            ("PORT_ADMIN", "4001"),
            ("PORT", "20001"),
            ("HOST", "127.0.0.1"),
            ("HOME", "/d/work"),
            ("CART_URL", "http://127.77.16.2:7080"),
            ("CART_HOST", "127.77.16.2"),
            ("CART_PORT", "7080"),
            ("ORDERS_DB_URL", "tcp://127.77.16.1:7080"),
            ("ORDERS_DB_PORT", "1"),
            (
                "STOCK_DB_URL",
                "postgres://checkout:a%2Fb%3Ac@127.77.16.3:7080/stock_db",
            ),
            ("STOCK_DB_HOST", "127.77.16.3"),
            ("STOCK_DB_PORT", "7080"),
            ("STOCK_DB_USER", "checkout"),
            ("STOCK_DB_PASSWORD", "a/b:c"),
            ("STOCK_DB_DATABASE", "stock_db"),
            ("PAYMENT_KEY", "s3cret"),
            ("TLS_KEY_FILE", "/dev/shm/x"),
            ("DATA_DIR", "/v/data"),
            ("ADDRESS", "127.0.0.1:20001"),
            ("KEEP", "$X $NOPE"),
            ("MAINLAND_PROJECT", "shop"),
            ("MAINLAND_SERVICE", "checkout"),
            ("MAINLAND_INSTANCE", "checkout-3"),
            ("MAINLAND_NODE", "a"),
            ("MAINLAND_ZONE", "z"),
        ];
        for (name, value) in table {
            assert_eq!(
                environment.0.get(name).map(String::as_str),
                Some(value),
                "{name}"
            );
        }
        // PATH, LANG and ORDERS_DB_HOST beside the table; nothing leaks in from the agent's own environment.
        assert_eq!(
            environment.0.len(),
            table.len() + 3,
            "{:?}",
            environment.0.keys()
        );
    }
}
