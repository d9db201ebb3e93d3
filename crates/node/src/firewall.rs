//! Closes the ports of instances to every uid but root's and the service's own, so that a call goes through the proxy or not at all.
//!
//! Where the kernel can translate addresses, who dials a port that is closed to them is sent to the proxy's door of refusals, which names the
//! missing need; elsewhere the connection is reset.
//!
//! One nftables table per node, replaced as a whole in one transaction. <https://wiki.nftables.org/wiki-nftables/index.php/Atomic_rule_replacement>

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ids::NodeName;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Notify;

use crate::pause::Pause;

/// For the program that sets rules: it reads itself from a disk, and waits its turn in the kernel.
pub const NFT_PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries to set what could not be set, and to find out what can.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);

/// The rules of one node.
pub struct Firewall {
    table: String,
    refusals: SocketAddr,
    is_root: bool,
    support: Mutex<Support>,
    applied: tokio::sync::Mutex<Option<BTreeMap<u16, u32>>>,
    /// What is set is not what it should be.
    lacks: Notify,
}

#[derive(Clone)]
enum Support {
    /// Sent to the door of refusals.
    Named,
    /// Reset.
    Closed,
    /// Nobody has answered in time: looked at again, until somebody does.
    Unknown,
    Not(String),
}

/// Why no rules were set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// That says nothing of what this machine can do.
    #[error("`nft` did not end within {} s", NFT_PATIENCE.as_secs())]
    Late,
    #[error("{0}")]
    Refused(String),
}

impl From<String> for Error {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl Firewall {
    /// Finds out whether rules can be set; sets none.
    pub async fn detect(table: String, refusals: SocketAddr, is_root: bool) -> Self {
        let support = match is_root {
            false => Support::Not(
                "not root: services share one user: calls are labelled, not enforced, and each service can read the admin token, the keyring, the authority's key and all secrets, and write the store and the audit log; as root it can't".to_owned(),
            ),
            true => probe(&table, refusals).await,
        };
        let lacks = Notify::new();
        if matches!(support, Support::Unknown) {
            lacks.notify_one();
        }
        Self {
            table,
            refusals,
            is_root,
            support: Mutex::new(support),
            applied: tokio::sync::Mutex::default(),
            lacks,
        }
    }

    /// A name that no other node of the machine has.
    pub fn table(&self) -> &str {
        &self.table
    }

    fn support(&self) -> MutexGuard<'_, Support> {
        self.support.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is not enforced, as far as it is known.
    pub fn limit(&self) -> Option<String> {
        match &*self.support() {
            Support::Named | Support::Closed => None,
            Support::Unknown => Some(
                "nftables has not answered in time: calls to an instance's own port are not enforced until it does".to_owned(),
            ),
            Support::Not(why) => Some(why.clone()),
        }
    }

    /// Whether it is known what rules can be set.
    pub fn is_known(&self) -> bool {
        !matches!(*self.support(), Support::Unknown)
    }

    /// Waits until what is set is not what it should be.
    pub async fn lacks(&self) {
        self.lacks.notified().await;
    }

    /// A pause before what could not be set is tried again.
    pub fn pause() -> Pause {
        Pause::new(AGAIN_FIRST, AGAIN_MOST)
    }

    /// Found out now, if it was not before.
    async fn known(&self) -> Result<Support, Error> {
        let known = self.support().clone();
        if !matches!(known, Support::Unknown) {
            return Ok(known);
        }
        let found = probe(&self.table, self.refusals).await;
        *self.support() = found.clone();
        match &found {
            Support::Unknown => return Err(Error::Late),
            Support::Not(why) => tracing::warn!("{why}"),
            Support::Named | Support::Closed => {}
        }
        Ok(found)
    }

    /// Port → the uid that may dial it beside root.
    ///
    /// # Errors
    ///
    /// They are not set; [`Firewall::lacks`] says so to who tries again.
    pub async fn apply(&self, ports: BTreeMap<u16, u32>) -> Result<(), Error> {
        let mut applied = self.applied.lock().await;
        if applied.as_ref() == Some(&ports) {
            return Ok(());
        }
        let done = self.set(&mut applied, ports).await;
        if done.is_err() {
            self.lacks.notify_one();
        }
        done
    }

    async fn set(
        &self,
        applied: &mut Option<BTreeMap<u16, u32>>,
        ports: BTreeMap<u16, u32>,
    ) -> Result<(), Error> {
        let refusals = match self.known().await? {
            Support::Not(_) => return Ok(()),
            Support::Named => Some(self.refusals),
            Support::Closed | Support::Unknown => None,
        };
        // One that is given up may have been done all the same.
        *applied = None;
        nft(&rules(&self.table, &ports, refusals)).await?;
        *applied = Some(ports);
        Ok(())
    }

    /// Also where rules can't be set now: an earlier agent may have set some.
    pub async fn remove(&self) {
        if self.is_root {
            let _ = remove(&self.table).await;
        }
    }
}

/// Takes the table away, if it is there.
pub async fn remove(table: &str) -> Result<(), Error> {
    nft(&format!(
        "table inet {table} {{}}\ndelete table inet {table}\n"
    ))
    .await
}

fn trial_of(table: &str) -> String {
    format!("{table}_trial")
}

/// Of this node alone, though other clusters on the machine have nodes of the same name.
pub fn table_name(node: &NodeName, directory: &Path) -> String {
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let bytes = directory.as_os_str().as_encoded_bytes();
    // FNV-1a.
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    format!("mainland_{}_{hash:08x}", node.as_str().replace('-', "_"))
}

/// What rules this machine takes: tried on a port that nobody has, in a table that is there for it alone. That of an earlier agent keeps the ports
/// of what runs closed meanwhile.
async fn probe(table: &str, refusals: SocketAddr) -> Support {
    let none = BTreeMap::from([(0, 0)]);
    let trial = trial_of(table);
    let takes = async |refusals: Option<SocketAddr>| {
        let gone = format!("delete table inet {trial}\n");
        nft(&(rules(&trial, &none, refusals) + &gone)).await
    };
    match takes(Some(refusals)).await {
        Ok(()) => return Support::Named,
        // It may name them as well as not.
        Err(Error::Late) => return Support::Unknown,
        Err(Error::Refused(_)) => {}
    }
    match takes(None).await {
        Ok(()) => Support::Closed,
        Err(Error::Late) => Support::Unknown,
        Err(Error::Refused(why)) => Support::Not(format!(
            "nftables can't be used ({why}): calls through the mesh are enforced, calls to an instance's own port are not"
        )),
    }
}

/// Declared empty first, so that deleting it never fails; all of it is one transaction.
fn rules(table: &str, ports: &BTreeMap<u16, u32>, refusals: Option<SocketAddr>) -> String {
    let mut text =
        format!("table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n");
    if !ports.is_empty() {
        let all: Vec<String> = ports.keys().map(u16::to_string).collect();
        let all = all.join(", ");
        if let Some(refusals) = refusals {
            text += "  chain named {\n    type nat hook output priority -100; policy accept;\n";
            text += &format!("    tcp dport != {{ {all} }} accept\n");
            for (port, uid) in ports {
                text += &format!(
                    "    tcp dport {port} fib daddr type local meta skuid != {{ 0, {uid} }} dnat ip to {refusals}\n"
                );
            }
            text += "  }\n";
        }
        text += "  chain output {\n    type filter hook output priority filter; policy accept;\n";
        // Every packet of the machine comes by: only those that begin a connection are looked at. Of any other, the far end knows nothing.
        text += "    tcp flags & (fin | syn | rst | ack) != syn accept\n";
        text += &format!("    tcp dport != {{ {all} }} accept\n");
        for (port, uid) in ports {
            text += &format!(
                "    tcp dport {port} fib daddr type local meta skuid != {{ 0, {uid} }} reject with tcp reset\n"
            );
        }
        text +=
            "  }\n  chain input {\n    type filter hook input priority filter; policy accept;\n";
        text += "    iifname \"lo\" accept\n";
        text += &format!("    tcp dport {{ {all} }} reject with tcp reset\n  }}\n");
    }
    text + "}\n"
}

async fn nft(script: &str) -> Result<(), Error> {
    within_patience(Command::new("nft"), script).await
}

async fn within_patience(nft: Command, script: &str) -> Result<(), Error> {
    let done = tokio::time::timeout(NFT_PATIENCE, run(nft, script)).await;
    Ok(done.map_err(|_| Error::Late)??)
}

/// Dropped, it is killed.
async fn run(mut nft: Command, script: &str) -> Result<(), String> {
    let mut child = nft
        .args(["-f", "-"])
        .env(
            "PATH",
            "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("`nft` can't be run: {error}"))?;
    let mut stdin = child.stdin.take().ok_or("`nft` has no stdin")?;
    let written = stdin.write_all(script.as_bytes()).await;
    drop(stdin);
    let output = child
        .wait_with_output()
        .await
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said
            .lines()
            .next()
            .unwrap_or("`nft` failed without a word")
            .to_owned());
    }
    written.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_program_that_never_ends_is_given_up() {
        let waits = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        };
        let error = within_patience(waits(), "").await.expect_err("it hangs");
        assert!(matches!(error, Error::Late), "{error}");
        let error = error.to_string();
        assert!(error.contains("did not end within 10 s"), "{error}");
    }

    #[test]
    fn nodes_of_one_name_have_tables_of_their_own() {
        let node = NodeName::new("a-1").unwrap();
        let one = table_name(&node, Path::new("/x/a-1"));
        assert!(one.starts_with("mainland_a_1_"), "{one}");
        assert_eq!(one, table_name(&node, Path::new("/x/a-1")));
        assert_ne!(one, table_name(&node, Path::new("/y/a-1")));
    }

    #[test]
    fn the_whole_table_is_one_transaction() {
        let text = rules(
            "mainland_a",
            &[(20_000, 70_001), (20_001, 70_002)].into(),
            None,
        );
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines[..3],
            [
                "table inet mainland_a {}",
                "delete table inet mainland_a",
                "table inet mainland_a {"
            ]
        );
        assert!(
            text.contains("tcp dport 20000 fib daddr type local meta skuid != { 0, 70001 } reject")
        );
        let begins = text.find("(fin | syn | rst | ack) != syn accept");
        assert!(begins < text.find("skuid"), "what goes on is not looked at");
        let inwards = text.split("chain input").nth(1).unwrap();
        assert!(inwards.contains("iifname \"lo\" accept"));
        assert!(inwards.contains("tcp dport { 20000, 20001 } reject"));
        assert!(
            !rules("mainland_a", &BTreeMap::new(), None).contains("chain"),
            "no rule when nothing runs"
        );
    }

    #[test]
    fn who_is_closed_out_is_sent_to_be_told_why() {
        let refusals = "127.77.16.0:7079".parse().unwrap();
        let text = rules("mainland_a", &[(20_000, 70_001)].into(), Some(refusals));
        assert!(
            text.contains("tcp dport 20000 fib daddr type local meta skuid != { 0, 70001 } dnat ip to 127.77.16.0:7079"),
            "{text}"
        );
        assert!(
            text.contains("reject with tcp reset"),
            "for what is no IPv4"
        );
    }

    /// A disk that hangs while the machine comes up: what was not answered then is asked again.
    #[tokio::test]
    async fn an_answer_that_came_late_is_asked_for_again() {
        let table = format!("mainland_late_{}", std::process::id());
        let refusals = "127.77.16.0:7079".parse().unwrap();
        let firewall = Firewall::detect(table.clone(), refusals, true).await;
        if firewall.limit().is_some() {
            println!("rules can't be set: not root, or no nftables");
            return;
        }
        *firewall.support() = Support::Unknown;
        let limit = firewall.limit().expect("it is said meanwhile");
        assert!(limit.contains("has not answered in time"), "{limit}");
        firewall.apply([(9, 70_001)].into()).await.expect("set");
        assert_eq!(firewall.limit(), None);
        assert!(list(&table).await.contains("tcp dport 9 "));
        // One that can set none takes away what another one has set.
        *firewall.support() = Support::Not("it can't".to_owned());
        firewall.remove().await;
        assert_eq!(list(&table).await, "");
    }

    /// Of a port that nobody uses.
    #[tokio::test]
    async fn the_ports_of_what_runs_stay_closed_while_an_agent_begins() {
        let table = format!("mainland_test_{}", std::process::id());
        let refusals = "127.77.16.0:7079".parse().unwrap();
        let before = Firewall::detect(table.clone(), refusals, true).await;
        if before.limit().is_some() {
            println!("rules can't be set: not root, or no nftables");
            return;
        }
        before.apply(BTreeMap::from([(9, 70_001)])).await.unwrap();
        // Looked at all the while: an empty table for a moment is as bad as one for good.
        let beginning = tokio::spawn({
            let table = table.clone();
            async move {
                Firewall::detect(table, refusals, true)
                    .await
                    .limit()
                    .is_none()
            }
        });
        while !beginning.is_finished() {
            let listed = list(&table).await;
            assert!(listed.contains("tcp dport 9 "), "{listed}");
        }
        assert!(beginning.await.unwrap());
        let listed = list(&table).await;
        before.remove().await;
        assert!(listed.contains("tcp dport 9 "), "{listed}");
        assert_eq!(list(&trial_of(&table)).await, "");
    }

    async fn list(table: &str) -> String {
        let mut nft = Command::new("nft");
        let listed = nft.args(["list", "table", "inet", table]).output().await;
        String::from_utf8_lossy(&listed.unwrap().stdout).into_owned()
    }
}
