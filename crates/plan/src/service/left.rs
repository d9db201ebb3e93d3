//! What copies with volumes leave behind where they did not come to stay.

use std::collections::{BTreeMap, BTreeSet};

use model::compute::{InstanceReport, Placement, PlacementGroup};
use model::ids::{InstanceName, NodeName};

/// Nodes that copies with volumes are gone from without having been ready there: no homes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Nothing ever ran there: the folders are to go.
    pub empty: BTreeSet<NodeName>,
    /// It may have written there. Nobody asked for that to be deleted.
    pub written: BTreeSet<NodeName>,
}

/// What a decision leaves behind. `reports`: what it rests on.
pub fn left_behind(
    before: &PlacementGroup,
    after: &PlacementGroup,
    reports: &BTreeMap<InstanceName, &InstanceReport>,
) -> Left {
    let is_there = |node: &NodeName| {
        let stands = |placed: &Placement| placed.slot.is_some() && placed.node == *node;
        after.homes.values().any(|home| home == node) || after.placements.iter().any(stands)
    };
    let with_volumes = before
        .placements
        .iter()
        .filter(|placed| placed.slot.is_some());
    let mut left = Left::default();
    for placed in with_volumes.filter(|placed| !is_there(&placed.node)) {
        let report = reports.get(&placed.instance);
        let never_started =
            report.is_some_and(|report| report.epoch == placed.epoch && report.never_started);
        match never_started && !before.left.contains(&placed.node) {
            true => left.empty.insert(placed.node.clone()),
            false => left.written.insert(placed.node.clone()),
        };
    }
    left
}

#[cfg(test)]
mod tests {
    use model::compute::{InstanceState, Purpose, Wanted};
    use model::control::Reason;
    use model::ids::{Epoch, InstanceId, ProjectName, ReleaseNumber, ResourceName};

    use super::*;

    fn placed(instance: &str, node: &str) -> Placement {
        Placement {
            instance: InstanceName::new(instance).unwrap(),
            release: ReleaseNumber(1),
            node: NodeName::new(node).unwrap(),
            slot: Some(0),
            role: model::compute::Role::Member,
            epoch: Epoch(1),
            wanted: Wanted::Run,
            purpose: Purpose::Serve,
            replaces: None,
            reason: Reason::new("placed", "placed"),
            at: jiff::Timestamp::UNIX_EPOCH,
            placed_at: None,
        }
    }

    fn report(placed: &Placement, never_started: bool) -> InstanceReport {
        let instance = InstanceId::new(ProjectName::new("p").unwrap(), placed.instance.clone());
        let service = ResourceName::new("db").unwrap();
        InstanceReport {
            state: InstanceState::Stopped,
            never_started,
            ..InstanceReport::blank(instance, service, placed.release, placed.epoch)
        }
    }

    /// Only what surely never began goes by itself: what ran may have written, and what nobody heard of may have run.
    #[test]
    fn what_ran_is_never_deleted_by_itself() {
        let old = placed("db-1", "a");
        let before = PlacementGroup {
            placements: vec![old.clone()],
            ..PlacementGroup::default()
        };
        let after = PlacementGroup::default();
        let node: BTreeSet<_> = [old.node.clone()].into();
        let of_another_epoch = InstanceReport {
            epoch: Epoch(2),
            ..report(&old, true)
        };
        let table = [
            (Some(report(&old, true)), true),
            (Some(report(&old, false)), false),
            (Some(of_another_epoch), false),
            (None, false),
        ];
        for (report, goes) in table {
            let reports = report.iter().map(|report| (old.instance.clone(), report));
            let left = left_behind(&before, &after, &reports.collect());
            let expected = match goes {
                true => (node.clone(), BTreeSet::new()),
                false => (BTreeSet::new(), node.clone()),
            };
            assert_eq!((left.empty, left.written), expected, "{report:?}");
        }
        // A later copy there that never began takes nothing of an earlier one with it.
        let before = PlacementGroup {
            left: node.clone(),
            ..before
        };
        let never = report(&old, true);
        let reports = [(old.instance.clone(), &never)].into();
        assert_eq!(left_behind(&before, &after, &reports).written, node);
    }
}
