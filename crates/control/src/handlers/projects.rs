//! Projects as a whole: apply, delete, status, explain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::problem::Problem;
use api::wire::{self, Action};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boundary::secret::SecretValue;
use model::boundary::Principal;
use model::ids::{Digest, ProjectName, ResourceName};

use super::{deploys, engines, keys};
use crate::apply::{self, Author, Planned, Step};
use crate::auditor::{Chain, Deed};
use crate::call::{self, Answer, Call, IfMatch};
use crate::draft::Draft;
use crate::explain;
use crate::idempotency::Remember;
use crate::problems;
use crate::records::artifact_of;
use crate::state::{CommitError, Server};
use crate::views;

/// How often an apply is walked through anew because others changed the same things.
const ATTEMPTS: usize = 8;

pub async fn list(server: Arc<Server>, call: Call) -> Answer {
    let with_kept = call.asks("kept", false)?;
    Ok(server.look(|world| {
        let revision = world.revision.to_string();
        let mut items = world.projects();
        if with_kept {
            items.extend(world.projects_with_kept());
            items.sort_unstable();
            items.dedup();
        }
        call::json(&wire::List { items, revision })
    }))
}

pub async fn status(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let now = server.clock.now();
    let status = server.with(|shared| views::status(shared, &project, now));
    let mut status = status.ok_or_else(|| unknown(&server, &project))?;
    if call.asks("engines", true)? {
        status.engines = engines::views(&server, &project).await;
        let concerns = server.look(|world| views::concerns(world, &project, &status.engines));
        status.attention.extend(concerns);
    }
    Ok(call::json(&status))
}

pub fn unknown(server: &Server, project: &ProjectName) -> Problem {
    server.look(|world| problems::no_project(world, project))
}

pub async fn explain(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let subject = call.text("subject").to_owned();
    let events = server.events.since(0);
    let now = server.clock.now();
    let explanation =
        server.with(|shared| explain::resource(shared, &events, &project, &subject, now));
    let unexplained =
        || server.with(|shared| explain::unknown(shared, &project, &subject, server.clock.now()));
    let mut explanation = explanation.ok_or_else(unexplained)?;
    let said = engines::word(&server, &project, &subject).await;
    let said = said.into_iter();
    let lines = said.map(|reason| explain::because(now.at, "report", reason));
    explanation.because.splice(0..0, lines);
    Ok(call::json(&explanation))
}

pub async fn delete(server: Arc<Server>, call: Call) -> Answer {
    let project = call.project()?;
    let delete_data = call.asks("delete_data", false)?;
    let author = author(&server, &call.principal);
    let deed = Deed::new(author.name.clone(), "delete", &project);
    let removed = write_steps(&server, &deed, None, None, |world| {
        let steps = apply::remove_project(world, &project, delete_data, &author)?;
        Ok(Planned {
            steps,
            warnings: Vec::new(),
        })
    })
    .await;
    // A project may have nothing but keys. Where the rest of it stays, they do.
    if let Err(problem) = &removed
        && problem.status != 404
    {
        return removed.map(|applied| call::json(&applied.changes));
    }
    let keys = match delete_data && keys::are_any(&server, &project).await? {
        true => {
            server
                .keep(&deed, vec!["delete all keys".to_owned()])
                .await?;
            keys::clear(&server, &project).await?
        }
        false => 0,
    };
    let changes = match removed {
        Err(problem) if keys == 0 => return Err(problem),
        Err(_) => Vec::new(),
        Ok(applied) => applied.changes,
    };
    Ok(call::json(&changes))
}

pub async fn apply(server: Arc<Server>, mut call: Call) -> Answer {
    let project = call.project()?;
    let terms = Terms {
        if_match: IfMatch::Nothing,
        dry_run: call.asks("dry_run", false)?,
        under: deploys::Under::of(&call, &project),
        remember: call.request.extensions().get::<Remember>().cloned(),
    };
    let ask: wire::Apply = call.strict_json().await?;
    let applied = run(&server, &project, &ask, &call.principal, terms).await?;
    Ok(call::json(&applied))
}

pub fn author(server: &Server, principal: &Principal) -> Author {
    Author {
        name: principal.name(),
        at: server.now(),
    }
}

/// What an apply rests on.
pub struct Terms {
    /// Of the service, where one is applied alone.
    pub if_match: IfMatch,
    /// Says what it would do: under no deploy, and nothing is remembered.
    pub dry_run: bool,
    pub under: deploys::Under,
    pub remember: Option<Remember>,
}

/// Applies, or says what it would do.
pub async fn run(
    server: &Arc<Server>,
    project: &ProjectName,
    ask: &wire::Apply,
    principal: &Principal,
    terms: Terms,
) -> Result<wire::Applied, Problem> {
    let Terms {
        if_match, dry_run, ..
    } = terms;
    let author = author(server, principal);
    let values = values(ask)?;
    let digests: BTreeSet<Digest> = ask
        .services
        .values()
        .filter_map(|spec| artifact_of(&spec.work))
        .collect();
    let missing = server
        .artifacts
        .missing(digests, server.clock.now().instant)
        .await?;
    let plan = |world: &crate::world::World| {
        let keys = server.ring.keys();
        let request = apply::Request {
            project,
            apply: ask,
            values: &values,
            author: &author,
            if_match,
            missing_artifacts: &missing,
            limits: &server.limits,
            keyring: &keys,
            dry_run,
        };
        apply::plan(world, &request)
    };
    if dry_run {
        let (planned, revision) =
            server.look(|world| Ok::<_, Problem>((plan(world)?, world.revision)))?;
        return Ok(applied(&planned, true, revision.to_string()));
    }
    let deed = Deed::new(author.name.clone(), "apply", project);
    write_steps(server, &deed, Some(&terms.under), terms.remember, plan).await
}

fn values(ask: &wire::Apply) -> Result<BTreeMap<ResourceName, SecretValue>, Problem> {
    let decode = |(name, text): (&ResourceName, &String)| {
        let bytes = STANDARD.decode(text).map_err(|_| {
            Problem::new(
                422,
                "malformed",
                format!("the value of secret {name} is not base64"),
            )
        })?;
        Ok((name.clone(), SecretValue::from(bytes)))
    };
    ask.secret_values.iter().map(decode).collect()
}

fn applied(planned: &Planned, dry_run: bool, revision: String) -> wire::Applied {
    wire::Applied {
        changes: planned.changes(),
        warnings: planned.warnings.clone(),
        dry_run,
        revision,
    }
}

/// A line for each change, for the audit log. No change's text holds a secret's value.
pub fn lines(changes: &[wire::Change]) -> Vec<String> {
    let changed = changes
        .iter()
        .filter(|change| change.action != Action::Keep);
    changed
        .map(|change| {
            let action = format!("{:?}", change.action).to_lowercase();
            format!(
                "{action} {} {}: {}",
                change.kind.as_str(),
                change.name,
                change.consequence
            )
        })
        .collect()
}

/// Plans on the world as it is and writes it; starts over when that moved on meanwhile. What does not fit into one transaction is written
/// in several, in order; if a later one fails, the problem says how much is done, and the same request again does the rest.
async fn write_steps(
    server: &Arc<Server>,
    deed: &Deed,
    under: Option<&deploys::Under>,
    remember: Option<Remember>,
    plan: impl Fn(&crate::world::World) -> Result<Planned, Problem>,
) -> Result<wire::Applied, Problem> {
    let mut chain = server.changing.lock().await;
    let mut done = 0;
    let mut first: Option<wire::Applied> = None;
    for _ in 0..ATTEMPTS {
        let looked = server.look(|world| {
            let held = under.map(|under| under.look(world, server.now()));
            Ok::<_, Problem>((held.transpose()?, plan(world)?, world.revision))
        });
        let (held, planned, at) = looked.map_err(|problem| partly(problem, done))?;
        let answer = applied(&planned, false, at.to_string());
        // What an earlier attempt has written is no longer a change now: the first plan is what was done.
        let answer = first.get_or_insert(answer).clone();
        let mut drafts = Draft::pack(planned.steps.into_iter().map(noted));
        if let Some(held) = &held {
            drafts.iter_mut().for_each(|draft| held.bind(draft));
        }
        if let (Some(remember), Some(last)) = (&remember, drafts.last_mut()) {
            remember.add(last, server.now(), &answer);
        }
        match write(server, &mut chain, deed, drafts, &mut done).await {
            Ok(Some(revision)) => {
                server.changed.notify_one();
                return Ok(wire::Applied { revision, ..answer });
            }
            Ok(None) => return Ok(answer),
            Err(CommitError::Conflict(_)) if done == 0 => first = None,
            Err(CommitError::Conflict(_)) => {}
            Err(error) => return Err(partly(error.problem(), done)),
        }
    }
    Err(partly(
        CommitError::Conflict(String::from("a resource")).problem(),
        done,
    ))
}

fn partly(problem: Problem, done: usize) -> Problem {
    match done {
        0 => problem,
        many => problem.detail(format!(
            "{many} transactions of it are done; the same request again does the rest"
        )),
    }
}

/// A step's draft, with what the audit log says of it.
fn noted(Step { mut draft, change }: Step) -> Draft {
    draft.lines = lines(&[change]);
    draft
}

async fn write(
    server: &Server,
    chain: &mut Chain,
    deed: &Deed,
    drafts: Vec<Draft>,
    done: &mut usize,
) -> Result<Option<String>, CommitError> {
    let mut revision = None;
    for draft in drafts {
        let written = server.commit_kept(chain, deed, draft).await?;
        revision = Some(written.to_string());
        *done += 1;
    }
    Ok(revision)
}
