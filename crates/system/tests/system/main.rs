//! What a user relies on, on real parts: the binary, three zones, programs that nobody here wrote, and faults.
//!
//! Each test has a cloud of its own on loopback addresses and a directory of its own; they run one after the other, for the machine is small.

mod absence;
mod beside;
mod broken;
mod change;
mod clock;
mod commands;
mod damage;
mod deny;
mod deploy;
mod disk;
mod environments;
mod faults;
mod first;
mod hidden;
mod identity;
mod impostor;
mod leftovers;
mod neighbours;
mod reasons;
mod secrets;
mod separation;
mod shop;
mod state;
mod words;
