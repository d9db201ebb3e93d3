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

use super::Options;
use crate::cgroup::Group;
use crate::runtime::{Error, InstanceSpec, Started};
use crate::shim::protocol::{Launch, Launched, Program};

/// For a shim to start its workload or say why not.
const PATIENCE: Duration = Duration::from_secs(30);
const LAST_WORDS: &str = "shim.err";
const LAST_WORDS_BYTES: usize = 2000;

pub(super) async fn launch(
    options: &Options,
    spec: &InstanceSpec,
) -> Result<(Started, Child), Error> {
    let cgroup = make_cgroup(options, spec)?;
    let launch = Launch {
        program: program(spec, spec.argv.clone(), cgroup.clone()),
        memory: spec.memory,
        grace: Span(spec.grace),
        lease_sent_at: (spec.on_partition == OnPartition::Stop).then_some(spec.lease_sent_at),
    };
    let launched = start_shim(options, &spec.directory, &launch).await;
    if let (Err(_), Some(group)) = (&launched, &cgroup) {
        // It is empty, or it is another shim's, and then it stays.
        let _ = group.remove();
    }
    launched
}

async fn start_shim(
    options: &Options,
    directory: &Path,
    launch: &Launch,
) -> Result<(Started, Child), Error> {
    let mut shim = spawn(options, directory)?;
    let told = tokio::time::timeout(PATIENCE, converse(&mut shim, launch)).await;
    match told {
        Ok(Ok(Launched::Started { pid, at })) => Ok((Started { pid, at }, shim)),
        Ok(Ok(Launched::NotStarted { error })) => {
            let _ = shim.wait().await;
            Err(Error::NotStarted { error })
        }
        Ok(Err(error)) => Err(failed(&mut shim, directory, &error.to_string()).await),
        Err(_) => Err(failed(&mut shim, directory, "it did not answer in 30 s").await),
    }
}

pub(super) fn program(spec: &InstanceSpec, argv: Vec<String>, cgroup: Option<Group>) -> Program {
    Program {
        argv,
        environment: spec.environment.clone(),
        identity: spec.identity,
        cgroup,
        open_files: spec.open_files,
        terminal: None,
    }
}

fn make_cgroup(options: &Options, spec: &InstanceSpec) -> Result<Option<Group>, Error> {
    let Some(cgroups) = &options.cgroups else {
        return Ok(None);
    };
    let name = cgroup_name(&spec.instance, &spec.directory);
    Ok(Some(cgroups.create(&name, spec.memory, spec.cpu)?))
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

fn spawn(options: &Options, directory: &Path) -> Result<Child, Error> {
    let started = |error| Error::io("starting a shim in", directory)(error);
    let last_words = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(LAST_WORDS))
        .map_err(started)?;
    let mut command = Command::new(&options.binary);
    command
        .arg("shim")
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

/// The shim itself failed: what it last said is the best explanation there is.
async fn failed(shim: &mut Child, directory: &Path, error: &str) -> Error {
    let _ = shim.start_kill();
    let _ = shim.wait().await;
    let words = std::fs::read_to_string(directory.join(LAST_WORDS)).unwrap_or_default();
    let words: String = words.chars().take(LAST_WORDS_BYTES).collect();
    Error::NotStarted {
        error: format!("the shim failed: {error} {words}")
            .trim()
            .to_owned(),
    }
}
