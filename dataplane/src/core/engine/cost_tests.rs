//! What the background costs grows as its work grows: counted in frames and in words of maps, never in time.

use super::directed_tests::Rig;
use crate::core::region_map::words_looked_at;
use crate::core::start::tests as start_tests;
use crate::wire::header::{Kind, Status};

const TIB: u64 = 1 << 40;

/// Frames, and words of maps that were looked at, while a replica of an empty volume of that size is filled from nothing.
fn cost_of_filling_an_empty_replica(size: u64) -> (u64, u64) {
    let mut rig = Rig::serving(2, size, true);
    rig.holes = true;
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    rig.store();
    // Of the view it was a member of, nothing is known: no map reaches back.
    let record = &rig.engine.registry.status;
    let welcome = start_tests::welcome(record.view);
    let welcome = crate::wire::handshake::Welcome {
        configured: record.configured,
        lineage: record.lineage,
        basis: None,
        ..welcome
    };
    let (mut frames, before) = (0, words_looked_at());
    rig.connect_as(2, welcome);
    while rig.engine.proposal.is_none() {
        let (id, _, header) = rig.frames.first().copied().expect("something is asked until it is a member");
        assert!(header.kind != Kind::Write && header.kind != Kind::Read, "nothing is copied");
        rig.answer(id, header.kind, Status::Ok);
        frames += 1;
    }
    (frames, words_looked_at() - before)
}

#[test]
fn filling_an_empty_replica_costs_as_its_size_grows() {
    let (small, large) = (cost_of_filling_an_empty_replica(TIB), cost_of_filling_an_empty_replica(15 * TIB));
    assert!(large.0 <= 20 * small.0, "frames: {} of 1 TiB, {} of 15 TiB", small.0, large.0);
    assert!(large.1 <= 20 * small.1, "words: {} of 1 TiB, {} of 15 TiB", small.1, large.1);
}
