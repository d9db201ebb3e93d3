//! `mainland engine child`: a process of one thread that becomes a program which must not outlive the engine.
//!
//! The kernel's signal on the death of a parent is set by the child itself, between its start and its program. Where the engine's user has no name
//! (a uid that Mainland gave it), `initdb` refuses to run, though PostgreSQL itself does not mind: then it runs in a user namespace in which the
//! same user has the number of a user with a name. It owns what it owned, and may do nothing more.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

pub const WORD: &str = "child";
/// The number of `nobody`, where no file says so.
const NOBODY: u32 = 65534;

/// Under which number its user is to be known to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Itself,
    Named,
}

impl User {
    fn word(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::Named => "named",
        }
    }
}

/// The command that becomes `program` and gets SIGQUIT when this process dies. It must be spawned by the main thread.
pub fn command(program: &Path, user: User) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg("engine")
        .arg(WORD)
        .arg(std::process::id().to_string())
        .arg(user.word())
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
        [parent, user, program, arguments @ ..] => {
            let why = become_program(parent, user, program, arguments);
            eprintln!("{}: {why}", program.display());
        }
        _ => eprintln!("an engine starts this"),
    }
    ExitCode::FAILURE
}

fn become_program(
    parent: &OsString,
    user: &OsString,
    program: &OsString,
    arguments: &[OsString],
) -> String {
    if user == User::Named.word()
        && let Err(error) = take_name()
    {
        return format!(
            "this user has no name on the machine, which initdb asks for, and a user namespace that gives it one is refused ({error}): allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        );
    }
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

#[expect(
    deprecated,
    reason = "safe here: of all that can be unshared, a user namespace concerns neither files nor memory"
)]
fn take_name() -> std::io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let (named, group) = named_user();
    rustix::thread::unshare(UnshareFlags::NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    let own = |named: u32, own: u32| format!("{named} {own} 1");
    std::fs::write("/proc/self/uid_map", own(named, uid.as_raw()))?;
    std::fs::write("/proc/self/gid_map", own(group, gid.as_raw()))
}

/// Any user that is not root.
fn named_user() -> (u32, u32) {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let numbers = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let uid: u32 = fields.next()?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        (uid != 0 && gid != 0).then_some((uid, gid))
    };
    text.lines()
        .filter_map(numbers)
        .next_back()
        .unwrap_or((NOBODY, NOBODY))
}
