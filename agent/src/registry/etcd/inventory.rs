//! What a node publishes, in etcd.

use std::sync::Arc;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::etcd as pb;

use super::{Inner, delete, found, put, range_below};
use crate::core::publish::Op;
use crate::error::Error;
use crate::registry::inventory::InventoryHome;

pub(super) const INVENTORY: &str = "inventory";
/// etcd takes 128 in one transaction as it comes (`--max-txn-ops`), and each has two that say how new it is.
const OPS_MAX: usize = 126;
/// It takes 1.5 MiB as it comes (`--max-request-bytes`); keys and the rest need their part.
const BYTES_MAX: usize = 1 << 20;

/// The keys of one node.
#[derive(Debug)]
pub(super) struct EtcdInventory {
    inner: Arc<Inner>,
    node: NodeName,
    /// Ends with a slash.
    prefix: String,
}

impl EtcdInventory {
    pub(super) fn new(inner: Arc<Inner>, node: &NodeName) -> Self {
        let prefix = format!("{}/", inner.key(INVENTORY, node));
        Self { inner, node: node.clone(), prefix }
    }

    /// In the same order, as few transactions as hold them.
    fn transactions(&self, ops: Vec<Op>) -> Vec<Vec<pb::RequestOp>> {
        let mut all: Vec<Vec<pb::RequestOp>> = Vec::new();
        let mut held = 0;
        for op in ops {
            let key = format!("{}{}", self.prefix, op.key());
            let (length, request) = match op {
                Op::Put { bytes, .. } => (key.len() + bytes.len(), put(&key, bytes, 0)),
                Op::Delete { .. } => (key.len(), delete(&key)),
            };
            match all.last_mut() {
                Some(last) if last.len() < OPS_MAX && held + length <= BYTES_MAX => {
                    last.push(request);
                    held += length;
                }
                _ => {
                    all.push(vec![request]);
                    held = length;
                }
            }
        }
        all
    }
}

#[tonic::async_trait]
impl InventoryHome for EtcdInventory {
    async fn found(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let operation = format!("read the inventory of node {}", self.node);
        let answer = self.inner.read(&operation, vec![range_below(&self.prefix)]).await?;
        let below = found(&answer, 0).iter().map(|kv| {
            let key = String::from_utf8_lossy(&kv.key);
            (key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned(), kv.value.clone())
        });
        Ok(below.collect())
    }

    async fn write(&self, ops: Vec<Op>) -> Result<(), Error> {
        let operation = format!("publish the inventory of node {}", self.node);
        for transaction in self.transactions(ops) {
            self.inner.tell(&operation, Vec::new(), transaction).await?;
        }
        Ok(())
    }
}
