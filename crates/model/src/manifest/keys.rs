//! Which keys each mapping of the file has, what shape their values have, and what they mean: the one table behind both the reader's
//! errors and the JSON Schema.
//!
//! | module | part of the table |
//! |---|---|
//! | here | the file from above, and what a key, a shape and a form are |
//! | `service` | `services`, and the `defaults` that they share |
//! | `state` | `databases`, `topics` |
//! | `outside` | `secrets`, `routes` |
//! | `texts` | the forms of texts: names, sizes, spans, paths |

mod outside;
mod service;
mod state;
mod texts;

use outside::{ROUTES, SECRETS};
use service::{DEFAULTS, SERVICES};
use state::{DATABASES, TOPICS};
use texts::PROJECT_NAME;
pub(super) use texts::is_host_and_port;

/// The whole file.
pub(super) static ROOT: Shape = Shape::Fields(&ROOT_KEYS);

static ROOT_KEYS: [Key; 13] = [
    required(
        "project",
        Shape::Text(&PROJECT_NAME),
        "The tenant that all of this belongs to. An environment is a project of its own: `NAME-ENVIRONMENT`.",
    ),
    DEFAULTS_KEY,
    SERVICES_KEY,
    DATABASES_KEY,
    TOPICS_KEY,
    SECRETS_KEY,
    ROUTES_KEY,
    key(
        "environments",
        Shape::Entries(&ENVIRONMENTS),
        "Variants of this file by name, each a JSON merge patch (RFC 7396) over it; chosen with `--env`.",
    ),
    key(
        "jobs",
        Shape::Later("jobs are not supported by this version yet"),
        "",
    ),
    key(
        "functions",
        Shape::Later("functions are not supported by this version yet"),
        "",
    ),
    key(
        "machines",
        Shape::Later("machines are not supported by this version yet"),
        "",
    ),
    key(
        "buckets",
        Shape::Later("buckets are not supported by this version yet"),
        "",
    ),
    key(
        "caches",
        Shape::Later("caches are not supported by this version yet: run one as a service"),
        "",
    ),
];

const DEFAULTS_KEY: Key = key(
    "defaults",
    Shape::Fields(&DEFAULTS),
    "What every service has that does not say otherwise.",
);

const SERVICES_KEY: Key = key(
    "services",
    Shape::Entries(&SERVICES),
    "What runs, or runs elsewhere and is routed to, by name.",
);

const DATABASES_KEY: Key = key(
    "databases",
    Shape::Entries(&DATABASES),
    "PostgreSQL, run and looked after by Mainland or elsewhere. Who needs one is given `NAME_URL` with a role of its own.",
);

const TOPICS_KEY: Key = key(
    "topics",
    Shape::Entries(&TOPICS),
    "Queues of messages: published over HTTP at `NAME_URL`, pushed to the services that name them in `on`.",
);

const SECRETS_KEY: Key = key(
    "secrets",
    Shape::Entries(&SECRETS),
    "Values that are kept encrypted and given only to those who need them. With neither `file` nor `generate`: set by hand.",
);

const ROUTES_KEY: Key = key(
    "routes",
    Shape::Entries(&ROUTES),
    "Doors from outside: `host/path` and the service that answers. `*` is every other host.",
);

static ENVIRONMENTS: Entries = Entries {
    key: &PROJECT_NAME,
    value: Shape::Patch(&ENVIRONMENT),
    single: false,
    unsets: false,
    most: 100,
};

static ENVIRONMENT: [Key; 6] = [
    DEFAULTS_KEY,
    SERVICES_KEY,
    DATABASES_KEY,
    TOPICS_KEY,
    SECRETS_KEY,
    ROUTES_KEY,
];

/// Services of one file.
pub(super) const SERVICES_MAX: usize = 1000;

/// One key of a mapping.
pub(super) struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub doc: &'static str,
    pub required: bool,
}

/// What a value may look like.
pub(super) enum Shape {
    Text(&'static Form),
    Number {
        least: u64,
        most: u64,
    },
    Flag,
    List(&'static Shape),
    /// A mapping with these keys.
    Fields(&'static [Key]),
    /// A mapping whose keys the user chooses.
    Entries(&'static Entries),
    /// Told apart by kind: at most one of them is a scalar, one a list, one a mapping.
    OneOf(&'static [Shape]),
    /// A merge patch over a mapping with these keys: nothing is required, and nothing (`~`) removes.
    Patch(&'static [Key]),
    /// Known, and not run by this version. The text says so.
    Later(&'static str),
}

pub(super) struct Entries {
    pub key: &'static Form,
    pub value: Shape,
    /// Exactly one entry.
    pub single: bool,
    /// `~` as a value takes away what `defaults` give.
    pub unsets: bool,
    /// So that what is merged into each other stays small: defaults go into every service.
    pub most: usize,
}

/// The form of a text.
pub(super) struct Form {
    /// Ends the sentence "`x` is not ...".
    pub expected: &'static str,
    /// The message, where the text is not of this form.
    pub check: fn(&str) -> Result<(), String>,
    pub examples: &'static [&'static str],
    /// All that are allowed, where they can be listed.
    pub words: &'static [&'static str],
    /// In bytes.
    pub longest: usize,
    /// What the text must match, for editors. The check decides.
    pub pattern: Option<&'static str>,
}

impl Form {
    /// Whether every text is of this form, the empty one too.
    pub fn takes_all(&self) -> bool {
        self.words.is_empty() && (self.check)("").is_ok()
    }
}

const fn key(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key {
        name,
        shape,
        doc,
        required: false,
    }
}

const fn required(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key {
        required: true,
        ..key(name, shape, doc)
    }
}
