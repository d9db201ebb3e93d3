//! What runs the work: artifacts, the [`runtime::Runtime`] trait with the process runtime, and the shim.
//!
//! | module | what it is |
//! |---|---|
//! | [`artifact`] | a file or folder as bytes with a digest; the store of them on disk; unpacking |
//! | [`runtime`] | the trait that an agent drives, what it hands in and what it hears back |
//! | [`process`] | the runtime for programs of the machine: starts shims, talks to them, adopts them |
//! | [`shim`] | the one parent of one instance: pipes, exit status, lease timer; the trampoline that becomes the workload; the watchdog that ends it when the shim is killed |
//! | [`cgroup`] | cgroups v2, v1 and both: limits, killing all, the out-of-memory counter |
//! | [`lease`] | the clock that processes share, and when a lease without renewal ends |
//! | [`instance`] | the layout of an instance's directory, and the records in it |
//! | [`identity`] | recognising a process: boot id, pid, start time |
//! | [`beneath`] | files inside of what a workload can write to, reached through no link; removing all that it has made |
//! | [`volume`] | whose the files in a volume are |
//! | [`port`] | a free port out of a range |
//!
//! # Processes
//!
//! ```text
//! agent ──spawns──► mainland shim DIRECTORY          own session; one per instance; outlives the agent
//!   ▲                    │ spawns          └──────► mainland shim-watchdog, which waits for the shim's end
//!   │ DIRECTORY/         ▼
//!   └─ shim.sock ─  mainland shim-exec               own process group; joins the cgroup, drops privileges,
//!                        │ exec                      then becomes
//!                        ▼
//!                    the workload
//! ```
//!
//! The environment, secrets included, goes from agent to shim to trampoline over pipes: never in an argument, never on disk.
//!
//! # An instance's directory
//!
//! ```text
//! work/            the working directory: the artifact's copy, volumes linked in as ./NAME
//! logs/            its output; written by the shim through the sink that the binary hands in
//! prepared.json    which artifact `work` is a copy of
//! shim.json        which processes are shim and workload, and their cgroup; written when the workload runs
//! shim.sock        the shim's socket; requests and notices as JSON lines
//! shim.err         the last words of the shim itself
//! exit.json        how the workload ended
//! ```
//!
//! Every folder above it must let others pass (`o+x`), since the workload runs under a uid of its own.

pub mod artifact;
pub mod beneath;
mod calls;
pub mod cgroup;
pub mod identity;
pub mod instance;
pub mod lease;
pub mod port;
pub mod process;
pub mod runtime;
pub mod shim;
pub mod volume;
