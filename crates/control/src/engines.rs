//! Who uses a database or a topic: what its engine is told of them, and who they are to it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use model::compute::{Placement, SecretNeed, Service, Work};
use model::ids::{ProjectName, ReleaseNumber, ResourceId, ResourceName};
use model::state::{Access, Engine, EngineSettings, Login, database_name};

use crate::desired::Seen;
use crate::world::{Entry, World};

/// A database, as those see it that need it.
enum Database<'w> {
    Managed,
    Elsewhere(&'w model::compute::ExternalLogin),
}

fn database<'w>(world: &'w World, id: &ResourceId) -> Option<Database<'w>> {
    let record = world.services.get(id)?.record.as_ref()?;
    match &record.spec.work {
        Work::Engine {
            engine: Engine::Postgres(_),
        } => Some(Database::Managed),
        Work::External {
            login: Some(login), ..
        } => Some(Database::Elsewhere(login)),
        _ => None,
    }
}

fn beside(project: &ProjectName, name: &ResourceName) -> ResourceId {
    ResourceId::new(project.clone(), name.clone())
}

/// Who a service is to the databases among its needs.
pub fn logins(world: &World, id: &ResourceId, spec: &Service) -> BTreeMap<ResourceName, Login> {
    let login = |need: &ResourceName| match database(world, &beside(&id.project, need))? {
        Database::Managed => Some(Login {
            user: id.name.to_string(),
            database: database_name(need),
        }),
        Database::Elsewhere(external) => Some(external.login.clone()),
    };
    let needs = spec.needs.keys();
    needs
        .filter_map(|need| Some((need.clone(), login(need)?)))
        .collect()
}

/// Where the value comes from that a service is given under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A secret that somebody declared.
    Secret(ResourceId),
    /// Derived from the secret of a database, for this service alone.
    Password { database: ResourceId },
    /// A database's own.
    OfItself,
}

/// All values that a service is given, each with where it comes from.
pub fn given(world: &World, id: &ResourceId, spec: &Service) -> Vec<(SecretNeed, Source)> {
    let mut given: Vec<_> = spec
        .needs
        .iter()
        .filter_map(|(name, need)| {
            let source = source(world, &id.project, name)?;
            let need = SecretNeed {
                name: name.clone(),
                file: need.file && matches!(source, Source::Secret(_)),
            };
            Some((need, source))
        })
        .collect();
    if let Some(Engine::Postgres(_)) = spec.engine() {
        let own = SecretNeed {
            name: id.name.clone(),
            file: false,
        };
        given.push((own, Source::OfItself));
    }
    given
}

fn source(world: &World, project: &ProjectName, need: &ResourceName) -> Option<Source> {
    let id = beside(project, need);
    if world.secrets.contains_key(&id) {
        return Some(Source::Secret(id));
    }
    match database(world, &id)? {
        Database::Managed => Some(Source::Password { database: id }),
        Database::Elsewhere(external) => {
            let password = external.password.as_ref()?;
            Some(Source::Secret(beside(project, password)))
        }
    }
}

/// What engines are told of those that use them, by the engine's id.
pub fn settings(
    world: &World,
    seen: &BTreeMap<&ResourceId, Seen<'_>>,
) -> BTreeMap<ResourceId, EngineSettings> {
    let mut all: BTreeMap<ResourceId, EngineSettings> = BTreeMap::new();
    for (id, seen) in seen {
        let live = world.services.get(*id).and_then(|entry| entry.live());
        let live = live.map(|record| &record.spec);
        for spec in running(seen).into_iter().chain(live) {
            use_by(&mut all, id, spec);
        }
    }
    for settings in all.values_mut() {
        let declared = &settings.connections;
        settings.sharing.retain(|name| declared.contains_key(name));
    }
    for (id, settings) in &mut all {
        if settings.roles.len() > 1 && matches!(database(world, id), Some(Database::Managed)) {
            settings.newcomers = newcomers(world, id, settings.roles.keys());
        }
    }
    all
}

/// Of each service that uses the database, those that came after its oldest copy that runs.
fn newcomers<'w>(
    world: &'w World,
    database: &ResourceId,
    services: impl Iterator<Item = &'w ResourceName> + Clone,
) -> BTreeMap<ResourceName, BTreeSet<ResourceName>> {
    let entry = |name: &ResourceName| world.services.get(&beside(&database.project, name));
    let came: BTreeMap<_, _> = services
        .clone()
        .filter_map(|name| Some((name, first_need(entry(name)?, &database.name)?)))
        .collect();
    // Before that a newcomer had an equal share at once, and has it still.
    let since = world.leader.as_ref().and_then(|it| it.shares_since);
    let after = |name: &ResourceName| {
        let oldest = oldest_running(entry(name)?)?.max(since?);
        let after = came.iter().filter(|(_, came)| **came > oldest);
        let after: BTreeSet<_> = after.map(|(name, _)| (*name).clone()).collect();
        (!after.is_empty()).then(|| (name.clone(), after))
    };
    services.filter_map(after).collect()
}

/// When the first release was made since which the service needs it. `None`: what was before may have been cleaned away, so nobody knows, and
/// it came before anybody.
fn first_need(entry: &Entry, need: &ResourceName) -> Option<Timestamp> {
    let (first, _) = first_with(entry, need)?;
    Some(entry.releases.get(&first)?.at)
}

/// The first release since which the service needs it, and the one before: without that it is not known to be the first.
fn first_with(entry: &Entry, need: &ResourceName) -> Option<(ReleaseNumber, ReleaseNumber)> {
    let newest_first = entry.releases.iter().rev();
    let with = newest_first
        .skip_while(|(_, release)| !release.spec.needs.contains_key(need))
        .take_while(|(_, release)| release.spec.needs.contains_key(need));
    let (first, _) = with.last()?;
    let before = ReleaseNumber(first.0.saturating_sub(1));
    (before.0 == 0 || entry.releases.contains_key(&before)).then_some((*first, before))
}

/// Releases by which it is known since when the service needs the databases that it needs now. At most two for each.
pub fn first_needs(world: &World, id: &ResourceId, entry: &Entry) -> BTreeSet<ReleaseNumber> {
    let needs = entry.live().map(|record| record.spec.needs.keys());
    let is_managed = |need: &&ResourceName| {
        let database = database(world, &beside(&id.project, need));
        matches!(database, Some(Database::Managed))
    };
    let databases = needs.into_iter().flatten().filter(is_managed);
    let with = databases.filter_map(|need| first_with(entry, need));
    with.flat_map(|(first, before)| [first, before]).collect()
}

/// When the oldest of its copies was placed: those that started before others came have pools for what there was then. A copy counts from its
/// release where nobody kept when it was placed.
fn oldest_running(entry: &Entry) -> Option<Timestamp> {
    let placements = entry.placements.iter().flat_map(|group| &group.placements);
    let began = placements.filter_map(|placed| {
        let released = entry.releases.get(&placed.release)?.at;
        Some(placed.placed().map_or(released, |at| at.max(released)))
    });
    began.min()
}

/// The releases that have a placement, oldest first: until a rollout is through, messages go where the copies before it expect them.
fn running<'w>(seen: &Seen<'w>) -> Vec<&'w Service> {
    let placements: &Vec<Placement> = &seen.group.placements;
    let mut numbers: Vec<_> = placements.iter().map(|placed| placed.release).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let releases = numbers
        .iter()
        .filter_map(|number| seen.releases.get(number));
    releases.copied().collect()
}

fn use_by(all: &mut BTreeMap<ResourceId, EngineSettings>, id: &ResourceId, spec: &Service) {
    for (need, options) in &spec.needs {
        let settings = all.entry(beside(&id.project, need)).or_default();
        let access = settings
            .roles
            .entry(id.name.clone())
            .or_insert(options.access);
        *access = (*access).max(options.access);
        // Copies of all releases hold theirs until they are gone: with fewer, the new ones would find none left.
        if let Some(most) = options.connections {
            let declared = settings.connections.entry(id.name.clone()).or_default();
            *declared = most.max(*declared);
        } else {
            settings.sharing.insert(id.name.clone());
        }
    }
    for (topic, subscription) in &spec.on {
        let settings = all.entry(beside(&id.project, topic)).or_default();
        let known = settings.subscriptions.entry(id.name.clone());
        known.or_insert_with(|| subscription.clone());
    }
}

/// What of it means something to this engine.
pub fn of_engine(engine: &Engine, all: Option<&EngineSettings>) -> EngineSettings {
    let all = all.cloned().unwrap_or_default();
    match engine {
        Engine::Postgres(_) => EngineSettings {
            roles: all.roles,
            connections: all.connections,
            sharing: all.sharing,
            newcomers: all.newcomers,
            ..EngineSettings::default()
        },
        Engine::Topic(_) => EngineSettings {
            subscriptions: all.subscriptions,
            consumers: all
                .roles
                .into_iter()
                .filter(|(_, access)| *access == Access::Consume)
                .map(|(service, _)| service)
                .collect(),
            ..EngineSettings::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use model::compute::Wanted;

    use super::*;
    use crate::testing::{release, stored};

    /// Only some releases are kept: who is deployed often would be a newcomer ever anew.
    #[test]
    fn who_came_is_known_only_where_the_release_before_is_kept() {
        let need: ResourceName = "db".parse().expect("a name");
        let release_at = |number: u64, needs: bool| {
            let mut release = release(ReleaseNumber(number));
            release.at = Timestamp::from_second(number.cast_signed()).expect("a time");
            if needs {
                release.spec.needs.insert(need.clone(), Default::default());
            }
            (release.number, stored(release))
        };
        for (kept, expected) in [
            (&[(1, true), (2, true)][..], Some(1)),
            (&[(1, false), (2, true), (3, true)], Some(2)),
            (&[(6, false), (7, true)], Some(7)),
            (&[(5, true), (6, true)], None),
            (&[(1, false), (2, false)], None),
            (&[], None),
        ] {
            let entry = Entry {
                releases: kept
                    .iter()
                    .map(|(number, needs)| release_at(*number, *needs))
                    .collect(),
                ..Entry::default()
            };
            let came = first_need(&entry, &need).map(Timestamp::as_second);
            assert_eq!(came, expected, "{kept:?}");
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn placed_at(second: i64, wanted: Wanted, before: Option<i64>) -> Placement {
        Placement {
            instance: "web-1".parse().expect("a name"),
            release: ReleaseNumber(1),
            node: "a".parse().expect("a name"),
            slot: None,
            role: Default::default(),
            purpose: Default::default(),
            epoch: Default::default(),
            wanted,
            replaces: None,
            reason: model::control::Reason::new("placed", "placed"),
            at: at(second),
            placed_at: before.map(at),
        }
    }

    /// A pool was made when the copy was, however old the release is that it runs: scaled to none and back, it has no claim from before.
    #[test]
    fn a_copy_counts_from_when_it_was_placed() {
        use Wanted::{Leave, Run};
        for (placed, expected) in [
            (&[(5, Run, None)][..], Some(5)),
            (&[(9, Run, None), (5, Run, None)], Some(5)),
            // Not from when it was told to leave.
            (&[(9, Leave, Some(5))], Some(5)),
            (&[(9, Leave, Some(5)), (8, Run, None)], Some(5)),
            // An earlier version did not keep when: from its release.
            (&[(9, Leave, None), (8, Run, None)], Some(2)),
            // By a clock that went back.
            (&[(1, Run, None)], Some(2)),
            (&[], None),
        ] {
            let mut release = release(ReleaseNumber(1));
            release.at = at(2);
            let group = model::compute::PlacementGroup {
                placements: placed
                    .iter()
                    .map(|(second, wanted, before)| placed_at(*second, *wanted, *before))
                    .collect(),
                ..Default::default()
            };
            let entry = Entry {
                releases: [(release.number, stored(release))].into(),
                placements: Some(stored(group)),
                ..Entry::default()
            };
            let oldest = oldest_running(&entry).map(Timestamp::as_second);
            assert_eq!(oldest, expected, "{placed:?}");
        }
    }

    /// Who is deployed often would be there from before anybody, and take its share from pools that are open.
    #[test]
    fn releases_that_say_since_when_a_database_is_needed_are_kept() {
        let need: ResourceName = "db".parse().expect("a name");
        let user: ResourceId = "shop/report".parse().expect("an id");
        let with = |number: u64, needs: bool| {
            let mut release = release(ReleaseNumber(number));
            if needs {
                release.spec.needs.insert(need.clone(), Default::default());
            }
            release
        };
        let database = Work::Engine {
            engine: Engine::Postgres(model::state::Postgres {
                version: 15,
                outbox: None,
                extensions: Default::default(),
            }),
        };
        for (first, is_database, expected) in [
            (3, true, &[2, 3][..]),
            (1, true, &[0, 1]),
            // The one before is gone: so nobody knows any more.
            (2, true, &[]),
            (3, false, &[]),
        ] {
            let mut world = World::default();
            let mut add = |id: &ResourceId, entry: Entry| {
                world.services.insert(id.clone(), entry);
            };
            let record = |spec: Service| crate::records::ServiceRecord {
                spec,
                current: None,
                removing: None,
            };
            let releases = (1..=15).filter(|number| first != 2 || *number > 1);
            let entry = Entry {
                record: Some(stored(record(with(15, true).spec))),
                releases: releases
                    .map(|number| with(number, number >= first))
                    .map(|release| (release.number, stored(release)))
                    .collect(),
                ..Entry::default()
            };
            add(&user, entry.clone());
            if is_database {
                let entry = Entry {
                    record: Some(stored(record(Service::of(database.clone())))),
                    ..Entry::default()
                };
                add(&beside(&user.project, &need), entry);
            }
            let kept = first_needs(&world, &user, &entry);
            let kept: Vec<_> = kept.iter().map(|number| number.0).collect();
            assert_eq!(kept, expected, "needed since {first}");
        }
    }
}
