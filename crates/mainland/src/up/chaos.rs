//! `mainland chaos kill`: the power cut of one node that `up` pretends to be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use experience::Globals;
use experience::failure::Failure;
use rustix::process::Signal;

use super::layout::{EDGE, Layout};
use super::process::Identity;

/// Processes that are started while others are killed are found in a later round.
const ROUNDS: u32 = 5;
/// For the watchdogs of shims that were killed to end what those have started.
const WATCHDOGS_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at them.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The kinds of process on a node.
const KINDS: [&[u8]; 3] = [b"agent", b"proxy", b"shim"];
/// Beside each shim: it ends what the shim has started, when that is killed.
const WATCHDOG: &[u8] = b"shim-watchdog";

/// Break something on purpose, to see what holds
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  mainland chaos kill b && mainland start b")]
pub struct Chaos {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Kill a node as a power cut would: agent, proxy and every instance at once
    ///
    /// Its data stays. It stays lost until `mainland start` brings it back, as a machine without power would; what dies without having been told to is
    /// started again.
    #[command(after_help = "Example:\n  mainland chaos kill b && mainland start b")]
    Kill {
        /// The node's name, as `mainland nodes` lists it
        #[arg(value_name = "NODE")]
        node: String,
    },
}

impl Chaos {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let Command::Kill { node } = self.command;
        let layout = Layout {
            data: globals.data_dir()?,
        };
        let known = layout.known_nodes();
        if !known.contains(&node) {
            return Err(Failure::missing(
                format!("there is no node `{node}` here"),
                &node,
                known.iter().map(String::as_str),
                &format!("known: {}", known.join(", ")),
            ));
        }
        let killed = match node.as_str() {
            EDGE => kill_all_of(&layout.node(&node)).await,
            _ => kill_for_good(&layout, &node).await,
        };
        let killed = killed.with_context(|| format!("killing node {node}"))?;
        let again = match node.as_str() {
            EDGE => "`up` starts it again".to_owned(),
            _ => format!("`mainland start {node}` brings it back"),
        };
        experience::output::say(&format!(
            "Node {node} is dead: {killed} processes killed; {again}."
        ))?;
        Ok(0)
    }
}

/// From now on `up` leaves it dead. Where nothing can be killed, it is as it was: wanted dead by whom it was before, or by nobody.
async fn kill_for_good(layout: &Layout, node: &str) -> Result<usize> {
    let before = layout.killed_by(node);
    // Before, or `up` would start what it sees die.
    let kill = layout.mark_killed(node)?;
    let killed = kill_all_of(&layout.node(node)).await;
    if killed.is_err() {
        layout.take_back(node, &kill, before.as_ref())?;
    }
    killed
}

/// The processes that name the node's directory, and all that they have started. Watchdogs end by themselves, and are killed where they do not: what
/// a program forks between a look and its death is theirs to find.
pub async fn kill_all_of(directory: &Path) -> Result<usize> {
    let mut killed = BTreeSet::new();
    for _ in 0..ROUNDS {
        let found = Processes::read().all_but_watchdogs(directory);
        if found.is_empty() {
            break;
        }
        kill(found, &mut killed)?;
    }
    let deadline = Instant::now() + WATCHDOGS_PATIENCE;
    loop {
        let left = Processes::read().of(directory);
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            kill(left, &mut killed)?;
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    ensure!(!killed.is_empty(), "the node does not run");
    Ok(killed.len())
}

fn kill(found: BTreeSet<u32>, killed: &mut BTreeSet<u32>) -> Result<()> {
    for identity in found.into_iter().filter_map(Identity::of) {
        match identity.signal(Signal::KILL) {
            Ok(()) => drop(killed.insert(identity.pid)),
            Err(error) => anyhow::bail!("pid {} can't be killed: {error}", identity.pid),
        }
    }
    Ok(())
}

/// Takes away what dead nodes of this user have left on the machine, whichever cloud they were of.
pub async fn remove_leftovers() {
    let dead = node::leftovers::find();
    let processes = Processes::read();
    for left in dead {
        // Its proxy and its instances wait for the next agent.
        if !processes.of(&left.directory).is_empty() {
            continue;
        }
        let directory = left.directory.clone();
        if let Err(error) = left.remove().await {
            experience::notice(&format!(
                "what the dead node of {} left can't be taken away: {error}",
                directory.display()
            ));
        }
    }
}

/// What of a node lives on: how many instances, where anything does.
pub fn instances_on(directory: &Path) -> Option<usize> {
    let processes = Processes::read();
    let ours: Vec<_> = processes
        .words
        .values()
        .filter(|words| names(words, directory))
        .collect();
    let shims = ours
        .iter()
        .filter(|words| words.split(|byte| *byte == 0).nth(1) == Some(b"shim"));
    (!ours.is_empty()).then(|| shims.count())
}

/// All that runs on the machine: parents, and what they were started with.
struct Processes {
    parents: BTreeMap<u32, u32>,
    words: BTreeMap<u32, Vec<u8>>,
}

impl Processes {
    fn read() -> Self {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let mut all = Self {
            parents: BTreeMap::new(),
            words: BTreeMap::new(),
        };
        for pid in pids {
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue;
            };
            let parent = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            if let Some(parent) = parent {
                all.parents.insert(pid, parent);
            }
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            all.words.insert(pid, words);
        }
        all
    }

    fn all_but_watchdogs(&self, directory: &Path) -> BTreeSet<u32> {
        let mut found = self.of(directory);
        let is_watchdog = |words: &Vec<u8>| is_watchdog(words, directory);
        found.retain(|pid| !self.words.get(pid).is_some_and(is_watchdog));
        found
    }

    /// Those that were started for the directory, with their descendants.
    fn of(&self, directory: &Path) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self
            .words
            .iter()
            .filter(|(_, words)| names(words, directory) || is_watchdog(words, directory))
            .map(|(pid, _)| *pid)
            .collect();
        loop {
            let more: Vec<u32> = self
                .parents
                .iter()
                .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
                .map(|(pid, _)| *pid)
                .collect();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        found.remove(&std::process::id());
        found
    }
}

/// Whether it is a process of a node, and one of its words the directory or a path below it. Whichever copy of the binary it runs from.
fn names(words: &[u8], directory: &Path) -> bool {
    is_of_kind(words, directory, |kind| KINDS.contains(&kind))
}

fn is_watchdog(words: &[u8], directory: &Path) -> bool {
    is_of_kind(words, directory, |kind| kind == WATCHDOG)
}

fn is_of_kind(words: &[u8], directory: &Path, kind: impl FnOnce(&[u8]) -> bool) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let mut words = words.split(|byte| *byte == 0).skip(1);
    words.next().is_some_and(kind)
        && words.any(|word| Path::new(std::ffi::OsStr::from_bytes(word)).starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Killed with its shim, it would not find what the program has forked meanwhile.
    #[test]
    fn a_watchdog_is_left_to_its_work_and_known_to_be_there() {
        let directory = Path::new("/d/nodes/b");
        let shim = "mainland\0shim\0/d/nodes/b/instances/shop/web-1\0";
        let watchdog = "mainland\0shim-watchdog\0/d/nodes/b/instances/shop/web-1\0";
        let agent = "mainland\0agent\0--data-dir\0/d/nodes/b\0";
        let all = [
            (10, 1, agent),
            (11, 10, shim),
            (12, 11, watchdog),
            (13, 11, "web\0"),
            (14, 13, "worker\0"),
            (
                20,
                1,
                "mainland\0shim-watchdog\0/d/nodes/c/instances/shop/web-2\0",
            ),
        ];
        let processes = |living: &[u32]| {
            let living = all.iter().filter(|(pid, ..)| living.contains(pid));
            Processes {
                parents: living
                    .clone()
                    .map(|(pid, parent, _)| (*pid, *parent))
                    .collect(),
                words: living
                    .map(|(pid, _, words)| (*pid, words.as_bytes().to_vec()))
                    .collect(),
            }
        };
        let found = processes(&[10, 11, 12, 13, 14, 20]).all_but_watchdogs(directory);
        assert_eq!(found, [10, 11, 13, 14].into());
        let left = processes(&[12, 20]);
        assert_eq!(left.all_but_watchdogs(directory), [].into());
        assert_eq!(left.of(directory), [12].into());
    }

    /// It would come back, though nobody started it.
    #[tokio::test]
    async fn a_dead_node_that_is_killed_again_stays_dead() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            data: folder.path().to_owned(),
        };
        let refused = kill_for_good(&layout, "b").await.unwrap_err();
        assert_eq!(refused.to_string(), "the node does not run");
        assert!(!layout.is_killed("b"), "nobody wants it dead");
        let first = layout.mark_killed("b").unwrap();
        kill_for_good(&layout, "b").await.unwrap_err();
        assert_eq!(layout.killed_by("b"), Some(first));
    }

    #[test]
    fn only_words_below_the_directory_name_it() {
        let directory = Path::new("/d/nodes/b");
        let table = [
            ("mainland\0agent\0--data-dir\0/d/nodes/b\0", true),
            ("mainland\0shim\0/d/nodes/b/instances/web-1\0", true),
            ("mainland\0agent\0--data-dir\0/d/nodes/bc\0", false),
            ("tail\0-f\0/d/nodes/b/log\0", false),
            ("vi\0agent\0d/nodes/b\0", false),
        ];
        for (words, expected) in table {
            assert_eq!(names(words.as_bytes(), directory), expected, "{words}");
        }
    }
}
