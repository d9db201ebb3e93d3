//! What nodes have for engines to run on, stored where it is something else than before: databases are placed by it.

use model::control::NodeRecord;
use model::ids::NodeName;

use super::{Leader, report};
use crate::draft::Draft;
use crate::records::Key;
use crate::state::CommitError;
use crate::world::Stored;

impl Leader {
    /// True: something was written.
    pub(super) async fn programs(&mut self) -> bool {
        let mut wrote = false;
        for (name, known, next) in self.told_otherwise() {
            let mut draft = Draft::new();
            draft.put(Key::Node(name), Some(&known), &next);
            match self.server.commit(draft).await {
                Ok(_) => {
                    tracing::info!(node = %next.name, programs = ?next.programs, "a node has other programs");
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

    /// A node that does not tell changes nothing.
    fn told_otherwise(&self) -> Vec<(NodeName, Stored<NodeRecord>, NodeRecord)> {
        self.server.with(|shared| {
            let heard = shared.observed.nodes.iter();
            let told = heard.filter_map(|(name, node)| {
                let programs = node.programs.as_ref()?;
                let known = shared.world.nodes.get(name)?;
                let is_news = known.programs.as_ref() != Some(programs);
                is_news.then(|| {
                    let next = NodeRecord {
                        programs: Some(programs.clone()),
                        ..known.value.clone()
                    };
                    (name.clone(), known.clone(), next)
                })
            });
            told.collect()
        })
    }
}
