//! `services`, and the `defaults` that they share.

use super::texts::{
    ACCESS, AFFINITY, BALANCE, CPU, FILES, GRACE, HOST, HOST_AND_PORT, HTTP_PATH, LABEL,
    LABEL_VALUE, NAME, NEED_WORD, ON_PARTITION, PROBE_PATH, PROTOCOL, SIZE, SPAN, SPREAD_BY, TEXT,
    TRUE, VARIABLE,
};
use super::{Entries, Key, SERVICES_MAX, Shape, key, required};
use crate::compute::ports::PORTS_MAX;

/// What Linux has of them on a machine at most.
const PIDS_MAX: u32 = 4_194_304;

pub(super) static SERVICES: Entries = Entries {
    key: &NAME,
    value: Shape::Fields(&SERVICE),
    single: false,
    unsets: false,
    most: SERVICES_MAX,
};

pub(super) static DEFAULTS: [Key; 14] = [
    REPLICAS,
    CPU_KEY,
    MEMORY_KEY,
    PIDS_KEY,
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

static SERVICE: [Key; 25] = [
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
    PIDS_KEY,
    ENV_KEY,
    key(
        "needs",
        Shape::List(&Shape::OneOf(&[Shape::Text(&NAME), Shape::Entries(&NEED)])),
        "The services, databases, topics and secrets that it uses: a secret is given as `NAME`, everything else as `NAME_URL`, `NAME_HOST` and `NAME_PORT`. What is not named can't be called.",
    ),
    PROTOCOL_KEY,
    key(
        "ports",
        Shape::Entries(&PORTS),
        "Ports beside the one in `PORT`, by name, each with what is spoken there: the program listens on `$PORT_NAME`, and callers find `SERVICE_NAME_URL`.",
    ),
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
        Shape::Entries(&SUBSCRIPTIONS),
        "The topics whose messages are pushed to it, each with the path that takes them.",
    ),
    key(
        "before_deploy",
        COMMAND_LIST,
        "A command that runs once, as the service, before a new version is rolled out. Its failure stops the change, with the old version serving. It runs again where it is not known how it ended, so it must be safe to repeat.",
    ),
];

static PORTS: Entries = Entries {
    key: &NAME,
    value: Shape::Text(&PROTOCOL),
    single: false,
    unsets: false,
    most: PORTS_MAX,
};

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

pub(super) const CPU_KEY: Key = key(
    "cpu",
    Shape::Text(&CPU),
    "Cores: what the scheduler counts, and the weight when a node is busy. Default: 0.1.",
);

pub(super) const MEMORY_KEY: Key = key(
    "memory",
    Shape::Text(&SIZE),
    "What the scheduler counts, and a hard limit. Default: 128Mi.",
);

const PIDS_KEY: Key = key(
    "pids",
    Shape::Number {
        least: 1,
        most: PIDS_MAX as u64,
    },
    "Processes and threads of one instance together, a hard limit. Default: 4096.",
);

const ENV_KEY: Key = key(
    "env",
    Shape::Entries(&ENV),
    "Environment variables. `$VAR` and `${VAR}` in values are filled in from what Mainland gives; `~` unsets one of `defaults`.",
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

pub(super) const LABELS_KEY: Key = key(
    "labels",
    Shape::Entries(&LABELS),
    "Only nodes that carry all of these labels run it.",
);

const COMMAND_LIST: Shape = Shape::List(&Shape::Text(&TEXT));

static ENV: Entries = Entries {
    key: &VARIABLE,
    value: Shape::Text(&TEXT),
    single: false,
    unsets: true,
    most: 500,
};

static LABELS: Entries = Entries {
    key: &LABEL,
    value: Shape::Text(&LABEL_VALUE),
    single: false,
    unsets: false,
    most: 50,
};

static VOLUMES: Entries = Entries {
    key: &NAME,
    value: Shape::Text(&SIZE),
    single: false,
    unsets: false,
    most: 20,
};

static NEED: Entries = Entries {
    key: &NAME,
    value: Shape::OneOf(&[Shape::Text(&NEED_WORD), Shape::Fields(&NEED_OPTIONS)]),
    single: true,
    unsets: false,
    most: 1,
};

static NEED_OPTIONS: [Key; 5] = [
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
    key(
        "access",
        Shape::Text(&ACCESS),
        "For a database: `read` sees every table and changes nothing. For a topic: `consume` pulls from it, besides publishing. Default: write.",
    ),
    key(
        "connections",
        Shape::Number {
            least: 1,
            most: 200,
        },
        "For a database: connections at a time, over all copies of the service. Default: an equal share of those that no other need names.",
    ),
];

static SUBSCRIPTIONS: Entries = Entries {
    key: &NAME,
    value: Shape::OneOf(&[Shape::Text(&HTTP_PATH), Shape::Fields(&SUBSCRIPTION)]),
    single: false,
    unsets: false,
    most: 100,
};

static SUBSCRIPTION: [Key; 3] = [
    required(
        "path",
        Shape::Text(&HTTP_PATH),
        "Where each message is posted, as a CloudEvent. An answer from 200 to 299 is its receipt.",
    ),
    key(
        "max_in_flight",
        Shape::Number {
            least: 1,
            most: 1024,
        },
        "Messages on their way at one time, over all copies of the service. Default: 16.",
    ),
    key(
        "timeout",
        Shape::Text(&SPAN),
        "How long one delivery may take. Default: 30s.",
    ),
];

const PROBE: Shape = Shape::OneOf(&[Shape::Text(&PROBE_PATH), Shape::Fields(&PROBE_FIELDS)]);

static PROBE_FIELDS: [Key; 8] = [
    key(
        "port",
        Shape::Text(&NAME),
        "The named port that is asked. Default: the one in `PORT`.",
    ),
    key(
        "http",
        Shape::Text(&HTTP_PATH),
        "`GET` of this path answers 200 to 399.",
    ),
    key(
        "host",
        Shape::Text(&HOST),
        "The `Host` that `http` asks for. Default: the host of the first route that leads to the service, else the address of the instance.",
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

const SPREAD: &[Shape] = &[Shape::Text(&SPREAD_BY), Shape::Fields(&SPREAD_FIELDS)];

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

static TRAFFIC: [Key; 5] = [
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
    key(
        "affinity",
        Shape::Text(&AFFINITY),
        "Whether the requests of one client go to one instance, by a cookie, as long as it is well. Default: none.",
    ),
];

static ROLLOUT: [Key; 4] = [
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
    key(
        "ready_for",
        Shape::Text(&GRACE),
        "A new instance must stay ready this long, with none of its version ending, before an old one goes. Default: 6s.",
    ),
];

const REPLICAS_MAX: u64 = 1000;
