//! An event as it goes out again: as headers beside its data, or as one JSON object.

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use super::escape::encoded;
use super::{BASE64, Event, PREFIX, is_json};
use crate::topic::consumer::Position;

/// An event that has its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub position: Position,
    pub event: Arc<Event>,
}

impl Message {
    /// All attributes, with those that the publisher left out; without the content type.
    fn attributes(&self, source: &str) -> Vec<(&str, String)> {
        let given = &self.event.attributes;
        let mut all = vec![("specversion", "1.0".to_owned())];
        let missing = [
            ("id", self.name(source)),
            ("source", source.to_owned()),
            ("type", "message".to_owned()),
            ("time", time(self.event.at_ms)),
        ];
        let missing = missing
            .into_iter()
            .filter(|(name, _)| !given.contains_key(*name));
        all.extend(missing);
        all.extend(
            given
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone())),
        );
        let key = self.event.key.as_ref();
        all.extend(key.map(|key| ("partitionkey", key.to_string())));
        all
    }

    /// `TOPIC/POSITION`: no id that a publisher would give, who numbers what happened to him.
    pub fn name(&self, source: &str) -> String {
        let topic = source.rsplit('/').next().unwrap_or_default();
        format!("{topic}/{}", self.position)
    }

    /// Binary mode: the headers beside the data, with `ce-position` and `ce-attempt`.
    pub fn headers(&self, source: &str, attempt: u32) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(12);
        let mut put = |name: &str, value: &str| {
            let name = HeaderName::try_from(format!("{PREFIX}{name}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(encoded(value))) {
                headers.insert(name, value);
            }
        };
        for (name, value) in self.attributes(source) {
            put(name, &value);
        }
        put("position", &self.position.to_string());
        put("attempt", &attempt.to_string());
        let content_type = self.event.content_type.as_ref();
        if let Some(Ok(value)) = content_type.map(|text| HeaderValue::try_from(text.as_str())) {
            headers.insert(CONTENT_TYPE, value);
        }
        headers
    }

    /// The JSON format, as one object.
    pub fn to_json(&self, source: &str) -> String {
        let mut text = String::with_capacity(self.event.data.len() + 256);
        for (name, value) in self.attributes(source) {
            text.push(if text.is_empty() { '{' } else { ',' });
            let _ = write!(text, "{}:{}", quoted(name), quoted(&value));
        }
        let content_type = self.event.content_type.as_deref();
        if let Some(content_type) = content_type {
            let _ = write!(text, ",\"datacontenttype\":{}", quoted(content_type));
        }
        self.write_data(&mut text, content_type.is_some_and(is_json));
        text.push('}');
        text
    }

    fn write_data(&self, text: &mut String, json: bool) {
        let data = &self.event.data;
        if data.is_empty() {
            return;
        }
        let _ = match std::str::from_utf8(data) {
            Ok(data) if json && is_valid_json(data) => write!(text, ",\"data\":{data}"),
            Ok(data) if !json => write!(text, ",\"data\":{}", quoted(data)),
            _ => write!(text, ",\"data_base64\":\"{}\"", BASE64.encode(data)),
        };
    }
}

fn is_valid_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// RFC 3339.
pub fn time(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok();
    let at = at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map_or_else(String::new, |at| at.to_string())
}
