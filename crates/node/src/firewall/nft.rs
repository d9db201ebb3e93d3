//! The program that sets rules. It reads itself from a disk and waits its turn in the kernel, so it may not answer in time, and where it hangs in the kernel,
//! nobody can end it: no other one is begun beside it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Of what it says of its failure.
const WORDS_MAX: u64 = 64 << 10;

/// Why no rules were set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// That says nothing of what this machine can do.
    #[error("`nft` has not answered in time")]
    Late,
    #[error("the node has stopped")]
    Gone,
    #[error("{0}")]
    Refused(String),
}

impl From<String> for Error {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

pub struct Nft {
    program: PathBuf,
    /// One that did not answer, for as long as it is there.
    given_up: Mutex<Option<Child>>,
}

impl Default for Nft {
    fn default() -> Self {
        Self::by("nft".into())
    }
}

impl Nft {
    pub fn by(program: PathBuf) -> Self {
        Self {
            program,
            given_up: Mutex::default(),
        }
    }

    /// Does what `script` says, in one transaction.
    ///
    /// # Errors
    ///
    /// [`Error::Late`] after `patience`, or at once while one that was late before is still there. What it was to do may have been done all the same.
    pub async fn run(&self, script: &str, patience: Duration) -> Result<(), Error> {
        if self.hangs() {
            return Err(Error::Late);
        }
        let mut child = start(Command::new(&self.program))?;
        let done = tokio::time::timeout(patience, converse(&mut child, script)).await;
        let Ok(done) = done else {
            let _ = child.start_kill();
            *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
            return Err(Error::Late);
        };
        Ok(done?)
    }

    /// Whether one that was given up is there yet.
    fn hangs(&self) -> bool {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = given_up.as_mut() else {
            return false;
        };
        let hangs = matches!(child.try_wait(), Ok(None));
        if !hangs {
            *given_up = None;
        }
        hangs
    }
}

/// Dropped, it is killed.
fn start(mut nft: Command) -> Result<Child, String> {
    nft.args(["-f", "-"])
        .env(
            "PATH",
            "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("`nft` can't be run: {error}"))
}

async fn converse(nft: &mut Child, script: &str) -> Result<(), String> {
    let mut stdin = nft.stdin.take().ok_or("`nft` has no stdin")?;
    let stderr = nft.stderr.take().ok_or("`nft` has no stderr")?;
    let written = stdin.write_all(script.as_bytes()).await;
    drop(stdin);
    let mut said = Vec::new();
    let read = stderr.take(WORDS_MAX).read_to_end(&mut said).await;
    let status = nft.wait().await.map_err(|error| error.to_string())?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        let first = said.lines().next();
        return Err(first.unwrap_or("`nft` failed without a word").to_owned());
    }
    let done = written.and_then(|()| read.map(drop));
    done.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// One that does this instead.
    fn that_does(folder: &tempfile::TempDir, script: &str) -> Nft {
        let program = folder.path().join("nft");
        let fresh = folder.path().join("fresh");
        std::fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(fresh, &program).unwrap();
        Nft::by(program)
    }

    /// Far more than it takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn its_last_words_are_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let run = async |script: &str| {
            let done = that_does(&folder, script).run("table", PATIENCE).await;
            done.map_err(|error| error.to_string())
        };
        assert_eq!(run("cat >/dev/null").await, Ok(()));
        let refused = run("cat >/dev/null; echo 'no such table' >&2; echo more >&2; exit 1");
        assert_eq!(refused.await, Err("no such table".to_owned()));
        let silent = Err("`nft` failed without a word".to_owned());
        assert_eq!(run("exit 1").await, silent);
    }

    /// Not one more for each try: one that hangs in the kernel stays there, killed or not.
    #[tokio::test]
    async fn no_other_begins_beside_one_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let nft = that_does(&folder, "exec sleep 1000");
        let late = nft.run("", Duration::from_millis(50)).await;
        assert!(matches!(late, Err(Error::Late)), "{late:?}");
        let mut killed = nft.given_up.lock().unwrap().take().expect("it is kept");
        killed.wait().await.expect("it was killed");
        // From here on, one that can't be.
        let hangs = Command::new("sleep").arg("1000").kill_on_drop(true).spawn();
        *nft.given_up.lock().unwrap() = Some(hangs.unwrap());
        let begun = folder.path().join("begun");
        that_does(&folder, &format!("cat >>'{}'", begun.display()));
        for _ in 0..3 {
            let late = nft.run("rules", PATIENCE).await;
            assert!(matches!(late, Err(Error::Late)), "{late:?}");
        }
        assert!(!begun.exists(), "another one was begun");
        let mut hangs = nft.given_up.lock().unwrap().take().expect("it is kept");
        hangs.kill().await.unwrap();
        *nft.given_up.lock().unwrap() = Some(hangs);
        nft.run("rules", PATIENCE).await.expect("it is gone");
        assert_eq!(std::fs::read_to_string(begun).unwrap(), "rules");
    }
}
