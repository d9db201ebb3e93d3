//! Runs a command beside an instance, its streams carried as frames.

use std::sync::Arc;
use std::time::Duration;

use api::client::{Body, streamed};
use api::stream::{BoxStream, Error, FRAME_MAX_BYTES, Frame, frames};
use api::wire;
use bytes::{Bytes, BytesMut};
use compute::runtime::{ExecCommand, Session, TerminalSize};
use futures_util::StreamExt;
use http::{HeaderValue, Response, header};
use hyper::body::Incoming;
use model::compute::ExitHow;
use model::ids::InstanceId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::{instances, socket};

/// Frames that the other side has not yet taken.
const FRAMES_MAX: usize = 16;
/// For the first frame, which says what to run.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// For the rest of the output after the command has ended: something it started may hold the pipes open for ever.
const REST_PATIENCE: Duration = Duration::from_millis(500);
const READ_BYTES: usize = FRAME_MAX_BYTES / 4;

type Sender = mpsc::Sender<Bytes>;

/// The head of the answer is there at once; what follows is the command's.
pub fn answer(agent: Arc<Agent>, id: InstanceId, body: Incoming) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(async move {
        let last = match converse(&agent, &id, frames(body), &sender).await {
            Ok(code) => Frame::Exit { code },
            Err(error) => Frame::Failed(error.into()),
        };
        let _ = sender.send(last.encode()).await;
    });
    let mut response = Response::new(streamed(socket::into_stream(receiver)));
    let frames = HeaderValue::from_static("application/vnd.mainland.frames");
    response.headers_mut().insert(header::CONTENT_TYPE, frames);
    response
}

type Frames = BoxStream<Result<Frame, Error>>;

async fn converse(
    agent: &Agent,
    id: &InstanceId,
    mut frames: Frames,
    sender: &Sender,
) -> Result<i32, String> {
    let head = tokio::time::timeout(HEAD_PATIENCE, frames.next()).await;
    let Ok(Some(Ok(Frame::Head(head)))) = head else {
        return Err("the first frame must say what to run".to_owned());
    };
    let exec: wire::Exec = serde_json::from_slice(&head).map_err(|error| error.to_string())?;
    if exec.command.is_empty() {
        return Err("there is no command".to_owned());
    }
    let spec = instances::exec_spec(agent, id).ok_or_else(|| format!("`{id}` does not run"))?;
    let (columns, rows) = exec.size.unwrap_or((80, 24));
    let command = ExecCommand {
        argv: exec.command,
        terminal: exec.terminal.then_some(TerminalSize { columns, rows }),
    };
    let session = agent
        .runtime
        .exec(&spec, command)
        .await
        .map_err(|error| error.to_string())?;
    carry(session, frames, sender).await
}

/// Until the command ends. When the other side is gone the session is dropped, which kills the command.
async fn carry(session: Session, frames: Frames, sender: &Sender) -> Result<i32, String> {
    let Session {
        input,
        output,
        error,
        exit,
        resize,
    } = session;
    let feeding = feed(frames, input, resize);
    let mut reading = tokio::spawn({
        let sender = sender.clone();
        async move {
            tokio::join!(
                forward(output, Frame::Stdout, &sender),
                forward(error, Frame::Stderr, &sender)
            )
        }
    });
    let ended = tokio::select! {
        ended = exit => ended,
        () = gone(feeding, sender) => {
            reading.abort();
            return Err("the other side is gone".to_owned());
        }
    };
    if tokio::time::timeout(REST_PATIENCE, &mut reading)
        .await
        .is_err()
    {
        reading.abort();
    }
    Ok(code(&ended.map_err(|error| error.to_string())?))
}

/// The other side takes no more, or its words broke off before it said that its input is closed.
async fn gone(feeding: impl Future<Output = Fed>, sender: &Sender) {
    tokio::select! {
        fed = feeding => match fed {
            Fed::BrokeOff => {}
            Fed::Closed => sender.closed().await,
        },
        () = sender.closed() => {}
    }
}

/// How what the other side types came to an end.
enum Fed {
    Closed,
    BrokeOff,
}

/// As a shell tells it: 128 and the signal's number.
fn code(how: &ExitHow) -> i32 {
    match how {
        ExitHow::Code { code } => *code,
        ExitHow::Signal { signal } => 128 + signal,
        ExitHow::OutOfMemory { .. } => 128 + 9,
        _ => 1,
    }
}

type Resize = Option<Box<dyn Fn(TerminalSize) -> std::io::Result<()> + Send + Sync>>;

/// What the other side types. Its end closes the command's input.
async fn feed(
    mut frames: Frames,
    input: Box<dyn AsyncWrite + Send + Unpin>,
    resize: Resize,
) -> Fed {
    let mut input = Some(input);
    let mut fed = Fed::BrokeOff;
    while let Some(Ok(frame)) = frames.next().await {
        match (frame, &mut input) {
            (Frame::Stdin(bytes), Some(open)) => {
                let written = async { open.write_all(&bytes).await.and(open.flush().await) };
                if written.await.is_err() {
                    input = None;
                }
            }
            (Frame::StdinClosed, _) => {
                fed = Fed::Closed;
                if let Some(mut open) = input.take() {
                    let _ = open.shutdown().await;
                }
            }
            (Frame::Resize { columns, rows }, _) => {
                if let Some(resize) = &resize {
                    let _ = resize(TerminalSize { columns, rows });
                }
            }
            _ => {}
        }
    }
    fed
}

async fn forward(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    frame: fn(Bytes) -> Frame,
    sender: &Sender,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        let mut room = (&mut from).take(READ_BYTES as u64);
        match room.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if sender
            .send(frame(buffer.split().freeze()).encode())
            .await
            .is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_as_a_shell_tells_them() {
        let table = [
            (ExitHow::Code { code: 3 }, 3),
            (ExitHow::Signal { signal: 15 }, 143),
            (ExitHow::Unknown, 1),
        ];
        for (how, expected) in table {
            assert_eq!(code(&how), expected);
        }
    }
}
