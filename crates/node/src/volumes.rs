//! The volumes of an instance before it starts: made, its service's own, and looked at for files that it can't use. All of it may wait for a
//! disk, and is done on threads that may.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use compute::runtime::Identity;
use compute::volume::{self, AT_A_START, Foreign};
use model::compute::DesiredInstance;
use model::control::Reason;
use model::ids::{InstanceId, ResourceName};
use model::signals::Level;

use crate::agent::Agent;

/// The folders of an instance that are made before all else.
///
/// # Errors
///
/// What the disk refuses.
pub async fn make(agent: &Arc<Agent>, desired: &DesiredInstance) -> Result<(), String> {
    let layout = agent.layout.clone();
    let desired = desired.clone();
    let owner = identity(agent, &desired);
    let made = tokio::task::spawn_blocking(move || {
        layout.make_project(&desired.instance)?;
        let mut names = desired.spec.volumes.keys();
        names.try_for_each(|name| layout.make_volume(&desired, name, owner))
    });
    match made.await {
        Ok(made) => made.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// As whom an instance runs, where services have users of their own.
pub fn identity(agent: &Agent, desired: &DesiredInstance) -> Option<Identity> {
    agent.is_root.then_some(Identity {
        uid: desired.uid,
        gid: desired.uid,
    })
}

/// Begins to look for files of others in an instance's volumes. The start does not wait for it.
pub fn begin_look(agent: &Arc<Agent>, desired: &DesiredInstance) {
    let (agent, desired) = (agent.clone(), desired.clone());
    let tasks = agent.tasks.clone();
    tasks.spawn(async move { look(&agent, &desired).await });
}

/// Of what was told of already: whether it was mended.
pub async fn look_again(agent: &Arc<Agent>) {
    let told = agent.with(|core| {
        let mut told = Vec::new();
        core.notices.retain(|id, _| match core.state.instance(id) {
            Some(instance) => {
                told.push(instance.desired().clone());
                true
            }
            None => false,
        });
        told
    });
    for desired in told {
        look(agent, &desired).await;
    }
}

async fn look(agent: &Arc<Agent>, desired: &DesiredInstance) {
    let Some(owner) = identity(agent, desired) else {
        return;
    };
    let names = desired.spec.volumes.keys();
    let volumes: Vec<(ResourceName, PathBuf)> = names
        .map(|name| (name.clone(), agent.layout.volume(desired, name)))
        .collect();
    let looking = tokio::task::spawn_blocking(move || {
        volumes.iter().find_map(|(name, path)| {
            match volume::foreign(path, owner, AT_A_START) {
                Ok(found) => found.map(|found| told(name, path, owner, &found)),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "whose the files of a volume are is not known");
                    None
                }
            }
        })
    });
    let found = looking.await.ok().flatten();
    agent.with(|core| note(agent, core, &desired.instance, found));
}

/// Keeps what was found for as long as it is so; an event tells that it is.
fn note(agent: &Agent, core: &mut crate::core::Core, id: &InstanceId, found: Option<Reason>) {
    let Some(reason) = found else {
        core.notices.remove(id);
        return;
    };
    if core.state.instance(id).is_none() {
        return;
    }
    let known = core.notices.insert(id.clone(), reason.clone());
    if known.as_ref() != Some(&reason) {
        agent.say(core, Some(id.clone()), Level::Warning, reason);
    }
}

fn told(name: &ResourceName, path: &Path, owner: Identity, found: &Foreign) -> Reason {
    let Identity { uid, gid } = owner;
    let Foreign { count, example, .. } = found;
    let most = if found.more { "at least " } else { "" };
    let files = match count {
        1 => "1 file of its volume is another user's and can't be used by it".to_owned(),
        count => {
            format!("{most}{count} files of its volume are another user's and can't be used by it")
        }
    };
    // Its name is the program's choice: it is shown, not sent to a terminal.
    let example = example.to_string_lossy().escape_debug().to_string();
    let path = quoted(&path.to_string_lossy());
    Reason::new(
        "foreign-files",
        format!(
            "{files}, such as {name}/{example} (of user {}); as root on its node, `chown -R {uid}:{gid} {path}` mends it",
            found.owner
        ),
    )
}

/// As a word of a shell's command.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_mends_it_is_one_that_a_shell_takes() {
        let found = Foreign {
            count: 3,
            more: true,
            example: "sub/evil\u{1b}]0;x".into(),
            owner: 0,
        };
        let owner = Identity {
            uid: 70_001,
            gid: 70_001,
        };
        let name = ResourceName::new("data").unwrap();
        let reason = told(&name, Path::new("/srv/my data/it's"), owner, &found);
        assert_eq!(
            reason.message,
            r"at least 3 files of its volume are another user's and can't be used by it, such as data/sub/evil\u{1b}]0;x (of user 0); as root on its node, `chown -R 70001:70001 '/srv/my data/it'\''s'` mends it"
        );
    }
}
