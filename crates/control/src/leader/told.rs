//! What nodes say of themselves that a server must know before it hears them again, stored where it is something else than before: the programs for
//! engines, by which databases are placed, and the place where the agent runs, by which a copy of its directory is known.
//!
//! After the first start of a version that stores more, or where all machines were started anew, it is so of every node at once. A turn keeps what
//! some of them say, together, and then decides and tells the rest: nobody waits for a thousand writes.

use std::time::Duration;

use model::control::NodeRecord;
use model::ids::NodeName;
use plan::{Instant, Now};

use super::{Leader, STEPS_AT_ONCE, report};
use crate::draft::Draft;
use crate::observed;
use crate::records::Key;
use crate::state::CommitError;
use crate::world::Stored;

/// After a disk refused: nothing is decided by it soon.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What a disk refused is tried again then.
#[derive(Default)]
pub(super) struct Keeping {
    again_at: Option<Instant>,
}

impl Leader {
    /// True: something was written.
    pub(super) async fn keep_what_is_told(&mut self, now: Now) -> bool {
        if self.keeping.again_at.is_some_and(|at| now.instant < at) {
            return false;
        }
        self.keeping.again_at = None;
        let told = self.told_otherwise();
        let drafts = told.iter().map(|(name, known, next)| {
            let mut draft = Draft::new();
            draft.put(Key::Node(name.clone()), Some(known), next);
            draft
        });
        for draft in Draft::pack(drafts) {
            if let Err(error) = self.server.commit(draft).await {
                report(&error, "what nodes have could not be stored");
                let is_decided_anew = matches!(error, CommitError::Conflict(_));
                if !is_decided_anew {
                    self.keeping.again_at = Some(now.instant.after(AGAIN_AFTER));
                }
                return is_decided_anew;
            }
        }
        for (node, _, next) in &told {
            tracing::info!(%node, programs = ?next.programs, "a node has other programs, or another place");
            self.cluster.set_node(next);
        }
        !told.is_empty()
    }

    fn told_otherwise(&self) -> Vec<(NodeName, Stored<NodeRecord>, NodeRecord)> {
        self.server.with(|shared| {
            let heard = shared.observed.nodes.iter();
            let told = heard.filter_map(|(name, node)| {
                let known = shared.world.nodes.get(name)?;
                let next = as_told(&known.value, node);
                (next != known.value).then(|| (name.clone(), known.clone(), next))
            });
            told.take(STEPS_AT_ONCE).collect()
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
