//! The names that the running cloud knows, for who completes a command line: soon, or none.

use std::time::Duration;

use api::client::{Client, Error};
use api::wire::Kind;
use model::ids::ProjectName;
use serde_json::Value;

use crate::Globals;

/// Who presses a key waits for no more: a server that is slow, or not there, has no names.
pub const PATIENCE: Duration = Duration::from_millis(80);
/// More are offered to nobody.
const NAMES_MAX: usize = 1000;

/// What is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    Projects,
    Nodes,
    /// Databases and topics too.
    Services,
    Databases,
    Topics,
    Secrets,
    Instances,
    /// Services, instances and nodes.
    Subjects,
    Of(Kind),
}

/// The names, in order. None where nobody answers in time, or may not.
pub async fn of(globals: &Globals, names: Names) -> Vec<String> {
    let found = tokio::time::timeout(PATIENCE, asked(globals, names)).await;
    let mut found = found.ok().flatten().unwrap_or_default();
    found.retain(|name| is_plain(name));
    found.sort_unstable();
    found.dedup();
    found.truncate(NAMES_MAX);
    found
}

/// Whether it stands in a command line as it is. Some shells insert what they are offered without quotes, and run what is in it: others than those
/// that press the key may choose the paths of routes.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/:@%+,=-".contains(&byte);
    name.bytes().all(plain)
}

async fn asked(globals: &Globals, names: Names) -> Option<Vec<String>> {
    let client = globals.client().ok()?;
    if names == Names::Projects {
        let projects = client.projects().await.ok()?.items;
        return Some(projects.iter().map(ToString::to_string).collect());
    }
    if names == Names::Nodes {
        return nodes(&client).await.ok();
    }
    let project = globals.project(&client).await.ok()?;
    let listed = async |kind| resources(&client, &project, kind).await.ok();
    Some(match names {
        Names::Projects | Names::Nodes => Vec::new(),
        Names::Of(kind) => all(listed(kind).await?),
        Names::Services => all(listed(Kind::Services).await?),
        Names::Secrets => all(listed(Kind::Secrets).await?),
        Names::Databases => engines(listed(Kind::Services).await?, "postgres"),
        Names::Topics => engines(listed(Kind::Services).await?, "topic"),
        Names::Instances => copies(&client, &project).await.ok()?,
        Names::Subjects => {
            let mut found = copies(&client, &project).await.ok()?;
            found.extend(nodes(&client).await.unwrap_or_default());
            found
        }
    })
}

async fn nodes(client: &Client) -> Result<Vec<String>, Error> {
    let nodes = client.nodes().await?.items;
    Ok(nodes.iter().map(|node| node.name.to_string()).collect())
}

/// Instances, and the services that they are copies of.
async fn copies(client: &Client, project: &ProjectName) -> Result<Vec<String>, Error> {
    let (copies, services) = tokio::try_join!(
        client.instances(project),
        resources(client, project, Kind::Services)
    )?;
    let mut found = all(services);
    found.extend(copies.items.iter().map(|copy| copy.name.to_string()));
    Ok(found)
}

async fn resources(
    client: &Client,
    project: &ProjectName,
    kind: Kind,
) -> Result<Vec<(String, Value)>, Error> {
    let mut listed = client.resources(project, kind).await?.items;
    let named = listed.iter_mut().filter_map(|one| {
        let name = one.get("name")?.as_str()?.to_owned();
        Some((name, one["spec"].take()))
    });
    Ok(named.collect())
}

fn all(listed: Vec<(String, Value)>) -> Vec<String> {
    listed.into_iter().map(|(name, _)| name).collect()
}

fn engines(listed: Vec<(String, Value)>, kind: &str) -> Vec<String> {
    let is_one = |spec: &Value| spec["work"]["engine"]["kind"] == kind;
    let of_kind = listed.into_iter().filter(|(_, spec)| is_one(spec));
    of_kind.map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_act_on_is_not_offered() {
        for plain in ["web", "web-1", "shop.localhost/", "a.b/c:d@e=f%20+,"] {
            assert!(is_plain(plain), "{plain}");
        }
        for strange in [
            "*/x$(touch${IFS}PWN)",
            "*/",
            "a/b c",
            "a/`id`",
            "a/;id",
            "a/~",
            "a/\'",
            "a/ü",
            "a/\\",
            "a/[b]",
            "a/b?",
            "a/{b,c}",
            "a/#",
            "a/!b",
            "a/b\n",
        ] {
            assert!(!is_plain(strange), "{strange}");
        }
    }
}
