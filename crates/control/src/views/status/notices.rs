//! What nodes and server say of themselves: disks that fill, and what is wrong with instances that can't be seen by their state.

use std::collections::BTreeMap;

use api::wire::InstanceView;
use model::control::{Reason, Standing};
use model::ids::{InstanceId, ProjectName};
use model::machine::Disk;

use super::attention::LINES_MOST;
use crate::state::Shared;

/// The server's own, as no node is named.
const SERVER: &str = "the server";

/// Disks of the server and of nodes that fill. Those of one size and as full are told as one: most often they are one.
pub(super) fn disks(shared: &Shared) -> Vec<Reason> {
    let nodes = shared.observed.nodes.iter().filter_map(|(name, node)| {
        let stands = shared.world.nodes.get(name)?.standing == Standing::Present;
        Some((name.to_string(), node.disk.filter(|_| stands)?))
    });
    let server = shared.disk.map(|disk| (SERVER.to_owned(), disk));
    of_disks(server.into_iter().chain(nodes))
}

/// Nodes that can't keep on their disks what they are told.
pub(super) fn unkept(shared: &Shared) -> Vec<Reason> {
    let nodes = shared.observed.nodes.iter();
    let told = nodes.filter_map(|(name, node)| {
        let reason = node.unkept.as_ref()?;
        let message = format!("node {name}: {reason}");
        Some(Reason::new(reason.code.clone(), message))
    });
    told.take(LINES_MOST).collect()
}

fn of_disks(disks: impl Iterator<Item = (String, Disk)>) -> Vec<Reason> {
    let mut alike: BTreeMap<_, (Vec<String>, Disk)> = BTreeMap::new();
    for (name, disk) in disks {
        let (used, files) = (disk.used_percent(), disk.files_percent());
        // The fullest first.
        let key = (
            std::cmp::Reverse(used.max(files)),
            used,
            disk.size,
            disk.files,
        );
        let found = alike.entry(key).or_insert_with(|| (Vec::new(), disk));
        found.0.push(name);
    }
    let told = alike.into_values();
    told.filter_map(|(names, disk)| disk.trouble(&whose(&names)))
        .take(LINES_MOST)
        .collect()
}

/// `the server and nodes a, b and edge`.
fn whose(names: &[String]) -> String {
    let (server, nodes): (Vec<_>, Vec<_>) = names.iter().partition(|name| *name == SERVER);
    let nodes = match nodes.as_slice() {
        [] => None,
        [one] => Some(format!("node {one}")),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|name| name.as_str()).collect();
            Some(format!("nodes {} and {last}", first.join(", ")))
        }
    };
    let server = server.first().map(|server| (*server).clone());
    let all: Vec<_> = server.into_iter().chain(nodes).collect();
    all.join(" and ")
}

/// What is wrong with the instances of a project.
pub(super) fn of_instances(
    shared: &Shared,
    project: &ProjectName,
    instances: &[InstanceView],
) -> Vec<Reason> {
    let told = instances.iter().filter_map(|view| {
        let reason = of_instance(shared, project, view)?;
        let message = format!("{}: {reason}", view.name);
        Some(Reason::new(reason.code.clone(), message))
    });
    told.take(LINES_MOST).collect()
}

/// What its node says of an instance that its state does not show.
pub fn of_instance<'s>(
    shared: &'s Shared,
    project: &ProjectName,
    view: &InstanceView,
) -> Option<&'s Reason> {
    let node = shared.observed.nodes.get(view.node.as_ref()?)?;
    let id = InstanceId::new(project.clone(), view.name.clone());
    let notice = node.notices.iter().find(|notice| notice.instance == id)?;
    Some(&notice.reason)
}

#[cfg(test)]
mod tests {
    use model::units::Bytes;

    use super::*;

    #[test]
    fn disks_that_are_one_are_told_as_one_and_the_fullest_first() {
        let disk = |size: u64, free: u64| Disk {
            size: Bytes(size << 30),
            free: Bytes(free << 30),
            files: 0,
            files_free: 0,
        };
        let all = [
            (SERVER, disk(100, 15)),
            ("a", disk(100, 15)),
            ("b", disk(100, 15)),
            ("c", disk(50, 1)),
            ("d", disk(50, 40)),
        ];
        let told = of_disks(all.into_iter().map(|(name, disk)| (name.to_owned(), disk)));
        let told: Vec<_> = told.iter().map(|reason| reason.message.as_str()).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("the disk of node c is as good as full: 98 % full"));
        assert!(
            told[1].starts_with("the disk of the server and nodes a and b fills: 85 % full"),
            "{told:?}"
        );
    }
}
