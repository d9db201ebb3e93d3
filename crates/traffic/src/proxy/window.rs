//! How much of a stream may be under way unread, on a connection between two proxies.
//!
//! What a reader does not take stays here, up to its stream's window. All streams together must never fill the window of their connection:
//! then one slow reader would stop the others. So the connection's window is as large as HTTP/2 allows, and streams are bounded one by one:
//!
//! | width | window of a stream | streams at a time | for |
//! |---|---|---|---|
//! | narrow | 64 KiB | 16,384 | requests that find no room among the wide |
//! | crowd | 32 KiB | 16,384 | requests of a party with many connections ([`super::bulkhead`]) |
//! | tunnels | 128 KiB | 8,192 | TCP and upgrades |
//! | crowd's tunnels | 128 KiB | 8,192 | the same, of a party with many connections |
//! | wide | what fills the path, 512 KiB to 8 MiB | as many as [`Room`] has room for | other requests |
//!
//! A path of 40 ms is filled by 8 MiB at 200 MB/s; on one machine 512 KiB are enough. Who dials measures, and names the width by the
//! application protocol of the handshake, so that both sides use the same one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::view::Shared;

/// RFC 9113, 6.9.1.
pub const MOST_WINDOW: u32 = (1 << 31) - 1;
const NARROW_WINDOW: u32 = 64 * 1024;
const CROWD_WINDOW: u32 = 32 * 1024;
const NARROW_STREAMS: u32 = 16_384;
const TUNNEL_WINDOW: u32 = 128 * 1024;
const TUNNEL_STREAMS: u32 = 8_192;
/// RFC 9113, 4.1 and 4.2.
const FRAME_HEAD: u32 = 9;
const LEAST_FRAME: u32 = 16_384;
const TLS_RECORD: u32 = 16_384;
/// As powers of two.
const LEAST_WIDE: u8 = 19;
const MOST_WIDE: u8 = 23;
/// What one stream on an idle path should reach. Bytes per second.
const WIDE_RATE: u64 = 200_000_000;
/// Bytes that all wide streams of this proxy may hold unread.
const ROOM_BYTES: u64 = 128 * 1024 * 1024;
/// Of these, what the streams to one service may: its slow readers leave room for the others.
const ROOM_BYTES_OF_ONE: u64 = ROOM_BYTES / 4;

// However many streams are unread, their connection's window is not used up.
const _: () = assert!(NARROW_WINDOW as u64 * (NARROW_STREAMS as u64) < MOST_WINDOW as u64);
const _: () = assert!(CROWD_WINDOW <= NARROW_WINDOW);
const _: () = assert!(TUNNEL_WINDOW as u64 * (TUNNEL_STREAMS as u64) < MOST_WINDOW as u64);
const _: () = assert!(1_u64 << MOST_WIDE <= ROOM_BYTES_OF_ONE && ROOM_BYTES < MOST_WINDOW as u64);

/// Of a proxy that knows no widths: narrow, and it can't be asked whether it takes a body ([`super::held`]).
const PLAIN: &[u8] = b"h2";

/// Whether the peer of a handshake that has ended can be asked whether it takes a body.
pub fn can_be_asked(protocol: Option<&[u8]>) -> bool {
    protocol.is_some_and(|protocol| protocol != PLAIN)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    Narrow,
    Tunnels,
    Crowd,
    CrowdTunnels,
    /// The window of a stream as a power of two.
    Wide(u8),
}

impl Width {
    pub const ALL: [Self; 9] = [
        // Before what they fall back to.
        Self::Crowd,
        Self::CrowdTunnels,
        Self::Narrow,
        Self::Tunnels,
        Self::Wide(LEAST_WIDE),
        Self::Wide(LEAST_WIDE + 1),
        Self::Wide(LEAST_WIDE + 2),
        Self::Wide(LEAST_WIDE + 3),
        Self::Wide(MOST_WIDE),
    ];

    /// What fills a path where an answer takes `round_trip`.
    pub fn filling(round_trip: Duration) -> Self {
        let bytes = WIDE_RATE.saturating_mul(round_trip.as_micros() as u64) / 1_000_000;
        let power = bytes.next_power_of_two().trailing_zeros() as u8;
        Self::Wide(power.clamp(LEAST_WIDE, MOST_WIDE))
    }

    /// Whether all on the connection is of parties with many connections.
    pub fn is_of_crowds(self) -> bool {
        matches!(self, Self::Crowd | Self::CrowdTunnels)
    }

    /// Bytes of one stream, either way.
    pub fn window(self) -> u32 {
        match self {
            Self::Narrow => NARROW_WINDOW,
            Self::Crowd => CROWD_WINDOW,
            Self::Tunnels | Self::CrowdTunnels => TUNNEL_WINDOW,
            Self::Wide(power) => 1 << power,
        }
    }

    /// The longest frame that is taken. A wide one is written by one call and fills its TLS records (16,384 bytes each, RFC 8446, 5.1) to the last byte;
    /// elsewhere a short one waits no longer than it must.
    pub fn frame(self) -> u32 {
        match self {
            Self::Narrow | Self::Tunnels | Self::Crowd | Self::CrowdTunnels => LEAST_FRAME,
            Self::Wide(_) => 4 * TLS_RECORD - FRAME_HEAD,
        }
    }

    /// Streams of one connection.
    pub fn streams(self) -> u32 {
        match self {
            Self::Narrow | Self::Crowd => NARROW_STREAMS,
            Self::Tunnels | Self::CrowdTunnels => TUNNEL_STREAMS,
            Self::Wide(_) => MOST_WINDOW / self.window(),
        }
    }

    /// What who dials offers: this width, and what a proxy of an earlier version speaks.
    pub fn offered(self) -> Vec<Vec<u8>> {
        let fallback = match self {
            Self::Crowd => Some(Self::Narrow),
            Self::CrowdTunnels => Some(Self::Tunnels),
            _ => None,
        };
        let own = [Some(self), fallback].into_iter().flatten();
        own.map(Self::protocol).chain([PLAIN.to_vec()]).collect()
    }

    /// What is taken, best first.
    pub fn taken() -> Vec<Vec<u8>> {
        let known = Self::ALL.map(Self::protocol).into_iter();
        known.chain([PLAIN.to_vec()]).collect()
    }

    /// The name of the application protocol (ALPN): always HTTP/2.
    pub fn protocol(self) -> Vec<u8> {
        match self {
            Self::Narrow => b"mainland-narrow".to_vec(),
            Self::Tunnels => b"mainland-tunnels".to_vec(),
            Self::Crowd => b"mainland-crowd".to_vec(),
            Self::CrowdTunnels => b"mainland-crowd-tunnels".to_vec(),
            Self::Wide(power) => format!("mainland-wide-{power}").into_bytes(),
        }
    }

    /// Of a handshake that has ended. One that names nothing that is known here is narrow.
    pub fn of(protocol: Option<&[u8]>) -> Self {
        let same = |it: &Self| protocol == Some(it.protocol().as_slice());
        Self::ALL.into_iter().find(same).unwrap_or(Self::Narrow)
    }
}

/// The room for wide streams.
#[derive(Default)]
pub struct Room(Arc<AtomicU64>);

impl Room {
    /// A seat for one stream to a service; `None`: there is no room, and the stream is to be narrow.
    pub fn take(&self, width: Width, service: &Arc<Shared>) -> Option<Seat> {
        let bytes = u64::from(width.window());
        if !reserve(&service.wide_bytes, bytes, ROOM_BYTES_OF_ONE) {
            return None;
        }
        if !reserve(&self.0, bytes, ROOM_BYTES) {
            service.wide_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(Seat {
            all: self.0.clone(),
            service: service.clone(),
            bytes,
        })
    }
}

fn reserve(taken: &AtomicU64, bytes: u64, most: u64) -> bool {
    let before = taken.fetch_add(bytes, Ordering::Relaxed);
    let fits = before + bytes <= most;
    if !fits {
        taken.fetch_sub(bytes, Ordering::Relaxed);
    }
    fits
}

/// A place among the wide streams, until it is dropped.
pub struct Seat {
    all: Arc<AtomicU64>,
    service: Arc<Shared>,
    bytes: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
        self.service
            .wide_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_path_has_wider_streams() {
        for (micros, power) in [
            (0, 19),
            (80, 19),
            (2_500, 19),
            (5_000, 20),
            (20_000, 22),
            (40_000, 23),
            (900_000, 23),
        ] {
            let width = Width::filling(Duration::from_micros(micros));
            assert_eq!(width, Width::Wide(power), "{micros} µs");
        }
    }

    #[test]
    fn both_sides_know_the_width_by_its_protocol() {
        for width in Width::ALL {
            assert_eq!(Width::of(Some(&width.protocol())), width);
        }
        assert_eq!(Width::of(Some(b"mainland-wide-31")), Width::Narrow);
        assert_eq!(Width::of(None), Width::Narrow);
    }

    #[test]
    fn what_is_offered_is_taken_and_an_older_proxy_is_spoken_to_as_it_speaks() {
        // As a server chooses: the first of its own that was offered.
        let chosen = |taken: Vec<Vec<u8>>, offered: Vec<Vec<u8>>| {
            let protocol = taken.into_iter().find(|it| offered.contains(it));
            let protocol = protocol.as_deref();
            (Width::of(protocol), can_be_asked(protocol))
        };
        let old = || vec![b"h2".to_vec()];
        for width in Width::ALL {
            assert_eq!(chosen(Width::taken(), width.offered()), (width, true));
            assert_eq!(chosen(old(), width.offered()), (Width::Narrow, false));
        }
        assert_eq!(chosen(Width::taken(), old()), (Width::Narrow, false));
        // Of a version that knows no crowds.
        let is_known = |it: &Vec<u8>| !it.starts_with(b"mainland-crowd");
        let before = || Width::taken().into_iter().filter(is_known).collect();
        for (offered, width) in [
            (Width::Crowd, Width::Narrow),
            (Width::CrowdTunnels, Width::Tunnels),
        ] {
            assert_eq!(chosen(before(), offered.offered()), (width, true));
        }
    }

    #[test]
    fn the_readers_of_one_service_leave_room_for_the_others() {
        let room = Room::default();
        let (one, other) = (Arc::<Shared>::default(), Arc::<Shared>::default());
        let width = Width::Wide(MOST_WIDE);
        let taken: Vec<_> = std::iter::from_fn(|| room.take(width, &one)).collect();
        assert_eq!(taken.len(), 4);
        let others: Vec<_> = std::iter::from_fn(|| room.take(width, &other)).collect();
        assert_eq!(others.len(), 4);
        drop(taken);
        assert!(room.take(width, &one).is_some());
        let services: Vec<_> = (0..9).map(|_| Arc::<Shared>::default()).collect();
        let all = services
            .iter()
            .flat_map(|it| std::iter::from_fn(|| room.take(width, it)));
        assert_eq!(all.collect::<Vec<_>>().len(), 12, "and 4 are taken");
    }
}
