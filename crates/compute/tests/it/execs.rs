//! One more program beside the workload.

use compute::runtime::{Error, ExecCommand, InstanceSpec, Runtime as _, Session, TerminalSize};
use model::compute::ExitHow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::World;

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
    ExecCommand { argv, terminal }
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
