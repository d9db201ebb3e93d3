//! What a program begins with, whatever whoever started us has set, ignored, blocked or limited.

use std::collections::BTreeMap;
use std::process::Command;

use compute::runtime::{ExecCommand, Identity, InstanceSpec, Runtime as _};
use tokio::io::AsyncReadExt;

use crate::world::{BINARY, World, is_root, open_to_others};

const PYTHON: &str = "/usr/bin/python3";

/// All that a process hands on to what it executes, made unusual, but for what only privilege takes back where there is none; then the real one.
const UNUSUAL: &str = r#"
import ctypes, os, resource, signal, sys
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.umask(0)
if PRIVILEGED: os.nice(7)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
open('/proc/self/oom_score_adj', 'w').write('555')
for name, soft, hard in [
    ('CPU', 9999, 9999), ('FSIZE', 1 << 40, 1 << 40), ('DATA', 1 << 40, 1 << 40), ('STACK', 1 << 20, 1 << 30),
    ('CORE', 1 << 20, 1 << 20), ('RSS', 1 << 40, 1 << 40), ('MEMLOCK', 4096, 4096), ('AS', 1 << 42, 1 << 42),
    ('NPROC', 5000, 5000), ('NOFILE', 300, 4000), ('SIGPENDING', 77, 77), ('MSGQUEUE', 4096, 4096),
    ('NICE', 30, 30), ('RTPRIO', 60, 60),
]:
    limit = getattr(resource, 'RLIMIT_' + name)
    before = resource.getrlimit(limit)[1]
    if not RAISES:
        # What is taken from the hard limit nobody could give back.
        hard, soft = before, soft if before == -1 else min(soft, before)
    resource.setrlimit(limit, (soft, hard))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(251, 1, 0, (2 << 13) | 6) == 0, 'priority of I/O'
assert libc.personality(0x0040000) >= 0, 'personality'
assert libc.prctl(29, 1234567, 0, 0, 0) == 0, 'timer slack'
if PRIVILEGED:
    assert libc.prctl(28, 1 << 2, 0, 0, 0) == 0, 'securebits: no fixup of capabilities'
os.environ['LD_PRELOAD'] = '/nowhere.so'
os.execv('BINARY', ['mainland'] + sys.argv[1:])
"#;

/// What it finds of itself: `KEY VALUE` lines.
const LOOK: &str = r#"
import ctypes, os
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
for key in ['SigIgn', 'SigBlk', 'Umask', 'CapInh', 'CapPrm', 'CapEff', 'CapAmb', 'NoNewPrivs']:
    print(key, status[key].strip())
stat = open('/proc/self/stat').read().rsplit(') ', 1)[1].split()
print('terminal', stat[4])
print('nice', stat[16])
print('policy', os.sched_getscheduler(0))
print('leads', os.getpgrp() == os.getpid())
print('adj', open('/proc/self/oom_score_adj').read().strip())
print('personality', open('/proc/self/personality').read().strip())
libc = ctypes.CDLL(None)
print('io', libc.syscall(252, 1, 0) >> 13)
print('slack', libc.prctl(30, 0, 0, 0, 0))
print('folder', os.path.basename(os.getcwd()))
print('environment', sorted(set(os.environ) - {'PATH', 'PWD', 'LC_CTYPE'}))
for line in open('/proc/self/limits').readlines()[1:]:
    words = line[26:].split()
    print(line[:26].strip().replace(' ', '-'), words[0], words[1])
print('end')
"#;

/// `LOOK`'s own interpreter ignores SIGPIPE and SIGXFSZ, whatever it begins with: a shell tells the signals.
const LOOK_AT_SIGNALS: &str = "while read key value; do case $key in SigIgn:|SigBlk:) echo \"$key $value\";; esac; done </proc/self/status; exec python3 -c \"$LOOK\"";

fn spec(world: &World) -> InstanceSpec {
    let mut spec = world.shell("a", LOOK_AT_SIGNALS);
    spec.environment
        .0
        .insert("LOOK".to_owned(), LOOK.to_owned());
    if is_root() {
        spec.identity = Some(Identity {
            uid: 64_321,
            gid: 64_321,
        });
    }
    spec
}

/// Whether this process may raise hard limits: CAP_SYS_RESOURCE, bit 24.
fn raises() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    capabilities.is_some_and(|capabilities| capabilities >> 24 & 1 == 1)
}

/// `SOFT HARD` as /proc says it, of limits that this process may set.
fn within_hard_limit(limit: &str, wanted: &str) -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("/proc");
    let words = limits
        .lines()
        .find(|line| line[..26].trim().replace(' ', "-") == limit)
        .map(|line| line[26..].split_ascii_whitespace().collect::<Vec<_>>())
        .expect("a limit of that name");
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let bounded = |text: &str| match number(text).min(number(words[1])) {
        u64::MAX => "unlimited".to_owned(),
        bound => bound.to_string(),
    };
    match raises() {
        true => wanted.to_owned(),
        false => wanted.split(' ').map(bounded).collect::<Vec<_>>().join(" "),
    }
}

fn expected(world: &World, spec: &InstanceSpec) -> BTreeMap<&'static str, String> {
    let none = "0000000000000000";
    let mut expected = BTreeMap::from([
        ("SigIgn:", none.to_owned()),
        ("SigBlk:", none.to_owned()),
        ("Umask", "0022".to_owned()),
        ("CapInh", none.to_owned()),
        ("CapPrm", none.to_owned()),
        ("CapEff", none.to_owned()),
        ("CapAmb", none.to_owned()),
        ("NoNewPrivs", "1".to_owned()),
        ("terminal", "0".to_owned()),
        ("nice", "0".to_owned()),
        ("policy", "0".to_owned()),
        ("leads", "True".to_owned()),
        ("adj", "0".to_owned()),
        ("personality", "00000000".to_owned()),
        ("io", "0".to_owned()),
        ("slack", "50000".to_owned()),
        ("folder", "work".to_owned()),
        ("environment", "['LOOK']".to_owned()),
    ]);
    let (no, unlimited) = ("0 0", "unlimited unlimited");
    let open_files = format!("{0} {0}", spec.open_files);
    for (limit, value) in [
        ("Max-cpu-time", unlimited),
        ("Max-file-size", unlimited),
        ("Max-data-size", unlimited),
        ("Max-stack-size", "8388608 unlimited"),
        ("Max-core-file-size", "0 unlimited"),
        ("Max-resident-set", unlimited),
        ("Max-locked-memory", "8388608 8388608"),
        ("Max-address-space", unlimited),
        ("Max-file-locks", unlimited),
        ("Max-pending-signals", "32768 32768"),
        ("Max-msgqueue-size", "819200 819200"),
        ("Max-nice-priority", no),
        ("Max-realtime-priority", no),
        ("Max-realtime-timeout", unlimited),
        ("Max-open-files", &open_files),
    ] {
        expected.insert(limit, within_hard_limit(limit, value));
    }
    if world.has_cgroups() {
        let limit = "Max-processes";
        expected.insert(limit, within_hard_limit(limit, unlimited));
    }
    expected
}

fn check(world: &World, spec: &InstanceSpec, said: &str) {
    let found: BTreeMap<&str, &str> = said
        .lines()
        .filter_map(|line| line.trim_start_matches("o ").split_once(' '))
        .collect();
    let mut wrong = Vec::new();
    for (key, value) in expected(world, spec) {
        let found = found.get(key).map(|found| found.trim());
        if found != Some(value.as_str()) {
            wrong.push(format!("{key}: {found:?} rather than {value}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{said}");
}

fn unusual() -> Option<World> {
    let has_python = Command::new(PYTHON).arg("-V").output();
    if has_python.is_err() {
        eprintln!("without {PYTHON} nothing unusual can be set");
        return None;
    }
    let python = |holds| if holds { "True" } else { "False" };
    let script = UNUSUAL
        .replace("BINARY", BINARY)
        .replace("RAISES", python(raises()))
        .replace("PRIVILEGED", python(is_root()));
    let world = World::new().by(PYTHON, &script);
    open_to_others(world.folder.path());
    Some(world)
}

#[test]
fn a_program_inherits_nothing_of_whoever_started_us() {
    let Some(mut world) = unusual() else { return };
    let spec = spec(&world);
    world.start(&spec);
    // Reaped, though whoever started the shim ignores and blocks the news of it.
    world.exit();
    check(&world, &spec, &world.output("a"));
}

#[test]
fn nor_does_a_command_beside_it() {
    let Some(world) = unusual() else { return };
    let looks = spec(&world);
    let mut waits = world.shell("a", "echo ready; exec sleep 1000");
    waits.environment = looks.environment.clone();
    waits.identity = looks.identity;
    world.start(&waits);
    world.line("a", "o ready");
    let said = world.run(async {
        let command = ExecCommand {
            argv: looks.argv.clone(),
            terminal: None,
            apart: false,
        };
        let session = world.runtime().exec(&waits, command).await;
        let mut session = session.expect("a session");
        let mut said = String::new();
        let output = session.output.read_to_string(&mut said);
        output.await.expect("its output");
        said
    });
    check(&world, &looks, &said);
}
