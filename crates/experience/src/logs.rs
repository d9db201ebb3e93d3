//! The output of instances, merged.

use std::collections::BTreeSet;
use std::time::Duration;

use api::client::{Client, Transport};
use api::stream::BoxStream;
use api::wire;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use model::ids::ProjectName;
use model::signals::{LogLine, Stream};

use crate::failure::Failure;
use crate::output::{Format, Output, say};
use crate::{Globals, notice};

/// How often a followed service is asked for new instances.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mainland logs web -f\n  mainland logs web-3 --tail 20")]
pub struct Logs {
    /// A service (all of its instances) or an instance; left out: everything
    name: Option<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Lines of each instance from before
    #[arg(long, short = 'n', default_value_t = 100)]
    tail: u32,
    #[command(flatten)]
    output: Output,
}

/// Where lines come from: the server, or with the server gone a node of this machine.
struct Source {
    client: Client,
    node: bool,
}

type Lines = BoxStream<(String, Result<LogLine, api::stream::Error>)>;

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
        let name = instance.to_owned();
        Ok(Box::pin(stream.map(move |line| (name.clone(), line))))
    }
}

impl Logs {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let (project, sources) = sources(globals).await?;
        let mut seen = BTreeSet::new();
        let mut merged = SelectAll::new();
        for source in &sources {
            self.open(source, &project, &mut seen, &mut merged, self.tail)
                .await?;
        }
        if seen.is_empty() {
            let what = self.name.as_deref().unwrap_or("any service");
            return Err(Failure::failed(format!(
                "no instance of {what} [not-found]\n  remedy: `mainland ps` lists them"
            )));
        }
        let alone = seen.len() == 1 && !self.follow;
        loop {
            tokio::select! {
                next = merged.next() => match next {
                    Some((name, line)) => self.print(&name, line, alone)?,
                    None if self.follow => tokio::time::sleep(REFRESH_INTERVAL).await,
                    None => return Ok(0),
                },
                () = tokio::time::sleep(REFRESH_INTERVAL), if self.follow => {}
            }
            if self.follow && merged.len() < sources.len().max(1) * 256 {
                for source in &sources {
                    // A server that is away for a moment is asked again.
                    let _ = self
                        .open(source, &project, &mut seen, &mut merged, u32::MAX)
                        .await;
                }
            }
        }
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

    fn print(
        &self,
        name: &str,
        line: Result<LogLine, api::stream::Error>,
        alone: bool,
    ) -> Result<(), Failure> {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                notice(&format!("{name}: {error}"));
                return Ok(());
            }
        };
        match self.output.output {
            Some(Format::Json | Format::Yaml) => {
                let mut value = serde_json::to_value(&line).map_err(Failure::from_error)?;
                value["instance"] = name.into();
                say(&value.to_string())
            }
            None => say(&text(name, &line, alone)),
        }
    }
}

fn text(name: &str, line: &LogLine, alone: bool) -> String {
    let said = match line.stream {
        Stream::Shim => format!("-- {}", line.text),
        Stream::Stdout | Stream::Stderr => line.text.clone(),
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
