//! The real shop: its processes, a private PostgreSQL, and things going wrong.
//!
//! | module | what goes wrong |
//! |---|---|
//! | [`crashes`] | checkout dies, or loses an answer, between any two steps |
//! | [`crowds`] | many want the same thing, or come with the same key |
//! | [`outages`] | the database is killed, the provider fails and repeats |
//! | [`world`] | a shop to try it on, and its audit |

mod crashes;
mod crowds;
mod outages;
mod world;
