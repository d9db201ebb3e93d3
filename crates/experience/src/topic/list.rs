//! `topic list`: how far the consumers of each topic are.

use api::client::Client;
use api::wire::{EngineKind, EngineView};
use model::ids::{ProjectName, ResourceName};
use model::state::{ConsumerStatus, EngineStatus};

use super::silence;
use crate::engines;
use crate::failure::Failure;
use crate::output::{Output, size, span, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mainland topic list\n  mainland topic list -o json")]
pub struct List {
    #[command(flatten)]
    output: Output,
}

impl List {
    pub(super) async fn run(self, client: &Client, project: &ProjectName) -> Result<u8, Failure> {
        let topics = engines::listed(client, project, EngineKind::Topic).await?;
        let none = format!("{project} has no topics");
        self.output.list(&topics, &none, || topic_table(&topics))?;
        Ok(0)
    }
}

/// A line for each consumer of each topic.
pub fn topic_table(topics: &[EngineView]) -> String {
    let head = [
        "TOPIC", "MESSAGES", "SIZE", "CONSUMER", "BACKLOG", "OLDEST", "RETRYING", "DEAD", "NOTE",
    ];
    table(head, topics.iter().flat_map(rows))
}

fn rows(topic: &EngineView) -> Vec<[String; 9]> {
    let name = topic.name.to_string();
    let dash = || "-".to_owned();
    let Some(EngineStatus::Topic {
        messages,
        size: bytes,
        consumers,
    }) = &topic.status
    else {
        return vec![[
            name,
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            silence(topic),
        ]];
    };
    let facts = [name, messages.to_string(), size(bytes.0)];
    if consumers.is_empty() {
        let [name, messages, bytes] = facts;
        let nobody = "no service consumes it".to_owned();
        return vec![[
            name,
            messages,
            bytes,
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            nobody,
        ]];
    }
    let row = |(index, (consumer, status)): (usize, (&ResourceName, &ConsumerStatus))| {
        let [name, messages, bytes] = match index {
            0 => facts.clone(),
            _ => Default::default(),
        };
        let oldest = match status.backlog {
            0 => dash(),
            _ => span(status.oldest_ms),
        };
        [
            name,
            messages,
            bytes,
            consumer.to_string(),
            status.backlog.to_string(),
            oldest,
            status.retrying.to_string(),
            status.dead.to_string(),
            pulled_by(status),
        ]
    };
    consumers.iter().enumerate().map(row).collect()
}

/// Who pulls names its consumers as it likes.
fn pulled_by(status: &ConsumerStatus) -> String {
    let owner = status.owner.as_ref();
    owner.map_or_else(String::new, |owner| format!("pulled by {owner}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_without_an_answer_says_so() {
        let view: EngineView = serde_json::from_value(serde_json::json!({
            "name": "events", "kind": "topic", "state": "failed",
        }))
        .unwrap();
        let text = topic_table(&[view]);
        assert!(text.contains("no answer: failed"), "{text}");
    }
}
