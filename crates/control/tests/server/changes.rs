//! Changes: applies, releases, rollouts, conditions, keys, watches.

use api::wire::{self, Action, Apply, Kind, Rollback, WatchEvent};
use futures_util::StreamExt;
use http::Method;
use model::boundary::AuditOutcome;
use model::compute::{ArtifactForm, ArtifactRef, Service, Work};
use model::control::RolloutPhase;
use model::ids::{Digest, NodeName, ReleaseNumber};
use model::traffic::{Protocol, Route};
use model::units::{Bytes, Span};

use crate::cloud::*;

#[tokio::test]
async fn a_change_rolls_and_a_bad_one_leaves_the_old_version_serving() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    cloud.apply(&apply_of(&[("web", service(3))])).await;
    cloud.ready("web", 3).await;

    let second = apply_of(&[("web", with_env(service(3), "COLOR", "blue"))]);
    let dry = cloud
        .client
        .apply(&project(), &second, true, &key())
        .await
        .unwrap();
    assert!(dry.dry_run);
    assert_eq!(dry.changes[0].consequence, "3 instances roll");
    assert_eq!(dry.changes[0].diff, ["env.COLOR: added blue"]);
    cloud.apply(&second).await;
    let is_new = |views: &[api::wire::InstanceView]| {
        views.len() == 3
            && views
                .iter()
                .all(|view| view.ready && view.version == ReleaseNumber(2))
    };
    cloud.ps_until("release 2 everywhere", is_new).await;
    assert_eq!(phase(&cloud).await, RolloutPhase::Done);

    cloud
        .apply(&apply_of(&[("web", with_env(service(3), "BROKEN", "yes"))]))
        .await;
    until("the rollout is judged bad", || async {
        (phase(&cloud).await == RolloutPhase::Failed).then_some(())
    })
    .await;
    cloud.ps_until("release 2 serves still", is_new).await;
    let rollout = cloud
        .client
        .rollout(&project(), &name("web"))
        .await
        .unwrap();
    assert_eq!(
        (rollout.to, rollout.from),
        (ReleaseNumber(3), Some(ReleaseNumber(2)))
    );
    assert!(
        rollout.reason.message.contains("release 3 was judged bad"),
        "{}",
        rollout.reason
    );
    let status = cloud.client.status(&project()).await.unwrap();
    assert!(
        status
            .attention
            .iter()
            .any(|reason| reason.code == "not-ready"),
        "{:?}",
        status.attention
    );
    let explained = cloud.client.explain(&project(), "web").await.unwrap();
    assert!(
        explained
            .because
            .iter()
            .any(|because| because.from == "rollout"),
        "{explained:?}"
    );
    assert_eq!(explained.now, "3 of 3 ready, release 2 (release 3 failed)");
    let web = &status.services[0];
    assert_eq!(
        (web.release, web.serving),
        (Some(ReleaseNumber(3)), Some(ReleaseNumber(2)))
    );
    assert_eq!(
        marks(&cloud).await,
        [(3, true, true), (2, false, false), (1, false, false)]
    );

    cloud
        .apply(&apply_of(&[("web", with_env(service(3), "COLOR", "red"))]))
        .await;
    until("release 4 serves", || async {
        (phase(&cloud).await == RolloutPhase::Done).then_some(())
    })
    .await;
    assert_eq!(
        marks(&cloud).await[..2],
        [(4, true, false), (3, false, true)],
        "the verdict outlasts the rollout's record"
    );
    let status = cloud.client.status(&project()).await.unwrap();
    assert_eq!(status.services[0].serving, None);
}

/// Number, current, failed: of each release, the newest first.
async fn marks(cloud: &Cloud) -> Vec<(u64, bool, bool)> {
    let releases = cloud.client.releases(&project(), &name("web")).await;
    let marks =
        |release: &api::wire::ReleaseView| (release.number.0, release.current, release.failed);
    releases.unwrap().items.iter().map(marks).collect()
}

/// A route and a caller from before are not named by the change, and lead to what it takes away.
#[tokio::test]
async fn a_port_that_something_leads_to_does_not_go() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let broker = |ports: &[(&str, Protocol)]| {
        let mut spec = service(1);
        let ports = ports.iter().map(|(port, protocol)| (name(port), *protocol));
        spec.ports = ports.collect();
        spec
    };
    let mut caller = needing(service(1), "broker");
    if let Work::Process { run, .. } = &mut caller.work {
        run.push("--queue=${BROKER_AMQP_URL}".to_owned());
    }
    let all = broker(&[
        ("admin", Protocol::Http),
        ("amqp", Protocol::Tcp),
        ("more", Protocol::Tcp),
    ]);
    let mut first = apply_of(&[("broker", all), ("web", caller)]);
    let route = |port: Option<&str>| Route {
        port: port.map(name),
        host: "admin.localhost".to_owned(),
        path: "/".to_owned(),
        to: name("broker"),
    };
    first.routes.push(route(Some("admin")));
    cloud.apply(&first).await;
    let status = cloud.client.status(&project()).await.unwrap();
    assert_eq!(status.services[0].ports.len(), 3);

    let try_it = async |apply: &Apply| {
        let done = cloud.client.apply(&project(), apply, false, &key()).await;
        done.map_or_else(
            |error| error.to_string(),
            |applied| applied.warnings.join("; "),
        )
    };
    let with = |ports: &[(&str, Protocol)]| apply_of(&[("broker", broker(ports))]);
    let (admin, amqp) = (("admin", Protocol::Http), ("amqp", Protocol::Tcp));
    let table = [
        (
            with(&[amqp]),
            "admin.localhost/ leads to `broker:admin`: the service has no port `admin`",
        ),
        (
            with(&[("admin", Protocol::Tcp), amqp]),
            "leads to `broker:admin`: its port `admin` speaks tcp",
        ),
        (
            with(&[admin]),
            "web needs `broker`, and uses $BROKER_AMQP_URL",
        ),
        (
            with(&[admin, amqp]),
            "web can't reach it any more, and is given no BROKER_MORE_URL",
        ),
    ];
    for (apply, expected) in table {
        let said = try_it(&apply).await;
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // With what leads there it may go.
    let mut whole = apply_of(&[("broker", service(1)), ("web", service(1))]);
    whole.routes.push(route(None));
    let said = try_it(&whole).await;
    assert!(!said.contains("broker"), "{said}");

    // And what has no name for it: the service itself speaks otherwise.
    let mut tcp = service(1);
    tcp.protocol = Protocol::Tcp;
    let said = try_it(&apply_of(&[("broker", tcp)])).await;
    assert!(said.contains("the service speaks tcp"), "{said}");
    let mut probed = service(1);
    probed.health.port = Some(name("admin"));
    let said = try_it(&apply_of(&[("broker", probed)])).await;
    assert!(
        said.contains("its probe asks at the port `admin`"),
        "{said}"
    );
}

#[tokio::test]
async fn what_is_said_of_a_release_is_kept_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let saying = |version: &str, message: Option<&str>| Apply {
        message: message.map(str::to_owned),
        ..apply_of(&[("web", with_env(service(1), "V", version))])
    };
    cloud.apply(&saying("1", Some("v1, abc123"))).await;
    cloud.apply(&saying("2", None)).await;
    cloud.apply(&saying("3", Some("the third"))).await;
    let restarted = cloud.client.restart(&project(), &name("web"), &key()).await;
    restarted.unwrap();
    let releases = cloud.client.releases(&project(), &name("web")).await;
    let said = releases.unwrap().items.into_iter().map(|one| one.message);
    let said: Vec<_> = said.map(Option::unwrap_or_default).collect();
    assert_eq!(said, ["", "the third", "", "v1, abc123"]);
    for message in ["two\nlines".to_owned(), "x".repeat(501)] {
        let apply = saying("4", Some(&message));
        let refused = cloud.client.apply(&project(), &apply, false, &key()).await;
        assert_eq!(code(refused), "invalid-spec");
    }
}

/// As a deploy: what is there now, and is not returned with it, must still find it.
#[tokio::test]
async fn a_rollback_takes_no_port_or_need_away_that_something_uses() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _node = cloud.join("a").await;
    let broker = |ports: &[(&str, Protocol)], version: &str| {
        let mut spec = with_env(service(1), "V", version);
        let ports = ports.iter().map(|(port, protocol)| (name(port), *protocol));
        spec.ports = ports.collect();
        spec
    };
    let (admin, amqp) = (("admin", Protocol::Http), ("amqp", Protocol::Tcp));
    let release = async |spec: Service, number: u64| {
        cloud.apply(&apply_of(&[("broker", spec)])).await;
        let at = |views: &[api::wire::InstanceView]| {
            let mut of = views.iter().filter(|view| view.service == name("broker"));
            of.any(|view| view.ready && view.version == ReleaseNumber(number))
        };
        cloud.ps_until("the release", at).await;
    };
    cloud.apply(&apply_of(&[("cache", service(1))])).await;
    release(broker(&[], "1"), 1).await;
    release(broker(&[amqp], "2"), 2).await;
    release(needing(broker(&[admin, amqp], "3"), "cache"), 3).await;
    release(broker(&[admin, amqp], "4"), 4).await;
    let mut caller = needing(service(1), "broker");
    if let Work::Process { run, .. } = &mut caller.work {
        run.push("--queue=${BROKER_AMQP_URL}".to_owned());
    }
    let mut around = apply_of(&[("web", caller)]);
    around.routes.push(Route {
        port: Some(name("admin")),
        host: "admin.localhost".to_owned(),
        path: "/".to_owned(),
        to: name("broker"),
    });
    cloud.apply(&around).await;
    let cache = name("cache");
    let shop = project();
    let gone = cloud
        .client
        .delete(&shop, Kind::Services, cache.as_str(), false);
    gone.await.unwrap();

    let back = async |to: Option<u64>| {
        let ask = Rollback {
            to: to.map(ReleaseNumber),
        };
        let done = cloud
            .client
            .rollback(&project(), &name("broker"), &ask, &key())
            .await;
        done.map_or_else(|error| error.to_string(), |done| done.consequence)
    };
    for (to, expected) in [
        (
            2,
            &[
                "release 2 of broker does not fit what is there now",
                "leads to `broker:admin`: the service has no port `admin`",
                "`mainland delete routes admin.localhost/`",
            ][..],
        ),
        (3, &["broker needs `cache`", "`mainland releases broker`"]),
        (1, &["has no port `admin`"]),
    ] {
        let said = back(Some(to)).await;
        for part in expected {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    // The port of the caller alone.
    let mut elsewhere = around.clone();
    elsewhere.routes[0].port = None;
    cloud.apply(&elsewhere).await;
    let said = back(Some(1)).await;
    assert!(
        said.contains("web needs `broker`, and uses $BROKER_AMQP_URL"),
        "{said}"
    );
    assert_eq!(back(Some(2)).await, "1 instance rolls");
}

/// Copies of it run, whatever release made them: what came with the bad one finds no more while they serve than after it is left.
#[tokio::test]
async fn a_bad_release_is_left_for_what_serves_though_that_was_made_by_a_rollback_or_restart() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _node = cloud.join("a").await;
    let spec = |version: &str| with_env(service(1), "V", version);
    for release in [1, 2] {
        let spec = spec(&release.to_string());
        cloud.apply(&apply_of(&[("broker", spec)])).await;
        cloud.phase_of("broker", release, RolloutPhase::Done).await;
    }
    let (shop, broker) = (project(), name("broker"));
    cloud.roll_back("broker").await;
    cloud.phase_of("broker", 3, RolloutPhase::Done).await;
    for (bad, to) in [(4, None), (7, Some(ReleaseNumber(1)))] {
        let mut spec = with_env(spec(&format!("bad {bad}")), "BROKEN", "yes");
        spec.ports = [(name("admin"), Protocol::Http)].into();
        let mut around = apply_of(&[("broker", spec)]);
        around.routes.push(Route {
            port: Some(name("admin")),
            host: "admin.localhost".to_owned(),
            path: "/".to_owned(),
            to: broker.clone(),
        });
        let client = &cloud.client;
        cloud.apply(&around).await;
        cloud.phase_of("broker", bad, RolloutPhase::Failed).await;
        let ask = Rollback { to };
        let left = client.rollback(&shop, &broker, &ask, &key()).await;
        let said = left.map_or_else(|error| error.to_string(), |left| left.consequence);
        assert!(said.starts_with("nothing rolls"), "{bad}: {said}");
        cloud.phase_of("broker", bad + 1, RolloutPhase::Done).await;
        client.restart(&shop, &broker, &key()).await.unwrap();
        cloud.phase_of("broker", bad + 2, RolloutPhase::Done).await;
    }
}

/// Types read past what they do not know; what a person declares is held to the letter.
#[tokio::test]
async fn a_key_that_nothing_reads_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut body = serde_json::to_value(apply_of(&[("web", service(1))])).unwrap();
    body["services"]["web"]["traffic"]["timout"] = 1.into();
    let path = format!("/v1/projects/{}/apply", project());
    let done = cloud
        .client
        .exchange(Method::POST, &path, &body, Some(&key()))
        .await;
    let said = done
        .map(|applied: api::wire::Applied| applied.revision)
        .unwrap_err();
    let said = said.to_string();
    for part in ["services.web.traffic.timout", "did you mean `timeout`?"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn a_deletion_says_whom_it_leaves_without() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    let mut all = apply_of(&[("web", service(2)), ("front", needing(service(1), "web"))]);
    all.routes.push(Route {
        port: None,
        host: "api.localhost".to_owned(),
        path: "/".to_owned(),
        to: name("web"),
    });
    cloud.apply(&all).await;
    cloud.ready("web", 2).await;

    let mut pruning = apply_of(&[("front", service(1))]);
    pruning.prune = true;
    let dry = cloud
        .client
        .apply(&project(), &pruning, true, &key())
        .await
        .unwrap();
    let removed: Vec<_> = dry
        .changes
        .iter()
        .filter(|change| change.action == api::wire::Action::Remove)
        .map(|change| (change.name.as_str(), change.consequence.as_str()))
        .collect();
    assert_eq!(
        removed,
        [
            ("api.localhost/", "web is no longer reached by it"),
            ("web", "2 instances stop"),
        ],
        "nothing is left that would need it"
    );
    let kind = api::wire::Kind::Services;
    let refused = cloud.client.delete(&project(), kind, "web", false).await;
    let said = refused.as_ref().unwrap_err().to_string();
    assert!(
        said.contains("front needs it, route api.localhost/"),
        "{said}"
    );
    assert_eq!(code(refused), "needed");
    let shop = project();
    let assented = cloud.client.delete_as(&shop, kind, "web", false, true);
    let changes = assented.await;
    assert_eq!(
        changes.unwrap()[0].consequence,
        "2 instances stop; front needs it, route api.localhost/ leads nowhere then"
    );
}

async fn phase(cloud: &Cloud) -> RolloutPhase {
    cloud
        .client
        .rollout(&project(), &name("web"))
        .await
        .unwrap()
        .phase
}

#[tokio::test]
async fn what_needs_no_restart_restarts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(2))])).await;
    let before = cloud.ready("web", 2).await;
    let told = node.desired().unwrap();

    let mut quicker = service(2);
    quicker.traffic.timeout = Span::seconds(3);
    let applied = cloud.apply(&apply_of(&[("web", quicker.clone())])).await;
    assert_eq!(applied.changes[0].consequence, "nothing restarts");
    assert_eq!(applied.changes[0].release, Some(ReleaseNumber(2)));
    until("it is rolled out", || async {
        let rollout = cloud
            .client
            .rollout(&project(), &name("web"))
            .await
            .unwrap();
        (rollout.to == ReleaseNumber(2) && rollout.phase == RolloutPhase::Done).then_some(())
    })
    .await;
    let after = until("the node is told of the new timeout", || {
        let desired = node
            .desired()
            .filter(|desired| desired.instances.iter().all(|one| one.spec == quicker));
        std::future::ready(desired)
    })
    .await;
    let runs = |desired: &model::control::NodeDesired| -> Vec<_> {
        desired
            .instances
            .iter()
            .map(|one| (one.instance.clone(), one.release, one.epoch))
            .collect()
    };
    assert_eq!(
        runs(&after),
        runs(&told),
        "no instance, release or epoch is another"
    );
    let names = |views: &[api::wire::InstanceView]| {
        views
            .iter()
            .map(|view| view.name.clone())
            .collect::<Vec<_>>()
    };
    let shown = cloud.ready("web", 2).await;
    assert_eq!(names(&shown), names(&before));
    assert!(shown.iter().all(|view| view.version == ReleaseNumber(2)));

    // A copy that is started now is of the newest release, and the older ones stay.
    quicker.replicas = 3;
    cloud.apply(&apply_of(&[("web", quicker)])).await;
    let more = cloud.ready("web", 3).await;
    assert_eq!(names(&more)[..2], names(&before)[..]);
}

#[tokio::test]
async fn rollback_restart_and_what_would_undo_it() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    let web = name("web");
    let (one, two) = (
        apply_of(&[("web", service(2))]),
        apply_of(&[("web", with_env(service(2), "V", "2"))]),
    );
    cloud.apply(&one).await;
    cloud.ready("web", 2).await;
    cloud.apply(&two).await;
    let at = |release: u64| {
        move |views: &[api::wire::InstanceView]| {
            views.len() == 2
                && views
                    .iter()
                    .all(|view| view.ready && view.version == ReleaseNumber(release))
        }
    };
    cloud.ps_until("release 2", at(2)).await;

    let back = cloud
        .client
        .rollback(&project(), &web, &Rollback::default(), &key())
        .await
        .unwrap();
    assert_eq!(
        (back.release, &*back.consequence),
        (ReleaseNumber(3), "2 instances roll")
    );
    cloud.ps_until("release 3", at(3)).await;
    assert_eq!(
        cloud.client.service(&project(), &web).await.unwrap(),
        service(2)
    );

    let refused = cloud.client.apply(&project(), &two, false, &key()).await;
    let said = refused.as_ref().unwrap_err().to_string();
    assert_eq!(code(refused), "would-undo-rollback");
    assert!(said.contains("`mainland apply -y`"), "{said}");
    let dry = cloud
        .client
        .apply(&project(), &two, true, &key())
        .await
        .unwrap();
    assert!(
        dry.warnings.iter().any(|warning| warning.contains("undo")),
        "{:?}",
        dry.warnings
    );
    // The file that says what runs now undoes nothing; neither does one that moves on.
    assert_eq!(cloud.apply(&one).await.changes[0].action, Action::Keep);
    let forced = Apply {
        undo_rollback: true,
        ..two.clone()
    };
    cloud.apply(&forced).await;
    cloud.ps_until("release 4", at(4)).await;

    let restarted = cloud
        .client
        .restart(&project(), &web, &key())
        .await
        .unwrap();
    assert_eq!(restarted.release, ReleaseNumber(5));
    cloud.ps_until("release 5", at(5)).await;
    let releases = cloud.client.releases(&project(), &web).await.unwrap().items;
    let numbers: Vec<_> = releases
        .iter()
        .map(|release| (release.number.0, release.current))
        .collect();
    assert_eq!(
        numbers,
        [(5, true), (4, false), (3, false), (2, false), (1, false)]
    );
    assert_eq!(
        cloud
            .client
            .release(&project(), &web, ReleaseNumber(2))
            .await
            .unwrap()
            .diff,
        ["env.V: added 2"]
    );
}

fn names_of(copies: &[wire::InstanceView]) -> Vec<String> {
    copies.iter().map(|copy| copy.name.to_string()).collect()
}

impl Cloud {
    async fn roll_back(&self, service: &str) -> (u64, String) {
        let ask = Rollback::default();
        let back = self
            .client
            .rollback(&project(), &name(service), &ask, &key())
            .await
            .unwrap();
        (back.release.0, back.consequence)
    }

    async fn phase_of(&self, service: &str, release: u64, phase: RolloutPhase) {
        crate::cloud::until("the rollout", || async {
            let rollout = self.client.rollout(&project(), &name(service)).await.ok()?;
            (rollout.to.0 == release && rollout.phase == phase).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_rollback_after_a_failed_release_rolls_nothing_and_a_second_goes_further_back() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    let spec = |value: &str| with_env(service(2), "V", value);
    let mut slower = spec("2");
    slower.traffic.max_in_flight = 7;
    // The third says something else of traffic only, so that its copies are those of the second.
    for (release, spec) in [spec("1"), spec("2"), slower].into_iter().enumerate() {
        cloud.apply(&apply_of(&[("web", spec)])).await;
        let release = release as u64 + 1;
        cloud.phase_of("web", release, RolloutPhase::Done).await;
    }
    let serving = names_of(&cloud.ready("web", 2).await);
    let bad = with_env(spec("4"), "BROKEN", "yes");
    cloud.apply(&apply_of(&[("web", bad.clone())])).await;
    cloud.phase_of("web", 4, RolloutPhase::Failed).await;

    let (release, consequence) = cloud.roll_back("web").await;
    assert_eq!(release, 5);
    assert!(consequence.starts_with("nothing rolls"), "{consequence}");
    cloud.phase_of("web", 5, RolloutPhase::Done).await;
    let copies = cloud.ready("web", 2).await;
    assert_eq!(names_of(&copies), serving);
    assert!(copies.iter().all(|copy| copy.version == ReleaseNumber(5)));
    // What was left is not come back to by the file that still says it.
    let again = cloud
        .client
        .apply(&project(), &apply_of(&[("web", bad)]), false, &key())
        .await;
    assert_eq!(code(again), "would-undo-rollback");

    let (release, _) = cloud.roll_back("web").await;
    cloud.phase_of("web", release, RolloutPhase::Done).await;
    let now = cloud
        .client
        .service(&project(), &name("web"))
        .await
        .unwrap();
    assert_eq!(now, spec("2"), "the one before, and not the bad one");
    cloud.roll_back("web").await;
    let now = cloud
        .client
        .service(&project(), &name("web"))
        .await
        .unwrap();
    assert_eq!(now, spec("1"));
    let (before, _) = (7, cloud.phase_of("web", 7, RolloutPhase::Done).await);
    let serving = names_of(&cloud.ready("web", 2).await);
    let (release, consequence) = cloud.roll_back("web").await;
    assert_eq!(release, before);
    assert!(consequence.starts_with("nothing to do"), "{consequence}");
    assert_eq!(names_of(&cloud.ready("web", 2).await), serving);
}

/// Nobody judged it bad, but somebody left it.
#[tokio::test]
async fn a_second_rollback_does_not_return_to_what_the_first_left() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    for release in [1, 2] {
        let spec = with_env(service(2), "V", &release.to_string());
        cloud.apply(&apply_of(&[("web", spec)])).await;
        cloud.phase_of("web", release, RolloutPhase::Done).await;
    }
    assert_eq!(cloud.roll_back("web").await.0, 3);
    cloud.phase_of("web", 3, RolloutPhase::Done).await;
    let (release, consequence) = cloud.roll_back("web").await;
    assert_eq!(release, 3, "{consequence}");
    let now = cloud
        .client
        .service(&project(), &name("web"))
        .await
        .unwrap();
    assert_eq!(now, with_env(service(2), "V", "1"));
    // By name it can be had.
    let ask = Rollback {
        to: Some(ReleaseNumber(2)),
    };
    let back = cloud
        .client
        .rollback(&project(), &name("web"), &ask, &key())
        .await;
    assert_eq!(back.unwrap().release, ReleaseNumber(4));
}

fn with_volume(mut spec: model::compute::Service) -> model::compute::Service {
    let size = Bytes::mebibytes(1);
    spec.volumes
        .insert(name("data"), model::state::Volume { size });
    spec.on_partition = model::compute::OnPartition::Stop;
    spec.rollout.surge = 0;
    spec.rollout.unavailable = 1;
    spec
}

#[tokio::test]
async fn data_that_a_deletion_kept_is_listed_and_can_be_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    let client = &cloud.client;
    for alone in [true, false] {
        let db = apply_of(&[("db", with_volume(service(1)))]);
        // The node is still being told to forget what was there before.
        until("it may be there again", || async {
            client.apply(&project(), &db, false, &key()).await.ok()
        })
        .await;
        cloud.ready("db", 1).await;
        client.delete_project(&project(), false).await.unwrap();
        until("what is left is told", || async {
            let status = client.status(&project()).await.ok()?;
            let told = status
                .attention
                .iter()
                .any(|reason| reason.code == "data-kept" && reason.message.contains("kept on a"));
            (told && status.services.is_empty()).then_some(())
        })
        .await;
        let listed = client.projects_with_kept().await.unwrap().items;
        assert_eq!(listed, [project()]);
        until("its instance is gone", || async {
            cloud.ps().await.is_empty().then_some(())
        })
        .await;
        let without = client.delete_project(&project(), false).await.map(drop);
        assert_eq!(code(without), "only-data-left");
        let told = node.forgot().len();
        let changes = match alone {
            true => client.delete(&project(), Kind::Services, "db", true).await,
            false => client.delete_project(&project(), true).await,
        };
        assert!(changes.unwrap()[0].consequence.contains("is deleted"));
        until("the node is told to forget", || async {
            (node.forgot().len() > told).then_some(())
        })
        .await;
        until("nothing is left", || async {
            let gone = client.status(&project()).await.map(drop);
            (code(gone) == "not-found").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_would_find_no_place_is_warned_of_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    let asking = |cpu: u64| {
        let mut spec = service(3);
        spec.cpu = model::units::MilliCpu(cpu);
        spec
    };
    cloud.apply(&apply_of(&[("web", asking(5))])).await;
    cloud.phase_of("web", 1, RolloutPhase::Done).await;
    let more = apply_of(&[("web", asking(100_000))]);
    let dry = cloud.client.apply(&project(), &more, true, &key()).await;
    let warnings = dry.unwrap().warnings.join("\n");
    assert!(
        warnings.contains("only 0 of 3 copies of web would have a place")
            && warnings.contains("cpu 100"),
        "{warnings}"
    );
    let fits = apply_of(&[("web", asking(500))]);
    let dry = cloud.client.apply(&project(), &fits, true, &key()).await;
    assert!(!dry.unwrap().warnings.join("").contains("have a place"));
    cloud.apply(&more).await;
    until("it is told what it waits for", || async {
        let rollout = cloud.client.rollout(&project(), &name("web")).await.ok()?;
        let said = &rollout.reason.message;
        let told = said.contains("0 of 3 new copies ready, 3 old ones are there")
            && said.contains("waits for web-")
            && said.contains("cpu 100");
        told.then_some(())
    })
    .await;
    assert_eq!(cloud.ready("web", 3).await.len(), 3);
}

#[tokio::test]
async fn conditions_hold_or_nothing_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    let path = "/v1/projects/shop/services/web";
    let got = cloud
        .client
        .send(api::client::request(Method::GET, path, ""))
        .await
        .unwrap();
    let tag = got.headers()[http::header::ETAG].clone();
    let put = |tag: &http::HeaderValue, replicas| {
        let mut request = api::client::request(
            Method::PUT,
            path,
            serde_json::to_vec(&service(replicas)).unwrap(),
        );
        request
            .headers_mut()
            .insert(http::header::IF_MATCH, tag.clone());
        cloud.client.send(request)
    };
    assert!(put(&tag, 2).await.is_ok());
    assert_eq!(code(put(&tag, 3).await), "changed-meanwhile");
    assert_eq!(
        cloud
            .client
            .service(&project(), &name("web"))
            .await
            .unwrap()
            .replicas,
        2
    );
    let mut delete = api::client::request(Method::DELETE, path, "");
    delete.headers_mut().insert(http::header::IF_MATCH, tag);
    assert_eq!(code(cloud.client.send(delete).await), "changed-meanwhile");
}

#[tokio::test]
async fn a_post_with_a_key_is_done_once() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _node = cloud.join("a").await;
    let apply = apply_of(&[("web", service(1))]);
    let first = cloud
        .client
        .apply(&project(), &apply, false, "k1")
        .await
        .unwrap();
    let again = cloud
        .client
        .apply(&project(), &apply, false, "k1")
        .await
        .unwrap();
    assert_eq!(
        (again.changes[0].action, again.revision),
        (Action::Create, first.revision)
    );
    let other = apply_of(&[("web", service(2))]);
    assert_eq!(
        code(cloud.client.apply(&project(), &other, false, "k1").await),
        "key-reused"
    );
    let web = name("web");
    let restarted = cloud.client.restart(&project(), &web, "k2").await.unwrap();
    assert_eq!(
        cloud
            .client
            .restart(&project(), &web, "k2")
            .await
            .unwrap()
            .release,
        restarted.release
    );
    let keyless = api::client::request(
        Method::POST,
        "/v1/projects/shop/services/web/restart",
        "null",
    );
    assert_eq!(code(cloud.client.send(keyless).await), "invalid");
}

#[tokio::test]
async fn mistakes_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    cloud.apply(&apply_of(&[("payment", service(1))])).await;
    let try_it = |apply: Apply| {
        let client = &cloud.client;
        async move {
            client
                .apply(&project(), &apply, false, &key())
                .await
                .unwrap_err()
                .to_string()
        }
    };
    let typo = try_it(apply_of(&[("web", needing(service(1), "paymnt"))])).await;
    assert!(
        typo.contains("web needs `paymnt`") && typo.contains("did you mean `payment`?"),
        "{typo}"
    );
    let mut with_artifact = service(1);
    with_artifact.work = Work::Process {
        run: vec!["./app".to_owned()],
        artifact: Some(ArtifactRef {
            digest: Digest([7; 32]),
            form: ArtifactForm::Folder,
            size: Bytes(10),
        }),
    };
    assert!(
        try_it(apply_of(&[("web", with_artifact)]))
            .await
            .contains("[artifact-missing]")
    );
    let route = |host: &str, path: &str, to: &str| Apply {
        routes: vec![Route {
            port: None,
            host: host.into(),
            path: path.into(),
            to: name(to),
        }],
        ..Apply::default()
    };
    assert!(
        try_it(route("shop.localhost", "/", "paymen"))
            .await
            .contains("did you mean `payment`?")
    );
    assert!(
        try_it(route("Shop", "/", "payment"))
            .await
            .contains("is no host")
    );
    assert!(
        try_it(route("shop", "x", "payment"))
            .await
            .contains("is no path")
    );
    let mut clash = Apply::default();
    clash
        .secrets
        .insert(name("payment"), model::boundary::SecretSource::Given);
    assert!(try_it(clash).await.contains("[name-taken]"));
    assert!(
        try_it(apply_of(&[("web", service(1_000_000))]))
            .await
            .contains("[limit]")
    );
    assert_eq!(
        code(cloud.client.status(&"nowhere".parse().unwrap()).await),
        "not-found"
    );
}

#[tokio::test]
async fn a_name_that_is_not_there_is_answered_by_the_nearest_that_is() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _node = cloud.join("node-a").await;
    let mut apply = apply_of(&[("payment", service(1))]);
    let secret = model::boundary::SecretSource::Generate { bytes: 32 };
    apply.secrets.insert(name("session-key"), secret);
    cloud.apply(&apply).await;
    let (client, shop, near) = (&cloud.client, project(), name("paymnt"));
    let to = Rollback::default();
    let told = [
        client.scale(&shop, &near, 2).await.map(drop),
        client.restart(&shop, &near, &key()).await.map(drop),
        client.rollback(&shop, &near, &to, &key()).await.map(drop),
        client.releases(&shop, &near).await.map(drop),
        client.rollout(&shop, &near).await.map(drop),
        client
            .steer_rollout(&shop, &near, wire::Steer::Pause)
            .await
            .map(drop),
        client
            .resource(&shop, Kind::Services, "paymnt")
            .await
            .map(drop),
        client
            .delete(&shop, Kind::Services, "paymnt", false)
            .await
            .map(drop),
        client.explain(&shop, "paymnt").await.map(drop),
    ];
    for (index, told) in told.into_iter().enumerate() {
        let told = told.unwrap_err();
        assert_eq!(told.code(), Some("not-found"), "{index}: {told}");
        let told = told.to_string();
        assert!(told.contains("did you mean `payment`?"), "{index}: {told}");
    }
    let node: NodeName = "node-b".parse().unwrap();
    let nodes = [
        client.cordon(&node, true).await.map(drop),
        client.remove_node(&node, true).await.map(drop),
        client.explain_node(&node).await.map(drop),
    ];
    for told in nodes {
        let told = told.unwrap_err().to_string();
        assert!(told.contains("did you mean `node-a`?"), "{told}");
    }
    let other = client.scale(&"shpo".parse().unwrap(), &near, 2).await;
    let other = other.unwrap_err().to_string();
    assert!(other.contains("did you mean `shop`?"), "{other}");
    let events = client.events(Some(&"shpo".parse().unwrap()), 0).await;
    assert_eq!(code(events), "not-found");
    let far = client.restart(&shop, &name("zebra"), &key()).await;
    assert!(far.unwrap_err().to_string().contains("mainland status"));
    let secret = client.scale(&shop, &name("session-key"), 2).await;
    let secret = secret.unwrap_err().to_string();
    assert!(secret.contains("session-key is a secret"), "{secret}");
}

#[tokio::test]
async fn an_apply_of_many_resources_is_done_whole() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let services: Vec<_> = (0..60)
        .map(|index| (format!("s{index}"), service(0)))
        .collect();
    let services: Vec<_> = services
        .iter()
        .map(|(name, spec)| (name.as_str(), spec.clone()))
        .collect();
    let applied = cloud.apply(&apply_of(&services)).await;
    assert_eq!(applied.changes.len(), 60);
    assert!(
        applied
            .changes
            .iter()
            .all(|change| change.action == Action::Create)
    );
    assert_eq!(
        cloud
            .client
            .resources(&project(), Kind::Services)
            .await
            .unwrap()
            .items
            .len(),
        60
    );
    let again = cloud.apply(&apply_of(&services)).await;
    assert!(
        again
            .changes
            .iter()
            .all(|change| change.action == Action::Keep)
    );

    let prune = Apply {
        prune: true,
        ..apply_of(&services[..2])
    };
    cloud.apply(&prune).await;
    assert_eq!(
        cloud
            .client
            .resources(&project(), Kind::Services)
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    cloud
        .client
        .delete_project(&project(), false)
        .await
        .unwrap();
    until("the project is gone", || async {
        cloud
            .client
            .projects()
            .await
            .unwrap()
            .items
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn scale_outlives_an_apply_and_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud
        .client
        .scale(&project(), &name("web"), 3)
        .await
        .unwrap();
    cloud.ready("web", 3).await;
    let applied = cloud
        .apply(&apply_of(&[("web", with_env(service(2), "A", "b"))]))
        .await;
    assert_eq!(applied.changes[0].consequence, "3 instances roll");
    assert!(
        applied.changes[0]
            .diff
            .iter()
            .any(|line| line.contains("3 by scale of admin:owner")),
        "{:?}",
        applied.changes
    );
    cloud
        .ps_until("three of release 2", |views| {
            views.len() == 3 && views.iter().all(|view| view.version.0 == 2 && view.ready)
        })
        .await;
    cloud
        .client
        .delete(&project(), Kind::Scales, "web", false)
        .await
        .unwrap();
    cloud.ready("web", 2).await;
}

#[tokio::test]
async fn watches_tell_each_change_and_resume() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let listed = cloud
        .client
        .resources(&project(), Kind::Services)
        .await
        .unwrap();
    let path = format!(
        "/v1/projects/shop/services?watch=true&from={}",
        listed.revision
    );
    let mut watch = cloud.client.watch::<WatchEvent>(&path).await.unwrap();
    cloud.apply(&apply_of(&[("web", service(0))])).await;
    let WatchEvent::Put {
        name: put,
        revision,
        ..
    } = watch.next().await.unwrap().unwrap()
    else {
        panic!("not a put")
    };
    assert_eq!(put, "web");
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud
        .client
        .delete(&project(), Kind::Services, "web", false)
        .await
        .unwrap();
    let path = format!("/v1/projects/shop/services?watch=true&from={revision}");
    let mut resumed = cloud.client.watch::<WatchEvent>(&path).await.unwrap();
    assert!(
        matches!(resumed.next().await.unwrap().unwrap(), WatchEvent::Put { value, .. } if value["replicas"] == 1)
    );
    assert!(matches!(
        resumed.next().await.unwrap().unwrap(),
        WatchEvent::Deleted { .. }
    ));
    let forged = cloud
        .client
        .watch::<WatchEvent>("/v1/projects/shop/services?watch=true&from=17")
        .await;
    assert_eq!(code(forged.map(drop)), "invalid");
}

#[tokio::test]
async fn changes_and_refusals_are_audited() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    assert_eq!(
        code(node.client.scale(&project(), &name("web"), 9).await),
        "not-permitted"
    );
    let records = until("both", || async {
        let records = cloud.client.audit(50).await.unwrap().items;
        let refused = records.iter().any(|record| {
            record.principal.0 == "node:a" && matches!(record.outcome, AuditOutcome::Refused { .. })
        });
        refused.then_some(records)
    })
    .await;
    let apply = records
        .iter()
        .find(|record| record.action == "apply")
        .unwrap();
    assert_eq!((&*apply.principal.0, &*apply.on), ("admin:owner", "shop"));
    assert!(records.iter().any(|record| record.action == "node.join"));
    let events = cloud
        .client
        .events(Some(&project()), 0)
        .await
        .unwrap()
        .items;
    assert!(
        events.iter().any(|event| event.subject == "web-1"),
        "{events:?}"
    );
    let document: serde_json::Value = cloud.client.get("/v1/openapi.json").await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test]
async fn many_changes_at_once_are_all_done_and_no_uid_is_given_twice() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    let one = |index: usize| {
        let client = &cloud.client;
        async move {
            let own = format!("s{index}");
            let apply = apply_of(&[
                (&own, service(1)),
                ("common", with_env(service(1), "N", &own)),
            ]);
            client.apply(&project(), &apply, false, &key()).await
        }
    };
    let at_once = futures_util::stream::iter((0..20).map(one)).buffer_unordered(20);
    let done: Vec<_> = at_once.collect().await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    let desired = until("all of them", || {
        // Two copies of what rolls are one service.
        let of_all = |desired: &model::control::NodeDesired| {
            let services = desired.instances.iter().map(|one| &one.service);
            services.collect::<std::collections::BTreeSet<_>>().len() == 21
        };
        std::future::ready(node.desired().filter(of_all))
    })
    .await;
    let uids: std::collections::BTreeMap<_, _> = desired
        .instances
        .iter()
        .map(|one| (one.uid, &one.service))
        .collect();
    assert_eq!(uids.len(), 21);
    let releases = cloud
        .client
        .releases(&project(), &name("common"))
        .await
        .unwrap()
        .items;
    assert_eq!(releases[0].number, ReleaseNumber(20));

    let same = apply_of(&[("twice", service(0))]);
    let shop = project();
    let twice = || cloud.client.apply(&shop, &same, false, "one-key");
    let (first, second) = tokio::join!(twice(), twice());
    let outcomes = [code(first), code(second)];
    assert!(
        outcomes.iter().any(|outcome| outcome == "it was done"),
        "{outcomes:?}"
    );
    assert!(
        outcomes
            .iter()
            .all(|outcome| ["it was done", "still-running"].contains(&&**outcome)),
        "{outcomes:?}"
    );
}
