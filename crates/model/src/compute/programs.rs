//! What the kernel takes of a program (execve(2)), and whether a service's programs are within it: so that what could never start is refused
//! where it is declared, and not tried on one node after the other.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::ResourceName;

use super::expansion::{Piece, pieces};
use super::{Ask, Service, Work, environment_name};

/// The most bytes of one argument, and of one variable with its name and the `=`: 32 pages less the NUL that ends it (MAX_ARG_STRLEN).
pub const STRING_MAX_BYTES: usize = 128 * 1024 - 1;
/// The stack that a program is started with, if the node's own limit is not lower. Bytes; the default of all distributions.
pub const STACK_BYTES: u64 = 8 << 20;
/// The most bytes of all arguments and variables together, each with its NUL and a pointer of 8 bytes: a quarter of the stack, less what the
/// node itself gives (paths, the instance's and the node's name).
pub const TOTAL_MAX_BYTES: usize = (STACK_BYTES / 4) as usize - GIVEN_BYTES;
/// What is said of a text that holds a NUL.
pub const NUL: &str =
    "holds a NUL (`\\0`), which ends a text for the kernel: no program can be given it";
/// The longest path of a program, and of a file: PATH_MAX less the NUL.
pub const PATH_MAX_BYTES: usize = 4095;
/// The longest name between two slashes (NAME_MAX).
pub const NAME_MAX_BYTES: usize = 255;
/// The most bytes of one spec, as JSON: what is stored, and sent to nodes.
pub const SPEC_MAX_BYTES: usize = 256 << 10;

/// Kept for what the node gives: `PATH`, `HOME`, `MAINLAND_…`, and the path of a script's interpreter.
const GIVEN_BYTES: usize = 32 << 10;
/// Beside its bytes: the NUL and the pointer.
const STRING_OVERHEAD: usize = 1 + 8;
/// A path that the node gives, such as of a volume. More than any data directory of ours has; what is longer is left to [`GIVEN_BYTES`].
const PATH_BYTES: usize = 512;
/// A scheme with an address and a port.
const URL_BYTES: usize = 64;
/// A managed database's password for one role, in hexadecimal digits.
pub const PASSWORD_BYTES: usize = 64;
/// Longest name of a role or a database (NAMEDATALEN less the NUL).
const LOGIN_NAME_BYTES: usize = 63;

/// Where in a service something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// An argument, by the key it stands below: `run`, `before_deploy`, `health.exec`, `alive.exec`.
    Argument {
        key: &'static str,
        index: usize,
    },
    /// A variable of `env`.
    Variable(String),
    /// A secret that is given as a variable.
    Secret(ResourceName),
    Need(ResourceName),
    Volume(ResourceName),
    /// One of its own.
    Port(ResourceName),
    /// All of it.
    Whole,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument { key, index } => write!(f, "`{key}[{index}]`"),
            Self::Variable(name) => write!(f, "the variable `{name}`"),
            Self::Secret(name) => write!(f, "the secret `{name}`"),
            Self::Need(name) => write!(f, "the need `{name}`"),
            Self::Volume(name) => write!(f, "the volume `{name}`"),
            Self::Port(name) => write!(f, "the port `{name}`"),
            Self::Whole => f.write_str("all that it is given"),
        }
    }
}

/// Why a program of a service could not be started anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub part: Part,
    /// Goes on after the name of the part.
    pub message: String,
    pub remedy: &'static str,
}

/// What is known of a secret's value where the service is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SecretShape {
    /// Bytes.
    pub length: usize,
    /// Whether it can't be a variable: it holds a NUL or is no UTF-8.
    pub is_binary: bool,
}

impl SecretShape {
    pub fn of(value: &[u8]) -> Self {
        Self {
            length: value.len(),
            is_binary: value.contains(&0) || std::str::from_utf8(value).is_err(),
        }
    }
}

/// What a need brings, where it is more than an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brings {
    Secret(SecretShape),
    /// A database, with the password that is shown to it.
    Database(SecretShape),
}

const AS_FILE: &str =
    "give it as a file: a secret with `needs: [NAME: { file: true }]`, or a file in `files`";

/// All that the kernel would refuse. `needs` says what is known of needs that are secrets or databases.
pub fn faults(service: &Service, needs: &BTreeMap<ResourceName, Brings>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let variables = variables(service, needs, &mut faults);
    let programs = programs(service);
    for (key, arguments) in &programs {
        path_faults(key, arguments, &mut faults);
        for (index, argument) in arguments.iter().enumerate() {
            let part = Part::Argument { key, index };
            let length = filled_in(argument, &variables);
            string_faults(part, argument, length, &mut faults);
        }
    }
    // One that is too long by itself has been told.
    if faults.is_empty() {
        faults.extend(
            programs
                .iter()
                .find_map(|program| too_much(program, &variables)),
        );
    }
    faults
}

fn programs(service: &Service) -> Vec<(&'static str, &[String])> {
    let run = match &service.work {
        Work::Process { run, .. } => run.as_slice(),
        Work::External { .. } | Work::Engine { .. } => return Vec::new(),
    };
    let mut programs = vec![
        ("run", run),
        ("before_deploy", service.before_deploy.as_slice()),
    ];
    if let Ask::Exec { run } = &service.health.ask {
        programs.push(("health.exec", run));
    }
    if let Some(Ask::Exec { run }) = service.alive.as_ref().map(|alive| &alive.ask) {
        programs.push(("alive.exec", run));
    }
    programs.retain(|(_, arguments)| !arguments.is_empty());
    programs
}

/// The length of each variable's value, at most. What is wrong with one by itself is told.
fn variables(
    service: &Service,
    needs: &BTreeMap<ResourceName, Brings>,
    faults: &mut Vec<Fault>,
) -> BTreeMap<String, usize> {
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for (name, length) in [("PORT", 5), ("HOST", 9), ("LANG", 7), ("HOME", PATH_BYTES)] {
        all.insert(name.to_owned(), length);
    }
    for (name, need) in &service.needs {
        let variable = environment_name(name);
        match needs.get(name) {
            Some(Brings::Secret(_)) if need.file => {
                all.insert(format!("{variable}_FILE"), PATH_BYTES);
            }
            Some(Brings::Secret(secret)) => {
                secret_faults(name, &variable, *secret, faults);
                all.insert(variable, secret.length);
            }
            Some(Brings::Database(password)) => {
                secret_faults(name, &format!("{variable}_PASSWORD"), *password, faults);
                all.extend(of_address(&variable));
                all.extend(of_login(&variable, password.length));
            }
            None => all.extend(of_address(&variable)),
        }
    }
    for name in service.volumes.keys() {
        all.insert(format!("{}_DIR", environment_name(name)), PATH_BYTES);
    }
    for (name, value) in &service.env {
        let length = filled_in(value, &all);
        let whole = length + name.len() + 1;
        string_faults(Part::Variable(name.clone()), value, whole, faults);
        all.insert(name.clone(), length);
    }
    all
}

/// Where a need answers, each as long as it can be.
fn of_address(variable: &str) -> [(String, usize); 3] {
    [("URL", URL_BYTES), ("HOST", 15), ("PORT", 5)]
        .map(|(part, length)| (format!("{variable}_{part}"), length))
}

/// Who a service is to a database. Each byte of a password may take three in a URL.
fn of_login(variable: &str, password: usize) -> [(String, usize); 4] {
    let url = URL_BYTES + 3 * (password + 2 * LOGIN_NAME_BYTES);
    [
        ("URL", url),
        ("USER", LOGIN_NAME_BYTES),
        ("DATABASE", LOGIN_NAME_BYTES),
        ("PASSWORD", password),
    ]
    .map(|(part, length)| (format!("{variable}_{part}"), length))
}

fn filled_in(text: &str, variables: &BTreeMap<String, usize>) -> usize {
    let lengths = pieces(text).map(|piece| match piece {
        Piece::Text(text) => text.len(),
        Piece::Variable { name, written } => variables.get(name).copied().unwrap_or(written.len()),
    });
    lengths.fold(0, usize::saturating_add)
}

fn secret_faults(
    name: &ResourceName,
    variable: &str,
    secret: SecretShape,
    faults: &mut Vec<Fault>,
) {
    if secret.is_binary {
        faults.push(Fault {
            part: Part::Secret(name.clone()),
            message: format!("holds a NUL or is no UTF-8, and can't be the variable `{variable}`"),
            remedy: "take it as a file: `needs: [NAME: { file: true }]`",
        });
    }
}

fn string_faults(part: Part, text: &str, length: usize, faults: &mut Vec<Fault>) {
    if text.contains('\0') {
        faults.push(Fault {
            part,
            message: NUL.to_owned(),
            remedy: "take it out, or give it as a file",
        });
    } else if length > STRING_MAX_BYTES {
        faults.push(Fault {
            part,
            message: format!(
                "takes {length} bytes: {STRING_MAX_BYTES} is the most that the kernel takes of one text"
            ),
            remedy: AS_FILE,
        });
    }
}

/// A program whose path the kernel would not look up.
fn path_faults(key: &'static str, arguments: &[String], faults: &mut Vec<Fault>) {
    let Some(program) = arguments.first() else {
        return;
    };
    if let Err(message) = path(program) {
        faults.push(Fault {
            part: Part::Argument { key, index: 0 },
            message,
            remedy: "name it by a shorter path",
        });
    }
}

/// Whether the kernel looks up a path of this length.
///
/// # Errors
///
/// Goes on after the name of what the path is of.
pub fn path(path: &str) -> Result<(), String> {
    if path.len() > PATH_MAX_BYTES {
        return Err(format!(
            "has a path of {} bytes: {PATH_MAX_BYTES} is the most that the kernel looks up",
            path.len()
        ));
    }
    let longest = path.split('/').map(str::len).max().unwrap_or(0);
    if longest > NAME_MAX_BYTES {
        return Err(format!(
            "has a name of {longest} bytes in its path: {NAME_MAX_BYTES} is the most that a file system takes of one"
        ));
    }
    Ok(())
}

fn too_much(
    (key, arguments): &(&'static str, &[String]),
    variables: &BTreeMap<String, usize>,
) -> Option<Fault> {
    let of_arguments = arguments
        .iter()
        .map(|argument| filled_in(argument, variables) + STRING_OVERHEAD);
    let of_variables = variables
        .iter()
        .map(|(name, length)| name.len() + 1 + length + STRING_OVERHEAD);
    let total = of_arguments
        .chain(of_variables)
        .fold(0, usize::saturating_add);
    if total <= TOTAL_MAX_BYTES {
        return None;
    }
    let largest = variables.iter().max_by_key(|(_, length)| **length);
    let largest = largest.map_or(String::new(), |(name, length)| {
        format!("; the largest is `{name}` with {length}")
    });
    Some(Fault {
        part: Part::Whole,
        message: format!(
            "takes {total} bytes, the arguments of `{key}` and {} variables: {TOTAL_MAX_BYTES} is the most that the kernel takes{largest}",
            variables.len()
        ),
        remedy: "take large secrets as files: `needs: [NAME: { file: true }]`",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{Need, Probe};

    fn name(text: &str) -> ResourceName {
        ResourceName::new(text).unwrap()
    }

    fn service(run: &[&str], env: &[(&str, &str)]) -> Service {
        let run = run.iter().map(|word| (*word).to_owned()).collect();
        let mut service = Service::of(Work::Process {
            run,
            artifact: None,
        });
        service.env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        service
    }

    fn said(service: &Service, needs: &BTreeMap<ResourceName, Brings>) -> Vec<String> {
        faults(service, needs)
            .into_iter()
            .map(|fault| format!("{} {}", fault.part, fault.message))
            .collect()
    }

    #[test]
    fn what_the_kernel_ends_or_refuses_is_told() {
        let long = "x".repeat(STRING_MAX_BYTES + 1);
        let fits = &long[1..];
        let half = "x".repeat(STRING_MAX_BYTES / 2);
        let deep = format!("./{}", "x".repeat(NAME_MAX_BYTES + 1));
        let far = format!("/{}", "x/".repeat(PATH_MAX_BYTES / 2 + 1));
        let table: Vec<(Service, &[&str])> = vec![
            (service(&["./web", fits], &[]), &[]),
            (
                service(&["./web", &long], &[]),
                &["`run[1]` takes 131072 bytes"],
            ),
            (service(&["./web"], &[("A", &fits[2..])]), &[]),
            (
                service(&["./web"], &[("A", &fits[1..])]),
                &["`A` takes 131072 bytes"],
            ),
            (
                service(&["./web", "a\0b"], &[("N", "\0")]),
                &["`N` holds a NUL", "`run[1]` holds a NUL"],
            ),
            (
                service(&["./web"], &[("A", &half), ("B", "$A$A ${A}")]),
                &["`B` takes 196"],
            ),
            (
                service(&["./web", "$A$A$A"], &[("A", &half)]),
                &["`run[1]` takes 196605"],
            ),
            (
                service(&["./web"], &[("A", &half), ("B", "$$A$$A $NOPE")]),
                &[],
            ),
            (
                service(&[&deep], &[]),
                &["`run[0]` has a name of 256 bytes"],
            ),
            (
                service(&[&far], &[]),
                &["`run[0]` has a path of 4097 bytes"],
            ),
        ];
        for (service, expected) in table {
            let said = said(&service, &BTreeMap::new());
            assert_eq!(said.len(), expected.len(), "{said:?}");
            for (said, expected) in said.iter().zip(expected) {
                assert!(said.contains(expected), "{said}");
            }
        }
    }

    #[test]
    fn programs_that_run_beside_it_are_held_to_the_same() {
        let mut service = service(&["./web"], &[]);
        let run = vec!["./ask".to_owned(), "\0".to_owned()];
        service.before_deploy = run.clone();
        service.health.ask = Ask::Exec { run: run.clone() };
        let ask = Ask::Exec { run };
        service.alive = Some(Probe {
            port: None,
            ask,
            ..Probe::default()
        });
        let parts: Vec<Part> = faults(&service, &BTreeMap::new())
            .into_iter()
            .map(|fault| fault.part)
            .collect();
        let argument = |key| Part::Argument { key, index: 1 };
        let expected = ["before_deploy", "health.exec", "alive.exec"].map(argument);
        assert_eq!(parts, expected);
    }

    #[test]
    fn secrets_and_needs_count() {
        let secret = |length| {
            Brings::Secret(SecretShape {
                length,
                is_binary: false,
            })
        };
        let with = |count: usize, file: bool| {
            let mut service = service(&["./web"], &[]);
            let mut needs = BTreeMap::new();
            for index in 0..count {
                let name = name(&format!("s{index}"));
                let need = Need {
                    file,
                    ..Need::default()
                };
                service.needs.insert(name.clone(), need);
                needs.insert(name, secret(64 << 10));
            }
            said(&service, &needs)
        };
        assert_eq!(with(31, false), [""; 0]);
        assert_eq!(with(40, true), [""; 0], "files are none of the environment");
        let said = with(40, false);
        assert!(
            said.len() == 1 && said[0].contains("2064384 is the most"),
            "{said:?}"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_no_variable() {
        for (value, is_binary) in [
            (&b"text\n"[..], false),
            ("ä".as_bytes(), false),
            (b"a\0b", true),
            (b"\xff", true),
        ] {
            assert_eq!(SecretShape::of(value).is_binary, is_binary, "{value:?}");
        }
        let mut service = service(&["./web"], &[]);
        service.needs.insert(name("key"), Need::default());
        let brings = Brings::Secret(SecretShape::of(b"\0"));
        let needs: BTreeMap<_, _> = [(name("key"), brings)].into();
        let said = said(&service, &needs);
        assert!(said[0].contains("can't be the variable `KEY`"), "{said:?}");
    }
}
