//! The rules of the agent, one table or story each.

use model::compute::{
    Ask, Completion, DesiredInstance, Exit, ExitHow, InstanceState, OnPartition, Probe, Role,
    Wanted,
};
use model::control::{Foreign, NodeDesired};
use model::ids::{
    Epoch, Generation, InstanceId, InstanceName, ProjectName, ReleaseNumber, ResourceId,
    ResourceName,
};
use model::timing::TERMINATE_AFTER;
use model::traffic::{Destination, Gate, Protocol, Road, TrafficOptions};
use model::units::Span;

use std::time::Duration;

use super::*;
use crate::testing;

fn id(name: &str) -> InstanceId {
    InstanceId::new(
        ProjectName::new("store").unwrap(),
        InstanceName::new(name).unwrap(),
    )
}

fn desired(name: &str) -> DesiredInstance {
    let service = name.rsplit_once('-').unwrap().0;
    DesiredInstance {
        instance: id(name),
        service: ResourceName::new(service).unwrap(),
        release: ReleaseNumber(1),
        epoch: Epoch(1),
        slot: None,
        role: Role::Member,
        purpose: model::compute::Purpose::Serve,
        wanted: Wanted::Run,
        uid: 70_000,
        spec: testing::service(1),
        secrets: Vec::new(),
        start_after: Vec::new(),
        logins: BTreeMap::new(),
        need_ports: BTreeMap::new(),
        settings: None,
    }
}

fn changed(name: &str, change: impl FnOnce(&mut DesiredInstance)) -> DesiredInstance {
    let mut one = desired(name);
    change(&mut one);
    one
}

fn exit(how: ExitHow) -> Exit {
    Exit {
        how,
        at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// One node and its clock.
struct Node {
    state: State,
    clock: Duration,
    counter: u64,
}

impl Node {
    fn new() -> Self {
        Self {
            state: State::new(1),
            clock: Duration::from_secs(100),
            counter: 0,
        }
    }

    fn now(&self) -> Now {
        Now {
            instant: Instant(self.clock),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// What is done, a word each; what is only told left out.
    fn step(&mut self, input: Input) -> Vec<String> {
        let now = self.now();
        let outputs = step(&mut self.state, input, now);
        outputs.into_iter().filter_map(in_words).collect()
    }

    fn after_ms(&mut self, ms: u64) -> Vec<String> {
        self.clock += Duration::from_millis(ms);
        self.step(Input::Tick)
    }

    fn want(&mut self, instances: Vec<DesiredInstance>) -> Vec<String> {
        self.counter += 1;
        let asked_at = Some(Instant(self.clock));
        let desired = told(self.counter, instances, Road::default());
        self.step(Input::Desired { desired, asked_at })
    }

    fn renew(&mut self) -> Vec<String> {
        let sent_at = Instant(self.clock);
        self.step(Input::Renewed {
            epoch: Epoch(1),
            sent_at,
        })
    }

    fn prepared(&mut self, name: &str, run: Run) -> Vec<String> {
        self.step(Input::Prepared {
            instance: id(name),
            run,
        })
    }

    fn started(&mut self, name: &str, run: Run) -> Vec<String> {
        self.step(Input::Started {
            instance: id(name),
            run,
            pid: 10 + run,
            address: "127.0.0.1:4000".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
        })
    }

    fn answers(&mut self, name: &str, question: Question, good: bool) -> Vec<String> {
        let answer = if good { Ok(()) } else { Err("status 500") };
        self.answers_so(name, question, "127.0.0.1:4000", answer)
    }

    fn answers_so(
        &mut self,
        name: &str,
        question: Question,
        asked: &str,
        answer: Result<(), &str>,
    ) -> Vec<String> {
        let run = self.state.instance(&id(name)).unwrap().run();
        self.step(Input::Probed {
            instance: id(name),
            run,
            question,
            asked: Some(asked.to_owned()),
            answer: answer.map_err(str::to_owned),
        })
    }

    fn exited(&mut self, name: &str, how: ExitHow) -> Vec<String> {
        let run = self.state.instance(&id(name)).unwrap().run();
        self.step(Input::Exited {
            instance: id(name),
            run,
            exit: exit(how),
            last_words: Some("no such luck".to_owned()),
        })
    }

    fn drained(&mut self, name: &str) -> Vec<String> {
        self.step(Input::Drained { instance: id(name) })
    }

    fn sees(&self, name: &str) -> InstanceState {
        self.state.report(&id(name)).unwrap().state
    }

    fn reason(&self, name: &str) -> String {
        let reason = self.state.report(&id(name)).unwrap().reason.clone();
        reason.map_or(String::new(), |reason| reason.message)
    }

    /// A node that runs these, ready.
    fn serving(instances: Vec<DesiredInstance>) -> Self {
        Self::new().serve(instances)
    }

    /// One that was heard by its servers just now, besides.
    fn leased(instances: Vec<DesiredInstance>) -> Self {
        let mut node = Self::new();
        node.renew();
        node.serve(instances)
    }

    fn serve(mut self, instances: Vec<DesiredInstance>) -> Self {
        let node = &mut self;
        let names: Vec<String> = instances
            .iter()
            .map(|one| one.instance.name.to_string())
            .collect();
        node.want(instances);
        for name in names {
            node.prepared(&name, 1);
            node.started(&name, 1);
            node.answers(&name, Question::Health, true);
        }
        self
    }
}

fn told(counter: u64, instances: Vec<DesiredInstance>, road: Road) -> Box<NodeDesired> {
    Box::new(NodeDesired {
        removed: Default::default(),
        generation: Generation {
            epoch: Epoch(1),
            counter,
        },
        instances,
        foreign: Vec::new(),
        road,
        forget_volumes: Vec::new(),
    })
}

fn in_words(output: Output) -> Option<String> {
    Some(match output {
        Output::Prepare { instance, run } => format!("prepare {} {run}", instance.name),
        Output::Start { instance, run } => format!("start {} {run}", instance.name),
        Output::Probe {
            instance, question, ..
        } => format!("probe {} {question:?}", instance.name),
        Output::SetGate { instance, gate } => format!("gate {} {gate:?}", instance.name),
        Output::Terminate { instance } => format!("terminate {}", instance.name),
        Output::Kill { instance } => format!("kill {}", instance.name),
        Output::Remove { instance } => format!("remove {}", instance.name),
        Output::RenewLease { instance, .. } => format!("renew {}", instance.name),
        Output::WatchAnew => "watch anew".to_owned(),
        Output::Remember { .. } | Output::Report { .. } | Output::Tell { .. } => return None,
    })
}

const NOTHING: [&str; 0] = [];

#[test]
fn from_declared_to_serving() {
    let mut node = Node::new();
    assert_eq!(node.want(vec![desired("web-1")]), ["prepare web-1 1"]);
    assert_eq!(node.prepared("web-1", 1), ["start web-1 1"]);
    assert_eq!(node.started("web-1", 1), ["probe web-1 Health"]);
    assert_eq!(node.sees("web-1"), InstanceState::Starting);
    assert_eq!(
        node.answers("web-1", Question::Health, true),
        ["gate web-1 Open"]
    );
    let report = node.state.report(&id("web-1")).unwrap();
    assert_eq!(
        (report.state, report.ready, report.pid),
        (InstanceState::Running, true, Some(11))
    );
}

#[test]
fn off_the_road_before_off_the_machine() {
    let mut node = Node::serving(vec![desired("web-1")]);
    let leave = changed("web-1", |one| one.wanted = Wanted::Leave);
    assert_eq!(node.want(vec![leave]), ["gate web-1 Leaving"]);
    assert_eq!(node.sees("web-1"), InstanceState::Draining);
    assert_eq!(node.drained("web-1"), ["terminate web-1"]);
    node.exited("web-1", ExitHow::Code { code: 0 });
    assert_eq!(node.sees("web-1"), InstanceState::Stopped);
    assert_eq!(node.want(vec![]), ["remove web-1"]);
    assert!(node.state.report(&id("web-1")).is_none());
}

#[test]
fn what_does_not_drain_or_end_is_ended() {
    let mut node = Node::serving(vec![desired("web-1")]);
    assert_eq!(node.want(vec![]), ["gate web-1 Leaving"]);
    assert_eq!(node.after_ms(9_999), NOTHING);
    assert_eq!(node.after_ms(1), ["terminate web-1"]);
    assert_eq!(node.after_ms(9_999), NOTHING);
    assert_eq!(node.after_ms(1), ["kill web-1"]);
    assert_eq!(node.after_ms(1_000), ["kill web-1"]);
    let killed = node.exited("web-1", ExitHow::Signal { signal: 9 });
    assert_eq!(killed, ["gate web-1 Shut", "remove web-1"]);
}

#[test]
fn what_never_served_has_nothing_to_drain() {
    let mut node = Node::new();
    node.want(vec![desired("web-1")]);
    node.prepared("web-1", 1);
    assert_eq!(
        node.want(vec![]),
        NOTHING,
        "its process comes up in a moment"
    );
    assert_eq!(
        node.started("web-1", 1),
        ["terminate web-1", "gate web-1 Leaving"]
    );

    let mut node = Node::new();
    node.want(vec![desired("web-1")]);
    assert_eq!(node.want(vec![]), ["remove web-1"], "nothing runs yet");
}

#[test]
fn what_is_unknown_and_wanted_gone_is_reported_as_stopped() {
    let mut node = Node::new();
    let leave = changed("web-1", |one| one.wanted = Wanted::Leave);
    assert_eq!(node.want(vec![leave]), NOTHING);
    assert_eq!(node.sees("web-1"), InstanceState::Stopped);
}

#[test]
fn a_stopped_process_leaves_the_road_at_once() {
    let mut node = Node::serving(vec![desired("web-1")]);
    let suspend = |suspended| Input::Suspended {
        instance: id("web-1"),
        run: 1,
        suspended,
    };
    assert_eq!(node.step(suspend(true)), ["gate web-1 Shut"]);
    assert_eq!(
        node.after_ms(5_000),
        NOTHING,
        "a frozen process is not asked"
    );
    assert_eq!(
        node.step(suspend(false)),
        ["probe web-1 Health", "gate web-1 Held"]
    );
    assert_eq!(
        node.answers("web-1", Question::Health, true),
        ["gate web-1 Open"]
    );
}

#[test]
fn what_never_answered_is_told_where_it_should_listen() {
    let http = Ask::Http {
        path: "/up".to_owned(),
        host: None,
    };
    let exec = Ask::Exec {
        run: vec!["true".to_owned()],
    };
    let table = [
        (
            Ask::Connect,
            "it should listen at 127.0.0.1:4000: the port is in $PORT; `health: none` in the manifest is for a program that listens to nothing",
        ),
        (
            http,
            "GET /up at 127.0.0.1:4000 should be answered 200 to 399: the port is in $PORT",
        ),
        (exec, ""),
    ];
    for (ask, expected) in table {
        let mut node = Node::new();
        let one = changed("web-1", |one| one.spec.health.ask = ask.clone());
        node.want(vec![one]);
        node.prepared("web-1", 1);
        node.started("web-1", 1);
        node.after_ms(2_000);
        node.answers("web-1", Question::Health, false);
        assert_eq!(node.reason("web-1"), "its health probe fails: status 500");
        let report = node.state.report(&id("web-1")).unwrap();
        let detail = report.reason.as_ref().unwrap().detail.join("; ");
        assert_eq!(detail, expected);
    }
}

#[test]
fn what_never_answered_at_a_named_port_is_told_that_port() {
    let mut node = Node::new();
    let one = changed("web-1", |one| {
        one.spec.health.ask = Ask::Http {
            path: "/".to_owned(),
            host: None,
        };
        one.spec.health.port = Some("admin-ui".parse().unwrap());
    });
    node.want(vec![one]);
    node.prepared("web-1", 1);
    node.started("web-1", 1);
    node.after_ms(2_000);
    node.answers_so(
        "web-1",
        Question::Health,
        "127.0.0.1:4001",
        Err("connection refused"),
    );
    let report = node.state.report(&id("web-1")).unwrap();
    assert_eq!(
        report.reason.as_ref().unwrap().detail,
        ["GET / at 127.0.0.1:4001 should be answered 200 to 399: the port is in $PORT_ADMIN_UI"]
    );
}

#[test]
fn the_newest_reason_of_a_failing_probe_is_told_at_most_once_a_second() {
    let table = [
        // Milliseconds, what came, what is told then. Before two seconds nothing is: it is starting.
        (1_000, "refused", ""),
        (1_000, "refused", "refused"),
        (500, "answered 403", "refused"),
        (500, "answered 403", "answered 403"),
        (50, "answered 500", "answered 403"),
        (900, "answered 500", "answered 403"),
        (50, "answered 500", "answered 500"),
        (5_000, "answered 500", "answered 500"),
        (1_000, "no answer within 500 ms", "no answer within 500 ms"),
    ];
    for was_ready in [false, true] {
        let mut node = match was_ready {
            false => Node::new(),
            true => Node::serving(vec![desired("web-1")]),
        };
        if was_ready {
            // It answered, then fails twice: that is told at once.
            for _ in 0..2 {
                node.after_ms(1_000);
                node.answers_so("web-1", Question::Health, "x", Err("refused"));
            }
            assert_eq!(node.reason("web-1"), "its health probe fails: refused");
        } else {
            node.want(vec![desired("web-1")]);
            node.prepared("web-1", 1);
            node.started("web-1", 1);
        }
        let rows = if was_ready { &table[2..] } else { &table[..] };
        for (after, answer, told) in rows {
            node.after_ms(*after);
            node.answers_so("web-1", Question::Health, "x", Err(answer));
            let expected = match *told {
                "" => String::new(),
                told => format!("its health probe fails: {told}"),
            };
            assert_eq!(
                node.reason("web-1"),
                expected,
                "{was_ready} {after} {answer}"
            );
        }
        node.after_ms(1_000);
        node.answers("web-1", Question::Health, true);
        assert_eq!(node.reason("web-1"), "", "{was_ready}");
    }
}

#[test]
fn a_failing_health_probe_only_holds_the_gate() {
    let mut node = Node::serving(vec![desired("web-1")]);
    assert_eq!(node.after_ms(1_000), ["probe web-1 Health"]);
    assert_eq!(
        node.answers("web-1", Question::Health, false),
        NOTHING,
        "once is not enough"
    );
    assert_eq!(node.after_ms(1_000), ["probe web-1 Health"]);
    assert_eq!(
        node.answers("web-1", Question::Health, false),
        ["gate web-1 Held"]
    );
    assert_eq!(node.reason("web-1"), "its health probe fails: status 500");
    assert_eq!(node.sees("web-1"), InstanceState::Running);
    for _ in 0..100 {
        assert_eq!(node.after_ms(50), ["probe web-1 Health"]);
        assert_eq!(node.answers("web-1", Question::Health, false), NOTHING);
    }
    node.after_ms(50);
    assert_eq!(
        node.answers("web-1", Question::Health, true),
        ["gate web-1 Open"]
    );
    assert_eq!(node.reason("web-1"), "");
}

#[test]
fn a_failing_alive_probe_restarts() {
    let alive = Probe {
        port: None,
        ask: Ask::Http {
            path: "/alive".to_owned(),
            host: None,
        },
        ..Probe::default()
    };
    let mut node = Node::serving(vec![changed("web-1", |one| one.spec.alive = Some(alive))]);
    for failure in 0..2 {
        let asked = node.after_ms(1_000);
        assert!(
            asked.contains(&"probe web-1 Alive".to_owned()),
            "{failure}: {asked:?}"
        );
        node.answers("web-1", Question::Health, true);
        let done = node.answers("web-1", Question::Alive, false);
        match failure {
            0 => assert_eq!(done, NOTHING),
            _ => assert_eq!(done, ["terminate web-1", "gate web-1 Shut"]),
        }
    }
    node.exited("web-1", ExitHow::Signal { signal: 15 });
    assert_eq!(node.after_ms(100), ["prepare web-1 2"]);
}

#[test]
fn a_crash_backs_off_and_a_loop_is_named() {
    let mut node = Node::serving(vec![desired("web-1")]);
    let done = node.exited("web-1", ExitHow::Code { code: 1 });
    assert_eq!(done, ["gate web-1 Shut"]);
    for run in 2..=5 {
        assert_eq!(node.sees("web-1"), InstanceState::Failed);
        let next = node
            .state
            .instance(&id("web-1"))
            .unwrap()
            .next_wake()
            .unwrap();
        node.clock = next.0;
        assert_eq!(node.step(Input::Tick), [format!("prepare web-1 {run}")]);
        node.prepared("web-1", run);
        node.started("web-1", run);
        node.exited("web-1", ExitHow::Code { code: 1 });
    }
    let reason = node.reason("web-1");
    assert!(
        reason.starts_with("crash loop: exit code 1, 5 times in a row, next start in"),
        "{reason}"
    );
    let report = node.state.report(&id("web-1")).unwrap();
    assert_eq!(report.restarts, 4);
    assert_eq!(report.last_exit, Some(exit(ExitHow::Code { code: 1 })));
}

#[test]
fn what_cannot_start_says_so_and_is_tried_again() {
    let mut node = Node::new();
    node.want(vec![desired("web-1")]);
    node.step(Input::NotStarted {
        instance: id("web-1"),
        run: 1,
        error: "no executable `server` in the artifact".to_owned(),
    });
    let reason = node.reason("web-1");
    assert!(
        reason.starts_with("not started: no executable `server` in the artifact, next start in"),
        "{reason}"
    );
    assert_eq!(node.after_ms(100), ["prepare web-1 2"]);
}

#[test]
fn what_lacks_something_waits_and_has_not_failed() {
    let mut node = Node::new();
    node.want(vec![desired("web-1")]);
    let lacks = |run| Input::Lacks {
        instance: id("web-1"),
        run,
        reason: Reason::new("waits-for-secret", "waits for secret token"),
    };
    node.step(lacks(1));
    let now = node.now();
    assert_eq!(step(&mut node.state, lacks(1), now), [], "said once");
    assert_eq!(node.step(lacks(0)), [""; 0], "of no run");
    let report = node.state.report(&id("web-1")).unwrap();
    assert_eq!(report.state, InstanceState::Pending);
    assert_eq!(node.reason("web-1"), "waits for secret token");
    assert_eq!((report.restarts, &report.last_exit), (0, &None));
    assert!(node.state.instance(&id("web-1")).unwrap().prepares(1));

    // Nothing but who prepares it goes on, and is asked to, in case the order was lost.
    assert_eq!(node.after_ms(59_000), [""; 0]);
    assert_eq!(node.after_ms(61_000), ["prepare web-1 1"]);
    assert_eq!(node.prepared("web-1", 1), ["start web-1 1"]);
    let report = node.state.report(&id("web-1")).unwrap();
    assert_eq!(
        (report.state, &report.reason),
        (InstanceState::Starting, &None)
    );

    // One that is not wanted any more need not go on.
    node.want(vec![desired("web-1"), desired("api-1")]);
    node.want(vec![desired("web-1")]);
    assert!(node.state.instance(&id("api-1")).is_none());
}

#[test]
fn what_is_told_of_an_earlier_run_is_ignored() {
    let mut node = Node::serving(vec![desired("web-1")]);
    node.exited("web-1", ExitHow::Code { code: 1 });
    node.after_ms(100);
    node.prepared("web-1", 2);
    node.started("web-1", 2);
    let late = Input::Exited {
        instance: id("web-1"),
        run: 1,
        exit: exit(ExitHow::Code { code: 1 }),
        last_words: None,
    };
    assert_eq!(node.step(late), NOTHING);
    assert_eq!(node.sees("web-1"), InstanceState::Starting);
}

#[test]
fn an_older_desired_state_is_ignored() {
    let mut node = Node::serving(vec![desired("web-1")]);
    node.want(vec![desired("web-1"), desired("web-2")]);
    for counter in [1, 2] {
        let stale = Input::Desired {
            desired: told(counter, vec![], Road::default()),
            asked_at: None,
        };
        assert_eq!(node.step(stale), NOTHING, "generation {counter} is known");
    }
    assert_eq!(node.sees("web-1"), InstanceState::Running);
}

#[test]
fn a_new_epoch_of_the_same_name_replaces() {
    let mut node = Node::serving(vec![desired("web-1")]);
    let next = changed("web-1", |one| one.epoch = Epoch(2));
    assert_eq!(node.want(vec![next]), ["gate web-1 Leaving"]);
    node.drained("web-1");
    let done = node.exited("web-1", ExitHow::Code { code: 0 });
    assert_eq!(done, ["prepare web-1 2", "gate web-1 Shut"]);
    assert_eq!(node.state.report(&id("web-1")).unwrap().epoch, Epoch(2));
}

#[test]
fn the_first_start_waits_for_needs_but_not_for_ever() {
    let waits = || {
        changed("web-1", |one| {
            one.start_after = vec![ResourceName::new("db").unwrap()]
        })
    };
    let mut node = Node::new();
    assert_eq!(node.want(vec![waits()]), NOTHING);
    assert_eq!(
        (node.sees("web-1"), node.reason("web-1")),
        (InstanceState::Pending, "waits for db".to_owned())
    );
    assert_eq!(node.after_ms(29_999), NOTHING);
    assert_eq!(node.after_ms(1), ["prepare web-1 1"]);

    let mut node = Node::new();
    node.want(vec![waits(), desired("db-1")]);
    node.prepared("db-1", 1);
    node.started("db-1", 1);
    let ready = node.answers("db-1", Question::Health, true);
    assert_eq!(
        ready,
        ["gate db-1 Open", "prepare web-1 1"],
        "ready on this node is enough"
    );

    let mut node = Node::new();
    let road = Road {
        complete: false,
        destinations: vec![Destination {
            service: ResourceId::new(id("db-1").project, ResourceName::new("db").unwrap()),
            protocol: Protocol::Tcp,
            traffic: TrafficOptions::default(),
            endpoints: vec![],
            external: vec![model::traffic::Address::External {
                host: "db.example".to_owned(),
                port: 5432,
            }],
        }],
        ..Road::default()
    };
    let desired = told(1, vec![waits()], road);
    let done = node.step(Input::Desired {
        desired,
        asked_at: None,
    });
    assert_eq!(done, ["prepare web-1 1"], "the road says where it answers");
}

#[test]
fn a_lost_lease_stops_what_must_not_run_twice() {
    let stop = changed("db-1", |one| one.spec.on_partition = OnPartition::Stop);
    let mut node = Node::leased(vec![stop.clone(), desired("web-1")]);
    assert_eq!(node.renew(), ["renew db-1"]);
    node.clock += Duration::from_millis(2_499);
    assert!(!node.step(Input::Tick).contains(&"watch anew".to_owned()));
    node.clock += Duration::from_millis(1);
    let lost = node.step(Input::Tick);
    assert_eq!(lost[..2], ["watch anew", "gate db-1 Leaving"]);
    assert_eq!(node.sees("web-1"), InstanceState::Running, "`keep` goes on");
    // The shim ends it; the agent does at the same moment, for one that is stopped does nothing.
    assert!(
        node.after_ms(749)
            .iter()
            .all(|done| !done.starts_with("kill"))
    );
    assert!(node.after_ms(1).contains(&"kill db-1".to_owned()));
    assert_eq!(node.exited("db-1", ExitHow::LeaseLost), ["gate db-1 Shut"]);
    assert!(
        !node
            .after_ms(60_000)
            .iter()
            .any(|done| done.starts_with("prepare"))
    );

    // Heard again; but what it should run was asked for before the loss, and may run elsewhere by now.
    let renewed = node.renew();
    assert!(
        !renewed.iter().any(|done| done.contains("db-1")),
        "{renewed:?}"
    );
    let stale = Input::Desired {
        desired: told(2, vec![stop.clone(), desired("web-1")], Road::default()),
        asked_at: Some(Instant(Duration::from_secs(100))),
    };
    assert_eq!(node.step(stale), NOTHING);
    let fresh = Input::Desired {
        desired: told(2, vec![stop, desired("web-1")], Road::default()),
        asked_at: Some(Instant(node.clock)),
    };
    assert_eq!(node.step(fresh), ["prepare db-1 2"]);
    assert!(
        !node.reason("db-1").contains("next start"),
        "it is not a crash"
    );
}

#[test]
fn without_a_lease_nothing_that_must_not_run_twice_is_started() {
    let mut node = Node::new();
    let stop = changed("db-1", |one| one.spec.on_partition = OnPartition::Stop);
    let kept = Input::Desired {
        desired: told(1, vec![stop.clone(), desired("web-1")], Road::default()),
        asked_at: None,
    };
    assert_eq!(
        node.step(kept),
        ["prepare web-1 1"],
        "from disk, the servers gone"
    );
    assert_eq!(node.renew(), ["watch anew"]);
    let asked_before = Input::Desired {
        desired: told(1, vec![stop.clone(), desired("web-1")], Road::default()),
        asked_at: Some(Instant(node.clock - Duration::from_millis(1))),
    };
    assert_eq!(node.step(asked_before), NOTHING);
    let confirmed = Input::Desired {
        desired: told(1, vec![stop, desired("web-1")], Road::default()),
        asked_at: Some(Instant(node.clock)),
    };
    assert_eq!(node.step(confirmed), ["prepare db-1 1"]);
}

#[test]
fn what_was_asked_for_while_the_lease_was_lost_starts_nothing_either() {
    let stop = changed("db-1", |one| one.spec.on_partition = OnPartition::Stop);
    let mut node = Node::leased(vec![stop.clone()]);
    node.after_ms(3_000);
    node.exited("db-1", ExitHow::LeaseLost);
    // Answers arrive and heartbeats do not: after this, the servers may have decided that the node is lost.
    assert_eq!(node.want(vec![stop.clone()]), NOTHING);
    node.after_ms(10_000);
    assert_eq!(node.renew(), ["watch anew"]);
    assert_eq!(node.want(vec![stop]), ["prepare db-1 2"]);
}

#[test]
fn a_fenced_leader_renews_nothing() {
    let stop = changed("db-1", |one| one.spec.on_partition = OnPartition::Stop);
    let mut node = Node::leased(vec![stop]);
    let sent_at = Instant(node.clock);
    let answer = |epoch| Input::Renewed {
        epoch: Epoch(epoch),
        sent_at,
    };
    assert_eq!(node.step(answer(7)), ["renew db-1"]);
    assert_eq!(node.step(answer(6)), NOTHING);
    // A renewal counts from when it was sent, not from when its answer came.
    node.clock += TERMINATE_AFTER;
    assert_eq!(
        node.step(answer(7))[..2],
        ["watch anew", "gate db-1 Leaving"]
    );
}

#[test]
fn an_agent_that_slept_does_not_believe_what_it_knew() {
    let stop = changed("db-1", |one| one.spec.on_partition = OnPartition::Stop);
    let mut node = Node::leased(vec![stop]);
    node.clock += Duration::from_secs(10);
    // The first thing it hears is that the shim stopped it; a start would be wrong.
    let heard = node.exited("db-1", ExitHow::LeaseLost);
    assert_eq!(heard, ["watch anew", "gate db-1 Leaving", "gate db-1 Shut"]);
    assert!(!node.renew().iter().any(|done| done.starts_with("prepare")));
}

#[test]
fn what_was_prepared_before_the_lease_was_lost_is_not_started_after() {
    let stop = changed("db-1", |one| one.spec.on_partition = OnPartition::Stop);
    let mut node = Node::new();
    node.renew();
    assert_eq!(node.want(vec![stop.clone()]), ["prepare db-1 1"]);
    node.clock += Duration::from_secs(10);
    assert_eq!(node.prepared("db-1", 1), ["watch anew"]);
    node.renew();
    assert_eq!(node.want(vec![stop]), ["prepare db-1 2"]);
    assert_eq!(node.prepared("db-1", 1), NOTHING);
    assert_eq!(node.prepared("db-1", 2), ["start db-1 2"]);
}

#[test]
fn what_an_earlier_agent_left_is_adopted() {
    let running = || Adopted::Running {
        pid: 7,
        address: "127.0.0.1:4000".to_owned(),
        started_at: None,
        gate: Gate::Open,
        suspended: false,
    };
    let died = || Adopted::Exited(exit(ExitHow::Code { code: 3 }));
    let job = |one: &mut DesiredInstance| one.spec.completion = Completion::OnSuccess;
    let succeeded = History {
        starts: 1,
        last_exit: Some(exit(ExitHow::Code { code: 0 })),
        ..History::default()
    };
    let table = [
        (
            desired("a-1"),
            History::default(),
            running(),
            InstanceState::Running,
        ),
        (
            desired("a-1"),
            History::default(),
            died(),
            InstanceState::Failed,
        ),
        (
            desired("a-1"),
            History::default(),
            Adopted::Absent,
            InstanceState::Starting,
        ),
        (
            changed("a-1", job),
            succeeded,
            Adopted::Absent,
            InstanceState::Finished,
        ),
    ];
    for (desired, history, process, expect) in table {
        let mut node = Node::new();
        let said = format!("{process:?}");
        let done = node.step(Input::Adopted {
            desired: Box::new(desired),
            history,
            process,
        });
        assert_eq!(node.sees("a-1"), expect, "{said}");
        assert!(
            !done.iter().any(|done| done.starts_with("gate")),
            "no gate moves: {done:?}"
        );
    }
}

fn runs_once(one: &mut DesiredInstance) {
    one.spec.before_deploy = vec!["./migrate".to_owned()];
    one.spec = one.spec.before_deploy_work();
    one.purpose = model::compute::Purpose::BeforeDeploy;
}

impl Node {
    fn running_once() -> Self {
        let mut node = Self::new();
        node.want(vec![changed("a-1", runs_once)]);
        node.prepared("a-1", 1);
        node.started("a-1", 1);
        node
    }

    fn exits(&mut self, how: ExitHow) -> Vec<String> {
        let run = self.state.instance(&id("a-1")).unwrap().run();
        self.step(Input::Exited {
            instance: id("a-1"),
            run,
            exit: exit(how),
            last_words: Some("no such table".to_owned()),
        })
    }
}

#[test]
fn what_runs_once_is_asked_nothing_and_not_started_again() {
    let limit = model::units::Bytes::mebibytes(64);
    let table = [
        (ExitHow::Code { code: 0 }, InstanceState::Finished, None),
        (
            ExitHow::Code { code: 1 },
            InstanceState::Failed,
            Some("exit code 1"),
        ),
        (
            ExitHow::Signal { signal: 9 },
            InstanceState::Failed,
            Some("signal 9"),
        ),
        (
            ExitHow::OutOfMemory { limit },
            InstanceState::Failed,
            Some("out of memory"),
        ),
    ];
    for (how, state, says) in table {
        let mut node = Node::running_once();
        // No probe, and no gate: nobody calls it.
        assert_eq!(node.after_ms(60_000), NOTHING, "{how:?}");
        assert_eq!(node.sees("a-1"), InstanceState::Running);
        node.exits(how.clone());
        assert_eq!(node.after_ms(600_000), NOTHING, "{how:?}");
        assert_eq!(node.sees("a-1"), state, "{how:?}");
        let report = node.state.report(&id("a-1")).unwrap();
        let message = report.reason.as_ref().map(|reason| reason.message.clone());
        assert!(
            says.is_none_or(|says| message.unwrap().contains(says)),
            "{how:?}"
        );
        // Told to leave it is gone as anything that ended.
        let leave = |one: &mut DesiredInstance| {
            runs_once(one);
            one.wanted = Wanted::Leave;
        };
        node.want(vec![changed("a-1", leave)]);
        let gone = [InstanceState::Stopped, InstanceState::Finished];
        assert!(gone.contains(&node.sees("a-1")), "{how:?}");
    }
}

#[test]
fn what_runs_once_is_begun_again_where_its_end_is_not_known() {
    for how in [
        ExitHow::Unknown,
        ExitHow::NotStarted {
            error: "no such file".to_owned(),
        },
    ] {
        let mut node = Node::running_once();
        node.exits(how);
        assert_eq!(node.after_ms(1_000), ["prepare a-1 2"]);
    }
}

#[test]
fn a_new_agent_knows_what_ran_once() {
    let ended = |code| History {
        starts: 1,
        last_exit: Some(exit(ExitHow::Code { code })),
        ..History::default()
    };
    let interrupted = |code| History {
        interrupted: true,
        ..ended(code)
    };
    let exited = |code| Adopted::Exited(exit(ExitHow::Code { code }));
    let table = [
        (History::default(), exited(0), InstanceState::Finished),
        (History::default(), exited(1), InstanceState::Failed),
        (ended(0), Adopted::Absent, InstanceState::Finished),
        (ended(1), Adopted::Absent, InstanceState::Failed),
        // Its node was stopped with all that ran there: it has its run yet.
        (interrupted(0), Adopted::Absent, InstanceState::Starting),
        (interrupted(143), Adopted::Absent, InstanceState::Starting),
    ];
    for (history, process, expect) in table {
        let mut node = Node::new();
        let said = format!("{history:?} {process:?}");
        node.step(Input::Adopted {
            desired: Box::new(changed("a-1", runs_once)),
            history,
            process,
        });
        node.after_ms(600_000);
        assert_eq!(node.sees("a-1"), expect, "{said}");
    }
}

#[test]
fn a_node_that_stops_interrupts_what_runs_once() {
    let mut node = Node::running_once();
    node.step(Input::StopAll);
    node.exits(ExitHow::Code { code: 0 });
    assert!(
        node.state
            .instance(&id("a-1"))
            .unwrap()
            .history()
            .interrupted
    );
    assert_eq!(node.sees("a-1"), InstanceState::Stopped);
}

#[test]
fn a_new_agent_starts_nothing_before_the_servers_had_a_chance() {
    let new_agent = || {
        let mut node = Node::new();
        node.state
            .wait_for_servers(Instant(node.clock).after(Duration::from_millis(500)));
        let adopted = node.step(Input::Adopted {
            desired: Box::new(desired("a-1")),
            history: History::default(),
            process: Adopted::Absent,
        });
        assert_eq!(adopted, NOTHING);
        let kept = Input::Desired {
            desired: told(1, vec![desired("a-1")], Road::default()),
            asked_at: None,
        };
        assert_eq!(node.step(kept), NOTHING);
        node
    };
    let mut node = new_agent();
    assert_eq!(node.after_ms(499), NOTHING);
    assert_eq!(
        node.after_ms(1),
        ["prepare a-1 2"],
        "they are silent: it goes on from what is known"
    );
    let mut node = new_agent();
    node.counter = 1;
    assert_eq!(
        node.want(vec![desired("a-1")]),
        ["prepare a-1 2"],
        "they confirm"
    );
    let mut node = new_agent();
    node.counter = 1;
    assert_eq!(
        node.want(vec![]),
        ["remove a-1"],
        "it belongs elsewhere by now"
    );
}

#[test]
fn an_adopted_instance_that_nobody_wants_leaves() {
    let mut node = Node::new();
    node.step(Input::Adopted {
        desired: Box::new(desired("a-1")),
        history: History::default(),
        process: Adopted::Running {
            pid: 7,
            address: "127.0.0.1:4000".to_owned(),
            started_at: None,
            gate: Gate::Open,
            suspended: false,
        },
    });
    assert_eq!(
        node.after_ms(60_000),
        ["probe a-1 Health"],
        "it stays until the server says so"
    );
    assert_eq!(node.want(vec![]), ["gate a-1 Leaving"]);
}

impl Node {
    /// Of an instance whose gate stood so.
    fn adopting(gate: Gate) -> (Self, Vec<String>) {
        let mut node = Self::new();
        let adopted = node.step(Input::Adopted {
            desired: Box::new(desired("a-1")),
            history: History::default(),
            process: Adopted::Running {
                pid: 7,
                address: "127.0.0.1:4000".to_owned(),
                started_at: None,
                gate,
                suspended: false,
            },
        });
        (node, adopted)
    }
}

/// Its proxy goes on, with requests in flight behind gates that let them.
#[test]
fn a_new_agent_cuts_nothing_that_is_in_flight() {
    let leave = || changed("a-1", |one| one.wanted = Wanted::Leave);
    let table = [
        (Gate::Open, true, &["gate a-1 Leaving"][..]),
        (Gate::Held, true, &["gate a-1 Leaving"]),
        (Gate::Leaving, false, &[]),
        // It was never sent a request.
        (Gate::Shut, false, &["terminate a-1", "gate a-1 Leaving"]),
    ];
    for (gate, was_ready, leaves) in table {
        let (mut node, adopted) = Node::adopting(gate);
        assert_eq!(adopted, ["probe a-1 Health"], "{gate:?}: no gate moves");
        assert_eq!(
            node.answers("a-1", Question::Health, false),
            NOTHING,
            "{gate:?}"
        );
        let report = node.state.report(&id("a-1")).unwrap();
        assert_eq!(report.was_ready, was_ready, "{gate:?}");
        assert_eq!(node.want(vec![leave()]), leaves, "{gate:?}");
        if gate != Gate::Shut {
            assert_eq!(node.drained("a-1"), ["terminate a-1"], "{gate:?}");
        }
    }
}

#[test]
fn what_was_drained_before_it_is_told_to_leave_does_not_wait_for_more() {
    let (mut node, _) = Node::adopting(Gate::Leaving);
    assert_eq!(
        node.drained("a-1"),
        NOTHING,
        "the servers have not said so yet"
    );
    assert_eq!(node.want(vec![]), ["terminate a-1"]);
    // Once it was open, somebody may be inside.
    let (mut node, _) = Node::adopting(Gate::Leaving);
    node.drained("a-1");
    let opened = node.answers("a-1", Question::Health, true);
    assert_eq!(opened, ["gate a-1 Open"]);
    assert_eq!(node.want(vec![]), ["gate a-1 Leaving"]);
}

#[test]
fn a_question_that_could_not_be_asked_says_nothing() {
    let alive = changed("web-1", |one| one.spec.alive = Some(Probe::default()));
    let mut node = Node::serving(vec![alive]);
    let mut asked = [0, 0];
    for _ in 0..600 {
        for said in node.after_ms(100) {
            let question = match said.as_str() {
                "probe web-1 Health" => Question::Health,
                "probe web-1 Alive" => Question::Alive,
                other => panic!("{other}"),
            };
            asked[question as usize] += 1;
            let (instance, run) = (id("web-1"), 1);
            let said = node.step(Input::NotAsked {
                instance,
                run,
                question,
                why: "too many".to_owned(),
            });
            assert_eq!(said, NOTHING);
        }
    }
    let (fewest, most) = (asked[0].min(asked[1]), asked[0].max(asked[1]));
    assert!(fewest > 10 && most <= 600, "at the usual pace: {asked:?}");
    assert!(node.state.instance(&id("web-1")).unwrap().is_ready());
    // Nor does it make one ready, or forget what failed before.
    let mut node = Node::new();
    node.want(vec![desired("web-1")]);
    node.prepared("web-1", 1);
    node.started("web-1", 1);
    let (instance, run, question) = (id("web-1"), 1, Question::Health);
    let not_asked = Input::NotAsked {
        instance,
        run,
        question,
        why: "no descriptor".to_owned(),
    };
    // Said once, however often it is tried; and for as long as it is so.
    let mut told = 0;
    for _ in 0..100 {
        node.clock += Duration::from_millis(50);
        let now = node.now();
        let outputs = step(&mut node.state, not_asked.clone(), now);
        let is_it = |output: &&Output| matches!(output, Output::Tell { reason, .. } if reason.code == "not-asked");
        told += outputs.iter().filter(is_it).count();
    }
    assert_eq!(told, 1);
    assert_eq!(
        node.reason("web-1"),
        "the node can't ask how it does: no descriptor"
    );
    assert!(!node.state.instance(&id("web-1")).unwrap().is_ready());
    node.answers("web-1", Question::Health, false);
    let reason = node.state.report(&id("web-1")).unwrap().reason.clone();
    assert!(reason.is_none_or(|reason| reason.code == "not-ready"));
}

impl Node {
    fn finds(&mut self, name: &str, process: Adopted) -> Vec<String> {
        self.finds_of(name, None, process)
    }

    fn finds_of(&mut self, name: &str, whose: Option<Whose>, process: Adopted) -> Vec<String> {
        self.step(Input::Found {
            instance: id(name),
            whose,
            process,
        })
    }

    fn never_started(&self, name: &str) -> bool {
        self.state.report(&id(name)).unwrap().never_started
    }
}

fn with_volumes(name: &str, wanted: Wanted) -> DesiredInstance {
    changed(name, |one| {
        one.slot = Some(0);
        one.wanted = wanted;
    })
}

/// Its record is torn, and its volumes may hold anything: they are deleted by themselves only where it never ran.
#[test]
fn an_instance_whose_record_is_lost_is_not_one_that_never_ran() {
    let mut node = Node::new();
    node.finds("db-1", Adopted::Absent);
    node.finds("db-2", Adopted::Exited(exit(ExitHow::Code { code: 0 })));
    assert!(node.state.is_still());
    assert_eq!(
        node.want(vec![with_volumes("db-1", Wanted::Run)]),
        ["prepare db-1 2"]
    );
    assert!(!node.never_started("db-1"));
    let mut node = Node::new();
    node.finds("db-1", Adopted::Absent);
    node.want(vec![with_volumes("db-1", Wanted::Leave)]);
    assert_eq!(node.sees("db-1"), InstanceState::Stopped);
    assert!(!node.never_started("db-1"));
    // One that nothing was found of has not.
    node.want(vec![with_volumes("db-3", Wanted::Leave)]);
    assert!(node.never_started("db-3"));
    // What runs once, and is known to have ended well, is not done twice.
    let mut node = Node::new();
    node.finds("a-1", Adopted::Exited(exit(ExitHow::Code { code: 0 })));
    assert_eq!(node.want(vec![changed("a-1", runs_once)]), NOTHING);
    assert_eq!(node.sees("a-1"), InstanceState::Finished);
}

#[test]
fn what_lives_without_a_record_is_ended_before_it_counts_as_that() {
    let mut node = Node::new();
    node.finds("db-1", Adopted::Unknown);
    assert!(!node.state.is_still());
    let leave = with_volumes("db-1", Wanted::Leave);
    assert_eq!(node.want(vec![leave]), ["kill db-1"]);
    assert_eq!(node.sees("db-1"), InstanceState::Draining);
    node.exited("db-1", ExitHow::Signal { signal: 9 });
    assert_eq!(node.sees("db-1"), InstanceState::Stopped);
    assert!(!node.never_started("db-1"));
}

#[test]
fn volumes_of_what_lives_without_a_record_have_no_second_writer() {
    let ends = [
        Input::Gone {
            instance: id("db-1"),
        },
        Input::Exited {
            instance: id("db-1"),
            run: 1,
            exit: exit(ExitHow::Unknown),
            last_words: None,
        },
    ];
    for end in ends {
        let mut node = Node::new();
        node.finds("db-1", Adopted::Unknown);
        node.finds("other-1", Adopted::Unknown);
        let both = vec![with_volumes("db-2", Wanted::Run), desired("db-3")];
        assert_eq!(node.want(both), ["prepare db-3 1"], "without volumes");
        assert!(node.reason("db-2").contains("waits for db-1"));
        assert_eq!(node.step(end), ["prepare db-2 1"]);
    }
    // A node that is to run nothing ends them as well.
    let mut node = Node::new();
    node.finds("db-1", Adopted::Unknown);
    assert_eq!(node.step(Input::StopAll), ["kill db-1"]);
    assert!(!node.state.is_still());
    node.step(Input::Gone {
        instance: id("db-1"),
    });
    assert!(node.state.is_still());
}

/// Of a later version, say: what every version says of it is enough to leave it alone, and to end it as any other.
#[test]
fn what_lives_and_nobody_can_say_as_what_goes_on_until_it_is_known() {
    let of_slot = |slot| {
        let service = ResourceName::new("db").unwrap();
        Some(Whose { service, slot })
    };
    let in_slot = |name: &str, slot| DesiredInstance {
        slot: Some(slot),
        ..with_volumes(name, Wanted::Run)
    };
    let mut node = Node::new();
    node.finds_of("db-1", of_slot(Some(0)), Adopted::Living);
    assert!(!node.state.is_still());
    let renewals = node.renew();
    assert!(
        renewals.contains(&"renew db-1".to_owned()),
        "it may need it"
    );
    // Its own volumes have no second writer, those of others do not wait for it.
    let siblings = vec![in_slot("db-2", 0), in_slot("db-3", 1)];
    assert_eq!(node.want(siblings.clone()), ["prepare db-3 1"]);
    assert!(node.reason("db-2").contains("waits for db-1"));
    // As another release: it is asked to end first.
    let mut all = siblings;
    all.push(in_slot("db-1", 0));
    assert_eq!(node.want(all), ["terminate db-1"]);
    assert_eq!(node.sees("db-1"), InstanceState::Draining);
    node.exited("db-1", ExitHow::Code { code: 0 });
    assert!(!node.never_started("db-1"));

    // Wanted no more, or with all that runs here.
    let mut node = Node::new();
    node.finds_of("db-1", of_slot(Some(0)), Adopted::Living);
    node.finds("torn-1", Adopted::Unknown);
    let ended = node.step(Input::StopAll);
    assert_eq!(ended, ["terminate db-1", "kill torn-1"]);
    for name in ["db-1", "torn-1"] {
        assert!(node.state.is_living_stray(&id(name)) && !node.state.is_still());
        node.step(Input::Exited {
            instance: id(name),
            run: 1,
            exit: exit(ExitHow::Code { code: 0 }),
            last_words: None,
        });
    }
    assert!(node.state.is_still());

    // In words that are known: it is that instance.
    let mut node = Node::new();
    node.finds_of("db-1", of_slot(Some(0)), Adopted::Living);
    node.step(Input::Adopted {
        desired: Box::new(in_slot("db-1", 0)),
        history: History::default(),
        process: Adopted::Running {
            pid: 7,
            address: "127.0.0.1:4000".to_owned(),
            started_at: None,
            gate: Gate::Open,
            suspended: false,
        },
    });
    assert!(!node.state.is_living_stray(&id("db-1")));
    node.want(vec![in_slot("db-1", 0)]);
    assert_eq!(node.sees("db-1"), InstanceState::Running);
}

#[test]
fn questions_come_at_their_pace_and_one_at_a_time() {
    let mut node = Node::new();
    let slow = changed("web-1", |one| {
        one.spec.health.times.every = Span::seconds(5)
    });
    node.want(vec![slow]);
    node.prepared("web-1", 1);
    assert_eq!(node.started("web-1", 1), ["probe web-1 Health"]);
    assert_eq!(node.after_ms(500), NOTHING, "the last answer is still out");
    assert_eq!(
        node.answers("web-1", Question::Health, false),
        ["probe web-1 Health"]
    );
    node.answers("web-1", Question::Health, false);
    assert_eq!(node.after_ms(49), NOTHING);
    assert_eq!(node.after_ms(1), ["probe web-1 Health"]);
    node.answers("web-1", Question::Health, true);
    assert_eq!(node.after_ms(4_999), NOTHING);
    assert_eq!(node.after_ms(1), ["probe web-1 Health"]);
    assert_eq!(
        node.after_ms(13_000),
        ["probe web-1 Health"],
        "a lost answer is asked for anew"
    );
}

#[test]
fn work_that_ends_is_finished_and_work_without_a_port_is_ready() {
    let job = changed("job-1", |one| {
        one.spec.completion = Completion::OnSuccess;
        one.spec.health.ask = Ask::None;
    });
    let mut node = Node::new();
    node.want(vec![job]);
    node.prepared("job-1", 1);
    assert_eq!(node.started("job-1", 1), NOTHING);
    assert_eq!(node.after_ms(2_000), ["gate job-1 Open"]);
    node.exited("job-1", ExitHow::Code { code: 0 });
    assert_eq!(node.sees("job-1"), InstanceState::Finished);
    assert_eq!(node.after_ms(3_600_000), NOTHING);
}

/// With `health: none` only time tells: the volumes of what ends at once must not be bound to where it did.
#[test]
fn work_without_a_probe_is_ready_once_it_has_run_for_a_while() {
    let worker = changed("worker-1", |one| one.spec.health.ask = Ask::None);
    let said = |node: &Node| {
        let report = node.state.report(&id("worker-1")).unwrap();
        (report.state, report.ready, report.was_ready)
    };
    let mut node = Node::new();
    node.want(vec![worker.clone()]);
    for run in 1..=3 {
        node.prepared("worker-1", run);
        assert_eq!(node.started("worker-1", run), NOTHING);
        let due = Instant(node.clock).after(Duration::from_secs(2));
        assert_eq!(node.state.next_wake(), Some(due));
        assert_eq!(node.after_ms(1_999), NOTHING);
        assert_eq!(said(&node), (InstanceState::Starting, false, false));
        node.exited("worker-1", ExitHow::Code { code: 1 });
        assert_eq!(said(&node), (InstanceState::Failed, false, false));
        node.after_ms(300_000);
    }
    node.prepared("worker-1", 4);
    node.started("worker-1", 4);
    assert_eq!(node.after_ms(2_000), ["gate worker-1 Open"]);
    assert_eq!(said(&node), (InstanceState::Running, true, true));
    assert_eq!(node.state.next_wake(), None, "nothing is asked of it");
    node.exited("worker-1", ExitHow::Code { code: 1 });
    let history = node.state.instance(&id("worker-1")).unwrap().history();
    assert!(history.was_ready, "nobody may have heard the moment");
}

/// Of a server of a later version: one instance costs no other, and is neither ended nor begun by who can't read what is said of it.
#[test]
fn what_is_named_in_words_of_a_later_version_stays_as_it_is() {
    let foreign = |names: &[&str]| -> Vec<Foreign> {
        let named = |name: &&str| Foreign {
            instance: id(name),
            said: Default::default(),
        };
        names.iter().map(named).collect()
    };
    let want = |node: &mut Node, known: Vec<DesiredInstance>, names: &[&str]| {
        node.counter += 1;
        let mut desired = told(node.counter, known, Road::default());
        desired.foreign = foreign(names);
        let asked_at = Some(Instant(node.clock));
        node.step(Input::Desired { desired, asked_at })
    };
    let mut node = Node::serving(vec![desired("a-1"), desired("b-1")]);
    let done = want(&mut node, vec![], &["a-1", "new-1"]);
    assert_eq!(done, ["gate b-1 Leaving"]);
    assert!(node.state.is_foreign(&id("a-1")) && node.state.is_foreign(&id("new-1")));
    assert!(node.state.instance(&id("new-1")).is_none());
    assert_eq!(node.sees("a-1"), InstanceState::Running);
    // In words that are known again, and in none.
    assert_eq!(want(&mut node, vec![desired("a-1")], &[]), NOTHING);
    assert!(!node.state.is_foreign(&id("a-1")));
    assert_eq!(want(&mut node, vec![], &[]), ["gate a-1 Leaving"]);
}

#[test]
fn stopping_the_node_drains_everything() {
    let mut node = Node::serving(vec![desired("a-1"), desired("b-1")]);
    let done = node.step(Input::StopAll);
    assert_eq!(done, ["gate a-1 Leaving", "gate b-1 Leaving"]);
    node.drained("a-1");
    node.exited("a-1", ExitHow::Code { code: 0 });
    assert!(!node.state.is_still());
    node.drained("b-1");
    node.exited("b-1", ExitHow::Code { code: 0 });
    assert!(node.state.is_still());
    assert_eq!(node.after_ms(60_000), NOTHING, "nothing starts again");
}

#[test]
fn it_wakes_when_something_is_due_and_not_before() {
    let mut node = Node::new();
    assert_eq!(node.state.next_wake(), None);
    node.want(vec![desired("web-1")]);
    assert_eq!(
        node.state.next_wake(),
        Some(Instant(node.clock).after(Duration::from_secs(60))),
        "an order may be lost"
    );
    node.prepared("web-1", 1);
    node.started("web-1", 1);
    node.answers("web-1", Question::Health, true);
    let wake = Instant(node.clock).after(Duration::from_secs(1));
    assert_eq!(node.state.next_wake(), Some(wake));
}

#[test]
fn the_gate_and_the_report_agree() {
    let node = Node::serving(vec![desired("web-1")]);
    let instance = node.state.instance(&id("web-1")).unwrap();
    assert_eq!(instance.gate(), Gate::Open);
    assert!(instance.report().ready);
    assert_eq!(instance.address(), Some("127.0.0.1:4000"));
}

/// A member whose volumes have one home.
fn homed(name: &str) -> DesiredInstance {
    changed(name, |one| {
        one.spec.on_partition = OnPartition::Stop;
        one.slot = Some(0);
        let volume = model::state::Volume {
            size: model::units::Bytes::mebibytes(1),
        };
        one.spec
            .volumes
            .insert(ResourceName::new("data").unwrap(), volume);
    })
}

#[test]
fn a_member_whose_volumes_have_one_home_needs_no_lease() {
    let mut node = Node::serving(vec![homed("db-1")]);
    node.after_ms(60_000);
    assert_eq!(node.sees("db-1"), InstanceState::Running);
    let primary = DesiredInstance {
        role: Role::Primary,
        ..homed("db-1")
    };
    assert!(
        primary.needs_lease(),
        "whose role another set of volumes could take"
    );
}

#[test]
fn volumes_are_handed_on_when_who_held_them_has_ended() {
    let mut node = Node::serving(vec![homed("db-1")]);
    let moved = node.want(vec![homed("db-2")]);
    assert!(!moved.contains(&"prepare db-2 1".to_owned()), "{moved:?}");
    assert_eq!(node.reason("db-2"), "waits for db-1 to leave its volumes");
    node.drained("db-1");
    node.exited("db-1", ExitHow::Code { code: 0 });
    assert!(node.after_ms(1_000).contains(&"prepare db-2 1".to_owned()));
}

#[test]
fn an_end_is_told_with_its_last_words_and_a_wanted_one_is_no_restart() {
    let mut node = Node::serving(vec![desired("web-1")]);
    node.exited("web-1", ExitHow::Code { code: 3 });
    let report = node.state.report(&id("web-1")).unwrap();
    let reason = report.reason.clone().unwrap();
    assert_eq!(reason.detail, ["its last words: no such luck"]);
    node.after_ms(1_000);
    node.prepared("web-1", 2);
    node.started("web-1", 2);
    let restarts = |node: &Node| node.state.report(&id("web-1")).unwrap().restarts;
    assert_eq!(restarts(&node), 1);
    node.step(Input::StopAll);
    node.drained("web-1");
    node.exited("web-1", ExitHow::Signal { signal: 15 });
    assert_eq!(restarts(&node), 0, "the end was wanted");
}

#[test]
fn an_order_that_was_lost_is_given_again() {
    let mut node = Node::new();
    assert_eq!(node.want(vec![desired("web-1")]), ["prepare web-1 1"]);
    assert_eq!(node.after_ms(59_999), NOTHING);
    assert_eq!(node.after_ms(1), ["prepare web-1 1"]);
    assert_eq!(node.after_ms(60_000), ["prepare web-1 1"]);
    assert_eq!(node.prepared("web-1", 1), ["start web-1 1"]);
    assert_eq!(node.after_ms(60_000), ["start web-1 1"]);
    node.started("web-1", 1);
    let done = node.after_ms(60_000);
    assert!(
        !done.iter().any(|done| done.starts_with("start")),
        "{done:?}"
    );
}

/// Only a copy is what others wait for: no command of a person, and nothing that comes before a deploy.
#[test]
fn what_runs_once_is_no_copy_that_others_wait_for() {
    use model::compute::Purpose;
    for purpose in [Purpose::Run, Purpose::BeforeDeploy] {
        let mut node = Node::new();
        let of_service = |one: &mut DesiredInstance| {
            one.service = ResourceName::new("db").unwrap();
            one.purpose = purpose;
            // Nothing is asked of it: it is ready as soon as it runs.
            one.spec = one.spec.apart_from_copies(vec!["./migrate".to_owned()]);
        };
        let waits = changed("b-1", |one| {
            one.start_after = vec![ResourceName::new("db").unwrap()];
        });
        node.want(vec![changed("a-1", of_service), waits.clone()]);
        node.prepared("a-1", 1);
        node.started("a-1", 1);
        assert_eq!(node.sees("a-1"), InstanceState::Running, "{purpose:?}");
        assert_eq!(node.sees("b-1"), InstanceState::Pending, "{purpose:?}");
        assert_eq!(node.after_ms(1_000), NOTHING, "{purpose:?}");
    }
}

#[test]
fn what_runs_once_says_how_long_it_waited_for_its_needs() {
    let mut node = Node::new();
    let waits = changed("a-1", |one| {
        runs_once(one);
        one.start_after = vec![ResourceName::new("db").unwrap()];
    });
    node.want(vec![waits]);
    node.after_ms(299_999);
    let instance = id("a-1");
    let at = Now {
        instant: Instant(node.clock + Duration::from_millis(1)),
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    let told = step(&mut node.state, Input::Tick, at);
    let says = |output: &Output| {
        matches!(output, Output::Tell { instance: Some(about), reason, .. }
            if *about == instance && reason.message.contains("waited 300 s"))
    };
    assert!(told.iter().any(says), "{told:?}");
}

impl Node {
    fn unkillable(&mut self, name: &str) -> Vec<String> {
        let run = self.state.instance(&id(name)).unwrap().run();
        self.step(Input::Unkillable {
            instance: id(name),
            run,
            processes: vec!["pid 7 (sleep): in a frozen cgroup".to_owned()],
        })
    }
}

#[test]
fn what_can_not_be_killed_is_named_and_keeps_its_place() {
    let stored = |name: &str| {
        changed(name, |one| {
            one.slot = Some(0);
            one.service = ResourceName::new("db").unwrap();
        })
    };
    // While it runs, its main process having ended; while it is being stopped; while it is being started.
    for phase in ["runs", "leaves", "starts"] {
        let mut node = Node::new();
        node.want(vec![stored("db-1")]);
        node.prepared("db-1", 1);
        if phase != "starts" {
            node.started("db-1", 1);
            node.answers("db-1", Question::Health, true);
        }
        let both = |wanted| {
            let mut old = stored("db-1");
            old.wanted = wanted;
            vec![old, stored("db-2")]
        };
        node.want(both(match phase {
            "leaves" => Wanted::Leave,
            _ => Wanted::Run,
        }));
        node.unkillable("db-1");
        let reason = node.reason("db-1");
        assert!(reason.contains("pid 7 (sleep)"), "{phase}: {reason}");
        let later = node.after_ms(59_000);
        assert!(
            !later.iter().any(|done| done.starts_with("prepare db-2")),
            "{phase}: {later:?}"
        );
        assert_eq!(
            node.reason("db-1"),
            reason,
            "{phase}: named as long as it is there"
        );
        // Not even forgotten by the servers is it out of sight.
        node.want(vec![stored("db-2")]);
        assert_eq!(node.reason("db-1"), reason, "{phase}");
        node.exited("db-1", ExitHow::Signal { signal: 9 });
        assert!(node.state.instance(&id("db-1")).is_none(), "{phase}");
        assert!(
            node.after_ms(1_000).contains(&"prepare db-2 1".to_owned())
                || node
                    .state
                    .instance(&id("db-2"))
                    .is_some_and(|one| one.prepares(1)),
            "{phase}"
        );
    }
}

#[test]
fn of_what_nobody_knows_whether_it_lives_nothing_is_started_before_it_is_ended() {
    let mut node = Node::new();
    let adopted = node.step(Input::Adopted {
        desired: Box::new(desired("a-1")),
        history: History::default(),
        process: Adopted::Unknown,
    });
    assert_eq!(adopted, ["kill a-1"]);
    assert_eq!(node.want(vec![desired("a-1")]), NOTHING);
    assert!(node.state.instance(&id("a-1")).unwrap().has_process());
    assert_eq!(node.after_ms(1_000), ["kill a-1"]);
    node.exited("a-1", ExitHow::Unknown);
    assert!(node.after_ms(5_000).contains(&"prepare a-1 2".to_owned()));
}

#[test]
fn answers_that_are_lost_count_as_failures() {
    let alive = changed("web-1", |one| {
        one.spec.health.ask = Ask::None;
        one.spec.alive = Some(model::compute::Probe::default());
    });
    let table = [
        (desired("web-1"), "gate web-1 Held"),
        (alive, "terminate web-1"),
    ];
    for (desired, expected) in table {
        let mut node = Node::serving(vec![desired]);
        let mut seen = Vec::new();
        for _ in 0..60 {
            seen.extend(node.after_ms(1_000));
        }
        assert!(seen.contains(&expected.to_owned()), "{expected}: {seen:?}");
    }
}

/// Its home rests on it, and nobody may have heard the moment: it is said ever after, by each agent.
#[test]
fn that_it_ever_ran_and_was_ready_is_never_forgotten() {
    let said = |node: &Node| {
        let report = node.state.report(&id("web-1")).unwrap();
        (report.never_started, report.was_ready)
    };
    let mut node = Node::new();
    node.want(vec![desired("web-1")]);
    assert_eq!(said(&node), (true, false));
    node.prepared("web-1", 1);
    assert_eq!(said(&node), (false, false), "it may have begun");
    node.step(Input::NotStarted {
        instance: id("web-1"),
        run: 1,
        error: "no such file".into(),
    });
    assert_eq!(said(&node), (true, false));

    node.after_ms(5000);
    node.prepared("web-1", 2);
    node.started("web-1", 2);
    assert_eq!(said(&node), (false, false));
    node.answers("web-1", Question::Health, true);
    assert_eq!(said(&node), (false, true));
    node.exited("web-1", ExitHow::Code { code: 1 });
    assert_eq!(said(&node), (false, true));
    let history = node.state.instance(&id("web-1")).unwrap().history().clone();

    // Told to leave, or known to the next agent alone.
    node.want(vec![changed("web-1", |one| one.wanted = Wanted::Leave)]);
    assert_eq!(said(&node), (false, true));
    let mut next = Node::new();
    next.step(Input::Adopted {
        desired: Box::new(desired("web-1")),
        history,
        process: Adopted::Absent,
    });
    assert_eq!(said(&next), (false, true));
}

/// As an earlier version kept it.
#[test]
fn what_was_kept_without_a_word_of_it_has_run_where_it_was_started() {
    let table = [(1, None, false), (0, Some(exit(ExitHow::Unknown)), false)];
    for (starts, last_exit, never) in table {
        let mut node = Node::new();
        node.step(Input::Adopted {
            desired: Box::new(desired("web-1")),
            history: History {
                starts,
                last_exit,
                ..History::default()
            },
            process: Adopted::Absent,
        });
        let report = node.state.report(&id("web-1")).unwrap();
        assert_eq!(report.never_started, never, "{starts}");
    }
}
