//! A command beside an instance: as its user, in its directory, with its environment.

use std::io::{IsTerminal, Read, Write};
use std::sync::{Arc, OnceLock};

use api::client::{Client, Transport};
use api::stream::{BoxStream, FRAME_MAX_BYTES, Frame};
use api::wire;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use model::ids::{ProjectName, ResourceName};
use rustix::termios;
use tokio::sync::mpsc;

use crate::Globals;
use crate::failure::Failure;

/// Frames from the keyboard that wait to be sent.
const QUEUE: usize = 16;
/// Frames that wait to be written.
const WRITES: usize = 16;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The exit code is that of the command.\n\nExamples:\n  mainland exec web-3 -- env\n  mainland exec web              # a shell\n  mainland exec -it web -- bash"
)]
pub struct Exec {
    /// With a terminal, as for a shell (the default where this command has one and no other follows `--`)
    #[arg(short = 't', long)]
    terminal: bool,
    /// Pass standard input on (the default where no command follows `--`)
    #[arg(short = 'i', long)]
    interactive: bool,
    /// An instance, or a service: then one of its ready instances
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// The command; left out: a shell, `sh`
    #[arg(last = true)]
    command: Vec<String>,
}

impl Exec {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let asked = Asked::of(self.command, self.terminal, self.interactive)?;
        let place = Place::find(globals, &self.name).await?;
        asked.run(&place).await
    }
}

/// A command as a person asked for it, on the streams of this process.
pub(crate) struct Asked {
    command: Vec<String>,
    terminal: bool,
    reads: bool,
}

impl Asked {
    /// Without a command it is a shell.
    pub(crate) fn of(
        command: Vec<String>,
        terminal: bool,
        interactive: bool,
    ) -> Result<Self, Failure> {
        // Its shell would wait for a key for ever.
        if terminal && !std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "-t passes a terminal on, and standard input is none [no-terminal]\n  remedy: leave -t out; -i alone passes on what is piped in",
            ));
        }
        let is_shell = command.is_empty();
        let terminal = terminal || (is_shell && std::io::stdin().is_terminal());
        Ok(Self {
            command: match is_shell {
                true => vec!["sh".to_owned()],
                false => command,
            },
            terminal,
            reads: interactive || terminal || is_shell,
        })
    }

    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let streams = Streams {
            input: self
                .reads
                .then(|| Box::new(std::io::stdin()) as Box<dyn Read + Send>),
            output: Box::new(std::io::stdout()),
        };
        place.run(self.command, self.terminal, streams).await
    }
}

/// Where the streams of a command come from and go to. Its errors go to ours.
pub struct Streams {
    /// `None`: the command sees the end of its input at once.
    pub input: Option<Box<dyn Read + Send>>,
    pub output: Box<dyn Write + Send>,
}

/// An instance, with who reaches it: the server, or with the server gone the node's own socket.
pub struct Place {
    client: Client,
    path: String,
}

impl Place {
    /// What the server makes for this one command: see [`crate::run`].
    pub(crate) fn beside(client: Client, project: &ProjectName, service: &ResourceName) -> Self {
        let path = format!("/v1/projects/{project}/services/{service}/run");
        Self { client, path }
    }

    pub async fn find(globals: &Globals, name: &str) -> Result<Self, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await;
        let listed = match &project {
            Ok(project) => client.instances(project).await.map(|list| list.items),
            Err(_) => client.projects().await.map(|_| Vec::new()),
        };
        let project = project?;
        match listed {
            Ok(instances) => {
                let name = pick(&instances, name)?;
                let path = format!("/v1/projects/{project}/instances/{name}/exec");
                Ok(Self { client, path })
            }
            Err(error) => Self::find_on_nodes(globals, &project, name)
                .await
                .ok_or(error.into()),
        }
    }

    async fn find_on_nodes(globals: &Globals, project: &ProjectName, name: &str) -> Option<Self> {
        for socket in globals.node_sockets() {
            let client = Client::new(Transport::Unix(socket), None);
            let Ok(status) = client.get::<wire::NodeStatus>("/v1/status").await else {
                continue;
            };
            let here: Vec<_> = status
                .instances
                .into_iter()
                .filter(|one| one.project == *project)
                .collect();
            if let Ok(name) = pick(&here, name) {
                let path = format!("/v1/instances/{project}/{name}/exec");
                return Some(Self { client, path });
            }
        }
        None
    }

    /// Runs a command there to its end; returns its exit code. Bytes are taken and given as fast as the slower side does.
    pub async fn run(
        &self,
        command: Vec<String>,
        terminal: bool,
        streams: Streams,
    ) -> Result<u8, Failure> {
        let head = wire::Exec {
            command,
            terminal,
            size: terminal_size(),
            kind: std::env::var("TERM").ok().filter(|_| terminal),
        };
        let head = serde_json::to_vec(&head).map_err(Failure::from_error)?;
        let head = Frame::Head(head.into());
        let (frames, queue) = mpsc::channel(QUEUE);
        let _raw = terminal.then(RawTerminal::enter).flatten();
        let broken = feed(terminal, streams.input, frames);
        let later = stream::unfold(queue, |mut queue| async move {
            queue.recv().await.map(|frame: Frame| (frame, queue))
        });
        let body = stream::once(async { head })
            .chain(later)
            .map(|frame| frame.encode());
        let answer = self.client.duplex(&self.path, body).await?;
        let ended = take(answer, streams.output).await;
        match broken.get() {
            Some(error) => Err(Failure::failed(format!(
                "the input can't be read: {error}; the command was ended"
            ))),
            None => ended,
        }
    }
}

fn pick(instances: &[wire::InstanceView], name: &str) -> Result<String, Failure> {
    let named = instances.iter().find(|one| one.name.as_str() == name);
    let of_service = || {
        let mut all = instances.iter().filter(|one| one.service.as_str() == name);
        all.clone().find(|one| one.ready).or_else(|| all.next())
    };
    let found = named.or_else(of_service).map(|one| one.name.to_string());
    let known = instances.iter().map(|one| one.name.as_str());
    let known = known.chain(instances.iter().map(|one| one.service.as_str()));
    found.ok_or_else(|| {
        let what = format!("there is no instance or service `{name}`");
        Failure::missing(what, name, known, "`mainland ps` lists them")
    })
}

/// Why the input broke off, once it did.
type Broken = Arc<OnceLock<std::io::Error>>;

/// Input is read by a thread: a terminal can't be read otherwise without changing it for others. Where reading fails the frames break off,
/// which ends the command: it must not take what it has got for all.
fn feed(
    terminal: bool,
    input: Option<Box<dyn Read + Send>>,
    frames: mpsc::Sender<Frame>,
) -> Broken {
    let broken = Broken::default();
    if terminal {
        tokio::spawn(send_sizes(frames.clone()));
    }
    let Some(mut input) = input else {
        // Its queue is empty: there is room.
        let _ = frames.try_send(Frame::StdinClosed);
        return broken;
    };
    let tell = broken.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; FRAME_MAX_BYTES];
        loop {
            let frame = match input.read(&mut buffer) {
                Ok(0) => Frame::StdinClosed,
                Ok(count) => Frame::Stdin(Bytes::copy_from_slice(&buffer[..count])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let _ = tell.set(error);
                    return;
                }
            };
            let last = frame == Frame::StdinClosed;
            if frames.blocking_send(frame).is_err() || last {
                return;
            }
        }
    });
    broken
}

/// Writes what comes until the command ends. A thread writes, so that who reads slowly holds up the command and not the connection.
async fn take(
    mut answer: BoxStream<Result<Frame, api::stream::Error>>,
    output: Box<dyn Write + Send>,
) -> Result<u8, Failure> {
    let (chunks, queue) = mpsc::channel(WRITES);
    let writing = tokio::task::spawn_blocking(move || write_all(queue, output));
    let ended = until_end(&mut answer, &chunks).await;
    drop(chunks);
    writing.await.map_err(Failure::from_error)??;
    ended
}

async fn until_end(
    answer: &mut BoxStream<Result<Frame, api::stream::Error>>,
    chunks: &mpsc::Sender<Frame>,
) -> Result<u8, Failure> {
    while let Some(frame) = answer.next().await {
        match frame? {
            frame @ (Frame::Stdout(_) | Frame::Stderr(_)) => {
                let sent = chunks.send(frame).await;
                if sent.is_err() {
                    break;
                }
            }
            Frame::Exit { code } => return Ok(u8::try_from(code).unwrap_or(1)),
            Frame::Failed(why) => return Err(Failure::failed(String::from_utf8_lossy(&why))),
            _ => {}
        }
    }
    Err(Failure::unknown(
        "the connection ended before the command did",
    ))
}

fn write_all(mut queue: mpsc::Receiver<Frame>, mut output: impl Write) -> std::io::Result<()> {
    while let Some(frame) = queue.blocking_recv() {
        match frame {
            Frame::Stdout(bytes) => {
                output.write_all(&bytes)?;
                output.flush()?;
            }
            Frame::Stderr(bytes) => std::io::stderr().write_all(&bytes)?,
            _ => {}
        }
    }
    Ok(())
}

async fn send_sizes(frames: mpsc::Sender<Frame>) {
    let kind = tokio::signal::unix::SignalKind::window_change();
    let Ok(mut changes) = tokio::signal::unix::signal(kind) else {
        return;
    };
    while changes.recv().await.is_some() {
        if let Some((columns, rows)) = terminal_size()
            && frames.send(Frame::Resize { columns, rows }).await.is_err()
        {
            return;
        }
    }
}

fn terminal_size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some((size.ws_col, size.ws_row))
}

/// A terminal that passes every key on; put back when dropped.
struct RawTerminal {
    before: termios::Termios,
}

impl RawTerminal {
    fn enter() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), termios::OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(
            std::io::stdin(),
            termios::OptionalActions::Now,
            &self.before,
        );
    }
}
