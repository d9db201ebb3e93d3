//! A node that was removed runs nothing, and says so.
//!
//! The servers say it once and for all: it is kept on disk, so that the next start, which may find no server, stops what is left and ends. Only a
//! fresh join token, which somebody made for this, lets the node in again.

use std::sync::Arc;

use api::problem::Problem;
use model::control::Reason;
use model::signals::Level;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Error};
use crate::identity::Standing;
use crate::layout;

/// The problem's code.
pub const REMOVED: &str = "node-removed";
/// The code of who has a name that is nobody's, or another's: of a key that the servers do not know.
pub const LEFT: &str = "node-left";
/// The code of another that speaks for this node.
pub const TWICE: &str = "node-twice";
/// The code of who is not heard yet: the servers still wait for the place where this node ran before.
pub const AWAITED: &str = "node-awaited";

/// `removed.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    why: String,
}

/// What a start has found out.
pub fn learn(agent: &Agent, standing: Standing) {
    match standing {
        Standing::Known(true) => layout::remove(&agent.layout.removed()),
        Standing::Known(false) => {
            let kept = layout::read::<Kept>(&agent.layout.removed());
            if let Ok(Some(kept)) = kept {
                agent.signals.over.send_replace(Some(kept.why));
            }
        }
        Standing::Removed(problem) => keep(agent, &problem),
    }
}

fn keep(agent: &Agent, problem: &Problem) {
    let why = format!(
        "{}: what ran here is stopped, its volumes stay in {}; to let it in again, start it with a fresh join token for its name",
        problem.title,
        agent.layout.volumes().display()
    );
    let kept = Kept { why: why.clone() };
    agent.signals.over.send_replace(Some(why));
    // It ends now, however long the disk takes to keep why.
    agent.keeper.write_durably(agent.layout.removed(), &kept);
}

/// The servers refuse to hear this node. True: it is over, and everything ends.
pub fn is_over(agent: &Arc<Agent>, error: &api::client::Error, was_heard: bool) -> bool {
    let api::client::Error::Refused(problem) = error else {
        return false;
    };
    match problem.code.as_str() {
        REMOVED => keep(agent, problem),
        // It was the node, and is none any more. Whoever was never heard may only have come to the wrong servers.
        LEFT if was_heard => keep(agent, problem),
        // One that was heard goes on: it is the other that is the copy.
        TWICE if !was_heard => drop(agent.signals.over.send_replace(Some(problem.to_string()))),
        _ => return false,
    }
    end(agent);
    true
}

/// Ends what runs here, then the agent.
pub fn end(agent: &Arc<Agent>) {
    let why = agent.signals.over.borrow().clone().unwrap_or_default();
    agent.with(|core| {
        let reason = Reason::new("node-over", why);
        agent.say(core, None, Level::Error, reason);
    });
    let of_task = agent.clone();
    agent.tasks.spawn(async move { of_task.stop(true).await });
}

/// How the agent ends.
pub fn outcome(agent: &Agent) -> Result<(), Error> {
    match agent.signals.over.borrow().clone() {
        Some(why) => Err(Error::Over(why)),
        None => Ok(()),
    }
}
