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
use tokio::sync::{mpsc, watch};

use crate::agent::Agent;
use crate::{engine, instances, socket};

/// Frames that the other side has not yet taken.
const FRAMES_MAX: usize = 16;
/// For the first frame, which says what to run.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// Without any output after the command has ended: something it started may hold the pipes open for ever.
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
    let mut spec = instances::exec_spec(agent, id).ok_or_else(|| {
        let service = id
            .name
            .as_str()
            .rsplit_once('-')
            .map_or("", |(service, _)| service);
        format!("`{id}` does not run; `mainland run --in {service}` runs a command without it")
    })?;
    if let Some(kind) = exec.kind {
        spec.environment.0.insert("TERM".to_owned(), kind);
    }
    let (columns, rows) = exec.size.unwrap_or((80, 24));
    let command = ExecCommand {
        argv: engine::command_beside(agent, id, exec.command),
        terminal: exec.terminal.then_some(TerminalSize { columns, rows }),
        // A person may want to leave something running.
        apart: false,
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
    let (tell_end, has_ended) = watch::channel(false);
    let reading = tokio::spawn({
        let sender = sender.clone();
        async move {
            tokio::join!(
                forward(output, Frame::Stdout, &sender, has_ended.clone()),
                forward(error, Frame::Stderr, &sender, has_ended.clone())
            )
        }
    });
    let ended = tokio::select! {
        ended = exit => ended,
        // The command is killed first: with its input closed before, it would take what it has got for all.
        _input = gone(feeding, sender) => {
            reading.abort();
            return Err("the other side is gone".to_owned());
        }
    };
    tell_end.send_replace(true);
    let _ = reading.await;
    Ok(code(&ended.map_err(|error| error.to_string())?))
}

type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// The other side takes no more, or its words broke off before it said that its input is closed: then the input is still open.
async fn gone(feeding: impl Future<Output = Fed>, sender: &Sender) -> Option<Input> {
    tokio::select! {
        fed = feeding => match fed {
            Fed::BrokeOff(input) => input,
            Fed::Closed => {
                sender.closed().await;
                None
            }
        },
        () = sender.closed() => None,
    }
}

/// How what the other side types came to an end.
enum Fed {
    Closed,
    BrokeOff(Option<Input>),
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

/// What the other side types. That it is closed closes the command's input; that it breaks off does not.
async fn feed(mut frames: Frames, input: Input, resize: Resize) -> Fed {
    let mut input = Some(input);
    let mut is_closed = false;
    while let Some(Ok(frame)) = frames.next().await {
        match (frame, &mut input) {
            (Frame::Stdin(bytes), Some(open)) => {
                let written = async { open.write_all(&bytes).await.and(open.flush().await) };
                if written.await.is_err() {
                    input = None;
                }
            }
            (Frame::StdinClosed, _) => {
                is_closed = true;
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
    match is_closed {
        true => Fed::Closed,
        false => Fed::BrokeOff(input),
    }
}

/// Carries all that the command says, as fast as the other side takes it.
async fn forward(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    frame: fn(Bytes) -> Frame,
    sender: &Sender,
    has_ended: watch::Receiver<bool>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        let mut room = (&mut from).take(READ_BYTES as u64);
        let read = tokio::select! {
            read = room.read_buf(&mut buffer) => read,
            () = silent_after_end(has_ended.clone()) => return,
        };
        if !read.is_ok_and(|count| count > 0) {
            return;
        }
        let frame = frame(buffer.split().freeze()).encode();
        if sender.send(frame).await.is_err() {
            return;
        }
    }
}

/// Begun anew with each piece of output: a reader that is slow does not cut it short.
async fn silent_after_end(mut has_ended: watch::Receiver<bool>) {
    if has_ended.wait_for(|ended| *ended).await.is_ok() {
        tokio::time::sleep(REST_PATIENCE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::task::{Context, Poll};

    use super::*;

    type Notes = Arc<Mutex<Vec<&'static str>>>;

    /// Notes when it is dropped.
    struct Noted(&'static str, Notes);

    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    /// An input that takes all.
    struct Sink(#[expect(dead_code, reason = "for its drop")] Noted);

    impl AsyncWrite for Sink {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    /// A reader that takes a frame only now and then, more rarely than a silent pipe is given up.
    #[test]
    fn a_slow_reader_gets_all_that_an_ended_command_said() {
        let said = vec![7; READ_BYTES * 3];
        let session = Session {
            input: Box::new(tokio::io::sink()),
            output: Box::new(std::io::Cursor::new(said.clone())),
            error: Box::new(tokio::io::empty()),
            exit: Box::pin(async { Ok(ExitHow::Code { code: 0 }) }),
            resize: None,
        };
        let frames: Frames = Box::pin(futures_util::stream::pending());
        let heard = runtime().block_on(async {
            let (sender, mut receiver) = mpsc::channel(1);
            let carrying = tokio::spawn(async move { carry(session, frames, &sender).await });
            let mut reader = api::stream::FrameReader::default();
            let mut heard = Vec::new();
            while let Some(bytes) = receiver.recv().await {
                reader.push(&bytes);
                while let Ok(Some(Frame::Stdout(bytes))) = reader.next_frame() {
                    heard.extend_from_slice(&bytes);
                }
                tokio::time::sleep(REST_PATIENCE + Duration::from_millis(50)).await;
            }
            assert_eq!(carrying.await.unwrap(), Ok(0));
            heard
        });
        assert!(heard == said, "{} of {} bytes", heard.len(), said.len());
    }

    #[test]
    fn a_pipe_that_nobody_closes_is_given_up() {
        let (output, _held) = tokio::io::duplex(10);
        let session = Session {
            input: Box::new(tokio::io::sink()),
            output: Box::new(output),
            error: Box::new(tokio::io::empty()),
            exit: Box::pin(async { Ok(ExitHow::Code { code: 4 }) }),
            resize: None,
        };
        let frames: Frames = Box::pin(futures_util::stream::pending());
        let (sender, _receiver) = mpsc::channel(1);
        let ended = runtime().block_on(carry(session, frames, &sender));
        assert_eq!(ended, Ok(4));
    }

    #[test]
    fn a_command_whose_input_breaks_off_is_killed_before_it_sees_an_end() {
        let notes = Notes::default();
        let killed = Noted("killed", notes.clone());
        let session = Session {
            input: Box::new(Sink(Noted("input closed", notes.clone()))),
            output: Box::new(tokio::io::empty()),
            error: Box::new(tokio::io::empty()),
            exit: Box::pin(async move {
                let _killed = killed;
                std::future::pending().await
            }),
            resize: None,
        };
        let half = [Ok(Frame::Stdin(Bytes::from_static(b"half")))];
        let frames: Frames = Box::pin(futures_util::stream::iter(half));
        let (sender, _receiver) = mpsc::channel(1);
        let ended = runtime().block_on(carry(session, frames, &sender));
        assert!(ended.is_err());
        assert_eq!(*notes.lock().unwrap(), ["killed", "input closed"]);
    }

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
