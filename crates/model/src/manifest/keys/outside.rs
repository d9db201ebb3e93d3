//! `secrets` and `routes`.

use super::texts::{NAME, ROUTE, ROUTE_TARGET, SECRET_FILE};
use super::{Entries, Key, Shape, key, required};

pub(super) static SECRETS: Entries = Entries {
    key: &NAME,
    value: Shape::Fields(&SECRET),
    single: false,
    unsets: false,
    most: 1000,
};

static SECRET: [Key; 2] = [
    key(
        "file",
        Shape::Text(&SECRET_FILE),
        "Its value is read from this file, as it is, whenever the manifest is applied: another content is a new value.",
    ),
    key(
        "generate",
        Shape::Number {
            least: SECRET_BYTES_MIN,
            most: SECRET_BYTES_MAX,
        },
        "Its value is this many random bytes, made once and given as hexadecimal digits.",
    ),
];

pub(super) static ROUTES: Entries = Entries {
    key: &ROUTE,
    value: Shape::OneOf(&[Shape::Text(&ROUTE_TARGET), Shape::Fields(&ROUTE_FIELDS)]),
    single: false,
    unsets: false,
    most: 1000,
};

static ROUTE_FIELDS: [Key; 3] = [
    required(
        "to",
        Shape::Text(&ROUTE_TARGET),
        "The service that answers, or `SERVICE:PORT` with one of its named ports.",
    ),
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

const SECRET_BYTES_MIN: u64 = 16;
const SECRET_BYTES_MAX: u64 = 1024;
