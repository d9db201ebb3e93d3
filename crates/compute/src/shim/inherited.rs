//! What a program would inherit from whoever typed `mainland up`, and begins without.
//!
//! A shell, `nohup`, `nice` or a unit of systemd say how *we* run; services behave the same whoever started us, and on every node.
//!
//! | what | a program begins with |
//! |---|---|
//! | ignored and blocked signals | none |
//! | `oom_score_adj` | 0 |
//! | niceness, scheduler, priority of I/O, timer slack | the kernel's defaults |
//! | limits, soft and hard | [`LIMITS`]; open files as its spec says |
//! | umask | 022 |
//! | personality | the machine's own: addresses are random |
//! | capabilities, ambient and inheritable ones as well | none, where it is given a user |
//! | session, terminal, keyring of the session | its own, without a terminal, empty |
//!
//! Without privilege a limit is not raised above the hard one of the caller, and a niceness or an `oom_score_adj` that the caller has raised may have to
//! stay. What confines us on purpose stays as well: the processors that we may use, the control group, namespaces, what `seccomp` refuses.

use std::io;

use model::compute::programs::STACK_BYTES;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::protocol::Program;
use crate::calls;

/// Nanoseconds: what the kernel gives the first process.
const TIMER_SLACK: u64 = 50_000;
const UMASK: u32 = 0o022;
const OOM_SCORE_ADJ: &str = "0";
const UNLIMITED: Option<u64> = None;

/// Soft and hard. Defaults of the kernel (include/asm-generic/resource.h), but for: no core files in folders of services, unless the program asks; the
/// stack, of which a quarter is what arguments and environment may take; queued signals, which the kernel derives from the machine's memory (as of 8 GiB).
const LIMITS: [(Resource, Option<u64>, Option<u64>); 14] = [
    (Resource::Cpu, UNLIMITED, UNLIMITED),
    (Resource::Fsize, UNLIMITED, UNLIMITED),
    (Resource::Data, UNLIMITED, UNLIMITED),
    (Resource::Stack, Some(STACK_BYTES), UNLIMITED),
    (Resource::Core, Some(0), UNLIMITED),
    (Resource::Rss, UNLIMITED, UNLIMITED),
    (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
    (Resource::As, UNLIMITED, UNLIMITED),
    (Resource::Locks, UNLIMITED, UNLIMITED),
    (Resource::Sigpending, Some(32_768), Some(32_768)),
    (Resource::Msgqueue, Some(819_200), Some(819_200)),
    (Resource::Nice, Some(0), Some(0)),
    (Resource::Rtprio, Some(0), Some(0)),
    (Resource::Rttime, UNLIMITED, UNLIMITED),
];

/// What takes privileges, as far as there are any.
pub(super) fn leave_behind(program: &Program) -> io::Result<()> {
    let open_files = Some(program.open_files);
    limit(Resource::Nofile, open_files, open_files)?;
    for (resource, soft, hard) in LIMITS {
        let _ = limit(resource, soft, hard);
    }
    if program.cgroup.is_some() {
        // Its group counts its processes; this limit counts those of its user, which other copies have as well.
        let _ = limit(Resource::Nproc, UNLIMITED, UNLIMITED);
    }
    let _ = calls::ordinary_scheduler();
    let _ = rustix::process::setpriority_process(None, 0);
    let _ = calls::ordinary_io_priority();
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(TIMER_SLACK));
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    // Mainland's own processes do without huge pages, to stay small; that is inherited, and no business of the program's. A kernel without them
    // refuses, and nothing is to be undone there.
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    Ok(())
}

/// The soft limit is raised too: an unmodified server should not have to ask. Without privilege the hard limit bounds it.
fn limit(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> io::Result<()> {
    let wanted = Rlimit {
        current: soft,
        maximum: hard,
    };
    if rustix::process::setrlimit(resource, wanted).is_ok() {
        return Ok(());
    }
    let maximum = rustix::process::getrlimit(resource).maximum;
    let current = match (soft, maximum) {
        (Some(soft), Some(most)) => Some(soft.min(most)),
        (soft, most) => soft.or(most),
    };
    Ok(rustix::process::setrlimit(
        resource,
        Rlimit { current, maximum },
    )?)
}

/// Who became another user has no capability: one that root's caller has bound to its processes (capabilities(7), securebits) would stay otherwise.
pub(super) fn give_up_capabilities() -> rustix::io::Result<()> {
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}

/// The last before the program: what would disturb us, too.
pub(super) fn leave_the_rest() -> io::Result<()> {
    // Refused by what confines some containers.
    let _ = calls::own_keyring();
    let _ = calls::ordinary_personality();
    calls::default_signals();
    calls::unblock_signals()
}

/// For a process of our own: children can be waited for, and who is asked to end hears it.
pub fn hear_signals() {
    calls::default_of_children();
    let _ = calls::unblock_signals();
}
