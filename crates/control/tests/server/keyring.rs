//! The keys that seal secrets are exchanged, whatever happens meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::wire::{Apply, RingKey, SecretValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::boundary::SecretSource;
use store::{Store, Transaction};

use crate::cloud::*;
use crate::held::{Disk, Held};

const SECRETS: usize = 150;

async fn cloud_with_secrets(directory: &std::path::Path, held: &Held) -> Cloud {
    let memory = Memory::Other(Arc::new(held.clone()));
    let cloud = Cloud::start_with(directory, memory, any(), any()).await;
    let names: Vec<_> = (0..SECRETS)
        .map(|index| name(&format!("s{index}")))
        .collect();
    let given = names.iter().map(|name| (name.clone(), SecretSource::Given));
    let values = names
        .iter()
        .map(|name| (name.clone(), STANDARD.encode(name.as_str())));
    let apply = Apply {
        secrets: given.collect(),
        secret_values: values.collect(),
        services: BTreeMap::from([(name("web"), needing(service(1), "s7"))]),
        ..Apply::default()
    };
    cloud.apply(&apply).await;
    cloud
}

/// The ids that the file holds.
fn in_file(cloud: &Cloud) -> Vec<String> {
    let text = std::fs::read(cloud.directory.join("keyring")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
    file["keys"].as_object().unwrap().keys().cloned().collect()
}

async fn keys(cloud: &Cloud) -> Vec<RingKey> {
    cloud.client.keyring().await.unwrap().keys
}

#[tokio::test]
async fn every_secret_is_sealed_by_the_new_key_and_the_old_one_goes() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = cloud_with_secrets(directory.path(), &Held::default()).await;
    let node = cloud.join("a").await;
    cloud.ready("web", 1).await;
    let old = in_file(&cloud);
    let all = SECRETS + 1;
    let rotated = cloud.client.rotate_keyring().await.unwrap().keys;
    assert_eq!(rotated.len(), 1);
    assert!(rotated[0].current && rotated[0].id != old[0]);
    assert_eq!(rotated[0].seals, all);
    assert_eq!(in_file(&cloud), [rotated[0].id.clone()]);
    let web = "shop/web".parse().unwrap();
    let values = node
        .client
        .secret_values(&node.name, &web)
        .await
        .unwrap()
        .values;
    assert_eq!(values[&name("s7")], STANDARD.encode("s7"));
    let records = cloud.client.audit(100).await.unwrap().items;
    for action in ["keyring.rotate", "keyring.rewrap", "keyring.retire"] {
        let record = records.iter().find(|record| record.action == action);
        assert_eq!(record.unwrap().principal.0, "admin:owner", "{action}");
    }
    // Only who may do all may do this.
    assert_eq!(code(node.client.rotate_keyring().await), "not-permitted");
    assert_eq!(code(node.client.keyring().await), "not-permitted");

    // Another server opens all of it, the authority as well.
    let cloud = cloud.again().await;
    let fresh = SecretValue {
        value: STANDARD.encode("new"),
    };
    let set = cloud
        .client
        .set_secret(&project(), &name("s8"), &fresh)
        .await
        .unwrap();
    assert_eq!(set.key_id, rotated[0].id);
}

/// The value of `s7`, as a node that runs what needs it is given it.
async fn value_of_s7(cloud: &Cloud) -> String {
    let node = cloud.join("a").await;
    cloud.ready("web", 1).await;
    let web = "shop/web".parse().unwrap();
    let values = node.client.secret_values(&node.name, &web).await;
    values.unwrap().values[&name("s7")].clone()
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_goes_on_with_the_next_server() {
    // Before the authority, some secrets, and the old key's end.
    let steps = [
        Disk::Refuses("authority"),
        Disk::Refuses("secret/"),
        Disk::RefusesWith("keyring.retire"),
    ];
    for step in steps {
        let directory = tempfile::tempdir().unwrap();
        let held = Held::default();
        let cloud = cloud_with_secrets(directory.path(), &held).await;
        held.set(step.clone());
        let rotated = cloud.client.rotate_keyring().await;
        assert_eq!(code(rotated), "store-unavailable", "{step:?}");
        assert_eq!(keys(&cloud).await.len(), 2, "{step:?}");
        let seals: usize = keys(&cloud).await.iter().map(|key| key.seals).sum();
        assert_eq!((in_file(&cloud).len(), seals), (2, SECRETS + 1), "{step:?}");
        held.set(Disk::Works);
        let cloud = cloud.again().await;
        let key = until("one key", || async {
            let mut keys = keys(&cloud).await;
            (keys.len() == 1).then(|| keys.remove(0))
        })
        .await;
        assert!(key.current && key.seals == SECRETS + 1, "{step:?}: {key:?}");
        assert_eq!(in_file(&cloud), [key.id], "{step:?}");
        assert_eq!(value_of_s7(&cloud).await, STANDARD.encode("s7"), "{step:?}");
    }
}

fn records_of(cloud: &Cloud, action: &'static str) -> impl Future<Output = usize> {
    let client = &cloud.client;
    async move {
        let records = client.audit(100).await.unwrap().items;
        records
            .iter()
            .filter(|record| record.action == action)
            .count()
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_written_keeps_every_key_that_is_needed() {
    let directory = tempfile::tempdir().unwrap();
    let held = Held::default();
    let cloud = cloud_with_secrets(directory.path(), &held).await;
    let before = in_file(&cloud);
    // Nobody can make a file where a folder is.
    let beside = directory.path().join("keyring.new");
    std::fs::create_dir(&beside).unwrap();
    assert_eq!(code(cloud.client.rotate_keyring().await), "disk");
    assert_eq!((in_file(&cloud), keys(&cloud).await.len()), (before, 1));
    std::fs::remove_dir(&beside).unwrap();

    // The same between the record of the end and the end.
    held.set(Disk::RefusesWith("keyring.retire"));
    let refused = cloud.client.rotate_keyring().await;
    assert_eq!(code(refused), "store-unavailable");
    held.set(Disk::Works);
    std::fs::create_dir(&beside).unwrap();
    let mut cloud = cloud.again().await;
    until("the record", || async {
        (records_of(&cloud, "keyring.retire").await > 0).then_some(())
    })
    .await;
    assert_eq!((in_file(&cloud).len(), keys(&cloud).await.len()), (2, 2));
    cloud.stop().await;
    std::fs::remove_dir(&beside).unwrap();
    let cloud = cloud.again().await;
    until("one key", || async {
        (in_file(&cloud).len() == 1).then_some(())
    })
    .await;
    assert_eq!(value_of_s7(&cloud).await, STANDARD.encode("s7"));
}

#[tokio::test]
async fn an_old_key_stays_for_what_only_the_store_knows_of() {
    for hidden in ["secret/", "engine-secret/"] {
        let directory = tempfile::tempdir().unwrap();
        let held = Held::default();
        let cloud = cloud_with_secrets(directory.path(), &held).await;
        // Of this one the server's own picture of the store is never told.
        held.hide(Some(hidden));
        if hidden == "secret/" {
            let late = Apply {
                secrets: [(name("late"), SecretSource::Given)].into(),
                secret_values: [(name("late"), STANDARD.encode("late"))].into(),
                ..Apply::default()
            };
            cloud.apply(&late).await;
        } else {
            let record = held.inner.get("secret/shop/s7").await.unwrap().unwrap();
            let write = Transaction::new().put("engine-secret/shop/db", record.value);
            held.transact(write).await.unwrap();
        }
        held.hide(None);
        let refused = cloud.client.rotate_keyring().await;
        assert_eq!(code(refused), "busy", "{hidden}");
        assert_eq!(in_file(&cloud).len(), 2, "{hidden}");
        assert_eq!(records_of(&cloud, "keyring.retire").await, 0, "{hidden}");
        if hidden == "engine-secret/" {
            let known = held.inner.get("engine-secret/shop/db").await;
            assert!(known.unwrap().is_some());
            continue;
        }
        // The next server knows all, and ends it.
        let cloud = cloud.again().await;
        let sealed = until("one key", || async {
            let mut keys = keys(&cloud).await;
            (keys.len() == 1).then(|| keys.remove(0))
        })
        .await;
        assert_eq!(in_file(&cloud), [sealed.id]);
        assert_eq!(sealed.seals, SECRETS + 2);
    }
}

#[tokio::test]
async fn an_old_key_stays_for_what_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let held = Held::default();
    let cloud = cloud_with_secrets(directory.path(), &held).await;
    let write = Transaction::new().put("secret/shop/odd", "{");
    held.transact(write).await.unwrap();
    let refused = cloud.client.rotate_keyring().await;
    assert_eq!(code(refused), "unreadable-record");
    assert_eq!(in_file(&cloud).len(), 2);
}

/// A rotation that could not be ended is ended before another begins, and by the server itself once that is possible.
#[tokio::test]
async fn a_rotation_that_cannot_end_is_not_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    let held = Held::default();
    let cloud = cloud_with_secrets(directory.path(), &held).await;
    held.set(Disk::RefusesWith("keyring.retire"));
    for _ in 0..4 {
        let rotated = cloud.client.rotate_keyring().await;
        assert_eq!(code(rotated), "store-unavailable");
        assert_eq!(in_file(&cloud).len(), 2);
    }
    assert_eq!(records_of(&cloud, "keyring.rotate").await, 1);
    held.set(Disk::Works);
    until("the server ends it by itself", || async {
        (in_file(&cloud).len() == 1).then_some(())
    })
    .await;
    let rotated = cloud.client.rotate_keyring().await.unwrap().keys;
    assert_eq!((rotated.len(), rotated[0].seals), (1, SECRETS + 1));
}
