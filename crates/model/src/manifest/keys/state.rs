//! `databases` and `topics`.

use super::service::{CPU_KEY, LABELS_KEY, MEMORY_KEY};
use super::texts::{DATABASE_URL, EXTENSION, EXTENSION_WISH, NAME, SIZE, SPAN, STANDBYS};
use super::{Entries, Key, Shape, key};

pub(super) static DATABASES: Entries = Entries {
    key: &NAME,
    value: Shape::Fields(&DATABASE),
    single: false,
    unsets: false,
    most: 100,
};

static DATABASE: [Key; 10] = [
    key(
        "postgres",
        Shape::Number { least: 9, most: 99 },
        "The major version of PostgreSQL, as installed on the machines.",
    ),
    key(
        "url",
        Shape::Text(&DATABASE_URL),
        "A database that runs elsewhere and is only routed to: `postgres://USER@HOST:PORT/NAME`.",
    ),
    key(
        "password",
        Shape::Text(&NAME),
        "With `url`: the secret that holds the password.",
    ),
    key(
        "standbys",
        Shape::Text(&STANDBYS),
        "Copies that follow the first one. This version runs none.",
    ),
    CPU_KEY,
    key(
        "memory",
        Shape::Text(&SIZE),
        "What the scheduler counts, a hard limit, and what PostgreSQL is tuned by. Default: 256Mi.",
    ),
    key(
        "disk",
        Shape::Text(&SIZE),
        "What the scheduler sets aside. Default: 1Gi.",
    ),
    key(
        "outbox",
        Shape::Text(&NAME),
        "A topic: committed rows of the table of the same name (with `_` for `-`) become its messages.",
    ),
    key(
        "extensions",
        Shape::List(&Shape::OneOf(&[
            Shape::Text(&EXTENSION),
            Shape::Entries(&EXTENSION_WISHES),
        ])),
        "Extensions that Mainland makes as the database's superuser: `[vector, pg_stat_statements]`. `{ vector: drop }` removes one that nothing depends on.",
    ),
    LABELS_KEY,
];

static EXTENSION_WISHES: Entries = Entries {
    key: &EXTENSION,
    value: Shape::Text(&EXTENSION_WISH),
    single: true,
    unsets: false,
    most: 1,
};

pub(super) static TOPICS: Entries = Entries {
    key: &NAME,
    value: Shape::Fields(&TOPIC),
    single: false,
    unsets: false,
    most: 100,
};

static TOPIC: [Key; 6] = [
    key(
        "attempts",
        Shape::Number {
            least: 1,
            most: 100,
        },
        "Deliveries of a message to a consumer until it goes to the dead letter. Default: 5.",
    ),
    key(
        "retention",
        Shape::Fields(&RETENTION),
        "How much of what every consumer is done with is kept. What a consumer waits for is never removed.",
    ),
    CPU_KEY,
    MEMORY_KEY,
    key(
        "disk",
        Shape::Text(&SIZE),
        "What the scheduler sets aside. Default: 1Gi.",
    ),
    LABELS_KEY,
];

static RETENTION: [Key; 2] = [
    key(
        "age",
        Shape::Text(&SPAN),
        "How long a message is kept after every consumer is done with it. Default: 1d.",
    ),
    key(
        "size",
        Shape::Text(&SIZE),
        "How much is kept at most. Default: three quarters of `disk`.",
    ),
];
