//! Secrets: sealed, given to the nodes that run what needs them, and to nobody else.

use std::time::Duration;

use api::wire::{Apply, SecretValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::boundary::SecretSource;

use crate::cloud::*;

const PLAIN: &str = "s3cret-value-that-must-not-show";

fn with_secrets(cloud_services: &[(&str, model::compute::Service)]) -> Apply {
    let mut apply = apply_of(cloud_services);
    apply.secrets.insert(
        name("card-key"),
        SecretSource::File {
            path: "card.key".to_owned(),
        },
    );
    apply
        .secrets
        .insert(name("session-key"), SecretSource::Generate { bytes: 32 });
    apply
        .secret_values
        .insert(name("card-key"), STANDARD.encode(PLAIN));
    apply
}

#[tokio::test]
async fn only_the_node_that_runs_what_needs_a_secret_can_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let cloud = Cloud::start_with(directory.path(), Memory::Disk, any, any).await;
    let nodes = cloud.three_nodes().await;
    let pay = needing(needing(service(1), "card-key"), "session-key");
    cloud.apply(&with_secrets(&[("pay", pay)])).await;
    let home = cloud.ready("pay", 1).await[0].node.clone().unwrap();
    let service = "shop/pay".parse().unwrap();
    for node in &nodes {
        let values = node.client.secret_values(&node.name, &service).await;
        if node.name == home {
            let values = values.unwrap().values;
            assert_eq!(
                STANDARD.decode(&values[&name("card-key")]).unwrap(),
                PLAIN.as_bytes()
            );
            assert_eq!(
                STANDARD
                    .decode(&values[&name("session-key")])
                    .unwrap()
                    .len(),
                64
            );
            let told = node.desired().unwrap();
            assert_eq!(told.instances[0].secrets.len(), 2);
        } else {
            assert_eq!(code(values.map(drop)), "not-placed-here");
            assert_eq!(
                code(node.client.secret_values(&home, &service).await.map(drop)),
                "other-node"
            );
        }
    }
    let generated = nodes
        .iter()
        .find(|node| node.name == home)
        .unwrap()
        .client
        .secret_values(&home, &service)
        .await
        .unwrap();
    let generated = String::from_utf8(
        STANDARD
            .decode(&generated.values[&name("session-key")])
            .unwrap(),
    )
    .unwrap();

    // A new value restarts nothing, and says so.
    let mut changed = with_secrets(&[]);
    changed.secret_values.insert(
        name("card-key"),
        STANDARD.encode("s3cret-value-that-must-not-show-2"),
    );
    let applied = cloud.apply(&changed).await;
    assert_eq!(
        applied.changes[0].consequence,
        "nothing restarts; restart pay to use the new value"
    );
    let view = cloud
        .client
        .set_secret(
            &project(),
            &name("card-key"),
            &SecretValue {
                value: STANDARD.encode(PLAIN),
            },
        )
        .await
        .unwrap();
    assert_eq!(view.version, 3);
    assert_eq!(
        code(
            cloud
                .client
                .delete(&project(), api::wire::Kind::Secrets, "card-key", false)
                .await
        ),
        "needed"
    );

    nothing_shows(&cloud, &[PLAIN, &STANDARD.encode(PLAIN), &generated]).await;
}

#[tokio::test]
async fn the_value_that_a_secret_has_makes_no_new_version() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    let set = async |bytes: &[u8]| {
        let value = SecretValue {
            value: STANDARD.encode(bytes),
        };
        let set = cloud
            .client
            .set_secret(&project(), &name("key"), &value)
            .await;
        let view = set.unwrap();
        (view.version, view.unchanged)
    };
    assert_eq!(set(b"x").await, (1, false));
    assert_eq!(set(b"x").await, (1, true));
    assert_eq!(set(b"x\n").await, (2, false), "a line break is a byte");
    assert_eq!(set(b"x\n").await, (2, true));
    assert_eq!(set(b"x").await, (3, false));
}

#[tokio::test]
async fn what_the_kernel_would_not_take_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let refused = async |apply: &Apply| {
        let answer = cloud.client.apply(&project(), apply, false, &key()).await;
        answer.err().map(|error| error.to_string())
    };
    let mut bad = service(1);
    bad.env.insert("N".to_owned(), "a\0b".to_owned());
    let said = refused(&apply_of(&[("web", bad)])).await.unwrap();
    assert!(said.contains("web: the variable `N` holds a NUL"), "{said}");

    let mut many = apply_of(&[]);
    let mut greedy = service(1);
    for number in 0..33 {
        let secret = format!("s{number}");
        greedy = needing(greedy, &secret);
        many.secrets.insert(name(&secret), SecretSource::Given);
        let value = STANDARD.encode(vec![b'x'; 64 << 10]);
        many.secret_values.insert(name(&secret), value);
    }
    many.services.insert(name("web"), greedy);
    let said = refused(&many).await.unwrap();
    assert!(said.contains("2064384 is the most"), "{said}");

    let mut as_file = needing(service(1), "key");
    as_file.needs.get_mut(&name("key")).unwrap().file = true;
    let as_variable = needing(service(1), "word");
    let mut apply = apply_of(&[("web", as_file), ("api", as_variable)]);
    for secret in ["key", "word"] {
        apply.secrets.insert(name(secret), SecretSource::Given);
    }
    assert_eq!(refused(&apply).await, None);
    let set = async |secret: &str, bytes: &[u8]| {
        let value = SecretValue {
            value: STANDARD.encode(bytes),
        };
        let set = cloud
            .client
            .set_secret(&project(), &name(secret), &value)
            .await;
        set.err().map(|error| error.to_string())
    };
    assert_eq!(set("key", b"a\0\xff").await, None);
    let said = set("word", b"a\0b").await.unwrap();
    assert!(
        said.contains("api: the secret `word` holds a NUL"),
        "{said}"
    );
}

/// No body that a person can get, and no file of the server, holds a value.
async fn nothing_shows(cloud: &Cloud, values: &[&str]) {
    let paths = [
        "/v1/projects/shop/secrets",
        "/v1/projects/shop/secrets/card-key",
        "/v1/projects/shop/services/pay",
        "/v1/projects/shop/releases",
        "/v1/projects/shop/services/pay/releases",
        "/v1/projects/shop/status",
        "/v1/projects/shop/instances",
        "/v1/projects/shop/events",
        "/v1/projects/shop/explain/pay",
        "/v1/projects/shop/explain/card-key",
        "/v1/events",
        "/v1/audit",
        "/v1/nodes/a/desired",
    ];
    for path in paths {
        let body = cloud.body(path).await;
        assert!(body.starts_with(['{', '[']), "{path}: {body}");
        for value in values {
            assert!(!body.contains(value), "{path} shows a secret: {body}");
        }
    }
    // Written by threads of their own.
    tokio::time::timeout(Duration::from_secs(5), cloud.client.audit(1))
        .await
        .unwrap()
        .unwrap();
    let mut folders = vec![cloud.directory.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            for value in values {
                let found = bytes
                    .windows(value.len())
                    .any(|window| window == value.as_bytes());
                assert!(!found, "{} holds a secret", path.display());
            }
        }
    }
}

#[tokio::test]
async fn a_secret_from_a_file_needs_its_value_once() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut apply = with_secrets(&[]);
    let value = apply.secret_values.remove(&name("card-key")).unwrap();
    assert_eq!(
        code(cloud.client.apply(&project(), &apply, false, &key()).await),
        "secret-value-missing"
    );
    apply.secret_values.insert(name("card-key"), value);
    cloud.apply(&apply).await;
    apply.secret_values.clear();
    let again = cloud.apply(&apply).await;
    assert!(
        again
            .changes
            .iter()
            .all(|change| change.action == api::wire::Action::Keep),
        "{:?}",
        again.changes
    );
}
