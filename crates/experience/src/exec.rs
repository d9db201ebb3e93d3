//! A command beside an instance: as its user, in its directory, with its environment.

use std::io::{IsTerminal, Read, Write};

use api::client::{Client, Transport};
use api::stream::{FRAME_MAX_BYTES, Frame};
use api::wire;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use model::ids::ProjectName;
use rustix::termios;
use tokio::sync::mpsc;

use crate::Globals;
use crate::failure::Failure;

/// Frames from the keyboard that wait to be sent.
const QUEUE: usize = 64;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The exit code is that of the command.\n\nExamples:\n  mainland exec web-3 -- env\n  mainland exec -it web -- bash"
)]
pub struct Exec {
    /// With a terminal, as for a shell (the default where this command has one and no command line follows `--`)
    #[arg(short = 't', long)]
    terminal: bool,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    interactive: bool,
    /// An instance, or a service: then one of its ready instances
    name: String,
    /// The command
    #[arg(last = true, default_values = ["sh"])]
    command: Vec<String>,
}

impl Exec {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let (client, path) = self.find(globals).await?;
        let size = terminal_size();
        let head = wire::Exec {
            command: self.command.clone(),
            terminal: self.terminal,
            size,
        };
        let head = Frame::Head(
            serde_json::to_vec(&head)
                .map_err(Failure::from_error)?
                .into(),
        );
        let (frames, queue) = mpsc::channel(QUEUE);
        let _raw = if self.terminal {
            RawTerminal::enter()
        } else {
            None
        };
        self.feed(frames);
        let later = stream::unfold(queue, |mut queue| async move {
            queue.recv().await.map(|frame: Frame| (frame, queue))
        });
        let body = stream::once(async { head })
            .chain(later)
            .map(|frame| frame.encode());
        let mut answer = client.duplex(&path, body).await?;
        while let Some(frame) = answer.next().await {
            match frame? {
                Frame::Stdout(bytes) => write_all(std::io::stdout(), &bytes)?,
                Frame::Stderr(bytes) => write_all(std::io::stderr(), &bytes)?,
                Frame::Exit { code } => return Ok(u8::try_from(code).unwrap_or(1)),
                Frame::Failed(why) => return Err(Failure::failed(String::from_utf8_lossy(&why))),
                _ => {}
            }
        }
        Err(Failure {
            exit_code: crate::failure::UNKNOWN,
            message: "the connection ended before the command did".to_owned(),
        })
    }

    /// The client that reaches the instance, and the path on it: by the server, or with the server gone by the node's own socket.
    async fn find(&self, globals: &Globals) -> Result<(Client, String), Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await;
        let listed = match &project {
            Ok(project) => client.instances(project).await.map(|list| list.items),
            Err(_) => client.projects().await.map(|_| Vec::new()),
        };
        let project = project?;
        match listed {
            Ok(instances) => {
                let name = self.pick(&instances)?;
                Ok((
                    client,
                    format!("/v1/projects/{project}/instances/{name}/exec"),
                ))
            }
            Err(error) => self
                .find_on_nodes(globals, &project)
                .await
                .ok_or(error.into()),
        }
    }

    async fn find_on_nodes(
        &self,
        globals: &Globals,
        project: &ProjectName,
    ) -> Option<(Client, String)> {
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
            if let Ok(name) = self.pick(&here) {
                return Some((client, format!("/v1/instances/{project}/{name}/exec")));
            }
        }
        None
    }

    fn pick(&self, instances: &[wire::InstanceView]) -> Result<String, Failure> {
        let named = instances.iter().find(|one| one.name.as_str() == self.name);
        let of_service = || {
            let mut all = instances
                .iter()
                .filter(|one| one.service.as_str() == self.name);
            all.clone().find(|one| one.ready).or_else(|| all.next())
        };
        let found = named.or_else(of_service).map(|one| one.name.to_string());
        found.ok_or_else(|| {
            Failure::failed(format!("there is no instance or service `{}` [not-found]\n  remedy: `mainland ps` lists them", self.name))
        })
    }

    /// Standard input is read by a thread: a terminal can't be read otherwise without changing it for others.
    fn feed(&self, frames: mpsc::Sender<Frame>) {
        if self.terminal {
            tokio::spawn(send_sizes(frames.clone()));
        }
        if !self.interactive && !self.terminal {
            // With the sender dropped, the body ends: the command sees the end of its input.
            let _ = frames.try_send(Frame::StdinClosed);
            return;
        }
        std::thread::spawn(move || {
            let mut buffer = vec![0; FRAME_MAX_BYTES];
            loop {
                let frame = match std::io::stdin().lock().read(&mut buffer) {
                    Ok(0) | Err(_) => Frame::StdinClosed,
                    Ok(count) => Frame::Stdin(Bytes::copy_from_slice(&buffer[..count])),
                };
                let last = frame == Frame::StdinClosed;
                if frames.blocking_send(frame).is_err() || last {
                    return;
                }
            }
        });
    }
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

fn write_all(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes)?;
    Ok(to.flush()?)
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
