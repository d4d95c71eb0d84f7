//! This node, as others see it: `inventory/NODE` stays when its agent is away, `nodes/NODE` goes with its lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{Inner, found, put, range, range_below, unchanged};
use crate::error::Error;
use crate::registry::nodes::INVENTORY_SCHEMA;
use crate::registry::{NodeInventory, NodeState, Read};
use crate::store::atomic;

/// An agent that is silent for so long is listed as away; nothing else follows from it.
const LEASE_S: i64 = 15;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_secs(1);

const ALIVE: &str = "nodes";
const INVENTORY: &str = "inventory";

/// Every node that ever published.
pub(super) async fn nodes(inner: &Inner) -> Result<Vec<NodeState>, Error> {
    let (inventories, alive) = (inner.key(INVENTORY, ""), inner.key(ALIVE, ""));
    let ranges = vec![range_below(&inventories), range_below(&alive)];
    let answer = inner.read("read the nodes", ranges).await?;
    let parse = |kv: &holdfast_proto::pb::etcd::KeyValue| {
        let place = format!("{} in etcd", String::from_utf8_lossy(&kv.key));
        match atomic::parse_json::<NodeInventory>(&kv.value, &place, INVENTORY_SCHEMA) {
            Read::Found(inventory) => Some(inventory),
            Read::Absent => None,
            Read::Unreadable(reason) => {
                tracing::debug!(reason, "a node cannot be understood");
                None
            }
        }
    };
    let living: Vec<_> = found(&answer, 1).iter().filter_map(parse).collect();
    let states = found(&answer, 0).iter().filter_map(parse).map(|inventory| {
        let alive = living.iter().any(|one| one.node == inventory.node && one.home == inventory.home);
        NodeState { alive, inventory }
    });
    Ok(states.collect())
}

/// Keeps what was published last published, and the lease alive.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut published = inner.published.subscribe();
    if published.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut complaint = String::new();
    loop {
        // Ends with an error only.
        if let Err(error) = stay(&inner, &mut complaint).await {
            let error = error.to_string();
            if complaint != error {
                tracing::warn!(error, "other nodes do not hear of this one; it is tried again");
                complaint = error;
            }
        }
        sleep(AGAIN_AFTER).await;
    }
}

async fn stay(inner: &Inner, complaint: &mut String) -> Result<(), Error> {
    let mut published = inner.published.subscribe();
    let told = |failure| inner.client.error("keep the lease of this node", &[failure]);
    let lease = inner.client.grant(LEASE_S).await.map_err(told)?;
    loop {
        let inventory = published.borrow_and_update().clone();
        let Some(inventory) = inventory else { return Ok(()) };
        claim(inner, &inventory, lease).await?;
        complaint.clear();
        let mut next = Instant::now() + KEEP_ALIVE_EVERY;
        while let Err(_not_yet) = timeout_at(next, published.changed()).await {
            if !inner.client.keep_alive(lease).await.map_err(told)? {
                return Err(Error::failed("keep the lease of this node: it has run out"));
            }
            next = Instant::now() + KEEP_ALIVE_EVERY;
        }
    }
}

/// Writes both keys, unless another agent lives under this name.
async fn claim(inner: &Inner, inventory: &NodeInventory, lease: i64) -> Result<(), Error> {
    let operation = format!("publish node {}", inner.node);
    let (alive, full) = (inner.key(ALIVE, &inner.node), inner.key(INVENTORY, &inner.node));
    let answer = inner.read(&operation, vec![range(&alive)]).await?;
    let before = found(&answer, 0).first();
    if let Some(kv) = before
        && let Read::Found(other) = atomic::parse_json::<NodeInventory>(&kv.value, &alive, INVENTORY_SCHEMA)
        && other.home != inventory.home
    {
        return Err(Error::conflict(format!(
            "{operation}: an agent of this name lives already, with another data directory (reached at {}): give one of \
             them another --node, or wait {LEASE_S} s if it has ended",
            other.address
        )));
    }
    let revision = before.map_or(0, |kv| kv.mod_revision);
    let encode = |inventory: &NodeInventory| {
        serde_json::to_vec(inventory).map_err(|e| Error::failed(format!("{operation}: {e}")))
    };
    let short = NodeInventory { replicas: Vec::new(), ..inventory.clone() };
    let change = vec![put(&alive, encode(&short)?, lease), put(&full, encode(inventory)?, 0)];
    if inner.change(&operation, vec![unchanged(&alive, revision)], change).await? {
        Ok(())
    } else {
        Err(Error::conflict(format!("{operation}: another agent was first")))
    }
}
