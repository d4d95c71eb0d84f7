//! Settling rounds, step by step: what is remembered before anything is forgotten.

use holdfast_proto::ids::ReplicaId;

use super::directed_tests::{Rig, config};
use super::*;
use crate::core::rules::{Rule, without};
use crate::core::start::tests::{self as start_tests, status, view};
use crate::units::{GROUP_BYTES, REGION_BYTES};
use crate::wire::handshake::Welcome;
use crate::wire::header::{Kind, Status};

fn stamped(rig: &Rig) -> Welcome {
    let record = &rig.engine.registry.status;
    Welcome {
        configured: record.configured,
        lineage: record.lineage,
        basis: Some(record.view.stamp(0)),
        stamps: true,
        ..start_tests::welcome(record.view)
    }
}

/// An engine that serves replicas which keep stamps.
fn serving(replicas: u32, size: u64) -> Rig {
    let ids: Vec<_> = (1..=replicas).collect();
    let mut record = status(&ids, view(0, 0, &ids, false));
    record.clean = true;
    let mut rig = Rig::fencing(config(size), record);
    for id in ids.clone() {
        let welcome = stamped(&rig);
        rig.connect_as(id, welcome);
    }
    rig.answer_all(&ids);
    assert_eq!(rig.engine.phase, view::Phase::Serving);
    rig.store();
    rig
}

/// Whether the members are told to forget regions that a replica has got before they remember its new stamp.
fn forgets_too_early() -> bool {
    let mut rig = serving(2, 4096 * REGION_BYTES);
    rig.holes = true;
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    rig.store();
    let welcome = Welcome { basis: None, ..stamped(&rig) };
    rig.updates.clear();
    rig.connect_as(2, welcome);
    let (mut told, mut remembered, mut forgotten) = (0, 0, 0);
    while rig.engine.proposal.is_none() {
        let (id, _, header) = rig.frames.first().copied().expect("something is asked until it is a member");
        match (id, header.kind) {
            (1, Kind::EditMap) if remembered == forgotten => return true,
            (1, Kind::EditMap) => forgotten = remembered,
            (1, Kind::PersistView) => {
                let update = rig.updates.iter().filter(|(id, _)| *id == 1).nth(told).expect("it was sent").1;
                told += 1;
                let advance =
                    update.stamp.and_then(|stamp| stamp.advance).filter(|_| update.refill.is_empty());
                remembered += u32::from(advance.is_some_and(|(id, _)| id == ReplicaId(2)));
            }
            _ => {}
        }
        rig.answer(id, header.kind, Status::Ok);
    }
    assert!(forgotten > 0, "progress is made");
    false
}

#[test]
fn rounds_of_a_target_are_remembered_before_its_progress() {
    assert!(!forgets_too_early());
    assert!(without(Some(Rule::ProgressStamped), forgets_too_early));
}

#[test]
fn rounds_are_told_to_the_record_while_something_is_written() {
    let mut rig = serving(1, REGION_BYTES);
    let mut told = Vec::new();
    for _ in 0..120 {
        rig.write(0);
        rig.answer_all(&[1]);
        rig.after(10);
        rig.answer_all(&[1]);
        if let Some((_, _, status)) = rig.asks.first() {
            told.push((rig.now.as_secs() / 60, status.round));
            rig.store();
        }
    }
    let [(first, round), (second, later)] = told[..] else { panic!("twice in 20 minutes: {told:?}") };
    assert!(first <= 11 && second <= 22 && 0 < round && round < later, "{told:?}");
}

#[test]
fn rounds_are_not_made_where_nothing_is_written() {
    let mut rig = serving(2, REGION_BYTES);
    rig.updates.clear();
    for _ in 0..100 {
        rig.after(10);
        rig.answer_all(&[1, 2]);
    }
    assert_eq!((rig.updates.len(), rig.asks.len()), (0, 0));
}

#[test]
fn rounds_are_left_out_with_a_member_that_knows_no_stamps() {
    let ids = [1, 2];
    let mut record = status(&ids, view(0, 0, &ids, false));
    record.clean = true;
    let mut rig = Rig::fencing(config(REGION_BYTES), record);
    let welcome = stamped(&rig);
    rig.connect_as(1, welcome);
    rig.connect(2);
    rig.answer(1, Kind::PersistView, Status::Ok);
    rig.answer(2, Kind::PersistView, Status::Ok);
    assert_eq!(rig.engine.phase, view::Phase::Serving, "at once");
    assert!(rig.updates.iter().all(|(_, update)| update.stamp.is_none()));
}

#[test]
fn rounds_in_progress_clear_no_bits_of_what_a_target_has_to_compare() {
    let mut rig = serving(2, 2 * GROUP_BYTES);
    rig.write(0);
    rig.answer_all(&[1, 2]);
    // It is flushed, stays cold from sweep to sweep, and its group has come through the first of its two rounds.
    while rig.engine.rounds.count() == 0 || rig.engine.rounds.is_busy() {
        rig.after(10);
        rig.answer_all(&[1, 2]);
    }
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    rig.store();
    assert_eq!(rig.engine.rounds.count(), 1, "a view keeps it");
    // Another group alone is written without it. Of the first it may have what no member has, by its own bits.
    rig.write(GROUP_BYTES);
    rig.answer_all(&[1]);
    let welcome = Welcome { basis: Some(rig.engine.view.stamp(0)), ..stamped(&rig) };
    rig.connect_as(2, welcome);
    while !rig.engine.fill.is_uncompared(0, GROUP_BYTES) {
        let (id, _, header) = rig.frames.first().copied().expect("it is filled");
        rig.answer(id, header.kind, Status::Ok);
    }
    assert_eq!(rig.engine.rounds.count(), 0, "it waits for a flush of the target too");
}
