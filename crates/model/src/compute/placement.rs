//! Which instance of which release belongs where: the leader's decisions, as they are stored.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::control::Reason;
use crate::ids::{Epoch, InstanceName, NodeName, ReleaseNumber};

/// The decision that an instance of a release belongs on a node, with role and epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    pub instance: InstanceName,
    pub release: ReleaseNumber,
    pub node: NodeName,
    /// For an instance with volumes: which of the service's numbered sets of volumes it holds. 0-based.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    #[serde(default)]
    pub role: Role,
    #[serde(default, skip_serializing_if = "is_default")]
    pub purpose: Purpose,
    /// Grows with each placement of the service; fences what an older one writes.
    pub epoch: Epoch,
    pub wanted: Wanted,
    /// The copy whose place it was started to take: that one leaves once this one is ready. Until then the two count as one. Means nothing where
    /// that copy is no longer wanted to run, and is forgotten with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<InstanceName>,
    /// Why it is here, stored with the decision.
    pub reason: Reason,
    pub at: Timestamp,
    /// When a copy that is to leave was placed: [`at`](Self::at) is when that was decided. `None`: an earlier version did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_at: Option<Timestamp>,
}

impl Placement {
    /// When it was placed. `None` of one that is to leave, where nobody kept it.
    pub fn placed(&self) -> Option<Timestamp> {
        match self.wanted {
            Wanted::Run => Some(self.at),
            Wanted::Leave => self.placed_at,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    #[default]
    Member,
    Primary,
    Standby,
}

/// What an instance is there for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// It is one of the service's copies.
    #[default]
    Serve,
    /// It runs the service's `before_deploy` to its end, and is none of its copies.
    BeforeDeploy,
    /// A person's command runs beside it (`mainland run`), and it is none of the copies. It is placed for as long as they are connected, and
    /// never stored.
    Run,
}

/// The code of the reason with which a node reports that a `before_deploy` ended badly, and a rollout that it failed by that.
pub const BEFORE_DEPLOY_FAILED: &str = "before-deploy-failed";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// It runs and serves.
    Run,
    /// It leaves the road, then the machine. The placement goes when the node reports it gone, or the node is lost.
    Leave,
}

/// All placements of one service: one record in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlacementGroup {
    pub placements: Vec<Placement>,
    /// Copies that should exist and have no place, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Pending>,
    /// The number of the next instance of the service.
    pub next_instance: u64,
    pub next_epoch: Epoch,
    /// Where each numbered set of volumes has its home. Never forgotten but by deleting the data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub homes: BTreeMap<u32, NodeName>,
    /// Nodes with what copies wrote that ran there, never were ready and were tried elsewhere: no home, but data all the same. Forgotten as homes are.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left: BTreeSet<NodeName>,
}

impl PlacementGroup {
    /// Every node with data of the service.
    pub fn nodes_with_data(&self) -> BTreeSet<NodeName> {
        self.homes.values().chain(&self.left).cloned().collect()
    }
}

/// A copy without a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pending {
    /// The name it will have, so that it can be asked about.
    pub instance: InstanceName,
    pub release: ReleaseNumber,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    pub reason: Reason,
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_from_before_moves_were_known_reads_and_is_written_as_it_was() {
        let stored = serde_json::json!({
            "instance": "web-1", "release": 1, "node": "a", "role": "member", "epoch": 1, "wanted": "run",
            "reason": { "code": "placed", "message": "it has room" }, "at": "2026-01-01T00:00:00Z",
        });
        let mut placement: Placement = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(placement.replaces, None);
        assert_eq!(serde_json::to_value(&placement).unwrap(), stored);
        placement.replaces = Some("web-0".parse().unwrap());
        let stored = serde_json::to_value(&placement).unwrap();
        assert_eq!(
            serde_json::from_value::<Placement>(stored).unwrap(),
            placement
        );
    }
}
