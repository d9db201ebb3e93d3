//! How a machine becomes a node, and gets certificates: with a join token at first, and by its key ever after.

use std::sync::Arc;
use std::time::Duration;

use api::problem::Problem;
use api::wire::{
    CertificateAnswer, CertificateRequest, Join, Joined, MadeJoinToken, MakeJoinToken, Renew,
};
use boundary::authority::{self, Terms};
use boundary::authorize::{self, Change};
use boundary::token::{JoinToken, Record};
use http::header;
use model::boundary::{Holder, KeyFingerprint, Principal, SpiffeId};
use model::control::{NodeRecord, Reason, Standing};
use model::ids::NodeName;
use model::signals::Level;
use model::timing::LOST_AFTER;
use plan::nodes::{self, Input};

use super::projects;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::dispatch::Peer;
use crate::draft::Draft;
use crate::events::About;
use crate::identity;
use crate::problems;
use crate::records::Key;
use crate::state::{Server, Shared};
use crate::world::World;

const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 60..=86_400;
const JOIN_TOKENS_MOST: usize = 10_000;

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
    let on = ask
        .node
        .as_ref()
        .map_or("node/*".to_owned(), |node| format!("node/{node}"));
    let deed = Deed::new(author.name, "node.token", on);
    server
        .change(&deed, |world: &World| {
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
    let key = identity::key_of(&ask.request)?;
    let chain = issue(&server, &ask.request, Holder::Node(ask.name.clone()))?;
    let deed = of_node(&ask.name, "node.join");
    let (before, _) = server
        .change(&deed, |world: &World| {
            let known = world.nodes.get(&ask.name);
            let name = &ask.name;
            let admitted = admits(
                world,
                &call.principal,
                token.as_ref(),
                name,
                known.is_some(),
                now,
            )?;
            let mut draft = let_in(&server, world, &ask, &key, admitted)?;
            draft.note(said(known.is_some()));
            Ok((draft, known.map(|known| known.key.clone())))
        })
        .await?;
    let was_there = before.is_some();
    if before.is_some_and(|before| before != Some(key)) {
        // What another machine said of itself under this name.
        forget_seen(&server, &ask.name);
    }
    let said = said(was_there);
    let reason = Reason::new(
        "joined",
        format!("node {} {said} in zone {}", ask.name, ask.zone),
    );
    server.say(Level::Info, About::node(&ask.name), reason);
    Ok(call::json(&joined(&server, chain)))
}

fn said(was_there: bool) -> &'static str {
    if was_there { "joined again" } else { "joined" }
}

/// What a node does of itself.
fn of_node(name: &NodeName, action: &'static str) -> Deed {
    let by = Principal::Node { name: name.clone() };
    Deed::new(by.name(), action, format!("node/{name}"))
}

fn let_in(
    server: &Server,
    world: &World,
    ask: &Join,
    key: &KeyFingerprint,
    spent: Option<Record>,
) -> Result<Draft, Problem> {
    let known = world.nodes.get(&ask.name);
    let nodes = world.nodes.len() + usize::from(known.is_none());
    authorize::admit(&Change::Node { nodes }, &server.limits)
        .map_err(|refusal| problems::of_refusal(&refusal))?;
    let mut draft = Draft::new();
    let now = server.now();
    let next = record(ask, known.map(|known| &known.value), key, now);
    draft.put(Key::Node(ask.name.clone()), known, &next);
    identity::take_name(world, &mut draft, &ask.name, key, now)?;
    if let Some(spent) = spent {
        draft.delete(Key::Token(spent.hash), &world.tokens[&spent.hash]);
    }
    Ok(draft)
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

fn forget_seen(server: &Server, name: &NodeName) {
    let now = server.clock.now();
    server.with(|shared| {
        shared.observed.forget(name);
        let outputs = nodes::step(&mut shared.nodes, Input::Forget(name), now);
        shared.node_outputs.extend(outputs);
    });
}

fn record(
    ask: &Join,
    known: Option<&NodeRecord>,
    key: &KeyFingerprint,
    now: jiff::Timestamp,
) -> NodeRecord {
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
        key: Some(key.clone()),
        programs: ask.programs.clone(),
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
        at: Some(server.now()),
    }
}

pub async fn service_certificate(server: Arc<Server>, mut call: Call) -> Answer {
    let service = call.resource("service")?;
    let ask: CertificateRequest = call.json().await?;
    let key = identity::key_of(&ask.request)?;
    let name = call.node()?;
    let is_its_own = |world: &World| {
        let known = world.nodes.get(&name).and_then(|node| node.key.as_ref());
        known.is_none_or(|known| *known == key)
    };
    if !server.look(is_its_own) {
        return Err(Problem::new(
            422,
            "other-key",
            "a service's certificate is for the key of the node that it runs on",
        ));
    }
    let certificate = issue(&server, &ask.request, Holder::Service(service))?;
    Ok(call::json(&CertificateAnswer { certificate }))
}

/// A fresh certificate for who holds the node's key. Whoever repeats the request of another gets a certificate that only the key's holder can
/// use. That the key is the node's is looked at before its signature is, and that before anything is signed.
pub async fn renew(server: Arc<Server>, mut call: Call) -> Answer {
    let name = call.node()?;
    let ask: Renew = call.json().await?;
    let Ok(_permit) = server.gates.joins.acquire().await else {
        return Err(Problem::unavailable("ending", "this server ends"));
    };
    let key = identity::key_of(&ask.request)?;
    let shown = call.request.extensions().get::<Peer>();
    let shown = shown.and_then(|peer| peer.id.as_ref()).map(|id| &id.key);
    if server.look(|world| is_unbound(world, &name)) && shown == Some(&key) {
        bind(&server, &name, &key).await?;
    }
    server.look(|world| identity::may_renew(world, &name, &key))?;
    let now = server.clock.now();
    server.with(|shared| is_alone(shared, &name, ask.place, now))?;
    let chain = issue(&server, &ask.request, Holder::Node(name.clone()))?;
    let skew = ask
        .at
        .and_then(|at| identity::clocks(&name, at, server.now()));
    if let Some(reason) = skew {
        server.say(Level::Warning, About::node(&name), reason);
    }
    Ok(call::json(&joined(&server, chain)))
}

fn is_unbound(world: &World, name: &NodeName) -> bool {
    let record = world.nodes.get(name);
    record.is_some_and(|record| record.key.is_none())
}

/// A node that joined before keys were kept: the certificate that it has shows whose it is.
async fn bind(server: &Server, name: &NodeName, key: &KeyFingerprint) -> Result<(), Problem> {
    let deed = of_node(name, "node.key");
    let bound = server.change(&deed, |world: &World| {
        let mut draft = Draft::new();
        draft.note("its key is kept from now on");
        if let Some(record) = world.nodes.get(name).filter(|record| record.key.is_none()) {
            let next = NodeRecord {
                key: Some(key.clone()),
                ..record.value.clone()
            };
            draft.put(Key::Node(name.clone()), Some(record), &next);
        }
        Ok((draft, ()))
    });
    bound.await.map(drop)
}

/// Whether no other place speaks for the node: of a directory and its copy the one that runs is heard, and the other is refused.
pub fn is_alone(
    shared: &Shared,
    name: &NodeName,
    place: u64,
    now: plan::Now,
) -> Result<(), Problem> {
    let heard = shared.observed.nodes.get(name);
    let elsewhere = heard.filter(|node| {
        let silence = now.instant.since(node.heard);
        node.place != 0 && place != 0 && node.place != place && silence < LOST_AFTER
    });
    match elsewhere {
        None => Ok(()),
        Some(node) => Err(Problem::conflict(
            "node-twice",
            format!(
                "node {name} runs already (agent pid {}), and this is another machine or a copy of its directory",
                node.pid
            ),
        )
        .remedy("a node runs once: end the other first, or give this machine a directory of its own and let it join under another name")),
    }
}
