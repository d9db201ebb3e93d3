//! One deploy at a time in a project: held for as long as this client says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::client::Client;
use api::wire;
use model::ids::ProjectName;
use tokio::task::JoinHandle;

use crate::failure::Failure;
use crate::notice;

/// A third of the silence after which the server lets others in.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// Between tries while another holds it.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A server that is away must not hold up the end of a command.
const END_PATIENCE: Duration = Duration::from_secs(2);

const TAKEN: &str = "deploy-in-progress";

/// Held until [`Lock::end`], or until this process ends and is silent for 15 s.
pub struct Lock {
    client: Arc<Client>,
    project: ProjectName,
    pub id: String,
    renewing: JoinHandle<()>,
}

impl Lock {
    /// Takes it; with `wait`, once who has it lets go.
    pub async fn take(
        client: &Arc<Client>,
        project: &ProjectName,
        wait: Option<Duration>,
    ) -> Result<Self, Failure> {
        let id = crate::idempotency_key();
        let deadline = wait.map(|wait| Instant::now() + wait);
        let mut told = false;
        loop {
            match client.hold_deploy(project, &id, &hold()).await {
                Ok(_) => break,
                Err(error)
                    if error.code() == Some(TAKEN)
                        && deadline.is_some_and(|deadline| Instant::now() < deadline) =>
                {
                    if !std::mem::replace(&mut told, true) {
                        notice(&format!("waits: {error}"));
                    }
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let renewing = tokio::spawn(renew(client.clone(), project.clone(), id.clone()));
        Ok(Self {
            client: client.clone(),
            project: project.clone(),
            id,
            renewing,
        })
    }

    /// Lets others deploy. Where the server does not answer, they can 15 s later.
    pub async fn end(self) {
        self.renewing.abort();
        let ending = self.client.end_deploy(&self.project, &self.id);
        let _ = tokio::time::timeout(END_PATIENCE, ending).await;
    }
}

async fn renew(client: Arc<Client>, project: ProjectName, id: String) {
    loop {
        tokio::time::sleep(RENEW_INTERVAL).await;
        match client.hold_deploy(&project, &id, &hold()).await {
            // A server that was away may have let another in.
            Err(error) if error.code() == Some(TAKEN) => {
                notice(&format!("another deploys now as well: {error}"));
                return;
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// Who this is, for others to read.
fn hold() -> wire::HoldDeploy {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| format!("uid {}", rustix::process::geteuid().as_raw()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    wire::HoldDeploy {
        client: format!("{user}@{}, pid {}", host.trim(), std::process::id()),
    }
}
