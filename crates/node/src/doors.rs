//! A loopback address for each caller and need, kept for good: a workload may hold its URL for as long as it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};

use model::ids::ResourceId;
use serde::{Deserialize, Serialize};

use crate::options::Block;

/// Every door has an address of its own, so that one port does for all; the next ones serve where somebody else is on it.
const FIRST_PORT: u16 = 7080;
const PORTS_TRIED: u16 = 16;

/// `caller>need` → where it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors(BTreeMap<String, SocketAddrV4>);

impl Doors {
    pub fn get(&self, caller: &ResourceId, need: &ResourceId) -> Option<SocketAddr> {
        self.0.get(&key(caller, need)).copied().map(SocketAddr::V4)
    }

    /// Gives the pair an address if it has none. True: something was given. `None` beyond the block's end.
    pub fn give(
        &mut self,
        block: Block,
        caller: &ResourceId,
        need: &ResourceId,
        is_free: impl Fn(SocketAddrV4) -> bool,
    ) -> Option<bool> {
        let key = key(caller, need);
        if self.0.contains_key(&key) {
            return Some(false);
        }
        let taken: BTreeSet<_> = self.0.values().map(|door| *door.ip()).collect();
        let mut addresses = (0..block.usable()).map(|index| block.address(index));
        let address = addresses.find(|address| !taken.contains(address))?;
        let ports = FIRST_PORT..FIRST_PORT + PORTS_TRIED;
        let mut doors = ports.map(|port| SocketAddrV4::new(address, port));
        let door = doors
            .find(|door| is_free(*door))
            .unwrap_or(SocketAddrV4::new(address, FIRST_PORT));
        self.0.insert(key, door);
        Some(true)
    }

    /// Forgets doors that somebody else listens on, but for those of callers of which something runs. True: something was forgotten.
    pub fn give_up(
        &mut self,
        running: &BTreeSet<ResourceId>,
        is_free: impl Fn(SocketAddrV4) -> bool,
    ) -> bool {
        let running: BTreeSet<String> = running.iter().map(ToString::to_string).collect();
        let before = self.0.len();
        self.0
            .retain(|key, door| running.contains(caller(key)) || is_free(*door));
        self.0.len() != before
    }

    /// Forgets the doors of callers that are no longer here. Only for when the block is full.
    pub fn keep_only(&mut self, callers: &BTreeSet<ResourceId>) {
        let callers: BTreeSet<String> = callers.iter().map(ToString::to_string).collect();
        self.0.retain(|key, _| callers.contains(caller(key)));
    }
}

fn key(caller: &ResourceId, need: &ResourceId) -> String {
    format!("{caller}>{need}")
}

fn caller(key: &str) -> &str {
    key.split_once('>').map_or(key, |(caller, _)| caller)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ResourceId {
        format!("shop/{name}").parse().unwrap()
    }

    #[test]
    fn each_pair_has_an_address_of_its_own_for_good() {
        let block = "127.77.16.0/30".parse().unwrap();
        let mut doors = Doors::default();
        assert_eq!(
            doors.give(block, &id("web"), &id("db"), |_| true),
            Some(true)
        );
        assert_eq!(
            doors.give(block, &id("web"), &id("db"), |_| true),
            Some(false)
        );
        assert_eq!(
            doors.give(block, &id("api"), &id("db"), |door| door.port() != 7080),
            Some(true)
        );
        assert_eq!(
            doors.get(&id("web"), &id("db")),
            Some("127.77.16.1:7080".parse().unwrap())
        );
        assert_eq!(
            doors.get(&id("api"), &id("db")),
            Some("127.77.16.2:7081".parse().unwrap())
        );
        assert_eq!(
            doors.give(block, &id("api"), &id("web"), |_| true),
            None,
            "the block is full"
        );
        doors.keep_only(&BTreeSet::from([id("api")]));
        assert_eq!(
            doors.give(block, &id("api"), &id("web"), |_| true),
            Some(true)
        );
        assert_eq!(doors.get(&id("web"), &id("db")), None);
    }

    #[test]
    fn a_door_that_was_taken_meanwhile_is_given_anew_unless_its_caller_runs() {
        let block = "127.77.16.0/28".parse().unwrap();
        let mut doors = Doors::default();
        let db = id("db");
        for caller in ["web", "api", "job"] {
            doors.give(block, &id(caller), &db, |_| true);
        }
        let of = |doors: &Doors, caller| doors.get(&id(caller), &db);
        let taken = [of(&doors, "web"), of(&doors, "api")];
        let is_free = |door: SocketAddrV4| !taken.contains(&Some(door.into()));
        assert!(doors.give_up(&BTreeSet::from([id("web")]), is_free));
        assert_eq!(of(&doors, "web"), taken[0], "it runs, and holds its URL");
        assert_eq!(of(&doors, "api"), None);
        assert!(of(&doors, "job").is_some(), "nobody else is there");
        doors.give(block, &id("api"), &db, is_free);
        assert_ne!(of(&doors, "api"), taken[1]);
        assert!(!doors.give_up(&BTreeSet::from([id("web")]), is_free));
    }
}
