//! What people are told without having to search: why a thing is as it is, and what a change of theirs means.

use std::collections::BTreeSet;

use api::wire::{Because, Explanation, SecretValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::boundary::SecretSource;
use model::state::Volume;
use model::units::Bytes;

use crate::cloud::*;

async fn explained(cloud: &Cloud, subject: &str) -> Explanation {
    cloud.client.explain(&project(), subject).await.unwrap()
}

/// Every line is there once.
fn told_once(explanation: &Explanation) {
    let line = |line: &Because| (line.about.clone(), line.reason.message.clone());
    let all: Vec<_> = explanation.because.iter().map(line).collect();
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!(all.len(), distinct.len(), "{all:#?}");
}

#[tokio::test]
async fn copies_without_a_place_are_one_line_that_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _a = cloud.join("a").await;
    // 80 % of 4000 MiB is 32 copies of 100 MiB.
    cloud.apply(&apply_of(&[("web", service(60))])).await;
    let placed = |views: &[api::wire::InstanceView]| {
        views.iter().filter(|view| view.ready).count() == 32 && views.len() == 60
    };
    cloud.ps_until("as many as there is room for", placed).await;

    let explanation = explained(&cloud, "web").await;
    let first = &explanation.because[0];
    assert_eq!(
        (first.from.as_str(), first.reason.code.as_str()),
        ("pending", "no-room")
    );
    let about = first.about.as_deref().unwrap();
    assert!(about.starts_with("web-"), "{about}");
    assert_eq!(first.others, 27);
    told_once(&explanation);
    let of_instances = |line: &&Because| line.reason.code == "placed";
    for line in explanation.because.iter().filter(of_instances) {
        assert!(line.about.is_some(), "{line:?}");
    }
    let alone = explained(&cloud, about).await;
    assert_eq!(alone.because[0].reason.code, "no-room");
    assert_eq!(
        (&alone.because[0].about, alone.because[0].others),
        (&None, 0)
    );
    told_once(&alone);

    let status = cloud.client.status(&project()).await.unwrap();
    let lines: Vec<_> = status
        .attention
        .iter()
        .filter(|reason| reason.code == "no-room")
        .collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].message.contains(" and 27 more: "), "{}", lines[0]);
}

#[tokio::test]
async fn what_a_copy_lacks_now_comes_before_what_happened() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _a = cloud.join("a").await;
    let broken = with_env(with_env(service(1), "BROKEN", ""), "SAYS", "nobody listens");
    cloud.apply(&apply_of(&[("plain", broken)])).await;
    let says = |views: &[api::wire::InstanceView]| {
        let reason = views.first().and_then(|view| view.reason.as_ref());
        reason.is_some_and(|reason| reason.message == "nobody listens")
    };
    cloud.ps_until("the node tells why", says).await;
    let judged = || async {
        let rollout = cloud.client.rollout(&project(), &name("plain")).await;
        let rollout = rollout.ok()?;
        (rollout.phase == model::control::RolloutPhase::Failed).then_some(())
    };
    until("it is judged", judged).await;
    until("the event is there", || async {
        let events = cloud.client.events(Some(&project()), 0).await.ok()?.items;
        let judged = |event: &model::signals::Event| event.reason.message.contains("judged bad");
        events.iter().any(judged).then_some(())
    })
    .await;

    let explanation = explained(&cloud, "plain").await;
    let first = &explanation.because[0];
    assert_eq!(first.reason.message, "nobody listens");
    assert_eq!(first.about.as_deref(), Some("plain-1"));
    told_once(&explanation);
    let on_node = cloud
        .client
        .explain_node(&"a".parse().unwrap())
        .await
        .unwrap();
    told_once(&on_node);
}

#[tokio::test]
async fn what_nothing_needs_and_what_has_a_volume_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _a = cloud.join("a").await;
    let mut stateful = needing(service(1), "card-key");
    let size = Bytes::mebibytes(1);
    stateful.volumes.insert(name("data"), Volume { size });
    let mut apply = apply_of(&[("pay", stateful), ("web", service(1))]);
    apply.secrets.insert(name("card-key"), SecretSource::Given);
    cloud.apply(&apply).await;
    let set = async |secret: &str| {
        let value = SecretValue {
            value: STANDARD.encode("value"),
        };
        let view = cloud
            .client
            .set_secret(&project(), &name(secret), &value)
            .await;
        view.unwrap().warnings
    };
    assert_eq!(set("card-key").await, [""; 0]);
    assert_eq!(
        set("card-kye").await,
        ["nothing in shop needs a secret card-kye so far; did you mean `card-key`?"]
    );
    let scale = async |service: &str, copies: u32| {
        let scaled = cloud.client.scale(&project(), &name(service), copies).await;
        scaled.unwrap().warnings.join(" ")
    };
    let empty = scale("pay", 3).await;
    assert!(empty.contains("begins empty"), "{empty}");
    assert_eq!(scale("pay", 3).await, "");
    let fewer = scale("pay", 1).await;
    assert!(fewer.contains("are kept"), "{fewer}");
    assert_eq!(scale("web", 2).await, "");
}
