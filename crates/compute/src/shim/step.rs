//! The points of a start at which a disk may stall. Tests stop a start at each of them.

/// What a shim, or the trampoline that it starts, is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Enters the instance's directory and takes its lock.
    Enter,
    /// Sets room aside for the exit record.
    Reserve,
    OpenLog,
    Listen,
    /// Starts the trampoline, whose executable is read from disk.
    Spawn,
    /// The trampoline joins the cgroup and gives up its privileges.
    Join,
    /// Writes down which processes these are.
    Record,
    /// Starts the watchdog, whose executable is read from disk.
    Watch,
    /// Lets the trampoline become the program.
    Release,
    /// The trampoline executes the program, which is read from disk.
    Execute,
    /// Tells the agent.
    Reply,
}

impl Step {
    pub const ALL: [Self; 11] = [
        Self::Enter,
        Self::Reserve,
        Self::OpenLog,
        Self::Listen,
        Self::Spawn,
        Self::Join,
        Self::Record,
        Self::Watch,
        Self::Release,
        Self::Execute,
        Self::Reply,
    ];
}

/// Called before each step.
pub type Before<'a> = &'a dyn Fn(Step);
