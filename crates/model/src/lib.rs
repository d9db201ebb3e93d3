//! What is declared and what is observed: plain data, units, ids, validation. No I/O, no clock.
//!
//! The modules are the rooms of the house:
//!
//! | module | what it names |
//! |---|---|
//! | [`ids`] | one type per kind of name and number |
//! | [`units`] | bytes, milli-CPUs, percentages, rates, with their text forms |
//! | [`compute`] | services, artifacts, releases, placements, instances |
//! | [`state`] | volumes, databases, topics, and what their engines are told |
//! | [`traffic`] | routes, endpoints, roads, and what a proxy is told |
//! | [`boundary`] | principals, secrets, audit records |
//! | [`control`] | nodes, rollouts, reasons, what server and node tell each other |
//! | [`signals`] | events |
//! | [`machine`] | what the machine of a node has: disk, programs |
//! | [`timing`] | the times that promises rest on, and what must hold between them |
//! | [`path`] | which paths stay inside of a folder |
//! | [`manifest`] | `mainland.yaml`: text to resources, with positions in every error |
//!
//! What somebody *decided* (specs, releases, placements, epochs) is serialised into the store. What somebody *saw*
//! (the `*Report` and `Observed*` types) travels and is forgotten.
//!
//! Servers, nodes, proxies and shims of two versions read what each other says and keeps. So a type ignores a field that it does not know, a new field
//! has a default, and where a new word costs more than what is said in it, the type says what an unknown word counts as. What a *person* writes is held to
//! the letter all the same: a manifest by its own reader, a body of the API by the schema, which is closed (`schemars(deny_unknown_fields)`).

pub mod boundary;
pub mod compute;
pub mod control;
pub mod ids;
pub mod machine;
pub mod manifest;
pub mod path;
mod readable;
pub mod signals;
pub mod state;
pub mod timing;
pub mod traffic;
pub mod units;
#[cfg(test)]
mod versions;
