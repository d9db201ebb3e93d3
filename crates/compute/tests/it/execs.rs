//! One more program beside the workload.

use compute::runtime::{Error, ExecCommand, InstanceSpec, Runtime as _, Session, TerminalSize};
use model::compute::ExitHow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, cgroups, is_alive, wait_until};

async fn read(session: Session) -> (String, String, ExitHow) {
    let Session {
        input,
        mut output,
        mut error,
        exit,
        ..
    } = session;
    drop(input);
    let (mut out, mut err) = (String::new(), String::new());
    output.read_to_string(&mut out).await.expect("its output");
    error.read_to_string(&mut err).await.expect("its errors");
    (out, err, exit.await.expect("its exit"))
}

fn command(argv: &[&str], terminal: Option<TerminalSize>) -> ExecCommand {
    let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
    ExecCommand {
        argv,
        terminal,
        apart: false,
    }
}

fn running(world: &World) -> InstanceSpec {
    let mut spec = world.shell("a", "echo x > file; echo ready; exec sleep 1000");
    spec.environment.0.insert("GREETING".into(), "hello".into());
    world.start(&spec);
    world.line("a", "o ready");
    spec
}

#[test]
fn it_has_the_directory_the_environment_and_pipes_of_its_own() {
    let world = World::new();
    let spec = running(&world);
    let (out, err, exit) = world.run(async {
        let script = "echo $GREETING $(ls file); cat; echo oops >&2; exit 9";
        let mut session = world
            .runtime()
            .exec(&spec, command(&["sh", "-c", script], None))
            .await
            .expect("it runs");
        session.input.write_all(b"typed\n").await.expect("written");
        read(session).await
    });
    assert_eq!(
        (&*out, &*err, exit),
        ("hello file\ntyped\n", "oops\n", ExitHow::Code { code: 9 })
    );
}

#[test]
fn what_is_missing_is_code_127_and_said() {
    let world = World::new();
    let spec = running(&world);
    let (_, err, exit) = world.run(async {
        read(
            world
                .runtime()
                .exec(&spec, command(&["no-such-program"], None))
                .await
                .expect("it runs"),
        )
        .await
    });
    assert_eq!(exit, ExitHow::Code { code: 127 });
    assert!(err.starts_with("no-such-program: No such file"), "{err}");
    let other = world.spec("other", &["true"]);
    let refused = world.run(world.runtime().exec(&other, command(&["true"], None)));
    assert!(matches!(refused, Err(Error::NotRunning(_))));
}

#[test]
fn a_terminal_is_a_terminal() {
    let world = World::new();
    let spec = running(&world);
    let size = TerminalSize {
        columns: 77,
        rows: 11,
    };
    let (out, exit) = world.run(async {
        let script = "tty; stty size; read line; stty size; echo \"got $line\"; exit 2";
        let session = world
            .runtime()
            .exec(&spec, command(&["sh", "-c", script], Some(size)))
            .await
            .expect("it runs");
        let Session {
            mut input,
            mut output,
            exit,
            resize,
            ..
        } = session;
        let mut out = Vec::new();
        while !String::from_utf8_lossy(&out).contains("11 77") {
            assert_ne!(
                output.read_buf(&mut out).await.expect("its output"),
                0,
                "{out:?}"
            );
        }
        resize.expect("a terminal")(TerminalSize {
            columns: 99,
            rows: 22,
        })
        .expect("resized");
        input.write_all(b"typed\r").await.expect("written");
        output.read_to_end(&mut out).await.expect("its output");
        (
            String::from_utf8_lossy(&out).into_owned(),
            exit.await.expect("its exit"),
        )
    });
    assert!(
        out.starts_with("/dev/pts/") && out.contains("22 99") && out.contains("got typed"),
        "{out}"
    );
    assert_eq!(exit, ExitHow::Code { code: 2 });
}

/// What a probe that takes too long has started goes with it; what one leaves that exits by itself stays.
#[test]
fn apart_it_is_killed_with_all_it_started() {
    for world in [World::new(), World::without_cgroups()] {
        let spec = running(&world);
        let start = |script: &str| {
            let mut command = command(&["sh", "-c", script], None);
            command.apart = true;
            world.runtime().exec(&spec, command)
        };
        let everywhere = if cgroups().is_some() && world.has_cgroups() {
            "setsid sleep 1000 & echo $!; "
        } else {
            ""
        };
        let script = format!("sleep 1000 & echo $!; {everywhere}sleep 1000");
        let started: Vec<u32> = world.run(async {
            let mut session = start(&script).await.expect("it runs");
            let most = script.matches('&').count();
            let mut said = Vec::new();
            while said.iter().filter(|byte| **byte == b'\n').count() < most {
                session
                    .output
                    .read_buf(&mut said)
                    .await
                    .expect("its output");
            }
            let said = String::from_utf8(said).expect("text");
            said.lines()
                .map(|line| line.parse().expect("a pid"))
                .collect()
        });
        for pid in started {
            wait_until("what it started to be gone", || !is_alive(pid));
        }
        let (said, exit) = world.run(async {
            let mut session = start("sleep 1000 >/dev/null 2>&1 & echo $!")
                .await
                .expect("it runs");
            let mut said = String::new();
            session
                .output
                .read_to_string(&mut said)
                .await
                .expect("its output");
            (said, session.exit.await.expect("its exit"))
        });
        assert_eq!(exit, ExitHow::Code { code: 0 });
        let left: u32 = said.trim().parse().expect("a pid");
        assert!(is_alive(left), "it stays");
        // As part of the instance, and no longer than that.
        let (id, directory) = (&spec.instance, &spec.directory);
        world
            .run(world.runtime().remove(id, directory))
            .expect("removed");
        if world.has_cgroups() {
            assert!(!is_alive(left));
        } else {
            crate::world::signal(left, rustix::process::Signal::KILL);
        }
    }
}

/// A person's shell, a probe's program, and what either has left: the workload has ended, and has put nothing into the background.
#[test]
fn commands_beside_it_are_nothing_that_it_left() {
    for world in [World::new(), World::without_cgroups()] {
        let mut world = world;
        let waits = "echo ready; while [ ! -e go ]; do sleep 0.05; done";
        let spec = world.shell("a", waits);
        world.start(&spec);
        world.line("a", "o ready");
        let left = "sleep 1001 >/dev/null 2>&1 & echo $!";
        let mut pids = Vec::new();
        for (script, apart) in [(left, false), (left, true)] {
            let mut command = command(&["sh", "-c", script], None);
            command.apart = apart;
            let said = world.run(async {
                let session = world.runtime().exec(&spec, command).await;
                read(session.expect("it runs")).await
            });
            pids.push(said.0.trim().parse::<u32>().expect("a pid"));
        }
        let sessions = world.run(async {
            let mut sessions = Vec::new();
            for apart in [false, true] {
                let mut command = command(&["sh", "-c", "echo on; exec sleep 1002"], None);
                command.apart = apart;
                let session = world.runtime().exec(&spec, command).await;
                let mut session = session.expect("it runs");
                let mut said = Vec::new();
                session.output.read_buf(&mut said).await.expect("read");
                sessions.push(session);
            }
            sessions
        });
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        std::fs::write(spec.directory.join("work/go"), "").expect("written");
        assert_eq!(world.exit().how, ExitHow::Code { code: 0 });
        drop(sessions);
        for pid in pids {
            match world.has_cgroups() && cgroups().is_some() {
                // It has gone with the instance all the same.
                true => wait_until("what was left to be gone", || !is_alive(pid)),
                false => crate::world::signal(pid, rustix::process::Signal::KILL),
            }
        }
    }
}

/// A command that a person broke off: it is killed, and its group goes with it, however often that happens.
#[test]
fn of_commands_that_were_given_up_no_group_stays() {
    let world = World::new();
    if cgroups().is_none() {
        return;
    }
    let spec = running(&world);
    let record = compute::instance::read_record(&spec.directory).expect("it runs");
    let group = serde_json::to_value(record.cgroup.expect("in a group")).expect("plain data");
    let last = group["legacy"].as_array().and_then(|all| all.last());
    let parent = group["unified"]
        .as_str()
        .or(last.and_then(|last| last.as_str()));
    let parent = std::path::PathBuf::from(parent.expect("a folder"));
    let groups = || {
        let entries = std::fs::read_dir(&parent).expect("read").flatten();
        let names = entries.map(|entry| entry.file_name().into_string().expect("text"));
        let beside = names.filter(|name| name.starts_with("exec-") && name != "exec-left");
        beside.count()
    };
    world.run(async {
        for apart in [false, true] {
            for _ in 0..8 {
                let mut command = command(&["sh", "-c", "echo on; sleep 1003"], None);
                command.apart = apart;
                let session = world.runtime().exec(&spec, command).await;
                let mut session = session.expect("it runs");
                let mut said = Vec::new();
                session.output.read_buf(&mut said).await.expect("read");
                assert!(groups() > 0);
                drop(session);
            }
        }
    });
    wait_until("their groups to be gone", || groups() == 0);
}
