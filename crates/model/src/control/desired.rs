//! What a node is told to run.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::boundary::KeyFingerprint;
use crate::compute::DesiredInstance;
use crate::ids::{Generation, InstanceId, ResourceId};
use crate::traffic::Road;

/// What a node should run, whole: one line of the stream a node watches. Replaces what was told before if its generation is higher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Form", into = "Form")]
pub struct NodeDesired {
    pub generation: Generation,
    pub instances: Vec<DesiredInstance>,
    /// Instances of which a later version says something in words that this one does not know. They are named all the same: what runs of them goes on
    /// as it is, and nothing of them is begun.
    pub foreign: Vec<Foreign>,
    pub road: Road,
    /// Services whose data was deleted: their volumes on this node are to go. Told until this generation is acknowledged.
    pub forget_volumes: Vec<ResourceId>,
    /// The keys of nodes that were removed: who shows one is let in nowhere, whatever its certificate says.
    pub removed: BTreeSet<KeyFingerprint>,
}

/// An instance in the words of a later version, as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub instance: InstanceId,
    pub said: Value,
}

/// As it travels and is kept.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "NodeDesired")]
struct Form {
    generation: Generation,
    #[schemars(with = "Vec<DesiredInstance>")]
    instances: Vec<Said>,
    road: Road,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    forget_volumes: Vec<ResourceId>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    removed: BTreeSet<KeyFingerprint>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Said {
    Known(Box<DesiredInstance>),
    Foreign(Value),
}

impl From<Form> for NodeDesired {
    fn from(form: Form) -> Self {
        let (mut instances, mut foreign) = (Vec::new(), Vec::new());
        for said in form.instances {
            match said {
                Said::Known(known) => instances.push(*known),
                // Without a name there is nothing to hold on to.
                Said::Foreign(said) => foreign.extend(Foreign::of(said)),
            }
        }
        Self {
            generation: form.generation,
            instances,
            foreign,
            road: form.road,
            forget_volumes: form.forget_volumes,
            removed: form.removed,
        }
    }
}

impl From<NodeDesired> for Form {
    fn from(desired: NodeDesired) -> Self {
        let known = desired.instances.into_iter().map(Box::new);
        let foreign = desired.foreign.into_iter().map(|one| one.said);
        Self {
            generation: desired.generation,
            instances: known
                .map(Said::Known)
                .chain(foreign.map(Said::Foreign))
                .collect(),
            road: desired.road,
            forget_volumes: desired.forget_volumes,
            removed: desired.removed,
        }
    }
}

impl Foreign {
    fn of(said: Value) -> Option<Self> {
        let instance = said.get("instance")?.as_str()?.parse().ok()?;
        Some(Self { instance, said })
    }
}
