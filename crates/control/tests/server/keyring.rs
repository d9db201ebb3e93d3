//! The keys that seal secrets are exchanged, whatever happens meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::wire::{Apply, RingKey, SecretValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::boundary::SecretSource;

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

#[tokio::test]
async fn a_rotation_that_was_cut_off_goes_on_with_the_next_server() {
    for step in ["authority", "secret/"] {
        let directory = tempfile::tempdir().unwrap();
        let held = Held::default();
        let cloud = cloud_with_secrets(directory.path(), &held).await;
        held.set(Disk::Refuses(step));
        let rotated = cloud.client.rotate_keyring().await;
        assert_eq!(code(rotated), "store-unavailable", "{step}");
        assert_eq!(keys(&cloud).await.len(), 2, "{step}");
        let seals: usize = keys(&cloud).await.iter().map(|key| key.seals).sum();
        assert_eq!((in_file(&cloud).len(), seals), (2, SECRETS + 1), "{step}");
        held.set(Disk::Works);
        let cloud = cloud.again().await;
        let key = until("one key", || async {
            let mut keys = keys(&cloud).await;
            (keys.len() == 1).then(|| keys.remove(0))
        })
        .await;
        assert!(key.current && key.seals == SECRETS + 1, "{step}: {key:?}");
        assert_eq!(in_file(&cloud), [key.id], "{step}");
        let node = cloud.join("a").await;
        cloud.ready("web", 1).await;
        let web = "shop/web".parse().unwrap();
        let values = node
            .client
            .secret_values(&node.name, &web)
            .await
            .unwrap()
            .values;
        assert_eq!(values[&name("s7")], STANDARD.encode("s7"), "{step}");
    }
}
