//! Copies take no room for zeros, and a replica without room is tried ever more rarely.

use super::directed_tests::Rig;
use super::*;
use crate::core::zero_blocks::ZeroBlocks;
use crate::units::{BLOCK_BYTES, REGION_BYTES};
use crate::wire::header::{FLAG_FILL, Kind, Status};

/// Blocks 0 to 2 and 5 of every region are data.
fn few_blocks() -> ZeroBlocks {
    ZeroBlocks::by_block((0..64).map(|block| !matches!(block, 0..=2 | 5)))
}

/// What a region with these blocks is given as, at most once each and in any order.
fn expected(region: u64) -> Vec<(Kind, u64, u64)> {
    let at = |kind, first: u64, blocks: u64| {
        (kind, region * REGION_BYTES + first * BLOCK_BYTES, blocks * BLOCK_BYTES)
    };
    vec![at(Kind::Write, 0, 3), at(Kind::Trim, 3, 2), at(Kind::Write, 5, 1), at(Kind::Trim, 6, 58)]
}

impl Rig {
    /// The second of two replicas of two regions was away while the first was written, and is back: up to the first
    /// region that it is given.
    fn giving() -> Self {
        let mut rig = Self::serving(2, 2 * REGION_BYTES, true);
        rig.zeros = few_blocks();
        rig.disconnect(2);
        rig.gone(2);
        rig.answer_all(&[1]);
        rig.store();
        rig.write(0);
        rig.answer_all(&[1]);
        rig.connect(2);
        rig.give();
        rig
    }

    /// All is answered up to the first frame that gives the second replica something.
    fn give(&mut self) {
        while self.sent(2, Kind::Trim) == 0 {
            let next = self.frames.first().map(|(id, _, header)| (*id, header.kind));
            match next {
                Some((id, kind)) => self.answer(id, kind, Status::Ok),
                None => self.after(1),
            }
        }
    }

    fn given(&self, to: u32) -> Vec<(Kind, u64, u64, u16)> {
        let changes = self
            .frames
            .iter()
            .filter(|(id, _, header)| *id == to && matches!(header.kind, Kind::Write | Kind::Trim));
        changes.map(|(_, _, h)| (h.kind, h.offset, h.extent, h.flags)).collect()
    }

    fn mode_and_reason(&self) -> (ReplicaMode, String) {
        let report = self.engine.report(self.now);
        (report.replicas[1].mode, report.replicas[1].reason.clone())
    }

    /// The second replica has no room, again and again: after how many seconds each it is tried again.
    fn waits_without_room(&mut self, tries: usize) -> Vec<u64> {
        let mut waits = Vec::new();
        for _ in 0..tries {
            self.answer(2, Kind::Write, Status::NoSpace);
            self.answer(2, Kind::Trim, Status::Ok);
            self.answer(2, Kind::Write, Status::Ok);
            self.answer(2, Kind::Trim, Status::Ok);
            self.connect(2);
            let since = self.now;
            self.give();
            waits.push((self.now - since).as_secs());
        }
        waits
    }
}

#[test]
fn copies_give_data_as_data_and_zeros_as_holes() {
    let mut rig = Rig::giving();
    let expected: Vec<_> =
        expected(0).into_iter().map(|(k, offset, len)| (k, offset, len, FLAG_FILL)).collect();
    assert_eq!(rig.given(2), expected);
    for kind in [Kind::Trim, Kind::Write, Kind::Trim] {
        rig.answer(2, kind, Status::Ok);
        assert_eq!(rig.engine.report(rig.now).replicas[1].done_bytes, 0, "not before all are answered");
    }
    rig.answer(2, Kind::Write, Status::Ok);
    rig.answer_all(&[1, 2]);
    assert!(rig.engine.proposal.is_some(), "it is proposed to be a member");
}

#[test]
fn repair_gives_data_as_data_and_zeros_as_holes() {
    let mut rig = Rig::serving(2, REGION_BYTES, false);
    rig.zeros = few_blocks();
    while rig.given(2).is_empty() {
        let (id, _, header) = rig.frames.first().copied().expect("something is asked");
        rig.answer(id, header.kind, Status::Ok);
    }
    let expected: Vec<_> = expected(0).into_iter().map(|(k, offset, len)| (k, offset, len, 0)).collect();
    assert_eq!(rig.given(2), expected, "with write intent");
    for kind in [Kind::Trim, Kind::Trim, Kind::Write] {
        rig.answer(2, kind, Status::Ok);
        assert!(!rig.engine.unrepaired.is_empty(), "a part is not there");
    }
    rig.answer(2, Kind::Write, Status::Ok);
    assert!(rig.engine.unrepaired.is_empty());
}

#[test]
fn repair_gives_all_again_after_a_reset() {
    let mut rig = Rig::serving(2, REGION_BYTES, false);
    rig.zeros = few_blocks();
    while rig.given(2).is_empty() {
        let (id, _, header) = rig.frames.first().copied().expect("something is asked");
        rig.answer(id, header.kind, Status::Ok);
    }
    rig.answer(2, Kind::Write, Status::Ok);
    rig.disconnect(2);
    rig.connect(2);
    assert_eq!(rig.given(2).len(), 4, "{:?}", rig.given(2));
    for kind in [Kind::Trim, Kind::Trim, Kind::Write] {
        rig.answer(2, kind, Status::Ok);
        assert!(!rig.engine.unrepaired.is_empty(), "a part is not there");
    }
    rig.answer(2, Kind::Write, Status::Ok);
    assert!(rig.engine.unrepaired.is_empty());
}

#[test]
fn a_replica_without_room_says_so_and_is_tried_ever_more_rarely() {
    let mut rig = Rig::giving();
    assert_eq!(rig.waits_without_room(9), [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    let (mode, reason) = rig.mode_and_reason();
    assert_eq!(mode, ReplicaMode::Rebuilding, "what it has now is not what it left with");
    assert_eq!(reason, "no room on its disk for what it lacks; tried again after 300 s");
}

#[test]
fn a_replica_comes_back_once_there_is_room() {
    let mut rig = Rig::giving();
    rig.waits_without_room(3);
    rig.answer_all(&[1, 2]);
    assert!(rig.engine.proposal.is_some(), "it is proposed to be a member");
    rig.store();
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.mode_and_reason(), (ReplicaMode::Member, String::new()));
}
