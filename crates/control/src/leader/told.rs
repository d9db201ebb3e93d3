//! What nodes say of themselves that a server must know before it hears them again, stored where it is something else than before: the programs for
//! engines, by which databases are placed, and the place where the agent runs, by which a copy of its directory is known.

use model::control::NodeRecord;
use model::ids::NodeName;

use super::{Leader, report};
use crate::draft::Draft;
use crate::observed;
use crate::records::Key;
use crate::state::CommitError;
use crate::world::Stored;

impl Leader {
    /// True: something was written.
    pub(super) async fn keep_what_is_told(&mut self) -> bool {
        let mut wrote = false;
        for (name, known, next) in self.told_otherwise() {
            let mut draft = Draft::new();
            draft.put(Key::Node(name), Some(&known), &next);
            match self.server.commit(draft).await {
                Ok(_) => {
                    tracing::info!(node = %next.name, programs = ?next.programs, "a node has other programs, or another place");
                    self.cluster.set_node(&next);
                    wrote = true;
                }
                Err(error) => {
                    report(&error, "what a node has could not be stored");
                    wrote |= matches!(error, CommitError::Conflict(_));
                }
            }
        }
        wrote
    }

    fn told_otherwise(&self) -> Vec<(NodeName, Stored<NodeRecord>, NodeRecord)> {
        self.server.with(|shared| {
            let heard = shared.observed.nodes.iter();
            let told = heard.filter_map(|(name, node)| {
                let known = shared.world.nodes.get(name)?;
                let next = as_told(&known.value, node);
                (next != known.value).then(|| (name.clone(), known.clone(), next))
            });
            told.collect()
        })
    }
}

/// What a node does not tell stays as it is.
fn as_told(known: &NodeRecord, node: &observed::Node) -> NodeRecord {
    NodeRecord {
        programs: node.programs.clone().or_else(|| known.programs.clone()),
        place: node.place.or(known.place),
        ..known.clone()
    }
}
