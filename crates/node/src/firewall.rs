//! Closes the ports of instances to every uid but root's and the service's own, so that a call goes through the proxy or not at all.
//!
//! Where the kernel can translate addresses, who dials a port that is closed to them is sent to the proxy's door of refusals, which names the
//! missing need; elsewhere the connection is reset.
//!
//! One nftables table per node, replaced as a whole in one transaction. <https://wiki.nftables.org/wiki-nftables/index.php/Atomic_rule_replacement>
//!
//! Nobody waits for a program that does not answer but who looks after the rules: it alone finds out again what can be set ([`Firewall::find_out`]), and
//! the others are told at once that it is not known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ids::NodeName;
use tokio::sync::Notify;

use crate::pause::Pause;

mod nft;

pub use nft::Error;
use nft::Nft;

/// For the program that sets rules.
pub const NFT_PATIENCE: Duration = Duration::from_secs(10);
/// At the agent's start, when the servers wait for a word of it: what is not found out within this is found out beside the rest.
const BEGIN_PATIENCE: Duration = Duration::from_millis(500);

/// Between two tries to set what could not be set, and to find out what can. Instances wait for it.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(10);

/// The rules of one node.
pub struct Firewall {
    table: String,
    refusals: SocketAddr,
    is_root: bool,
    nft: Nft,
    support: Mutex<Support>,
    applied: tokio::sync::Mutex<Option<BTreeMap<u16, u32>>>,
    /// The table is taken away for good.
    gone: AtomicBool,
    /// What is set may not be what it should be.
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

impl Firewall {
    /// Finds out whether rules can be set, if that is soon known; sets none.
    pub async fn detect(table: String, refusals: SocketAddr, is_root: bool) -> Self {
        let firewall = Self {
            table,
            refusals,
            is_root,
            nft: Nft::default(),
            support: Mutex::new(Support::Unknown),
            applied: tokio::sync::Mutex::default(),
            gone: AtomicBool::new(false),
            lacks: Notify::new(),
        };
        let support = match is_root {
            false => Support::Not(
                "not root: services share one user: calls are labelled, not enforced, and each service can read the admin token, the keyring, the authority's key and all secrets, and write the store and the audit log; as root it can't".to_owned(),
            ),
            true => firewall.probe(BEGIN_PATIENCE).await,
        };
        if matches!(support, Support::Unknown) {
            firewall.wants();
        }
        *firewall.support() = support;
        firewall
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
                "`nft` has not answered in time: until it does, no instance is started here, since everybody on this machine could call its port".to_owned(),
            ),
            Support::Not(why) => Some(why.clone()),
        }
    }

    /// Asks for the rules to be looked at, and waits for nothing.
    pub fn wants(&self) {
        self.lacks.notify_one();
    }

    /// Waits until what is set may not be what it should be.
    pub async fn lacks(&self) {
        self.lacks.notified().await;
    }

    /// A pause before what could not be set is tried again.
    pub fn pause() -> Pause {
        Pause::new(AGAIN_FIRST, AGAIN_MOST)
    }

    /// What rules can be set, if that is not known yet. For one at a time: see the module.
    ///
    /// # Errors
    ///
    /// [`Error::Late`].
    pub async fn find_out(&self) -> Result<(), Error> {
        if self.known().is_ok() {
            return Ok(());
        }
        let found = self.probe(NFT_PATIENCE).await;
        *self.support() = found.clone();
        if let Support::Not(why) = &found {
            tracing::warn!("{why}");
        }
        self.known().map(drop)
    }

    fn known(&self) -> Result<Support, Error> {
        match &*self.support() {
            Support::Unknown => Err(Error::Late),
            known => Ok(known.clone()),
        }
    }

    /// Sets what `ports` says when its turn has come: port → the uid that may dial it beside root.
    ///
    /// # Errors
    ///
    /// They are not set; [`Firewall::lacks`] says so to who tries again.
    pub async fn apply(&self, ports: impl FnOnce() -> BTreeMap<u16, u32>) -> Result<(), Error> {
        self.known()?;
        let mut applied = self.applied.lock().await;
        if self.gone.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        // The one before may have found that nobody answers.
        let refusals = match self.known()? {
            Support::Not(_) => return Ok(()),
            Support::Named => Some(self.refusals),
            Support::Closed | Support::Unknown => None,
        };
        // Not before: what was known then may be older than what the one before has set.
        let ports = ports();
        if applied.as_ref() == Some(&ports) {
            return Ok(());
        }
        // One that is given up may have been done all the same.
        *applied = None;
        let rules = rules(&self.table, &ports, refusals);
        if let Err(error) = self.nft.run(&rules, NFT_PATIENCE).await {
            if matches!(error, Error::Late) {
                *self.support() = Support::Unknown;
            }
            self.wants();
            return Err(error);
        }
        *applied = Some(ports);
        Ok(())
    }

    /// For good: what comes later sets nothing any more. Also where rules can't be set now: an earlier agent may have set some. Takes no longer than
    /// twice [`NFT_PATIENCE`].
    pub async fn remove(&self) {
        if !self.is_root {
            return;
        }
        self.gone.store(true, Ordering::Release);
        let _setting = tokio::time::timeout(NFT_PATIENCE, self.applied.lock()).await;
        let _ = self.nft.run(&removal(&self.table), NFT_PATIENCE).await;
    }

    /// What rules this machine takes: tried on a port that nobody has, in a table that is there for it alone. That of an earlier agent keeps the
    /// ports of what runs closed meanwhile.
    async fn probe(&self, patience: Duration) -> Support {
        let none = BTreeMap::from([(0, 0)]);
        let trial = trial_of(&self.table);
        let takes = async |refusals: Option<SocketAddr>| {
            let gone = format!("delete table inet {trial}\n");
            let trial = rules(&trial, &none, refusals) + &gone;
            self.nft.run(&trial, patience).await
        };
        match takes(Some(self.refusals)).await {
            Ok(()) => return Support::Named,
            Err(Error::Refused(_)) => {}
            // It may name them as well as not.
            Err(Error::Late | Error::Gone) => return Support::Unknown,
        }
        match takes(None).await {
            Ok(()) => Support::Closed,
            Err(Error::Late | Error::Gone) => Support::Unknown,
            Err(Error::Refused(why)) => Support::Not(format!(
                "nftables can't be used ({why}): calls through the mesh are enforced, calls to an instance's own port are not"
            )),
        }
    }
}

/// Takes the table away, if it is there.
pub async fn remove(table: &str) -> Result<(), Error> {
    Nft::default().run(&removal(table), NFT_PATIENCE).await
}

fn removal(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::process::Command;

    use super::*;

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

    const REFUSALS: &str = "127.77.16.0:7079";

    /// One whose program keeps what it is told in a file, and whose table is that file's last line.
    struct Kept {
        folder: tempfile::TempDir,
        firewall: Arc<Firewall>,
    }

    impl Kept {
        async fn new() -> Self {
            use std::os::unix::fs::PermissionsExt;
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("nft");
            let script = "#!/bin/sh\ntr '\\n' ' ' >>\"${0%/*}/told\"\necho >>\"${0%/*}/told\"\n";
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
            let refusals = REFUSALS.parse().unwrap();
            let mut firewall = Firewall::detect("t".to_owned(), refusals, false).await;
            firewall.is_root = true;
            firewall.nft = Nft::by(program);
            *firewall.support() = Support::Closed;
            let firewall = Arc::new(firewall);
            Self { folder, firewall }
        }

        fn told(&self) -> Vec<String> {
            let told = std::fs::read_to_string(self.folder.path().join("told"));
            told.unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect()
        }
    }

    fn one(port: u16) -> BTreeMap<u16, u32> {
        BTreeMap::from([(port, 70_001)])
    }

    /// Polled once: it stands where it has to wait.
    fn begins<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
        let mut future = Box::pin(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        future
    }

    #[tokio::test]
    async fn who_waits_its_turn_sets_what_is_known_when_it_comes() {
        let kept = Kept::new().await;
        let known = std::cell::RefCell::new(one(9));
        let turn = kept.firewall.applied.lock().await;
        let late = begins(kept.firewall.apply(|| known.borrow().clone()));
        known.replace(one(10));
        drop(turn);
        late.await.unwrap();
        let told = kept.told();
        assert!(
            told.len() == 1 && told[0].contains("tcp dport 10 "),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn a_table_that_was_taken_away_stays_away() {
        let kept = Kept::new().await;
        let turn = kept.firewall.applied.lock().await;
        let early = begins(kept.firewall.apply(|| one(9)));
        let removal = begins(kept.firewall.remove());
        drop(turn);
        let (early, ()) = tokio::join!(early, removal);
        let late = kept.firewall.apply(|| one(9)).await;
        for late in [early, late] {
            assert!(matches!(late, Err(Error::Gone)), "{late:?}");
        }
        let told = kept.told();
        let is_gone = told.last().is_some_and(|last| !last.contains("chain"));
        assert!(told.len() == 1 && is_gone, "{told:?}");
    }

    /// Who sets them waits; nobody else does, and none is held up by another.
    #[tokio::test]
    async fn where_nobody_answers_nobody_waits() {
        let kept = Kept::new().await;
        *kept.firewall.support() = Support::Unknown;
        let _turn = kept.firewall.applied.lock().await;
        let late = kept.firewall.apply(|| one(9)).await;
        assert!(matches!(late, Err(Error::Late)), "{late:?}");
        assert!(kept.told().is_empty());
    }

    /// `None`, where none can be set.
    async fn real(table: &str) -> Option<Firewall> {
        let firewall = Firewall::detect(table.to_owned(), REFUSALS.parse().unwrap(), true).await;
        firewall.find_out().await.expect("`nft` answers");
        let limit = firewall.limit();
        if let Some(limit) = &limit {
            println!("{limit}");
        }
        limit.is_none().then_some(firewall)
    }

    /// A disk that hangs while the machine comes up: what was not answered then is asked again.
    #[tokio::test]
    async fn an_answer_that_came_late_is_asked_for_again() {
        let table = format!("mainland_late_{}", std::process::id());
        let Some(firewall) = real(&table).await else {
            return;
        };
        *firewall.support() = Support::Unknown;
        let limit = firewall.limit().expect("it is said meanwhile");
        assert!(limit.contains("has not answered in time"), "{limit}");
        firewall.find_out().await.expect("it answers");
        firewall.apply(|| one(9)).await.expect("set");
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
        let Some(before) = real(&table).await else {
            return;
        };
        before.apply(|| one(9)).await.unwrap();
        // Looked at all the while: an empty table for a moment is as bad as one for good.
        let beginning = tokio::spawn({
            let table = table.clone();
            async move { real(&table).await.is_some() }
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
