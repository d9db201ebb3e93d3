//! What one party may take of a service: places at its copies, where these are scarce, and connections that have become something else (WebSocket). And how
//! long such a one lives on which nothing happens.
//!
//! Each holds one of the `max_in_flight` of its copy for as long as it lasts. So one client of the gateway, but a declared balancer, has half of what all copies of a service
//! take, at most, the clients of one site (an IPv6 /48) three quarters, and what lies idle is ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::ids::ResourceId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{InspectReader, InspectWriter};

use super::shares::Party;
use super::tunnel::carry;
use super::view::Destination;
use crate::problem::{Code, Problem};

/// Without a byte either way for this long an upgraded connection is ended (`proxy_read_timeout` of nginx). A WebSocket's ping is a byte: servers and
/// libraries that send any do so every 20 to 55 s.
pub const IDLE: Duration = Duration::from_secs(60);
/// It is looked at so many times in that time.
const LOOKS: u32 = 4;

type Key = (Party, ResourceId);

/// How many one party may hold, and all clients of one site together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    one: u32,
    site: u32,
}

impl Most {
    /// A site has half as much again as one.
    pub const fn of_one(one: u32) -> Self {
        Self {
            one,
            site: one.saturating_add(one / 2),
        }
    }
}

/// How many each party has with each service: of upgraded connections, or of the places at its copies. Sites are among the parties.
#[derive(Default)]
pub struct Holdings(Mutex<HashMap<Key, u32>>);

impl Holdings {
    /// `None`: the party has its share, or all clients of its site have theirs.
    pub fn take(
        self: &Arc<Self>,
        party: &Party,
        service: &ResourceId,
        most: Most,
    ) -> Option<Holding> {
        let key = (party.clone(), service.clone());
        let of_site = party.site().map(|site| (site, service.clone()));
        let mut held = self.lock();
        let is_full = |key: &Key, most| held.get(key).is_some_and(|count| *count >= most);
        let site_is_full = of_site.as_ref().is_some_and(|it| is_full(it, most.site));
        if is_full(&key, most.one) || site_is_full {
            return None;
        }
        for key in of_site.iter().chain([&key]) {
            *held.entry(key.clone()).or_insert(0) += 1;
        }
        Some(Holding {
            all: self.clone(),
            key,
            of_site,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that the copies take.
fn all(to: &Destination) -> u32 {
    let copies = u32::try_from(to.endpoints.len()).unwrap_or(u32::MAX);
    to.traffic.max_in_flight.saturating_mul(copies.max(1))
}

/// Half of what the copies take.
pub fn share(to: &Destination) -> Most {
    Most::of_one((all(to) / 2).max(1))
}

/// Where a copy has as many in flight as this part of what it takes, its places are scarce, and each party is counted: what it had before, and what it
/// is counted for, are half of all, and three quarters for a site.
const SCARCE: u32 = 4;

/// One party's part of the places at the copies, where they are scarce at the one at `index`. `None`: they are not.
pub fn part_of_scarce(to: &Destination, index: usize) -> Option<Most> {
    let most = to.traffic.max_in_flight;
    let in_flight = to.endpoints[index].load.in_flight();
    let scarce = in_flight.saturating_mul(SCARCE) >= most;
    scarce.then(|| counted_part(all(to)))
}

/// What is counted of `all` places: beyond the first part, which is free for all.
fn counted_part(all: u32) -> Most {
    let (free, half) = (all / SCARCE, all / 2);
    Most {
        one: (half - free).max(1),
        site: (half + half / 2 - free).max(1),
    }
}

/// Why a request, or a connection, is not passed on.
pub fn share_is_taken(service: &ResourceId) -> Problem {
    Problem::new(
        Code::ClientShare,
        format!(
            "one client has half of what the copies of service {service} take at a time (traffic.max_in_flight), and no more; a proxy that brings many clients is to be named by --trust-proxy"
        ),
    )
}

/// One of a party's, until it is dropped.
pub struct Holding {
    all: Arc<Holdings>,
    key: Key,
    of_site: Option<Key>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut held = self.all.lock();
        for key in self.of_site.iter().chain([&self.key]) {
            if let Some(count) = held.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    held.remove(key);
                }
            }
        }
    }
}

/// Copies both ways until both have ended, or nothing has come or gone for `idle`.
pub async fn carry_until_idle(
    client: impl AsyncRead + AsyncWrite + Unpin,
    instance: impl AsyncRead + AsyncWrite + Unpin,
    idle: Duration,
) {
    let moved = AtomicBool::new(false);
    let moves = |_: &[u8]| moved.store(true, Relaxed);
    let client = InspectWriter::new(InspectReader::new(client, moves), moves);
    tokio::select! {
        () = carry(client, instance) => {}
        () = stands_still(&moved, idle) => tracing::debug!("an upgraded connection was idle"),
    }
}

async fn stands_still(moved: &AtomicBool, idle: Duration) {
    let mut looks = 0;
    while looks < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        looks = if moved.swap(false, Relaxed) {
            0
        } else {
            looks + 1
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn an_idle_one_ends_and_a_ping_keeps_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let to_instance = TcpStream::connect(address).await.unwrap();
        let (mut instance, _) = listener.accept().await.unwrap();
        let (mut client, inner) = tokio::io::duplex(64);
        let idle = Duration::from_millis(800);
        let carried = tokio::spawn(carry_until_idle(inner, to_instance, idle));
        let began = Instant::now();
        // Either way, for longer than it may be idle.
        while began.elapsed() < idle * 2 {
            client.write_all(b"i").await.unwrap();
            assert_eq!(instance.read_u8().await.unwrap(), b'i');
            tokio::time::sleep(idle / 4).await;
            instance.write_all(b"o").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'o');
            tokio::time::sleep(idle / 4).await;
        }
        assert!(!carried.is_finished());
        let ended = tokio::time::timeout(idle * 10, carried).await;
        assert!(ended.is_ok(), "it idles for ever");
        assert!(client.read_u8().await.is_err() && instance.read_u8().await.is_err());
    }

    #[test]
    fn a_client_has_its_share_of_each_service() {
        let upgrades = Arc::new(Holdings::default());
        let party = |number: u8| Party::client([192, 0, 2, number].into());
        let service = |name: &str| format!("shop/{name}").parse::<ResourceId>().unwrap();
        let take = |client, name| upgrades.take(&party(client), &service(name), Most::of_one(3));
        let mut held: Vec<_> = (0..5).filter_map(|_| take(1, "chat")).collect();
        assert_eq!(held.len(), 3);
        assert!(take(2, "chat").is_some() && take(1, "feed").is_some());
        held.pop();
        assert!(take(1, "chat").is_some());
        drop(held);
        assert!(upgrades.lock().is_empty());
    }

    #[test]
    fn the_clients_of_a_site_leave_others_a_quarter() {
        let upgrades = Arc::new(Holdings::default());
        let service: ResourceId = "shop/chat".parse().unwrap();
        let take = |site: u16, network: u16| {
            let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 1);
            upgrades.take(&Party::client(address.into()), &service, Most::of_one(8))
        };
        // Of 16 that the copies take.
        let mut held: Vec<_> = (0..100).filter_map(|number| take(1, number / 4)).collect();
        assert_eq!(held.len(), 12);
        assert!(take(2, 0).is_some());
        held.pop();
        assert!(take(1, 99).is_some());
        held.clear();
        let one: Vec<_> = (0..100).filter_map(|_| take(1, 0)).collect();
        assert_eq!(one.len(), 8, "and one client half");
        drop(one);
        assert!(upgrades.lock().is_empty());
    }

    #[test]
    fn of_scarce_places_a_client_has_half_and_a_site_three_quarters() {
        for all in [16, 64, 1024, 65_536] {
            let (counted, free) = (counted_part(all), all / SCARCE);
            assert_eq!(
                (counted.one + free, counted.site + free),
                (all / 2, all / 4 * 3)
            );
        }
        // Never nothing.
        assert_eq!(counted_part(1), Most { one: 1, site: 1 });
    }
}
