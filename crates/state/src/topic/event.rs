//! A message's content: a CloudEvent (1.0), as it comes in over HTTP, lies in the topic, and goes out again.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>
//!
//! A publisher need not know CloudEvents: a body with a content type is one, and what it does not say is filled in: the id is `TOPIC/POSITION`, the
//! source is the topic, the type is `message`. Who says that it is a CloudEvent, by `ce-specversion` or by its JSON format, is held to what that
//! demands: [`REQUIRED`].
//!
//! Two publishers that number what happened to them alike have published two events: an event is known by its publisher, its source and its id
//! ([`Event::dedup`]), and one that names an id without a source has its publisher as source, since source and id together are unique (CloudEvents
//! 1.0.2, "id": "Producers MUST ensure that `source` + `id` is unique for each distinct event").

mod escape;
mod message;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use model::ids::ResourceId;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use self::escape::decoded;
pub use self::message::{Message, quoted, time};
use super::consumer::Key;
use super::problem::Problem;

/// Events of one request.
pub const BATCH_MAX: usize = 1000;
/// The body of one request.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// All attributes of one event.
const ATTRIBUTES_BYTES_MAX: usize = 8 << 10;
/// What delivers them takes a hundred headers.
const ATTRIBUTES_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 512;
/// What each message costs beside its own bytes.
pub const OVERHEAD_BYTES: u64 = 64;

/// A publisher that got no answer, as from a topic that is being replaced by a newer version, has long given up by then.
pub const REPEATED_WITHIN_MS: u64 = 10 * 60 * 1000;

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
/// All events in a format of CloudEvents have a media type that begins so.
const ANY_FORMAT: &str = "application/cloudevents";
const PREFIX: &str = "ce-";
const SPECVERSION: &str = "specversion";
/// What every event has, as text that is not empty (CloudEvents 1.0.2, "Required Attributes").
const REQUIRED: [&str; 4] = [SPECVERSION, "id", "source", "type"];
/// What is text where an event has it.
const TEXTS: [&str; 5] = [
    "datacontenttype",
    "dataschema",
    "subject",
    "time",
    "partitionkey",
];
/// Said by the topic, so not by publishers.
const OWN: [&str; 2] = ["attempt", "position"];

/// What a publisher said of one event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// When it was taken, in milliseconds since 1970.
    pub at_ms: u64,
    /// `partitionkey`.
    pub key: Option<Key>,
    /// Two events of one name are one message: `\nPUBLISHER\nSOURCE\nID`, or `\nPUBLISHER\nKEY`, where no part has a line's end in it. The
    /// publisher is `PROJECT/SERVICE`, or nothing where it is not known, as where a person publishes.
    pub dedup: Option<String>,
    /// What it was called by versions that left out the publisher (`SOURCE\nID`, or `KEY`): asked for where the topic still has messages of
    /// theirs, and not stored.
    pub dedup_before: Option<String>,
    pub content_type: Option<String>,
    /// Except `specversion`, `datacontenttype` and `partitionkey`.
    pub attributes: BTreeMap<String, String>,
    pub data: Bytes,
}

impl Event {
    /// What it costs of the topic's size.
    pub fn size(&self) -> u64 {
        let attributes: usize = self.attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let key = self.key.as_ref().map_or(0, |key| key.len());
        let own = self.data.len() + attributes + key + text(&self.dedup) + text(&self.content_type);
        own as u64 + OVERHEAD_BYTES
    }

    /// Checks bounds, and names it.
    fn complete(
        mut self,
        publisher: &Publisher<'_>,
        idempotency_key: Option<String>,
    ) -> Result<Self, Problem> {
        let content_type = self.content_type.as_deref().unwrap_or_default();
        let attributes: usize = self.attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
        if attributes + content_type.len() > ATTRIBUTES_BYTES_MAX {
            return Err(Problem::bad_event("its attributes are more than 8 KiB"));
        }
        if self.attributes.len() > ATTRIBUTES_MAX {
            return Err(Problem::bad_event("it has more than 64 attributes"));
        }
        if HeaderValue::from_str(content_type).is_err() {
            return Err(Problem::bad_event("its datacontenttype is no media type"));
        }
        if self
            .key
            .as_ref()
            .is_some_and(|key| key.len() > KEY_BYTES_MAX)
        {
            return Err(Problem::bad_event(
                "its partitionkey is longer than 512 bytes",
            ));
        }
        self.name(publisher, idempotency_key);
        Ok(self)
    }

    /// Derives what makes it one of a kind.
    fn name(&mut self, publisher: &Publisher<'_>, idempotency_key: Option<String>) {
        let service = publisher
            .service
            .map(ToString::to_string)
            .unwrap_or_default();
        let Some(id) = self.attributes.get("id") else {
            self.dedup = idempotency_key
                .as_ref()
                .map(|key| format!("\n{service}\n{key}"));
            self.dedup_before = idempotency_key.filter(|_| publisher.has_unowned);
            return;
        };
        let named = self.attributes.get("source").cloned();
        let before = named.as_deref().unwrap_or(publisher.topic);
        self.dedup_before = publisher.has_unowned.then(|| format!("{before}\n{id}"));
        let source = named.unwrap_or_else(|| publisher.source());
        self.dedup = Some(format!("\n{service}\n{source}\n{id}"));
        self.attributes.entry("source".to_owned()).or_insert(source);
    }

    /// Whether it is `before` once more, which a version before stored without saying who published it: it says all the same, and comes while who
    /// published that may still repeat it. Later it is another's: two that number alike say the same sooner or later.
    pub fn repeats(&self, before: &Self) -> bool {
        self.at_ms.abs_diff(before.at_ms) <= REPEATED_WITHIN_MS && self.says_the_same(before)
    }

    fn says_the_same(&self, other: &Self) -> bool {
        // Their sources are the same, since their names before are; that of the other may be left out.
        let attributes = |event: &Self| {
            let mut attributes = event.attributes.clone();
            attributes.remove("source");
            attributes
        };
        (&self.key, &self.content_type, &self.data)
            == (&other.key, &other.content_type, &other.data)
            && attributes(self) == attributes(other)
    }
}

/// Who publishes, and where.
#[derive(Debug, Clone, Copy)]
pub struct Publisher<'a> {
    /// The source of the topic.
    pub topic: &'a str,
    /// The service that calls; none where that is not known, or where a person publishes.
    pub service: Option<&'a ResourceId>,
    /// Whether the topic has messages whose names leave out the publisher.
    pub has_unowned: bool,
}

impl Publisher<'_> {
    /// The source of what it gives an id to and names no source of.
    fn source(&self) -> String {
        match self.service {
            Some(id) => format!("/projects/{}/services/{}", id.project, id.name),
            None => self.topic.to_owned(),
        }
    }
}

/// Reads what was published: one event, or a batch of them.
///
/// # Errors
///
/// The request is no event, or too much.
pub fn from_request(
    headers: &HeaderMap,
    body: Bytes,
    publisher: &Publisher<'_>,
    at_ms: u64,
) -> Result<Vec<Event>, Problem> {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::to_str);
    let content_type = content_type
        .transpose()
        .map_err(|_| Problem::bad_request("`Content-Type` is no text"))?;
    let media = content_type.map(media_type).unwrap_or_default();
    let key = headers.get("idempotency-key").map(idempotency_key);
    let key = key.transpose()?;
    let events = match &*media {
        STRUCTURED => vec![structured(parse(&body)?, at_ms)?],
        BATCH => batch(&body, at_ms)?,
        other if other.starts_with(ANY_FORMAT) => return Err(unknown_format(other)),
        _ => vec![binary(headers, content_type, body, at_ms)?],
    };
    let single = events.len() == 1;
    let completed = events.into_iter().enumerate().map(|(index, event)| {
        let key = key.as_ref().map(|key| match single {
            true => key.clone(),
            false => format!("{key}#{index}"),
        });
        event.complete(publisher, key)
    });
    completed.collect()
}

/// One that many would share by mistake, or that is not told from another, would make one message of many.
fn idempotency_key(value: &HeaderValue) -> Result<String, Problem> {
    let key = str::from_utf8(value.as_bytes()).unwrap_or_default();
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(key.to_owned()),
        _ => Err(Problem::bad_request(
            "`Idempotency-Key` is 1 to 512 bytes of UTF-8",
        )),
    }
}

/// An event as one JSON object; data stays as it was written, with each digit.
type Members<'a> = BTreeMap<String, &'a RawValue>;

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(text)
        .map_err(|error| Problem::bad_event(format!("it is not the JSON of one: {error}")))
}

/// Attributes are headers, the body is the data.
fn binary(
    headers: &HeaderMap,
    content_type: Option<&str>,
    body: Bytes,
    at_ms: u64,
) -> Result<Event, Problem> {
    let mut event = Event {
        at_ms,
        content_type: content_type.map(str::to_owned),
        // The body is a piece of a larger buffer, which would stay with it.
        data: Bytes::copy_from_slice(&body),
        ..Event::default()
    };
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(PREFIX) else {
            continue;
        };
        let value = decoded(value.as_bytes())
            .ok_or_else(|| Problem::bad_event(format!("ce-{name} is not UTF-8")))?;
        attribute(&mut event, name, value)?;
    }
    let has = |name: &&str| headers.contains_key(format!("{PREFIX}{name}"));
    match REQUIRED.iter().find(|name| !has(name)) {
        Some(name) if has(&SPECVERSION) => Err(missing(&format!("header `{PREFIX}{name}`"))),
        _ => Ok(event),
    }
}

fn missing(what: &str) -> Problem {
    Problem::bad_event(format!(
        "the {what} is missing, which CloudEvents 1.0 demands"
    ))
}

fn unknown_format(media: &str) -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unknown-format",
        "The format of the event is not known",
        format!("a topic takes {STRUCTURED} and {BATCH}, not {media}"),
    )
}

fn batch(body: &Bytes, at_ms: u64) -> Result<Vec<Event>, Problem> {
    let events: Vec<Members<'_>> = parse(body)?;
    if events.len() > BATCH_MAX {
        let detail = format!(
            "a batch has at most {BATCH_MAX} events, not {}",
            events.len()
        );
        return Err(Problem::too_large(detail));
    }
    events
        .into_iter()
        .map(|event| structured(event, at_ms))
        .collect()
}

/// Everything is one JSON object.
fn structured(mut members: Members<'_>, at_ms: u64) -> Result<Event, Problem> {
    let mut event = Event {
        at_ms,
        ..Event::default()
    };
    let is_said = |name: &&str| {
        members
            .get(*name)
            .is_some_and(|value| value.get() != "null")
    };
    if let Some(name) = REQUIRED.iter().find(|name| !is_said(name)) {
        return Err(missing(&format!("attribute `{name}`")));
    }
    let data = [members.remove("data"), members.remove("data_base64")];
    if let Some(content_type) = members.remove("datacontenttype") {
        event.content_type = scalar("datacontenttype", content_type)?;
    }
    for (name, value) in members {
        if let Some(text) = scalar(&name, value)? {
            attribute(&mut event, &name, text)?;
        }
    }
    event.data = match data {
        [Some(data), None] => json_data(&mut event, data),
        [None, Some(data)] => decoded_base64(data)?,
        [None, None] => Bytes::new(),
        [Some(_), Some(_)] => {
            return Err(Problem::bad_event("it has both `data` and `data_base64`"));
        }
    };
    Ok(event)
}

/// Text is itself unless it is said to be JSON; without a content type, data is JSON.
fn json_data(event: &mut Event, data: &RawValue) -> Bytes {
    let content_type = event
        .content_type
        .get_or_insert_with(|| "application/json".to_owned());
    match serde_json::from_str::<String>(data.get()) {
        Ok(text) if !is_json(content_type) => text.into(),
        _ => data.get().to_owned().into(),
    }
}

fn decoded_base64(data: &RawValue) -> Result<Bytes, Problem> {
    let text = serde_json::from_str::<String>(data.get()).ok();
    let decoded = text.and_then(|text| BASE64.decode(text).ok());
    decoded
        .map(Bytes::from)
        .ok_or_else(|| Problem::bad_event("`data_base64` is no base64"))
}

fn scalar(name: &str, value: &RawValue) -> Result<Option<String>, Problem> {
    match parse(value.get().as_bytes())? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        _ if REQUIRED.contains(&name) || TEXTS.contains(&name) => {
            Err(Problem::bad_event(format!("`{name}` is no text")))
        }
        Value::Bool(_) => Ok(Some(value.get().to_owned())),
        Value::Number(number) if is_integer(&number) => Ok(Some(value.get().to_owned())),
        Value::Number(number) => Err(Problem::bad_event(format!(
            "the attribute `{name}` is {number}: a number of CloudEvents is whole and has 32 bits (write others as text)"
        ))),
        Value::Array(_) | Value::Object(_) => Err(Problem::bad_event(format!(
            "the attribute `{name}` is neither text, number nor truth value"
        ))),
    }
}

/// CloudEvents 1.0.2: a whole number of 32 bits.
fn is_integer(number: &serde_json::Number) -> bool {
    number
        .as_i64()
        .is_some_and(|number| i32::try_from(number).is_ok())
}

/// Whether it has nothing in it that no URI or IRI has (RFC 3986, 2; RFC 3987, 2.2).
fn may_be_uri(text: &str) -> bool {
    !text
        .chars()
        .any(|letter| letter.is_whitespace() || r#"<>"\^`{|}"#.contains(letter))
}

fn attribute(event: &mut Event, name: &str, value: String) -> Result<(), Problem> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if name.is_empty() || !name.bytes().all(good) {
        return Err(Problem::bad_event(format!(
            "the attribute `{name}` is not of lower-case letters and digits"
        )));
    }
    if matches!(name, "id" | "source" | "type" | "partitionkey") && value.is_empty() {
        return Err(Problem::bad_event(format!("`{name}` is empty")));
    }
    // CloudEvents 1.0.2, type system: a String has none, and no other type either.
    if value.chars().any(char::is_control) && name != "datacontenttype" {
        let detail = format!("`{name}` has a control character in it");
        return Err(Problem::bad_event(detail));
    }
    if matches!(name, "source" | "dataschema") && !may_be_uri(&value) {
        return Err(Problem::bad_event(format!(
            "`{name}` is `{value}`, which is no URI (write a space as %20)"
        )));
    }
    match name {
        "specversion" if value == "1.0" => {}
        "specversion" => {
            return Err(Problem::bad_event(format!(
                "specversion is {value}; this topic takes 1.0"
            )));
        }
        "partitionkey" => event.key = Some(value.into()),
        "data" => return Err(Problem::bad_event("the data is the body")),
        "datacontenttype" => drop(event.content_type.get_or_insert(value)),
        "time" if value.parse::<jiff::Timestamp>().is_err() => {
            let detail = format!("the time {value} is not as RFC 3339 has it");
            return Err(Problem::bad_event(detail));
        }
        name if OWN.contains(&name) => {}
        name => {
            let known = event.attributes.insert(name.to_owned(), value);
            if known.is_some() {
                return Err(Problem::bad_event(format!("`{name}` is said twice")));
            }
        }
    }
    Ok(())
}

/// Without its parameters. Upper and lower case mean the same.
fn media_type(content_type: &str) -> String {
    let media = content_type.split(';').next().unwrap_or("").trim();
    media.to_ascii_lowercase()
}

fn is_json(content_type: &str) -> bool {
    let media = media_type(content_type);
    media.ends_with("/json") || media.ends_with("+json")
}

impl Problem {
    fn bad_event(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad-event",
            "This is no event",
            detail,
        )
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The request is too large",
            detail,
        )
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
