//! The audit log: one with its change, a chain, and not to be washed out by who may do nothing.

use std::sync::Arc;

use api::client::{Client, Transport};
use futures_util::{StreamExt, stream};
use model::boundary::audit::{Break, Walk};
use model::boundary::{AuditOutcome, AuditRecord};
use store::{Store, Transaction};

use crate::cloud::*;
use crate::held::{Disk, Held};

/// Walks along all of it; answers how many records there are.
async fn walk(client: &Client) -> Result<u64, Break> {
    let mut piece = client.audit_chain(1).await.unwrap();
    let (mut way, first) = (Walk::begin(&piece.head), piece.head.first);
    while !piece.links.is_empty() {
        piece.links.iter().try_for_each(|link| way.take(link))?;
        piece = client.audit_chain(way.next()).await.unwrap();
    }
    way.end(&piece.head)?;
    Ok(way.next() - first)
}

async fn done(cloud: &Cloud) -> Vec<AuditRecord> {
    let mut records = cloud.client.audit(1000).await.unwrap().items;
    records.retain(|record| record.outcome == AuditOutcome::Done);
    records
}

async fn refused(cloud: &Cloud) -> Vec<AuditRecord> {
    let mut records = cloud.client.audit(1000).await.unwrap().items;
    records.retain(|record| record.outcome != AuditOutcome::Done);
    records
}

#[tokio::test]
async fn what_cannot_be_recorded_does_not_happen() {
    let directory = tempfile::tempdir().unwrap();
    let held = Held::default();
    let memory = Memory::Other(Arc::new(held.clone()));
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    let before = done(&cloud).await;
    held.set(Disk::Refuses("audit/"));
    let (client, shop, web) = (&cloud.client, project(), name("web"));
    let ask = api::wire::MakeJoinToken {
        node: None,
        valid_seconds: 60,
    };
    let more = apply_of(&[("web", service(2)), ("other", service(1))]);
    let codes = [
        code(client.scale(&shop, &web, 3).await),
        code(client.restart(&shop, &web, "once").await),
        code(client.apply(&shop, &more, false, "two").await),
        code(client.make_join_token(&ask).await),
        code(client.delete_project(&shop, false).await),
        code(client.rotate_keyring().await),
    ];
    assert!(
        codes.iter().all(|code| code == "store-unavailable"),
        "{codes:?}"
    );
    held.set(Disk::Works);
    let status = client.status(&shop).await.unwrap();
    assert_eq!((status.services.len(), status.services[0].wanted), (1, 1));
    assert_eq!(client.releases(&shop, &web).await.unwrap().items.len(), 1);
    assert_eq!(client.keyring().await.unwrap().keys.len(), 1);
    assert_eq!(done(&cloud).await, before);

    // It goes on where it was, and the key of the restart is free.
    client.restart(&shop, &web, "once").await.unwrap();
    assert_eq!(done(&cloud).await.len(), before.len() + 1);
    walk(client).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_refusals_leaves_every_change_in_the_log() {
    const REFUSED: usize = 4_000;
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    for copies in 0..30 {
        cloud.apply(&apply_of(&[("web", service(copies))])).await;
    }
    let nobody = Client::new(Transport::Tcp(cloud.file.api), None);
    let shop = project();
    let put = |index: usize| {
        let (nobody, shop) = (&nobody, &shop);
        let web = name(&format!("web-{}", index % 50));
        async move { code(nobody.scale(shop, &web, 9).await) }
    };
    let mut all = stream::iter((0..REFUSED).map(put)).buffer_unordered(50);
    let mut asked = 0;
    while let Some(code) = all.next().await {
        assert_eq!(code, "unauthenticated");
        asked += 1;
        // The owner's changes are made and kept meanwhile.
        if asked % 500 == 0 {
            cloud.client.scale(&shop, &name("web"), 1).await.unwrap();
        }
    }
    let kept = done(&cloud).await;
    let count = |action: &str| kept.iter().filter(|record| record.action == action).count();
    assert_eq!((count("apply"), count("scale")), (30, REFUSED / 500));
    let counted = refused(&cloud).await;
    assert_eq!(counted.len(), 1, "{counted:#?}");
    assert_eq!(counted[0].times, REFUSED as u64);
    assert_eq!(counted[0].action, "scale");
    let records = walk(&cloud.client).await.unwrap();

    // Both are there after a restart, and the chain goes on.
    let cloud = cloud.again().await;
    assert_eq!(refused(&cloud).await[0].times, REFUSED as u64);
    cloud.client.scale(&shop, &name("web"), 2).await.unwrap();
    assert_eq!(walk(&cloud.client).await, Ok(records + 1));
}

#[tokio::test]
async fn records_are_chosen_and_numbered() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _node = cloud.join("a").await;
    cloud
        .apply(&apply_of(&[("web", service(1)), ("api", service(1))]))
        .await;
    for service in ["web", "api", "web"] {
        cloud
            .client
            .scale(&project(), &name(service), 2)
            .await
            .unwrap();
    }
    let chosen = |limit, filter: &'static [(&'static str, &'static str)]| {
        let client = &cloud.client;
        async move {
            let filter: Vec<_> = filter
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect();
            let records = client.audit_of(limit, &filter).await.unwrap().items;
            let told = records
                .iter()
                .map(|record| format!("{} {}", record.action, record.on));
            told.collect::<Vec<_>>()
        }
    };
    assert_eq!(
        chosen(9, &[("action", "scale")]).await,
        ["scale shop/web", "scale shop/api", "scale shop/web"]
    );
    assert_eq!(chosen(1, &[("action", "scale")]).await, ["scale shop/web"]);
    assert_eq!(
        chosen(9, &[("action", "scale"), ("on", "shop/api")]).await,
        ["scale shop/api"]
    );
    assert_eq!(
        chosen(9, &[("principal", "node:a")]).await,
        ["node.join node/a"]
    );
    assert_eq!(
        chosen(9, &[("until", "2020-01-01T00:00:00Z")]).await,
        [""; 0]
    );
    assert_eq!(
        chosen(
            9,
            &[("since", "2020-01-01T00:00:00+02:00"), ("action", "node")]
        )
        .await,
        ["node.join node/a", "node.token node/a"]
    );
    let odd = [("since", "yesterday".to_owned())];
    assert_eq!(code(cloud.client.audit_of(9, &odd).await), "invalid");
    let numbers: Vec<_> = done(&cloud)
        .await
        .iter()
        .filter_map(|record| record.sequence)
        .collect();
    let expect: Vec<_> = (1..=numbers.len() as u64).rev().collect();
    assert_eq!(numbers, expect);
}

#[tokio::test]
async fn a_record_that_was_changed_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let cloud = Cloud::start_with(directory.path(), Memory::Ram(ram.clone()), any(), any()).await;
    for copies in 0..5 {
        cloud.apply(&apply_of(&[("web", service(copies))])).await;
    }
    let place = format!("audit/{:020}", 4);
    let known = ram.get(&place).await.unwrap().unwrap();
    let text = String::from_utf8(known.value.to_vec()).unwrap();
    let forged = text.replace("admin:owner", "admin:other");
    assert_ne!(text, forged);
    let put = |value: String| Transaction::new().put(place.clone(), value);
    ram.transact(put(forged)).await.unwrap();
    assert_eq!(
        walk(&cloud.client).await,
        Err(Break::Altered { sequence: 4 })
    );
    ram.transact(Transaction::new().delete(place.clone()))
        .await
        .unwrap();
    assert_eq!(
        walk(&cloud.client).await,
        Err(Break::Missing { from: 4, to: 4 })
    );
    ram.transact(put("{}".to_owned())).await.unwrap();
    assert_eq!(
        walk(&cloud.client).await,
        Err(Break::Missing { from: 4, to: 4 })
    );
    ram.transact(put(text)).await.unwrap();
    walk(&cloud.client).await.unwrap();
}
