//! Whether a feature of records may be written now: asked for each change of an engine.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::features;
use crate::core::nodes::Nodes;

/// See the module. It follows what is heard of the nodes.
#[derive(Debug, Clone)]
pub struct Features {
    /// None: the registry is this agent's alone.
    nodes: Option<Arc<Mutex<Nodes>>>,
}

impl Features {
    /// Of a registry that is this agent's alone.
    #[must_use]
    pub fn alone() -> Self {
        Self { nodes: None }
    }

    /// Of a registry that the agents of these nodes share.
    #[must_use]
    pub fn shared(nodes: Arc<Mutex<Nodes>>) -> Self {
        Self { nodes: Some(nodes) }
    }

    /// Whether every agent that lives reads records with this feature. An agent that comes to live in the next moment may
    /// not: it keeps its hands off what it does not understand.
    #[must_use]
    pub fn may_write(&self, feature: &str) -> bool {
        features::may_write(feature, self.nodes.as_ref().map(|nodes| nodes.lock()).as_deref())
    }
}
