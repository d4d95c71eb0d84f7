//! What a new member is told of replicas that are still away, so that they can be caught up from it alone: their bases,
//! with the view that adds it, and then which regions they do have.
//!
//! Its maps of them begin with every region, on stable storage with that view: whatever ends before the rest is told,
//! they say too much and never too little. No bit of write intent is cleared from the reading of the members' maps to
//! that telling, so that nothing written meanwhile can be taken for told.

use super::{Engine, bit};
use crate::core::region_map::RegionMap;
use crate::units::REGION_BYTES;
use crate::wire::map::MapEdit;
use crate::wire::payload::Adopt;

impl Engine {
    /// To one that knows no rounds a base with one cannot be told: it remembers nothing of that replica.
    pub(super) fn handed_over(&self, target: usize) -> Adopt {
        let mut adopt = Adopt::default();
        let rounds = self.know_stamps(bit(target));
        let others = self.fill.others().iter().filter(|other| rounds || other.base.round == 0);
        for (place, other) in adopt.iter_mut().zip(others) {
            *place = Some((self.peers[other.slot].id, other.base));
        }
        adopt
    }

    /// It is a member: of what it was told to take for lacking, this is not.
    pub(super) fn finish_hand_over(&mut self, slot: usize) {
        let told: Vec<_> = self
            .fill
            .others()
            .iter()
            .map(|other| {
                let mut has = RegionMap::empty(self.config.volume_bytes);
                has.insert_all();
                has.remove_map(&other.lacks);
                (self.peers[other.slot].id, has)
            })
            .collect();
        for (replica, has) in told {
            let edit = |words| MapEdit::Copied { replica, words };
            self.edit_map(slot, has.set_words(), REGION_BYTES, edit);
        }
    }
}
