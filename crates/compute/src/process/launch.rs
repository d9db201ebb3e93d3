//! Starting a shim.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use model::compute::OnPartition;
use model::ids::{Digest, InstanceId};
use model::units::Span;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{Options, blocking, conversation};
use crate::cgroup::{Cgroups, Group, Limits};
use crate::identity::ProcessIdentity;
use crate::lease::Moment;
use crate::runtime::{Error, InstanceSpec, Started};
use crate::shim::protocol::{Launch, Launched, Program};

/// The word of the command line by which shims are found.
pub(super) const SHIM: &str = "shim";
const LAST_WORDS: &str = "shim.err";
const LAST_WORDS_BYTES: usize = 2000;
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(2);

/// What came of a launch that failed. Something of it may live.
pub(super) struct Failed {
    pub error: Error,
    /// Where one was started.
    pub shim: Option<ProcessIdentity>,
}

/// `lease`: the newest renewal, told to the shim for as long as the start takes.
pub(super) async fn launch(
    options: &Options,
    spec: &InstanceSpec,
    lease: watch::Receiver<Option<Moment>>,
) -> Result<(Started, Child), Failed> {
    let mut shim = begin(options, spec)
        .await
        .map_err(|error| Failed { error, shim: None })?;
    let identity = shim
        .child
        .id()
        .and_then(|pid| ProcessIdentity::of(pid).ok());
    let patience = options.start_patience;
    let has_lease = shim.launch.lease_sent_at.is_some();
    let told = async {
        tokio::select! {
            told = converse(&mut shim.child, &shim.launch) => told,
            never = conversation::renew(&spec.directory, lease), if has_lease => match never {},
        }
    };
    let told = tokio::time::timeout(patience, told).await;
    let error = match told {
        Ok(Ok(Launched::Started { pid, at })) => return Ok((Started { pid, at }, shim.child)),
        Ok(Ok(Launched::NotStarted {
            lease_over: true, ..
        })) => Error::LeaseOver,
        Ok(Ok(Launched::NotStarted { error, .. })) => Error::NotStarted { error },
        Ok(Err(error)) => failed(&mut shim.child, &spec.directory, &error.to_string()).await,
        Err(_) => {
            let error = format!("it did not answer in {} s", patience.as_secs_f32());
            failed(&mut shim.child, &spec.directory, &error).await
        }
    };
    Err(Failed {
        error,
        shim: identity,
    })
}

struct Shim {
    child: Child,
    launch: Launch,
}

/// On a thread of its own: every step of it may wait for a disk.
async fn begin(options: &Options, spec: &InstanceSpec) -> Result<Shim, Error> {
    let (cgroups, binary) = (options.cgroups.clone(), options.binary.clone());
    let spec = spec.clone();
    blocking(move || {
        let cgroup = make_cgroup(cgroups.as_ref(), &spec)?;
        let launch = Launch {
            program: program(&spec, spec.argv.clone(), cgroup),
            memory: spec.memory,
            grace: Span(spec.grace),
            lease_sent_at: (spec.on_partition == OnPartition::Stop).then_some(spec.lease_sent_at),
        };
        let child = spawn(&binary, &spec.directory)?;
        Ok(Shim { child, launch })
    })
    .await
}

pub(super) fn program(spec: &InstanceSpec, argv: Vec<String>, cgroup: Option<Group>) -> Program {
    Program {
        argv,
        environment: spec.environment.clone(),
        identity: spec.identity,
        cgroup,
        open_files: spec.open_files,
        terminal: None,
        dies_with: None,
    }
}

fn make_cgroup(cgroups: Option<&Cgroups>, spec: &InstanceSpec) -> Result<Option<Group>, Error> {
    let Some(cgroups) = cgroups else {
        return Ok(None);
    };
    let name = cgroup_name(&spec.instance, &spec.directory);
    let limits = Limits {
        memory: spec.memory,
        cpu: spec.cpu,
        pids: spec.pids,
    };
    Ok(Some(cgroups.create(&name, limits)?))
}

/// The name of an instance's cgroup. The directory is in it as a digest: nodes that share a machine have instances of the same name one after the other.
pub fn cgroup_name(instance: &InstanceId, directory: &Path) -> String {
    let digest = Digest(Sha256::digest(directory.as_os_str().as_encoded_bytes()).into()).hex();
    format!(
        "mainland-{}-{}-{}",
        instance.project,
        instance.name,
        &digest[..12]
    )
}

fn spawn(binary: &Path, directory: &Path) -> Result<Child, Error> {
    let started = |error| Error::io("starting a shim in", directory)(error);
    let last_words = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(LAST_WORDS))
        .map_err(started)?;
    let mut command = Command::new(binary);
    command
        .arg(SHIM)
        .arg(directory)
        .env_clear()
        .current_dir("/");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(last_words);
    command.spawn().map_err(started)
}

async fn converse(shim: &mut Child, launch: &Launch) -> std::io::Result<Launched> {
    let (Some(mut stdin), Some(stdout)) = (shim.stdin.take(), shim.stdout.take()) else {
        return Err(std::io::Error::other("it has no pipes"));
    };
    stdin.write_all(&serde_json::to_vec(launch)?).await?;
    // The end of the launch.
    drop(stdin);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

/// The shim itself failed: what it last said is the best explanation there is. It is killed; whoever asked sees to it that it ends.
async fn failed(shim: &mut Child, directory: &Path, error: &str) -> Error {
    let _ = shim.start_kill();
    // One that waits for a disk ends when that answers.
    let _ = tokio::time::timeout(LAST_WORDS_PATIENCE, shim.wait()).await;
    let path = directory.join(LAST_WORDS);
    let reading = tokio::task::spawn_blocking(move || std::fs::read_to_string(path));
    let words = match tokio::time::timeout(LAST_WORDS_PATIENCE, reading).await {
        Ok(Ok(Ok(words))) => words,
        _ => String::new(),
    };
    let words: String = words.chars().take(LAST_WORDS_BYTES).collect();
    Error::NotStarted {
        error: format!("the shim failed: {error} {words}")
            .trim()
            .to_owned(),
    }
}
