//! Carries out what the core finds to be moved: replicas of nodes that are drained, forgotten, or gone for too long get
//! successors on other nodes. One agent of all does it at a time; what it wants is written into records by
//! compare-and-swap, decided again by the record that is written, and the engines do the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_proto::ids::{NodeName, VolumeName};
use holdfast_proto::record::VolumeRecord;
use holdfast_proto::status::ErrorKind;
use tokio::time::sleep;

use super::shared::Shared;
use super::{replicas, wishes};
use crate::core::upkeep::{self, Fleet, Move, is_due, on_duty};

/// Nothing here is in a hurry, and what fails is tried again no sooner.
const EVERY: Duration = Duration::from_secs(5);
const MOVE: &str = "move a replica of";

/// What was said, so that it is said once.
#[derive(Default)]
struct Upkeep {
    failed: BTreeMap<VolumeName, String>,
    stuck: String,
}

/// Looks after the fleet until the node has ended.
pub(super) async fn run(shared: Weak<Shared>) {
    let mut upkeep = Upkeep::default();
    loop {
        sleep(EVERY).await;
        let Some(node) = shared.upgrade() else { return };
        upkeep.look(&node).await;
    }
}

impl Upkeep {
    async fn look(&mut self, shared: &Shared) {
        let here = &shared.config.node;
        let (fleet, forgotten) = {
            let nodes = shared.nodes.lock();
            // What is not heard of now may have come back.
            if !nodes.is_complete() || shared.check_standing().is_err() {
                return;
            }
            let forgotten = nodes.wish(here).is_some_and(|wish| wish.forgotten);
            (upkeep::fleet(&nodes, here, shared.now()), forgotten)
        };
        if forgotten {
            come_back(shared).await;
        }
        if on_duty(&fleet) != Some(here) {
            shared.metrics.seen.lock().replica_moves_blocked = 0;
            *self = Self::default();
            return;
        }
        let records = Arc::clone(&shared.records.lock());
        let leave = upkeep::to_forget(&records, &shared.nodes.lock());
        for (node, version) in leave {
            clear(shared, &node, version).await;
        }
        let wait = *shared.replenish_after.lock();
        let found = upkeep::plan(&records, &fleet, wait);
        self.failed.retain(|volume, _| found.moves.iter().any(|wanted| wanted.volume == *volume));
        for wanted in &found.moves {
            self.carry_out(shared, &fleet, wait, wanted).await;
        }
        shared.metrics.seen.lock().replica_moves_blocked = found.stuck.len();
        let stuck = found.stuck.iter().next().map_or(String::new(), |((volume, replica), why)| {
            format!("{} of them, the first is {replica} of volume {volume}: {why}", found.stuck.len())
        });
        if self.stuck != stuck && !stuck.is_empty() {
            tracing::info!(stuck, "replicas that ought to be on other nodes cannot be moved now");
        }
        self.stuck = stuck;
    }

    async fn carry_out(&mut self, shared: &Shared, fleet: &Fleet, wait: Duration, wanted: &Move) {
        let Move { volume, replica, from, to, cause, .. } = wanted;
        // A person's change of the volume comes first.
        if shared.is_changing(volume.as_str()) {
            return;
        }
        let due = |record: &VolumeRecord| is_due(record, fleet, wait, wanted);
        match replicas::want_there(shared, MOVE, volume, Some(*replica), to, due).await {
            Ok(Some(successor)) => {
                self.failed.remove(volume);
                shared.metrics.counts.lock().replica_moves("begun");
                tracing::info!(%volume, %replica, %from, %to, %successor, why = %cause, "a replica is to move");
            }
            // Somebody else was first, or it is not so any more.
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let said = error.to_string();
                shared.metrics.counts.lock().replica_moves("failed");
                if self.failed.get(volume) != Some(&said) {
                    tracing::warn!(%volume, %replica, %from, %to, error = said, "a replica cannot be moved; tried again");
                    self.failed.insert(volume.clone(), said);
                }
            }
        }
    }
}

/// Removes what the registry keeps of a forgotten node that nothing refers to any more.
async fn clear(shared: &Shared, node: &NodeName, version: u64) {
    match shared.registry.forget_node(node, version).await {
        Ok(true) => tracing::info!(%node, "it was forgotten, and nothing is left of it in the registry"),
        // It is back, or the mark has changed.
        Ok(false) => {}
        // Tried again at the next look.
        Err(error) => tracing::debug!(%node, %error, "what the registry keeps of a forgotten node stays"),
    }
}

/// This node was forgotten, and its agent lives.
async fn come_back(shared: &Shared) {
    match wishes::wish(shared, &shared.config.node, |wish| wish.forgotten = false).await {
        Ok(()) => tracing::warn!(
            "this node was forgotten and is back; its replicas that were replaced meanwhile are not claimed any more, \
             and nothing of them is deleted"
        ),
        // Tried again at the next look.
        Err(error) => tracing::debug!(%error, "that this node is back cannot be written"),
    }
}
