//! `topic peek`: messages, without taking them.

use api::client::{Client, Range};
use api::wire::Message;
use jiff::Timestamp;
use model::ids::{ProjectName, ResourceName};

use super::{PAGE, consumers};
use crate::failure::Failure;
use crate::output::{Output, age, size, table};

/// Of a message's data, in a table.
const SHOWN_CHARACTERS: usize = 60;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Oldest first. Nothing is taken: consumers get their messages as ever.\n\n\
                  Examples:\n  mainland topic peek order-events\n  mainland topic peek order-events --after 1200 -n 50 -o json"
)]
pub struct Peek {
    /// The topic
    topic: ResourceName,
    /// Those after this position
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    after: u64,
    /// How many at most, 1 to 1000
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    #[command(flatten)]
    output: Output,
}

impl Peek {
    pub(super) async fn run(self, client: &Client, project: &ProjectName) -> Result<u8, Failure> {
        consumers(client, project, &self.topic, None).await?;
        let wanted = self.count as usize;
        let mut messages: Vec<Message> = Vec::new();
        let mut is_end = false;
        while messages.len() < wanted && !is_end {
            let range = Range {
                after: messages.last().map_or(self.after, |last| last.position),
                limit: u32::try_from(wanted - messages.len()).unwrap_or(PAGE),
            };
            let asking = client.messages(project, &self.topic, &range);
            let page = asking.await?.messages;
            is_end = page.is_empty();
            messages.extend(page);
        }
        let none = match self.after {
            0 => format!("{} has no messages", self.topic),
            after => format!("{} has no messages after {after}", self.topic),
        };
        self.output
            .list(&messages, &none, || message_table(&messages, !is_end))?;
        Ok(0)
    }
}

fn message_table(messages: &[Message], more: bool) -> String {
    let now = Timestamp::now();
    let row = |message: &Message| {
        let attribute = |name| message.attribute(name).unwrap_or_default().to_owned();
        let data = message.data();
        [
            message.position.to_string(),
            age(message.published, now),
            attribute("type"),
            attribute("partitionkey"),
            attribute("id"),
            size(data.len() as u64),
            beginning(&data),
        ]
    };
    let head = ["POSITION", "AGE", "TYPE", "KEY", "ID", "SIZE", "DATA"];
    let mut text = table(head, messages.iter().map(row));
    if let Some(last) = messages.last().filter(|_| more) {
        text.push_str(&format!("what comes after: --after {}\n", last.position));
    }
    text
}

/// Of a message's data, in one line.
fn beginning(data: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(data) else {
        return "(no text)".to_owned();
    };
    let mut printed: String = text
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(SHOWN_CHARACTERS)
        .collect();
    if printed.len() < text.len() {
        printed.push('…');
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_shown_in_one_line() {
        let long = "x".repeat(SHOWN_CHARACTERS + 1);
        let cut = format!("{}…", "x".repeat(SHOWN_CHARACTERS));
        for (data, expected) in [
            (b"{}".as_slice(), "{}"),
            (b"a\nb", "a b"),
            (b"\xff", "(no text)"),
            (long.as_bytes(), &cut),
        ] {
            assert_eq!(beginning(data), expected);
        }
    }
}
