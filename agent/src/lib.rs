//! The per-node agent.
