//! Starting, ending, freezing, adopting.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use compute::instance::{read_exit, read_record};
use compute::process::cgroup_name;
use compute::runtime::{Adopted, Error, Happening, Identity, InstanceSpec, Runtime as _};
use model::compute::ExitHow;
use model::units::Bytes;
use rustix::process::{Gid, Signal};

use crate::world::{World, cgroups, id, is_alive, is_root, signal, wait_until, watchdog_of};

#[test]
fn output_and_exit_code_are_kept_and_it_can_start_again() {
    let mut world = World::new();
    let spec = world.shell("a", "echo hello; echo there >&2; printf unfinished; exit 7");
    for run in 1..=2 {
        let pid = world.start(&spec);
        let exit = world.exit();
        assert_eq!(exit.how, ExitHow::Code { code: 7 });
        assert_eq!(read_exit(&spec.directory), Some(exit));
        let output = world.output("a");
        for line in [
            &*format!("s started as pid {pid}"),
            "o hello",
            "e there",
            "o unfinished",
            "s exited with code 7",
        ] {
            let count = output.lines().filter(|found| *found == line).count();
            let expected = if line.contains("pid") { 1 } else { run };
            assert_eq!(count, expected, "{line} in {output}");
        }
    }
}

/// It ends well, and what it was to be lives on: as of `nginx` without `daemon off`.
#[test]
fn what_goes_to_the_background_is_told_by_the_name_of_what_stays() {
    let mut world = World::new();
    let script = "mkfifo ready; python3 -c 'import time; open(\"ready\", \"w\").write(\"x\"); time.sleep(1000)' & read line <ready; exit 0";
    world.start(&world.shell("a", script));
    let ExitHow::Background { processes } = world.exit().how else {
        panic!("it left something behind");
    };
    assert!(
        processes.iter().any(|name| name.starts_with("python")),
        "{processes:?}"
    );
    let output = world.output("a");
    assert!(
        output.contains("s exited with code 0 and left python"),
        "{output}"
    );
    // Told to end, it has ended as it was told to.
    world.start(&world.shell("b", "trap 'exit 0' TERM; sleep 1000 & echo ready; wait"));
    world.line("b", "o ready");
    let stopped = world.spec("b", &["sh"]);
    world.run(async {
        let stop = world
            .runtime()
            .stop(&stopped.instance, Duration::from_secs(5));
        stop.await.expect("it is told");
    });
    assert_eq!(world.exit().how, ExitHow::Code { code: 0 });
}

#[test]
fn everything_written_before_the_end_is_in_the_log() {
    let mut world = World::new();
    world.start(&world.shell("a", "seq 1 100000"));
    assert_eq!(world.exit().how, ExitHow::Code { code: 0 });
    let output = world.output("a");
    let lines: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_prefix("o "))
        .collect();
    let expected: Vec<_> = (1..=100_000).map(|number| number.to_string()).collect();
    assert!(lines == expected, "{} lines", lines.len());
}

#[test]
fn what_can_not_be_executed_is_explained() {
    let world = World::new();
    let path = "/nonexistent";
    let mut missing = world.spec("missing", &["no-such-program"]);
    missing.environment.0.insert("PATH".into(), path.into());
    let empty = world.spec("empty", &["./checkout"]);
    let table = [
        (
            missing,
            "no-such-program: no such program in PATH (/nonexistent)",
        ),
        (
            empty,
            "./checkout: no such file; the working directory is empty: name what to upload with `files`",
        ),
    ];
    for (spec, expected) in table {
        let error = world.try_start(&spec).expect_err("it can't start");
        assert_eq!(error.to_string(), expected);
        let recorded = read_exit(&spec.directory).map(|exit| exit.how);
        assert_eq!(
            recorded,
            Some(ExitHow::NotStarted {
                error: expected.to_owned()
            })
        );
    }
}

#[test]
fn sigterm_comes_first_and_sigkill_after_the_grace() {
    let mut world = World::new();
    let polite = world.shell(
        "polite",
        "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done",
    );
    world.start(&polite);
    world.line("polite", "o ready");
    world
        .run(
            world
                .runtime()
                .stop(&polite.instance, Duration::from_secs(20)),
        )
        .expect("asked");
    assert_eq!(world.exit().how, ExitHow::Code { code: 3 });
    world.line("polite", "o bye");

    let stubborn = world.shell(
        "stubborn",
        "trap '' TERM; echo ready; while :; do sleep 0.02; done",
    );
    world.start(&stubborn);
    world.line("stubborn", "o ready");
    let asked = Instant::now();
    world
        .run(
            world
                .runtime()
                .stop(&stubborn.instance, Duration::from_millis(300)),
        )
        .expect("asked");
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 9 });
    assert!(
        asked.elapsed() >= Duration::from_millis(300),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn nothing_of_it_is_left_not_even_a_daemon() {
    // The daemon has a session of its own, and its parent is gone.
    let script = "setsid sh -c 'echo daemon $$; sleep 1000' & wait $!; :";
    let daemonise = format!(
        "(sh -c \"{}\" &) ; echo ready; sleep 1000",
        "setsid sh -c 'echo daemon \\$\\$; exec sleep 1000'"
    );
    for mut world in [World::new(), World::without_cgroups()] {
        for (name, script) in [("child", script), ("orphan", &*daemonise)] {
            let spec = world.shell(name, script);
            let main = world.start(&spec);
            let daemon: u32 = world.line(name, "o daemon ").parse().expect("a pid");
            assert!(is_alive(daemon) && daemon != main);
            world
                .run(world.runtime().kill(&spec.instance, &spec.directory))
                .expect("asked");
            assert_eq!(world.exit().how, ExitHow::Signal { signal: 9 });
            assert!(!is_alive(daemon) && !is_alive(main), "{name}");
        }
        // The end of the main process is the end of all.
        let spec = world.shell("brief", "setsid sleep 1000 & echo daemon $!; exit 0");
        world.start(&spec);
        let ExitHow::Background { processes } = world.exit().how else {
            panic!("it left something behind");
        };
        assert_eq!(processes.len(), 1, "{processes:?}");
        let daemon: u32 = world.line("brief", "o daemon ").parse().expect("a pid");
        assert!(!is_alive(daemon));
    }
}

#[test]
fn the_memory_limit_is_hard_and_named() {
    if cgroups().is_none_or(|groups| !groups.not_enforced.is_empty()) {
        return;
    }
    let mut world = World::new();
    let mut spec = world.spec("a", &["tail", "/dev/zero"]);
    spec.memory = Bytes::mebibytes(24);
    world.start(&spec);
    assert_eq!(
        world.exit().how,
        ExitHow::OutOfMemory {
            limit: Bytes::mebibytes(24)
        }
    );
    // A SIGKILL that is not for memory is not taken for one, also in a group that has seen one.
    let spec = world.spec("a", &["sleep", "1000"]);
    let pid = world.start(&spec);
    signal(pid, Signal::KILL);
    assert_eq!(world.exit().how, ExitHow::Signal { signal: 9 });
    // A child killed for memory ends the child alone.
    let mut spec = world.shell("b", "tail /dev/zero; echo child $?; exit 4");
    spec.memory = Bytes::mebibytes(24);
    world.start(&spec);
    assert_eq!(world.exit().how, ExitHow::Code { code: 4 });
    world.line(
        "b",
        "s exited with code 4; the kernel killed 1 processes of it over its memory limit",
    );
}

#[test]
fn a_frozen_instance_is_told_and_can_still_be_stopped() {
    let mut world = World::new();
    let spec = world.spec("a", &["sleep", "1000"]);
    let pid = world.start(&spec);
    signal(pid, Signal::STOP);
    assert_eq!(world.next_event(), Happening::Stopped { signal: 19 });
    signal(pid, Signal::CONT);
    assert_eq!(world.next_event(), Happening::Continued);
    signal(pid, Signal::STOP);
    assert_eq!(world.next_event(), Happening::Stopped { signal: 19 });
    world
        .run(
            world
                .runtime()
                .stop(&spec.instance, Duration::from_secs(20)),
        )
        .expect("asked");
    // It goes on in order to end; that it went on may be missed.
    let mut last = world.next_event();
    if last == Happening::Continued {
        last = world.next_event();
    }
    assert!(
        matches!(&last, Happening::Exited(exit) if exit.how == ExitHow::Signal { signal: 15 }),
        "{last:?}"
    );
}

#[test]
fn it_runs_without_privileges() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let mut spec = world.shell(
        "a",
        "echo who $(id -u):$(id -g):$(id -G); grep NoNewPrivs /proc/self/status; touch mine && echo wrote; \
         echo limit $(ulimit -n); cat ../exit.json.new || echo refused; ls .. || echo unseen; \
         echo named > /dev/stdout; echo named > /dev/stderr",
    );
    spec.identity = Some(Identity {
        uid: 61_234,
        gid: 61_234,
    });
    spec.open_files = 4321;
    // The shim is started by this thread: what the agent has beside its gid must not reach the workload.
    rustix::thread::set_thread_groups(&[Gid::from_raw(61_999)]).expect("a group");
    world.start(&spec);
    assert_eq!(world.exit().how, ExitHow::Code { code: 0 });
    let output = world.output("a");
    for line in [
        "o who 61234:61234:61234",
        "o NoNewPrivs:\t1",
        "o wrote",
        "o limit 4321",
        "o refused",
        "o unseen",
        "o named",
        "e named",
    ] {
        assert!(
            output.lines().any(|found| found == line),
            "{line} in {output}"
        );
    }
}

#[test]
fn secrets_are_in_no_file_and_no_argument() {
    let world = World::new();
    let mut spec = world.shell("a", "echo \"got ${#KEY}\"; exec sleep 1000");
    spec.environment
        .0
        .insert("KEY".into(), "hunter2hunter2".into());
    let pid = world.start(&spec);
    assert_eq!(world.line("a", "o got "), "14");
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    for process in [pid, shim] {
        let arguments = fs::read(format!("/proc/{process}/cmdline")).expect("its arguments");
        assert!(!String::from_utf8_lossy(&arguments).contains("hunter2"));
    }
    let environment = fs::read(format!("/proc/{shim}/environ")).expect("its environment");
    assert!(environment.is_empty(), "the shim's own environment");
    for entry in fs::read_dir(&spec.directory).expect("its directory") {
        let path = entry.expect("an entry").path();
        let text = fs::read(&path).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&text).contains("hunter2"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_new_agent_adopts_what_runs_and_learns_what_ended() {
    let mut world = World::new();
    let runs = world.shell(
        "runs",
        "echo ready; while ! [ -e go ]; do sleep 0.02; done; exit 5",
    );
    let ends = world.shell("ends", "while ! [ -e go ]; do sleep 0.02; done; exit 6");
    let pid = world.start(&runs);
    world.start(&ends);
    world.line("runs", "o ready");
    world.kill_agent();
    fs::write(ends.directory.join("work/go"), "").expect("a file");
    wait_until("the exit", || read_exit(&ends.directory).is_some());
    signal(pid, Signal::STOP);

    world.start_agent();
    let adopted = world
        .run(world.runtime().adopt(&ends.instance, &ends.directory))
        .expect("adopted");
    assert!(matches!(adopted, Adopted::Ended { exit } if exit.how == ExitHow::Code { code: 6 }));
    let adopted = world
        .run(world.runtime().adopt(&runs.instance, &runs.directory))
        .expect("adopted");
    let Adopted::Running { started, frozen } = adopted else {
        panic!("{adopted:?}");
    };
    assert_eq!(started.pid, pid);
    if !frozen {
        // The signal was still on its way.
        assert_eq!(world.next_event(), Happening::Stopped { signal: 19 });
    }
    let never = world
        .run(world.runtime().adopt(&id("never"), &world.path("never")))
        .expect("adopted");
    assert_eq!(never, Adopted::NotStarted);

    signal(pid, Signal::CONT);
    assert_eq!(world.next_event(), Happening::Continued);
    fs::write(runs.directory.join("work/go"), "").expect("a file");
    assert_eq!(world.exit().how, ExitHow::Code { code: 5 });
    world.start(&runs);
    assert_eq!(world.exit().how, ExitHow::Code { code: 5 });
}

#[test]
fn a_killed_shim_leaves_nothing_running() {
    for mut world in [World::new(), World::without_cgroups()] {
        let spec = world.spec("a", &["sleep", "1000"]);
        let pid = world.start(&spec);
        let shim = read_record(&spec.directory).expect("its record").shim.pid;
        signal(shim, Signal::KILL);
        assert_eq!(world.exit().how, ExitHow::Unknown);
        wait_until("the workload to be gone", || !is_alive(pid));
        assert_eq!(
            read_exit(&spec.directory).map(|exit| exit.how),
            Some(ExitHow::Unknown)
        );
        world.start(&spec);
    }
}

/// As when a whole machine's Mainland is killed: agent, watchdog, shim and main process; the workers it had are nobody's then.
#[test]
fn the_workers_of_a_killed_shim_and_main_process_do_not_live_on() {
    // `timeout` makes a process group of its own.
    let script = "sleep 1000 & echo near $!; timeout 999 sleep 1000 & echo far $!; exec sleep 1000";
    let next = |world: &World, way: &str, spec: &InstanceSpec| match way {
        "adopt" => {
            let found = world.run(world.runtime().adopt(&spec.instance, &spec.directory));
            assert!(
                matches!(found, Ok(Adopted::Ended { exit }) if exit.how == ExitHow::Unknown),
                "{way}"
            );
        }
        "start" => {
            world.start(&world.spec(way, &["sleep", "1000"]));
        }
        _ => {
            let removed = world.run(world.runtime().remove(&spec.instance, &spec.directory));
            removed.expect("it is removed");
        }
    };
    for mut world in [World::new(), World::without_cgroups()] {
        for way in ["adopt", "start", "remove"] {
            let spec = world.shell(way, script);
            let main = world.start(&spec);
            let workers: Vec<u32> = ["o near ", "o far "]
                .map(|start| world.line(way, start).parse().expect("a pid"))
                .into();
            wait_until("a group of its own", || {
                rustix::process::getpgid(rustix::process::Pid::from_raw(workers[1] as i32))
                    .is_ok_and(|group| group.as_raw_nonzero().get() as u32 == workers[1])
            });
            let shim = read_record(&spec.directory).expect("its record").shim.pid;
            world.kill_agent();
            for ours in [watchdog_of(shim).expect("a watchdog"), shim, main] {
                signal(ours, Signal::KILL);
            }
            wait_until("both gone", || !is_alive(shim) && !is_alive(main));
            assert!(workers.iter().all(|worker| is_alive(*worker)), "{way}");

            world.start_agent();
            next(&world, way, &spec);
            for worker in workers {
                assert!(!is_alive(worker), "{worker} outlived `{way}`");
            }
        }
    }
}

#[test]
fn two_agents_can_not_start_it_twice() {
    let mut world = World::new();
    let spec = world.spec("a", &["sleep", "1000"]);
    let pid = world.start(&spec);
    assert!(matches!(world.try_start(&spec), Err(Error::Running(_))));
    world.kill_agent();
    world.start_agent();
    let error = world
        .try_start(&spec)
        .expect_err("the shim of the first agent runs");
    assert!(matches!(error, Error::Running(_)), "{error}");
    assert_eq!(read_exit(&spec.directory), None);
    assert!(is_alive(pid));
    let adopted = world
        .run(world.runtime().adopt(&spec.instance, &spec.directory))
        .expect("adopted");
    assert!(matches!(adopted, Adopted::Running { started, frozen: false } if started.pid == pid));
}

#[test]
fn removing_ends_it_and_leaves_no_trace() {
    let mut world = World::new();
    let spec = world.spec("a", &["sleep", "1000"]);
    let pid = world.start(&spec);
    world.kill_agent();
    world.start_agent();
    world
        .run(world.runtime().remove(&spec.instance, &spec.directory))
        .expect("removed");
    assert!(!is_alive(pid) && !spec.directory.exists());
    world
        .run(world.runtime().remove(&spec.instance, &spec.directory))
        .expect("removed again");
}

#[test]
fn a_full_disk_hides_no_exit_and_holds_up_nobody() {
    let mut world = World::new();
    let disk = world.path("disk");
    fs::create_dir(&disk).expect("made");
    let Some(_mount) = Tiny::mount(&disk) else {
        return;
    };
    let mut spec = world.shell(
        "a",
        "while ! [ -e go ]; do sleep 0.02; done; seq 1 50000; exit 8",
    );
    spec.directory = disk.join("a");
    world.start(&spec);
    fs::write(spec.directory.join("work/go"), "").expect("written");
    let mut filler = fs::File::create(disk.join("filler")).expect("created");
    while filler.write_all(&[0; 512]).is_ok() {}
    let exit = world.exit();
    assert_eq!(exit.how, ExitHow::Code { code: 8 });
    assert_eq!(read_exit(&spec.directory), Some(exit));
    drop(world.run(world.runtime().remove(&spec.instance, &spec.directory)));
}

/// A file system of 256 KiB, where that may be had.
struct Tiny(std::path::PathBuf);

impl Tiny {
    fn mount(path: &std::path::Path) -> Option<Self> {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs"]);
        let mounted = command
            .arg(path)
            .stderr(std::process::Stdio::null())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("no file system may be mounted here");
        }
        mounted.then(|| Self(path.to_owned()))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_shim_asked_to_end_stops_its_workload_with_grace() {
    let mut world = World::new();
    let spec = world.shell(
        "a",
        "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done",
    );
    world.start(&spec);
    world.line("a", "o ready");
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    signal(shim, Signal::TERM);
    assert_eq!(world.exit().how, ExitHow::Code { code: 3 });
}

#[test]
fn no_end_and_no_failed_start_leaves_a_cgroup() {
    let Some(groups) = cgroups() else { return };
    let mut world = World::new();
    let group = |name: &str| groups.locate(&cgroup_name(&id(name), &world.path(name)));
    let (failed, ended) = (group("failed"), group("ended"));
    world
        .try_start(&world.spec("failed", &["./missing"]))
        .expect_err("missing");
    assert!(!failed.exists());
    let spec = world.shell("ended", "while ! [ -e go ]; do sleep 0.02; done");
    world.start(&spec);
    assert!(ended.exists());
    fs::write(spec.directory.join("work/go"), "").expect("written");
    world.exit();
    assert!(!ended.exists());
}

#[test]
fn a_shim_is_small() {
    let world = World::new();
    let spec = world.spec("a", &["sleep", "1000"]);
    world.start(&spec);
    let shim = read_record(&spec.directory).expect("its record").shim.pid;
    let rollup = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).expect("its memory");
    let value = |name: &str| -> u64 {
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a line");
        line.split_ascii_whitespace()
            .next()
            .expect("a value")
            .parse()
            .expect("a number")
    };
    // What is not the executable, whose pages all processes of Mainland share.
    let own_kib = value("Anonymous:");
    println!("shim: PSS {} KiB, of its own {own_kib} KiB", value("Pss:"));
    assert!(own_kib < 512, "{own_kib} KiB");
}
