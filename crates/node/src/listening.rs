//! Where the processes of an instance listen, read from /proc: for who is to be told that it is not where they were asked to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::ids::InstanceId;

use crate::agent::Agent;
use crate::probes::{Failure, REFUSED};

/// Of one instance the tables are read at most this often, and no sooner after it first refused: it may be about to listen.
const LOOK_INTERVAL: Duration = Duration::from_millis(1_500);
/// Twice as long each time that nothing has changed, up to this: one that never listens is asked for ever.
const LOOK_INTERVAL_MOST: Duration = Duration::from_secs(60);
/// Looks at a time, of all instances of a node: a table has a line for each connection of the machine.
pub const LOOKS_MOST: usize = 1;
/// Processes of an instance that are looked at.
const PROCESSES_MOST: usize = 64;
/// Open files of a process that are looked at.
const FILES_MOST: usize = 1024;
/// Addresses that are named.
const NAMED_MOST: usize = 3;
/// The state of a socket that listens, as the kernel's tables write it.
const LISTENS: &str = "0A";

/// What was last found of one run.
#[derive(Debug, Clone)]
pub struct Found {
    looked_at: Instant,
    pause: Duration,
    elsewhere: Vec<SocketAddr>,
}

impl Found {
    fn begin(now: Instant) -> Self {
        Self {
            looked_at: now,
            pause: LOOK_INTERVAL,
            elsewhere: Vec::new(),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.looked_at) >= self.pause
    }

    fn looked(&mut self, elsewhere: Vec<SocketAddr>) {
        self.pause = match self.elsewhere == elsewhere {
            true => (self.pause * 2).min(LOOK_INTERVAL_MOST),
            false => LOOK_INTERVAL,
        };
        self.elsewhere = elsewhere;
    }
}

/// The answer to a probe; a refused connection with where the instance listens instead, as far as that is known by now: no answer waits for a look.
pub fn explained(
    agent: &Arc<Agent>,
    id: &InstanceId,
    asked: Option<SocketAddr>,
    answer: Result<(), Failure>,
) -> Result<(), Failure> {
    match (answer, asked) {
        (Err(Failure::Answer(error)), Some(asked)) if error == REFUSED => {
            Err(refused(&elsewhere(agent, id, asked)).into())
        }
        (answer, _) => answer,
    }
}

fn refused(elsewhere: &[SocketAddr]) -> String {
    if elsewhere.is_empty() {
        return REFUSED.to_owned();
    }
    let named = elsewhere.iter().take(NAMED_MOST);
    let named: Vec<_> = named.map(ToString::to_string).collect();
    format!("{REFUSED}, while it listens at {}", named.join(", "))
}

/// As it was last found. A look that is due is begun, if no other one is under way.
fn elsewhere(agent: &Arc<Agent>, id: &InstanceId, asked: SocketAddr) -> Vec<SocketAddr> {
    let now = Instant::now();
    agent.with(|core| {
        let own = core.own_ports(id);
        let Some(running) = core.running.get_mut(id) else {
            return Vec::new();
        };
        let (run, pid) = (running.run, running.pid);
        let found = running.listens.get_or_insert_with(|| Found::begin(now));
        if let Some(pid) = pid.filter(|_| found.is_due(now))
            && let Ok(turn) = agent.looks.clone().try_acquire_owned()
        {
            found.looked_at = now;
            let (agent, id) = (agent.clone(), id.clone());
            let is_news =
                move |at: &SocketAddr| at.port() == asked.port() || !own.contains(&at.port());
            agent.clone().tasks.spawn_blocking(move || {
                let mut elsewhere = of(pid);
                drop(turn);
                elsewhere.retain(is_news);
                agent.with(|core| {
                    let running = core.running.get_mut(&id).filter(|now| now.run == run);
                    let found = running.and_then(|running| running.listens.as_mut());
                    found.map(|found| found.looked(elsewhere))
                });
            });
        }
        found.elsewhere.clone()
    })
}

/// Where a process and those that come of it listen.
fn of(pid: u32) -> Vec<SocketAddr> {
    let sockets: BTreeSet<u64> = family(pid).into_iter().flat_map(sockets).collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        // Of its own network, should it have one.
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"));
        let text = text.unwrap_or_default();
        let own = listeners(&text).filter(|listener| sockets.contains(&listener.inode));
        found.extend(own.map(|listener| listener.address));
    }
    found.into_iter().collect()
}

fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let threads = std::fs::read_dir(format!("/proc/{}/task", all[next]));
        for thread in threads.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            let children = children.split_ascii_whitespace();
            all.extend(children.filter_map(|child| child.parse::<u32>().ok()));
        }
        all.truncate(PROCESSES_MOST);
        next += 1;
    }
    all
}

/// The numbers of the sockets that a process has open.
fn sockets(pid: u32) -> Vec<u64> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let files = files.into_iter().flatten().flatten().take(FILES_MOST);
    let sockets = files.filter_map(|file| {
        let target = std::fs::read_link(file.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    });
    sockets.collect()
}

/// A socket that listens.
#[derive(Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// Whose it is.
    pub uid: u32,
    inode: u64,
}

/// The sockets that listen, by a table of the kernel (proc(5)).
pub fn listeners(table: &str) -> impl Iterator<Item = Listener> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (ip, port) = fields.next()?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let address = SocketAddr::new(address(ip)?, port);
        (state == LISTENS).then_some(Listener {
            address,
            uid,
            inode,
        })
    })
}

/// Words of four bytes as this machine writes numbers, with the bytes in the order of the network.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| -> Option<[u8; 4]> {
        let word = hex.get(at..at + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let bytes: [u8; 16] = words.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_the_kernel_is_read() {
        let ne = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let loopback6 = format!("{0}{0}{0}{1}", ne([0; 4]), ne([0, 0, 0, 1]));
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: {}:24B1 00000000:0000 0A 00000000:00000000 00:00000000 00000000 70013        0 4711 1 0 100 0 0 10 0\n   \
             1: {}:24B1 0100007F:1234 01 00000000:00000000 00:00000000 00000000 70013        0 4712 1 0 100 0 0 10 0\n   \
             2: {loopback6}:0050 {loopback6}:0000 0A 00000000:00000000 00:00000000 00000000 70013        0 4713 1 0 100 0 0 10 0\n",
            ne([127, 0, 0, 1]),
            ne([127, 0, 0, 1]),
        );
        let found = listeners(&table).map(|it| (it.address, it.inode));
        let found: Vec<_> = found.collect();
        let expected = [("127.0.0.1:9393", 4711), ("[::1]:80", 4713)];
        let expected = expected.map(|(at, inode)| (at.parse().unwrap(), inode));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_process_is_found_where_it_listens() {
        let four = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let four = four.local_addr().map(|at| (four, at)).unwrap();
        let found = of(std::process::id());
        assert!(found.contains(&four.1), "{found:?}");
        assert_eq!(of(u32::MAX), []);
    }

    #[test]
    fn what_never_listens_is_looked_at_more_and_more_rarely() {
        let begun = Instant::now();
        let mut found = Found::begin(begun);
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let after = |found: &Found, by: Duration| found.is_due(begun + by);
        assert!(!after(&found, LOOK_INTERVAL / 2) && after(&found, LOOK_INTERVAL));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            found.looked(Vec::new());
            pauses.push(found.pause);
        }
        assert!(pauses.is_sorted() && pauses[0] == LOOK_INTERVAL * 2);
        assert_eq!(pauses[9], LOOK_INTERVAL_MOST);
        // What changes may change again.
        found.looked(vec![at(1)]);
        assert_eq!(
            (found.pause, &found.elsewhere),
            (LOOK_INTERVAL, &vec![at(1)])
        );
    }

    #[test]
    fn where_it_listens_instead_is_named_within_bounds() {
        assert_eq!(refused(&[]), "connection refused");
        let at = |port| SocketAddr::from(([0, 0, 0, 0], port));
        assert_eq!(
            refused(&[at(1), at(2), at(3), at(4)]),
            "connection refused, while it listens at 0.0.0.0:1, 0.0.0.0:2, 0.0.0.0:3"
        );
    }
}
