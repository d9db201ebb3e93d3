//! Secrets of an apply. A value is sealed at once and never part of a change's text.

use api::problem::Problem;
use api::wire::{Action, Change, Kind};
use boundary::authorize::Change as Admitted;
use boundary::secret::{Binding, Keyring, SecretValue};
use model::boundary::SecretSource;
use model::ids::{ResourceId, ResourceName};

use super::services::claim_name;
use super::{Author, Planner, change};
use crate::draft::Draft;
use crate::records::{Key, NameRecord, SecretRecord};
use crate::world::{Stored, World};

impl Planner<'_> {
    pub(super) fn secret(
        &mut self,
        name: &ResourceName,
        source: &SecretSource,
    ) -> Result<(), Problem> {
        let id = self.id(name);
        let stored = self.world.secrets.get(&id);
        let value = self.request.values.get(name);
        self.admit_secret(&id, value)?;
        let mut draft = Draft::new();
        claim_name(self.world, &id, NameRecord::Secret, &mut draft)?;
        let given = self.new_value(&id, source, stored)?;
        let source_changed = stored.is_none_or(|stored| stored.source != *source);
        if given.is_none() && !source_changed {
            self.push(
                change(
                    Kind::Secrets,
                    name,
                    Action::Keep,
                    "nothing changes",
                    Vec::new(),
                    None,
                ),
                Draft::new(),
            );
            return Ok(());
        }
        let record = next_record(
            &id,
            source,
            stored,
            given.as_ref(),
            self.request.keyring,
            self.request.author,
        )?;
        draft.put(Key::Secret(id.clone()), stored, &record);
        if record.version == 0 {
            self.warn(format!(
                "secret {name} has no value yet: set it with `mainland secret set {name} -p {}`",
                id.project
            ));
        }
        let change = described(self.world, &id, stored, given.is_some());
        self.push(change, draft);
        Ok(())
    }

    /// Values of secrets that are declared already and not in this file.
    pub(super) fn values_of_others(&mut self) -> Result<(), Problem> {
        let declared = &self.request.apply.secrets;
        let others: Vec<_> = self
            .request
            .values
            .keys()
            .filter(|name| !declared.contains_key(*name))
            .cloned()
            .collect();
        for name in others {
            let id = self.id(&name);
            let source = self
                .world
                .secrets
                .get(&id)
                .map(|stored| stored.source.clone());
            let source = source.ok_or_else(|| Problem::not_found(format!("secret {id}")))?;
            self.secret(&name, &source)?;
        }
        Ok(())
    }

    fn admit_secret(&self, id: &ResourceId, value: Option<&SecretValue>) -> Result<(), Problem> {
        let length = value.map_or(0, |value| value.expose().len());
        self.admit(&Admitted::Secret {
            secret: id.clone(),
            length,
        })
    }

    /// The value that this apply brings, if it is another than the one there is.
    fn new_value(
        &self,
        id: &ResourceId,
        source: &SecretSource,
        stored: Option<&Stored<SecretRecord>>,
    ) -> Result<Option<SecretValue>, Problem> {
        let name = &id.name;
        let known = stored.and_then(|stored| open(self.request.keyring, id, stored));
        match (self.request.values.get(name), source) {
            (Some(value), _) if known.as_ref() == Some(value) => Ok(None),
            (Some(value), _) => Ok(Some(value.clone())),
            (None, SecretSource::Generate { bytes }) if known.is_none() => {
                Ok(Some(SecretValue::generate(*bytes)))
            }
            (None, SecretSource::File { path }) if known.is_none() && !self.request.dry_run => {
                Err(Problem::new(
                    422,
                    "secret-value-missing",
                    format!("secret {name} comes from the file {path}, and its value was not sent"),
                )
                .remedy("apply with the CLI, which reads the file, or send it in `secret_values`"))
            }
            _ => Ok(None),
        }
    }
}

/// The value that a secret has now.
pub fn open(keyring: &Keyring, id: &ResourceId, record: &SecretRecord) -> Option<SecretValue> {
    let binding = Binding::Secret {
        id: id.clone(),
        version: record.version,
    };
    keyring.open(&binding, record.envelope.as_ref()?).ok()
}

/// Gives a declared secret a value by hand. The value that it has already is no new version: the draft is empty.
pub fn set_value(
    world: &World,
    id: &ResourceId,
    value: &SecretValue,
    keyring: &Keyring,
    author: &Author,
) -> Result<(Draft, SecretRecord), Problem> {
    let stored = world.secrets.get(id);
    if let Some(stored) = stored
        && open(keyring, id, stored).as_ref() == Some(value)
    {
        return Ok((Draft::new(), stored.value.clone()));
    }
    super::check_value(world, keyring, id, value)?;
    let source = stored.map_or(SecretSource::Given, |stored| stored.source.clone());
    let mut draft = Draft::new();
    claim_name(world, id, NameRecord::Secret, &mut draft)?;
    let record = next_record(id, &source, stored, Some(value), keyring, author)?;
    draft.put(Key::Secret(id.clone()), stored, &record);
    Ok((draft, record))
}

/// Random bytes in a database's secret.
const ENGINE_SECRET_BYTES: u32 = 32;

/// The first and only version of what the passwords of a database are derived from.
pub(super) fn of_engine(
    id: &ResourceId,
    keyring: &Keyring,
    author: &Author,
) -> Result<SecretRecord, Problem> {
    let source = SecretSource::Generate {
        bytes: ENGINE_SECRET_BYTES,
    };
    let value = SecretValue::generate(ENGINE_SECRET_BYTES);
    next_record(id, &source, None, Some(&value), keyring, author)
}

fn next_record(
    id: &ResourceId,
    source: &SecretSource,
    stored: Option<&Stored<SecretRecord>>,
    value: Option<&SecretValue>,
    keyring: &Keyring,
    author: &Author,
) -> Result<SecretRecord, Problem> {
    let mut next = SecretRecord {
        source: source.clone(),
        version: 0,
        envelope: None,
        changed_at: author.at,
        changed_by: author.name.clone(),
    };
    if let Some(stored) = stored {
        next = SecretRecord {
            source: source.clone(),
            ..stored.value.clone()
        };
    }
    if let Some(value) = value {
        next.version += 1;
        let binding = Binding::Secret {
            id: id.clone(),
            version: next.version,
        };
        let sealed = keyring.seal(&binding, value);
        next.envelope =
            Some(sealed.map_err(|error| Problem::new(422, "secret-refused", error.to_string()))?);
        next.changed_at = author.at;
        next.changed_by = author.name.clone();
    }
    Ok(next)
}

fn described(
    world: &World,
    id: &ResourceId,
    stored: Option<&Stored<SecretRecord>>,
    new_value: bool,
) -> Change {
    let users = users(world, id);
    let consequence = match (stored, new_value, users.is_empty()) {
        (None, ..) => "is there for those that need it".to_owned(),
        (Some(_), false, _) | (Some(_), true, true) => "nothing restarts".to_owned(),
        (Some(_), true, false) => format!(
            "nothing restarts; restart {} to use the new value",
            users.join(", ")
        ),
    };
    let action = if stored.is_none() {
        Action::Create
    } else {
        Action::Change
    };
    let diff = match new_value {
        true => vec!["value: new".to_owned()],
        false => vec!["source: changed".to_owned()],
    };
    change(Kind::Secrets, &id.name, action, consequence, diff, None)
}

/// The services that need a secret.
pub fn users(world: &World, id: &ResourceId) -> Vec<String> {
    let services = world.services_of(&id.project);
    services
        .filter(|(_, _, record)| {
            record.spec.needs.contains_key(&id.name) || record.spec.on.contains_key(&id.name)
        })
        .map(|(name, ..)| name.to_string())
        .collect()
}
