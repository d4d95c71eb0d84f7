//! What operators wish for a whole node, kept in its record of the registry.

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::NodeRecord;

use crate::error::Error;
use crate::registry::{Read, Registry};

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
    for _ in 0..WRITES_MAX {
        let mut record = match registry.node(node).await? {
            Read::Found(record) => record,
            Read::Absent => NodeRecord::new(node.clone()),
            Read::Unreadable(reason) => return Err(Error::failed(format!("look at node {node}: {reason}"))),
        };
        match allowed {
            Some(wanted) if wanted != record.uninstall_allowed => {
                record.uninstall_allowed = wanted;
                if registry.put_node(record).await? {
                    return Ok(wanted);
                }
            }
            _ => return Ok(record.uninstall_allowed),
        }
    }
    Err(Error::conflict(format!("change node {node}: its record keeps changing; try again")))
}
