//! Copies that stand unevenly: what is told of them, and what becomes of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::wire::InstanceView;
use model::compute::{InstanceState, OnPartition};
use model::control::{NodeRole, Reason, RolloutPhase};
use model::units::Span;

use crate::cloud::*;

fn is_even(views: &[InstanceView]) -> bool {
    let zones: BTreeSet<_> = views.iter().map(|view| &view.zone).collect();
    views.len() == 2 && zones.len() == 2 && views.iter().all(|view| view.ready)
}

/// What `status` says of the one service.
async fn hint(cloud: &Cloud) -> Option<Reason> {
    let status = cloud.client.status(&project()).await.unwrap();
    status.services[0].reason.clone()
}

#[tokio::test]
async fn a_copy_moves_to_the_zone_that_came_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _a = cloud.join("a").await;
    // Of all names one that waits for quiet alone.
    let mut spec = service(2);
    spec.rollout.ready_within = Span::seconds(60);
    cloud.apply(&apply_of(&[("api", spec)])).await;
    cloud.ready("api", 2).await;
    let settled = || async { hint(&cloud).await.is_none().then_some(()) };
    until("one zone can't be uneven", settled).await;

    // On b copies take until they are let.
    let let_in = Arc::new(AtomicBool::new(false));
    let token = cloud.join_token(Some("b")).await;
    let mut b = FakeNode::let_in(&token, cloud.file.nodes, "b", NodeRole::Worker)
        .await
        .unwrap();
    let ready = let_in.clone();
    b.start(Arc::new(move |_| {
        (InstanceState::Running, ready.load(Ordering::Relaxed))
    }));
    let told = until("it is told", || hint(&cloud)).await;
    assert_eq!(
        told.message,
        "2 copies in zone a, 0 in zone b: one moves to zone b once all has been quiet for a while"
    );
    let arrives = |views: &[InstanceView]| {
        let new = views.iter().find(|view| view.name.as_str() == "api-3");
        new.is_some_and(|new| new.state == InstanceState::Running && !new.ready)
    };
    let shown = cloud.ps_until("a third copy", arrives).await;
    assert_eq!(shown.iter().filter(|view| view.ready).count(), 2);
    let why = "zone a had 2 copies, zone b none";
    let takes_place = format!("it takes the place of api-2: {why}");
    assert_eq!(shown[2].reason.as_ref().unwrap().message, takes_place);
    let explained = cloud.client.explain(&project(), "api-3").await.unwrap();
    let placement = explained
        .because
        .iter()
        .find(|because| because.from == "placement");
    assert_eq!(placement.unwrap().reason.message, takes_place);

    let_in.store(true, Ordering::Relaxed);
    cloud.ps_until("one copy in each zone", is_even).await;
    until("nothing is left to tell", settled).await;
    let events = cloud.client.events(None, 0).await.unwrap().items;
    let moved = events
        .iter()
        .find(|event| event.reason.code == "balanced")
        .unwrap();
    assert_eq!(moved.subject, "api-2");
    assert_eq!(
        moved.reason.message,
        format!("moved to zone b as api-3: {why}")
    );
}

#[tokio::test]
async fn what_must_not_run_beside_itself_is_told_until_a_restart_spreads_it() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _a = cloud.join("a").await;
    let mut spec = service(2);
    spec.on_partition = OnPartition::Stop;
    cloud.apply(&apply_of(&[("web", spec)])).await;
    cloud.ready("web", 2).await;
    let _b = cloud.join("b").await;
    let told = until("it is told", || hint(&cloud)).await;
    assert_eq!(
        told.message,
        "2 copies in zone a, 0 in zone b: `mainland restart web` spreads them anew"
    );
    let restarted = cloud.client.restart(&project(), &name("web"), &key()).await;
    restarted.unwrap();
    cloud.ps_until("one copy in each zone", is_even).await;
    until("nothing is left to tell", || async {
        let status = cloud.client.status(&project()).await.unwrap();
        let web = &status.services[0];
        let done = web.rollout.as_ref().map(|rollout| rollout.phase) == Some(RolloutPhase::Done);
        (done && web.reason.is_none()).then_some(())
    })
    .await;
}
