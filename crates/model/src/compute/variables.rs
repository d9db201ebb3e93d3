//! Which variables a program is given, and by what: two things that give the same one, or a secret in the place of a variable that others give a
//! meaning, are refused where they are declared. One of both would be lost without a word, or would be read by something that was never told of it.

use std::collections::BTreeMap;

use crate::ids::ResourceName;

use super::programs::{Brings, Fault, Part};
use super::{Service, environment_name};

/// Given to every instance.
const OF_INSTANCE: [&str; 5] = ["PORT", "HOST", "PATH", "HOME", "LANG"];
const OURS: &str = "MAINLAND_";

/// What reads a variable before the program's own code, or beside it: ld.so(8) and what it ignores for privileged programs (glibc,
/// sysdeps/generic/unsecvars.h); environ(7), locale(7); dash(1) and bash(1).
const READ_BY: [(&str, &[&str]); 4] = [
    (
        "the dynamic loader",
        &[
            "LD_ASSUME_KERNEL",
            "LD_AUDIT",
            "LD_BIND_NOT",
            "LD_BIND_NOW",
            "LD_DEBUG",
            "LD_DEBUG_OUTPUT",
            "LD_DYNAMIC_WEAK",
            "LD_HWCAP_MASK",
            "LD_LIBRARY_PATH",
            "LD_ORIGIN_PATH",
            "LD_POINTER_GUARD",
            "LD_PREFER_MAP_32BIT_EXEC",
            "LD_PRELOAD",
            "LD_PROFILE",
            "LD_PROFILE_OUTPUT",
            "LD_SHOW_AUXV",
            "LD_TRACE_LOADED_OBJECTS",
            "LD_TRACE_PRELINKING",
            "LD_USE_LOAD_BIAS",
            "LD_VERBOSE",
            "LD_WARN",
            "GLIBC_TUNABLES",
        ],
    ),
    (
        "the C library",
        &[
            "GCONV_PATH",
            "GETCONF_DIR",
            "HOSTALIASES",
            "LANGUAGE",
            "LC_ADDRESS",
            "LC_ALL",
            "LC_COLLATE",
            "LC_CTYPE",
            "LC_IDENTIFICATION",
            "LC_MEASUREMENT",
            "LC_MESSAGES",
            "LC_MONETARY",
            "LC_NAME",
            "LC_NUMERIC",
            "LC_PAPER",
            "LC_TELEPHONE",
            "LC_TIME",
            "LOCALDOMAIN",
            "LOCPATH",
            "MALLOC_TRACE",
            "NIS_PATH",
            "NLSPATH",
            "POSIXLY_CORRECT",
            "RES_OPTIONS",
            "RESOLV_HOST_CONF",
            "TMPDIR",
            "TZ",
            "TZDIR",
        ],
    ),
    (
        "a shell",
        &[
            "BASH_ENV",
            "BASHOPTS",
            "CDPATH",
            "ENV",
            "IFS",
            "OLDPWD",
            "PS4",
            "PWD",
            "SHELLOPTS",
            "SHLVL",
        ],
    ),
    (
        "programs that ask who runs them",
        &[
            "DISPLAY", "EDITOR", "LOGNAME", "MAIL", "PAGER", "SHELL", "TERM", "USER", "VISUAL",
        ],
    ),
];

const OTHERWISE: &str = "name it otherwise, or take it as a file, whose path is in `NAME_FILE`: `needs: [NAME: { file: true }]`";
const RENAME: &str = "name one of both otherwise";

/// Who gives a variable.
#[derive(Debug, Clone)]
struct Giver {
    part: Part,
    /// Goes on after "which".
    gives: String,
    /// A secret as a variable, which may be a file instead.
    is_value: bool,
}

/// Variables that would be given twice, and secrets that would be something else. `ports`: the named ports of a need, as callers know them.
///
/// What `env` says comes last on purpose, so it replaces what others give, but for the ports that are asked whether the program answers there.
pub fn collisions(
    service: &Service,
    needs: &BTreeMap<ResourceName, Brings>,
    ports: &dyn Fn(&ResourceName) -> Vec<ResourceName>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut given: BTreeMap<String, Giver> = BTreeMap::new();
    for (variable, giver) in givers(service, needs, ports) {
        let other = given.get(&variable);
        let gives = match other {
            Some(other) => Some(other.gives.clone()),
            None if giver.is_value => meaning(&variable),
            None => None,
        };
        if let Some(gives) = gives {
            faults.push(Fault {
                part: giver.part.clone(),
                message: format!(
                    "would take the place of the variable `{variable}`, which {gives}"
                ),
                remedy: if giver.is_value { OTHERWISE } else { RENAME },
            });
        }
        given.entry(variable).or_insert(giver);
    }
    faults.extend(set_by_env(service));
    faults
}

/// What reads a variable that a secret would be.
fn meaning(variable: &str) -> Option<String> {
    if OF_INSTANCE.contains(&variable) || variable.starts_with(OURS) {
        return Some("is given to every instance".to_owned());
    }
    let mut readers = READ_BY.iter();
    let reader = readers.find(|(_, variables)| variables.contains(&variable));
    reader.map(|(reader, _)| format!("{reader} would read"))
}

fn set_by_env(service: &Service) -> impl Iterator<Item = Fault> {
    let of_port = |name: &str| {
        let mut ports = service.ports.keys();
        ports.any(|port| port_variable(port) == name)
    };
    let taken = service
        .env
        .keys()
        .filter(move |name| *name == "PORT" || name.starts_with(OURS) || of_port(name));
    taken.map(|name| Fault {
        part: Part::Variable(name.clone()),
        message: "is given to every instance, and can't be set".to_owned(),
        remedy: "let the program listen where it says, or name another one: `OTHER: $PORT`",
    })
}

fn port_variable(port: &ResourceName) -> String {
    format!("PORT_{}", environment_name(port))
}

/// Secrets come last: of two it is they that are easily named otherwise.
fn givers(
    service: &Service,
    needs: &BTreeMap<ResourceName, Brings>,
    ports: &dyn Fn(&ResourceName) -> Vec<ResourceName>,
) -> Vec<(String, Giver)> {
    let mut all = Vec::new();
    let mut secrets = Vec::new();
    for port in service.ports.keys() {
        let gives = format!("says where to listen for `{port}`");
        all.push((port_variable(port), giver(Part::Port(port.clone()), gives)));
    }
    for (name, need) in &service.needs {
        let variable = environment_name(name);
        let mut parts: &[&str] = &["URL", "HOST", "PORT"];
        match needs.get(name) {
            Some(Brings::Secret(_)) => {
                let (variable, gives) = match need.file {
                    true => (format!("{variable}_FILE"), "is the path of the secret"),
                    false => (variable, "is the secret"),
                };
                let mut giver = giver(Part::Secret(name.clone()), format!("{gives} `{name}`"));
                giver.is_value = !need.file;
                secrets.push((variable, giver));
                continue;
            }
            Some(Brings::Database(_)) => {
                parts = &["URL", "HOST", "PORT", "USER", "DATABASE", "PASSWORD"];
            }
            None => {}
        }
        let of_need = giver(
            Part::Need(name.clone()),
            format!("leads to what it needs, `{name}`"),
        );
        let of_parts = parts.iter().map(|part| format!("{variable}_{part}"));
        all.extend(of_parts.map(|variable| (variable, of_need.clone())));
        for port in ports(name) {
            let port = environment_name(&port);
            let of_port = ["URL", "HOST", "PORT"].map(|part| format!("{port}_{part}"));
            all.extend(of_port.map(|variable| (variable, of_need.clone())));
        }
    }
    for name in service.volumes.keys() {
        let gives = format!("is the folder of the volume `{name}`");
        let variable = format!("{}_DIR", environment_name(name));
        all.push((variable, giver(Part::Volume(name.clone()), gives)));
    }
    all.extend(secrets);
    all
}

fn giver(part: Part, gives: String) -> Giver {
    Giver {
        part,
        gives,
        is_value: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::programs::SecretShape;
    use crate::compute::{Need, Work};
    use crate::state::Volume;
    use crate::traffic::Protocol;
    use crate::units::Bytes;

    fn name(text: &str) -> ResourceName {
        ResourceName::new(text).unwrap()
    }

    fn service() -> Service {
        Service::of(Work::Process {
            run: vec!["./web".to_owned()],
            artifact: None,
        })
    }

    fn said(service: &Service, needs: &BTreeMap<ResourceName, Brings>) -> Vec<String> {
        let ports = |need: &ResourceName| match need.as_str() {
            "mq" => vec![name("mq-amqp")],
            _ => Vec::new(),
        };
        let faults = collisions(service, needs, &ports).into_iter();
        faults
            .map(|fault| format!("{} {}; {}", fault.part, fault.message, fault.remedy))
            .collect()
    }

    const SECRET: Brings = Brings::Secret(SecretShape {
        length: 1,
        is_binary: false,
    });
    const DATABASE: Brings = Brings::Database(SecretShape {
        length: 1,
        is_binary: false,
    });

    #[test]
    fn a_secret_is_no_variable_that_others_read() {
        let table = [
            ("path", Some("`PATH`, which is given to every instance")),
            ("home", Some("`HOME`, which is given to every instance")),
            ("port", Some("`PORT`, which is given to every instance")),
            ("host", Some("`HOST`, which is given to every instance")),
            ("lang", Some("`LANG`, which is given to every instance")),
            ("mainland-zone", Some("which is given to every instance")),
            ("mainland-new", Some("which is given to every instance")),
            ("ld-preload", Some("which the dynamic loader would read")),
            ("ld-library-path", Some("the dynamic loader would read")),
            ("glibc-tunables", Some("the dynamic loader would read")),
            ("gconv-path", Some("the C library would read")),
            ("lc-all", Some("the C library would read")),
            ("tmpdir", Some("the C library would read")),
            ("tz", Some("the C library would read")),
            ("ifs", Some("a shell would read")),
            ("bash-env", Some("a shell would read")),
            ("user", Some("programs that ask who runs them would read")),
            // Others' conventions for secrets.
            ("ld-api-key", None),
            ("user-key", None),
            ("database-url", None),
            ("pgpassword", None),
            ("aws-secret-access-key", None),
            ("http-proxy", None),
            ("java-tool-options", None),
        ];
        for (secret, expected) in table {
            let mut service = service();
            service.needs.insert(name(secret), Need::default());
            let needs: BTreeMap<_, _> = [(name(secret), SECRET)].into();
            let as_value = said(&service, &needs);
            match expected {
                None => assert_eq!(as_value, [""; 0]),
                Some(expected) => {
                    let [only] = as_value.as_slice() else {
                        panic!("{secret}: {as_value:?}");
                    };
                    let part = format!("the secret `{secret}` would take the place of");
                    assert!(only.starts_with(&part) && only.contains(expected), "{only}");
                    assert!(only.contains("file: true"), "{only}");
                }
            }
            let need = service.needs.get_mut(&name(secret)).unwrap();
            need.file = true;
            assert_eq!(said(&service, &needs), [""; 0], "{secret} as a file");
        }
    }

    #[test]
    fn two_things_give_no_variable_both() {
        // A service that needs `b`, `mq` with the port `amqp` and the database `db`, has the port `admin` and the volume `data`.
        let table = [
            ("b-url", "which leads to what it needs, `b`"),
            ("b-host", "which leads to what it needs, `b`"),
            ("b-port", "which leads to what it needs, `b`"),
            ("mq-amqp-url", "which leads to what it needs, `mq`"),
            ("db-password", "which leads to what it needs, `db`"),
            ("db-user", "which leads to what it needs, `db`"),
            ("data-dir", "which is the folder of the volume `data`"),
            ("port-admin", "which says where to listen for `admin`"),
            ("key-file", "which is the path of the secret `key`"),
            ("b-password", ""),
            ("b-urls", ""),
            ("mq-other-url", ""),
            ("key", ""),
        ];
        for (secret, expected) in table {
            let mut service = service();
            for need in ["b", "mq", "db", "key", secret] {
                service.needs.insert(name(need), Need::default());
            }
            service.needs.get_mut("key").unwrap().file = true;
            service.ports.insert(name("admin"), Protocol::Tcp);
            let volume = Volume { size: Bytes(1) };
            service.volumes.insert(name("data"), volume);
            let needs = [
                (name("db"), DATABASE),
                (name("key"), SECRET),
                (name(secret), SECRET),
            ];
            let said = said(&service, &needs.into());
            match expected {
                "" => assert_eq!(said, [""; 0], "{secret}"),
                _ => assert!(
                    said.len() == 1
                        && said[0].starts_with(&format!("the secret `{secret}`"))
                        && said[0].contains(expected),
                    "{secret}: {said:?}"
                ),
            }
        }
    }

    #[test]
    fn what_is_asked_of_a_program_is_not_set_otherwise() {
        let table = [
            ("PORT", true),
            ("PORT_ADMIN", true),
            ("MAINLAND_ZONE", true),
            ("PORT_OTHER", false),
            ("HOST", false),
            ("PATH", false),
            ("HOME", false),
            ("LD_LIBRARY_PATH", false),
            ("B_URL", false),
        ];
        for (variable, refused) in table {
            let mut service = service();
            service.needs.insert(name("b"), Need::default());
            service.ports.insert(name("admin"), Protocol::Tcp);
            service.env.insert(variable.to_owned(), "1".to_owned());
            let said = said(&service, &BTreeMap::new());
            assert_eq!(!said.is_empty(), refused, "{variable}: {said:?}");
        }
        // A port and a need may meet as well.
        let mut service = service();
        service.ports.insert(name("url"), Protocol::Tcp);
        service.needs.insert(name("port"), Need::default());
        let said = said(&service, &BTreeMap::new());
        assert!(said[0].starts_with("the need `port` would"), "{said:?}");
    }
}
