//! `topic publish`: one message, from here.

use api::client::Client;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::ids::{ProjectName, ResourceName};

use super::consumers;
use crate::failure::Failure;
use crate::input;
use crate::output::Output;

/// Of a message that is published.
const DATA_MAX_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Returns once the message is on disk. It has at most 1 MiB. Messages of one key are delivered one after the other; a second message of the same id is none.\n\n\
                  Examples:\n  mainland topic publish alerts --type disk.full --key db-1 '{\"left\": \"2 %\"}'\n  \
                  mainland topic publish alerts @event.json"
)]
pub struct Publish {
    /// The topic
    topic: ResourceName,
    /// What happened
    #[arg(long = "type", value_name = "TYPE", default_value = "message")]
    kind: String,
    /// Messages of one key are delivered one after the other
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// What it happened to (default: the key)
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// What tells it from others (default: random)
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The message itself; `@FILE` is a file, `-` standard input
    #[arg(default_value = "-", value_name = "DATA")]
    data: String,
    #[command(flatten)]
    output: Output,
}

impl Publish {
    pub(super) async fn run(self, client: &Client, project: &ProjectName) -> Result<u8, Failure> {
        consumers(client, project, &self.topic, None).await?;
        let data = self.data()?;
        let attributes = self.attributes(project, &data)?;
        let told = client
            .publish(project, &self.topic, attributes, data)
            .await?;
        let position = told.positions.first().copied().unwrap_or_default();
        self.output.print(&told, || match told.duplicates {
            0 => format!("published to {} at position {position}", self.topic),
            _ => format!(
                "{} has it already, at position {position}: nothing was published",
                self.topic
            ),
        })?;
        Ok(0)
    }

    fn data(&self) -> Result<Vec<u8>, Failure> {
        let bytes = match self.data.strip_prefix('@') {
            Some(path) => {
                let file =
                    std::fs::File::open(path).and_then(|file| input::read(file, DATA_MAX_BYTES));
                file.map_err(|error| Failure::failed(format!("{path} can't be read: {error}")))?
            }
            None if self.data == "-" => input::read(std::io::stdin(), DATA_MAX_BYTES)?,
            None => self.data.clone().into_bytes(),
        };
        match bytes.len() > DATA_MAX_BYTES {
            true => Err(Failure::failed("a message has at most 1 MiB")),
            false => Ok(bytes),
        }
    }

    /// As CloudEvents over HTTP have them, in binary mode.
    fn attributes(&self, project: &ProjectName, data: &[u8]) -> Result<HeaderMap, Failure> {
        let id = self.id.clone().unwrap_or_else(crate::idempotency_key);
        // As the topic has it that names none.
        let source = format!("/projects/{project}/topics/{}", self.topic);
        let attributes = [
            ("ce-specversion", Some("1.0")),
            ("ce-id", Some(id.as_str())),
            ("ce-source", Some(source.as_str())),
            ("ce-type", Some(self.kind.as_str())),
            ("ce-partitionkey", self.key.as_deref()),
            (
                "ce-subject",
                self.subject.as_deref().or(self.key.as_deref()),
            ),
            ("content-type", Some(content_type(data))),
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in attributes {
            let Some(value) = value else { continue };
            let encoded =
                HeaderValue::from_str(&percent_encoded(value)).map_err(Failure::from_error)?;
            headers.insert(HeaderName::from_static(name), encoded);
        }
        Ok(headers)
    }
}

/// As CloudEvents over HTTP demand it of attributes: a space, `"`, `%` and all beyond printable ASCII.
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%');
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn content_type(data: &[u8]) -> &'static str {
    match std::str::from_utf8(data) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => {
            "application/json"
        }
        Ok(_) => "text/plain",
        Err(_) => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_named_as_what_it_is() {
        for (data, expected) in [
            (b"{\"a\": 1}".as_slice(), "application/json"),
            (b"hello", "text/plain"),
            (b"\xff", "application/octet-stream"),
        ] {
            assert_eq!(content_type(data), expected);
        }
    }

    #[test]
    fn attributes_travel_as_ascii() {
        for (text, expected) in [
            ("order.placed", "order.placed"),
            ("a b%", "a%20b%25"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(percent_encoded(text), expected);
        }
    }
}
