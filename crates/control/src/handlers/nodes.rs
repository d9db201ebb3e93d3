//! Nodes: as people see them, and what they ask for themselves.

use std::sync::Arc;
use std::time::Duration;

use api::problem::Problem;
use api::wire::{
    self, CertificateAnswer, CertificateRequest, Join, Joined, MadeJoinToken, MakeJoinToken,
};
use boundary::authority::{self, Terms};
use boundary::authorize::{self, Change};
use boundary::token::{JoinToken, Record};
use futures_util::stream;
use http::header;
use model::boundary::{Holder, Principal, SpiffeId};
use model::control::{Heartbeat, HeartbeatAnswer, NodeDesired, NodeRecord, Reason, Standing};
use model::ids::NodeName;
use model::signals::Level;
use plan::nodes::{self, Input};
use plan::service::Sight;
use tokio::sync::watch;

use super::projects;
use crate::call::{self, Answer, Call};
use crate::draft::Draft;
use crate::events::About;
use crate::explain;
use crate::problems;
use crate::records::Key;
use crate::state::{Server, Shared};
use crate::tunnel;
use crate::views;
use crate::world::World;

const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 60..=86_400;
const JOIN_TOKENS_MOST: usize = 10_000;
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
    server
        .change(|world: &World| {
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
    let action = if cordoned { "cordon" } else { "uncordon" };
    let by = call.principal.name();
    server.say(
        Level::Info,
        About::node(&name),
        Reason::new(action, format!("{action}ed by {by}")),
    );
    server
        .audited(by, action, format!("node/{name}"), Vec::new())
        .await;
    let now = server.clock.now();
    let view = server.with(|shared| views::node_of(shared, &name, now));
    Ok(call::json(&view.ok_or_else(|| missing(&server, &name))?))
}

pub async fn make_join_token(server: Arc<Server>, mut call: Call) -> Answer {
    let ask: MakeJoinToken = call.json().await?;
    if !TOKEN_SECONDS.contains(&ask.valid_seconds) {
        return Err(Problem::new(
            422,
            "invalid",
            "`valid_seconds` is 60 to 86400",
        ));
    }
    let author = projects::author(&server, &call.principal);
    let end = author.at + Duration::from_secs(ask.valid_seconds);
    let token = JoinToken::generate(server.authority.fingerprint(), ask.node.clone(), end);
    let record = Record::of_join(&token, ask.node.as_ref().map_or("any", NodeName::as_str));
    server
        .change(|world: &World| {
            if world.tokens.len() >= JOIN_TOKENS_MOST {
                return Err(
                    Problem::new(422, "limit", "too many tokens are valid at once")
                        .remedy("wait until some expire"),
                );
            }
            let mut draft = Draft::new();
            draft.put_anyway(Key::Token(token.hash()), &record);
            Ok((draft, ()))
        })
        .await?;
    let on = ask
        .node
        .map_or("node/*".to_owned(), |node| format!("node/{node}"));
    server
        .audited(author.name, "node.token", on, Vec::new())
        .await;
    Ok(call::json(&MadeJoinToken {
        token: token.reveal().to_string(),
        server: server.nodes,
    }))
}

/// Lets a machine in: with a join token, or again with the certificate it has.
pub async fn join(server: Arc<Server>, mut call: Call) -> Answer {
    let token = token(&call);
    let now = server.now();
    let ask = asked(&server, &mut call, token.as_ref(), now).await?;
    let Ok(_permit) = server.gates.joins.acquire().await else {
        return Err(Problem::unavailable("ending", "this server ends"));
    };
    let chain = issue(&server, &ask.request, Holder::Node(ask.name.clone()))?;
    let (was_there, _) = server
        .change(|world: &World| {
            let known = world.nodes.get(&ask.name);
            let admitted = admits(
                world,
                &call.principal,
                token.as_ref(),
                &ask.name,
                known.is_some(),
                now,
            )?;
            let nodes = world.nodes.len() + usize::from(known.is_none());
            authorize::admit(&Change::Node { nodes }, &server.limits)
                .map_err(|refusal| problems::of_refusal(&refusal))?;
            let mut draft = Draft::new();
            draft.put(
                Key::Node(ask.name.clone()),
                known,
                &record(&ask, known.map(|known| &known.value), now),
            );
            if let Some(spent) = admitted {
                draft.delete(Key::Token(spent.hash), &world.tokens[&spent.hash]);
            }
            Ok((draft, known.is_some()))
        })
        .await?;
    let said = if was_there { "joined again" } else { "joined" };
    let reason = Reason::new(
        "joined",
        format!("node {} {said} in zone {}", ask.name, ask.zone),
    );
    server.say(Level::Info, About::node(&ask.name), reason);
    let by = Principal::Node {
        name: ask.name.clone(),
    }
    .name();
    server
        .audited(
            by,
            "node.join",
            format!("node/{}", ask.name),
            vec![said.to_owned()],
        )
        .await;
    Ok(call::json(&joined(&server, chain)))
}

/// What is asked for, by who may. Of who has no token that is good not even the body is read.
async fn asked(
    server: &Server,
    call: &mut Call,
    token: Option<&JoinToken>,
    now: jiff::Timestamp,
) -> Result<Join, Problem> {
    server.look(|world| shown(world, &call.principal, token, now).map(drop))?;
    let ask: Join = call.json().await?;
    server.look(|world| {
        let is_known = world.nodes.contains_key(&ask.name);
        admits(world, &call.principal, token, &ask.name, is_known, now).map(drop)
    })?;
    Ok(ask)
}

fn token(call: &Call) -> Option<JoinToken> {
    let value = call.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ")?.parse().ok()
}

fn refuse_join(why: impl std::fmt::Display) -> Problem {
    Problem::new(401, "join-refused", why.to_string())
        .remedy("make a fresh join token and start the agent with it")
}

/// The record of the join token that is shown. An administrator needs none.
fn shown<'w>(
    world: &'w World,
    principal: &Principal,
    token: Option<&JoinToken>,
    now: jiff::Timestamp,
) -> Result<Option<&'w Record>, Problem> {
    if matches!(principal, Principal::Administrator { .. }) {
        return Ok(None);
    }
    let token = token.ok_or_else(|| refuse_join("to join, show a join token"))?;
    let record = world.tokens.get(&token.hash());
    let unknown = "the join token is not known here, or was used already";
    let record = record.ok_or_else(|| refuse_join(unknown))?;
    record.admits_some_node(token, now).map_err(refuse_join)?;
    Ok(Some(&record.value))
}

/// Whether it may join under this name. Answers the token's record if it is good for one time only.
fn admits(
    world: &World,
    principal: &Principal,
    token: Option<&JoinToken>,
    name: &NodeName,
    is_known: bool,
    now: jiff::Timestamp,
) -> Result<Option<Record>, Problem> {
    let (Some(record), Some(token)) = (shown(world, principal, token, now)?, token) else {
        return Ok(None);
    };
    record.admits_node(token, name, now).map_err(refuse_join)?;
    if is_known && record.node.is_none() {
        return Err(
            Problem::conflict("node-exists", format!("a node {name} is there already")).remedy(
                format!("choose another name, or make a join token for `{name}` alone"),
            ),
        );
    }
    Ok(record.node.is_some().then(|| record.clone()))
}

fn record(ask: &Join, known: Option<&NodeRecord>, now: jiff::Timestamp) -> NodeRecord {
    NodeRecord {
        name: ask.name.clone(),
        region: ask.region.clone(),
        zone: ask.zone.clone(),
        role: ask.role,
        capacity: ask.capacity,
        labels: ask.labels.clone(),
        cordoned: known.is_some_and(|known| known.cordoned),
        standing: known.map_or(Standing::Present, |known| known.standing),
        reason: known.map_or_else(
            || Reason::new("joined", format!("joined in zone {}", ask.zone)),
            |known| known.reason.clone(),
        ),
        joined_at: known.map_or(now, |known| known.joined_at),
    }
}

fn issue(server: &Server, request: &str, holder: Holder) -> Result<String, Problem> {
    let id = SpiffeId {
        cluster: server.authority.cluster().to_owned(),
        holder,
    };
    let issued = server
        .authority
        .issue(request, &id, &Terms::default(), server.now());
    issued.map_err(|error| match error {
        authority::Error::Making(_) | authority::Error::RequestTooLong => Problem::new(
            422,
            "bad-request",
            format!("the signing request can't be used: {error}"),
        ),
        error => Problem::internal(error.to_string()),
    })
}

fn joined(server: &Server, certificate: String) -> Joined {
    Joined {
        cluster: server.authority.cluster().to_owned(),
        authority: server.authority.certificate().to_owned(),
        certificate,
    }
}

pub async fn renew(server: Arc<Server>, mut call: Call) -> Answer {
    let name = call.node()?;
    let ask: CertificateRequest = call.json().await?;
    if server.look(|world| !world.nodes.contains_key(&name)) {
        return Err(missing(&server, &name));
    }
    let chain = issue(&server, &ask.request, Holder::Node(name))?;
    Ok(call::json(&joined(&server, chain)))
}

pub async fn service_certificate(server: Arc<Server>, mut call: Call) -> Answer {
    let service = call.resource("service")?;
    let ask: CertificateRequest = call.json().await?;
    let certificate = issue(&server, &ask.request, Holder::Service(service))?;
    Ok(call::json(&CertificateAnswer { certificate }))
}

/// Folds what a node sees into the picture; wakes the leader where that changes something. Nothing is stored.
pub async fn heartbeat(server: Arc<Server>, mut call: Call) -> Answer {
    let name = call.node()?;
    let beat: Heartbeat = call.json().await?;
    if server.leadership.is_fenced() {
        return Err(problems::fenced());
    }
    let now = server.clock.now();
    let (send_full, wakes) = server.with(|shared| take(shared, &name, &beat, now))?;
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
    now: plan::Now,
) -> Result<(bool, bool), Problem> {
    let record = shared.world.nodes.get(name).ok_or_else(|| {
        Problem::new(
            410,
            "node-left",
            format!("node {name} is no node of this cluster"),
        )
        .remedy("let it join again with a fresh join token")
    })?;
    // Of a node that joined a moment ago the leader may not have heard yet.
    let mut outputs = Vec::new();
    if shared.nodes.sight(name, now) == Sight::Lost && record.standing == Standing::Present {
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

/// What the node was told to forget counts as told once it acknowledged the generation that says so.
fn acknowledge_forgetting(shared: &mut Shared, name: &NodeName, beat: &Heartbeat) -> bool {
    let told = shared
        .desired
        .get(name)
        .and_then(|sender| sender.borrow().clone());
    let told =
        told.filter(|told| !told.forget_volumes.is_empty() && beat.acknowledged >= told.generation);
    let Some(node) = shared.observed.nodes.get_mut(name) else {
        return false;
    };
    let before = std::mem::take(&mut node.forgot);
    node.forgot = told
        .map(|told| told.forget_volumes.iter().cloned().collect())
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
        let sender = shared
            .desired
            .entry(name.clone())
            .or_insert_with(|| watch::channel(None).0);
        let mut receiver = sender.subscribe();
        receiver.mark_changed();
        receiver
    });
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
    tunnel::accept(&server, name, call.request)
}
