//! What nodes have decides where databases go, and what their machines lack is told.

use model::compute::{Service, Work};
use model::control::{NodeRole, Notice, Reason};
use model::machine::{Disk, POSTGRES, Programs};
use model::state::{Engine, Postgres, Volume};
use model::units::Bytes;

use crate::cloud::*;

fn has(versions: &[u32]) -> Machine {
    let versions = versions.iter().copied().collect();
    Machine {
        programs: Some(Programs::from([(POSTGRES.to_owned(), versions)])),
        ..Machine::default()
    }
}

fn database() -> Service {
    let mut spec = service(1);
    let engine = Engine::Postgres(Postgres {
        version: 15,
        outbox: None,
        extensions: Default::default(),
    });
    spec.work = Work::Engine { engine };
    spec.rollout.surge = 0;
    spec.rollout.unavailable = 1;
    let size = Bytes::mebibytes(64);
    spec.volumes = [(name("data"), Volume { size })].into();
    spec
}

async fn attention(cloud: &Cloud, part: &str) -> String {
    until(&format!("`{part}` in status"), || async {
        let status = cloud.client.status(&project()).await.unwrap();
        let stuck = status.services.iter().filter_map(|one| one.stuck.clone());
        let all: Vec<Reason> = status.attention.into_iter().chain(stuck).collect();
        let found = all.iter().find(|reason| reason.message.contains(part))?;
        Some(found.message.clone())
    })
    .await
}

#[tokio::test]
async fn a_database_goes_where_its_postgresql_is_and_nowhere_is_said_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut nodes = Vec::new();
    for node in ["a", "b", "c"] {
        nodes.push(
            FakeNode::join(&cloud, node, NodeRole::Worker)
                .await
                .unwrap(),
        );
    }
    nodes[0].tell(has(&[14]));
    nodes[1].tell(has(&[]));
    nodes[2].tell(has(&[16]));
    until("all have told", || async {
        let all = cloud.client.nodes().await.unwrap().items;
        all.iter().all(|node| node.programs.is_some()).then_some(())
    })
    .await;

    // Nobody has it: said before, and while it waits.
    let applied = cloud.apply(&apply_of(&[("db", database())])).await;
    let warned = applied.warnings.join("; ");
    assert!(warned.contains("no node has PostgreSQL 15"), "{warned}");
    let said = attention(&cloud, "no node has PostgreSQL 15").await;
    assert!(said.contains("apt-get install postgresql-15"), "{said}");

    // One is given it.
    nodes[2].tell(has(&[15, 16]));
    let ready = cloud.ready("db", 1).await;
    assert_eq!(ready[0].node.as_ref().unwrap().as_str(), "c");

    // What was told is remembered by a server that has not heard it anew.
    let cloud = cloud.again().await;
    let known = cloud.client.nodes().await.unwrap().items;
    let versions = known
        .iter()
        .map(|node| node.programs.clone().unwrap()[POSTGRES].len());
    assert_eq!(versions.collect::<Vec<_>>(), [1, 0, 2]);
}

#[tokio::test]
async fn a_node_that_does_not_tell_counts_as_having_all() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let (a, _b) = (cloud.join("a").await, cloud.join("b").await);
    a.tell(has(&[]));
    until("one has told", || async {
        let all = cloud.client.nodes().await.unwrap().items;
        all.iter().any(|node| node.programs.is_some()).then_some(())
    })
    .await;
    cloud.apply(&apply_of(&[("db", database())])).await;
    let ready = cloud.ready("db", 1).await;
    assert_eq!(ready[0].node.as_ref().unwrap().as_str(), "b");
}

#[tokio::test]
async fn disks_that_fill_and_files_of_others_are_in_status_and_explain() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let a = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    let ready = cloud.ready("web", 1).await;
    let id = format!("shop/{}", ready[0].name);
    let full = Disk {
        size: Bytes(1000 << 30),
        free: Bytes(30 << 30),
        files: 0,
        files_free: 0,
    };
    let command = "`chown -R 70001:70001 /x` mends it";
    a.tell(Machine {
        disk: Some(full),
        notices: vec![Notice {
            instance: id.parse().unwrap(),
            reason: Reason::new("foreign-files", command),
        }],
        ..Machine::default()
    });
    attention(&cloud, "the disk of node a is as good as full: 97 % full").await;
    attention(&cloud, &format!("{}: {command}", ready[0].name)).await;
    let nodes = cloud.client.nodes().await.unwrap().items;
    assert_eq!(nodes[0].disk, Some(full));
    for subject in ["web", ready[0].name.as_str()] {
        let told = cloud.client.explain(&project(), subject).await.unwrap();
        let told: Vec<_> = told.because.iter().map(|one| &one.reason.code).collect();
        assert!(told.iter().any(|code| *code == "foreign-files"), "{told:?}");
    }
    // Mended, nothing is said.
    a.tell(Machine::default());
    until("all is well", || async {
        let status = cloud.client.status(&project()).await.unwrap();
        let codes: Vec<_> = status
            .attention
            .iter()
            .map(|one| one.code.as_str())
            .collect();
        (!codes.contains(&"disk-full") && !codes.contains(&"foreign-files")).then_some(())
    })
    .await;
}

/// It follows what it is told all the same, and a restart there would know nothing of it.
#[tokio::test]
async fn a_node_that_can_not_keep_what_it_is_told_is_named_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let a = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    let reason = Reason::new("disk-refuses", "followed from memory alone: no space left");
    a.tell(Machine {
        unkept: Some(reason.clone()),
        ..Machine::default()
    });
    attention(&cloud, "node a: followed from memory alone").await;
    let nodes = cloud.client.nodes().await.unwrap().items;
    assert_eq!(nodes[0].trouble, Some(reason.clone()));
    let told = cloud.client.explain_node(&a.name).await.unwrap();
    assert!(
        told.because.iter().any(|one| one.reason == reason),
        "{told:?}"
    );
}
