//! The API as types: operations, wire shapes, problems, the typed client. Needs no server.
//!
//! | module | what it holds |
//! |---|---|
//! | [`operations`] | every operation as data: method, path, what goes in and out; the OpenAPI document comes from it |
//! | [`wire`] | version 1 of what travels in bodies, apart from the domain's types where the two differ |
//! | [`problem`] | errors, RFC 9457, each with a stable code and a remedy |
//! | [`stream`] | bodies that go on: JSON texts line by line, and the frames of `exec` |
//! | [`window`] | how much of a stream may be under way unread |
//! | [`client`] | one connection to a server or a node, typed methods on it |
//! | [`strict`] | whether a body has a key that its type does not have |
//! | [`disk`] | how full a disk is, for all who tell it |
//!
//! A body is JSON. A revision is opaque and travels as an ETag; `If-Match` makes a change conditional; `Idempotency-Key` makes a POST safe
//! to repeat. `?watch=true` answers with one JSON text a line for as long as both sides live.

pub mod client;
pub mod disk;
pub mod operations;
pub mod problem;
pub mod stream;
pub mod strict;
pub mod window;
pub mod wire;
