//! On which node a new replica is placed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::VolumeRecord;

use super::{Fleet, Standing, nodes_of};
use crate::units::{format_size, parse_size};

/// What moves leave free of a node's disk: images of the replicas that are there already grow too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskReserve {
    /// So many percent of its capacity, at most 100.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

impl DiskReserve {
    /// In bytes, of a disk with this capacity.
    #[must_use]
    pub fn of(self, capacity_bytes: u64) -> u64 {
        match self {
            // Whole percents first: exact enough for a disk, and never more than 64 bits.
            Self::Percent(percent) => capacity_bytes / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Default for DiskReserve {
    fn default() -> Self {
        Self::Percent(10)
    }
}

impl fmt::Display for DiskReserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => f.write_str(&format_size(*bytes)),
        }
    }
}

impl FromStr for DiskReserve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no part of a disk: expected 0% to 100%, or a size (10%, 50GiB)");
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                percent.trim().parse().ok().filter(|p| *p <= 100).map(Self::Percent).ok_or_else(wrong)
            }
            None => parse_size(text).map(Self::Bytes).map_err(|_| wrong()),
        }
    }
}

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
        } else if sight.room_bytes < needed {
            full += 1;
        } else {
            let replicas = load.get(node).copied().unwrap_or_default();
            fit.push((replicas, Reverse(sight.room_bytes), node));
        }
    }
    fit.into_iter().min().map(|(.., node)| node.clone()).ok_or_else(|| {
        format!(
            "no node can take another replica: of {live} that are live, {beside} have a copy, {draining} are draining, \
             {full} have less than {needed} bytes to spare beside their disk_reserve; add a node, undrain one, or make \
             room"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_a_share_or_a_size_and_prints_as_it_is_written() {
        for (text, bytes) in [("10%", 40_000), ("0%", 0), ("100%", 400_000), ("64KiB", 65_536), ("0B", 0)] {
            let reserve: DiskReserve = text.parse().unwrap();
            assert_eq!((reserve.of(400_000), reserve.to_string()), (bytes, text.to_owned()));
        }
        assert_eq!("0".parse(), Ok(DiskReserve::Bytes(0)));
        assert_eq!(DiskReserve::Percent(100).of(u64::MAX), u64::MAX / 100 * 100);
        for text in ["", "%", "101%", "-1%", "1.5%", "a tenth"] {
            let said = text.parse::<DiskReserve>().unwrap_err();
            assert!(said.contains("expected 0% to 100%"), "{said}");
        }
    }
}
