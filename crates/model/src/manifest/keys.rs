//! Which keys each mapping of the file has, what shape their values have, and what they mean: the one table behind both the reader's
//! errors and the JSON Schema.

use crate::ids::{ProjectName, ResourceName};
use crate::units::{Bytes, MilliCpu, Span};

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

const FORM: Form = Form {
    expected: "a text",
    check: |_| Ok(()),
    examples: &[],
    words: &[],
    longest: 4096,
    pattern: None,
};

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

const fn words(words: &'static [&'static str], expected: &'static str) -> Form {
    Form {
        expected,
        words,
        ..FORM
    }
}

// ---- texts -----------------------------------------------------------------------------------------------------------------------

/// Smaller limits kill every program: they are a forgotten unit.
pub(super) const MEMORY_MIN: Bytes = Bytes::mebibytes(4);
/// Longer waits are a wrong unit, and would overflow deadlines.
pub(super) const SPAN_MAX: Span = Span::seconds(7 * 24 * 3600);
/// Services of one file.
pub(super) const SERVICES_MAX: usize = 1000;
pub(super) const REPLICAS_MAX: u64 = 1000;
pub(super) const SECRET_BYTES_MIN: u64 = 16;
pub(super) const SECRET_BYTES_MAX: u64 = 1024;

const NAME_PATTERN: Option<&str> = Some("^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$");

/// An argument or a variable. Linux takes no longer one (MAX_ARG_STRLEN, execve(2)).
static TEXT: Form = Form {
    longest: 128 * 1024 - 1,
    ..FORM
};

static PROJECT_NAME: Form = Form {
    expected: "a name",
    check: |text| {
        ProjectName::new(text)
            .map(drop)
            .map_err(|error| error.to_string())
    },
    examples: &["shop"],
    pattern: NAME_PATTERN,
    ..FORM
};

static NAME: Form = Form {
    expected: "a name",
    check: |text| {
        ResourceName::new(text)
            .map(drop)
            .map_err(|error| error.to_string())
    },
    examples: &["checkout"],
    pattern: NAME_PATTERN,
    ..FORM
};

static VARIABLE: Form = Form {
    expected: "the name of an environment variable",
    check: environment_variable,
    examples: &["LOG_LEVEL"],
    pattern: Some("^[A-Za-z_][A-Za-z0-9_]*$"),
    ..FORM
};

static LABEL: Form = Form {
    expected: "a label",
    check: |text| {
        expect(
            !text.is_empty() && text.len() <= 63,
            text,
            "a label: 1 to 63 characters, such as `disk`",
        )
    },
    examples: &["disk"],
    ..FORM
};

static FILES: Form = Form {
    expected: "a path",
    check: |text| {
        let relative = !text.is_empty() && !text.starts_with(['/', '~']);
        expect(
            relative,
            text,
            "a path relative to this file, such as `./dist`",
        )
    },
    examples: &["./dist"],
    ..FORM
};

static SECRET_FILE: Form = Form {
    expected: "a path",
    check: |text| expect(!text.is_empty(), text, "a path, such as `./payment.key`"),
    examples: &["./payment.key"],
    ..FORM
};

static CPU: Form = Form {
    expected: "an amount of CPU",
    check: |text| match text.parse::<MilliCpu>() {
        Err(error) => Err(error.to_string()),
        Ok(cpu) if cpu.0 == 0 => Err("an amount of CPU must be more than 0".to_owned()),
        Ok(cpu) if cpu.0 > 1_000_000 => Err(format!(
            "`{text}` is more than 1000 cores; thousandths are written `250m`"
        )),
        Ok(_) => Ok(()),
    },
    examples: &["0.25", "250m"],
    pattern: Some("^[0-9]+(\\.[0-9]+|m)?$"),
    ..FORM
};

static SIZE: Form = Form {
    expected: "a size",
    check: |text| match text.parse::<Bytes>() {
        Err(error) => Err(error.to_string()),
        Ok(size) if size < MEMORY_MIN => Err(format!(
            "`{text}` is less than {MEMORY_MIN}, the least that is of use; a size with its unit is written as `128Mi`"
        )),
        Ok(_) => Ok(()),
    },
    examples: &["128Mi", "1Gi"],
    pattern: Some("^[0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"),
    ..FORM
};

static SPAN: Form = Form {
    expected: "a length of time",
    check: |text| match text.parse::<Span>() {
        Err(error) => Err(error.to_string()),
        Ok(span) if span == Span::seconds(0) => Err(format!(
            "`{text}` is no time at all: it must be more than 0"
        )),
        Ok(span) if span > SPAN_MAX => Err(format!(
            "`{text}` is longer than 7 days, the most that is allowed"
        )),
        Ok(_) => Ok(()),
    },
    examples: &["250ms", "2s", "1h30m"],
    pattern: Some("^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$"),
    ..FORM
};

static GRACE: Form = Form {
    check: |text| match text.parse::<Span>() {
        Ok(span) if span == Span::seconds(0) => Ok(()),
        _ => (SPAN.check)(text),
    },
    examples: &["10s", "0s"],
    ..SPAN_LIKE
};

const SPAN_LIKE: Form = Form {
    expected: "a length of time",
    pattern: Some("^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$"),
    ..FORM
};

static HOST_AND_PORT: Form = Form {
    expected: "a host and a port",
    check: |text| {
        expect(
            is_host_and_port(text),
            text,
            "a host and a port, such as `10.0.0.7:443`",
        )
    },
    examples: &["10.0.0.7:443", "mail.example.org:25"],
    pattern: Some("^.+:[0-9]{1,5}$"),
    ..FORM
};

static HTTP_PATH: Form = Form {
    expected: "a path",
    check: |text| {
        expect(
            is_http_path(text),
            text,
            "a path of a request, such as `/healthz`",
        )
    },
    examples: &["/healthz"],
    pattern: Some("^/"),
    ..FORM
};

static PROBE_PATH: Form = Form {
    expected: "a path or `none`",
    check: |text| {
        let known = text == "none" || is_http_path(text);
        expect(known, text, "a path such as `/healthz`, or `none`")
    },
    examples: &["/healthz", "none"],
    pattern: Some("^(/|none$)"),
    ..FORM
};

static ROUTE: Form = Form {
    expected: "a host and a path",
    check: |text| super::outside::door(text).map(drop),
    examples: &["shop.localhost/", "shop.localhost/api", "*/"],
    ..FORM
};

static PROTOCOL: Form = words(&["http", "tcp"], "`http` or `tcp`");
static SPREAD_BY: Form = words(&["zone", "node", "region"], "`zone`, `node` or `region`");
static ON_PARTITION: Form = words(&["keep", "stop"], "`keep` or `stop`");
static BALANCE: Form = words(
    &["least-latency", "round-robin"],
    "`least-latency` or `round-robin`",
);
static OPTIONAL: Form = words(&["optional"], "`optional`");
static TRUE: Form = words(&["true"], "`true`");

fn expect(holds: bool, text: &str, expected: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("`{text}` is not {expected}"))
    }
}

fn environment_variable(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let well = text.chars().all(allowed) && text.starts_with(|c: char| !c.is_ascii_digit());
    expect(
        well,
        text,
        "the name of an environment variable: use letters, digits and `_`, not starting with a digit",
    )?;
    if text == "PORT" || text.starts_with("MAINLAND_") {
        return Err(format!(
            "`{text}` is given to every instance, and can't be set"
        ));
    }
    Ok(())
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    let plain = !host.is_empty() && !host.contains([':', '/', '[', ']']);
    let port: Option<u16> = port.parse().ok();
    (bracketed || plain)
        && !text.contains(char::is_whitespace)
        && port.is_some_and(|port| port != 0)
}

fn is_http_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

// ---- mappings --------------------------------------------------------------------------------------------------------------------

static ENV: Entries = Entries {
    key: &VARIABLE,
    value: Shape::Text(&TEXT),
    single: false,
    most: 500,
};

static LABELS: Entries = Entries {
    key: &LABEL,
    value: Shape::Text(&TEXT),
    single: false,
    most: 50,
};

static VOLUMES: Entries = Entries {
    key: &NAME,
    value: Shape::Text(&SIZE),
    single: false,
    most: 20,
};

static NEED_OPTIONS: [Key; 3] = [
    key(
        "timeout",
        Shape::Text(&SPAN),
        "For the whole request, tries included. Default: what the needed service's `traffic.timeout` says.",
    ),
    key(
        "optional",
        Shape::Flag,
        "This service can do without it: it neither delays its start nor makes it unavailable.",
    ),
    key(
        "file",
        Shape::Flag,
        "For a secret: given as a file, whose path is in `NAME_FILE`, instead of as `NAME`.",
    ),
];

static NEED: Entries = Entries {
    key: &NAME,
    value: Shape::OneOf(&[Shape::Text(&OPTIONAL), Shape::Fields(&NEED_OPTIONS)]),
    single: true,
    most: 1,
};

static PROBE_FIELDS: [Key; 6] = [
    key(
        "http",
        Shape::Text(&HTTP_PATH),
        "`GET` of this path answers 200 to 399.",
    ),
    key(
        "exec",
        COMMAND_LIST,
        "This program, run in the working directory, exits 0.",
    ),
    key(
        "connect",
        Shape::Text(&TRUE),
        "The port accepts a connection.",
    ),
    key(
        "every",
        Shape::Text(&SPAN),
        "How often a ready instance is asked. Default: 1s.",
    ),
    key(
        "timeout",
        Shape::Text(&SPAN),
        "How long an answer may take. Default: 1s.",
    ),
    key(
        "failures",
        Shape::Number {
            least: 1,
            most: 100,
        },
        "Failures in a row until it counts as failing. Default: 2.",
    ),
];

const COMMAND_LIST: Shape = Shape::List(&Shape::Text(&TEXT));
const PROBE: Shape = Shape::OneOf(&[Shape::Text(&PROBE_PATH), Shape::Fields(&PROBE_FIELDS)]);

static SPREAD_FIELDS: [Key; 2] = [
    required(
        "by",
        Shape::Text(&SPREAD_BY),
        "What instances are kept apart by.",
    ),
    key(
        "require",
        Shape::Flag,
        "A condition rather than a preference: an instance that would break it stays pending.",
    ),
];

static TRAFFIC: [Key; 4] = [
    key(
        "timeout",
        Shape::Text(&SPAN),
        "For a whole request, tries included. Default: 30s.",
    ),
    key(
        "wait",
        Shape::Text(&SPAN),
        "How long a request may wait for an instance when there is none. Default: 10s.",
    ),
    key(
        "balance",
        Shape::Text(&BALANCE),
        "How an instance is chosen for a request. Default: least-latency.",
    ),
    key(
        "max_in_flight",
        Shape::Number {
            least: 1,
            most: 65_536,
        },
        "Requests at one instance at a time; the rest wait or go elsewhere. Default: 1024.",
    ),
];

static ROLLOUT: [Key; 3] = [
    key(
        "surge",
        Shape::Number {
            least: 0,
            most: REPLICAS_MAX,
        },
        "Instances beyond `replicas` while a change rolls. Default: 1; with a volume 0.",
    ),
    key(
        "unavailable",
        Shape::Number {
            least: 0,
            most: REPLICAS_MAX,
        },
        "Instances fewer than `replicas` while a change rolls. Default: 0; with a volume 1.",
    ),
    key(
        "ready_within",
        Shape::Text(&SPAN),
        "A new instance that is not ready after this stops the change, with the old version serving. Default: 60s.",
    ),
];

const REPLICAS: Key = key(
    "replicas",
    Shape::OneOf(&[
        Shape::Number {
            least: 0,
            most: REPLICAS_MAX,
        },
        Shape::Later("a range of replicas is not supported by this version yet: give a number"),
    ]),
    "How many copies run. Default: 1.",
);
const CPU_KEY: Key = key(
    "cpu",
    Shape::Text(&CPU),
    "Cores: what the scheduler counts, and the weight when a node is busy. Default: 0.1.",
);
const MEMORY_KEY: Key = key(
    "memory",
    Shape::Text(&SIZE),
    "What the scheduler counts, and a hard limit. Default: 128Mi.",
);
const ENV_KEY: Key = key(
    "env",
    Shape::Entries(&ENV),
    "Environment variables. `$VAR` and `${VAR}` in values are filled in from what Mainland gives.",
);
const PROTOCOL_KEY: Key = key(
    "protocol",
    Shape::Text(&PROTOCOL),
    "What the service speaks on `$PORT`. Default: http.",
);
const HEALTH_KEY: Key = key(
    "health",
    PROBE,
    "Failing: no traffic. Default: the port accepts a connection.",
);
const ALIVE_KEY: Key = key(
    "alive",
    PROBE,
    "Failing: the instance is restarted. Default: none.",
);
const SPREAD: &[Shape] = &[Shape::Text(&SPREAD_BY), Shape::Fields(&SPREAD_FIELDS)];
const SPREAD_KEY: Key = key(
    "spread",
    Shape::OneOf(SPREAD),
    "What instances are kept apart by. Default: zone.",
);
const ON_PARTITION_KEY: Key = key(
    "on_partition",
    Shape::Text(&ON_PARTITION),
    "What an instance does on a node that is cut off: `keep` serving, or `stop` before a replacement may start. Default: keep; with a volume stop.",
);
const TRAFFIC_KEY: Key = key(
    "traffic",
    Shape::Fields(&TRAFFIC),
    "What the service asks of those who send it requests.",
);
const ROLLOUT_KEY: Key = key(
    "rollout",
    Shape::Fields(&ROLLOUT),
    "The bounds of a rolling change.",
);
const GRACE_KEY: Key = key(
    "grace",
    Shape::Text(&GRACE),
    "Between SIGTERM and SIGKILL. Default: 10s.",
);
const LABELS_KEY: Key = key(
    "labels",
    Shape::Entries(&LABELS),
    "Only nodes that carry all of these labels run it.",
);

static DEFAULTS: [Key; 13] = [
    REPLICAS,
    CPU_KEY,
    MEMORY_KEY,
    ENV_KEY,
    PROTOCOL_KEY,
    HEALTH_KEY,
    ALIVE_KEY,
    SPREAD_KEY,
    ON_PARTITION_KEY,
    TRAFFIC_KEY,
    ROLLOUT_KEY,
    GRACE_KEY,
    LABELS_KEY,
];

static SERVICE: [Key; 22] = [
    key(
        "run",
        COMMAND_LIST,
        "The program and its arguments, executed without a shell; `$VAR` and `${VAR}` are filled in from its environment.",
    ),
    key(
        "files",
        Shape::Text(&FILES),
        "A file or folder to upload, relative to this file; its copy is the working directory. Left out: the executable itself, when `run` names it by a relative path.",
    ),
    key(
        "external",
        Shape::List(&Shape::Text(&HOST_AND_PORT)),
        "Runs elsewhere, and is only routed to: `host:port` each.",
    ),
    REPLICAS,
    CPU_KEY,
    MEMORY_KEY,
    ENV_KEY,
    key(
        "needs",
        Shape::List(&Shape::OneOf(&[Shape::Text(&NAME), Shape::Entries(&NEED)])),
        "The services and secrets that it uses: a service is given as `NAME_URL`, `NAME_HOST` and `NAME_PORT`, a secret as `NAME`. What is not named can't be called.",
    ),
    PROTOCOL_KEY,
    HEALTH_KEY,
    ALIVE_KEY,
    SPREAD_KEY,
    ON_PARTITION_KEY,
    key(
        "volumes",
        Shape::Entries(&VOLUMES),
        "Folders that outlive the instance, with what the scheduler sets aside for each; their paths are in `NAME_DIR`. Each copy has its own.",
    ),
    TRAFFIC_KEY,
    ROLLOUT_KEY,
    GRACE_KEY,
    LABELS_KEY,
    key(
        "image",
        Shape::Later("images are not supported by this version yet: use `run`"),
        "",
    ),
    key(
        "wasm",
        Shape::Later("components are not supported by this version yet: use `run`"),
        "",
    ),
    key(
        "vm",
        Shape::Later("machines are not supported by this version yet: use `run`"),
        "",
    ),
    key(
        "on",
        Shape::Later("subscriptions are not supported by this version yet"),
        "",
    ),
];

static SERVICES: Entries = Entries {
    key: &NAME,
    value: Shape::Fields(&SERVICE),
    single: false,
    most: SERVICES_MAX,
};

static SECRET: [Key; 2] = [
    key(
        "file",
        Shape::Text(&SECRET_FILE),
        "Its first value is read from this file when the manifest is applied.",
    ),
    key(
        "generate",
        Shape::Number {
            least: SECRET_BYTES_MIN,
            most: SECRET_BYTES_MAX,
        },
        "Its first value is this many random bytes, given as hexadecimal digits.",
    ),
];

static SECRETS: Entries = Entries {
    key: &NAME,
    value: Shape::Fields(&SECRET),
    single: false,
    most: 1000,
};

static ROUTE_FIELDS: [Key; 3] = [
    required("to", Shape::Text(&NAME), "The service that answers."),
    key(
        "rate",
        Shape::Later("rate limits are not supported by this version yet"),
        "",
    ),
    key(
        "auth",
        Shape::Later("authentication at the door is not supported by this version yet"),
        "",
    ),
];

static ROUTES: Entries = Entries {
    key: &ROUTE,
    value: Shape::OneOf(&[Shape::Text(&NAME), Shape::Fields(&ROUTE_FIELDS)]),
    single: false,
    most: 1000,
};

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

static ENVIRONMENT: [Key; 4] = [DEFAULTS_KEY, SERVICES_KEY, SECRETS_KEY, ROUTES_KEY];

static ENVIRONMENTS: Entries = Entries {
    key: &PROJECT_NAME,
    value: Shape::Patch(&ENVIRONMENT),
    single: false,
    most: 100,
};

static ROOT_KEYS: [Key; 13] = [
    required(
        "project",
        Shape::Text(&PROJECT_NAME),
        "The tenant that all of this belongs to. An environment is a project of its own: `NAME-ENVIRONMENT`.",
    ),
    DEFAULTS_KEY,
    SERVICES_KEY,
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
        "databases",
        Shape::Later(
            "databases are not supported by this version yet: run one as a service with a volume",
        ),
        "",
    ),
    key(
        "topics",
        Shape::Later("topics are not supported by this version yet"),
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

/// The whole file.
pub(super) static ROOT: Shape = Shape::Fields(&ROOT_KEYS);
