//! A free port out of a node's range.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;

/// The first port of `range`, beginning at `start` and going round once, that is not in `taken` and on which 127.0.0.1 can
/// be bound now. `None` when all are taken.
///
/// Another program may still take it before the workload does; the workload then fails to start and is given another.
pub fn pick(range: RangeInclusive<u16>, start: u16, taken: &BTreeSet<u16>) -> Option<u16> {
    let from = start.clamp(*range.start(), *range.end());
    let ports = (from..=*range.end()).chain(*range.start()..from);
    let mut free = ports.filter(|port| !taken.contains(port));
    free.find(|port| is_free((Ipv4Addr::LOCALHOST, *port).into()))
}

/// Whether nobody listens there now.
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_and_a_bound_port_are_passed_over() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let bound = listener.local_addr().expect("its address").port();
        assert_eq!(pick(bound..=bound, bound, &BTreeSet::new()), None);
        drop(listener);
        assert_eq!(pick(bound..=bound, 1, &BTreeSet::new()), Some(bound));
        assert_eq!(pick(bound..=bound, bound, &BTreeSet::from([bound])), None);
    }
}
