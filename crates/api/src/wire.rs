//! Version 1 of what travels in bodies.
//!
//! Domain types whose stored and shown forms are one (a `Service`, a `Release`, a `Heartbeat`) travel as they are; what a user reads is a
//! view of its own here, so that the inside can change without the outside.
//!
//! | module | of |
//! |---|---|
//! | `about` | the server itself |
//! | `projects` | how a project does, and why |
//! | `deploys` | apply, and who deploys |
//! | `resources` | kinds, lists, watches |
//! | `keys` | small durable values |
//! | `secrets` | secrets and their values |
//! | `services` | scale, releases, rollouts |
//! | `instances` | what runs, and `exec` |
//! | `artifacts` | uploads |
//! | `engines` | databases, topics, messages |
//! | `nodes` | machines, from join to leave |

mod about;
mod artifacts;
mod deploys;
mod engines;
mod instances;
mod keys;
mod nodes;
mod projects;
mod resources;
mod secrets;
mod services;

pub use about::{AuditChain, Health, Version, WhoAmI};
pub use artifacts::{BeginUpload, CHUNK_MAX_BYTES, UploadState};
pub use deploys::{Action, Applied, Apply, Change, Deploy, HoldDeploy};
pub use engines::{DeadLetter, EngineKind, EngineView, Message, Messages, Published};
pub use instances::{Exec, InstanceView};
pub use keys::{KeyView, KeyWritten, Keys};
pub use nodes::{
    BrakeReleased, CertificateAnswer, CertificateRequest, Join, Joined, LostVolume, MadeJoinToken,
    MakeJoinToken, NodeRemoved, NodeState, NodeStatus, NodeView, Renew,
};
pub use projects::{Because, Explanation, ProjectStatus, RouteStatus, ServiceStatus};
pub use resources::{Kind, List, WatchEvent};
pub use secrets::{Keyring, RingKey, SecretValue, SecretValues, SecretView};
pub use services::{ReleaseView, Released, Rollback, Scaled, SetScale, Steer, SteerRollout};
