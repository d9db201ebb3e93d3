//! A disk that stalls at any step of a start, shims that do not answer, processes that nothing kills: never two of one instance, and none unknown.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use compute::cgroup::Cgroups;
use compute::instance::{read_exit, read_record};
use compute::lease::Moment;
use compute::process::cgroup_name;
use compute::runtime::{Adopted, Error, Happening, InstanceSpec, Runtime as _};
use compute::shim::Step;
use model::compute::{ExitHow, OnPartition};
use model::timing::{EMPTY_AFTER, LOST_AFTER};
use rustix::process::Signal;

use crate::world::{World, cgroups, is_alive, is_root, processes, signal, wait_until, watchdog_of};

/// A frozen cgroup, as root has it on a machine with cgroups v1.
struct Freezer(PathBuf);

impl Freezer {
    /// `None`: this machine has none, which is said. One that has it has to give it to root.
    fn new(name: &str) -> Option<Self> {
        if !is_root() || !Path::new("/sys/fs/cgroup/freezer").exists() {
            eprintln!("no freezer of cgroups v1 here: nothing withstands SIGKILL in this test");
            return None;
        }
        let pid = std::process::id();
        let path = PathBuf::from(format!("/sys/fs/cgroup/freezer/mainland-test-{pid}-{name}"));
        fs::create_dir(&path).expect("a frozen group");
        let freezer = Self(path);
        freezer.set("FROZEN");
        Some(freezer)
    }

    fn set(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).expect("its state");
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("it is moved");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set("THAWED");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            let left = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines() {
                let _ = fs::write("/sys/fs/cgroup/freezer/cgroup.procs", pid);
            }
        }
    }
}

/// Holds the volume's lock as long as anything of it lives, and says so where another one holds it.
fn writer(world: &World, name: &str) -> InstanceSpec {
    let volume = world.path("volumes").join(name);
    fs::create_dir_all(&volume).expect("a volume");
    let volume = volume.display();
    world.shell(
        name,
        &format!(
            "exec 9>>{volume}/lock; flock -n 9 || echo two >>{volume}/violations; \
             sleep 1000 & echo up; wait"
        ),
    )
}

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// All at once.
async fn all(mut work: Vec<Work<'_>>) {
    std::future::poll_fn(|context| {
        work.retain_mut(|one| one.as_mut().poll(context).is_pending());
        match work.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Deterministic, so that a seed that fails can be tried again.
fn draw(seed: u64, most: u64) -> u64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)) % most
}

const PATIENCE: Duration = Duration::from_millis(500);
/// Starts at once, as far as a machine that does other things as well gets on in time.
const AT_ONCE: usize = 35;

/// One start with a stall in it, and one after it.
async fn start_twice(world: &World, seed: u64) {
    let name = format!("s{seed}");
    let spec = writer(world, &name);
    let runtime = world.runtime();
    runtime.prepare(&spec).await.expect("prepared");
    let step = Step::ALL[seed as usize % Step::ALL.len()];
    let freezer = (seed / Step::ALL.len() as u64)
        .is_multiple_of(2)
        .then(|| Freezer::new(&name))
        .flatten();
    let how = freezer
        .as_ref()
        .map_or_else(String::new, |freezer| format!(" {}", freezer.0.display()));
    fs::write(spec.directory.join("stall"), format!("{step:?}{how}")).expect("written");
    // The disk comes back before the agent gives up, or after.
    let back = Duration::from_millis(draw(seed, 1500));
    let thaw = async {
        tokio::time::sleep(back).await;
        freezer.iter().for_each(|freezer| freezer.set("THAWED"));
    };
    let (first, ()) = tokio::join!(runtime.start(&spec), thaw);
    assert!(
        first.is_ok() || !lives(world, &spec),
        "{name}: something of a failed start lives at {step:?}"
    );
    if first.is_err() {
        let started = runtime.start(&spec).await;
        started.unwrap_or_else(|error| panic!("{name}, {step:?}: {error}"));
    }
}

fn lives(world: &World, spec: &InstanceSpec) -> bool {
    let text = format!(
        "{}/",
        world
            .path("volumes")
            .join(spec.instance.name.as_str())
            .display()
    );
    processes().any(|pid| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let line = read("cmdline");
        String::from_utf8_lossy(&line).contains(&text) && is_alive(pid)
    })
}

#[test]
fn a_stall_at_any_step_of_a_start_never_makes_two_writers_at_100_seeds() {
    let worlds = [World::new(), World::without_cgroups()];
    for (world, seeds) in worlds.into_iter().zip([0..100, 100..130]) {
        let world = world.impatient(PATIENCE);
        let work = seeds.clone().map(|seed| {
            let one: Work<'_> = Box::pin(start_twice(&world, seed));
            one
        });
        let mut work: Vec<Work<'_>> = work.collect();
        while !work.is_empty() {
            let rest = work.split_off(work.len().min(AT_ONCE));
            world.run(all(std::mem::replace(&mut work, rest)));
        }
        for seed in seeds {
            let name = format!("s{seed}");
            world.line(&name, "o up");
            let violations = world.path("volumes").join(&name).join("violations");
            assert!(!violations.exists(), "{name}: two writers at once");
        }
    }
}

async fn stall_in_start(world: &World, spec: &InstanceSpec, step: Step) {
    let stall = spec.directory.join("stall");
    world.runtime().prepare(spec).await.expect("prepared");
    fs::write(&stall, format!("{step:?}")).expect("written");
    let stalled = async {
        while stall.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        started = world.runtime().start(spec) => panic!("{step:?}: {started:?}"),
        () = stalled => {}
    }
}

async fn adopt_and_start(world: &World, spec: &InstanceSpec, step: Step) {
    let (runtime, id, directory) = (world.runtime(), &spec.instance, &spec.directory);
    match runtime.adopt(id, directory).await.expect("adopted") {
        // It is on record, so it is known; it is ended as anything that runs.
        Adopted::Running { .. } => {
            let recorded = [
                Step::Join,
                Step::Watch,
                Step::Release,
                Step::Execute,
                Step::Reply,
            ];
            assert!(recorded.contains(&step), "{step:?}");
            while runtime.kill(id, directory).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        _ => assert!(!lives(world, spec), "{step:?}"),
    }
    runtime.start(spec).await.expect("it starts");
}

/// The agent is killed in the middle of a start, and its successor starts the same.
#[test]
fn a_start_that_outlives_its_agent_is_ended_before_the_next() {
    for mut world in [World::new(), World::without_cgroups()] {
        let name = |step: Step| format!("{step:?}").to_lowercase();
        let specs = Step::ALL.map(|step| (writer(&world, &name(step)), step));
        let starts = specs
            .iter()
            .map(|(spec, step)| -> Work<'_> { Box::pin(stall_in_start(&world, spec, *step)) });
        world.run(all(starts.collect()));
        world.kill_agent();
        world.start_agent();
        let starts = specs
            .iter()
            .map(|(spec, step)| -> Work<'_> { Box::pin(adopt_and_start(&world, spec, *step)) });
        world.run(all(starts.collect()));
        for step in Step::ALL {
            world.line(&name(step), "o up");
            let violations = world.path("volumes").join(name(step)).join("violations");
            assert!(!violations.exists(), "{step:?}: two writers at once");
        }
    }
}

#[test]
fn an_instance_is_ended_without_the_help_of_its_shim() {
    for mut world in [World::new(), World::without_cgroups()] {
        let spec = world.shell("a", "setsid sleep 1000 & echo far $!; exec sleep 1000");
        let pid = world.start(&spec);
        let far: u32 = world.line("a", "o far ").parse().expect("a pid");
        let shim = read_record(&spec.directory).expect("its record").shim.pid;
        signal(shim, Signal::STOP);
        let kill = || world.runtime().kill(&spec.instance, &spec.directory);
        world.run(kill()).expect("killed");
        wait_until("the workload to be gone", || !is_alive(pid));
        if cgroups().is_some() {
            wait_until("its worker to be gone", || {
                !is_alive(far) || shim_is_alone(&spec)
            });
        }
        // Its shim can't say so; an agent that asks again does not wait for it.
        let ended = async {
            while is_alive(shim) {
                world
                    .runtime()
                    .kill(&spec.instance, &spec.directory)
                    .await
                    .expect("killed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        world.run(ended);
        assert_eq!(world.exit().how, ExitHow::Unknown);
        if is_alive(far) {
            // Without a cgroup, what made itself a session of its own is not found.
            signal(far, Signal::KILL);
        }
        world.start(&spec);
    }
}

fn shim_is_alone(spec: &InstanceSpec) -> bool {
    read_record(&spec.directory).is_some_and(|record| record.cgroup.is_none())
}

/// Its lease was renewed for long, and more was asked of it than anybody would: neither a request nor the end waits for it.
#[test]
fn a_shim_that_stands_still_holds_up_no_request() {
    let world = World::new();
    let mut spec = world.spec("a", &["sleep", "1000"]);
    spec.on_partition = OnPartition::Stop;
    spec.lease_sent_at = Moment::now();
    let pid = world.start(&spec);
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    signal(shim, Signal::STOP);
    let asked = async {
        let runtime = world.runtime();
        for _ in 0..200 {
            runtime.renew(Moment::now());
            tokio::task::yield_now().await;
        }
        // What its socket holds is not what it was told.
        for _ in 0..10_000 {
            let signalled = runtime.signal(&spec.instance, 0).await;
            if let Err(error) = signalled {
                return error;
            }
            tokio::task::yield_now().await;
        }
        panic!("its queue has no bound");
    };
    let error = world.run(asked);
    assert!(matches!(error, Error::Mute(_)), "{error}");
    let asked = async {
        let runtime = world.runtime();
        let stop = runtime.stop(&spec.instance, Duration::from_secs(1));
        let stopped = tokio::time::timeout(Duration::from_secs(1), stop).await;
        assert!(matches!(stopped, Ok(Err(Error::Mute(_)))), "{stopped:?}");
        runtime.kill(&spec.instance, &spec.directory).await
    };
    world.run(asked).expect("killed");
    wait_until("the workload to be gone", || !is_alive(pid));
}

/// Renewals that come while it stands still do not crowd out its end.
#[test]
fn renewals_take_no_room_from_requests() {
    let mut world = World::new();
    let mut spec = world.spec("a", &["sleep", "1000"]);
    spec.on_partition = OnPartition::Stop;
    spec.lease_sent_at = Moment::now();
    world.start(&spec);
    let asked = async {
        let runtime = world.runtime();
        // Its task has no turn in between, as if each write waited for its shim.
        for _ in 0..200 {
            runtime.renew(Moment::now());
        }
        runtime.stop(&spec.instance, Duration::from_secs(20)).await
    };
    world.run(asked).expect("there is room for it");
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 15 });
}

/// A start on a slow disk takes longer than a lease lasts, and the lease was renewed all the while.
#[test]
fn a_start_that_takes_longer_than_a_lease_begins_with_the_newest() {
    let world = World::new();
    let start = async |step: Step, renewed: bool| {
        let mut spec = world.spec(
            &format!("{step:?}{renewed}").to_lowercase(),
            &["sleep", "1000"],
        );
        spec.on_partition = OnPartition::Stop;
        spec.lease_sent_at = Moment::now();
        let (runtime, stall) = (world.runtime(), spec.directory.join("stall"));
        runtime.prepare(&spec).await.expect("prepared");
        fs::write(&stall, format!("{step:?}")).expect("written");
        let started = tokio::select! {
            started = runtime.start(&spec) => started?,
            () = continue_late(&spec, || if renewed { runtime.renew(Moment::now()) }) => unreachable!(),
        };
        // It goes on being renewed.
        for _ in 0..20 {
            runtime.renew(Moment::now());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(is_alive(started.pid), "{step:?}");
        assert_eq!(read_exit(&spec.directory), None, "{step:?}");
        Ok::<(), Error>(())
    };
    let error = world.run(start(Step::Release, false));
    assert!(matches!(error, Err(Error::LeaseOver)), "{error:?}");
    // Before the program is released, and while it is being read from the disk.
    let renewed = async { tokio::join!(start(Step::Release, true), start(Step::Execute, true)) };
    let (released, executed) = world.run(renewed);
    released.and(executed).expect("they start");
}

/// Lets the stopped shim, or its program, go on after the lease that it was given; renews on and on, and never returns.
async fn continue_late(spec: &InstanceSpec, renew: impl Fn()) {
    let begun = Instant::now();
    loop {
        renew();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Some(record) = read_record(&spec.directory).filter(|_| begun.elapsed() > EMPTY_AFTER)
        else {
            continue;
        };
        for pid in [record.shim.pid, record.workload.pid] {
            // It may have ended.
            let pid = rustix::process::Pid::from_raw(pid.cast_signed());
            let _ = rustix::process::kill_process(pid.expect("a pid"), Signal::CONT);
        }
    }
}

/// It stands still for so long that more renewals wait for it than it reads at once, and goes on: the newest is what counts. Whether its agent was
/// connected to it before, or came meanwhile and waits for its hello.
#[test]
fn a_shim_that_was_stopped_hears_all_that_waits_before_it_ends_anything() {
    for comes_meanwhile in [false, true] {
        let mut world = World::new();
        let mut spec = world.spec("a", &["sleep", "1000"]);
        spec.on_partition = OnPartition::Stop;
        spec.lease_sent_at = Moment::now();
        let pid = world.start(&spec);
        let shim = read_record(&spec.directory).expect("its record").shim.pid;
        if comes_meanwhile {
            world.kill_agent();
        }
        signal(shim, Signal::STOP);
        if comes_meanwhile {
            world.start_agent();
            let adopting = world.runtime().adopt(&spec.instance, &spec.directory);
            let adopted = world.run(adopting).expect("adopted");
            assert!(matches!(adopted, Adopted::Running { .. }), "{adopted:?}");
        }
        let begun = Instant::now();
        let stopped = async {
            while begun.elapsed() < EMPTY_AFTER {
                world.runtime().renew(Moment::now());
                tokio::time::sleep(Duration::from_millis(32)).await;
            }
            signal(shim, Signal::CONT);
            for _ in 0..20 {
                world.runtime().renew(Moment::now());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        world.run(stopped);
        let exit = read_exit(&spec.directory);
        assert!(is_alive(pid), "{exit:?}");
        assert_eq!(exit, None);
    }
}

/// So many others connect that the shim lets go of its agent, with what the agent has written to it.
#[test]
fn what_was_asked_of_a_shim_outlives_the_connection() {
    let mut world = World::new();
    let spec = world.spec("a", &["sleep", "1000"]);
    world.start(&spec);
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    signal(shim, Signal::STOP);
    let asked = async {
        let stop = world
            .runtime()
            .stop(&spec.instance, Duration::from_secs(1000));
        stop.await.expect("asked");
        // It is written by a task of its own: were it not yet, the test would show nothing.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    world.run(asked);
    let folder = fs::File::open(&spec.directory).expect("opened");
    let socket = {
        use std::os::fd::AsRawFd as _;
        format!("/proc/self/fd/{}/shim.sock", folder.as_raw_fd())
    };
    let others = || std::os::unix::net::UnixStream::connect(&socket).expect("connected");
    let others: Vec<_> = (0..4).map(|_| others()).collect();
    signal(shim, Signal::CONT);
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 15 });
    drop(others);
}

#[test]
fn a_shim_that_does_not_answer_is_no_reason_to_run_it_twice() {
    let mut world = World::new();
    let spec = world.spec("a", &["sleep", "1000"]);
    let pid = world.start(&spec);
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    signal(shim, Signal::STOP);
    world.kill_agent();
    world.start_agent();
    let begun = Instant::now();
    let adopted = world
        .run(world.runtime().adopt(&spec.instance, &spec.directory))
        .expect("adopted");
    // Its node is silent meanwhile.
    assert!(begun.elapsed() < LOST_AFTER, "{:?}", begun.elapsed());
    assert!(matches!(adopted, Adopted::Running { started, .. } if started.pid == pid));
    signal(shim, Signal::CONT);
    world
        .run(
            world
                .runtime()
                .stop(&spec.instance, Duration::from_secs(20)),
        )
        .expect("asked");
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 15 });
}

#[test]
fn a_workload_dies_with_its_shim() {
    for mut world in [World::new(), World::without_cgroups()] {
        let spec = world.shell("a", FORKS);
        let family = family(&mut world, &spec);
        let shim = read_record(&spec.directory).expect("its record").shim.pid;
        world.kill_agent();
        signal(shim, Signal::KILL);
        wait_until("all of the workload to be gone", || !lives_any(&family));
    }
}

/// As servers with workers do: children, one in a process group of its own, one whose parent has ended.
const FORKS: &str = "sleep 1001 & echo child $!; \
    sh -c 'set -m; sleep 1002 & echo group $!'; \
    (sh -c 'echo orphan $$; exec sleep 1003' &); sleep 1004; :";

/// Started: its main process and all that it forked.
fn family(world: &mut World, spec: &InstanceSpec) -> Vec<u32> {
    let name = spec.instance.name.to_string();
    let mut family = vec![world.start(spec)];
    for member in ["child", "group", "orphan"] {
        let pid = world.line(&name, &format!("o {member} "));
        family.push(pid.parse().expect("a pid"));
    }
    family
}

fn lives_any(family: &[u32]) -> bool {
    family.iter().any(|pid| is_alive(*pid))
}

#[test]
fn a_watchdog_that_is_killed_is_replaced_and_what_asks_for_an_end_does_not_end_it() {
    let mut world = World::new();
    let spec = world.shell("a", FORKS);
    let family = family(&mut world, &spec);
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    let first = watchdog_of(shim).expect("a watchdog");
    signal(first, Signal::TERM);
    signal(first, Signal::HUP);
    signal(first, Signal::KILL);
    let mut second = None;
    wait_until("another watchdog", || {
        second = watchdog_of(shim).filter(|pid| *pid != first);
        second.is_some()
    });
    assert!(lives_any(&family));
    world.kill_agent();
    signal(shim, Signal::KILL);
    wait_until("all of the workload to be gone", || !lives_any(&family));
    wait_until("the watchdog to be gone", || !is_alive(second.unwrap()));
}

/// Also where the watchdog is killed with the shim, or stands still: the agent does its work.
#[test]
fn an_agent_does_what_a_watchdog_can_not() {
    for how in [Signal::KILL, Signal::STOP] {
        let mut world = World::new();
        let spec = world.shell("a", FORKS);
        let family = family(&mut world, &spec);
        let shim = read_record(&spec.directory).expect("its record").shim.pid;
        signal(watchdog_of(shim).expect("a watchdog"), how);
        signal(shim, Signal::KILL);
        assert_eq!(world.exit().how, ExitHow::Unknown);
        assert!(!lives_any(&family), "after {how:?}");
        world.start(&spec);
    }
}

/// The next agent starts it at once: the volume never has two writers.
#[test]
fn what_is_started_after_shim_and_agent_were_killed_is_alone() {
    for mut world in [World::new(), World::without_cgroups()] {
        let spec = writer(&world, "a");
        world.start(&spec);
        for round in 2..6 {
            world.line("a", "o up");
            let shim = read_record(&spec.directory).expect("its record").shim.pid;
            world.kill_agent();
            signal(shim, Signal::KILL);
            world.start_agent();
            world.start(&spec);
            wait_until("it to be up again", || {
                world.output("a").matches("o up\n").count() >= round
            });
        }
        assert!(!world.path("volumes/a/violations").exists(), "two at once");
    }
}

#[test]
fn what_can_not_be_killed_is_named_until_it_is_gone_and_nothing_is_started_beside_it() {
    let mut world = World::new();
    let Some(freezer) = Freezer::new("unkillable") else {
        return;
    };
    let spec = world.shell("a", "sleep 1000 & echo child $!; wait; exit 3");
    let main = world.start(&spec);
    let child: u32 = world.line("a", "o child ").parse().expect("a pid");
    freezer.take(child);
    signal(main, Signal::KILL);
    let Happening::Unkillable { processes } = world.next_event() else {
        panic!("it should be named");
    };
    let named = format!("pid {child} (sleep): in a frozen cgroup");
    assert_eq!(processes, [named]);
    assert_eq!(read_exit(&spec.directory), None);

    // Nor by the next agent.
    world.kill_agent();
    world.start_agent();
    let adopted = world.run(world.runtime().adopt(&spec.instance, &spec.directory));
    assert!(
        matches!(adopted, Ok(Adopted::Running { .. })),
        "{adopted:?}"
    );
    assert!(matches!(world.next_event(), Happening::Unkillable { .. }));
    freezer.set("THAWED");
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 9 });
    assert!(!is_alive(child));
    if let Some(groups) = cgroups() {
        let group = groups.locate(&cgroup_name(&spec.instance, Path::new(&spec.directory)));
        assert!(!group.exists());
    }
}

#[test]
fn a_main_process_that_can_not_be_killed_is_named_by_who_asks() {
    let mut world = World::new();
    let Some(freezer) = Freezer::new("main") else {
        return;
    };
    let spec = world.spec("a", &["sleep", "1000"]);
    let main = world.start(&spec);
    freezer.take(main);
    let agent_kills = async {
        for _ in 0..30 {
            let kill = world.runtime().kill(&spec.instance, &spec.directory);
            kill.await.expect("asked");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    world.run(agent_kills);
    let Happening::Unkillable { processes } = world.next_event() else {
        panic!("it should be named");
    };
    assert_eq!(
        processes,
        [format!("pid {main} (sleep): in a frozen cgroup")]
    );
    freezer.set("THAWED");
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 9 });
}

#[test]
fn processes_are_limited() {
    let limits = |groups: Cgroups| !groups.not_enforced.contains(&"limits of processes");
    if !cgroups().is_some_and(limits) {
        return eprintln!("no limits of processes here");
    }
    let mut world = World::new();
    let script = "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done; echo all";
    let mut spec = world.shell("a", script);
    spec.pids = 20;
    world.start(&spec);
    let exit = world.exit();
    assert_ne!(exit.how, ExitHow::Code { code: 0 }, "{}", world.output("a"));
    let output = world.output("a").to_lowercase();
    assert!(output.contains("fork"), "{output}");
}
