//! `topic dead`: what consumers could not take.

use std::io::Write;

use api::client::{Client, Range};
use api::wire::DeadLetter;
use jiff::Timestamp;
use model::ids::{ProjectName, ResourceName};

use super::{PAGE, consumers};
use crate::failure::Failure;
use crate::output::{Output, age, say, size, table};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A message becomes a dead letter of a consumer after the topic's `attempts`; other consumers and messages go on.\n\n\
                  Examples:\n  mainland topic dead order-events\n  mainland topic dead order-events --consumer email --show 42"
)]
pub struct Dead {
    /// The topic
    topic: ResourceName,
    /// Only those of this service
    #[arg(long, value_name = "SERVICE")]
    consumer: Option<ResourceName>,
    /// One message, with all its data, by the position that the list shows
    #[arg(long, value_name = "POSITION")]
    show: Option<u64>,
    #[command(flatten)]
    output: Output,
}

impl Dead {
    pub(super) async fn run(self, client: &Client, project: &ProjectName) -> Result<u8, Failure> {
        let only = self.consumer.as_ref();
        let consumers = consumers(client, project, &self.topic, only).await?;
        match self.show {
            Some(position) => self.show(client, project, &consumers, position).await,
            None => self.list(client, project, &consumers).await,
        }
    }

    async fn list(
        &self,
        client: &Client,
        project: &ProjectName,
        consumers: &[ResourceName],
    ) -> Result<u8, Failure> {
        let mut letters = Vec::new();
        for consumer in consumers {
            letters.extend(self.of_consumer(client, project, consumer).await?);
        }
        let none = format!("{} has no dead letters", self.topic);
        self.output.list(&letters, &none, || {
            dead_table(&self.topic, &letters, Timestamp::now())
        })?;
        Ok(0)
    }

    async fn of_consumer(
        &self,
        client: &Client,
        project: &ProjectName,
        consumer: &ResourceName,
    ) -> Result<Vec<DeadLetter>, Failure> {
        let mut letters: Vec<DeadLetter> = Vec::new();
        loop {
            let range = Range {
                after: letters.last().map_or(0, |last| last.message.position),
                limit: PAGE,
            };
            let asking = client.dead_letters(project, &self.topic, consumer, &range);
            let page = asking.await?.messages;
            if page.is_empty() {
                return Ok(letters);
            }
            letters.extend(page);
        }
    }

    async fn show(
        &self,
        client: &Client,
        project: &ProjectName,
        consumers: &[ResourceName],
        position: u64,
    ) -> Result<u8, Failure> {
        let range = Range {
            after: position.saturating_sub(1),
            limit: 1,
        };
        for consumer in consumers {
            let asking = client.dead_letters(project, &self.topic, consumer, &range);
            let found = asking.await?.messages.pop();
            if let Some(letter) = found.filter(|letter| letter.message.position == position) {
                return self.print(&letter);
            }
        }
        let topic = &self.topic;
        Err(Failure::failed(format!(
            "no dead letter of {topic} is at position {position} [not-found]\n  remedy: `mainland topic dead {topic}` lists them"
        )))
    }

    fn print(&self, letter: &DeadLetter) -> Result<u8, Failure> {
        if self.output.output.is_some() {
            self.output.print(letter, String::new)?;
            return Ok(0);
        }
        say(&described(letter))?;
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&letter.message.data())?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
        Ok(0)
    }
}

fn dead_table(topic: &ResourceName, letters: &[DeadLetter], now: Timestamp) -> String {
    let row = |letter: &DeadLetter| {
        let attribute = |name| {
            letter
                .message
                .attribute(name)
                .unwrap_or_default()
                .to_owned()
        };
        [
            letter.message.position.to_string(),
            letter.consumer.to_string(),
            attribute("partitionkey"),
            attribute("type"),
            letter.attempts.to_string(),
            age(letter.died, now),
            letter.error.clone(),
        ]
    };
    let head = [
        "POSITION",
        "CONSUMER",
        "KEY",
        "TYPE",
        "ATTEMPTS",
        "DIED",
        "LAST ERROR",
    ];
    let mut text = table(head, letters.iter().map(row));
    text.push_str(&format!(
        "\nSee one whole: `mainland topic dead {topic} --show POSITION`. Once mended: `mainland topic redrive {topic} --all`.\n"
    ));
    text
}

fn described(letter: &DeadLetter) -> String {
    let message = &letter.message;
    let attribute = |name| message.attribute(name).unwrap_or("-");
    [
        format!("position   {}", message.position),
        format!("consumer   {}", letter.consumer),
        format!("type       {}", attribute("type")),
        format!("key        {}", attribute("partitionkey")),
        format!("id         {}", attribute("id")),
        format!("published  {}", message.published),
        format!(
            "died       {} after {} attempts",
            letter.died, letter.attempts
        ),
        format!("error      {}", letter.error),
        format!(
            "data       {}, {}\n",
            size(message.data().len() as u64),
            attribute("datacontenttype")
        ),
    ]
    .join("\n")
}
