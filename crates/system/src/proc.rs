//! What the kernel says of processes: alive, memory, CPU time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// Sends a signal to a process that the test has started.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("0 is no process")?;
    rustix::process::kill_process(pid, signal)
        .with_context(|| format!("signal {signal:?} to {pid:?}"))
}

/// Sends a signal to an instance as a whole: what it has started is in its process group, unless it took pains to leave that.
pub fn signal_group(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("0 is no group")?;
    rustix::process::kill_process_group(pid, signal)
        .with_context(|| format!("signal {signal:?} to the group of {pid:?}"))
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    stat_field(pid, 3).is_some_and(|state| state != "Z" && state != "X")
}

/// A field of `/proc/PID/stat`, numbered from 1 as in proc(5); fields from 3 on.
fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    after_name.split(' ').nth(number - 3).map(str::to_owned)
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, 4)?.parse().ok()
}

/// The processes that it has started and that still run.
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// What a process holds in memory.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Proportional set size: shared pages counted by share.
    pub pss_bytes: u64,
    pub rss_bytes: u64,
}

pub fn memory(pid: u32) -> Result<Memory> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| -> Result<u64> {
        let mut lines = rollup.lines();
        let line = lines.find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next());
        let kibibytes: u64 = value.with_context(|| format!("no {name}"))?.parse()?;
        Ok(kibibytes * 1024)
    };
    Ok(Memory {
        pss_bytes: field("Pss:")?,
        rss_bytes: field("Rss:")?,
    })
}

/// What is resident, in bytes (`statm`): told without a walk over the page tables, which would cost the process more than what is measured.
pub fn resident(pid: u32) -> Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = statm.split(' ').nth(1).context("no resident pages")?;
    Ok(pages.parse::<u64>()? * rustix::param::page_size() as u64)
}

/// CPU time of each living thread of a process, to the nanosecond (`schedstat`).
pub fn thread_times(pid: u32) -> BTreeMap<u32, Duration> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return BTreeMap::new();
    };
    let times = entries.flatten().filter_map(|entry| {
        let thread = entry.file_name().to_str()?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let nanoseconds = text.split(' ').next()?.parse().ok()?;
        Some((thread, Duration::from_nanos(nanoseconds)))
    });
    times.collect()
}

/// Every process whose executable is `binary`, or was before it was replaced.
pub fn running(binary: &std::path::Path) -> Vec<u32> {
    let wanted = binary.display().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let link = std::fs::read_link(format!("/proc/{pid}/exe"));
            link.is_ok_and(|exe| exe.display().to_string().trim_end_matches(" (deleted)") == wanted)
        })
        .collect()
}

/// The words a process was started with.
pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}
