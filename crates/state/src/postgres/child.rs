//! `mainland engine child`: a process of one thread that becomes a program which must not outlive the engine.
//!
//! The kernel's signal on the death of a parent is set by the child itself, between its start and its program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal};

pub const WORD: &str = "child";
/// This very binary, wherever it lies.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// The command that becomes `program` and gets SIGQUIT when this process dies. It must be spawned by the main thread.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(OWN_PROGRAM);
    command
        .arg("engine")
        .arg(WORD)
        .arg(std::process::id().to_string())
        .arg(program)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC");
    command
}

/// The whole process. `words` are those after [`WORD`]; returns when it failed.
pub fn main(words: &[OsString]) -> ExitCode {
    match words {
        [parent, program, arguments @ ..] => {
            let why = become_program(parent, program, arguments);
            eprintln!("{}: {why}", program.display());
        }
        _ => eprintln!("an engine starts this"),
    }
    ExitCode::FAILURE
}

fn become_program(parent: &OsString, program: &OsString, arguments: &[OsString]) -> String {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::QUIT)) {
        return error.to_string();
    }
    // The parent may have died before it was known.
    let parent_is = rustix::process::getppid().map(Pid::as_raw_nonzero);
    if parent.to_str().and_then(|text| text.parse().ok()) != parent_is {
        return "the engine is gone".to_owned();
    }
    Command::new(program).args(arguments).exec().to_string()
}
