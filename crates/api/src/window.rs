//! How much of an HTTP/2 stream may be under way unread, where many share a connection.
//!
//! What a reader does not take stays with the receiver, up to its stream's window. All streams together must never fill the window of their
//! connection: then one that reads nothing would stop all others. So the connection's window is as large as HTTP/2 allows, and streams are
//! bounded in size and in number.

/// Of a connection, in bytes (RFC 9113, 6.9.1).
pub const OF_CONNECTION: u32 = (1 << 31) - 1;
/// Of one answer to a [`Client`](crate::client::Client), in bytes: hyper's default.
pub const OF_ANSWER: u32 = 2 << 20;
/// Of one stream of a node's tunnel, either way, in bytes. Fills a path of 40 ms at 6 MB/s.
pub const OF_TUNNELLED: u32 = 256 << 10;
/// Streams of a node's tunnel at a time.
pub const TUNNELLED_MOST: u32 = 1_000;
/// The most streams that a server takes on a connection, from who has a certificate.
pub const STREAMS_MOST: u32 = 1_000;

// However many streams are unread, their connection's window is not used up.
const _: () = assert!(OF_TUNNELLED as u64 * (TUNNELLED_MOST as u64) < OF_CONNECTION as u64);
const _: () = assert!(OF_ANSWER as u64 * (STREAMS_MOST as u64) < OF_CONNECTION as u64);
