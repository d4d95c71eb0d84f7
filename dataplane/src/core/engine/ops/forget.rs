//! What operations remember of a place in the table of replicas, so that whoever has it next is not taken for whoever
//! had it before.

use super::{Work, slots};
use crate::core::engine::{Engine, bit};

impl Engine {
    /// The replica in this place is gone for good: no answer of it counts any more.
    pub(in crate::core::engine) fn forget_answers(&mut self, slot: usize) {
        for op in self.ops.table.iter_mut().filter(|op| op.live) {
            op.ok &= !bit(slot);
            op.failed &= !bit(slot);
            op.extents.retain(|(from, _)| *from != slot);
            op.parts.retain(|(from, _)| *from != slot);
            if let Some(digest) = op.digests.as_mut().and_then(|digests| digests.get_mut(slot)) {
                *digest = None;
            }
        }
    }

    /// Whether an operation still means the replica that had this place.
    pub(in crate::core::engine) fn is_meant(&self, slot: usize) -> bool {
        self.ops.any(|op| {
            let meant = match op.work {
                Work::Copy { target, .. } | Work::FlushTarget { target } => target == slot,
                Work::Scan { mask } | Work::ReadMap { mask, .. } => slots(mask).any(|other| other == slot),
                Work::Client(_) | Work::Repair | Work::FlushOwn | Work::FlushAll | Work::Abandoned => false,
            };
            meant || op.pending & bit(slot) != 0
        })
    }
}
