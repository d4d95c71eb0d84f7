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
    /// The address by which its replicas are reached; empty: not known.
    pub address: String,
    /// The features of records that it reads ([`super::features`]); an agent from before them says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl Presence {
    /// Of an agent that says of itself what this build does not understand: it lives, and reads nothing that is new.
    #[must_use]
    pub fn not_understood() -> Self {
        let (home, run) = (Uuid::nil(), Uuid::nil());
        Self { schema: PRESENCE_SCHEMA, home, run, address: String::new(), features: Vec::new() }
    }

    /// Whether it reads records with this feature.
    #[must_use]
    pub fn reads(&self, feature: &str) -> bool {
        self.features.iter().any(|read| read == feature)
    }
}
