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

    /// Forgets the doors of callers that are no longer here. Only for when the block is full.
    pub fn keep_only(&mut self, callers: &BTreeSet<ResourceId>) {
        let callers: BTreeSet<String> = callers.iter().map(ToString::to_string).collect();
        self.0.retain(|key, _| {
            key.split('>')
                .next()
                .is_some_and(|caller| callers.contains(caller))
        });
    }
}

fn key(caller: &ResourceId, need: &ResourceId) -> String {
    format!("{caller}>{need}")
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
}
