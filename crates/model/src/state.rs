//! Where data lives. First part: volumes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// A folder that outlives the instance that writes it. It has one home, the node where it was first made, and an instance with a
/// volume never starts elsewhere empty. The instance finds it as `./NAME` in its working directory and as `$NAME_DIR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Volume {
    /// What the scheduler sets aside. Bytes.
    pub size: Bytes,
}
