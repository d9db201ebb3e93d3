//! Databases and topics: who uses them, by which password, and what becomes of their data.

use api::wire::Kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::boundary::SecretSource;
use model::compute::*;
use model::control::{NodeDesired, RolloutPhase};
use model::ids::{ResourceId, ResourceName};
use model::state::*;
use model::traffic::Protocol;
use model::units::{Bytes, Span};

use crate::cloud::*;

fn engine(engine: Engine) -> Service {
    let size = Bytes::mebibytes(1);
    Service {
        work: Work::Engine { engine },
        on_partition: OnPartition::Stop,
        volumes: [(name("data"), Volume { size })].into(),
        rollout: RolloutOptions {
            surge: 0,
            unavailable: 1,
            ready_within: Span::milliseconds(1500),
            ready_for: Span::seconds(0),
        },
        ..service(1)
    }
}

fn database(version: u32) -> Service {
    let postgres = Postgres {
        version,
        outbox: None,
        extensions: Default::default(),
    };
    Service {
        protocol: Protocol::Tcp,
        ..engine(Engine::Postgres(postgres))
    }
}

fn topic() -> Service {
    let retention = Retention {
        age: Span::seconds(60),
        size: Bytes::mebibytes(1),
    };
    engine(Engine::Topic(Topic {
        attempts: 5,
        retention,
    }))
}

fn consuming(topic: &str, path: &str) -> Service {
    let subscription = Subscription {
        path: path.to_owned(),
        max_in_flight: 4,
        timeout: Span::seconds(3),
    };
    Service {
        on: [(name(topic), subscription)].into(),
        ..service(1)
    }
}

fn reading(need: &str) -> Service {
    let options = Need {
        access: Access::Read,
        ..Need::default()
    };
    Service {
        needs: [(name(need), options)].into(),
        ..service(1)
    }
}

fn id(text: &str) -> ResourceId {
    format!("shop/{text}").parse().unwrap()
}

/// What a service is given, where it runs; and that no other node is.
async fn given(
    cloud: &Cloud,
    nodes: &[FakeNode],
    service: &str,
) -> std::collections::BTreeMap<ResourceName, String> {
    let home = cloud.ready(service, 1).await[0].node.clone().unwrap();
    let mut given = None;
    for node in nodes {
        let values = node.client.secret_values(&node.name, &id(service)).await;
        if node.name != home {
            assert_eq!(code(values.map(drop)), "not-placed-here", "{service}");
            continue;
        }
        let values = values.unwrap().values.into_iter();
        let text = |value: String| String::from_utf8(STANDARD.decode(value).unwrap()).unwrap();
        given = Some(values.map(|(name, value)| (name, text(value))).collect());
    }
    given.unwrap()
}

/// What the one instance of a service is told, once it fits.
async fn told(
    nodes: &[FakeNode],
    service: &str,
    fits: impl Fn(&DesiredInstance) -> bool,
) -> DesiredInstance {
    let look = || async {
        let desired: Vec<NodeDesired> = nodes.iter().filter_map(FakeNode::desired).collect();
        let mut all = desired.into_iter().flat_map(|desired| desired.instances);
        all.find(|one| one.service.as_str() == service && fits(one))
    };
    until(&format!("{service} told"), look).await
}

#[tokio::test]
async fn each_service_has_a_password_of_its_own_and_none_has_the_secret() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let nodes = cloud.three_nodes().await;
    let elsewhere = Service {
        work: Work::External {
            addresses: vec!["db.example:5432".to_owned()],
            login: Some(ExternalLogin {
                login: Login {
                    user: "us".to_owned(),
                    database: "theirs".to_owned(),
                },
                password: Some(name("far-password")),
            }),
        },
        replicas: 0,
        protocol: Protocol::Tcp,
        ..service(0)
    };
    let mut apply = apply_of(&[
        ("orders-db", database(15)),
        ("web", needing(service(1), "orders-db")),
        ("report", needing(reading("orders-db"), "far-db")),
        ("other", service(1)),
        ("far-db", elsewhere),
    ]);
    apply
        .secrets
        .insert(name("far-password"), SecretSource::Given);
    let password = STANDARD.encode("their word");
    apply.secret_values.insert(name("far-password"), password);
    cloud.apply(&apply).await;

    let own = given(&cloud, &nodes, "orders-db").await;
    let secret = &own[&name("orders-db")];
    assert_eq!((own.len(), secret.len()), (1, 64));
    let web = given(&cloud, &nodes, "web").await;
    let report = given(&cloud, &nodes, "report").await;
    assert_eq!(web.len(), 1);
    assert_eq!(web[&name("orders-db")], role_password(secret, &name("web")));
    assert_eq!(
        report[&name("orders-db")],
        role_password(secret, &name("report"))
    );
    assert_eq!(report[&name("far-db")], "their word");
    assert!(given(&cloud, &nodes, "other").await.is_empty());

    let login = |user: &str, database: &str| Login {
        user: user.to_owned(),
        database: database.to_owned(),
    };
    let web = told(&nodes, "web", |_| true).await;
    assert_eq!(web.logins[&name("orders-db")], login("web", "orders_db"));
    assert_eq!(web.settings, None);
    let report = told(&nodes, "report", |_| true).await;
    assert_eq!(report.logins[&name("far-db")], login("us", "theirs"));
    let db = told(&nodes, "orders-db", |_| true).await;
    let roles = db.settings.unwrap().roles;
    let expected = [("report", Access::Read), ("web", Access::Write)];
    assert_eq!(
        roles,
        expected.map(|(role, access)| (name(role), access)).into()
    );

    // It is no resource of a user, and shows nowhere.
    let listed = cloud.body("/v1/projects/shop/secrets").await;
    assert!(
        listed.contains("far-password") && !listed.contains("orders-db"),
        "{listed}"
    );
    let project = project();
    let deleting = cloud
        .client
        .delete(&project, Kind::Secrets, "orders-db", false);
    assert_eq!(code(deleting.await), "not-found");
}

#[tokio::test]
async fn who_comes_and_goes_restarts_no_engine() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let nodes = cloud.three_nodes().await;
    let publisher = needing(service(1), "events");
    let mut puller = needing(service(1), "events");
    puller
        .needs
        .values_mut()
        .for_each(|need| need.access = Access::Consume);
    let first = [
        ("events", topic()),
        ("web", publisher),
        ("pull", puller),
        ("mail", consuming("events", "/mail")),
    ];
    cloud.apply(&apply_of(&first)).await;
    let before = cloud.ready("events", 1).await.remove(0);
    let has = |count: usize| {
        move |one: &DesiredInstance| {
            one.settings
                .as_ref()
                .is_some_and(|settings| settings.subscriptions.len() == count)
        }
    };
    let one = told(&nodes, "events", has(1)).await;
    let settings = one.settings.unwrap();
    assert_eq!(settings.subscriptions[&name("mail")].path, "/mail");
    // Who only needs it publishes.
    assert_eq!(settings.consumers, [name("pull")].into());
    cloud
        .apply(&apply_of(&[("ship", consuming("events", "/ship"))]))
        .await;
    told(&nodes, "events", has(2)).await;

    // The node with the topic has the way to its consumers, and they let it in.
    let home = before.node.clone().unwrap();
    let at_home = nodes.iter().find(|node| node.name == home).unwrap();
    until("the way to both consumers", || async {
        let desired = at_home.desired()?;
        let reached = desired.road.destinations.iter();
        let reached = reached.filter(|one| !one.endpoints.is_empty());
        let services: Vec<_> = reached.map(|one| one.service.name.to_string()).collect();
        ["mail", "ship"]
            .iter()
            .all(|consumer| services.iter().any(|one| one == consumer))
            .then_some(())
    })
    .await;
    let mail = cloud.ready("mail", 1).await[0].node.clone().unwrap();
    let at_mail = nodes.iter().find(|node| node.name == mail).unwrap();
    let callers = at_mail.desired().unwrap().road.callers;
    let callers = callers
        .into_iter()
        .find(|callers| callers.service == id("mail"))
        .unwrap();
    assert_eq!(callers.from, vec![id("events")]);

    cloud
        .client
        .delete(&project(), Kind::Services, "ship", false)
        .await
        .unwrap();
    told(&nodes, "events", has(1)).await;
    let after = cloud.ready("events", 1).await.remove(0);
    assert_eq!((before.name, before.version), (after.name, after.version));
}

#[tokio::test]
async fn a_version_that_never_ran_is_changed_for_another() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    // There is no node yet: nothing is placed.
    cloud.apply(&apply_of(&[("db", database(16))])).await;
    cloud.apply(&apply_of(&[("db", database(15))])).await;
    let _nodes = cloud.three_nodes().await;
    cloud.ready("db", 1).await;
    rolled_out(&cloud, "db").await;
    let apply = apply_of(&[("db", database(16))]);
    let answer = cloud.client.apply(&project(), &apply, false, &key()).await;
    assert_eq!(code(answer), "engine-change");
}

async fn rolled_out(cloud: &Cloud, service: &str) {
    let what = format!("{service} is rolled out");
    until(&what, || async {
        let rollout = cloud.client.rollout(&project(), &name(service)).await;
        let rollout = rollout.ok()?;
        (rollout.phase == RolloutPhase::Done).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_an_engine_cannot_be_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let nodes = cloud.three_nodes().await;
    let first = [("db", database(15)), ("web", needing(service(1), "db"))];
    let applied = cloud.apply(&apply_of(&first)).await;
    let single = applied.warnings.iter().any(|warning| {
        warning.contains("db has one copy") && warning.contains("web depends on it")
    });
    assert!(single, "{:?}", applied.warnings);
    // What has been said is not said with each change.
    let again = [("web", with_env(needing(service(1), "db"), "COLOR", "blue"))];
    let again = cloud.apply(&apply_of(&again)).await;
    assert_eq!(again.warnings, Vec::<String>::new());
    cloud.apply(&apply_of(&first)).await;
    let secret = given(&cloud, &nodes, "db").await;
    cloud.ready("db", 1).await;
    rolled_out(&cloud, "db").await;
    let refused: [(&str, Service, &str); 4] = [
        ("db", database(16), "engine-change"),
        ("db", topic(), "engine-change"),
        ("web", database(15), "engine-change"),
        ("mail", consuming("db", "/x"), "invalid-spec"),
    ];
    for (service, spec, expected) in refused {
        let apply = apply_of(&[(service, spec)]);
        let answer = cloud.client.apply(&project(), &apply, false, &key()).await;
        assert_eq!(code(answer), expected, "{service}");
    }
    let two = cloud.client.scale(&project(), &name("db"), 2).await;
    assert_eq!(code(two), "one-copy");

    // More memory is given in place.
    let mut larger = database(15);
    larger.memory = Bytes::mebibytes(200);
    cloud.apply(&apply_of(&[("db", larger.clone())])).await;
    let larger = told(&nodes, "db", |one| one.spec == larger).await;
    assert_eq!(larger.slot, Some(0));

    // The data of a deleted database stays, and is opened by the same secret; deleted data takes it along.
    for (delete_data, same) in [(false, true), (true, false)] {
        for service in ["web", "db"] {
            cloud
                .client
                .delete(&project(), Kind::Services, service, delete_data)
                .await
                .unwrap();
        }
        cloud
            .ps_until("nothing is left", |all| all.is_empty())
            .await;
        let again = || async {
            let answer = cloud
                .client
                .apply(&project(), &apply_of(&first), false, &key())
                .await;
            answer.ok()
        };
        until("applied again", again).await;
        assert_eq!(given(&cloud, &nodes, "db").await == secret, same);
    }
}
