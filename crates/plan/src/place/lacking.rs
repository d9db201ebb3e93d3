//! What a node must have for an engine to run there.

use model::compute::Service;
use model::control::Reason;
use model::machine::{POSTGRES, Programs};

/// The node lacks a program that an engine runs on.
pub const LACKS: &str = "lacks-program";
/// How the message of such a reason begins; the name of the program follows.
const IT_HAS_NO: &str = "it has no ";

/// Why a node with these programs can't run it. A node that does not tell what it has is taken as having all.
pub fn lacks(spec: &Service, programs: Option<&Programs>) -> Option<Reason> {
    let (program, version) = spec.engine()?.program()?;
    let has = programs?
        .get(program)
        .is_some_and(|versions| versions.contains(&version));
    (!has).then(|| {
        let name = match program {
            POSTGRES => "PostgreSQL",
            other => other,
        };
        Reason::new(LACKS, format!("{IT_HAS_NO}{name} {version}"))
    })
}

/// What is said where every node lacks it. `cause` is the message of a reason of [`lacks`].
pub(super) fn nowhere(cause: &str) -> String {
    let what = cause.strip_prefix(IT_HAS_NO).unwrap_or(cause);
    let package = what.to_lowercase().replace(' ', "-");
    format!(
        "no node has {what}: install it on one, such as by `apt-get install {package}`, or declare a version that a node has (`mainland nodes` shows them)"
    )
}

#[cfg(test)]
mod tests {
    use model::compute::Work;
    use std::time::Duration;

    use model::state::{Engine, Postgres, Retention, Topic};
    use model::units::{Bytes, Span};

    use super::*;
    use crate::testing::service;

    #[test]
    fn a_database_runs_where_its_postgresql_is() {
        let of = |engine: Engine| Service {
            work: Work::Engine { engine },
            ..service(1)
        };
        let database = of(Engine::Postgres(Postgres {
            version: 15,
            outbox: None,
            extensions: Default::default(),
        }));
        let topic = of(Engine::Topic(Topic {
            attempts: 5,
            retention: Retention {
                age: Span(Duration::from_secs(1)),
                size: Bytes(1),
            },
        }));
        let has = |versions: &[u32]| {
            Some(Programs::from([(
                POSTGRES.to_owned(),
                versions.iter().copied().collect(),
            )]))
        };
        let table = [
            (&database, None, None),
            (&database, has(&[15]), None),
            (&database, has(&[14, 15, 16]), None),
            (&database, has(&[14, 16]), Some("it has no PostgreSQL 15")),
            (&database, has(&[]), Some("it has no PostgreSQL 15")),
            (
                &database,
                Some(Programs::new()),
                Some("it has no PostgreSQL 15"),
            ),
            (&topic, Some(Programs::new()), None),
            (&service(1), Some(Programs::new()), None),
        ];
        for (spec, programs, said) in table {
            let why = lacks(spec, programs.as_ref());
            let why = why.as_ref().map(|why| why.message.as_str());
            assert_eq!(why, said, "{programs:?}");
        }
        assert!(nowhere("it has no PostgreSQL 15").starts_with(
            "no node has PostgreSQL 15: install it on one, such as by `apt-get install postgresql-15`"
        ));
    }
}
