//! From placed to gone.

use std::collections::BTreeMap;

use model::compute::{ExitHow, InstanceState, Need, SecretNeed, Wanted};
use model::ids::{ResourceId, ResourceName};
use model::state::Volume;
use model::traffic::{Address, Callers, Destination, Protocol, TrafficOptions};
use model::units::Bytes;
use rustix::process::Signal;

use crate::world::{Node, ask, is_alive, left_of, running, signal, web};

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

#[tokio::test]
async fn what_is_placed_here_runs_and_sees_what_it_declared() {
    let node = Node::start().await;
    node.server.look(|state| {
        state.secrets.insert(name("token"), b"s3cret".to_vec());
        state
            .secrets
            .insert(name("key"), b"\x00\xffbinary".to_vec());
    });
    let mut web = web("web-1");
    web.spec.needs =
        BTreeMap::from(["db", "token", "key"].map(|need| (name(need), Need::default())));
    web.secrets = vec![
        SecretNeed {
            name: name("token"),
            file: false,
        },
        SecretNeed {
            name: name("key"),
            file: true,
        },
    ];
    web.spec.volumes = BTreeMap::from([(
        name("data"),
        Volume {
            size: Bytes::mebibytes(1),
        },
    )]);
    web.slot = Some(4);
    node.server.change(|desired| {
        desired.instances = vec![web];
        desired.road.destinations = vec![Destination {
            service: ResourceId::new("shop".parse().unwrap(), name("db")),
            protocol: Protocol::Tcp,
            traffic: TrafficOptions::default(),
            endpoints: vec![],
            external: vec![Address::External {
                host: "127.0.0.1".to_owned(),
                port: 9,
            }],
        }];
        desired.road.callers = vec![Callers {
            service: ResourceId::new("shop".parse().unwrap(), name("web")),
            from: vec![],
            gateway: true,
        }];
    });
    let report = node.until_ready("web-1").await;
    assert_eq!((report.state, report.restarts), (InstanceState::Running, 0));
    assert_eq!(
        node.server.look(|state| state.certified),
        1,
        "a certificate for the service"
    );

    let environment = ask(&report, "/env").await;
    let variables: BTreeMap<&str, &str> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let value = |name: &str| {
        *variables
            .get(name)
            .unwrap_or_else(|| panic!("{name} in\n{environment}"))
    };
    assert_eq!(value("GREETING"), "hello from web-1");
    assert_eq!(value("TOKEN"), "s3cret");
    assert_eq!(
        report.address.as_deref(),
        Some(format!("127.0.0.1:{}", value("PORT")).as_str())
    );
    assert!(value("DB_URL").starts_with("tcp://127."), "{environment}");
    assert!(
        !variables.contains_key("LEAK"),
        "the agent's own environment stays its own"
    );
    assert_eq!(std::fs::read(value("KEY_FILE")).unwrap(), b"\x00\xffbinary");
    assert!(
        value("DATA_DIR").ends_with("volumes/shop/web/4/data"),
        "{environment}"
    );

    // The door listens: the proxy has taken it before the instance was started.
    let door = format!("{}:{}", value("DB_HOST"), value("DB_PORT"));
    tokio::net::TcpStream::connect(&door)
        .await
        .expect("the door is open");
}

#[tokio::test]
async fn leaving_is_off_the_road_then_off_the_machine() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    let mut leaving = web("web-1");
    leaving.wanted = Wanted::Leave;
    node.server.want(vec![leaving]);
    node.until("stopped", |node| {
        node.server
            .report("web-1")
            .is_some_and(|report| report.state == InstanceState::Stopped)
    })
    .await;
    assert!(!is_alive(pid));
    let exit = node.server.report("web-1").unwrap().last_exit.unwrap();
    assert_eq!(exit.how, ExitHow::Signal { signal: 15 });
    assert!(
        node.directory().join("instances/shop/web-1").exists(),
        "its logs can still be read"
    );
    node.server.want(vec![]);
    node.until("gone", |node| node.server.report("web-1").is_none())
        .await;
    node.until("its directory gone", |node| {
        !node.directory().join("instances/shop/web-1").exists()
    })
    .await;
}

#[tokio::test]
async fn a_killed_instance_comes_back_on_its_port_with_its_reason() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let before = node.until_ready("web-1").await;
    signal(before.pid.unwrap(), Signal::KILL);
    node.until("another run", |node| {
        node.server
            .report("web-1")
            .is_some_and(|report| report.ready && report.restarts == 1)
    })
    .await;
    let after = node.server.report("web-1").unwrap();
    assert_ne!(after.pid, before.pid);
    assert_eq!(after.address, before.address);
    assert_eq!(after.last_exit.unwrap().how, ExitHow::Signal { signal: 9 });
}

#[tokio::test]
async fn a_frozen_instance_and_a_sick_one_are_not_ready_and_not_restarted() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    let is_ready = |ready| {
        move |node: &Node| {
            node.server
                .report("web-1")
                .is_some_and(|report| report.ready == ready)
        }
    };
    signal(pid, Signal::STOP);
    node.until("not ready while frozen", is_ready(false)).await;
    signal(pid, Signal::CONT);
    node.until("ready again", is_ready(true)).await;

    let sick = node.directory().join("instances/shop/web-1/work/sick");
    std::fs::write(&sick, "").unwrap();
    node.until("not ready while sick", is_ready(false)).await;
    node.until_reason("web-1", "GET /health answered 500").await;
    std::fs::remove_file(&sick).unwrap();
    node.until("well again", is_ready(true)).await;
    let report = node.server.report("web-1").unwrap();
    assert_eq!((report.pid, report.restarts), (Some(pid), 0));
}

/// The process that listens on the socket of the node's proxy.
pub fn proxy_of(node: &Node) -> Option<u32> {
    let socket = node.directory().join("proxy.sock");
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(peer.pid.as_raw_nonzero().get() as u32)
}

#[tokio::test]
async fn a_proxy_that_is_stopped_is_replaced() {
    let node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    let before = proxy_of(&node).expect("a proxy");
    signal(before, Signal::STOP);
    node.until("another proxy", |node| {
        proxy_of(node).is_some_and(|now| now != before)
    })
    .await;
    assert!(!is_alive(before), "nobody is left on its sockets");
    node.until_ready("web-1").await;
    let now = proxy_of(&node).expect("a proxy");
    // One that lives is left alone, however quiet it is.
    let quiet = tokio::time::Instant::now() + std::time::Duration::from_secs(6);
    while tokio::time::Instant::now() < quiet {
        assert_eq!(proxy_of(&node), Some(now));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_node_that_stops_takes_everything_with_it() {
    let mut node = Node::start().await;
    node.server
        .want(vec![web("web-1"), running("job-1", &["sleep", "1000"])]);
    node.until_ready("web-1").await;
    let client = node.socket();
    let _: () = client
        .exchange(http::Method::POST, "/v1/stop?instances=true", &(), None)
        .await
        .unwrap();
    assert!(node.agent.wait().await.unwrap().success());
    assert_eq!(left_of(&node), 0, "neither shim, nor workload, nor proxy");
    let stopped = |name| node.server.report(name).unwrap().state;
    assert_eq!(
        (stopped("web-1"), stopped("job-1")),
        (InstanceState::Stopped, InstanceState::Stopped)
    );

    // And comes back as it was.
    node.start_again();
    node.until("ready again", |node| {
        node.server
            .report("web-1")
            .is_some_and(|report| report.ready)
    })
    .await;
}

#[tokio::test]
async fn volumes_outlive_their_instance_until_they_are_to_be_forgotten() {
    let node = Node::start().await;
    let with_volume = |instance: &str| {
        let mut one = running(
            instance,
            &["sh", "-c", "echo $$ >> data/starts; exec sleep 1000"],
        );
        let volume = Volume {
            size: Bytes::mebibytes(1),
        };
        one.spec.volumes = BTreeMap::from([(name("data"), volume)]);
        one.slot = Some(0);
        one
    };
    let starts = node.directory().join("volumes/shop/db/0/data/starts");
    let count = |path: &std::path::Path| {
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    };
    node.server.want(vec![with_volume("db-1")]);
    node.until("a start", |_| count(&starts) == 1).await;
    node.server.want(vec![]);
    node.until("gone", |node| node.server.report("db-1").is_none())
        .await;
    node.server.want(vec![with_volume("db-2")]);
    node.until("another start on the same data", |_| count(&starts) == 2)
        .await;

    node.server.want(vec![]);
    node.until("gone", |node| node.server.report("db-2").is_none())
        .await;
    assert_eq!(count(&starts), 2, "absence alone keeps data");
    node.server
        .change(|desired| desired.forget_volumes = vec!["shop/db".parse().unwrap()]);
    node.until("forgotten", |node| {
        !node.directory().join("volumes/shop/db").exists()
    })
    .await;
}
