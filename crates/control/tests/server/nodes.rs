//! Nodes: joining, heartbeats, placements, loss, restarts of the server.

use std::collections::BTreeSet;
use std::time::Instant;

use api::client::{Client, Transport};
use api::wire::NodeState;
use boundary::authority::{Authority, Key, Terms};
use jiff::Timestamp;
use model::boundary::{Holder, SpiffeId};
use model::compute::{InstanceState, OnPartition};
use model::control::{NodeRole, Place};
use model::state::Volume;
use model::units::Bytes;
use store::Store;

use crate::cloud::*;

#[tokio::test]
async fn what_is_applied_runs_on_nodes_that_joined() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let nodes = cloud.three_nodes().await;
    let applied = cloud.apply(&apply_of(&[("web", service(3))])).await;
    assert_eq!(
        applied.changes[0].consequence,
        "starts 3 instances over 3 zones"
    );
    let ready = cloud.ready("web", 3).await;
    let zones: BTreeSet<_> = ready
        .iter()
        .map(|view| view.zone.clone().unwrap().to_string())
        .collect();
    assert_eq!(zones.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(
        ready
            .iter()
            .all(|view| view.state == InstanceState::Running && view.pid == Some(1000))
    );
    for node in &nodes {
        let desired = node.desired().unwrap();
        assert_eq!(desired.instances.len(), 1);
        assert!(desired.road.complete);
        let owners = desired.road.owners;
        // They share a machine.
        assert!(owners.iter().any(|owner| owner.service.name == name("web")));
        assert!(node.generations().is_sorted());
    }
    let listed = cloud.client.nodes().await.unwrap().items;
    assert!(listed.iter().all(|node| node.state == NodeState::Ready && node.used.memory == Bytes::mebibytes(100)));

    cloud
        .client
        .scale(&project(), &name("web"), 5)
        .await
        .unwrap();
    cloud.ready("web", 5).await;
    cloud
        .client
        .scale(&project(), &name("web"), 1)
        .await
        .unwrap();
    cloud.ready("web", 1).await;
}

#[tokio::test]
async fn a_silent_node_is_lost_and_what_it_ran_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut nodes = cloud.three_nodes().await;
    let mut stateful = service(1);
    stateful.volumes.insert(
        name("data"),
        Volume {
            size: Bytes::mebibytes(1),
        },
    );
    stateful.on_partition = OnPartition::Stop;
    cloud
        .apply(&apply_of(&[("web", service(3)), ("db", stateful)]))
        .await;
    cloud.ready("web", 3).await;
    let home = cloud.ready("db", 1).await[0].node.clone().unwrap();
    let lost = nodes.iter_mut().find(|node| node.name == home).unwrap();

    lost.silence();
    let since = Instant::now();
    let elsewhere = |views: &[api::wire::InstanceView]| {
        let web = views.iter().filter(|view| {
            view.service == name("web") && view.ready && view.node.as_ref() != Some(&home)
        });
        web.count() == 3
    };
    let shown = cloud
        .ps_until("three ready copies elsewhere", elsewhere)
        .await;
    assert!(
        since.elapsed().as_secs_f64() > 3.0,
        "a node is not given up before its leases end"
    );
    let db = shown
        .iter()
        .find(|view| view.service == name("db"))
        .unwrap();
    assert_eq!(db.state, InstanceState::Pending);
    assert_eq!(
        db.reason.as_ref().unwrap().message,
        format!("volume on lost node {home}")
    );
    let explained = cloud.client.explain_node(&home).await.unwrap();
    assert!(explained.now.starts_with("lost"), "{explained:?}");
    assert_eq!(explained.because[0].reason.code, "node-lost");
    let status = cloud.client.status(&project()).await.unwrap();
    assert!(
        status
            .attention
            .iter()
            .any(|reason| reason.code == "node-lost"),
        "{:?}",
        status.attention
    );
}

#[tokio::test]
async fn a_server_that_starts_again_knows_all_and_empties_no_road() {
    let directory = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let cloud = Cloud::start_with(directory.path(), Memory::Disk, any, any).await;
    let nodes = cloud.three_nodes().await;
    cloud
        .apply(&apply_of(&[
            ("web", service(3)),
            ("front", needing(service(3), "web")),
        ]))
        .await;
    let before = cloud.ready("web", 3).await;
    cloud.ready("front", 3).await;
    let token = cloud.file.token.clone();
    let epoch = nodes[0].generations().last().unwrap().epoch;

    let cloud = cloud.again().await;
    assert_eq!(cloud.file.token, token, "the owner's token stays");
    let after = cloud.ready("web", 3).await;
    let names = |views: &[api::wire::InstanceView]| {
        views
            .iter()
            .map(|view| view.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&after), names(&before));
    let told = until("the new leader's word", || {
        let desired = nodes[0]
            .desired()
            .filter(|desired| desired.generation.epoch > epoch && desired.road.complete);
        std::future::ready(desired)
    })
    .await;
    assert_eq!(told.instances.len(), 2);
    assert!(nodes[0].generations().is_sorted());
    // Before it had heard from everyone, it said so; after, it never knew less than all.
    let of_new = nodes[0]
        .told()
        .into_iter()
        .filter(|told| told.generation.epoch > epoch);
    for told in of_new.filter(|told| told.road.complete) {
        let endpoints: usize = told
            .road
            .destinations
            .iter()
            .map(|to| to.endpoints.len())
            .sum();
        assert_eq!(endpoints, 3, "{:?}", told.generation);
    }
}

#[tokio::test]
async fn data_goes_only_when_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    let mut db = service(1);
    db.volumes.insert(
        name("data"),
        Volume {
            size: Bytes::mebibytes(1),
        },
    );
    let kind = api::wire::Kind::Services;
    cloud.apply(&apply_of(&[("db", db.clone())])).await;
    cloud.ready("db", 1).await;

    // One of another name is another one.
    let mut renamed = db.clone();
    let volume = renamed.volumes.remove("data").unwrap();
    renamed.volumes.insert(name("store"), volume);
    let renamed = apply_of(&[("db", renamed)]);
    let refused = cloud
        .client
        .apply(&project(), &renamed, false, &key())
        .await;
    assert_eq!(code(refused), "leaves-data");
    let would = cloud.client.apply(&project(), &renamed, true, &key()).await;
    let told = &would.unwrap().changes[0].consequence;
    assert!(
        told.contains("; volume `store` starts empty; what is in `data` stays on node "),
        "{told}"
    );
    let assented = api::wire::Apply {
        leave_data: true,
        ..apply_of(&[("db", db.clone())])
    };
    cloud.apply(&assented).await;

    let changes = cloud
        .client
        .delete(&project(), kind, "db", false)
        .await
        .unwrap();
    assert_eq!(changes[0].consequence, "1 instance stops, its data stays");
    cloud.ps_until("nothing", |views| views.is_empty()).await;
    let missing = || async {
        cloud
            .client
            .rollout(&project(), &name("db"))
            .await
            .is_err()
            .then_some(())
    };
    until("the records are gone", missing).await;
    assert!(node.forgot().is_empty());

    cloud.apply(&apply_of(&[("db", db)])).await;
    let again = cloud.ready("db", 1).await;
    assert_eq!(again[0].name.as_str(), "db-2", "names are not used twice");
    let changes = cloud
        .client
        .delete(&project(), kind, "db", true)
        .await
        .unwrap();
    assert_eq!(
        changes[0].consequence,
        "1 instance stops, its data is deleted"
    );
    until("the node forgets", || {
        std::future::ready((!node.forgot().is_empty()).then_some(()))
    })
    .await;
    until("the node has nothing left to forget", || {
        std::future::ready(
            node.desired()
                .filter(|desired| desired.forget_volumes.is_empty()),
        )
    })
    .await;
}

/// A node whose disk refuses keeps the service away, and is asked again, until it has forgotten.
#[tokio::test]
async fn data_that_a_disk_refused_to_delete_is_not_called_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("db", with_volume(1))])).await;
    cloud.ready("db", 1).await;
    node.refuses_to_forget(&["shop/db"]);
    let kind = api::wire::Kind::Services;
    let deleted = cloud.client.delete(&project(), kind, "db", true).await;
    deleted.unwrap();
    until("it is told to", || async {
        (!node.forgot().is_empty()).then_some(())
    })
    .await;
    let anew = apply_of(&[("db", with_volume(1))]);
    let apply = || async {
        let answer = cloud.client.apply(&project(), &anew, false, &key()).await;
        answer.map_err(|error| error.to_string())
    };
    // It acknowledges what it was told again and again, and has not forgotten.
    let told = node.told().len();
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    assert!(node.told().len() > told);
    let refused = apply().await.unwrap_err();
    assert!(refused.contains("not yet"), "{refused}");
    node.refuses_to_forget(&[]);
    until("it may be declared anew", || async { apply().await.ok() }).await;
    cloud.ready("db", 1).await;
}

#[tokio::test]
async fn who_may_join() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let worker = NodeRole::Worker;
    let server = cloud.file.nodes;

    let token = cloud.join_token(Some("a")).await;
    assert_eq!(
        code(FakeNode::let_in(&token, server, "b", worker).await),
        "join-refused"
    );
    assert!(FakeNode::let_in(&token, server, "a", worker).await.is_ok());
    // Bound to a name, it is good once.
    assert_eq!(
        code(FakeNode::let_in(&token, server, "a", worker).await),
        "join-refused"
    );
    let fresh = cloud.join_token(Some("a")).await;
    assert!(FakeNode::let_in(&fresh, server, "a", worker).await.is_ok());

    let open = cloud.join_token(None).await;
    assert!(FakeNode::let_in(&open, server, "x", worker).await.is_ok());
    assert!(FakeNode::let_in(&open, server, "y", worker).await.is_ok());
    assert_eq!(
        code(FakeNode::let_in(&open, server, "a", worker).await),
        "node-exists"
    );

    let nobody = Client::new(Transport::Tcp(cloud.file.api), None);
    let request = Key::generate().unwrap().request().unwrap();
    assert_eq!(
        code(nobody.join(&join_of("z", worker, request)).await),
        "join-refused"
    );
    let ask = api::wire::MakeJoinToken {
        node: None,
        valid_seconds: 1,
    };
    assert_eq!(code(cloud.client.make_join_token(&ask).await), "invalid");
}

#[tokio::test]
async fn foreign_certificates_are_refused_and_nodes_speak_for_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let [a, b, _c] = cloud.three_nodes().await;
    let foreign = Authority::generate("elsewhere", Timestamp::now()).unwrap();
    let id = SpiffeId {
        cluster: "elsewhere".to_owned(),
        holder: Holder::Node(a.name.clone()),
    };
    let identity = foreign
        .identity(&id, &Terms::default(), Timestamp::now())
        .unwrap();
    let stranger = client_as(&identity, &a.authority, a.server);
    assert!(stranger.version().await.is_err());

    assert_eq!(
        code(a.client.watch_desired(&b.name).await.map(drop)),
        "other-node"
    );
    assert_eq!(code(a.client.nodes().await), "not-permitted");
    assert_eq!(code(a.client.projects().await), "not-permitted");
    let nobody = Client::new(Transport::Tcp(cloud.file.api), None);
    assert_eq!(code(nobody.nodes().await), "unauthenticated");
    let refused = nobody.projects().await.unwrap_err().to_string();
    assert!(
        refused.contains("to list projects, show a token"),
        "{refused}"
    );
    assert_eq!(nobody.version().await.unwrap().cluster, "");
    assert!(nobody.health().await.unwrap().ready);
    assert_eq!(a.client.whoami().await.unwrap().principal.0, "node:a");

    let own = Key::from_pem(&a.identity.key).unwrap();
    let ask = api::wire::CertificateRequest {
        request: own.request().unwrap(),
    };
    let another = api::wire::CertificateRequest {
        request: Key::generate().unwrap().request().unwrap(),
    };
    let service = "shop/web".parse().unwrap();
    assert_eq!(
        code(a.client.service_certificate(&a.name, &service, &ask).await),
        "not-placed-here"
    );
    cloud
        .apply(&apply_of(&[("web", service_on_every_zone())]))
        .await;
    cloud.ready("web", 3).await;
    assert_eq!(
        code(
            a.client
                .service_certificate(&a.name, &service, &another)
                .await
        ),
        "other-key"
    );
    let answer = a
        .client
        .service_certificate(&a.name, &service, &ask)
        .await
        .unwrap();
    assert_eq!(
        boundary::authority::name_in(&answer.certificate)
            .unwrap()
            .holder,
        Holder::Service(service)
    );
}

/// As a node whose certificate has ended: it shows none.
pub fn without_certificate(node: &FakeNode) -> Client {
    let expect = tls::Expect::Holder(Holder::Server);
    let mut config = tls::client_config_without_identity(&node.authority, expect, clock()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let transport = Transport::Tls {
        address: node.server,
        config: std::sync::Arc::new(config),
        name: tls::server_name(),
    };
    Client::new(transport, None)
}

pub fn renew_with(key: &Key, place: Option<Place>) -> api::wire::Renew {
    api::wire::Renew {
        request: key.request().unwrap(),
        place,
        at: None,
    }
}

#[tokio::test]
async fn a_node_proves_itself_by_its_key_alone() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let [a, b, _c] = cloud.three_nodes().await;
    let key = Key::from_pem(&a.identity.key).unwrap();
    let client = without_certificate(&a);
    let ask = renew_with(&key, None);
    let renewed = client.renew(&a.name, &ask).await.unwrap();
    let name = boundary::authority::name_in(&renewed.certificate).unwrap();
    assert_eq!(name.holder, Holder::Node(a.name.clone()));
    let again = client.renew(&a.name, &ask).await.unwrap();
    for renewed in [renewed, again] {
        let of = boundary::authority::key_in(&renewed.certificate).unwrap();
        assert_eq!(
            of,
            key.fingerprint(),
            "a repeated request serves its key only"
        );
    }
    // Another key, another node, nobody; and nothing but a certificate.
    let other = Key::generate().unwrap();
    let nobody = "nobody".parse().unwrap();
    for (name, key) in [(&a.name, &other), (&b.name, &key), (&nobody, &key)] {
        let refused = client.renew(name, &renew_with(key, None)).await;
        assert_eq!(code(refused.map(drop)), "node-left", "{name}");
    }
    let garbage = api::wire::Renew {
        request: "no request".to_owned(),
        ..ask
    };
    assert_eq!(
        code(client.renew(&a.name, &garbage).await.map(drop)),
        "bad-request"
    );
    let desired = client.watch_desired(&a.name).await;
    assert_eq!(code(desired.map(drop)), "unauthenticated");
}

#[tokio::test]
async fn the_name_of_a_removed_node_goes_to_another_without_its_volumes() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut nodes = cloud.three_nodes().await;
    cloud.apply(&apply_of(&[("db", with_volume(1))])).await;
    let home = cloud.ready("db", 1).await[0].node.clone().unwrap();
    let old = nodes.iter_mut().find(|node| node.name == home).unwrap();
    old.silence();
    until("it may leave", || async {
        cloud.client.remove_node(&home, false).await.ok()
    })
    .await;
    let key = Key::from_pem(&old.identity.key).unwrap();
    let client = without_certificate(old);
    let refused = client.renew(&home, &renew_with(&key, None)).await;
    assert_eq!(code(refused.map(drop)), "node-removed");

    let new = FakeNode::join(&cloud, home.as_str(), NodeRole::Worker)
        .await
        .unwrap();
    let waits = |views: &[api::wire::InstanceView]| {
        let reason = views.iter().find_map(|view| view.reason.as_ref());
        reason.is_some_and(|reason| reason.message.contains("which was removed"))
    };
    cloud.ps_until("db waits for its own home", waits).await;
    let told = new.desired().map(|told| told.instances).unwrap_or_default();
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(
        code(client.renew(&home, &renew_with(&key, None)).await.map(drop)),
        "node-removed"
    );
    assert_eq!(
        code(old_watch(old).await),
        "node-removed",
        "a certificate that is good opens nothing"
    );
}

/// Waits until what the node follows ends, and answers what it was told meanwhile.
async fn until_it_ends<T>(mut stream: impl futures_util::Stream<Item = T> + Unpin) -> Vec<T> {
    use futures_util::StreamExt;
    let mut told = Vec::new();
    let all = async {
        while let Some(one) = stream.next().await {
            told.push(one);
        }
    };
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), all).await;
    ended.expect("it ends");
    told
}

/// Neither what it should run nor its tunnel stays a node's that is removed, or whose name another machine has.
#[tokio::test]
async fn a_removed_key_follows_nothing_and_answers_nothing() {
    use crate::tunnel::{keeps_web_9, open_tunnel_with};
    for removed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let cloud = Cloud::start(directory.path()).await;
        let mut old = cloud.join("a").await;
        let _other = cloud.join("b").await;
        cloud.apply(&apply_of(&[("web", service(1))])).await;
        cloud.ready("web", 1).await;
        open_tunnel_with(&old, keeps_web_9).await;
        let logs = || async { cloud.client.logs(&project(), "web-9", 7, false).await };
        until("its tunnel", || async { logs().await.ok().map(drop) }).await;
        old.silence();
        let followed = old.client.watch_desired(&old.name).await.unwrap();
        if removed {
            cloud.client.cordon(&old.name, true).await.unwrap();
            cloud
                .client
                .restart(&project(), &name("web"), "away")
                .await
                .unwrap();
            until("it may leave", || async {
                cloud.client.remove_node(&old.name, false).await.ok()
            })
            .await;
        } else {
            let token = cloud.join_token(Some("a")).await;
            let worker = NodeRole::Worker;
            FakeNode::let_in(&token, old.server, "a", worker)
                .await
                .unwrap();
        }
        assert_eq!(code(logs().await.map(drop)), "not-found", "{removed}");
        let told = until_it_ends(followed).await;
        let key = Key::from_pem(&old.identity.key).unwrap().fingerprint();
        for told in told.into_iter().filter_map(Result::ok) {
            assert!(
                !told.removed.contains(&key),
                "{removed}: told of its own end"
            );
        }
        assert_eq!(code(old_watch(&old).await), "node-removed", "{removed}");
    }
}

/// Its connections end with its certificate, its tunnel as well.
#[tokio::test]
async fn what_a_certificate_opened_ends_with_it() {
    use crate::tunnel::{keeps_web_9, open_tunnel_with};
    let directory = tempfile::tempdir().unwrap();
    let (ahead, clock) = moved_clock();
    let memory = Memory::Ram(store::memory::MemoryStore::default());
    let mut options = options(directory.path(), &memory, any(), any());
    options.clock = clock;
    let cloud = Cloud::start_of(options, memory).await;
    let node = FakeNode::join(&cloud, "a", NodeRole::Worker).await.unwrap();
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    // Some seconds before its end.
    let end = boundary::authority::expires_at(&node.identity.certificate).unwrap();
    let left = end.duration_since(Timestamp::now()).as_secs() - 3;
    ahead.store(left, std::sync::atomic::Ordering::Relaxed);
    let client = client_as(&node.identity, &node.authority, node.server);
    let followed = client.watch_desired(&node.name).await.unwrap();
    open_tunnel_with(&node, keeps_web_9).await;
    let logs = || async { cloud.client.logs(&project(), "web-9", 7, false).await };
    until("its tunnel", || async { logs().await.ok().map(drop) }).await;
    until_it_ends(followed).await;
    until("its tunnel ends", || async { logs().await.err() }).await;
}

/// The machine did not hear that it was let in: the same request again is answered by its key, and nobody else's.
#[tokio::test]
async fn a_join_whose_answer_was_lost_is_answered_again() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let token = cloud.join_token(Some("a")).await;
    let key = Key::generate().unwrap();
    let worker = NodeRole::Worker;
    let join = join_of("a", worker, key.request().unwrap());
    let client = joining_client(&token, cloud.file.nodes);
    client.join(&join).await.unwrap();
    let again = client.join(&join).await.unwrap();
    let of = boundary::authority::key_in(&again.certificate).unwrap();
    assert_eq!(of, key.fingerprint());
    // It changes nothing: anybody may have seen the request.
    let elsewhere = api::wire::Join {
        zone: "elsewhere".parse().unwrap(),
        ..join.clone()
    };
    client.join(&elsewhere).await.unwrap();
    let listed = cloud.client.nodes().await.unwrap().items;
    assert_eq!(listed[0].zone.as_str(), "a");
    let other = Key::generate().unwrap();
    for (node, key) in [("a", &other), ("b", &key)] {
        let join = join_of(node, worker, key.request().unwrap());
        assert_eq!(code(client.join(&join).await), "join-refused", "{node}");
    }
    let nobody = Client::new(Transport::Tcp(cloud.file.api), None);
    assert_eq!(code(nobody.join(&join).await), "join-refused");
}

/// The same with a token for any node, which is not used up: what it asks for is there, and is its own.
#[tokio::test]
async fn a_join_by_a_token_for_any_node_is_answered_again() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let token = cloud.join_token(None).await;
    let key = Key::generate().unwrap();
    let worker = NodeRole::Worker;
    let join = join_of("a", worker, key.request().unwrap());
    let client = joining_client(&token, cloud.file.nodes);
    client.join(&join).await.unwrap();
    let elsewhere = api::wire::Join {
        zone: "elsewhere".parse().unwrap(),
        ..join.clone()
    };
    for again in [join, elsewhere] {
        let again = client.join(&again).await.unwrap();
        let of = boundary::authority::key_in(&again.certificate).unwrap();
        assert_eq!(of, key.fingerprint());
    }
    let listed = cloud.client.nodes().await.unwrap().items;
    assert_eq!(listed[0].zone.as_str(), "a", "it changes nothing");
    let events = cloud.client.events(None, 0).await.unwrap().items;
    let joined = events.iter().filter(|event| event.reason.code == "joined");
    let joined: Vec<_> = joined.map(|event| &event.reason.message).collect();
    assert_eq!(
        joined,
        ["node a joined in zone a"],
        "nor is it told as a join"
    );
    let other = Key::generate().unwrap();
    let join = join_of("a", worker, other.request().unwrap());
    assert_eq!(code(client.join(&join).await), "node-exists");
}

/// Another machine takes the name of a node that is lost: what it says is heard, whoever looks at its record first.
#[tokio::test]
async fn who_takes_the_name_of_a_lost_node_is_heard() {
    let on_disk = taking_a_lost_name(Memory::Disk);
    let in_ram = taking_a_lost_name(Memory::Ram(store::memory::MemoryStore::default()));
    tokio::join!(on_disk, in_ram);
}

async fn taking_a_lost_name(memory: Memory) {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    let mut node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    let standing = async || {
        let listed = cloud.client.nodes().await.unwrap().items;
        listed[0].state
    };
    for _ in 0..2 {
        node.silence();
        until("it is lost", || async {
            (standing().await == NodeState::Lost).then_some(())
        })
        .await;
        node = cloud.join("a").await;
        until("the new machine is heard", || async {
            (standing().await == NodeState::Ready).then_some(())
        })
        .await;
        cloud.ready("web", 1).await;
    }
}

/// A cloud from before keys were kept: its node's certificate has ended, and it joins anew with the key that it has.
#[tokio::test]
async fn a_node_from_before_keys_were_kept_comes_back_to_its_volumes() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let memory = Memory::Ram(ram.clone());
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    let mut node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("db", with_volume(1))])).await;
    cloud.ready("db", 1).await;
    node.silence();
    use store::Store;
    let record = ram.get("node/a").await.unwrap().unwrap();
    let mut old: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
    old.as_object_mut().unwrap().remove("key").unwrap();
    let write = store::Transaction::new().put("node/a", old.to_string());
    ram.transact(write).await.unwrap();
    let key = Key::from_pem(&node.identity.key).unwrap();
    let client = without_certificate(&node);
    until("the old form is known", || async {
        let refused = client
            .renew(&node.name, &renew_with(&key, None))
            .await
            .err();
        refused.filter(|error| error.code() == Some("node-left"))
    })
    .await;

    // A certificate of another authority shows nothing, nor does that of another key.
    let id = boundary::authority::name_in(&node.identity.certificate).unwrap();
    let foreign = Authority::generate(&id.cluster, Timestamp::now()).unwrap();
    let forged = foreign
        .identity(&id, &Terms::default(), Timestamp::now())
        .unwrap();
    let token = cloud.join_token(Some("a")).await;
    let join = api::wire::Join {
        certificate: Some(node.identity.certificate.clone()),
        ..join_of("a", NodeRole::Worker, key.request().unwrap())
    };
    assert!(tls::signed_by(&node.authority, &forged.certificate).is_err());
    let joined = joining_client(&token, node.server)
        .join(&join)
        .await
        .unwrap();
    node.identity = key.into_identity(joined.certificate);
    node.client = std::sync::Arc::new(client_as(&node.identity, &node.authority, node.server));
    node.start(std::sync::Arc::new(|_| (InstanceState::Running, true)));
    let ready = cloud.ready("db", 1).await;
    assert_eq!(ready[0].node.as_ref(), Some(&node.name));
}

/// However much names the earlier holder, a name can be taken.
#[tokio::test]
async fn a_name_is_taken_whatever_it_held() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let memory = Memory::Ram(ram.clone());
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    let mut node = cloud.join("a").await;
    let services: Vec<_> = (0..4).map(|index| format!("db{index}")).collect();
    let applied: Vec<_> = services
        .iter()
        .map(|service| (service.as_str(), with_volume(1)))
        .collect();
    cloud.apply(&apply_of(&applied)).await;
    cloud.ready("db3", 1).await;
    node.silence();
    // Services of many copies: a record of each is as long as a record may be.
    use store::Store;
    for service in &services {
        let key = format!("placement/shop/{service}");
        let record = ram.get(&key).await.unwrap().unwrap();
        let mut group: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        let homes = group["homes"].as_object_mut().unwrap();
        for slot in 1..40_000 {
            homes.insert(slot.to_string(), "a".into());
        }
        let write = store::Transaction::new().put(key, group.to_string());
        ram.transact(write).await.unwrap();
    }
    let token = cloud.join_token(Some("a")).await;
    let new = FakeNode::let_in(&token, node.server, "a", NodeRole::Worker).await;
    let new = new.unwrap();
    assert_eq!(new.name, node.name);
    let key = Key::from_pem(&node.identity.key).unwrap().fingerprint();
    let former = node.name.former(&key.0);
    for service in &services {
        let record = ram.get(&format!("placement/shop/{service}")).await.unwrap();
        let group: serde_json::Value = serde_json::from_slice(&record.unwrap().value).unwrap();
        assert_eq!(group["homes"]["0"], former.as_str(), "{service}");
    }
}

/// Whoever is quicker to find a server that has just begun: the node is where it was heard last, and not in a copy of its directory.
#[tokio::test]
async fn a_copy_of_a_nodes_directory_does_not_become_it_when_a_server_begins() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let cloud = Cloud::start_with(directory.path(), Memory::Ram(ram.clone()), any(), any()).await;
    let node = lone_node(&cloud).await;
    // On our machine, and on another whose disk has the same numbers.
    let real = Place { folder: 1, boot: 1 };
    let copy = Place { folder: 1, boot: 2 };
    let copy_here = Place {
        folder: 2,
        boot: our_boot(),
    };
    node.beats_from(real).await.unwrap();
    keeps(&ram, real).await;
    assert_eq!(node.beats_from(copy).await.unwrap_err(), "node-twice");

    let cloud = cloud.again().await;
    let is = |from: Place, expected: &'static str| {
        let node = &node;
        until(expected, move || async move {
            match node.beats_from(from).await {
                Ok(()) => panic!("the copy is the node"),
                Err(code) => (code == expected).then_some(()),
            }
        })
    };
    is(copy, "node-awaited").await;
    is(copy_here, "node-awaited").await;
    let renewed = node.client.renew(&node.name, &renew_at(&node, copy)).await;
    assert_eq!(code(renewed), "node-awaited", "it is to begin nothing");
    node.beats_from(real).await.unwrap();
    is(copy, "node-twice").await;

    // Nobody comes from there any more: it was moved, or its machine was started anew.
    let began = Instant::now();
    let cloud = cloud.again().await;
    until("it is heard from elsewhere", || async {
        node.beats_from(copy).await.ok()
    })
    .await;
    assert!(began.elapsed() >= model::timing::LOST_AFTER);
    keeps(&ram, copy).await;
    assert_eq!(said_of_nodes(&cloud).await, "", "it only had to wait");
}

/// Servers are replaced first. An agent that is replaced after them is the same node at once.
#[tokio::test]
async fn an_agent_of_an_earlier_version_is_told_from_a_copy_of_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = lone_node(&cloud).await;
    let before = Place { folder: 1, boot: 0 };
    let copy = Place { folder: 2, boot: 0 };
    node.beats_from(before).await.unwrap();
    assert_eq!(node.beats_from(copy).await.unwrap_err(), "node-twice");
    let replaced = Place { folder: 3, boot: 7 };
    node.beats_from(replaced).await.unwrap();
    let copy = Place { folder: 4, boot: 7 };
    assert_eq!(node.beats_from(copy).await.unwrap_err(), "node-twice");
}

/// Nothing runs any more of what ran before: there is nothing to wait for, and nobody to be lost.
#[tokio::test]
async fn a_node_on_the_servers_own_machine_is_heard_at_once_after_its_restart() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let cloud = Cloud::start_with(directory.path(), Memory::Ram(ram.clone()), any(), any()).await;
    let node = lone_node(&cloud).await;
    let before = Place { folder: 1, boot: 1 };
    let after = Place {
        boot: our_boot(),
        ..before
    };
    node.beats_from(before).await.unwrap();
    keeps(&ram, before).await;
    let cloud = cloud.again().await;
    node.client
        .renew(&node.name, &renew_at(&node, after))
        .await
        .unwrap();
    node.beats_from(after).await.unwrap();
    keeps(&ram, after).await;
    assert_eq!(said_of_nodes(&cloud).await, "");
}

/// Machines that were started anew together, with a server elsewhere: each has to wait, none is lost, and the brake stays off.
#[tokio::test]
async fn nodes_that_wait_for_a_server_to_hear_them_are_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let cloud = Cloud::start_with(directory.path(), Memory::Ram(ram.clone()), any(), any()).await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let token = cloud.join_token(Some(name)).await;
        let node = FakeNode::let_in(&token, cloud.file.nodes, name, NodeRole::Worker).await;
        nodes.push(node.unwrap());
    }
    let at = |boot: u64, node: &FakeNode| Place {
        folder: u64::from(node.name.as_str().as_bytes()[0]),
        boot,
    };
    for node in &nodes {
        node.beats_from(at(1, node)).await.unwrap();
    }
    until("their places are kept", || async {
        let (kept, _) = store::list_all(&ram, "node/").await.unwrap();
        let kept = kept.iter().filter(|record| {
            let record: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            record["runs_at"]["boot"] == 1
        });
        (kept.count() == 3).then_some(())
    })
    .await;
    let cloud = cloud.again().await;
    let came = async |node: &FakeNode| {
        until("it is heard", || async {
            node.beats_from(at(2, node)).await.ok()
        })
        .await;
    };
    tokio::join!(came(&nodes[0]), came(&nodes[1]), came(&nodes[2]));
    assert_eq!(said_of_nodes(&cloud).await, "");
}

/// After the restart of all machines every node says another place at once: that is no thousand writes before anything is decided.
#[tokio::test]
async fn what_many_nodes_say_at_once_is_kept_together() {
    let directory = tempfile::tempdir().unwrap();
    let held = crate::held::Held::default();
    let memory = Memory::Other(std::sync::Arc::new(held.clone()));
    let cloud = Cloud::start_with(directory.path(), memory, any(), any()).await;
    let mut nodes = Vec::new();
    for index in 0..12 {
        let name = format!("n{index}");
        let token = cloud.join_token(Some(&name)).await;
        let node = FakeNode::let_in(&token, cloud.file.nodes, &name, NodeRole::Worker).await;
        nodes.push(node.unwrap());
    }
    held.set(crate::held::Disk::Stands("node/"));
    let before = held.inner.revision().await.unwrap().number();
    for (folder, node) in (1..).zip(&nodes) {
        node.beats_from(Place { folder, boot: 1 }).await.unwrap();
    }
    until("the first waits for the disk", || async {
        (held.waiting() > 0).then_some(())
    })
    .await;
    held.set(crate::held::Disk::Works);
    until("all are kept", || async {
        let (kept, _) = store::list_all(&held.inner, "node/").await.unwrap();
        let kept = kept.iter().filter(|record| {
            let record: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            record["runs_at"]["boot"] == 1
        });
        (kept.count() == nodes.len()).then_some(())
    })
    .await;
    let written = held.inner.revision().await.unwrap().number() - before;
    assert!(written <= 4, "{written} transactions");
}

async fn lone_node(cloud: &Cloud) -> FakeNode {
    let token = cloud.join_token(Some("a")).await;
    let node = FakeNode::let_in(&token, cloud.file.nodes, "a", NodeRole::Worker).await;
    node.unwrap()
}

fn our_boot() -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    model::control::fingerprint(boot.trim().as_bytes())
}

async fn keeps(ram: &store::memory::MemoryStore, place: Place) {
    until("its place is kept", || async {
        let record = ram.get("node/a").await.unwrap()?;
        let record: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        (record["runs_at"] == serde_json::to_value(place).unwrap()).then_some(())
    })
    .await;
}

fn renew_at(node: &FakeNode, place: Place) -> api::wire::Renew {
    let key = Key::from_pem(&node.identity.key).unwrap();
    renew_with(&key, Some(place))
}

/// Whether a node was lost, or the brake on, since the cloud is there.
async fn said_of_nodes(cloud: &Cloud) -> String {
    let events = cloud.client.events(None, 0).await.unwrap().items;
    let said = events.into_iter().map(|event| event.reason.code);
    said.filter(|code| ["node-lost", "node-back", "brake-on"].contains(&code.as_str()))
        .collect()
}

async fn old_watch(node: &FakeNode) -> Result<(), api::client::Error> {
    node.client.watch_desired(&node.name).await.map(drop)
}

fn service_on_every_zone() -> model::compute::Service {
    service(3)
}

#[tokio::test]
async fn cordoned_nodes_take_nothing_new() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let [a, _b, _c] = cloud.three_nodes().await;
    let view = cloud.client.cordon(&a.name, true).await.unwrap();
    assert!(view.cordoned);
    cloud.apply(&apply_of(&[("web", service(4))])).await;
    let ready = cloud.ready("web", 4).await;
    assert!(ready.iter().all(|view| view.node.as_ref() != Some(&a.name)));
}

/// It can run nowhere else: kept away, it would be down for as long as the cordon. `why` says so.
#[tokio::test]
async fn a_cordon_keeps_no_copy_from_its_volume() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _nodes = cloud.three_nodes().await;
    cloud.apply(&apply_of(&[("db", with_volume(1))])).await;
    let before = cloud.ready("db", 1).await.remove(0);
    let home = before.node.clone().unwrap();
    cloud.client.cordon(&home, true).await.unwrap();
    let (project, db) = (project(), name("db"));
    cloud.client.restart(&project, &db, &key()).await.unwrap();
    let again = cloud
        .ps_until("a new copy", |shown| {
            shown
                .iter()
                .any(|view| view.ready && view.name != before.name)
        })
        .await;
    let again = again.iter().find(|view| view.name != before.name).unwrap();
    assert_eq!(again.node.as_ref(), Some(&home));
    let told = cloud.client.explain(&project, again.name.as_str()).await;
    let told: Vec<_> = told
        .unwrap()
        .because
        .into_iter()
        .map(|one| one.reason.message)
        .collect();
    let why = format!("its volume is on node {home}, which is cordoned");
    assert!(told.iter().any(|said| said.contains(&why)), "{told:?}");
}

#[tokio::test]
async fn a_fenced_server_changes_nothing_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let first = Cloud::start(directory.path()).await;
    // The same keys, and the same token for the owner.
    for file in ["keyring", "client.json"] {
        std::fs::copy(directory.path().join(file), other.path().join(file)).unwrap();
    }
    let any = "127.0.0.1:0".parse().unwrap();
    let second = Cloud::start_with(other.path(), first.memory.clone(), any, any).await;
    let refused = first
        .client
        .apply(&project(), &apply_of(&[("web", service(1))]), false, &key())
        .await;
    assert_eq!(code(refused), "fenced");
    second.apply(&apply_of(&[("web", service(1))])).await;
    until("the first one knows that it is fenced", || async {
        first
            .client
            .health()
            .await
            .ok()
            .filter(|health| !health.ready)
    })
    .await;
}

#[tokio::test]
async fn a_second_server_in_the_same_place_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let any = "127.0.0.1:0".parse().unwrap();
    let again = control::server::run(
        options(directory.path(), &cloud.memory, any, any),
        std::future::pending(),
    )
    .await;
    assert!(
        again
            .unwrap_err()
            .to_string()
            .contains("another server runs in")
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let taken = control::server::run(
        options(elsewhere.path(), &cloud.memory, cloud.file.api, any),
        std::future::pending(),
    )
    .await;
    assert!(
        taken
            .unwrap_err()
            .to_string()
            .contains("is taken by another program")
    );
    let file = elsewhere.path().join("file");
    std::fs::write(&file, "").unwrap();
    let unwritable = control::server::run(
        options(&file, &cloud.memory, any, any),
        std::future::pending(),
    )
    .await;
    assert!(
        unwritable
            .unwrap_err()
            .to_string()
            .contains("can't be written")
    );
}

#[tokio::test]
async fn an_edge_runs_nothing_and_knows_the_routes() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let _worker = cloud.join("a").await;
    let edge = FakeNode::join(&cloud, "edge", NodeRole::Edge)
        .await
        .unwrap();
    let mut apply = apply_of(&[("web", service(1))]);
    apply.routes.push(model::traffic::Route {
        port: None,
        host: "shop.localhost".into(),
        path: "/".into(),
        to: name("web"),
    });
    cloud.apply(&apply).await;
    cloud.ready("web", 1).await;
    let told = until("the way to web", || {
        let desired = edge.desired().filter(|desired| {
            desired
                .road
                .destinations
                .iter()
                .any(|to| !to.endpoints.is_empty())
        });
        std::future::ready(desired)
    })
    .await;
    assert!(told.instances.is_empty());
    assert_eq!(told.road.routes[0].to.to_string(), "shop/web");
    let status = cloud.client.status(&project()).await.unwrap();
    assert!(status.routes[0].serving);
}

#[tokio::test]
async fn when_most_vanish_at_once_the_leader_holds_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut nodes = cloud.three_nodes().await;
    cloud.apply(&apply_of(&[("web", service(3))])).await;
    cloud.ready("web", 3).await;
    nodes[1].silence();
    nodes[2].silence();
    let attention = |code: &'static str| {
        let client = &cloud.client;
        async move {
            let status = client.status(&project()).await.unwrap();
            status
                .attention
                .iter()
                .any(|reason| reason.code == code)
                .then_some(())
        }
    };
    until("the brake", || attention("brake-on")).await;
    let shown = cloud.ps().await;
    assert_eq!(shown.len(), 3, "nothing is replaced: {shown:#?}");
    let unknown = shown
        .iter()
        .filter(|view| view.state == InstanceState::Unknown);
    assert_eq!(unknown.count(), 2);
    let lost = cloud.client.nodes().await.unwrap().items;
    assert!(lost.iter().all(|node| node.state != NodeState::Lost));
    let events = cloud.client.events(None, 0).await.unwrap().items;
    assert!(events.iter().any(|event| event.reason.code == "brake-on"));
    let status = cloud.client.status(&project()).await.unwrap();
    let message = &status.attention[0].message;
    assert!(message.contains("`mainland nodes release`"), "{message}");

    let released = cloud.client.release_brake().await.unwrap();
    assert_eq!(
        released.given_up,
        [nodes[1].name.clone(), nodes[2].name.clone()]
    );
    let here = |views: &[api::wire::InstanceView]| {
        let ready = views.iter().filter(|view| view.ready);
        ready
            .filter(|view| view.node.as_ref() == Some(&nodes[0].name))
            .count()
            == 3
    };
    cloud
        .ps_until("three copies on the node that is left", here)
        .await;
    let again = cloud.client.release_brake().await.unwrap();
    assert!(again.given_up.is_empty());
    let audited = cloud.client.audit(10).await.unwrap().items;
    let releases = audited
        .iter()
        .filter(|record| record.action == "brake.release");
    assert_eq!(releases.count(), 1, "what did nothing is not kept");
    assert_eq!(code(nodes[0].client.release_brake().await), "not-permitted");
}

#[tokio::test]
async fn what_waits_for_an_endpoint_is_shown_as_demand() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(0))])).await;
    node.demand("web", 7);
    until("the demand", || async {
        let status = cloud.client.status(&project()).await.unwrap();
        let shown = status.services[0].demand == 7
            && status
                .attention
                .iter()
                .any(|reason| reason.code == "demand");
        shown.then_some(())
    })
    .await;
}

#[tokio::test]
async fn off_loopback_the_api_speaks_tls_only() {
    let directory = tempfile::tempdir().unwrap();
    let ram = store::memory::MemoryStore::default();
    let memory = Memory::Ram(ram.clone());
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let options = options(
        directory.path(),
        &memory,
        everywhere,
        "127.0.0.1:0".parse().unwrap(),
    );
    let running = tokio::spawn(control::server::run(options, std::future::pending()));
    let path = directory.path().join("client.json");
    let file = until("the client file", || {
        let text = std::fs::read(&path).ok();
        std::future::ready(
            text.and_then(|text| serde_json::from_slice::<control::server::ClientFile>(&text).ok()),
        )
    })
    .await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], file.api.port()));
    let plain = Client::new(Transport::Tcp(address), Some(file.token.clone()));
    assert!(plain.version().await.is_err());

    let token = |client: Client| async move {
        let ask = api::wire::MakeJoinToken {
            node: None,
            valid_seconds: 60,
        };
        client.make_join_token(&ask).await
    };
    // Whoever knows the authority may come with a token.
    let stranger = Authority::generate("elsewhere", Timestamp::now()).unwrap();
    let distrusting = with_token(stranger.certificate(), address, &file.token);
    assert!(token(distrusting).await.is_err());
    let pinned = boundary::authority::Fingerprint([0; 32]);
    let config = tls::join_config(pinned, clock()).unwrap();
    let transport = Transport::Tls {
        address,
        config: config.into(),
        name: tls::server_name(),
    };
    assert!(Client::new(transport, None).version().await.is_err());
    let sealed = store::Store::get(&ram, "authority").await.unwrap().unwrap();
    let sealed: serde_json::Value = serde_json::from_slice(&sealed.value).unwrap();
    let trusting = with_token(
        sealed["certificate"].as_str().unwrap(),
        address,
        &file.token,
    );
    assert!(token(trusting).await.is_ok());
    running.abort();
}

fn with_token(authority: &str, address: std::net::SocketAddr, token: &str) -> Client {
    let config =
        tls::client_config_without_identity(authority, tls::Expect::Anyone, clock()).unwrap();
    let transport = Transport::Tls {
        address,
        config: config.into(),
        name: tls::server_name(),
    };
    Client::new(transport, Some(token.to_owned()))
}

#[tokio::test]
async fn a_new_leader_says_that_its_road_is_partial_until_it_heard_all() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut nodes = cloud.three_nodes().await;
    let services = [("web", service(3)), ("front", needing(service(3), "web"))];
    cloud.apply(&apply_of(&services)).await;
    cloud.ready("web", 3).await;
    cloud.ready("front", 3).await;
    let epoch = nodes[0].generations().last().unwrap().epoch;
    nodes[2].silence();

    let cloud = cloud.again().await;
    let told = until("a complete road", || {
        let told = nodes[0].told();
        let complete = told
            .last()
            .is_some_and(|last| last.generation.epoch > epoch && last.road.complete);
        std::future::ready(complete.then_some(told))
    })
    .await;
    // Two of three report at once; the road says that it is partial until the third is given up.
    let of_new: Vec<_> = told
        .iter()
        .filter(|told| told.generation.epoch > epoch)
        .collect();
    assert!(!of_new[0].road.complete);
    let lost = cloud.client.nodes().await.unwrap().items;
    assert!(lost.iter().any(|node| node.state == NodeState::Lost));
}

fn with_volume(replicas: u32) -> model::compute::Service {
    let mut db = service(replicas);
    let size = Bytes::mebibytes(1);
    db.volumes.insert(name("data"), Volume { size });
    db
}

#[tokio::test]
async fn a_lost_node_leaves_for_good_and_what_had_its_volume_there_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let mut nodes = cloud.three_nodes().await;
    cloud
        .apply(&apply_of(&[("web", service(3)), ("db", with_volume(1))]))
        .await;
    cloud.ready("web", 3).await;
    let home = cloud.ready("db", 1).await[0].node.clone().unwrap();
    let busy = cloud.client.remove_node(&home, false).await;
    assert_eq!(code(busy), "node-in-use");
    let unknown = "nobody".parse().unwrap();
    assert_eq!(
        code(cloud.client.remove_node(&unknown, false).await),
        "not-found"
    );

    let leaving = nodes.iter_mut().find(|node| node.name == home).unwrap();
    leaving.silence();
    let would = until("it may leave", || async {
        cloud.client.remove_node(&home, true).await.ok()
    })
    .await;
    let removed = cloud.client.remove_node(&home, false).await.unwrap();
    assert_eq!(removed.lost_volumes, would.lost_volumes);
    assert!(would.dry_run && !removed.dry_run);
    let lost: Vec<_> = removed.lost_volumes.iter().collect();
    assert!(lost.len() == 1 && lost[0].service == name("db") && lost[0].slot == 0);
    let listed = cloud.client.nodes().await.unwrap().items;
    assert!(listed.iter().all(|node| node.name != home) && listed.len() == 2);

    let expected = format!("volume on node {home}, which was removed");
    let waits = |views: &[api::wire::InstanceView]| {
        let db = views.iter().find(|view| view.service == name("db"));
        let reason = db.and_then(|view| view.reason.as_ref());
        let says_so = reason.is_some_and(|reason| reason.message.starts_with(&expected));
        let web = views.iter().filter(|view| view.service == name("web"));
        says_so && web.filter(|view| view.ready).count() == 3
    };
    cloud.ps_until("db waits and says for what", waits).await;
    // With the certificate that it still has, it is told nothing.
    let leaving = nodes.iter().find(|node| node.name == home).unwrap();
    let db = "shop/db".parse().unwrap();
    let values = leaving.client.secret_values(&home, &db).await;
    assert_eq!(code(values.map(drop)), "node-removed");
    let desired = leaving.client.watch_desired(&home).await;
    assert_eq!(code(desired.map(drop)), "node-removed");
    let key = Key::from_pem(&leaving.identity.key).unwrap().fingerprint();
    let others = nodes.iter().filter(|node| node.name != home);
    let told = |node: &FakeNode| {
        node.desired()
            .is_some_and(|told| told.removed.contains(&key))
    };
    for other in others {
        let told = || async { told(other).then_some(()) };
        until("the others are told to refuse its key", told).await;
    }

    let kind = api::wire::Kind::Services;
    cloud
        .client
        .delete(&project(), kind, "db", true)
        .await
        .unwrap();
    let gone = || async { cloud.client.rollout(&project(), &name("db")).await.err() };
    until("nobody is waited for", gone).await;
    cloud.apply(&apply_of(&[("db", with_volume(1))])).await;
    let again = cloud.ready("db", 1).await;
    assert_ne!(
        again[0].node.as_ref(),
        Some(&home),
        "it starts without the old volume"
    );
    let audited = cloud.client.audit(100).await.unwrap().items;
    let removal = audited.iter().find(|record| record.action == "node.remove");
    assert_eq!(removal.unwrap().detail, ["volume of shop/db copy 0 lost"]);
}

#[tokio::test]
async fn a_node_that_is_heard_leaves_cordoned_and_empty() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let [a, b, _c] = cloud.three_nodes().await;
    assert_eq!(
        code(cloud.client.remove_node(&a.name, false).await),
        "node-in-use"
    );
    cloud.client.cordon(&a.name, true).await.unwrap();
    assert_eq!(
        code(b.client.remove_node(&a.name, false).await),
        "not-permitted"
    );
    let removed = cloud.client.remove_node(&a.name, false).await.unwrap();
    assert_eq!(removed.lost_volumes, []);
    assert_eq!(cloud.client.nodes().await.unwrap().items.len(), 2);
    cloud.apply(&apply_of(&[("web", service(2))])).await;
    cloud.ready("web", 2).await;
}
