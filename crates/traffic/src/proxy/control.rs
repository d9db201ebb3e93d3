//! The control socket: snapshots in, reports out, one JSON text a line.
//!
//! The agent that connected last is believed; what comes over an older connection is ignored. So an agent that was restarted takes
//! over at once, whatever it counts, and order on the wire is the only order there is.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::traffic::{FromProxy, ToProxy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};

use super::reports::{TELL_EVERY, Told};
use super::worker::Common;

/// A snapshot of ten thousand endpoints is about 4 MB.
const MOST_LINE_BYTES: u64 = 64 * 1024 * 1024;
const MOST_AGENTS: usize = 8;
/// Between two looks for news.
const TELL_PAUSE: Duration = Duration::from_millis(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the agent is told that this process runs. Silence of two such intervals is the first that means anything to it.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// Binds the socket, mode 0600. A socket that nobody answers on is one that a dead proxy left.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another proxy answers on it",
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts agents for ever; what they say goes to `commands`.
pub async fn serve(listener: UnixListener, common: Arc<Common>, commands: mpsc::Sender<ToProxy>) {
    let newest = Arc::new(AtomicU64::new(0));
    let room = Arc::new(Semaphore::new(MOST_AGENTS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(TELL_EVERY).await;
            continue;
        };
        let number = newest.fetch_add(1, Ordering::Relaxed) + 1;
        let agent = Agent {
            number,
            newest: newest.clone(),
            common: common.clone(),
            commands: commands.clone(),
        };
        tokio::spawn(async move {
            if let Err(error) = agent.serve(stream).await {
                tracing::debug!(%error, "the agent's connection ended");
            }
            drop(place);
        });
    }
}

struct Agent {
    number: u64,
    newest: Arc<AtomicU64>,
    common: Arc<Common>,
    commands: mpsc::Sender<ToProxy>,
}

impl Agent {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, writer) = stream.into_split();
        tokio::select! {
            read = self.listen(reader) => read,
            told = self.tell(writer) => told,
        }
    }

    async fn listen(&self, reader: OwnedReadHalf) -> io::Result<()> {
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = Vec::new();
            let read = (&mut reader)
                .take(MOST_LINE_BYTES)
                .read_until(b'\n', &mut line)
                .await?;
            if read == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                return Err(io::Error::other("a line is too long, or broke off"));
            }
            let message: ToProxy = serde_json::from_slice(&line)?;
            let newest = self.newest.load(Ordering::Relaxed) == self.number;
            if newest && self.commands.send(message).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn tell(&self, mut writer: OwnedWriteHalf) -> io::Result<()> {
        let mut changed = self.common.reports.subscribe();
        let mut counted = self.common.reports.subscribe_counted();
        let mut told = Told::default();
        let mut beat = tokio::time::interval(ALIVE_EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changed.mark_unchanged();
            counted.mark_unchanged();
            let began = Instant::now();
            let (news, held_back) = match self.common.view() {
                Some(view) => told.news(&self.common.reports, &view, self.common.now()),
                None => told.without_view(&self.common.reports),
            };
            write(&mut writer, &news).await?;
            let grown = async {
                let grown = counted.changed().await;
                tokio::time::sleep_until(began + TELL_EVERY).await;
                grown
            };
            let mut news_to_tell = pin!(async {
                tokio::select! {
                    ended = changed.changed() => ended.map_err(io::Error::other),
                    ended = grown => ended.map_err(io::Error::other),
                    () = tokio::time::sleep(TELL_EVERY), if held_back => Ok(()),
                }
            });
            loop {
                tokio::select! {
                    ended = &mut news_to_tell => break ended?,
                    _ = beat.tick() => write(&mut writer, &[FromProxy::Alive]).await?,
                }
            }
            // However often something changes, what is told is put together only so often.
            tokio::time::sleep_until(began + TELL_PAUSE).await;
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, news: &[FromProxy]) -> io::Result<()> {
    let mut text = Vec::new();
    for message in news {
        serde_json::to_writer(&mut text, message)?;
        text.push(b'\n');
    }
    // An agent that reads nothing is dropped; it hears all of it when it connects again.
    tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&text)).await?
}
