//! `mainland shim-exec`: a process of one thread that joins the cgroup, gives up its privileges and becomes the program.
//!
//! It is told what to become on stdin: four bytes of length, big-endian, then JSON. The environment is applied by the exec
//! itself, never to this process: an `LD_PRELOAD` of the workload must not run with the privileges of the agent.
//!
//! | run as | stdin afterwards | a failure is told |
//! |---|---|---|
//! | `shim-exec` | `/dev/null` | as JSON on stdin, which is a socket; it closes by itself when the exec succeeds |
//! |  |  | before the exec it waits there for [`RELEASE`]: until then nothing of the program runs |
//! | `shim-exec attached` | what follows the JSON, or the terminal | on stderr, with exit code 126 or 127 |

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Gid, Signal, Uid};

use super::inherited;
use super::protocol::{Failure, LAUNCH_MAX_BYTES, Program};
use super::step::{Before, Step};
use crate::runtime::{Identity, OWN_PROGRAM};

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const ATTACHED: &str = "attached";
/// The byte on which a trampoline becomes the program.
pub(super) const RELEASE: u8 = b'\n';

/// The entry point of `mainland shim-exec`; `arguments` are those after it. Returns when it failed.
pub fn exec_main(arguments: &[OsString]) -> ExitCode {
    exec_main_with(arguments, &|_| {})
}

/// As [`exec_main`], with something to be done before each step.
pub fn exec_main_with(arguments: &[OsString], before: Before<'_>) -> ExitCode {
    let attached = arguments
        .first()
        .is_some_and(|argument| argument == ATTACHED);
    // A duplicate that closes with the exec: its end of file is the news of success.
    let report = io::stdin().as_fd().try_clone_to_owned();
    let failure = match read_program() {
        Ok(program) => become_program(&program, attached, before),
        Err(error) => failure("reading what to execute", &error),
    };
    let code = match failure.errno {
        Some(number) if number == rustix::io::Errno::NOENT.raw_os_error() => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    if attached {
        // Nobody left to tell when stderr is closed.
        let _ = writeln!(io::stderr(), "{}: {}", failure.doing, failure.error);
    } else if let (Ok(report), Ok(text)) = (report, serde_json::to_vec(&failure)) {
        let _ = File::from(report).write_all(&text);
    }
    ExitCode::from(code)
}

/// What goes to the trampoline's stdin.
pub(crate) fn encode(program: &Program) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(program)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), text.as_slice()].concat())
}

/// Reads exactly the message: what follows on stdin is the program's.
fn read_program() -> io::Result<Program> {
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut length = [0; 4];
    stdin.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if u64::from(length) > LAUNCH_MAX_BYTES {
        return Err(io::Error::other("it is too long"));
    }
    let mut text = vec![0; length as usize];
    stdin.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn failure(doing: &str, error: &io::Error) -> Failure {
    Failure {
        doing: doing.to_owned(),
        errno: error.raw_os_error(),
        error: error.to_string(),
    }
}

/// Returns only when it failed.
fn become_program(program: &Program, attached: bool, before: Before<'_>) -> Failure {
    // Whoever starts it may be killed at any moment: nothing of it is to be left then, wherever it has got to.
    if let Err(error) = die_with_parent(program) {
        return failure("waiting for the shim", &error);
    }
    if !attached {
        before(Step::Join);
    }
    if let Some(cgroup) = &program.cgroup
        && let Err(error) = cgroup.join()
    {
        return Failure {
            doing: "joining the cgroup".to_owned(),
            errno: None,
            error: error.to_string(),
        };
    }
    if let Err(error) = inherited::leave_behind(program) {
        return failure("limiting open files", &error);
    }
    if attached && program.terminal.is_none() {
        // Away from the terminal of an agent that was started by hand, and leader of a group.
        let _ = rustix::process::setsid();
    }
    let terminal = match program
        .terminal
        .as_deref()
        .map(|path| open_terminal(path, program))
        .transpose()
    {
        Ok(terminal) => terminal,
        Err(error) => return failure("opening the terminal", &error),
    };
    if let Err(error) = give_pipes(program, attached) {
        return failure("giving its pipes", &error);
    }
    if let Err(error) = drop_privileges(program) {
        return failure("giving up privileges", &error.into());
    }
    // Asked for anew: the kernel forgets it with a change of user.
    if let Err(error) = die_with_parent(program) {
        return failure("waiting for the shim", &error);
    }
    let Some((name, arguments)) = program.argv.split_first() else {
        return failure("executing", &io::Error::other("no program is named"));
    };
    if !attached {
        if let Err(error) = wait_for_release() {
            return failure("waiting for the shim", &error);
        }
        before(Step::Execute);
    }
    execute(program, name, arguments, terminal, attached)
}

fn execute(
    program: &Program,
    name: &str,
    arguments: &[String],
    terminal: Option<OwnedFd>,
    attached: bool,
) -> Failure {
    let mut command = Command::new(name);
    if name == OWN_PROGRAM {
        // As people know it in `ps`.
        command.arg0("mainland");
    }
    command
        .args(arguments)
        .env_clear()
        .envs(&program.environment.0);
    if let Err(error) = connect(&mut command, terminal, attached) {
        return failure("connecting the terminal", &error);
    }
    if let Err(error) = inherited::leave_the_rest() {
        return failure("unblocking signals", &error);
    }
    let error = command.exec();
    match error.kind() {
        io::ErrorKind::PermissionDenied if !is_found(name, program) => {
            failure(name, &rustix::io::Errno::NOENT.into())
        }
        _ => failure(name, &error),
    }
}

/// Has the kernel kill this process, and what it becomes, when its parent ends.
fn die_with_parent(program: &Program) -> io::Result<()> {
    let Some(parent) = program.dies_with else {
        return Ok(());
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    let lives = rustix::process::getppid().is_some_and(|pid| {
        u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| pid == parent)
    });
    match lives {
        true => Ok(()),
        false => Err(io::Error::other("it has ended")),
    }
}

/// The end of the file says that the shim is gone, or gave up.
fn wait_for_release() -> io::Result<()> {
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    stdin.read_exact(&mut [0; 1])
}

/// Whether a program of that name is anywhere in PATH. A folder there that the user may not look into makes the exec say
/// "permission denied" of a program that does not exist.
fn is_found(name: &str, program: &Program) -> bool {
    let folders = program.environment.0.get("PATH").map_or("", String::as_str);
    name.contains('/')
        || folders
            .split(':')
            .any(|folder| Path::new(folder).join(name).exists())
}

fn connect(command: &mut Command, terminal: Option<OwnedFd>, attached: bool) -> io::Result<()> {
    if let Some(terminal) = terminal {
        command
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal);
    } else if !attached {
        command.stdin(Stdio::null());
    }
    Ok(())
}

/// A new session whose controlling terminal is the one at `path`.
fn open_terminal(path: &str, program: &Program) -> io::Result<OwnedFd> {
    rustix::process::setsid()?;
    let terminal = File::options().read(true).write(true).open(path)?;
    rustix::process::ioctl_tiocsctty(&terminal)?;
    if let Some(identity) = program.identity {
        std::os::unix::fs::fchown(&terminal, Some(identity.uid), Some(identity.gid))?;
    }
    Ok(terminal.into())
}

/// Programs that log to `/dev/stderr` or `/dev/stdout` open the pipes anew, by name: they must be theirs for that.
fn give_pipes(program: &Program, attached: bool) -> io::Result<()> {
    let Some(Identity { uid, gid }) = program.identity else {
        return Ok(());
    };
    let give = |pipe: BorrowedFd<'_>| std::os::unix::fs::fchown(pipe, Some(uid), Some(gid));
    if attached {
        give(io::stdin().as_fd())?;
    }
    give(io::stdout().as_fd())?;
    give(io::stderr().as_fd())
}

/// Groups first, then gid, then uid: each step needs the privilege that a later one gives up. These calls change one thread,
/// and this process has one.
fn drop_privileges(program: &Program) -> Result<(), rustix::io::Errno> {
    if let Some(identity) = program.identity {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        rustix::thread::set_thread_groups(&[gid])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        inherited::give_up_capabilities()?;
    }
    rustix::thread::set_no_new_privs(true)
}
