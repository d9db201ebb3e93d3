//! A node that leaves for good: its record goes, and with it the right to be told anything. What it held stays on its disk.

use std::sync::Arc;

use api::problem::Problem;
use api::wire::{LostVolume, NodeRemoved};
use model::boundary::PrincipalName;
use model::control::{NodeRecord, Reason, Standing};
use model::ids::{NodeName, ResourceId};
use model::signals::Level;

use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::draft::Draft;
use crate::events::About;
use crate::identity;
use crate::problems;
use crate::records::Key;
use crate::state::Server;
use crate::world::World;

/// Services named in a refusal.
const NAMED_MOST: usize = 5;

pub async fn remove(server: Arc<Server>, call: Call) -> Answer {
    let name = call.node()?;
    let dry_run = call.asks("dry_run", false)?;
    let if_match = call.if_match()?;
    let by = call.principal.name();
    let deed = Deed::new(by.clone(), "node.remove", format!("node/{name}"));
    let (lost_volumes, _) = server
        .change(&deed, |world: &World| {
            let missing = || problems::no_node(world, &name);
            let record = world.nodes.get(&name).ok_or_else(missing)?;
            if_match.check(format!("node {name}"), Some(record))?;
            check_may_leave(world, record)?;
            let mut draft = Draft::new();
            let lost = volumes_on(world, &name);
            if !dry_run {
                draft.lines = lines(&lost);
                draft.delete(Key::Node(name.clone()), record);
                if let Some(key) = &record.key {
                    let by = call.principal.name();
                    identity::forget_key(world, &mut draft, key, &name, by, server.now());
                }
            }
            Ok((draft, lost))
        })
        .await?;
    if !dry_run {
        server.with(|shared| shared.desired.remove(&name));
        server.tunnels.close_others(&name, None);
        tell(&server, &by, &name, &lost_volumes);
    }
    Ok(call::json(&NodeRemoved {
        node: name,
        lost_volumes,
        dry_run,
    }))
}

/// What is heard, and runs something, does not leave: nobody would stop what it runs.
fn check_may_leave(world: &World, record: &NodeRecord) -> Result<(), Problem> {
    let name = &record.name;
    if record.standing == Standing::Lost {
        return Ok(());
    }
    let services = services_on(world, name);
    if record.cordoned && services.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = services
        .iter()
        .take(NAMED_MOST)
        .map(ToString::to_string)
        .collect();
    let (title, remedy) = if services.is_empty() {
        let title = format!("node {name} is heard and takes instances");
        (title, format!("`mainland cordon {name}` first"))
    } else {
        let title = format!("node {name} is heard and runs {}", named.join(", "));
        let remedy = format!(
            "`mainland cordon {name}`, then `mainland restart` what has no volume there: it starts elsewhere; or stop the machine, and repeat \
             this when it is lost"
        );
        (title, remedy)
    };
    Err(Problem::conflict("node-in-use", title).remedy(remedy))
}

/// Services with an instance on the node, on its way out or not.
fn services_on<'w>(world: &'w World, node: &NodeName) -> Vec<&'w ResourceId> {
    let ids = world.services.keys();
    ids.filter(|id| world.is_placed(id, node)).collect()
}

fn volumes_on(world: &World, node: &NodeName) -> Vec<LostVolume> {
    let groups = world
        .services
        .iter()
        .filter_map(|(id, entry)| Some((id, entry.placements.as_ref()?)));
    let homes = groups.flat_map(|(id, group)| group.homes.iter().map(move |home| (id, home)));
    homes
        .filter(|(_, (_, home))| *home == node)
        .map(|(id, (slot, _))| LostVolume {
            project: id.project.clone(),
            service: id.name.clone(),
            slot: *slot,
        })
        .collect()
}

fn lines(lost: &[LostVolume]) -> Vec<String> {
    lost.iter()
        .map(|lost| {
            format!(
                "volume of {}/{} copy {} lost",
                lost.project, lost.service, lost.slot
            )
        })
        .collect()
}

fn tell(server: &Server, by: &PrincipalName, node: &NodeName, lost: &[LostVolume]) {
    let reason = Reason::new("node-removed", format!("node {node} was removed by {by}"));
    server.say(
        Level::Warning,
        About::node(node),
        reason.with_detail(lines(lost)),
    );
}
