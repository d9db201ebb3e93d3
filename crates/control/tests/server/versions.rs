//! A server over what a later version wrote.

use control::server;
use serde_json::{Value, json};
use store::memory::MemoryStore;
use store::{Store, Transaction, list_all};

use crate::cloud::*;

async fn put(store: &MemoryStore, key: &str, value: &Value) {
    let text = serde_json::to_vec(value).unwrap();
    let put = Transaction::new().put(key, text);
    store.transact(put).await.unwrap();
}

async fn get(store: &MemoryStore, key: &str) -> Value {
    let record = store.get(key).await.unwrap().unwrap();
    serde_json::from_slice(&record.value).unwrap()
}

/// Deciding on half a world would undo the other half: it does not start, says which version does, and leaves all as it is.
#[tokio::test]
async fn a_server_that_was_rolled_back_over_words_it_does_not_know_says_so_and_changes_nothing() {
    const SERVICE: &str = "service/shop/web";
    let directory = tempfile::tempdir().unwrap();
    let ram = MemoryStore::default();
    let memory = Memory::Ram(ram.clone());
    let mut cloud = Cloud::start_with(directory.path(), memory.clone(), any(), any()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.stop().await;
    let known = get(&ram, SERVICE).await;
    assert_eq!(get(&ram, "leader").await["version"], "test");

    let refused = async || {
        let before = list_all(&ram, "").await.unwrap();
        let keyring = std::fs::read(directory.path().join("keyring")).unwrap();
        let options = options(directory.path(), &memory, any(), any());
        let refused = server::run(options, std::future::pending()).await;
        assert_eq!(list_all(&ram, "").await.unwrap(), before);
        assert_eq!(
            std::fs::read(directory.path().join("keyring")).unwrap(),
            keyring
        );
        refused.unwrap_err().to_string()
    };
    let mut later = known.clone();
    later["spec"]["work"] = json!({ "runtime": "unikernel", "image": "web" });
    put(&ram, SERVICE, &later).await;
    let mut leader = get(&ram, "leader").await;
    for (version, expected) in [
        (
            json!("9.9.9"),
            &[
                "version 9.9.9 led here last, and this is version test",
                "remedy: start version 9.9.9 again, or a newer one",
            ][..],
        ),
        (
            Value::Null,
            &["another version led here last", "nothing was changed"],
        ),
        // It wrote that itself: it is no matter of versions.
        (json!("test"), &["unikernel"]),
    ] {
        leader["version"] = version;
        put(&ram, "leader", &leader).await;
        let said = refused().await;
        let place = directory.path().display().to_string();
        for part in [&place, SERVICE, "unikernel"]
            .into_iter()
            .chain(expected.iter().copied())
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(said.contains("led here last"), expected.len() > 1, "{said}");
    }
    // Where uids begin is taken over, also from one that did not keep it.
    let begun = leader["first_uid"].clone();
    assert!(begun.is_u64(), "{leader}");
    leader["first_uid"] = Value::Null;
    put(&ram, "leader", &leader).await;
    // And its fields, which are read past, and keys that are none of ours.
    let mut more = known.clone();
    more["spec"]["gpu"] = json!(1);
    put(&ram, SERVICE, &more).await;
    put(&ram, "wormhole/shop/web", &json!({})).await;
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    let found = cloud.client.service(&project(), &name("web")).await;
    assert_eq!(found.unwrap(), service(1));
    assert_eq!(get(&ram, "leader").await["first_uid"], begun);
}
