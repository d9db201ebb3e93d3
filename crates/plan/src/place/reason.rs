//! Why a node, and why none.

use std::borrow::Cow;
use std::fmt::Write;

use model::compute::SpreadBy;
use model::control::{Capacity, NodeRole, Reason, Standing};
use model::ids::NodeName;
use model::units::Bytes;

use super::lacking::{self, LACKS};
use super::shelf::{NodeIndex, carries_one};
use super::{Ceiling, Search};

/// The node has yet to forget deleted data of a service of that name.
pub const FORGETTING: &str = "still-forgetting";

pub(super) fn volume_on_lost_node(home: &NodeName) -> Reason {
    Reason::new("volume-on-lost-node", format!("volume on lost node {home}"))
}

pub(super) fn volume_on_removed_node(home: &NodeName) -> Reason {
    let message = format!(
        "volume on node {home}, which was removed; to start without it, delete the service with its data and apply it again"
    );
    Reason::new("volume-on-removed-node", message)
}

pub(super) fn home_is_full(home: &NodeName, size: Capacity, free: Capacity) -> Reason {
    let message = match free.memory < size.memory {
        true => format!(
            "its volume is on node {home}, which has less than {} of memory free ({})",
            size.memory,
            whole_mebibytes(free.memory)
        ),
        false => format!(
            "its volume is on node {home}, which has cpu {} in all, and it asks for {}",
            free.cpu, size.cpu
        ),
    };
    Reason::new("home-full", message)
}

/// A cordon keeps away what could go elsewhere. This one can't: kept away, it would be down for as long as the cordon.
pub(super) fn at_home(home: &NodeName, is_cordoned: bool) -> Reason {
    let cordoned = match is_cordoned {
        true => ", which is cordoned: that keeps new copies away, and no copy from its volume",
        false => "",
    };
    Reason::new("placed", format!("its volume is on node {home}{cordoned}"))
}

impl Search<'_> {
    pub(super) fn reason(&self, node: NodeIndex) -> Reason {
        let zone = self.cluster.nodes[node].zone;
        let name = &self.cluster.nodes[node].record.name;
        let zones = self
            .pool
            .shelves
            .iter()
            .filter(|shelf| !shelf.is_empty())
            .count();
        let total: u32 = self.copies.map_or(0, |copies| copies.by_zone.iter().sum());
        let total = total.saturating_sub(self.going(|_| true));
        let mut message = String::with_capacity(96);
        if zones > 1 && self.request.spread.by != SpreadBy::Node {
            let zone_name = &self.cluster.zones[zone].name;
            let _ = match total {
                0 => write!(message, "zone {zone_name} had no copy; "),
                _ => write!(
                    message,
                    "zone {zone_name} had the fewest copies ({} of {total}); ",
                    self.in_zone(zone)
                ),
            };
        }
        let _ = match (self.pool.shelves[zone].len(), total) {
            (1, _) => write!(message, "node {name} has room"),
            (_, 0) => write!(message, "node {name} is the fullest with room"),
            _ => write!(
                message,
                "node {name} had the fewest copies there ({}) and is the fullest with room",
                self.on_node(node)
            ),
        };
        Reason::new("placed", message).with_detail(self.rejected())
    }

    /// The nodes that were no choice, by cause, read off the index.
    fn rejected(&self) -> Vec<String> {
        let size = self.request.size;
        let sum = |count: fn(&super::shelf::Shelf, u64) -> usize, needed: u64| -> usize {
            self.pool
                .shelves
                .iter()
                .map(|shelf| count(shelf, needed))
                .sum()
        };
        let mut lines = Vec::new();
        let causes = [
            (
                sum(super::shelf::Shelf::with_less_memory, size.memory.0),
                "not enough memory",
            ),
            (
                sum(super::shelf::Shelf::with_less_cpu, size.cpu.0),
                "not enough CPU",
            ),
            (self.cluster.lost_workers, "lost"),
            (self.cluster.cordoned_workers, "cordoned"),
        ];
        for (count, cause) in causes.into_iter().filter(|(count, _)| *count > 0) {
            lines.push(rejected(count, cause));
        }
        let labels = self.pool.labels.iter().zip(&self.pool.lacking);
        for (label, count) in labels.filter(|(_, count)| **count > 0) {
            lines.push(rejected(*count, &without(label)));
        }
        lines
    }

    /// Looks at every node once: a refusal is what a user most wants explained.
    pub(super) fn refusal(&self) -> Reason {
        let mut counts: Vec<(&str, Cow<'static, str>, usize)> = Vec::new();
        for node in 0..self.cluster.nodes.len() {
            let Some((code, cause)) = self.cause(node) else {
                continue;
            };
            match counts.iter_mut().find(|(_, known, _)| *known == cause) {
                Some((_, _, count)) => *count += 1,
                None => counts.push((code, cause, 1)),
            }
        }
        counts.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
        let lines: Vec<_> = counts
            .iter()
            .map(|(_, cause, count)| rejected(*count, cause))
            .collect();
        let Some((code, _, _)) = self.nearest_miss(&counts) else {
            return Reason::new("no-node", "there is no node to run it on");
        };
        let mut message = match counts.as_slice() {
            [(LACKS, cause, _)] => lacking::nowhere(cause),
            _ => format!("no node can take it: {}", lines.join("; ")),
        };
        if *code == "no-room" {
            message += &self.asked_and_left();
        }
        Reason::new(*code, message).with_detail(lines)
    }

    /// What it asks for beside the most that any node has left, and what may be done.
    fn asked_and_left(&self) -> String {
        let size = self.request.size;
        let nodes = 0..self.cluster.nodes.len();
        let candidates = nodes.filter(|node| self.cluster.nodes[*node].is_candidate());
        let free = candidates.map(|node| self.free(node));
        let most = free.fold(Capacity::default(), |most, free| Capacity {
            cpu: most.cpu.max(free.cpu),
            memory: most.memory.max(free.memory),
        });
        format!(
            "; it asks for cpu {} and memory {}, and no node has more left than cpu {} or memory {}: let it or others ask for less, or add a node",
            size.cpu,
            size.memory,
            most.cpu,
            whole_mebibytes(most.memory)
        )
    }

    /// The cause a user can do something about, before those that only describe the cluster.
    fn nearest_miss<'c, C, T>(&self, counts: &'c [(&'c str, C, T)]) -> Option<&'c (&'c str, C, T)> {
        let order = [
            "spread",
            "not-started",
            LACKS,
            FORGETTING,
            "no-room",
            "labels",
            "cordoned",
            "node-lost",
        ];
        let known = order.iter();
        let mut known = known.filter_map(|code| counts.iter().find(|(found, _, _)| found == code));
        // Else what bars the most.
        known.next().or(counts.first())
    }

    /// Why this node was no choice; `None` for one that left the cluster, and for an edge, which never is one.
    fn cause(&self, index: NodeIndex) -> Option<(&str, Cow<'static, str>)> {
        let node = &self.cluster.nodes[index];
        let free = self.free(index);
        let size = self.request.size;
        if node.gone || node.record.role == NodeRole::Edge {
            return None;
        }
        let mut labels = self.request.labels.iter();
        if node.is_candidate()
            && let Some(label) = labels.find(|label| !carries_one(&node.record, *label))
        {
            return Some(("labels", without(label).into()));
        }
        let stands = node.is_candidate();
        if let Some(why) = self.barred(index).filter(|_| stands) {
            return Some((why.code.as_str(), why.message.clone().into()));
        }
        let (code, cause) = match () {
            () if node.record.standing == Standing::Lost => ("node-lost", "lost"),
            () if node.record.cordoned => ("cordoned", "cordoned"),
            () if free.memory < size.memory => ("no-room", memory_cause(self.request.ceiling)),
            () if free.cpu < size.cpu => ("no-room", cpu_cause(self.request.ceiling)),
            () if self.avoids(index) => ("not-started", "could not start it a moment ago"),
            () => ("spread", "one more there would break the required spread"),
        };
        Some((code, cause.into()))
    }
}

/// What is left, for people: never more than there is.
fn whole_mebibytes(memory: Bytes) -> String {
    format!("{}Mi", memory.0 >> 20)
}

fn without((name, value): (&String, &String)) -> String {
    format!("without the label {name}={value}")
}

fn memory_cause(ceiling: Ceiling) -> &'static str {
    match ceiling {
        Ceiling::Watermark => "not enough memory below the 80 % that is given out",
        Ceiling::Full | Ceiling::Surge { .. } => "not enough memory",
    }
}

fn cpu_cause(ceiling: Ceiling) -> &'static str {
    match ceiling {
        Ceiling::Watermark | Ceiling::Surge { .. } => {
            "not enough CPU below the 80 % that is given out"
        }
        Ceiling::Full => "less CPU in all than it asks for",
    }
}

fn rejected(count: usize, cause: &str) -> String {
    let nodes = if count == 1 { "node" } else { "nodes" };
    format!("{count} {nodes} rejected: {cause}")
}
