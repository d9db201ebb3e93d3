//! Secrets: set by people, read by the nodes that run what needs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::problem::{Problem, nearest};
use api::wire::{self, SecretValues};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use boundary::authorize::{self, Change};
use boundary::secret::SecretValue;
use model::compute::Work;
use model::ids::ResourceId;
use model::state::role_password;

use super::projects;
use crate::apply;
use crate::auditor::Deed;
use crate::call::{self, Answer, Call};
use crate::engines::{self, Source};
use crate::problems;
use crate::records::{SecretRecord, ServiceRecord};
use crate::state::Server;
use crate::views;
use crate::world::{Stored, World};

pub async fn set(server: Arc<Server>, mut call: Call) -> Answer {
    let id = call.resource("name")?;
    let ask: wire::SecretValue = call.json().await?;
    let bytes = STANDARD.decode(&ask.value).map_err(|_| {
        Problem::new(
            422,
            "malformed",
            format!("the value of secret {id} is not base64"),
        )
    })?;
    let value = SecretValue::from(bytes);
    let admitted = Change::Secret {
        secret: id.clone(),
        length: value.expose().len(),
    };
    authorize::admit(&admitted, &server.limits)
        .map_err(|refusal| problems::of_refusal(&refusal))?;
    let if_match = call.if_match()?;
    let author = projects::author(&server, &call.principal);
    let deed = Deed::new(author.name.clone(), "secret.set", &id);
    let ((record, unchanged), revision) = server
        .change(&deed, |world: &World| {
            if_match.check(format!("secret {id}"), world.secrets.get(&id))?;
            let (mut draft, record) =
                apply::set_value(world, &id, &value, &server.ring.keys(), &author)?;
            draft.note(format!("version {}", record.version));
            let unchanged = draft.is_empty();
            Ok((draft, (record, unchanged)))
        })
        .await?;
    let mut view = views::secret(&id, &record);
    view.unchanged = unchanged;
    view.warnings = server.look(|world| nobody_needs(world, &id).into_iter().collect());
    Ok(call::tagged(&view, revision))
}

/// That no service needs it, with the name that was perhaps meant.
fn nobody_needs(world: &World, id: &ResourceId) -> Option<String> {
    let is_password = |(_, _, record): (_, _, &Stored<ServiceRecord>)| match &record.spec.work {
        Work::External { login, .. } => {
            let login = login.as_ref();
            login.is_some_and(|login| login.password.as_ref() == Some(&id.name))
        }
        Work::Process { .. } | Work::Engine { .. } => false,
    };
    if !apply::users(world, id).is_empty() || world.services_of(&id.project).any(is_password) {
        return None;
    }
    let others = world.secrets_of(&id.project).map(|(name, _)| name.as_str());
    let others = others.filter(|name| *name != id.name.as_str());
    let meant = nearest(id.name.as_str(), others);
    let meant = meant.map_or(String::new(), |name| format!("; did you mean `{name}`?"));
    Some(format!(
        "nothing in {} needs a secret {} so far{meant}",
        id.project, id.name
    ))
}

/// The values that a service's secrets have now. That it is placed on the node that asks was checked.
pub async fn values(server: Arc<Server>, call: Call) -> Answer {
    let service = call.resource("service")?;
    let opened = server.look(|world| {
        let entry = world
            .services
            .get(&service)
            .ok_or_else(|| Problem::not_found(format!("service {service}")))?;
        let specs = entry
            .releases
            .values()
            .map(|release| &release.spec)
            .chain(entry.record.as_ref().map(|record| &record.spec));
        let given = specs.flat_map(|spec| engines::given(world, &service, spec));
        let mut values = BTreeMap::new();
        for (need, source) in given {
            if let Some(value) = value_from(&server, world, &service, &source)? {
                values.insert(need.name, STANDARD.encode(value.expose()));
            }
        }
        Ok::<_, Problem>(values)
    })?;
    Ok(call::json(&SecretValues { values: opened }))
}

/// What a service is given. Of a database's secret only the database itself gets more than a password of its own.
fn value_from(
    server: &Server,
    world: &World,
    service: &ResourceId,
    source: &Source,
) -> Result<Option<SecretValue>, Problem> {
    match source {
        Source::Secret(id) => value(server, id, world.secrets.get(id)),
        Source::OfItself => value(server, service, world.engine_secrets.get(service)),
        Source::Password { database } => {
            let secret = value(server, database, world.engine_secrets.get(database))?;
            let Some(secret) = secret else {
                return Ok(None);
            };
            let text = std::str::from_utf8(secret.expose())
                .map_err(|_| Problem::internal(format!("the secret of {database} is no text")))?;
            let password = role_password(text, &service.name);
            Ok(Some(SecretValue::from(password.into_bytes())))
        }
    }
}

/// A secret without a value is left out: what needs it says so by name.
fn value(
    server: &Server,
    id: &ResourceId,
    record: Option<&Stored<SecretRecord>>,
) -> Result<Option<SecretValue>, Problem> {
    let Some(record) = record.filter(|record| record.envelope.is_some()) else {
        return Ok(None);
    };
    let value = apply::open_secret(&server.ring.keys(), id, record).ok_or_else(|| {
        Problem::internal(format!("the envelope of secret {id} does not open"))
            .remedy("restore the server's `keyring` file")
    })?;
    Ok(Some(value))
}
