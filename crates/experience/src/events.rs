//! `events`: what happened, the latest of it or since when.

use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use model::signals::{Event, Level};

use crate::Globals;
use crate::failure::Failure;
use crate::output::{Output, one_of_many, say};

/// How many are shown where nobody says how many, or since when.
const LATEST: usize = 50;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The latest 50, unless it is said how many or since when; with -o all that are kept. With -o and -f each event is a line of JSON, \
                  or a YAML document.\n\n\
                  Examples:\n  mainland events -f\n  mainland events web --since 10m"
)]
pub struct Events {
    /// Only those of this service and its instances, of this instance, or of this node
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// How many from before
    #[arg(long, short = 'n', value_name = "EVENTS")]
    tail: Option<usize>,
    /// Newest first
    #[arg(long, conflicts_with = "follow")]
    reverse: bool,
    /// Only what happened within this time, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = crate::parse_span)]
    since: Option<Duration>,
    /// Those of every project and node
    #[arg(short = 'A', long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

impl Events {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = if self.all {
            None
        } else {
            Some(globals.project(&client).await?)
        };
        let kept = client.events(project.as_ref(), 0).await?.items;
        let newest = kept.last().map_or(0, |event| event.sequence);
        let begin = self.since.map(|since| before(Timestamp::now(), since));
        let events = self.chosen(kept, begin);
        if !self.follow {
            let none = match (&self.name, self.since) {
                (None, None) => "nothing has happened yet".to_owned(),
                (None, Some(_)) => "nothing has happened since".to_owned(),
                (Some(name), _) => format!("nothing is known to have happened to {name}"),
            };
            self.output.list(&events, &none, || {
                events
                    .iter()
                    .map(|event| event_line(event) + "\n")
                    .collect()
            })?;
            return Ok(0);
        }
        for event in &events {
            self.say(event)?;
        }
        let mut stream = client.watch_events(project.as_ref(), newest).await?;
        while let Some(event) = stream.next().await {
            let event = event?;
            if self.is_meant(&event) {
                self.say(&event)?;
            }
        }
        Ok(0)
    }

    /// Of those that are kept, what is asked for.
    fn chosen(&self, mut events: Vec<Event>, begin: Option<Timestamp>) -> Vec<Event> {
        events.retain(|event| self.is_meant(event) && begin.is_none_or(|begin| event.at >= begin));
        let is_bounded = begin.is_some() || !self.output.is_for_people();
        let most = self
            .tail
            .unwrap_or(if is_bounded { usize::MAX } else { LATEST });
        let mut chosen = events.split_off(events.len().saturating_sub(most));
        if self.reverse {
            chosen.reverse();
        }
        chosen
    }

    fn is_meant(&self, event: &Event) -> bool {
        self.name
            .as_deref()
            .is_none_or(|name| is_about(&event.subject, name))
    }

    fn say(&self, event: &Event) -> Result<(), Failure> {
        match self.output.output {
            Some(format) => say(&one_of_many(format, event)?),
            None => say(&event_line(event)),
        }
    }
}

/// So long before now.
pub fn before(now: Timestamp, span: Duration) -> Timestamp {
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}

/// Whether the subject has this name, or is an instance of the service that has.
fn is_about(subject: &str, name: &str) -> bool {
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    match subject.strip_prefix(name) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('-').is_some_and(is_number),
        None => false,
    }
}

fn event_line(event: &Event) -> String {
    let mark = match event.level {
        Level::Info => ' ',
        Level::Warning => '!',
        Level::Error => '✗',
    };
    format!(
        "{} {mark} {}: {}",
        event.at.strftime("%H:%M:%S%.3f"),
        event.subject,
        event.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        events: Events,
    }

    /// 100 events, a second each, of web-1 and web in turn; the last one is of web-front.
    fn kept() -> Vec<Event> {
        let subject = |number: i64| match number {
            100 => "web-front",
            _ if number % 2 == 0 => "web",
            _ => "web-1",
        };
        let event = |number: i64| Event {
            sequence: number.unsigned_abs(),
            at: Timestamp::from_second(number).unwrap(),
            level: Level::Info,
            project: None,
            node: None,
            subject: subject(number).to_owned(),
            reason: model::control::Reason::new("so", "so it was"),
        };
        (1..=100).map(event).collect()
    }

    #[test]
    fn the_latest_are_shown_or_what_is_asked_for() {
        let table: [(&[&str], usize, u64); 8] = [
            (&[], 50, 51),
            (&["-n", "3"], 3, 98),
            (&["--since", "10s"], 11, 90),
            (&["--since", "10s", "-n", "2"], 2, 99),
            (&["-o", "json"], 100, 1),
            (&["web", "-n", "1000"], 99, 1),
            (&["web-1", "-n", "2"], 2, 97),
            (&["--reverse", "-n", "2"], 2, 100),
        ];
        for (words, count, first) in table {
            let parsed = <Words as clap::Parser>::try_parse_from([&["events"], words].concat());
            let asked = parsed.unwrap().events;
            let now = Timestamp::from_second(100).unwrap();
            let begin = asked.since.map(|since| before(now, since));
            let shown = asked.chosen(kept(), begin);
            assert_eq!(
                (shown.len(), shown[0].sequence),
                (count, first),
                "{words:?}"
            );
        }
    }
}
