//! System calls that no safe interface offers: each changes something of the calling process alone, which has one thread then.

#![expect(
    unsafe_code,
    reason = "rustix and signal-hook leave these out, since a library may not change them under a program's feet"
)]

use std::io;

/// `IOPRIO_WHO_PROCESS`, and the class by which the kernel takes the priority from the niceness: ioprio_set(2).
const OF_PROCESS: libc::c_int = 1;
const CLASS_NONE: libc::c_int = 0;
/// `KEYCTL_JOIN_SESSION_KEYRING`: keyctl(2).
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// `PER_LINUX`, without any of the flags beside it: personality(2).
const PERSONALITY: libc::c_ulong = 0;

/// `_NSIG`: signal(7). The C library keeps two of them to itself, and hands on that they are ignored.
const SIGNALS: libc::c_int = 64;
/// `struct sigaction` of the kernel, for the default: no handler, no flags, no restorer, nothing blocked.
const DEFAULT: [u64; 4] = [0; 4];

/// Each signal does what it does by default, as for a process that nobody has ignored any for.
pub(crate) fn default_signals() {
    (1..=SIGNALS).for_each(default_signal);
}

/// The end of a child can be waited for: who ignores SIGCHLD has the kernel forget them.
pub(crate) fn default_of_children() {
    default_signal(libc::SIGCHLD);
}

fn default_signal(signal: libc::c_int) {
    // SAFETY: no handler is installed, and the structure, as long as that of the kernel, is read alone. SIGKILL and SIGSTOP are refused, which
    // changes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            DEFAULT.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
}

/// No signal is held back.
pub(crate) fn unblock_signals() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the first call, and read by the second.
    let failed = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    match failed {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The processor is shared as among all.
pub(crate) fn ordinary_scheduler() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live for the call.
    told(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters) }.into())
}

/// The disk as well.
pub(crate) fn ordinary_io_priority() -> io::Result<()> {
    // SAFETY: three numbers.
    told(unsafe { libc::syscall(libc::SYS_ioprio_set, OF_PROCESS, 0, CLASS_NONE) })
}

/// Addresses are random, limits are those of 64 bits: personality(2).
pub(crate) fn ordinary_personality() -> io::Result<()> {
    // SAFETY: it holds for what is executed next.
    told(unsafe { libc::personality(PERSONALITY) }.into())
}

/// A keyring of its own, empty: who possesses a session's keyring can read what its owner put there.
pub(crate) fn own_keyring() -> io::Result<()> {
    // SAFETY: without a name, nothing is read.
    let joined = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    told(joined)
}

fn told(returned: libc::c_long) -> io::Result<()> {
    match returned {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
