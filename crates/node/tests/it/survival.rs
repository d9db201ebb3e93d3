//! What goes on when agent or servers do not.

use std::time::Instant;

use model::compute::{ExitHow, InstanceState, OnPartition};
use model::traffic::{Gate, ProxySnapshot};
use rustix::process::Signal;

use crate::world::{Node, ask, is_alive, program, running, signal, watchdogs_of, web, workers_of};

#[tokio::test]
async fn a_killed_agent_is_missed_by_nobody() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1"), web("web-2")]);
    let kept = node.until_ready("web-1").await;
    let lost = node.until_ready("web-2").await;
    node.kill_agent().await;
    assert_eq!(ask(&kept, "/").await, "web-1", "it serves without an agent");
    signal(lost.pid.unwrap(), Signal::KILL);
    node.until("its end", |_| !is_alive(lost.pid.unwrap()))
        .await;

    // With the servers gone too, the directory alone is enough.
    node.server.falls_silent(true);
    node.start_again();
    let deadline = Instant::now() + crate::world::PATIENCE;
    let status = loop {
        if let Some(status) = node.status().await
            && status.instances.iter().filter(|one| one.ready).count() == 2
        {
            break status;
        }
        assert!(Instant::now() < deadline, "both are ready again");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert!(!status.connected);
    let (first, second) = (&status.instances[0], &status.instances[1]);
    assert_eq!((first.pid, first.restarts), (kept.pid, 0), "adopted");
    assert_ne!(second.pid, lost.pid);
    assert_eq!(second.restarts, 1, "started anew");

    node.server.look(|state| state.reports.clear());
    node.server.falls_silent(false);
    node.until_ready("web-1").await;
    let told = node.until_ready("web-2").await;
    assert_eq!(
        told.last_exit.unwrap().how,
        ExitHow::Signal { signal: 9 },
        "how it ended meanwhile"
    );
}

/// Agent, shim, its watchdog and main process killed at once: the instance's workers are nobody's, and known by its record alone or not even by that.
#[tokio::test]
async fn nothing_of_a_node_killed_whole_lives_beside_what_it_starts_again() {
    let mut node = Node::start().await;
    let script = "sleep 1000 & exec \"$0\" web";
    let forking = |name: &str| running(name, &["sh", "-c", script, program()]);
    node.server.want(vec![forking("web-1"), forking("lost-1")]);
    let mut killed = Vec::new();
    for name in ["web-1", "lost-1"] {
        killed.extend(node.until_ready(name).await.pid);
    }
    let shims = ["web-1", "lost-1"].map(|name| {
        let directory = node.directory().join("instances/shop").join(name);
        let record = compute::instance::read_record(&directory).unwrap();
        // Here a cgroup would do it.
        std::fs::write(
            directory.join("shim.json"),
            serde_json::to_vec(&compute::instance::Record {
                cgroup: None,
                ..record.clone()
            })
            .unwrap(),
        )
        .unwrap();
        record.shim.pid
    });
    killed.extend(shims);
    // Before their shims, which would replace them.
    let watchdogs = watchdogs_of(&node);
    assert_eq!(watchdogs.len(), 2);
    killed.extend(watchdogs);
    let workers: Vec<u32> = workers_of(&node, "sleep");
    assert_eq!(workers.len(), 2);
    node.kill_agent().await;
    // The shims first: one that outlives its program ends what the program has left.
    for pid in killed.iter().rev() {
        signal(*pid, Signal::KILL);
    }
    node.until("their end", |_| !killed.iter().any(|pid| is_alive(*pid)))
        .await;
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    std::fs::write(node.directory().join("instances/shop/lost-1.json"), "torn").unwrap();
    std::fs::remove_file(node.directory().join("desired.json")).unwrap();

    node.server.look(|state| state.reports.clear());
    node.server.want(vec![forking("web-1")]);
    node.start_again();
    node.until_ready("web-1").await;
    let left: Vec<_> = workers.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!node.directory().join("instances/shop/lost-1").exists());
}

/// An update that was rolled back: what the later version wrote down has words that this one does not know. Nobody may end what runs for that.
#[tokio::test]
async fn what_a_later_version_wrote_down_runs_on() {
    let mut node = Node::start().await;
    let names = ["web-1", "web-2", "web-3"];
    // Longer than a lease: what every version knows of it is enough to renew it.
    let leased = |name: &str| {
        let mut one = web(name);
        one.spec.on_partition = OnPartition::Stop;
        one
    };
    node.server.want(names.map(leased).into());
    let mut pids = Vec::new();
    for name in names {
        pids.push(node.until_ready(name).await.pid.unwrap());
    }
    node.until("it is kept", |node| {
        let wanted = node.server.generation();
        node.server.look(|state| state.acknowledged == wanted)
    })
    .await;
    node.kill_agent().await;
    let in_later_words = |path: std::path::PathBuf, pointers: &[String]| {
        let mut kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for pointer in pointers {
            *kept.pointer_mut(pointer).unwrap() = "invented".into();
        }
        std::fs::write(&path, kept.to_string()).unwrap();
    };
    for name in names {
        let record = format!("instances/shop/{name}.json");
        let pointer = "/desired/spec/on_partition".to_owned();
        in_later_words(node.directory().join(record), &[pointer]);
    }
    let pointers = [0, 1, 2].map(|index| format!("/instances/{index}/spec/on_partition"));
    in_later_words(node.directory().join("desired.json"), &pointers);

    // Of one the server speaks so as well, of one it does not, and the third is wanted no more.
    let first = leased("web-1");
    let mut said = serde_json::to_value(&first).unwrap();
    said["spec"]["on_partition"] = "invented".into();
    node.server.look(|state| state.reports.clear());
    node.server.change(|desired| {
        desired.instances = vec![leased("web-2")];
        desired.foreign = vec![model::control::Foreign {
            instance: first.instance.clone(),
            said,
        }];
    });
    node.start_again();
    let second = node.until_ready("web-2").await;
    assert_eq!((second.pid, second.restarts), (Some(pids[1]), 0), "adopted");
    node.until("the third ends", |_| !is_alive(pids[2])).await;
    assert!(is_alive(pids[0]) && node.server.report("web-1").is_none());
    let third = node.directory().join("instances/shop/web-3/logs");
    node.until("nothing of it stays", |_| !third.exists()).await;
    let said = |node: &Node| {
        let is_it = |event: &model::control::NodeEvent| event.reason.code == "later-version";
        node.server.look(|state| state.events.iter().any(is_it))
    };
    node.until("it is said", said).await;

    node.server.change(|desired| {
        desired.instances = vec![leased("web-1"), leased("web-2")];
        desired.foreign.clear();
    });
    let first = node.until_ready("web-1").await;
    assert_eq!((first.pid, first.restarts), (Some(pids[0]), 0), "adopted");
}

/// Nothing of it is taken away while nobody here can read what it is, and it ends as any other when it should.
#[tokio::test]
async fn what_a_later_version_wrote_down_is_served_renewed_and_stopped() {
    let mut node = Node::start().await;
    let mut leased = web("web-1");
    leased.spec.on_partition = OnPartition::Stop;
    node.server.want(vec![leased.clone(), web("other-1")]);
    let report = node.until_ready("web-1").await;
    let pid = report.pid.unwrap();
    let other = node.until_ready("other-1").await;
    let ports = [&report, &other].map(|report| {
        let address = report.address.as_deref().unwrap();
        address.rsplit_once(':').unwrap().1.to_owned()
    });
    let other = other.pid.unwrap();
    let snapshot = node.directory().join("proxy/snapshot.json");
    let told = move || {
        let text = std::fs::read(&snapshot).unwrap_or_default();
        serde_json::from_slice::<model::traffic::ProxySnapshot>(&text).ok()
    };
    let gate = |name: &str| {
        let told = told()?;
        let mut local = told.local.iter();
        Some((
            local.find(|one| one.instance.name.as_str() == name)?.gate,
            told.generation,
        ))
    };
    let open = |name: &str| gate(name).filter(|(gate, _)| *gate == model::traffic::Gate::Open);
    node.until("they are on the road", |_| {
        open("web-1").is_some() && open("other-1").is_some()
    })
    .await;
    let limits = node.status().await.unwrap().limits;
    let can_close =
        rustix::process::geteuid().is_root() && !limits.iter().any(|limit| limit.contains("nft"));
    node.kill_agent().await;
    for name in ["web-1", "other-1"] {
        let path = node.directory().join(format!("instances/shop/{name}.json"));
        let text = std::fs::read(&path).unwrap();
        let mut kept: serde_json::Value = serde_json::from_slice(&text).unwrap();
        kept["desired"]["spec"]["on_partition"] = "invented".into();
        std::fs::write(&path, kept.to_string()).unwrap();
    }
    std::fs::remove_file(node.directory().join("desired.json")).unwrap();
    let said = |one: &model::compute::DesiredInstance| {
        let mut said = serde_json::to_value(one).unwrap();
        said["spec"]["on_partition"] = "invented".into();
        let instance = one.instance.clone();
        model::control::Foreign { instance, said }
    };
    node.server.change(|desired| {
        desired.instances.clear();
        desired.foreign = vec![said(&leased), said(&web("other-1"))];
    });
    // Where the machine's rules can be read.
    let ports_closed = || {
        let rules = std::process::Command::new("nft")
            .args(["list", "ruleset"])
            .output();
        let rules = rules.map(|rules| String::from_utf8_lossy(&rules.stdout).into_owned());
        let rule = |port: &str| format!("tcp dport {port} ");
        let closed = |port: &str| rules.as_ref().is_ok_and(|all| all.contains(&rule(port)));
        ports.iter().all(|port| closed(port))
    };
    assert_eq!(ports_closed(), can_close, "{limits:?}");
    let (before, beats) = (open("web-1").unwrap().1, |node: &Node| {
        node.server.look(|state| state.heartbeats)
    });
    node.start_again();
    // Longer than a lease.
    let enough = beats(&node) + 5;
    node.until("it is heard for long", |node| beats(node) >= enough)
        .await;
    assert!(is_alive(pid), "its lease is renewed");
    assert!(is_alive(other));
    let after = open("web-1").expect("it stays on the road").1;
    assert!(after > before && open("other-1").is_some());
    assert_eq!(ports_closed(), can_close, "to whom it does not serve");
    // Told as another release, it is ended in its time, and begun as that.
    let mut next = leased.clone();
    next.release = model::ids::ReleaseNumber(2);
    node.server.look(|state| state.reports.clear());
    node.server.change(|desired| {
        desired.instances = vec![next];
        desired
            .foreign
            .retain(|one| one.instance.name.as_str() == "other-1");
    });
    let report = node.until_ready("web-1").await;
    assert_ne!(report.pid, Some(pid));
    assert!(!is_alive(pid) && is_alive(other));
    // Stopped with the node.
    let client = node.socket();
    let () = client
        .exchange(http::Method::POST, "/v1/stop?instances=true", &(), None)
        .await
        .unwrap();
    let ended = tokio::time::timeout(crate::world::PATIENCE, node.agent.wait()).await;
    assert!(ended.expect("the agent ends").unwrap().success());
    assert!(!is_alive(other), "and nothing of it is left");
    assert!(!is_alive(report.pid.unwrap()));
}

/// What the proxy was told last.
fn proxy_told(node: &Node) -> Option<ProxySnapshot> {
    let text = std::fs::read(node.directory().join("proxy/snapshot.json")).unwrap_or_default();
    serde_json::from_slice(&text).ok()
}

/// Whether the proxy was told such a gate of an instance.
fn is_told(node: &Node, gate: Gate) -> bool {
    proxy_told(node).is_some_and(|told| told.local.iter().any(|one| one.gate == gate))
}

/// The instance's record as a later version might write it, with nothing kept of the desired state.
fn is_of_a_later_version(node: &Node, name: &str) {
    let path = node.directory().join(format!("instances/shop/{name}.json"));
    let mut kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kept["desired"]["spec"]["on_partition"] = "invented".into();
    std::fs::write(&path, kept.to_string()).unwrap();
    std::fs::remove_file(node.directory().join("desired.json")).unwrap();
}

/// Nobody here can read what it is: it leaves the road before it is ended, is known until it has ended, and has its time for that, whatever is said of it
/// meanwhile.
#[tokio::test]
async fn what_a_later_version_wrote_down_leaves_as_any_other() {
    let mut node = Node::start().await;
    let folder = tempfile::tempdir().unwrap();
    crate::world::set_mode(folder.path(), 0o777);
    let ended = folder.path().join("ended");
    let script = format!(
        "trap 'sleep 2; echo well >\"{}\"; exit 0' TERM; \"$0\" web & wait",
        ended.display()
    );
    let slow = running("slow-1", &["sh", "-c", &script, program()]);
    node.server.want(vec![slow.clone()]);
    let pid = node.until_ready("slow-1").await.pid.unwrap();
    node.until("it is on the road", |node| is_told(node, Gate::Open))
        .await;
    node.kill_agent().await;
    is_of_a_later_version(&node, "slow-1");
    node.server.look(|state| state.reports.clear());
    node.server.want(Vec::new());
    node.start_again();

    node.until("it leaves", |node| is_told(node, Gate::Leaving))
        .await;
    assert!(is_alive(pid) && !ended.exists());
    let services = proxy_told(&node).unwrap().trust.services;
    assert!(services.contains_key(&"shop/slow".parse().unwrap()));
    // It is told to end by now, or in a moment.
    node.server.want(vec![slow]);
    let again = node.until_ready("slow-1").await;
    assert_ne!(again.pid, Some(pid));
    assert!(ended.exists() && !is_alive(pid), "it was given its time");
}

/// Says `hello` to who comes, and `bye` to who says something.
const GREETER: &str = "
import os, socket
listener = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
while True:
    peer, _ = listener.accept()
    peer.sendall(b'hello\\n')
    peer.recv(1)
    peer.sendall(b'bye\\n')
";
/// Is greeted, and answers once there is a file `go`.
const GREETED: &str = r#"
exec 3<>"/dev/tcp/$GREETER_HOST/$GREETER_PORT"
read -r line <&3 && echo "$line" >"$0/inside"
until [ -e "$0/go" ]; do sleep 0.02; done
echo >&3
read -r line <&3 && echo "$line" >"$0/answered"
exec sleep 1000
"#;

/// Who is inside of it when it has to go ends what is in hand there first.
#[tokio::test]
async fn what_a_later_version_wrote_down_is_drained() {
    use model::traffic::{Callers, Destination, Endpoint, TrafficOptions};
    let has_python = std::process::Command::new("python3").arg("-V").output();
    if has_python.is_err() {
        return eprintln!("there is no python3");
    }
    let mut node = Node::start().await;
    let folder = tempfile::tempdir().unwrap();
    crate::world::set_mode(folder.path(), 0o777);
    let said = |file: &str| {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        text.trim().to_owned()
    };
    let mut greeter = running("greeter-1", &["python3", "-c", GREETER]);
    greeter.spec.health.ask = model::compute::Ask::None;
    greeter.spec.protocol = model::traffic::Protocol::Tcp;
    let place = folder.path().to_str().unwrap();
    let mut greeted = running("greeted-1", &["bash", "-c", GREETED, place]);
    greeted.spec.health.ask = model::compute::Ask::None;
    let need = model::compute::Need::default();
    greeted.spec.needs = [("greeter".parse().unwrap(), need)].into();
    node.server.want(vec![greeter.clone()]);
    let pid = node.until_ready("greeter-1").await.pid.unwrap();
    node.until("it is on the road", |node| is_told(node, Gate::Open))
        .await;
    let here = proxy_told(&node).unwrap();
    node.server.change(|desired| {
        desired.instances = vec![greeter, greeted.clone()];
        desired.road.destinations = vec![Destination {
            service: "shop/greeter".parse().unwrap(),
            protocol: model::traffic::Protocol::Tcp,
            traffic: TrafficOptions::default(),
            endpoints: vec![Endpoint {
                instance: "shop/greeter-1".parse().unwrap(),
                epoch: model::ids::Epoch(1),
                node: here.node,
                zone: here.zone,
                region: here.region,
                mesh: here.mesh,
            }],
            external: Vec::new(),
        }];
        desired.road.callers = vec![Callers {
            service: "shop/greeter".parse().unwrap(),
            from: vec!["shop/greeted".parse().unwrap()],
            gateway: false,
        }];
    });
    node.until("somebody is inside", |_| said("inside") == "hello")
        .await;
    node.kill_agent().await;
    is_of_a_later_version(&node, "greeter-1");
    node.server.want(vec![greeted]);
    node.start_again();
    node.until("it leaves", |node| is_told(node, Gate::Leaving))
        .await;
    // Long enough for a signal to end it, and far less than its grace.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(is_alive(pid), "it was ended with somebody inside");
    std::fs::write(folder.path().join("go"), "").unwrap();
    node.until("an answer", |_| said("answered") == "bye").await;
    node.until("its end", |_| !is_alive(pid)).await;
}

/// What was kept of the desired state may be older than what the proxy was told: who was removed since stays so.
#[tokio::test]
async fn a_restart_lets_nobody_in_who_was_removed() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    node.until_ready("web-1").await;
    node.until("it is kept", |node| {
        let wanted = node.server.generation();
        node.server.look(|state| state.acknowledged == wanted)
    })
    .await;
    let path = node.directory().join("proxy/snapshot.json");
    let removed = node.server.look(|state| state.joined[0].clone());
    node.kill_agent().await;
    let mut kept = proxy_told(&node).unwrap();
    let before = kept.generation;
    kept.trust.removed.insert(removed.clone());
    std::fs::write(&path, serde_json::to_vec(&kept).unwrap()).unwrap();
    node.server.falls_silent(true);
    node.start_again();
    node.until("the proxy is told", |node| {
        proxy_told(node).is_some_and(|told| told.generation > before)
    })
    .await;
    assert!(proxy_told(&node).unwrap().trust.removed.contains(&removed));
    // Until a server says otherwise, be it by what it has said before.
    node.server.falls_silent(false);
    node.until("it is let in", |node| {
        proxy_told(node).is_some_and(|told| !told.trust.removed.contains(&removed))
    })
    .await;
}

/// A proxy drops at once what it is not told of: calls, tunnels and routes of the road that an agent has not read yet.
#[tokio::test]
async fn a_restarted_agent_takes_nothing_off_the_road_that_it_has_not_read_yet() {
    let mut node = Node::start().await;
    let callers = model::traffic::Callers {
        service: "shop/web".parse().unwrap(),
        from: vec!["shop/shop".parse().unwrap()],
        gateway: false,
    };
    node.server.change(|desired| {
        desired.instances = vec![web("web-1")];
        desired.road.callers = vec![callers];
    });
    let pid = node.until_ready("web-1").await.pid;
    let kept = node.directory().join("proxy/snapshot.json");
    let told = move || {
        let text = std::fs::read(&kept).unwrap_or_default();
        serde_json::from_slice::<model::traffic::ProxySnapshot>(&text).ok()
    };
    let lets_in = move || {
        told().map(|told| {
            (
                told.generation,
                !told.callers.is_empty(),
                told.local[0].gate,
            )
        })
    };
    let is_open = |_: &Node| {
        let told = lets_in();
        told.is_some_and(|(_, lets_in, gate)| lets_in && gate == model::traffic::Gate::Open)
    };
    node.until("it may be called", is_open).await;
    node.kill_agent().await;

    // A disk that takes its time.
    let path = node.directory().join("desired.json");
    let text = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    node.server.look(|state| state.reports.clear());
    node.start_again();
    let reading = tokio::task::spawn_blocking(move || {
        // As soon as somebody reads it.
        std::fs::File::options().write(true).open(&path).unwrap()
    });
    let mut reading = tokio::time::timeout(crate::world::PATIENCE, reading)
        .await
        .expect("the agent reads what it kept")
        .unwrap();
    let until = Instant::now() + std::time::Duration::from_millis(300);
    while Instant::now() < until {
        assert!(is_open(&node), "{:?}", lets_in());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    std::io::Write::write_all(&mut reading, &text).unwrap();
    drop(reading);
    let is_heard = |node: &Node| {
        assert!(is_open(node), "{:?}", lets_in());
        node.server.report("web-1").is_some_and(|one| one.ready)
    };
    node.until("it is heard", is_heard).await;
    assert_eq!(node.server.report("web-1").unwrap().pid, pid);

    // Where it kept nothing that can be read, it goes by what the proxy kept.
    node.server.falls_silent(true);
    node.kill_agent().await;
    std::fs::remove_file(node.directory().join("desired.json")).unwrap();
    std::fs::write(node.directory().join("desired.json"), "torn").unwrap();
    let before = lets_in().unwrap().0;
    node.start_again();
    let is_told = |_: &Node| lets_in().is_some_and(|(generation, _, _)| generation > before);
    node.until("the proxy is told", is_told).await;
    assert!(lets_in().unwrap().1, "{:?}", lets_in());
}

#[tokio::test]
async fn a_terminated_agent_ends_alone_and_the_proxy_is_adopted() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let before = node.until_ready("web-1").await;
    let mesh = node.server.look(|state| state.mesh);
    signal(node.agent.id().unwrap(), Signal::TERM);
    assert!(node.agent.wait().await.unwrap().success());
    let counted = node.server.look(|state| {
        state.reports.clear();
        state.mesh = None;
        state.heartbeats
    });
    node.start_again();
    node.until("heard again", |node| {
        node.server.look(|state| state.heartbeats > counted)
    })
    .await;
    // The first word of the new agent already says ready and reachable: a restart takes nothing off the road.
    let report = node
        .server
        .report("web-1")
        .expect("the first heartbeat names it");
    assert!(report.ready);
    assert_eq!(report.pid, before.pid);
    assert_eq!(node.server.look(|state| state.mesh), mesh);
}

#[tokio::test]
async fn a_partition_stops_what_must_not_run_twice_and_nothing_else() {
    let node = Node::start().await;
    let mut stop = web("db-1");
    stop.spec.on_partition = OnPartition::Stop;
    node.server.want(vec![stop, web("web-1")]);
    let (db, web) = (
        node.until_ready("db-1").await,
        node.until_ready("web-1").await,
    );
    // Longer than a lease: it is renewed as long as the servers answer.
    let renewed = node.server.look(|state| state.heartbeats) + 4;
    node.until("heartbeats", |node| {
        node.server.look(|state| state.heartbeats >= renewed)
    })
    .await;
    assert!(is_alive(db.pid.unwrap()));
    let cut = Instant::now();
    node.server.falls_silent(true);
    node.until("the database gone", |_| !is_alive(db.pid.unwrap()))
        .await;
    // From the last renewal, sent up to a second before the cut: SIGTERM at 2.5 s, empty by 3.5 s.
    let took = cut.elapsed().as_millis();
    assert!((1_400..4_000).contains(&took), "{took} ms");
    assert_eq!(ask(&web, "/").await, "web-1");
    let db = node.until_seen("db-1", InstanceState::Failed).await;
    assert!(
        db.reason
            .as_ref()
            .unwrap()
            .message
            .contains("servers did not answer"),
        "{db:?}"
    );

    let watches = node.server.look(|state| state.watches);
    node.server.falls_silent(false);
    node.until("the database back", |node| {
        node.server
            .report("db-1")
            .is_some_and(|report| report.ready && report.restarts == 1)
    })
    .await;
    assert!(
        node.server.look(|state| state.watches) > watches,
        "what it should run was asked anew"
    );
    assert_eq!(node.server.report("web-1").unwrap().pid, web.pid);
}

#[tokio::test]
async fn without_servers_a_restarted_agent_starts_nothing_that_must_not_run_twice() {
    let mut node = Node::start().await;
    let mut stop = web("db-1");
    stop.spec.on_partition = OnPartition::Stop;
    node.server.want(vec![stop, web("web-1")]);
    let db = node.until_ready("db-1").await;
    node.until_ready("web-1").await;
    node.server.falls_silent(true);
    node.kill_agent().await;
    // No agent, no servers: the shim alone ends it.
    node.until("the database gone", |_| !is_alive(db.pid.unwrap()))
        .await;
    node.start_again();
    let deadline = Instant::now() + crate::world::PATIENCE;
    loop {
        let status = node.status().await;
        let state = |name: &str| {
            let instances = &status.as_ref()?.instances;
            instances
                .iter()
                .find(|one| one.name.as_str() == name)
                .map(|one| (one.state, one.ready))
        };
        if state("web-1") == Some((InstanceState::Running, true)) {
            assert_eq!(state("db-1"), Some((InstanceState::Failed, false)));
            break;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    node.server.falls_silent(false);
    node.until("the database back", |node| {
        node.server
            .report("db-1")
            .is_some_and(|report| report.ready)
    })
    .await;
}

#[tokio::test]
async fn a_dead_proxy_is_started_anew() {
    let node = Node::start().await;
    let first = proxy_of(&node).expect("a proxy runs");
    signal(first, Signal::KILL);
    node.until("another proxy", |node| {
        proxy_of(node).is_some_and(|pid| pid != first)
    })
    .await;
    // Whether it was ever seen off the road or not, it is on it again.
    let heard = node.server.look(|state| state.heartbeats) + 2;
    let on_the_road = |node: &Node| {
        node.server
            .look(|state| state.heartbeats >= heard && state.mesh.is_some())
    };
    node.until("on the road", on_the_road).await;
}

fn proxy_of(node: &Node) -> Option<u32> {
    let directory = node.directory();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let words = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let is_proxy = words.contains("\0proxy\0") && words.contains(directory.to_str()?);
            (is_proxy && is_alive(pid)).then_some(pid)
        })
}

/// Who could end the program and who could tell of it die at once, and the program itself is left alone.
#[tokio::test]
async fn a_program_whose_shim_and_agent_die_together_does_not_run_unknown() {
    let mut node = Node::start().await;
    let script = "setsid sleep 1000 & exec \"$0\" web";
    node.server
        .want(vec![running("web-1", &["sh", "-c", script, program()])]);
    let main = node.until_ready("web-1").await.pid.unwrap();
    let workers = workers_of(&node, "sleep");
    assert_eq!(workers.len(), 1);
    let directory = node.directory().join("instances/shop/web-1");
    let shim = compute::instance::read_record(&directory).unwrap().shim.pid;
    node.kill_agent().await;
    signal(shim, Signal::KILL);
    // Nobody is there to do it, and it has not waited for its lease.
    node.until("the program's end", |_| !is_alive(main)).await;

    node.server.look(|state| state.reports.clear());
    node.start_again();
    let report = node.until_ready("web-1").await;
    assert_ne!(report.pid, Some(main));
    assert_eq!(report.restarts, 1, "that it ended is known");
    let has_cgroup =
        compute::instance::read_record(&directory).is_some_and(|record| record.cgroup.is_some());
    if has_cgroup {
        assert!(!is_alive(workers[0]), "a worker of the run before");
    } else {
        // In a session of its own it is found by its cgroup alone.
        signal(workers[0], Signal::KILL);
    }
    assert_eq!(workers_of(&node, "sleep").len(), 1);
}

/// Its probe fails, perhaps for load alone: what it has in hand it may end, whoever looks after it.
#[tokio::test]
async fn a_gate_that_was_held_is_held_by_the_next_agent() {
    let mut node = Node::start().await;
    node.server.want(vec![web("web-1")]);
    let pid = node.until_ready("web-1").await.pid;
    let work = node.directory().join("instances/shop/web-1/work");
    std::fs::write(work.join("sick"), "").unwrap();
    let snapshot = node.directory().join("proxy/snapshot.json");
    let gate = move || {
        let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
        let text: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        text["local"][0]["gate"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let is_held = {
        let gate = gate.clone();
        move |_: &Node| gate() == "held"
    };
    node.until("its gate is held", is_held).await;
    node.kill_agent().await;
    node.server.look(|state| state.reports.clear());
    node.start_again();
    // Whatever the proxy is told meanwhile.
    let shut = std::cell::Cell::new(false);
    let is_taken_over = |node: &Node| {
        shut.set(shut.get() || gate() == "shut");
        let report = node.server.report("web-1");
        report.is_some_and(|report| report.pid == pid && !report.ready)
    };
    node.until("it is taken over", is_taken_over).await;
    std::fs::remove_file(work.join("sick")).unwrap();
    let is_open = |_: &Node| {
        shut.set(shut.get() || gate() == "shut");
        gate() == "open"
    };
    node.until("it is well again", is_open).await;
    assert!(!shut.get(), "what it had in hand was cut off");
}

/// Nobody knows what it did: its volumes are deleted when somebody asks, and not before all of it has ended.
#[tokio::test]
async fn what_runs_without_a_record_is_ended_before_it_counts_as_that() {
    let mut node = Node::start().await;
    let database = |wanted| {
        let mut one = web("db-1");
        let size = model::units::Bytes::mebibytes(1);
        one.spec.volumes = [("data".parse().unwrap(), model::state::Volume { size })].into();
        one.slot = Some(0);
        one.wanted = wanted;
        one
    };
    node.server
        .want(vec![database(model::compute::Wanted::Run)]);
    let pid = node.until_ready("db-1").await.pid.unwrap();
    node.kill_agent().await;
    std::fs::write(node.directory().join("instances/shop/db-1.json"), "torn").unwrap();
    node.server.look(|state| state.reports.clear());
    node.server
        .want(vec![database(model::compute::Wanted::Leave)]);
    node.start_again();
    let is_stopped = |node: &Node| {
        let report = node.server.report("db-1");
        let stopped = report.filter(|report| report.state == InstanceState::Stopped);
        stopped
            .inspect(|_| assert!(!is_alive(pid), "it lives"))
            .is_some()
    };
    node.until("it is stopped", is_stopped).await;
    let report = node.server.report("db-1").unwrap();
    assert!(!report.never_started, "it may have written anything");
}

/// What keeps others from its volumes is that it lives: not that its directory can't be removed.
#[tokio::test]
async fn what_has_ended_without_a_record_holds_up_nobody() {
    let mut node = Node::start().await;
    let database = |name: &str| {
        let mut one = web(name);
        let size = model::units::Bytes::mebibytes(1);
        one.spec.volumes = [("data".parse().unwrap(), model::state::Volume { size })].into();
        one.slot = Some(0);
        one
    };
    node.server.want(vec![database("db-1")]);
    let pid = node.until_ready("db-1").await.pid.unwrap();
    node.kill_agent().await;
    std::fs::write(node.directory().join("instances/shop/db-1.json"), "torn").unwrap();
    let stuck = node.directory().join("instances/shop/db-1/stuck");
    std::fs::create_dir(&stuck).unwrap();
    let done = |words: &[&str]| {
        let mut command = std::process::Command::new(words[0]);
        let done = command.args(&words[1..]).arg(&stuck).status();
        done.is_ok_and(|done| done.success())
    };
    if !done(&["mount", "-t", "tmpfs", "tmpfs"]) {
        return eprintln!("not root, or nothing can be mounted here");
    }
    node.server.want(vec![database("db-2")]);
    node.start_again();
    let is_ready = |node: &Node| node.server.report("db-2").is_some_and(|one| one.ready);
    let deadline = Instant::now() + crate::world::PATIENCE;
    while !is_ready(&node) && Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(done(&["umount"]), "unmounted");
    assert!(!is_alive(pid) && is_ready(&node));
}

/// `down` was broken off, or its terminal closed.
#[tokio::test]
async fn a_stop_is_done_though_its_asker_has_gone() {
    use tokio::io::AsyncWriteExt;
    let mut node = Node::start().await;
    // It takes longer to end than its asker waits.
    let script = "trap 'sleep 1; exit 0' TERM; \"$0\" web & wait";
    node.server
        .want(vec![running("web-1", &["sh", "-c", script, program()])]);
    let pid = node.until_ready("web-1").await.pid.unwrap();
    let within = node.status().await.unwrap().stops_within.unwrap();
    let grace = std::time::Duration::from_secs(5);
    assert!(within.duration() > grace * 2, "{within}");
    let socket = node.directory().join("node.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = b"POST /v1/stop?instances=true HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let leaves = |node: &Node| {
        let report = node.server.report("web-1").unwrap();
        report.state == InstanceState::Draining
    };
    node.until("it is being stopped", leaves).await;
    drop(stream);
    let ended = tokio::time::timeout(crate::world::PATIENCE, node.agent.wait()).await;
    assert!(ended.expect("the agent ends").unwrap().success());
    assert!(!is_alive(pid));
}

/// A disk that stands still gives no last words: each end is told after a second all the same, and no end waits for another's.
#[tokio::test]
async fn ends_are_told_side_by_side_though_no_log_can_be_read() {
    let node = Node::start().await;
    let names: Vec<String> = (1..=6).map(|number| format!("web-{number}")).collect();
    node.server
        .want(names.iter().map(|name| web(name)).collect());
    let mut pids = Vec::new();
    for name in &names {
        pids.extend(node.until_ready(name).await.pid);
    }
    for name in &names {
        let logs = node
            .directory()
            .join("instances/shop")
            .join(name)
            .join("logs");
        for log in std::fs::read_dir(logs).unwrap() {
            let log = log.unwrap().path();
            std::fs::remove_file(&log).unwrap();
            // Whoever opens it waits until somebody writes.
            let made = std::process::Command::new("mkfifo").arg(&log).status();
            assert!(made.unwrap().success());
        }
    }
    for pid in pids {
        signal(pid, Signal::KILL);
    }
    let told = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let all_are = |node: &Node| {
        for name in &names {
            let report = node.server.report(name).unwrap();
            if report.last_exit.is_some() {
                told.borrow_mut().entry(name).or_insert_with(Instant::now);
            }
        }
        told.borrow().len() == names.len()
    };
    node.until("their ends", all_are).await;
    let told = told.into_inner();
    let between = *told.values().max().unwrap() - *told.values().min().unwrap();
    assert!(
        between < std::time::Duration::from_millis(2500),
        "{between:?}"
    );
}
