//! Changes of the configured set and forced starts, step by step.

use std::time::Duration;

use holdfast_proto::ids::{Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, VolumeStatus};

use super::directed_tests::{Rig, config};
use super::*;
use crate::core::start::tests::{set, status, view, welcome};
use crate::units::REGION_BYTES;
use crate::wire::header::{Kind, Status};

fn wanted(ids: &[u32]) -> Vec<Wanted> {
    ids.iter().map(|id| Wanted { replica: ReplicaId(*id), replaces: ReplicaSet::new() }).collect()
}

impl Rig {
    fn want(&mut self, wanted: Vec<Wanted>) {
        self.engine.want(wanted, self.now);
        self.collect();
    }
    fn place(&mut self, replica: u32) {
        self.engine.locate(ReplicaId(replica), true, true, None, self.now);
        self.collect();
    }
    fn asked(&self) -> &VolumeStatus {
        &self.asks.first().expect("the registry was asked").2
    }
    fn waits(&self) -> String {
        self.engine.report(self.now).change_waits_for
    }
    /// A replica that was just made.
    fn connect_new(&mut self, replica: u32) {
        let record = &self.engine.registry.status;
        let mut new = welcome(record.view);
        (new.configured, new.lineage, new.syncing) = (record.configured, record.lineage, true);
        self.connect_as(replica, new);
    }
}

#[test]
fn a_replica_is_added_by_a_view_that_the_registry_has_and_is_then_filled() {
    let mut rig = Rig::serving(3, REGION_BYTES, true);
    rig.want(wanted(&[1, 2, 3, 4]));
    assert!(rig.waits().contains("does not run yet"), "{}", rig.waits());
    rig.place(4);
    let update = rig.updates.last().unwrap().1;
    assert_eq!((update.configured, update.view.members), (set(&[1, 2, 3, 4]), set(&[1, 2, 3])));
    assert!(update.view.needs_registry);
    assert_eq!(rig.engine.report(rig.now).configured, set(&[1, 2, 3]), "not before it counts");
    rig.answer_all(&[1, 2, 3]);
    assert_eq!((rig.asked().configured, rig.asked().view), (update.configured, update.view));
    rig.store();
    assert_eq!(rig.engine.report(rig.now).configured, set(&[1, 2, 3, 4]));
    rig.connect_new(4);
    rig.answer_all(&[1, 2, 3, 4]);
    assert_eq!(rig.engine.view.members, set(&[1, 2, 3, 4]));
    rig.store();
    assert_eq!(rig.engine.report(rig.now).state, EngineState::Healthy);
}

#[test]
fn a_change_that_was_proposed_is_never_taken_back() {
    // r3 knows of four replicas, and is lost. By a majority of three alone r1 and r2 could go on without the registry;
    // a start with r3 and r4, two of the four that r3 knows, would miss what they acknowledge.
    let mut rig = Rig::serving(3, REGION_BYTES, true);
    rig.want(wanted(&[1, 2, 3, 4]));
    rig.place(4);
    rig.answer(3, Kind::PersistView, Status::Ok);
    rig.disconnect(3);
    rig.gone(3);
    rig.answer_all(&[1, 2]);
    let asked = rig.asked();
    assert_eq!((asked.view.members, asked.configured), (set(&[1, 2]), set(&[1, 2, 3, 4])));
    assert!(asked.view.needs_registry);
    assert!(rig.engine.proposal.is_some(), "a majority does not commit it");
    rig.store();
    assert_eq!(rig.engine.report(rig.now).configured, set(&[1, 2, 3, 4]));
}

#[test]
fn a_member_leaves_before_it_is_taken_and_its_place_is_free_then() {
    let mut rig = Rig::serving(3, REGION_BYTES, true);
    rig.want(wanted(&[1, 3]));
    rig.answer_all(&[1, 2, 3]);
    assert_eq!((rig.asked().view.members, rig.asked().configured), (set(&[1, 3]), set(&[1, 2, 3])));
    rig.store();
    rig.answer_all(&[1, 3]);
    assert_eq!((rig.asked().view.members, rig.asked().configured), (set(&[1, 3]), set(&[1, 3])));
    rig.store();
    assert_eq!(rig.engine.report(rig.now).replicas.len(), 2);
    assert_eq!(rig.engine.report(rig.now).state, EngineState::Healthy);
    rig.connect_new(2);
    assert_eq!(rig.engine.live, 0b101, "nobody knows it any more");
    for id in 4..=9 {
        rig.want(wanted(&[1, 3, id]));
        rig.place(id);
        for _ in 0..2 {
            rig.answer_all(&[1, 3]);
            if !rig.asks.is_empty() {
                rig.store();
            }
        }
        assert_eq!(rig.engine.configured, set(&[1, 3, id]), "places are used again");
        assert!(rig.engine.peers.len() <= ReplicaSet::CAPACITY);
    }
}

#[test]
fn the_last_copy_is_not_taken_and_the_report_says_so() {
    let mut rig = Rig::serving(2, REGION_BYTES, true);
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    rig.store();
    assert_eq!(rig.engine.view.members, set(&[1]));
    rig.want(wanted(&[2]));
    assert!(rig.waits().contains("r1 is the last healthy copy"), "{}", rig.waits());
    assert!(rig.asks.is_empty());
}

#[test]
fn what_is_replaced_serves_until_its_successor_is_a_member() {
    let mut rig = Rig::serving(1, REGION_BYTES, true);
    let successor = Wanted { replica: ReplicaId(2), replaces: set(&[1]) };
    rig.want(vec![successor]);
    rig.place(2);
    rig.answer_all(&[1]);
    rig.store();
    assert!(rig.waits().contains("r1 stays until {r2} is a member"), "{}", rig.waits());
    rig.connect_new(2);
    rig.answer_all(&[1, 2]);
    // r2 is added, then r1 leaves, then it is taken.
    for (members, configured) in [(&[1, 2][..], &[1, 2][..]), (&[2], &[1, 2]), (&[2], &[2])] {
        let found = (rig.asked().view.members, rig.asked().configured);
        assert_eq!(found, (set(members), set(configured)));
        rig.store();
        rig.answer_all(&[1, 2]);
    }
    assert_eq!(rig.engine.report(rig.now).state, EngineState::Healthy);
}

#[test]
fn while_the_registry_is_away_nothing_is_proposed_and_nothing_held() {
    let mut rig = Rig::serving(3, REGION_BYTES, true);
    rig.disconnect(3);
    rig.gone(3);
    rig.answer_all(&[1, 2]);
    let (ask, ..) = rig.asks.remove(0);
    rig.engine.registry_result(ask, RegistryOutcome::Unreachable, rig.now);
    rig.want(wanted(&[1, 2]));
    assert!(rig.engine.proposal.is_none());
    rig.write(0);
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.completed.len(), 1);
    rig.after(1);
    rig.store();
    rig.after(1);
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.asked().configured, set(&[1, 2]), "it is back");
}

#[test]
fn an_operators_wish_does_not_end_an_engine_that_started_without_the_registry() {
    let record = status(&[1], view(1, 1, &[1], false));
    let mut engine = Engine::new(config(REGION_BYTES), 1, record.clone());
    let now = Duration::from_secs(1);
    engine.start(now);
    engine.registry_result(1, RegistryOutcome::Unreachable, now);
    engine.connected(ReplicaId(1), 1, engine.generation(), sized(welcome(record.view)), boot(), now);
    let epoch = engine.proposal.as_ref().unwrap().view.epoch.0;
    engine.view_persisted(0, epoch, Status::Ok, now);
    assert_eq!(engine.phase, view::Phase::Serving);
    let conflict = RegistryOutcome::Conflict { version: 2, status: Box::new(record) };
    engine.registry_result(2, conflict, now);
    assert_eq!(engine.phase, view::Phase::Serving);
}

fn boot() -> holdfast_proto::ids::BootId {
    holdfast_proto::ids::BootId(uuid::Uuid::from_u128(1))
}
fn sized(welcome: crate::wire::handshake::Welcome) -> crate::wire::handshake::Welcome {
    crate::wire::handshake::Welcome { size_bytes: REGION_BYTES, ..welcome }
}

#[test]
fn a_start_looks_for_replicas_that_only_a_replica_knows_of() {
    // The record was restored: it knows r1 and r2 alone.
    let mut rig = Rig::fencing(config(REGION_BYTES), status(&[1, 2], view(1, 1, &[1, 2], false)));
    let mut ahead = welcome(view(1, 6, &[2, 3], false));
    ahead.revision = 9;
    rig.connect_as(2, ahead.clone());
    rig.after(4);
    assert!(rig.engine.report(rig.now).waiting_for.contains("{r3}"), "{:?}", rig.engine.report(rig.now));
    rig.place(3);
    rig.connect_as(3, ahead);
    rig.answer_all(&[2, 3]);
    assert_eq!((rig.asked().view.members, rig.asked().configured), (set(&[2, 3]), set(&[2, 3])));
    rig.store();
    assert_eq!(rig.engine.report(rig.now).replicas.len(), 2, "r1 is configured no more");
}

// ---- forced starts --------------------------------------------------------------------------------------------------

const NEW: Lineage = Lineage(uuid::Uuid::from_u128(99));

fn force(replica: u32) -> Force {
    Force { replica: ReplicaId(replica), even_if_syncing: false, lineage: NEW }
}

/// r1 left at epoch 3; the others, at epoch 7, are lost.
fn lost_two(force: Option<Force>) -> Rig {
    let record = status(&[1, 2, 3], view(2, 7, &[2, 3], false));
    let mut rig = Rig::fencing(Config { force, ..config(REGION_BYTES) }, record);
    for id in [2, 3] {
        rig.engine.locate(ReplicaId(id), false, true, Some("its directory is missing".to_owned()), rig.now);
    }
    rig
}

fn stale() -> crate::wire::handshake::Welcome {
    crate::wire::handshake::Welcome { configured: set(&[1, 2, 3]), ..welcome(view(1, 3, &[1, 2, 3], false)) }
}

#[test]
fn by_force_it_starts_from_one_replica_in_a_new_history() {
    let mut rig = lost_two(None);
    rig.connect_as(1, stale());
    rig.after(4);
    assert!(rig.updates.is_empty(), "the rules do not allow it");
    rig.engine.force(force(1), rig.now);
    rig.collect();
    let (to, update) = *rig.updates.last().unwrap();
    assert_eq!((to, update.lineage, update.new_history), (1, NEW, true));
    assert_eq!((update.view.members, update.configured), (set(&[1]), set(&[1, 2, 3])));
    assert!(update.view.epoch.0 > 7 && update.view.needs_registry);
    rig.answer(1, Kind::PersistView, Status::Ok);
    assert_eq!((rig.asked().lineage, rig.asked().view), (NEW, update.view));
    rig.store();
    assert_eq!(rig.engine.phase, view::Phase::Serving);
    let note = rig.engine.report(rig.now).forced;
    for words in ["from r1", "{r2,r3}", "1.3", "lost"] {
        assert!(note.contains(words), "{words}: {note}");
    }
    // Those that come back are of the old history.
    rig.place(2);
    rig.connect_as(2, stale());
    assert_eq!(rig.engine.live, 0b001);
    assert_eq!(rig.engine.view.members, set(&[1]));
}

#[test]
fn replicas_of_the_old_history_that_are_here_promise_and_are_then_left() {
    let record = status(&[1, 2, 3], view(2, 7, &[2, 3], false));
    let mut rig = Rig::fencing(Config { force: Some(force(1)), ..config(REGION_BYTES) }, record.clone());
    rig.connect_as(1, stale());
    assert!(rig.updates.is_empty(), "it waits for those that may know more");
    let newer = welcome(view(2, 9, &[2], true));
    rig.connect_as(2, crate::wire::handshake::Welcome { configured: record.configured, ..newer });
    rig.after(4);
    let update = rig.updates.last().unwrap().1;
    assert_eq!(update.view.epoch.0, 10);
    rig.answer_all(&[1]);
    rig.store();
    assert_eq!(rig.engine.live, 0b001, "r2 is not met again");
    assert!(rig.engine.report(rig.now).replicas[1].reason.contains("another history"));
}

#[test]
fn a_replica_that_was_being_filled_needs_a_second_word() {
    let syncing = crate::wire::handshake::Welcome { syncing: true, ..stale() };
    let mut rig = lost_two(Some(force(1)));
    rig.connect_as(1, syncing);
    rig.after(4);
    assert!(rig.updates.is_empty());
    assert!(rig.engine.report(rig.now).waiting_for.contains("was being filled"));
    rig.engine.force(Force { even_if_syncing: true, ..force(1) }, rig.now);
    rig.collect();
    assert_eq!(rig.updates.last().unwrap().1.view.members, set(&[1]));
}

#[test]
fn a_forced_start_that_did_not_get_further_than_its_replica_is_done_again() {
    let mut rig = lost_two(Some(force(1)));
    let other = "this data is of another lineage".to_owned();
    rig.engine.connect_failed(ReplicaId(1), ConnectFailure::Refused(other), rig.now);
    rig.collect();
    let told = crate::wire::handshake::Welcome {
        lineage: NEW,
        revision: 2,
        configured: set(&[1, 2, 3]),
        ..welcome(view(3, 8, &[1], true))
    };
    rig.connect_as(1, told.clone());
    rig.after(4);
    let update = rig.updates.last().unwrap().1;
    assert_eq!((update.lineage, update.view.epoch.0), (NEW, 9));
    // Where the record is older than what the replica was told, that start had counted: once is enough.
    let mut rig = lost_two(Some(force(1)));
    let other = "this data is of another lineage".to_owned();
    rig.engine.connect_failed(ReplicaId(1), ConnectFailure::Refused(other), rig.now);
    rig.connect_as(1, crate::wire::handshake::Welcome { revision: 30, ..told });
    rig.after(4);
    assert!(rig.updates.is_empty());
    assert!(rig.engine.report(rig.now).waiting_for.contains("the record went back"));
}

#[test]
fn a_word_counts_once() {
    let mut record = status(&[1, 2], view(3, 8, &[1, 2], false));
    record.lineage = NEW;
    let mut rig = Rig::fencing(Config { force: Some(force(1)), ..config(REGION_BYTES) }, record);
    rig.connect(1);
    rig.connect(2);
    let update = rig.updates.last().unwrap().1;
    assert_eq!(update.view.members, set(&[1, 2]), "an ordinary start");
    assert!(!update.new_history);
}

#[test]
fn a_word_is_over_when_another_engine_has_served_since() {
    let record = status(&[1, 2], view(2, 7, &[2], true));
    let mut engine = Engine::new(Config { force: Some(force(1)), ..config(REGION_BYTES) }, 1, record.clone());
    let now = Duration::from_secs(1);
    engine.start(now);
    assert!(engine.force_pending());
    let status = Box::new(VolumeStatus { view: view(3, 8, &[2], true), generation: Generation(3), ..record });
    engine.registry_result(1, RegistryOutcome::Conflict { version: 2, status }, now);
    assert!(!engine.force_pending());
}

#[test]
fn without_the_registry_nothing_is_forced() {
    let record = status(&[1, 2], view(2, 7, &[2], true));
    let mut engine = Engine::new(Config { force: Some(force(1)), ..config(REGION_BYTES) }, 1, record);
    let now = Duration::from_secs(1);
    engine.start(now);
    engine.registry_result(1, RegistryOutcome::Unreachable, now);
    engine.connected(ReplicaId(1), 1, engine.generation(), sized(stale()), boot(), now);
    engine.tick(now + Duration::from_secs(2));
    assert!(engine.proposal.is_none());
    assert!(engine.report(now).waiting_for.contains("registry"));
}
