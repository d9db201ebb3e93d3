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
use plan::nodes::{self, Input};
use tokio::sync::SemaphorePermit;

use super::projects;
use crate::alone;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::dispatch;
use crate::draft::Draft;
use crate::events::About;
use crate::identity::{self, Comer};
use crate::observed::few_programs;
use crate::problems;
use crate::records::Key;
use crate::state::Server;
use crate::world::World;

const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 60..=86_400;
const JOIN_TOKENS_MOST: usize = 10_000;
/// Who is let in, or given a certificate, waits this long for its turn.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

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
    let may = server.look(|world| shown(world, &call.principal, token.as_ref(), now).map(drop));
    if let Err(refusal) = may {
        return joined_before(&server, &mut call, token.is_some(), refusal).await;
    }
    let ask: Join = call.json().await?;
    let _permit = permit(&server).await?;
    let key = identity::key_of(&ask.request)?;
    let chain = issue(&server, &ask.request, Holder::Node(ask.name.clone()))?;
    let comer = Comer {
        name: &ask.name,
        key: &key,
        was_it: was_it(&server, &ask, &key),
    };
    let deed = of_node(&ask.name, "node.join");
    let became = loop {
        let build = |world: &World| {
            let known = world.nodes.get(&ask.name);
            let before = Before {
                was_known: known.is_some(),
                key: known.and_then(|known| known.key.clone()),
            };
            let admitted = match admits(world, &call.principal, token.as_ref(), &comer, now)? {
                Admitted::Before => return Ok((Draft::new(), Some(None))),
                Admitted::Now(spent) => spent,
            };
            let (draft, is_whole) = let_in(&server, world, &ask, &comer, admitted)?;
            Ok((draft, is_whole.then_some(Some(before))))
        };
        if let (Some(became), _) = server.change(&deed, build).await? {
            break became;
        }
    };
    let Some(before) = became else {
        // It was, and nothing is different: there is nothing to tell, whatever the request says.
        return Ok(call::json(&joined(&server, chain)));
    };
    if before.key.as_ref() != Some(&key) {
        forget_seen(&server, &ask.name, &key);
    }
    let said = said(before.was_known);
    let reason = Reason::new(
        "joined",
        format!("node {} {said} in zone {}", ask.name, ask.zone),
    );
    server.say(Level::Info, About::node(&ask.name), reason);
    Ok(call::json(&joined(&server, chain)))
}

/// What had the name until now.
struct Before {
    was_known: bool,
    key: Option<KeyFingerprint>,
}

/// The same request again of a machine that was let in, and did not hear so: its token is used up, and its key is the node's. It is given
/// what it would be given for its key, and changes nothing.
async fn joined_before(
    server: &Server,
    call: &mut Call,
    has_token: bool,
    refusal: Problem,
) -> Answer {
    if !has_token {
        dispatch::discard(server, call.takes_body()).await;
        return Err(refusal);
    }
    let ask: Join = server.strangers.json(call).await?;
    let key = identity::key_of(&ask.request)?;
    if server.look(|world| identity::may_renew(world, &ask.name, &key).is_err()) {
        return Err(refusal);
    }
    let _permit = permit(server).await?;
    let chain = issue(server, &ask.request, Holder::Node(ask.name))?;
    Ok(call::json(&joined(server, chain)))
}

/// Whether the machine shows that it was the node that it wants to be: by the certificate that it had, which may have ended.
fn was_it(server: &Server, ask: &Join, key: &KeyFingerprint) -> bool {
    let shown = ask.certificate.as_deref();
    let shown = shown.and_then(|chain| tls::signed_by(server.authority.certificate(), chain).ok());
    shown.is_some_and(|id| id.name.holder == Holder::Node(ask.name.clone()) && id.key == *key)
}

/// To sign something. Who waits for it has shown a token or a key.
async fn permit(server: &Server) -> Result<SemaphorePermit<'_>, Problem> {
    let permit = tokio::time::timeout(JOIN_PATIENCE, server.gates.joins.acquire()).await;
    match permit {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) => Err(Problem::unavailable("ending", "this server ends")),
        Err(_) => Err(
            Problem::unavailable("busy", "too many machines join at once")
                .remedy("repeat it in a moment"),
        ),
    }
}

fn said(was_there: bool) -> &'static str {
    if was_there { "joined again" } else { "joined" }
}

/// What a node does of itself.
fn of_node(name: &NodeName, action: &'static str) -> Deed {
    let by = Principal::Node { name: name.clone() };
    Deed::new(by.name(), action, format!("node/{name}"))
}

/// The node's record, with all that gives the name to it. False: more is renamed than goes with it; the draft does only some of that, and
/// what is left is to be done anew.
fn let_in(
    server: &Server,
    world: &World,
    ask: &Join,
    comer: &Comer<'_>,
    spent: Option<Record>,
) -> Result<(Draft, bool), Problem> {
    let known = world.nodes.get(&ask.name);
    let nodes = world.nodes.len() + usize::from(known.is_none());
    authorize::admit(&Change::Node { nodes }, &server.limits)
        .map_err(|refusal| problems::of_refusal(&refusal))?;
    let mut draft = Draft::new();
    let now = server.now();
    let next = record(ask, known.map(|known| &known.value), comer.key, now);
    draft.put(Key::Node(ask.name.clone()), known, &next);
    if let Some(spent) = spent {
        draft.delete(Key::Token(spent.hash), &world.tokens[&spent.hash]);
    }
    draft.note(said(known.is_some()));
    let renames = identity::take_name(world, &mut draft, comer, now);
    let mut packed = Draft::pack(std::iter::once(draft).chain(renames));
    // The last has the least in it; those before it rename for themselves.
    if packed.len() == 1 {
        return Ok((packed.remove(0), true));
    }
    let mut some = packed.swap_remove(1);
    some.note("volumes of an earlier node of this name wait for it");
    Ok((some, false))
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

/// How a machine is let in under a name.
enum Admitted {
    /// With this token, which is good for one time only; without one, with what is good for more.
    Now(Option<Record>),
    /// It was, and did not hear so: it is given a certificate, and changes nothing, since anybody may have seen the request.
    Before,
}

/// Whether it may join under this name.
fn admits(
    world: &World,
    principal: &Principal,
    token: Option<&JoinToken>,
    comer: &Comer<'_>,
    now: jiff::Timestamp,
) -> Result<Admitted, Problem> {
    let (Some(record), Some(token)) = (shown(world, principal, token, now)?, token) else {
        return Ok(Admitted::Now(None));
    };
    let name = comer.name;
    record.admits_node(token, name, now).map_err(refuse_join)?;
    let known = world.nodes.get(name).filter(|_| record.node.is_none());
    if let Some(known) = known {
        if known.key.as_ref() == Some(comer.key) {
            return Ok(Admitted::Before);
        }
        return Err(
            Problem::conflict("node-exists", format!("a node {name} is there already")).remedy(
                format!("choose another name, or make a join token for `{name}` alone"),
            ),
        );
    }
    let spent = record.node.is_some().then(|| record.clone());
    Ok(Admitted::Now(spent))
}

/// What another machine said under this name, and was told, before this key had it. The leader may have looked at the new record already, and
/// gives it to nobody again: it is watched from here on.
fn forget_seen(server: &Server, name: &NodeName, key: &KeyFingerprint) {
    let now = server.clock.now();
    server.with(|shared| {
        shared.observed.forget(name);
        let mut outputs = nodes::step(&mut shared.nodes, Input::Forget(name), now);
        if let Some(record) = shared.world.nodes.get(name) {
            outputs.extend(nodes::step(&mut shared.nodes, Input::Record(record), now));
        }
        shared.node_outputs.extend(outputs);
        shared.desired.remove(name);
        // So that the new one is told though nothing else is different.
        shared.observed.version += 1;
    });
    server.tunnels.close_others(name, Some(key));
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
        programs: ask.programs.as_ref().map(few_programs),
        place: known
            .filter(|known| known.key.as_ref() == Some(key))
            .and_then(|known| known.place),
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
    // Much may have happened while the body came.
    let is_its_own = server.look(|world| {
        identity::still_admits(world, &call)?;
        let known = world.nodes.get(&name).and_then(|node| node.key.as_ref());
        Ok::<_, Problem>(known.is_none_or(|known| *known == key))
    })?;
    if !is_its_own {
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
/// use. Anybody may ask: that the name is a node's is looked at before anything is read, that the key is the node's before anything is signed.
pub async fn renew(server: Arc<Server>, mut call: Call) -> Answer {
    let name = call.node()?;
    if !server.look(|world| identity::is_known(world, &name)) {
        dispatch::discard(&server, call.takes_body()).await;
        return Err(identity::is_unknown(&name));
    }
    let ask: Renew = match call.principal {
        Principal::Anonymous => server.strangers.json(&mut call).await?,
        _ => call.json().await?,
    };
    let key = identity::key_of(&ask.request)?;
    if server.look(|world| is_unbound(world, &name)) && call.key() == Some(&key) {
        bind(&server, &name, &key).await?;
    }
    server.look(|world| identity::may_renew(world, &name, &key))?;
    let _permit = permit(&server).await?;
    // Anew: it may have been removed meanwhile.
    server.look(|world| identity::may_renew(world, &name, &key))?;
    let now = server.clock.now();
    server.with(|shared| {
        alone::check(shared, &name, ask.place, server.boot, now)?;
        // It starts, and is about to be heard.
        shared.nodes.knocks(&name);
        Ok::<_, Problem>(())
    })?;
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
