//! Nodes: as people see them, and what they ask for themselves.

use std::sync::Arc;

use api::problem::Problem;
use api::wire;
use futures_util::stream;
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired, NodeRecord, Reason, Standing};
use model::ids::NodeName;
use model::signals::Level;
use plan::nodes::{self, Input};
use plan::service::Sight;
use tokio::sync::watch;

use crate::alone;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::draft::Draft;
use crate::events::About;
use crate::explain;
use crate::identity;
use crate::problems;
use crate::records::Key;
use crate::state::{Server, Shared};
use crate::tunnel;
use crate::views;
use crate::world::World;

/// Events taken from one heartbeat.
const EVENTS_MOST: usize = 64;

pub async fn list(server: Arc<Server>, _: Call) -> Answer {
    let now = server.clock.now();
    Ok(server.with(|shared| {
        let revision = shared.world.revision.to_string();
        call::json(&wire::List {
            items: views::nodes(shared, now),
            revision,
        })
    }))
}

fn missing(server: &Server, name: &NodeName) -> Problem {
    server.look(|world| problems::no_node(world, name))
}

pub async fn explain(server: Arc<Server>, call: Call) -> Answer {
    let name = call.node()?;
    let events = server.events.since(0);
    let now = server.clock.now();
    let explanation = server.with(|shared| explain::node(shared, &events, &name, now));
    Ok(call::json(
        &explanation.ok_or_else(|| missing(&server, &name))?,
    ))
}

pub async fn cordon(server: Arc<Server>, mut call: Call) -> Answer {
    let name = call.node()?;
    let cordoned: bool = call.json().await?;
    let if_match = call.if_match()?;
    let action = if cordoned { "cordon" } else { "uncordon" };
    let by = call.principal.name();
    let deed = Deed::new(by.clone(), action, format!("node/{name}"));
    server
        .change(&deed, |world: &World| {
            let missing = || problems::no_node(world, &name);
            let record = world.nodes.get(&name).ok_or_else(missing)?;
            if_match.check(format!("node {name}"), Some(record))?;
            let mut draft = Draft::new();
            if record.cordoned != cordoned {
                draft.put(
                    Key::Node(name.clone()),
                    Some(record),
                    &NodeRecord {
                        cordoned,
                        ..record.value.clone()
                    },
                );
            }
            Ok((draft, ()))
        })
        .await?;
    server.say(
        Level::Info,
        About::node(&name),
        Reason::new(action, format!("{action}ed by {by}")),
    );
    let now = server.clock.now();
    let view = server.with(|shared| views::node_of(shared, &name, now));
    Ok(call::json(&view.ok_or_else(|| missing(&server, &name))?))
}

/// Folds what a node sees into the picture; wakes the leader where that changes something. Nothing is stored.
pub async fn heartbeat(server: Arc<Server>, mut call: Call) -> Answer {
    let name = call.node()?;
    let beat: Heartbeat = call.json().await?;
    if server.leadership.is_fenced() {
        return Err(problems::fenced());
    }
    let now = server.clock.now();
    let (send_full, wakes) = server.with(|shared| {
        // While the body came its name may have gone to another.
        identity::still_admits(&shared.world, &call)?;
        take(shared, &name, &beat, server.boot, now)
    })?;
    if let Some(reason) = server.with(|shared| skew(shared, &name, &beat, now)) {
        server.say(Level::Warning, About::node(&name), reason);
    }
    if wakes {
        server.changed.notify_one();
    }
    for event in beat.events.into_iter().take(EVENTS_MOST) {
        let about = match &event.instance {
            Some(instance) => About::resource(&instance.project, &instance.name).on(&name),
            None => About::node(&name),
        };
        server
            .events
            .say(event.at, event.level, about, event.reason);
    }
    Ok(call::json(&HeartbeatAnswer {
        epoch: server.leadership.epoch,
        send_full,
    }))
}

fn take(
    shared: &mut Shared,
    name: &NodeName,
    beat: &Heartbeat,
    boot: Option<u64>,
    now: plan::Now,
) -> Result<(bool, bool), Problem> {
    if !shared.world.nodes.contains_key(name) {
        return Err(identity::is_unknown(name));
    }
    alone::check(shared, name, beat.place, boot, now)?;
    let record = &shared.world.nodes[name];
    // Of a node that joined a moment ago the leader may not have heard yet.
    let mut outputs = Vec::new();
    let is_present = record.standing == Standing::Present;
    if !shared.nodes.watches(name) || shared.nodes.sight(name, now) == Sight::Lost && is_present {
        outputs.extend(nodes::step(&mut shared.nodes, Input::Record(record), now));
    }
    if !shared.nodes.is_news(name, beat.session, beat.sequence, now) {
        return Err(Problem::conflict(
            "stale-heartbeat",
            format!("a later heartbeat of node {name}, or one of a later agent, was taken already"),
        ));
    }
    let took = shared.observed.take(name, beat, now.instant);
    let complete = shared
        .observed
        .nodes
        .get(name)
        .is_some_and(|node| node.whole);
    let input = Input::Heartbeat {
        node: name,
        session: beat.session,
        complete,
    };
    outputs.extend(nodes::step(&mut shared.nodes, input, now));
    let forgot = acknowledge_forgetting(shared, name, beat);
    let wakes = took.changed || !outputs.is_empty() || forgot;
    shared.node_outputs.extend(outputs);
    Ok((took.send_full, wakes))
}

/// Told once, when two heartbeats in a row came from a clock that is not ours: one may have been under way while a clock was set.
fn skew(shared: &mut Shared, name: &NodeName, beat: &Heartbeat, now: plan::Now) -> Option<Reason> {
    let node = shared.observed.nodes.get_mut(name)?;
    let Some(reason) = identity::clocks(name, beat.at?, now.at) else {
        node.skewed = 0;
        return None;
    };
    node.skewed = node.skewed.saturating_add(1);
    (node.skewed == 2).then_some(reason)
}

/// What the node was told to forget is forgotten once it acknowledged the generation that says so, and does not say that its disk refused.
fn acknowledge_forgetting(shared: &mut Shared, name: &NodeName, beat: &Heartbeat) -> bool {
    let channel = shared.desired.get(name);
    let told = channel.and_then(|channel| channel.sender.borrow().clone());
    let told =
        told.filter(|told| !told.forget_volumes.is_empty() && beat.acknowledged >= told.generation);
    let Some(node) = shared.observed.nodes.get_mut(name) else {
        return false;
    };
    let before = std::mem::take(&mut node.forgot);
    node.forgot = told
        .map(|told| {
            let forgotten = told.forget_volumes.iter();
            let forgotten = forgotten.filter(|service| !beat.not_forgotten.contains(service));
            forgotten.cloned().collect()
        })
        .unwrap_or_default();
    node.forgot != before
}

/// What the node should run: what a turn of the leader decides that begins after the question, then each change.
pub async fn desired(server: Arc<Server>, call: Call) -> Answer {
    let name = call.node()?;
    if server.look(|world| !world.nodes.contains_key(&name)) {
        return Err(missing(&server, &name));
    }
    server.changed.notify_one();
    if !server.turns.whole().await {
        return Err(Problem::unavailable(
            "not-deciding",
            "the leader decides nothing now",
        ));
    }
    let receiver = server.with(|shared| {
        // While the leader decided its name may have gone to another.
        identity::still_admits(&shared.world, &call)?;
        let mut receiver = shared.channel(&name).subscribe();
        receiver.mark_changed();
        Ok::<_, Problem>(receiver)
    })?;
    if !call.asks("watch", false)? {
        let told = receiver.borrow().clone();
        let told = told.ok_or_else(|| {
            Problem::unavailable("not-yet", "nothing is decided for this node yet")
        })?;
        return Ok(call::json(&*told));
    }
    Ok(call::lines(follow(server, receiver)))
}

fn follow(
    server: Arc<Server>,
    receiver: watch::Receiver<crate::desired::Told>,
) -> impl stream::Stream<Item = Arc<NodeDesired>> + Send {
    let ending = server.ending.clone();
    stream::unfold(
        (receiver, ending),
        |(mut receiver, mut ending)| async move {
            loop {
                tokio::select! {
                    changed = receiver.changed() => changed.ok()?,
                    _ = ending.wait_for(|ending| *ending) => return None,
                }
                let told = receiver.borrow_and_update().clone();
                if let Some(told) = told {
                    return Some((told, (receiver, ending)));
                }
            }
        },
    )
}

pub async fn tunnel(server: Arc<Server>, call: Call) -> Answer {
    let name = call.node()?;
    if server.look(|world| !world.nodes.contains_key(&name)) {
        return Err(missing(&server, &name));
    }
    tunnel::accept(&server, name, call)
}
