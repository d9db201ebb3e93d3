//! One more program beside the workload: the trampoline, started by the agent itself and attached to it.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use model::compute::ExitHow;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::process::{Child, Command};

use super::launch::program;
use super::{Options, blocking};
use crate::cgroup::{self, Group, Leaf};
use crate::instance::{self, Record};
use crate::runtime::{Error, ExecCommand, InstanceSpec, Session, TerminalSize};
use crate::shim::encode;
use crate::shim::protocol::Program;

/// For what a command has left to be moved to where it goes on.
const LEFT_PATIENCE: Duration = Duration::from_secs(1);
/// For a command that was given up to be gone.
const END_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn exec(
    options: &Options,
    spec: &InstanceSpec,
    command: ExecCommand,
) -> Result<Session, Error> {
    let failed = |error| Error::io("executing in", &spec.directory)(error);
    let directory = spec.directory.clone();
    let running = blocking(move || running_in(&directory)).await?;
    let cgroup = running
        .ok_or_else(|| Error::NotRunning(spec.instance.clone()))?
        .cgroup;
    let leaf = match &cgroup {
        Some(cgroup) => make_leaf(cgroup).await?,
        None => None,
    };
    let joined = leaf.as_ref().map(|leaf| leaf.joined.clone()).or(cgroup);
    let apart = |child| Apart {
        child,
        leaf,
        is_apart: command.apart,
    };
    let mut program = program(spec, command.argv, joined);
    let work = instance::work_directory(&spec.directory);
    match command.terminal {
        Some(size) => {
            let terminal = Terminal::open(size).map_err(failed)?;
            program.terminal = Some(terminal.path.clone());
            let child = spawn(options, &work, &program).await.map_err(failed)?;
            terminal.session(apart(child)).map_err(failed)
        }
        None => {
            let child = spawn(options, &work, &program).await.map_err(failed)?;
            pipes(apart(child)).map_err(failed)
        }
    }
}

/// The record of what runs there. May wait for a disk.
fn running_in(directory: &Path) -> Result<Option<Record>, Error> {
    // Where there is no descriptor to spare, what runs would look as if it did not.
    match File::open(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("executing in", directory)(error));
        }
        _ => {}
    }
    let record = instance::read_record(directory);
    Ok(record.filter(|record| record.workload.is_alive()))
}

async fn spawn(options: &Options, work: &Path, program: &Program) -> io::Result<Child> {
    let mut command = Command::new(&options.binary);
    command
        .args(["shim-exec", "attached"])
        .env_clear()
        .current_dir(work);
    // It makes itself a session, by which it is ended; until then it is killed alone.
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(stdin) = &mut child.stdin {
        stdin.write_all(&encode(program)?).await?;
    }
    Ok(child)
}

/// One that this process has not made before.
async fn make_leaf(cgroup: &Group) -> Result<Option<Leaf>, Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{number}", std::process::id());
    let cgroup = cgroup.clone();
    blocking(move || Ok(cgroup.leaf(&name)?)).await
}

/// A program beside the workload, with the group that is its own.
struct Apart {
    child: Child,
    leaf: Option<Leaf>,
    is_apart: bool,
}

impl Apart {
    async fn exit(mut self) -> io::Result<ExitHow> {
        let status = self.child.wait().await?;
        if let Some(leaf) = self.leaf.take() {
            // What it left is the instance's.
            if let Err(error) = blocking(move || Ok(leaf.dissolve_within(LEFT_PATIENCE)?)).await {
                tracing::warn!(%error, "the group of a command that has ended stays");
            }
        }
        self.is_apart = false;
        Ok(exit_how(status))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if !self.is_apart {
            // Given up by who asked for it: it is killed alone, and before its group is looked at.
            let _ = self.child.start_kill();
            if let Some(leaf) = self.leaf.take() {
                beside(move || leaf.dissolve_within(END_PATIENCE));
            }
            return;
        }
        // Not yet reaped, its number is its own; and it leads a group.
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        if let Some(leaf) = self.leaf.take() {
            beside(move || leaf.end(END_PATIENCE));
        }
    }
}

/// On a thread of its own. Where none is to be had, the group stays until its instance goes.
fn beside(end: impl FnOnce() -> Result<(), cgroup::Error> + Send + 'static) {
    let thread = std::thread::Builder::new().name("exec-end".to_owned());
    let begun = thread.spawn(move || {
        if let Err(error) = end() {
            tracing::warn!(%error, "a command that was given up is not gone");
        }
    });
    if let Err(error) = begun {
        tracing::warn!(%error, "the group of a command that was given up stays");
    }
}

fn pipes(mut apart: Apart) -> io::Result<Session> {
    let child = &mut apart.child;
    let missing = || io::Error::other("a pipe is missing");
    Ok(Session {
        input: Box::new(child.stdin.take().ok_or_else(missing)?),
        output: Box::new(child.stdout.take().ok_or_else(missing)?),
        error: Box::new(child.stderr.take().ok_or_else(missing)?),
        exit: Box::pin(apart.exit()),
        resize: None,
    })
}

fn exit_how(status: ExitStatus) -> ExitHow {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitHow::Code { code },
        (None, Some(signal)) => ExitHow::Signal { signal },
        (None, None) => ExitHow::Unknown,
    }
}

/// Our side of a pseudo-terminal.
struct Terminal {
    master: File,
    /// Of the other side.
    path: String,
}

impl Terminal {
    fn open(size: TerminalSize) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?
            .into_string()
            .map_err(io::Error::other)?;
        let terminal = Self {
            master: master.into(),
            path,
        };
        resize(&terminal.master, size)?;
        Ok(terminal)
    }

    fn session(self, mut apart: Apart) -> io::Result<Session> {
        rustix::io::ioctl_fionbio(&self.master, true)?;
        let input = Side::new(self.master.try_clone()?)?;
        let output = Side::new(self.master.try_clone()?)?;
        let error = apart
            .child
            .stderr
            .take()
            .ok_or_else(|| io::Error::other("a pipe is missing"))?;
        Ok(Session {
            input: Box::new(input),
            output: Box::new(output),
            error: Box::new(error),
            exit: Box::pin(apart.exit()),
            resize: Some(Box::new(move |size| resize(&self.master, size))),
        })
    }
}

fn resize(master: &File, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}

/// The master as a stream.
struct Side(AsyncFd<File>);

impl Side {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change; a file's never does"
    )]
    fn new(master: File) -> io::Result<Self> {
        Ok(Self(AsyncFd::new(master)?))
    }
}

impl AsyncRead for Side {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let read = guard.try_io(|file| {
                Ok(rustix::io::read(
                    file.get_ref(),
                    buffer.initialize_unfilled(),
                )?)
            });
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // How a terminal says that its other side is closed.
                Ok(Err(error))
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Side {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(written) = guard.try_io(|file| Ok(rustix::io::write(file.get_ref(), bytes)?))
            {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
