//! On which node a new replica is placed.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::VolumeRecord;

use super::{Fleet, Sight, Standing, nodes_of};

/// This part of a disk is left free: images of other volumes grow too.
const KEEP_FREE_ONE_IN: u64 = 10;

/// The node for one more replica of a volume: live, not draining, without a copy of it, with room for all that the
/// volume may come to take; of these the one with the fewest replicas, then with the most room. `load` counts the
/// replicas of nodes.
///
/// # Errors
/// Why there is none.
pub fn choose(
    record: &VolumeRecord,
    fleet: &Fleet,
    load: &BTreeMap<NodeName, usize>,
) -> Result<NodeName, String> {
    let taken = nodes_of(record);
    let needed = record.spec.size_bytes;
    let (mut live, mut draining, mut beside, mut full) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut fit = Vec::new();
    for (node, sight) in fleet {
        if sight.standing != Standing::Live {
            continue;
        }
        live += 1;
        if sight.draining {
            draining += 1;
        } else if taken.contains(node) {
            beside += 1;
        } else if room(sight) < needed {
            full += 1;
        } else {
            let replicas = load.get(node).copied().unwrap_or_default();
            fit.push((replicas, Reverse(sight.available_bytes), node));
        }
    }
    fit.into_iter().min().map(|(.., node)| node.clone()).ok_or_else(|| {
        format!(
            "no node can take another replica: of {live} that are live, {beside} have a copy, {draining} are draining, \
             {full} have less than {needed} bytes to spare; add a node, or undrain one"
        )
    })
}

fn room(sight: &Sight) -> u64 {
    sight.available_bytes.saturating_sub(sight.capacity_bytes / KEEP_FREE_ONE_IN)
}
