//! On which node a new replica is placed.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::VolumeRecord;

use super::{Fleet, Sight, Standing, nodes_of};

/// This part of a disk is left free: images of other volumes grow too.
const KEEP_FREE_ONE_IN: u64 = 10;

/// The node for one more replica of a volume: live, not cordoned, without a copy of it, with room; of these the one with
/// the fewest replicas, then with the most room. `load` counts the replicas of nodes.
///
/// # Errors
/// Why there is none.
pub fn choose(
    record: &VolumeRecord,
    fleet: &Fleet,
    load: &BTreeMap<NodeName, usize>,
) -> Result<NodeName, String> {
    let taken = nodes_of(record);
    let needed = needed_bytes(record, fleet);
    let (mut live, mut cordoned, mut beside, mut full) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut fit = Vec::new();
    for (node, sight) in fleet {
        if sight.standing != Standing::Live {
            continue;
        }
        live += 1;
        if sight.cordoned || sight.draining {
            cordoned += 1;
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
            "no node can take another replica: of {live} that are live, {beside} have a copy, {cordoned} take none, \
             {full} have less than {needed} bytes to spare; add a node, or undrain one"
        )
    })
}

/// What a copy takes now, as far as it is known; an image grows only as it is written.
fn needed_bytes(record: &VolumeRecord, fleet: &Fleet) -> u64 {
    let sizes = record.placed().filter_map(|spec| {
        let directory = fleet.get(&spec.node)?.directories.get(&(record.id, spec.id))?;
        Some(directory.size_bytes)
    });
    sizes.max().unwrap_or(record.spec.size_bytes)
}

fn room(sight: &Sight) -> u64 {
    sight.available_bytes.saturating_sub(sight.capacity_bytes / KEEP_FREE_ONE_IN)
}
