//! A loopback address for each caller and need, kept for good: a workload may hold its URL for as long as it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};

use model::ids::ResourceId;
use serde::{Deserialize, Serialize};

use crate::options::Block;

/// Every door has an address of its own, so that one port does for all; the next ones serve where somebody else is on it.
const FIRST_PORT: u16 = 7080;
const PORTS_TRIED: u16 = 16;
/// Addresses that are tried where somebody else is on every port of one.
const ADDRESSES_TRIED: usize = 64;

/// Why there is no door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDoor {
    /// Every address of the block belongs to a caller and a need.
    Full,
    /// Another program listens wherever one could be.
    Taken,
}

/// `caller>need` → where it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors(BTreeMap<String, SocketAddrV4>);

impl Doors {
    pub fn get(&self, caller: &ResourceId, need: &ResourceId) -> Option<SocketAddr> {
        self.0.get(&key(caller, need)).copied().map(SocketAddr::V4)
    }

    /// The needs that were given to a caller, and where they are.
    pub fn of(&self, caller: &ResourceId) -> impl Iterator<Item = (ResourceId, SocketAddr)> {
        let prefix = format!("{caller}>");
        let from_there = self.0.range(prefix.clone()..);
        from_there.map_while(move |(key, door)| {
            let need = key.strip_prefix(&prefix)?.parse().ok()?;
            Some((need, SocketAddr::V4(*door)))
        })
    }

    /// Gives the pair an address if it has none, on which nobody listens now. True: something was given.
    ///
    /// # Errors
    ///
    /// See [`NoDoor`].
    pub fn give(
        &mut self,
        block: Block,
        caller: &ResourceId,
        need: &ResourceId,
        is_free: impl Fn(SocketAddrV4) -> bool,
    ) -> Result<bool, NoDoor> {
        let key = key(caller, need);
        if self.0.contains_key(&key) {
            return Ok(false);
        }
        let taken: BTreeSet<_> = self.0.values().map(|door| *door.ip()).collect();
        let addresses = (0..block.usable()).map(|index| block.address(index));
        let mut addresses = addresses
            .filter(|address| !taken.contains(address))
            .take(ADDRESSES_TRIED)
            .peekable();
        addresses.peek().ok_or(NoDoor::Full)?;
        let ports = FIRST_PORT..FIRST_PORT + PORTS_TRIED;
        let mut doors = addresses.flat_map(|address| {
            let ports = ports.clone();
            ports.map(move |port| SocketAddrV4::new(address, port))
        });
        // One that somebody else listens on would lead its caller there.
        let door = doors.find(|door| is_free(*door)).ok_or(NoDoor::Taken)?;
        self.0.insert(key, door);
        Ok(true)
    }

    /// Of these doors, forgets those that are of a caller of which nothing runs: it holds no URL yet.
    pub fn forget(&mut self, doors: &BTreeSet<SocketAddr>, running: &BTreeSet<ResourceId>) {
        let running: BTreeSet<String> = running.iter().map(ToString::to_string).collect();
        self.0
            .retain(|key, door| running.contains(caller(key)) || !doors.contains(&(*door).into()));
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
        assert_eq!(doors.give(block, &id("web"), &id("db"), |_| true), Ok(true));
        assert_eq!(
            doors.give(block, &id("web"), &id("db"), |_| true),
            Ok(false)
        );
        assert_eq!(
            doors.give(block, &id("api"), &id("db"), |door| door.port() != 7080),
            Ok(true)
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
            Err(NoDoor::Full),
            "the block is full"
        );
        doors.keep_only(&BTreeSet::from([id("api")]));
        assert_eq!(
            doors.give(block, &id("api"), &id("web"), |_| true),
            Ok(true)
        );
        assert_eq!(doors.get(&id("web"), &id("db")), None);
    }

    #[test]
    fn a_door_that_was_taken_meanwhile_is_given_anew_unless_its_caller_runs() {
        let block = "127.77.16.0/28".parse().unwrap();
        let mut doors = Doors::default();
        let db = id("db");
        for caller in ["web", "api", "job"] {
            doors.give(block, &id(caller), &db, |_| true).unwrap();
        }
        let of = |doors: &Doors, caller| doors.get(&id(caller), &db);
        let taken = [of(&doors, "web"), of(&doors, "api")];
        let is_free = |door: SocketAddrV4| !taken.contains(&Some(door.into()));
        assert!(doors.give_up(&BTreeSet::from([id("web")]), is_free));
        assert_eq!(of(&doors, "web"), taken[0], "it runs, and holds its URL");
        assert_eq!(of(&doors, "api"), None);
        assert!(of(&doors, "job").is_some(), "nobody else is there");
        doors.give(block, &id("api"), &db, is_free).unwrap();
        assert_ne!(of(&doors, "api"), taken[1]);
        assert!(!doors.give_up(&BTreeSet::from([id("web")]), is_free));
    }

    #[test]
    fn a_door_is_never_one_that_somebody_else_listens_on() {
        let block = "127.77.16.0/24".parse().unwrap();
        let mut doors = Doors::default();
        let taken = |door: SocketAddrV4| door.ip().octets()[3] > 2;
        assert_eq!(doors.give(block, &id("web"), &id("db"), taken), Ok(true));
        let door = doors.get(&id("web"), &id("db")).unwrap();
        assert_eq!(door, "127.77.16.3:7080".parse().unwrap());
        let none = doors.give(block, &id("api"), &id("db"), |_| false);
        assert_eq!(none, Err(NoDoor::Taken));
        assert_eq!(doors.get(&id("api"), &id("db")), None);
        // One that was lost to somebody else meanwhile is given anew where nothing holds its URL.
        let lost = BTreeSet::from([door]);
        doors.forget(&lost, &BTreeSet::from([id("web")]));
        assert!(doors.get(&id("web"), &id("db")).is_some());
        doors.forget(&lost, &BTreeSet::new());
        assert_eq!(doors.get(&id("web"), &id("db")), None);
    }
}
