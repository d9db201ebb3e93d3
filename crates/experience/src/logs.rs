//! The output of instances, merged.

mod following;

use std::io::Write;
use std::time::Duration;

use api::client::{Client, Transport};
use api::stream::BoxStream;
use api::wire;
use futures_util::StreamExt;
use jiff::Timestamp;
use model::ids::{InstanceName, ProjectName};
use model::signals::{LogLine, Stream};

use following::{Following, Sorter};

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
/// All lines that a node keeps.
const ALL: u32 = u32::MAX;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With the server gone it shows what the nodes of this machine hold. A line of more than 64 KiB comes in pieces. On a terminal \
                  what would act on it (ESC and other control characters, changes of direction) is shown escaped. With -o each line is a line of \
                  JSON, or a YAML document: {at, stream, text, instance}; `partial` is true of a piece that goes on in the next line, `base64` has the \
                  bytes that are no UTF-8.\n\n\
                  Examples:\n  mainland logs web -f\n  mainland logs web-3 --raw > web-3.log\n  mainland logs web-3 --tail 20\n  mainland logs web --since 10m"
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
    /// Print what the program printed, byte by byte, with no time and no name before it
    #[arg(long, conflicts_with = "output")]
    raw: bool,
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

impl Logs {
    pub async fn run(mut self, globals: &Globals) -> Result<u8, Failure> {
        let (project, sources) = sources(globals).await?;
        let now = Timestamp::now();
        let begin = self
            .since
            .map_or(Timestamp::MIN, |since| before(now, since));
        let mut all = Following::default();
        for source in &sources {
            self.open(source, &project, &mut all, self.tail()).await?;
        }
        for source in &sources {
            self.open_culprit(source, &project, &mut all).await;
        }
        if all.seen.is_empty() && self.open_gone(&sources, &project, &mut all).await {
            // Nothing more can come of it.
            self.follow = false;
        }
        if all.seen.is_empty() {
            self.tell_nothing(&sources, &project).await?;
            if !self.follow {
                return Ok(0);
            }
        }
        self.print_all(&sources, &project, all, begin).await?;
        Ok(0)
    }

    /// To the end of all of them; followed, for ever.
    async fn print_all(
        &self,
        sources: &[Source],
        project: &ProjectName,
        mut all: Following,
        begin: Timestamp,
    ) -> Result<(), Failure> {
        let alone = all.seen.len() == 1 && !self.follow;
        let mut sorter = Sorter::default();
        let mut refresh = tokio::time::interval(REFRESH_INTERVAL);
        let mut flush = tokio::time::interval(HOLD);
        loop {
            tokio::select! {
                next = all.merged.next(), if !all.merged.is_empty() => match next {
                    Some((name, Heard::Line(line)))
                        if line.at >= begin && all.is_news(&name, line.at) =>
                    {
                        sorter.hold(name, line);
                    }
                    Some((_, Heard::Line(_))) => {}
                    Some((name, Heard::Broken(error))) => notice(&format!("{name}: {error}")),
                    // A node that was away, or an instance that moved, is heard again from where it was.
                    Some((name, Heard::End)) => drop(self.follow && all.seen.remove(&name)),
                    None => {}
                },
                _ = flush.tick(), if self.follow => {
                    self.print_until(&mut sorter, Timestamp::now() - HOLD, alone)?;
                }
                _ = refresh.tick(), if self.follow => {
                    for source in sources {
                        // A server that is away for a moment is asked again. What is new is heard from its beginning.
                        let _ = self.open(source, project, &mut all, ALL).await;
                    }
                }
                else => return self.print_until(&mut sorter, Timestamp::MAX, alone),
            }
            self.print_until(&mut sorter, Timestamp::MIN, alone)?;
        }
    }

    fn tail(&self) -> u32 {
        // What is printed byte by byte is meant whole.
        let unless_said = match self.since.is_some() || self.raw {
            true => ALL,
            false => LINES,
        };
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
        all: &mut Following,
        tail: u32,
    ) -> Result<(), Failure> {
        for instance in source.instances(project).await? {
            let name = instance.name.to_string();
            let meant = self
                .name
                .as_ref()
                .is_none_or(|meant| *meant == name || *meant == instance.service.as_str());
            if !meant || instance.node.is_none() || all.seen.contains(&name) {
                continue;
            }
            match source.lines(project, &name, tail, self.follow).await {
                Ok(lines) => all.add(name, lines),
                // One node that can't be reached hides only its own; followed, it is asked again.
                Err(failure) => {
                    if all.told.insert(name.clone()) {
                        notice(&format!("{name}: {}", failure.message));
                    }
                    if !self.follow {
                        all.seen.insert(name);
                    }
                }
            }
        }
        Ok(())
    }

    /// Of a service whose newest release failed: what the instance said that it was judged by.
    async fn open_culprit(&self, source: &Source, project: &ProjectName, all: &mut Following) {
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
        if all.seen.contains(&name) {
            return;
        }
        match source.lines(project, &name, self.tail(), false).await {
            Ok(lines) => {
                notice(&format!(
                    "{name} on node {} is gone, and release {} failed because of it; what it printed:",
                    culprit.node, rollout.to
                ));
                all.add(name, lines);
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
        all: &mut Following,
    ) -> bool {
        let Some(name) = &self.name else { return false };
        if name.parse::<InstanceName>().is_err() {
            return false;
        }
        for source in sources {
            if let Ok(lines) = source.lines(project, name, self.tail(), false).await {
                notice(&format!("{name} is gone; what it printed:"));
                all.add(name.clone(), lines);
                return true;
            }
        }
        false
    }

    fn print(&self, name: &str, line: &LogLine, alone: bool) -> Result<(), Failure> {
        match self.output.output {
            None if self.raw => print_raw(line),
            Some(format) => {
                let mut value = serde_json::to_value(line).map_err(Failure::from_error)?;
                value["instance"] = name.into();
                say(&one_of_many(format, &value)?)
            }
            None => say(&text(name, line, alone)),
        }
    }
}

/// What the program printed and nothing else.
fn print_raw(line: &LogLine) -> Result<(), Failure> {
    if line.stream == Stream::Shim {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&raw(line))?;
    stdout.flush()?;
    Ok(())
}

/// With the newline that ended it.
fn raw(line: &LogLine) -> Vec<u8> {
    use base64::Engine;
    let decoded = line
        .base64
        .as_ref()
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
    let mut bytes = decoded.unwrap_or_else(|| line.text.clone().into_bytes());
    if !line.partial {
        bytes.push(b'\n');
    }
    bytes
}

pub fn text(name: &str, line: &LogLine, alone: bool) -> String {
    // Programs that write for other systems end lines so; the rest of what acts on a terminal is shown there.
    let printed = line.text.strip_suffix('\r').unwrap_or(&line.text);
    let said = match line.stream {
        Stream::Shim => format!("-- {printed}"),
        Stream::Stdout | Stream::Stderr => printed.to_owned(),
    };
    let time = line.at.strftime("%H:%M:%S%.3f");
    let more = if line.partial { " [goes on]" } else { "" };
    if alone {
        format!("{time} {said}{more}")
    } else {
        format!("{time} {name} | {said}{more}")
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
    fn raw_is_what_was_printed() {
        let at = Timestamp::UNIX_EPOCH;
        let mut piece = LogLine::new(at, Stream::Stdout, "a\x1b[2J");
        piece.partial = true;
        let mut binary = LogLine::new(at, Stream::Stdout, "\u{fffd}");
        binary.base64 = Some("/w==".to_owned());
        assert_eq!([raw(&piece), raw(&binary)].concat(), b"a\x1b[2J\xff\n");
        let shown = text("web-1", &piece, false);
        assert!(shown.ends_with(" web-1 | a\x1b[2J [goes on]"), "{shown}");
    }
}
