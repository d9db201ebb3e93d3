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
use std::time::Duration;

use model::ids::NodeName;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// For the program that sets rules: it reads itself from a disk, and waits its turn in the kernel.
pub const NFT_PATIENCE: Duration = Duration::from_secs(10);

/// The rules of one node.
pub struct Firewall {
    table: String,
    refusals: SocketAddr,
    support: Support,
    applied: tokio::sync::Mutex<Option<BTreeMap<u16, u32>>>,
}

enum Support {
    /// Sent to the door of refusals.
    Named,
    /// Reset.
    Closed,
    Not(String),
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
        Self {
            table,
            refusals,
            support,
            applied: tokio::sync::Mutex::default(),
        }
    }

    /// A name that no other node of the machine has.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What is not enforced, to be said once.
    pub fn limit(&self) -> Option<&str> {
        match &self.support {
            Support::Named | Support::Closed => None,
            Support::Not(why) => Some(why),
        }
    }

    /// Port → the uid that may dial it beside root.
    pub async fn apply(&self, ports: BTreeMap<u16, u32>) -> Result<(), String> {
        if self.limit().is_some() {
            return Ok(());
        }
        let mut applied = self.applied.lock().await;
        if applied.as_ref() == Some(&ports) {
            return Ok(());
        }
        let refusals = matches!(self.support, Support::Named).then_some(self.refusals);
        // One that is given up may have been done all the same.
        *applied = None;
        nft(&rules(&self.table, &ports, refusals)).await?;
        *applied = Some(ports);
        Ok(())
    }

    pub async fn remove(&self) {
        if self.limit().is_none() {
            let _ = remove(&self.table).await;
        }
    }
}

/// Takes the table away, if it is there.
pub async fn remove(table: &str) -> Result<(), String> {
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
    if takes(Some(refusals)).await.is_ok() {
        return Support::Named;
    }
    match takes(None).await {
        Ok(()) => Support::Closed,
        Err(why) => Support::Not(format!(
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

async fn nft(script: &str) -> Result<(), String> {
    within_patience(Command::new("nft"), script).await
}

async fn within_patience(nft: Command, script: &str) -> Result<(), String> {
    let done = tokio::time::timeout(NFT_PATIENCE, run(nft, script)).await;
    done.unwrap_or_else(|_| {
        let patience = NFT_PATIENCE.as_secs();
        Err(format!("`nft` did not end within {patience} s"))
    })
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
