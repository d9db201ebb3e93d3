//! One deploy at a time: what is applied rests on who deploys at the moment in which it is written.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::client::Error;
use api::wire::{Applied, HoldDeploy};
use jiff::Timestamp;
use store::memory::MemoryStore;
use store::{BoxFuture, LeaseId, List, Page, Record, Revision, Store, Transaction, Watcher};

use crate::cloud::*;

/// A store in which another server writes something of its own just before a service is written.
#[derive(Clone, Default)]
struct Meddled {
    inner: MemoryStore,
    before: Arc<Mutex<Option<Transaction>>>,
}

impl Meddled {
    /// Another server lets somebody deploy.
    fn lets_deploy(&self, id: &str) {
        let now = Timestamp::now();
        let record = serde_json::json!({
            "id": id, "holder": "admin:other", "client": "other@there, pid 8", "since": now, "renewed_at": now,
        });
        let transaction = Transaction::new().put("deploy/shop", record.to_string());
        *self.before.lock().unwrap() = Some(transaction);
    }
}

impl Store for Meddled {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, store::Error>> {
        self.inner.get(key)
    }

    fn list(&self, list: List) -> BoxFuture<'_, Result<Page, store::Error>> {
        self.inner.list(list)
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, store::Error>> {
        let mut keys = transaction.operations.iter().map(|one| one.key());
        let writes_service = keys.any(|key| key.starts_with("service/"));
        let before = match writes_service {
            true => self.before.lock().unwrap().take(),
            false => None,
        };
        Box::pin(async move {
            if let Some(before) = before {
                self.inner.transact(before).await?;
            }
            self.inner.transact(transaction).await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Watcher, store::Error>> {
        self.inner.watch(prefix, after)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, store::Error>> {
        self.inner.revision()
    }

    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), store::Error>> {
        self.inner.compact(through)
    }

    fn grant(&self, time_to_live: Duration) -> BoxFuture<'_, Result<LeaseId, store::Error>> {
        self.inner.grant(time_to_live)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), store::Error>> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, store::Error>> {
        self.inner.revoke(lease)
    }

    fn expire(&self) -> BoxFuture<'_, Result<usize, store::Error>> {
        self.inner.expire()
    }
}

async fn hold(cloud: &Cloud, id: &str) {
    let hold = HoldDeploy {
        client: "me@here, pid 7".to_owned(),
    };
    let held = cloud.client.hold_deploy(&project(), id, &hold).await;
    assert_eq!(held.unwrap().id, id);
}

async fn apply(cloud: &Cloud, deploy: Option<&str>, copies: u32) -> Result<Applied, Error> {
    let (client, apply) = (&cloud.client, apply_of(&[("web", service(copies))]));
    match deploy {
        Some(id) => client.apply_in_deploy(&project(), &apply, id, &key()).await,
        None => client.apply(&project(), &apply, false, &key()).await,
    }
}

async fn copies(cloud: &Cloud) -> u32 {
    let web = cloud.client.service(&project(), &name("web")).await;
    web.map_or(0, |web| web.replicas)
}

#[tokio::test]
async fn a_deploy_that_is_lost_as_it_is_written_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Meddled::default();
    let memory = Memory::Other(Arc::new(store.clone()));
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;

    hold(&cloud, "one").await;
    store.lets_deploy("two");
    let refused = apply(&cloud, Some("one"), 1).await.unwrap_err();
    assert_eq!(refused.code(), Some("deploy-lost"), "{refused}");
    assert!(refused.to_string().contains("other@there"), "{refused}");
    let Error::Refused(problem) = &refused else {
        panic!("{refused}");
    };
    assert_eq!((problem.status, copies(&cloud).await), (409, 0));

    // Its own sign of life in between is none of another.
    assert!(cloud.client.end_deploy(&project(), "two").await.unwrap());
    hold(&cloud, "one").await;
    store.lets_deploy("one");
    apply(&cloud, Some("one"), 2).await.unwrap();
    assert_eq!(copies(&cloud).await, 2);

    // Who applies under no deploy meets the one that began meanwhile.
    assert!(cloud.client.end_deploy(&project(), "one").await.unwrap());
    store.lets_deploy("three");
    let refused = apply(&cloud, None, 3).await;
    assert_eq!(
        (code(refused), copies(&cloud).await),
        ("deploy-in-progress".to_owned(), 2)
    );
}

#[tokio::test]
async fn a_deploy_that_ended_is_applied_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    assert_eq!(code(apply(&cloud, Some("never"), 1).await), "deploy-lost");
    hold(&cloud, "one").await;
    apply(&cloud, Some("one"), 1).await.unwrap();
    let others = [Some("two"), None];
    for (other, expected) in others
        .into_iter()
        .zip(["deploy-lost", "deploy-in-progress"])
    {
        assert_eq!(code(apply(&cloud, other, 2).await), expected);
    }
    assert!(cloud.client.end_deploy(&project(), "one").await.unwrap());
    assert_eq!(code(apply(&cloud, Some("one"), 2).await), "deploy-lost");
    assert_eq!(copies(&cloud).await, 1);
    apply(&cloud, None, 2).await.unwrap();
}
