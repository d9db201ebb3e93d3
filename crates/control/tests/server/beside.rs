//! What people do beside the copies: a command as one of them, a connection to one that is ready.

use api::stream::{BoxStream, Frame};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use model::compute::{DesiredInstance, Purpose, Wanted};
use model::control::NodeRole;
use tokio::sync::mpsc;

use crate::cloud::*;
use crate::tunnel::open_tunnel;

type Conversation = BoxStream<Result<Frame, api::stream::Error>>;

/// A command whose input stays open for as long as the sender is kept.
async fn run(cloud: &Cloud) -> (mpsc::Sender<Bytes>, Conversation) {
    let path = format!("/v1/projects/{}/services/web/run", project());
    let (say, said) = mpsc::channel(1);
    let begins = Frame::Stdin(Bytes::from_static(b"begins")).encode();
    say.send(begins).await.unwrap();
    let frames = stream::unfold(
        said,
        |mut said| async move { Some((said.recv().await?, said)) },
    );
    (say, cloud.client.duplex(&path, frames).await.unwrap())
}

/// What a node is told of the commands that people run there.
fn runs(node: &FakeNode) -> Vec<DesiredInstance> {
    let told = node.desired().map(|told| told.instances);
    let mut runs = told.unwrap_or_default();
    runs.retain(|told| told.purpose == Purpose::Run);
    runs
}

#[tokio::test]
async fn what_people_run_outlives_a_deploy() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    open_tunnel(&node).await;
    let logs = until("the tunnel", || async {
        cloud.client.logs(&project(), "web-1", 1, false).await.ok()
    });
    drop(logs.await);
    let (say, mut running) = run(&cloud).await;
    // It says back what it hears.
    assert!(matches!(
        running.next().await,
        Some(Ok(Frame::Stdin(said))) if said == "begins"
    ));
    let of_first = runs(&node).remove(0);

    // Nothing restarts for a copy more or less; everything does for another environment.
    let red = |copies| with_env(service(copies), "COLOUR", "red");
    for (number, spec) in [service(2), red(2), red(1)].into_iter().enumerate() {
        let copies = spec.replicas as usize;
        let is_told = |told: &DesiredInstance| {
            let is_copy = told.purpose == Purpose::Serve && told.wanted == Wanted::Run;
            is_copy && told.spec.env == spec.env
        };
        cloud.apply(&apply_of(&[("web", spec.clone())])).await;
        until("the node is told", || async {
            let told = node.desired()?.instances;
            let is_new = told.iter().filter(|told| is_told(told)).count() == copies;
            is_new.then_some(())
        })
        .await;
        let releases: Vec<_> = runs(&node).iter().map(|run| run.release).collect();
        assert_eq!(releases, [of_first.release], "after deploy {number}");
    }
    let told = node.told().into_iter().map(|told| told.instances);
    let told = told.map(|told| told.into_iter().filter(|one| one.purpose == Purpose::Run));
    let mut told = told.map(|runs| runs.map(|run| run.release).collect::<Vec<_>>());
    assert!(told.any(|runs| !runs.is_empty()));
    assert!(told.all(|runs| runs == [of_first.release]), "at no time");
    drop((say, running));
    until("it is told no more", || async {
        runs(&node).is_empty().then_some(())
    })
    .await;
}

async fn code_of_run(cloud: &Cloud) -> String {
    let path = format!("/v1/projects/{}/services/web/run", project());
    let answer = cloud.client.duplex(&path, stream::pending()).await;
    code(answer.map(drop))
}

/// An agent of another version may not know what a run is, and could read nothing more of what it is told.
#[tokio::test]
async fn no_command_goes_to_an_agent_of_another_version() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let older = cloud.join("a").await;
    older.tell(Machine {
        version: Some("0.0.9".to_owned()),
        ..Machine::default()
    });
    let is_older = || async {
        let listed = cloud.client.nodes().await.unwrap().items;
        let version = listed[0].version.as_deref();
        (version == Some("0.0.9")).then_some(())
    };
    until("its version is known", is_older).await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    open_tunnel(&older).await;
    let path = format!("/v1/projects/{}/services/web/run", project());
    let refused = cloud.client.duplex(&path, stream::pending()).await.err();
    let refused = refused.expect("no node can run it");
    assert_eq!(refused.code(), Some("no-place"));
    assert!(
        refused.to_string().contains("of version 0.0.9"),
        "{refused}"
    );

    let _other = cloud.join("b").await;
    until("the other is heard", || async {
        (code_of_run(&cloud).await == "it was done").then_some(())
    })
    .await;
    assert!(runs(&older).is_empty());
}

/// Commands and connections go where they can: a node whose tunnel is dug anew is not asked while another is.
#[tokio::test]
async fn who_can_be_reached_is_preferred() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let nodes = cloud.three_nodes().await;
    cloud.apply(&apply_of(&[("web", service(3))])).await;
    cloud.ready("web", 3).await;
    let path = format!("/v1/projects/{}/services/web/connect", project());
    let connect = async || {
        let said = Frame::Stdin(Bytes::from_static(b"hello")).encode();
        let frames = stream::iter([said]).chain(stream::pending());
        cloud.client.duplex(&path, frames).await
    };
    assert_eq!(code(connect().await.map(drop)), "node-unreachable");
    open_tunnel(&nodes[1]).await;
    drop(until("the tunnel", || async { connect().await.ok() }).await);
    for _ in 0..12 {
        let mut answer = connect().await.unwrap();
        assert!(matches!(answer.next().await, Some(Ok(Frame::Stdin(_)))));
        let (_say, mut running) = run(&cloud).await;
        assert!(matches!(running.next().await, Some(Ok(Frame::Stdin(_)))));
    }
    for node in [&nodes[0], &nodes[2]] {
        let told = node.told().into_iter().flat_map(|told| told.instances);
        assert!(told.into_iter().all(|told| told.purpose != Purpose::Run));
    }
}

/// A node alone whose tunnel is dug anew is waited for.
#[tokio::test]
async fn a_command_waits_for_the_way_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    let (_say, mut running) = run(&cloud).await;
    let Some(Ok(Frame::Stderr(told))) = running.next().await else {
        panic!("it says what it waits for")
    };
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("is not there at the moment"), "{told}");
    open_tunnel(&node).await;
    assert!(matches!(running.next().await, Some(Ok(Frame::Stdin(_)))));
}

/// Of a node that is not heard nothing is known: it is no better than one whose tunnel is dug anew.
#[tokio::test]
async fn no_command_goes_to_a_node_that_is_not_heard() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = [cloud.join("a").await, cloud.join("b").await];
    cloud.apply(&apply_of(&[("web", service(2))])).await;
    cloud.ready("web", 2).await;
    // It has joined, and said nothing yet.
    let token = cloud.join_token(Some("c")).await;
    let silent = FakeNode::let_in(&token, cloud.file.nodes, "c", NodeRole::Worker).await;
    silent.unwrap();
    for _ in 0..4 {
        let (_say, mut running) = run(&cloud).await;
        let Some(Ok(Frame::Stderr(told))) = running.next().await else {
            panic!("it waits for the way to one that is heard")
        };
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.contains("is not there at the moment"), "{told}");
    }
}
