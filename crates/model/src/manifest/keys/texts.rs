//! The forms of texts: names, sizes, spans, paths, and words that can be listed.

use super::Form;
use crate::compute::programs;
use crate::ids::{ProjectName, ResourceName};
use crate::manifest::check::shown;
use crate::units::{Bytes, MilliCpu, Span};

/// Smaller limits kill every program: they are a forgotten unit.
const MEMORY_MIN: Bytes = Bytes::mebibytes(4);

/// Longer waits are a wrong unit, and would overflow deadlines.
const SPAN_MAX: Span = Span::seconds(7 * 24 * 3600);

/// An argument or a variable: how long it may be is told with all that is filled in (`limits`).
pub(super) static TEXT: Form = Form {
    longest: usize::MAX,
    ..FORM
};

pub(super) static LABEL_VALUE: Form = FORM;

pub(super) static PROJECT_NAME: Form = Form {
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

pub(super) static NAME: Form = Form {
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

pub(super) static VARIABLE: Form = Form {
    expected: "the name of an environment variable",
    check: environment_variable,
    examples: &["LOG_LEVEL"],
    pattern: Some("^[A-Za-z_][A-Za-z0-9_]*$"),
    ..FORM
};

pub(super) static LABEL: Form = Form {
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

pub(super) static FILES: Form = Form {
    expected: "a path",
    check: |text| {
        let relative = !text.is_empty() && !text.starts_with(['/', '~']);
        expect(
            relative,
            text,
            "a path relative to this file, such as `./dist`",
        )?;
        programs::path(text)
    },
    examples: &["./dist"],
    ..FORM
};

pub(super) static SECRET_FILE: Form = Form {
    expected: "a path",
    check: |text| {
        expect(!text.is_empty(), text, "a path, such as `./payment.key`")?;
        programs::path(text)
    },
    examples: &["./payment.key"],
    ..FORM
};

pub(super) static CPU: Form = Form {
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

pub(super) static SIZE: Form = Form {
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

pub(super) static SPAN: Form = Form {
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

pub(super) static GRACE: Form = Form {
    check: |text| match text.parse::<Span>() {
        Ok(span) if span == Span::seconds(0) => Ok(()),
        _ => (SPAN.check)(text),
    },
    examples: &["10s", "0s"],
    ..SPAN_LIKE
};

pub(super) static HOST_AND_PORT: Form = Form {
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

/// As a client would send it: a port may follow.
pub(super) static HOST: Form = Form {
    expected: "a host",
    check: |text| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let known = !text.is_empty() && text.len() <= 255 && text.chars().all(plain);
        expect(
            known,
            text,
            "the name of a host, such as `shop.example.org`",
        )
    },
    examples: &["shop.example.org"],
    pattern: Some("^[-A-Za-z0-9._:\\[\\]]+$"),
    ..FORM
};

pub(super) static HTTP_PATH: Form = Form {
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

pub(super) static PROBE_PATH: Form = Form {
    expected: "a path or `none`",
    check: |text| {
        let known = text == "none" || is_http_path(text);
        expect(known, text, "a path such as `/healthz`, or `none`")
    },
    examples: &["/healthz", "none"],
    pattern: Some("^(/|none$)"),
    ..FORM
};

pub(super) static ROUTE: Form = Form {
    expected: "a host and a path",
    check: |text| crate::manifest::outside::door(text).map(drop),
    examples: &["shop.localhost/", "shop.localhost/api", "*/"],
    ..FORM
};

pub(super) static ROUTE_TARGET: Form = Form {
    expected: "a name",
    check: |text| {
        let read = crate::manifest::outside::target(text);
        read.map(drop).map_err(|error| error.to_string())
    },
    examples: &["checkout", "broker:admin"],
    pattern: Some("^[a-z]([a-z0-9-]{0,48}[a-z0-9])?(:[a-z]([a-z0-9-]{0,48}[a-z0-9])?)?$"),
    ..FORM
};

pub(super) static DATABASE_URL: Form = Form {
    expected: "the address of a database",
    check: |text| crate::manifest::state::external_database(text).map(drop),
    examples: &["postgres://orders@10.0.0.7:5432/orders"],
    pattern: Some("^postgres(ql)?://"),
    ..FORM
};

pub(super) static PROTOCOL: Form = words(&["http", "tcp"], "`http` or `tcp`");
pub(super) static SPREAD_BY: Form =
    words(&["zone", "node", "region"], "`zone`, `node` or `region`");
pub(super) static ON_PARTITION: Form = words(&["keep", "stop"], "`keep` or `stop`");

pub(super) static BALANCE: Form = words(
    &["least-latency", "round-robin"],
    "`least-latency` or `round-robin`",
);

pub(super) static AFFINITY: Form = words(&["none", "cookie"], "`none` or `cookie`");

pub(super) static NEED_WORD: Form = words(
    &["optional", "read", "write", "consume"],
    "`optional`, `read`, `write` or `consume`",
);

pub(super) static STANDBYS: Form = words(
    &["0"],
    "`0`: standbys are not supported by this version yet",
);

pub(super) static EXTENSION: Form = Form {
    expected: "the name of an extension",
    check: crate::state::extensions::check,
    examples: &["vector", "pg_stat_statements"],
    pattern: Some("^[a-z_][a-z0-9_-]{0,62}$"),
    ..FORM
};

pub(super) static EXTENSION_WISH: Form = words(&["drop"], "`drop`");

pub(super) static ACCESS: Form = words(
    &["read", "write", "consume"],
    "`read`, `write` or `consume`",
);
pub(super) static TRUE: Form = words(&["true"], "`true`");

pub(in crate::manifest) fn is_host_and_port(text: &str) -> bool {
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

const FORM: Form = Form {
    expected: "a text",
    check: |_| Ok(()),
    examples: &[],
    words: &[],
    longest: 4096,
    pattern: None,
};

const SPAN_LIKE: Form = Form {
    expected: "a length of time",
    pattern: Some("^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$"),
    ..FORM
};

const NAME_PATTERN: Option<&str> = Some("^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$");

const fn words(words: &'static [&'static str], expected: &'static str) -> Form {
    Form {
        expected,
        words,
        ..FORM
    }
}

fn expect(holds: bool, text: &str, expected: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("{} is not {expected}", shown(text)))
    }
}

fn environment_variable(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let well = text.chars().all(allowed) && text.starts_with(|c: char| !c.is_ascii_digit());
    expect(
        well,
        text,
        "the name of an environment variable: use letters, digits and `_`, not starting with a digit",
    )
}

fn is_http_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}
