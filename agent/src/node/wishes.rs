//! What operators wish for a whole node, kept in its record of the registry.

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::NodeRecord;

use super::shared::Shared;
use crate::core::nodes::Heard;
use crate::core::upkeep;
use crate::error::Error;
use crate::registry::{Entry, Read, Registry};

/// A record that changes under us so often is being fought over.
const WRITES_MAX: usize = 16;

/// Whether `holdfast uninstall` may take the node's agent away, from the source of truth; changed first where
/// `allowed` says so.
///
/// # Errors
/// When the record cannot be read or written, and so nothing is known.
pub async fn allow_uninstall(
    registry: &dyn Registry,
    node: &NodeName,
    allowed: Option<bool>,
) -> Result<bool, Error> {
    let wish =
        |record: &mut NodeRecord| record.uninstall_allowed = allowed.unwrap_or(record.uninstall_allowed);
    Ok(change(registry, node, wish).await?.uninstall_allowed)
}

/// Removes what the registry keeps of a node whose agent was taken away. Returns whether it is gone: not where volumes
/// have a part on the node, which others still have to know; then only the permission to uninstall is taken back.
///
/// # Errors
/// When the registry cannot be read or written.
pub async fn leave_registry(registry: &dyn Registry, node: &NodeName) -> Result<bool, Error> {
    let named = registry.list().await?.iter().any(|entry| match entry {
        Entry::Readable(record) => upkeep::names(record, node),
        Entry::Unreadable { .. } => true,
    });
    let tries = if named { 0 } else { WRITES_MAX };
    for _ in 0..tries {
        let version = match registry.node(node).await? {
            Read::Found(record) => record.version,
            Read::Absent => 0,
            Read::Unreadable(reason) => return Err(Error::failed(format!("look at node {node}: {reason}"))),
        };
        if registry.forget_node(node, version).await? {
            return registry.leave().await.map(|()| true);
        }
    }
    allow_uninstall(registry, node, Some(false)).await.map(|_| false)
}

/// Writes a wish. This agent knows it when this returns, the others when the registry has told them.
pub(super) async fn wish(
    shared: &Shared,
    node: &NodeName,
    wish: impl Fn(&mut NodeRecord),
) -> Result<(), Error> {
    let record = change(shared.registry.as_ref(), node, wish).await?;
    shared.nodes.lock().handle(Heard::Wished(node.clone(), Some(record)), shared.now());
    Ok(())
}

/// Reads what is wished for this node, where the registry tells of no nodes.
pub(super) async fn learn(shared: &Shared) {
    let node = &shared.config.node;
    let reason = match shared.registry.node(node).await {
        Ok(Read::Found(record)) => {
            return shared.nodes.lock().handle(Heard::Wished(node.clone(), Some(record)), shared.now());
        }
        Ok(Read::Absent) => return,
        Ok(Read::Unreadable(reason)) => reason,
        Err(error) => error.to_string(),
    };
    tracing::warn!(reason, "what is wished for this node cannot be read");
}

/// Changes the record by compare-and-swap. Returns it as it is then.
async fn change(
    registry: &dyn Registry,
    node: &NodeName,
    change: impl Fn(&mut NodeRecord),
) -> Result<NodeRecord, Error> {
    for _ in 0..WRITES_MAX {
        let before = match registry.node(node).await? {
            Read::Found(record) => record,
            Read::Absent => NodeRecord::new(node.clone()),
            Read::Unreadable(reason) => return Err(Error::failed(format!("look at node {node}: {reason}"))),
        };
        let mut record = before.clone();
        change(&mut record);
        if record == before {
            return Ok(before);
        }
        if registry.put_node(record.clone()).await? {
            return Ok(NodeRecord { version: record.version + 1, ..record });
        }
    }
    Err(Error::conflict(format!("change node {node}: its record keeps changing; try again")))
}
