//! Keys: small values of a project, read, written and listed, under conditions.

use std::sync::Arc;

use api::client::{Client, Transport, Unless};
use model::state::Volume;
use model::units::Bytes;

use crate::cloud::*;
use crate::held::{Disk, Held};

#[tokio::test]
async fn a_key_holds_what_was_put_until_it_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let cloud = Cloud::start_with(directory.path(), Memory::Disk, any, any).await;
    let (client, shop) = (&cloud.client, project());
    assert_eq!(code(client.key(&shop, "flags/dark").await), "not-found");
    let first = client
        .put_key(&shop, "flags/dark", &b"on\n\0"[..], &Unless::Never)
        .await
        .unwrap();
    let (value, revision) = client.key(&shop, "flags/dark").await.unwrap();
    assert_eq!((&value[..], &revision), (&b"on\n\0"[..], &first.revision));
    let other = "other".parse().unwrap();
    assert_eq!(code(client.key(&other, "flags/dark").await), "not-found");

    let cloud = cloud.again().await;
    let client = &cloud.client;
    assert_eq!(client.key(&shop, "flags/dark").await.unwrap().0, value);
    client
        .delete_key(&shop, "flags/dark", &Unless::Never)
        .await
        .unwrap();
    assert_eq!(code(client.key(&shop, "flags/dark").await), "not-found");
    let again = client.delete_key(&shop, "flags/dark", &Unless::Never).await;
    assert_eq!(code(again), "not-found");
}

#[tokio::test]
async fn conditions_let_one_of_two_writers_through() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let (client, shop) = (&cloud.client, project());
    let put = async |value: &'static str, unless: Unless| {
        client.put_key(&shop, "lock", value, &unless).await
    };
    let first = put("a", Unless::Present).await.unwrap().revision;
    assert_eq!(code(put("b", Unless::Present).await), "changed-meanwhile");
    let second = put("b", Unless::Changed(first.clone())).await.unwrap();
    let late = put("c", Unless::Changed(first.clone())).await;
    assert_eq!(code(late), "changed-meanwhile");
    assert_eq!(
        code(put("c", Unless::Changed("what".into())).await),
        "invalid"
    );
    let late = client
        .delete_key(&shop, "lock", &Unless::Changed(first))
        .await;
    assert_eq!(code(late), "changed-meanwhile");
    assert_eq!(client.key(&shop, "lock").await.unwrap().0, "b");
    let unless = Unless::Changed(second.revision);
    client.delete_key(&shop, "lock", &unless).await.unwrap();
    let gone = client.delete_key(&shop, "lock", &unless).await;
    assert_eq!(code(gone), "changed-meanwhile");
}

#[tokio::test]
async fn a_list_knows_all_names_of_a_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let (client, shop) = (&cloud.client, project());
    for number in 0..300 {
        let name = format!("many/{number:03}");
        client
            .put_key(&shop, &name, "four", &Unless::Never)
            .await
            .unwrap();
    }
    client
        .put_key(&shop, "manifold", "", &Unless::Never)
        .await
        .unwrap();
    let many = client.keys(&shop, "many/").await.unwrap();
    let names: Vec<_> = many.iter().map(|key| key.name.clone()).collect();
    let expected: Vec<_> = (0..300).map(|number| format!("many/{number:03}")).collect();
    assert_eq!(names, expected);
    assert!(many.iter().all(|key| key.size.0 == 4));
    let (_, revision) = client.key(&shop, "many/007").await.unwrap();
    assert_eq!(many[7].revision, revision);
    assert_eq!(client.keys(&shop, "").await.unwrap().len(), 301);
    assert_eq!(client.keys(&shop, "none").await.unwrap(), []);
}

#[tokio::test]
async fn keys_are_data_and_leave_with_their_project_when_that_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let (client, shop) = (&cloud.client, project());
    for number in 0..130 {
        client
            .put_key(&shop, &format!("k{number}"), "x", &Unless::Never)
            .await
            .unwrap();
    }
    let neighbour = "shop-2".parse().unwrap();
    client
        .put_key(&neighbour, "k", "x", &Unless::Never)
        .await
        .unwrap();
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    client.delete_project(&shop, false).await.unwrap();
    assert_eq!(client.keys(&shop, "").await.unwrap().len(), 130);
    client.delete_project(&shop, true).await.unwrap();
    assert_eq!(client.keys(&shop, "").await.unwrap(), []);
    assert_eq!(client.keys(&neighbour, "").await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let (client, shop) = (&cloud.client, project());
    let put = async |name: &str, length: usize| {
        client
            .put_key(&shop, name, vec![b'x'; length], &Unless::Never)
            .await
    };
    assert_eq!(code(put("whole", 64 << 10).await), "it was done");
    assert_eq!(code(put("whole", (64 << 10) + 1).await), "too-large");
    assert_eq!(code(put("no name", 1).await), "invalid");
    assert_eq!(code(put("a//b", 1).await), "invalid");
    assert_eq!(code(put(&"n".repeat(201), 1).await), "invalid");
    let nobody = Client::new(Transport::Tcp(cloud.file.api), None);
    let refused = nobody.put_key(&shop, "a", "x", &Unless::Never).await;
    assert_eq!(code(refused), "unauthenticated");
    assert_eq!(code(nobody.key(&shop, "whole").await), "unauthenticated");
}

#[tokio::test]
async fn keys_are_written_beside_what_is_decided_and_fenced_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    let (client, shop) = (&cloud.client, project());
    for number in 0..100 {
        client
            .put_key(&shop, &format!("k{number}"), "x", &Unless::Never)
            .await
            .unwrap();
    }
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    let audited = client.audit(1000).await.unwrap().items;
    assert!(audited.iter().all(|record| !record.action.contains("ey")));

    for file in ["keyring", "client.json"] {
        std::fs::copy(directory.path().join(file), other.path().join(file)).unwrap();
    }
    let any = "127.0.0.1:0".parse().unwrap();
    let second = Cloud::start_with(other.path(), cloud.memory.clone(), any, any).await;
    let fenced = client.put_key(&shop, "k0", "y", &Unless::Never).await;
    assert_eq!(code(fenced), "fenced");
    assert_eq!(second.client.key(&shop, "k0").await.unwrap().0, "x");
}

/// `delete --all --delete-data`: all of it or nothing.
#[tokio::test]
async fn a_deletion_of_everything_that_is_refused_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let held = Held::default();
    let memory = Memory::Other(Arc::new(held.clone()));
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    let node = cloud.join("a").await;
    let mut db = service(1);
    let size = Bytes::mebibytes(1);
    db.volumes.insert(name("data"), Volume { size });
    cloud.apply(&apply_of(&[("db", db)])).await;
    cloud.ready("db", 1).await;
    let (client, shop) = (&cloud.client, project());
    let put = client.put_key(&shop, "flags/dark", "on", &Unless::Never);
    put.await.unwrap();
    for refused in ["service/", "audit/"] {
        held.set(Disk::Refuses(refused));
        let done = client.delete_project(&shop, true).await;
        assert_eq!(code(done), "store-unavailable", "{refused}");
        held.set(Disk::Works);
        assert_eq!(client.key(&shop, "flags/dark").await.unwrap().0, "on");
        assert!(cloud.ready("db", 1).await[0].ready, "{refused}");
        assert!(node.forgot().is_empty(), "{refused}");
    }
    client.delete_project(&shop, true).await.unwrap();
    assert_eq!(code(client.key(&shop, "flags/dark").await), "not-found");
    until("the data goes", || async {
        (!node.forgot().is_empty()).then_some(())
    })
    .await;
}
