//! The output of instances, merged.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use api::client::{Client, Transport};
use api::stream::BoxStream;
use api::wire;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use jiff::Timestamp;
use model::ids::{InstanceName, ProjectName};
use model::signals::{LogLine, Stream};

use crate::events::before;
use crate::failure::Failure;
use crate::output::{Output, one_of_many, say};
use crate::{Globals, notice};

/// How often a followed service is asked for new instances.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a followed line waits for older ones of other instances.
const HOLD: Duration = Duration::from_millis(100);
/// Of each instance, where nobody says how many or since when.
const LINES: u32 = 100;
/// Lines that are held in memory; beyond it the oldest are printed, sorted or not.
const HELD_MAX: usize = 100_000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With the server gone it shows what the nodes of this machine hold. With -o each line is a line of JSON, or a YAML document: \
                  {at, stream, text, instance}.\n\n\
                  Examples:\n  mainland logs web -f\n  mainland logs web-3 --tail 20\n  mainland logs web --since 10m"
)]
pub struct Logs {
    /// A service (all of its instances) or an instance; left out: everything
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// How many lines of each instance from before (default: 100; with --since all)
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u32>,
    /// Only lines of this time, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = crate::parse_span)]
    since: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

/// Where lines come from: the server, or with the server gone a node of this machine.
struct Source {
    client: Client,
    node: bool,
}

/// What comes of one instance.
enum Heard {
    Line(LogLine),
    Broken(api::stream::Error),
    End,
}

type Lines = BoxStream<(String, Heard)>;

impl Source {
    async fn instances(&self, project: &ProjectName) -> Result<Vec<wire::InstanceView>, Failure> {
        if !self.node {
            return Ok(self.client.instances(project).await?.items);
        }
        let mut instances = self
            .client
            .get::<wire::NodeStatus>("/v1/status")
            .await?
            .instances;
        instances.retain(|instance| instance.project == *project);
        Ok(instances)
    }

    /// Of services and instances.
    async fn names(&self, project: &ProjectName) -> Vec<String> {
        let instances = self.instances(project).await.unwrap_or_default();
        let of = |one: &wire::InstanceView| [one.name.to_string(), one.service.to_string()];
        let mut names: Vec<String> = instances.iter().flat_map(of).collect();
        if !self.node
            && let Ok(status) = self.client.status_of_services(project).await
        {
            names.extend(status.services.iter().map(|one| one.name.to_string()));
        }
        names
    }

    async fn lines(
        &self,
        project: &ProjectName,
        instance: &str,
        tail: u32,
        follow: bool,
    ) -> Result<Lines, Failure> {
        let stream = if self.node {
            let path =
                format!("/v1/instances/{project}/{instance}/logs?tail={tail}&follow={follow}");
            self.client.watch(&path).await?
        } else {
            self.client.logs(project, instance, tail, follow).await?
        };
        let heard = stream.map(|line| line.map_or_else(Heard::Broken, Heard::Line));
        let ends = futures_util::stream::once(std::future::ready(Heard::End));
        let name = instance.to_owned();
        Ok(Box::pin(
            heard.chain(ends).map(move |heard| (name.clone(), heard)),
        ))
    }
}

/// A line that waits: its time, the order in which it came, its instance, and what it says.
type Held = (Timestamp, u64, String, Stream, String);

/// Puts the lines of several instances in the order of their times, as far as they come within [`HOLD`] of each other.
#[derive(Default)]
struct Sorter {
    held: BinaryHeap<Reverse<Held>>,
    count: u64,
}

impl Sorter {
    fn hold(&mut self, name: String, line: LogLine) {
        self.count += 1;
        self.held
            .push(Reverse((line.at, self.count, name, line.stream, line.text)));
    }

    /// The oldest line, if it is older than `before` or too many are held.
    fn take(&mut self, before: Timestamp) -> Option<(String, LogLine)> {
        let due = self.held.len() > HELD_MAX
            || self
                .held
                .peek()
                .is_some_and(|Reverse(oldest)| oldest.0 < before);
        let Reverse((at, _, name, stream, text)) = due.then(|| self.held.pop())??;
        Some((name, LogLine { at, stream, text }))
    }
}

impl Logs {
    pub async fn run(mut self, globals: &Globals) -> Result<u8, Failure> {
        let (project, sources) = sources(globals).await?;
        let now = Timestamp::now();
        let begin = self
            .since
            .map_or(Timestamp::MIN, |since| before(now, since));
        let mut seen = BTreeSet::new();
        let mut merged = SelectAll::new();
        for source in &sources {
            self.open(source, &project, &mut seen, &mut merged, self.tail())
                .await?;
        }
        for source in &sources {
            self.open_culprit(source, &project, &mut seen, &mut merged)
                .await;
        }
        if seen.is_empty()
            && self
                .open_gone(&sources, &project, &mut seen, &mut merged)
                .await
        {
            // Nothing more can come of it.
            self.follow = false;
        }
        if seen.is_empty() {
            self.tell_nothing(&sources, &project).await?;
            if !self.follow {
                return Ok(0);
            }
        }
        let alone = seen.len() == 1 && !self.follow;
        let mut sorter = Sorter::default();
        let mut refresh = tokio::time::interval(REFRESH_INTERVAL);
        let mut flush = tokio::time::interval(HOLD);
        loop {
            tokio::select! {
                next = merged.next(), if !merged.is_empty() => match next {
                    Some((name, Heard::Line(line))) if line.at >= begin => sorter.hold(name, line),
                    Some((_, Heard::Line(_))) => {}
                    Some((name, Heard::Broken(error))) => notice(&format!("{name}: {error}")),
                    // A node that was away, or an instance that moved, is heard again from where it is.
                    Some((name, Heard::End)) => drop(self.follow && seen.remove(&name)),
                    None => {}
                },
                _ = flush.tick(), if self.follow => {
                    self.print_until(&mut sorter, Timestamp::now() - HOLD, alone)?;
                }
                _ = refresh.tick(), if self.follow => {
                    for source in &sources {
                        // A server that is away for a moment is asked again.
                        let _ = self.open(source, &project, &mut seen, &mut merged, 0).await;
                    }
                }
                else => return self.print_until(&mut sorter, Timestamp::MAX, alone).map(|()| 0),
            }
            self.print_until(&mut sorter, Timestamp::MIN, alone)?;
        }
    }

    fn tail(&self) -> u32 {
        let unless_said = self.since.map_or(LINES, |_| u32::MAX);
        self.tail.unwrap_or(unless_said)
    }

    /// A service may have no instances; what is none is said to be none.
    async fn tell_nothing(&self, sources: &[Source], project: &ProjectName) -> Result<(), Failure> {
        let Some(name) = &self.name else {
            notice(&format!("{project} has no instances"));
            return Ok(());
        };
        let mut known = Vec::new();
        for source in sources {
            known.extend(source.names(project).await);
        }
        if known.contains(name) {
            notice(&format!(
                "{name} has no instance that has begun; `mainland explain {name}` says why"
            ));
            return Ok(());
        }
        Err(Failure::missing(
            format!("there is no service or instance `{name}`"),
            name,
            known.iter().map(String::as_str),
            "`mainland status` lists services, `mainland ps` instances",
        ))
    }

    fn print_until(
        &self,
        sorter: &mut Sorter,
        before: Timestamp,
        alone: bool,
    ) -> Result<(), Failure> {
        while let Some((name, line)) = sorter.take(before) {
            self.print(&name, &line, alone)?;
        }
        Ok(())
    }

    async fn open(
        &self,
        source: &Source,
        project: &ProjectName,
        seen: &mut BTreeSet<String>,
        merged: &mut SelectAll<Lines>,
        tail: u32,
    ) -> Result<(), Failure> {
        for instance in source.instances(project).await? {
            let name = instance.name.to_string();
            let meant = self
                .name
                .as_ref()
                .is_none_or(|meant| *meant == name || *meant == instance.service.as_str());
            if !meant || instance.node.is_none() || seen.contains(&name) {
                continue;
            }
            match source.lines(project, &name, tail, self.follow).await {
                Ok(lines) => merged.push(lines),
                // One node that can't be reached hides only its own.
                Err(failure) => notice(&format!("{name}: {}", failure.message)),
            }
            seen.insert(name);
        }
        Ok(())
    }

    /// Of a service whose newest release failed: what the instance said that it was judged by.
    async fn open_culprit(
        &self,
        source: &Source,
        project: &ProjectName,
        seen: &mut BTreeSet<String>,
        merged: &mut SelectAll<Lines>,
    ) {
        let Some(Ok(service)) = self.name.as_ref().map(|name| name.parse()) else {
            return;
        };
        // A node alone knows of no releases.
        if source.node {
            return;
        }
        let Ok(rollout) = source.client.rollout(project, &service).await else {
            return;
        };
        let Some(culprit) = rollout.culprit else {
            return;
        };
        let name = culprit.instance.to_string();
        if seen.contains(&name) {
            return;
        }
        match source.lines(project, &name, self.tail(), false).await {
            Ok(lines) => {
                notice(&format!(
                    "{name} on node {} is gone, and release {} failed because of it; what it printed:",
                    culprit.node, rollout.to
                ));
                merged.push(lines);
                seen.insert(name);
            }
            Err(failure) => notice(&format!(
                "the output of {name}, by which release {} failed, is not to be had: {}",
                rollout.to, failure.message
            )),
        }
    }

    /// A named instance that is gone: the node that had it may have its output still.
    async fn open_gone(
        &self,
        sources: &[Source],
        project: &ProjectName,
        seen: &mut BTreeSet<String>,
        merged: &mut SelectAll<Lines>,
    ) -> bool {
        let Some(name) = &self.name else { return false };
        if name.parse::<InstanceName>().is_err() {
            return false;
        }
        for source in sources {
            if let Ok(lines) = source.lines(project, name, self.tail(), false).await {
                notice(&format!("{name} is gone; what it printed:"));
                merged.push(lines);
                seen.insert(name.clone());
                return true;
            }
        }
        false
    }

    fn print(&self, name: &str, line: &LogLine, alone: bool) -> Result<(), Failure> {
        match self.output.output {
            Some(format) => {
                let mut value = serde_json::to_value(line).map_err(Failure::from_error)?;
                value["instance"] = name.into();
                say(&one_of_many(format, &value)?)
            }
            None => say(&text(name, line, alone)),
        }
    }
}

pub fn text(name: &str, line: &LogLine, alone: bool) -> String {
    // Programs that write for other systems end lines so; the rest of what acts on a terminal is shown there.
    let printed = line.text.strip_suffix('\r').unwrap_or(&line.text);
    let said = match line.stream {
        Stream::Shim => format!("-- {printed}"),
        Stream::Stdout | Stream::Stderr => printed.to_owned(),
    };
    let time = line.at.strftime("%H:%M:%S%.3f");
    if alone {
        format!("{time} {said}")
    } else {
        format!("{time} {name} | {said}")
    }
}

async fn sources(globals: &Globals) -> Result<(ProjectName, Vec<Source>), Failure> {
    let client = globals.client()?;
    match client.health().await {
        Ok(_) => {
            let project = globals.project(&client).await?;
            Ok((
                project,
                vec![Source {
                    client,
                    node: false,
                }],
            ))
        }
        Err(error) => {
            let nodes = globals.node_sockets();
            let project = globals.project(&client).await;
            match (nodes.is_empty(), project) {
                (false, Ok(project)) => {
                    notice(
                        "the server does not answer: these are the lines of this machine's nodes",
                    );
                    let node = |socket| Source {
                        client: Client::new(Transport::Unix(socket), None),
                        node: true,
                    };
                    Ok((project, nodes.into_iter().map(node).collect()))
                }
                _ => Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_is_asked_for_all_of_that_time() {
        #[derive(clap::Parser)]
        struct Words {
            #[command(flatten)]
            logs: Logs,
        }
        let table: [(&[&str], u32); 4] = [
            (&["logs"], 100),
            (&["logs", "-n", "7"], 7),
            (&["logs", "--since", "1m"], u32::MAX),
            (&["logs", "--since", "1m", "-n", "7"], 7),
        ];
        for (words, expected) in table {
            let parsed = <Words as clap::Parser>::try_parse_from(words).unwrap();
            assert_eq!(parsed.logs.tail(), expected, "{words:?}");
        }
    }

    #[test]
    fn lines_of_several_instances_come_in_the_order_of_their_times() {
        let mut sorter = Sorter::default();
        let line = |second| LogLine {
            at: Timestamp::from_second(second).unwrap(),
            stream: Stream::Stdout,
            text: second.to_string(),
        };
        for (name, second) in [("a", 1), ("a", 4), ("b", 2), ("b", 3)] {
            sorter.hold(name.to_owned(), line(second));
        }
        let mut taken = Vec::new();
        while let Some((name, line)) = sorter.take(Timestamp::from_second(4).unwrap()) {
            taken.push(format!("{name}{}", line.text));
        }
        assert_eq!(
            taken,
            ["a1", "b2", "b3"],
            "the newest waits for what may be older"
        );
    }
}
