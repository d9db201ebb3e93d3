//! Hears what the node should run, and keeps it on disk.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use compute::beneath::remove_tree;
use compute::runtime::Environment;
use futures_util::StreamExt;
use model::boundary::KeyFingerprint;
use model::compute::{DesiredInstance, environment_name};
use model::control::{NodeDesired, Reason};
use model::ids::{Generation, InstanceId, InstanceName, ResourceId, ResourceName};
use model::signals::Level;
use model::traffic::{Protocol, Road};
use plan::Instant;
use plan::agent::Input;

use crate::agent::Agent;
use crate::core::Core;
use crate::instances::Order;
use crate::pause::Pause;
use crate::{begin, clock, layout, snapshot};

/// Between two tries to keep, or to forget, what the disk refused to.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Watches for as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut pause = Pause::of_connection();
    'anew: loop {
        let asked_at = clock::instant();
        let client = agent.identities.client();
        match client.watch_desired(&agent.config.name).await {
            Ok(mut stream) => loop {
                let told = tokio::select! {
                    told = stream.next() => told,
                    // The connection is good; what came over it so far is not to be relied on.
                    () = agent.signals.watch_anew.notified() => continue 'anew,
                };
                match told {
                    Some(Ok(desired)) => {
                        pause.reset();
                        adopt_named(&agent, &desired).await;
                        take(&agent, desired, Some(asked_at));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the watch of the desired state broke");
                        break;
                    }
                    None => break,
                }
            },
            Err(error) => tracing::debug!(%error, "the desired state can't be watched"),
        }
        pause.wait().await;
    }
}

/// Keeps what was taken, for as long as the agent lives. What the disk refuses is tried again.
pub async fn keep(agent: Arc<Agent>) {
    loop {
        let of = agent.clone();
        let kept = tokio::task::spawn_blocking(move || keep_newest(&of)).await;
        if kept.is_err() {
            tracing::error!("keeping what the servers want panicked");
        }
        let waits = agent.with(|core| core.to_keep.is_some());
        let news = agent.signals.keep.notified();
        match waits {
            true => drop(tokio::time::timeout(AGAIN_AFTER, news).await),
            false => news.await,
        }
    }
}

/// `asked_at`: `None` for what was kept on disk.
///
/// It is followed at once and from memory: a disk that is full or stands still must not keep a node from stopping things. It is acknowledged only once it
/// is on the disk.
pub fn take(agent: &Arc<Agent>, mut desired: NodeDesired, asked_at: Option<Instant>) {
    let generation = desired.generation;
    let is_new = agent.with(|core| {
        let is_new = core.state.generation() < Some(generation);
        if is_new {
            core.road = plan::road::merge(&core.road, &desired.road);
            desired.road = core.road.clone();
            core.learn_protocols();
        }
        let is_known = core.state.generation() == Some(generation);
        if (is_new || is_known)
            && learn_removed(&mut core.removed, &desired.removed, asked_at.is_some())
        {
            agent.signals.road.send_replace(());
        }
        is_new
    });
    let to_keep = is_new.then(|| desired.clone());
    agent.tell(Input::Desired {
        desired: Box::new(desired),
        asked_at,
    });
    // What came as another release than what is left of it.
    agent.with(|core| {
        let state = &core.state;
        core.foreign
            .retain(|id, left| left.is_going || state.instance(id).is_none());
    });
    if asked_at.is_some() {
        agent.signals.told.send_replace(true);
        // Also by one that confirms what was kept.
        agent.with(|core| remove_unnamed(agent, core));
    }
    let Some(to_keep) = to_keep else { return };
    agent.with(|core| {
        if asked_at.is_none() {
            core.kept = Some(generation);
            core.not_forgotten = to_keep.forget_volumes.iter().cloned().collect();
        }
        core.to_keep = Some(to_keep);
        tell_wrong_urls(agent, core);
    });
    agent.signals.keep.notify_one();
    agent.signals.road.send_replace(());
    agent.signals.certify.notify_one();
    agent.signals.report.notify_one();
}

/// Who was removed stays so until a server says otherwise: what was kept may be older than what is known. True: something changed.
fn learn_removed(
    known: &mut BTreeSet<KeyFingerprint>,
    told: &BTreeSet<KeyFingerprint>,
    by_server: bool,
) -> bool {
    let mut now = told.clone();
    if !by_server {
        now.extend(known.iter().cloned());
    }
    let changes = *known != now;
    *known = now;
    changes
}

/// Volumes are forgotten before that is acknowledged. Those that the disk refuses to forget are named until it does, and the servers place nothing here
/// that would have them.
fn keep_newest(agent: &Arc<Agent>) {
    let Some(mut desired) = agent.with(|core| core.to_keep.clone()) else {
        return;
    };
    let generation = desired.generation;
    let asked = desired.forget_volumes.len();
    desired
        .forget_volumes
        .retain(|service| !forget(agent, service));
    let is_kept = agent.with(|core| core.kept == Some(generation));
    let written = match is_kept && desired.forget_volumes.len() == asked {
        true => Ok(()),
        false => layout::write(&agent.layout.desired(), &desired),
    };
    agent.with(|core| {
        core.not_forgotten = desired.forget_volumes.iter().cloned().collect();
        let is_done = written.is_ok() && desired.forget_volumes.is_empty();
        match written {
            Ok(()) => is_on_disk(agent, core, generation),
            Err(error) => is_refused(agent, core, &error),
        }
        // What came meanwhile is next.
        let is_newest = core.to_keep.as_ref().map(|newest| newest.generation) == Some(generation);
        if is_newest {
            core.to_keep = (!is_done).then_some(desired);
        } else {
            agent.signals.keep.notify_one();
        }
    });
    // That it was taken is what the server waits for.
    agent.signals.report.notify_one();
}

fn is_on_disk(agent: &Agent, core: &mut Core, generation: Generation) {
    core.kept = Some(generation);
    if core.unkept.take().is_some() {
        let message = "what the servers want is on the disk again";
        agent.say(core, None, Level::Info, Reason::new("disk-keeps", message));
    }
}

fn is_refused(agent: &Agent, core: &mut Core, error: &layout::Error) {
    let message = format!(
        "what the servers want is followed from memory alone, and forgotten by a restart: the disk refuses: {error}"
    );
    let reason = Reason::new("disk-refuses", message);
    if core.unkept.as_ref() != Some(&reason) {
        core.unkept = Some(reason.clone());
        agent.say(core, None, Level::Error, reason);
    }
}

/// Instances whose record can't be read, and which are named now in words that can: they go on as what they are named.
pub async fn adopt_named(agent: &Arc<Agent>, desired: &NodeDesired) {
    let named = agent.with(|core| {
        if core.state.generation() > Some(desired.generation) {
            return Vec::new();
        }
        // Each is left as it is until its turn. Another release of it, or another placement, ends what is there before it begins.
        let named = desired.instances.iter().filter_map(|one| {
            let left = core.foreign.get(&one.instance)?;
            let left = (!left.is_going).then(|| left.clone())?;
            Some((left.named(one.clone())?, left))
        });
        named.collect::<Vec<_>>()
    });
    let any = !named.is_empty();
    for (record, left) in named {
        begin::go_on(agent, record, left).await;
    }
    if any {
        agent.firewall.wants();
    }
}

/// What is left of instances whose record can't be read, and which nobody names any more.
fn remove_unnamed(agent: &Arc<Agent>, core: &mut Core) {
    let named = |id: &InstanceId| core.state.instance(id).is_some() || core.state.is_foreign(id);
    let gone: Vec<_> = core
        .foreign
        .iter()
        .filter(|(id, left)| !left.is_going && !named(id))
        .map(|(id, _)| id.clone())
        .collect();
    for id in gone {
        core.leaves(&id);
        agent.signals.road.send_replace(());
        agent.order(core, id, Order::Remove);
    }
}

/// What runs keeps the URLs that it was started with. One that is wrong by now is told, once.
fn tell_wrong_urls(agent: &Agent, core: &mut Core) {
    let wrong: Vec<_> = core
        .state
        .instances()
        .filter(|(_, instance)| instance.pid().is_some())
        .flat_map(|(id, instance)| {
            let spec = core.specs.get(id);
            let given =
                spec.map(|spec| wrong_urls(instance.desired(), &spec.environment, &core.road));
            given
                .unwrap_or_default()
                .into_iter()
                .map(|wrong| (id.clone(), wrong))
        })
        .collect();
    for (id, wrong) in &wrong {
        if !core.wrong_urls.contains(&(id.clone(), wrong.clone())) {
            let reason = Reason::new("need-changed", wrong.in_words(&id.name));
            agent.say(core, Some(id.clone()), Level::Warning, reason);
        }
    }
    core.wrong_urls = wrong.into_iter().collect();
}

/// A need whose URL says another protocol than it speaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WrongUrl {
    service: ResourceName,
    need: ResourceName,
    given: String,
    speaks: &'static str,
}

impl WrongUrl {
    fn in_words(&self, instance: &InstanceName) -> String {
        let Self {
            service,
            need,
            given,
            speaks,
        } = self;
        let variable = environment_name(need);
        format!(
            "{instance} was started with {variable}_URL={given}, and {need} speaks {speaks} now: `mainland restart {service}` gives it the right one"
        )
    }
}

fn wrong_urls(desired: &DesiredInstance, environment: &Environment, road: &Road) -> Vec<WrongUrl> {
    // A database's URL is of its own kind, and what the manifest says of a variable stands.
    let is_ours = |need: &&ResourceName| {
        let variable = format!("{}_URL", environment_name(need));
        !desired.logins.contains_key(*need) && !desired.spec.env.contains_key(&variable)
    };
    let needs = desired.spec.needs.keys().chain(desired.need_ports.keys());
    let needs = needs.filter(is_ours);
    let wrong = needs.filter_map(|need| {
        let given = environment
            .0
            .get(&format!("{}_URL", environment_name(need)))?;
        let id = ResourceId::new(desired.instance.project.clone(), need.clone());
        let speaks = match snapshot::destination(road, &id)?.protocol {
            Protocol::Http => "http",
            Protocol::Tcp => "tcp",
        };
        let is_right = given
            .split_once("://")
            .is_none_or(|(scheme, _)| scheme == speaks);
        (!is_right).then(|| WrongUrl {
            service: desired.service.clone(),
            need: need.clone(),
            given: given.clone(),
            speaks,
        })
    });
    wrong.collect()
}

/// True: there is none of it any more where a service would find it.
fn forget(agent: &Arc<Agent>, service: &ResourceId) -> bool {
    match agent.layout.forget_volumes(service) {
        Ok(None) => true,
        Ok(Some(gone)) => {
            let (of, service) = (agent.clone(), service.clone());
            // It may take minutes. What is left of it is tried again by the next agent.
            tokio::task::spawn_blocking(move || {
                let (level, reason) = deleted(&service, &gone, remove_tree(&gone));
                of.with(|core| of.say(core, None, level, reason));
            });
            true
        }
        Err(error) => {
            agent.with(|core| {
                if !core.not_forgotten.contains(service) {
                    agent.disk_refuses(core, &error);
                }
            });
            false
        }
    }
}

fn deleted(service: &ResourceId, place: &Path, removed: io::Result<()>) -> (Level, Reason) {
    let Err(error) = removed else {
        let message = format!("the volumes of {service} are deleted, as somebody asked");
        return (Level::Info, Reason::new("volumes-forgotten", message));
    };
    let place = place.display();
    let message = format!(
        "the volumes of {service} are put aside, and can't be deleted from {place}: {error}"
    );
    let remedy = format!("as root on the node, look at what holds {place} and remove it");
    let reason = Reason::new("volumes-not-deleted", message).with_detail(vec![remedy]);
    (Level::Error, reason)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::compute::{Need, Purpose, Role, Service, Wanted, Work};
    use model::ids::{Epoch, ReleaseNumber};
    use model::traffic::{Destination, TrafficOptions};

    use super::*;

    fn caller() -> DesiredInstance {
        let work = Work::Process {
            run: vec!["./web".to_owned()],
            artifact: None,
        };
        let mut spec = Service::of(work);
        spec.needs.insert("queue".parse().unwrap(), Need::default());
        DesiredInstance {
            instance: "shop/web-1".parse().unwrap(),
            service: "web".parse().unwrap(),
            release: ReleaseNumber(1),
            epoch: Epoch(1),
            slot: None,
            role: Role::Member,
            purpose: Purpose::Serve,
            wanted: Wanted::Run,
            uid: 1,
            spec,
            secrets: Vec::new(),
            start_after: Vec::new(),
            logins: BTreeMap::new(),
            need_ports: BTreeMap::new(),
            settings: None,
        }
    }

    fn road(protocol: Option<Protocol>) -> Road {
        let destination = |protocol| Destination {
            service: "shop/queue".parse().unwrap(),
            protocol,
            traffic: TrafficOptions::default(),
            endpoints: Vec::new(),
            external: Vec::new(),
        };
        Road {
            destinations: protocol.map(destination).into_iter().collect(),
            ..Road::default()
        }
    }

    #[test]
    fn volumes_are_said_to_be_deleted_once_they_are() {
        let service: ResourceId = "shop/db".parse().unwrap();
        let place = Path::new("/d/volumes/shop/.forgotten-db.1.0");
        let (level, reason) = deleted(&service, place, Ok(()));
        assert_eq!(
            (level, reason.code.as_str()),
            (Level::Info, "volumes-forgotten")
        );
        let busy = io::Error::from(io::ErrorKind::ResourceBusy);
        let (level, reason) = deleted(&service, place, Err(busy));
        assert_eq!(
            (level, reason.code.as_str()),
            (Level::Error, "volumes-not-deleted")
        );
        assert!(reason.message.contains("shop/db") && reason.message.contains("resource busy"));
        assert!(reason.detail[0].contains("/d/volumes/shop/.forgotten-db.1.0"));
    }

    #[test]
    fn a_url_that_a_need_outgrew_is_told() {
        let (http, tcp) = (Some(Protocol::Http), Some(Protocol::Tcp));
        for (given, speaks, is_wrong) in [
            ("http://127.77.0.1:7080", http, false),
            ("http://127.77.0.1:7080", tcp, true),
            ("tcp://127.77.0.1:7080", tcp, false),
            ("tcp://127.77.0.1:7080", http, true),
            // Gone for now: nothing is known of it.
            ("http://127.77.0.1:7080", None, false),
        ] {
            let mut environment = Environment::default();
            environment
                .0
                .insert("QUEUE_URL".to_owned(), given.to_owned());
            let wrong = wrong_urls(&caller(), &environment, &road(speaks));
            assert_eq!(wrong.len(), usize::from(is_wrong), "{given} {speaks:?}");
            for wrong in wrong {
                let told = wrong.in_words(&"web-1".parse().unwrap());
                assert!(
                    told.contains("QUEUE_URL") && told.contains("`mainland restart web`"),
                    "{told}"
                );
            }
        }
        // What the manifest says itself is its own business.
        let mut own = caller();
        let variable = "QUEUE_URL".to_owned();
        own.spec
            .env
            .insert(variable.clone(), "http://elsewhere".to_owned());
        let environment = Environment([(variable, "http://elsewhere".to_owned())].into());
        assert!(wrong_urls(&own, &environment, &road(tcp)).is_empty());
    }
}
