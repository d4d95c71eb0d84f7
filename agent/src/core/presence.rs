//! What an agent says of itself while it lives, under the name of its node.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Raised when a reader of the version before would be misled.
pub const PRESENCE_SCHEMA: u32 = 1;

/// An agent that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// [`PRESENCE_SCHEMA`].
    pub schema: u32,
    /// Of its data directory: two agents of one name are two homes.
    pub home: Uuid,
    /// Of this run of the agent.
    pub run: Uuid,
    /// The address by which its replicas are reached.
    pub address: String,
}
