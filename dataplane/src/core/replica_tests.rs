//! Tables for fencing, promises and views.

use holdfast_proto::ids::{
    Epoch, Generation, Incarnation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId,
};
use holdfast_proto::record::ReplicaSet;
use uuid::Uuid;

use super::*;
use crate::wire::payload::Adopt;

const BOOT: BootId = BootId(Uuid::from_u128(9));

fn set(ids: &[u32]) -> ReplicaSet {
    ids.iter().map(|id| ReplicaId(*id)).collect()
}
fn view(generation: u64, epoch: u64, members: &[u32]) -> View {
    View {
        generation: Generation(generation),
        epoch: Epoch(epoch),
        members: set(members),
        needs_registry: false,
    }
}
fn engine(n: u128) -> InstanceUuid {
    InstanceUuid(Uuid::from_u128(n))
}
fn meta() -> Meta {
    Meta {
        node: "node-a".parse().unwrap(),
        volume: VolumeId(Uuid::from_u128(1)),
        volume_name: "demo".parse().unwrap(),
        replica: ReplicaId(2),
        size_bytes: 1 << 20,
        lineage: Lineage(Uuid::from_u128(3)),
        promised: Generation(4),
        promised_to: engine(5),
        view: view(4, 6, &[1, 2]),
        configured: set(&[1, 2, 3]),
        incarnation: Incarnation(Uuid::from_u128(7)),
        revision: 8,
        syncing: false,
        boot: BOOT,
        unflushed: false,
        cache_lost: false,
        failed: String::new(),
        basis: Some(order(4, 6)),
        settled: None,
        dirty: Vec::new(),
        unknown: Vec::new(),
    }
}
fn hello(generation: u64, of: u128) -> Hello {
    Hello {
        version_min: 2,
        version_max: 2,
        features: 0,
        payload_bytes_max: 262_144,
        volume: meta().volume,
        replica: meta().replica,
        key_id: 1,
        role: Role::Engine,
        lineage: meta().lineage,
        generation: Generation(generation),
        engine: engine(of),
        epoch: Epoch(0),
        process: ProcessUuid(Uuid::from_u128(1)),
        boot: BOOT,
        nonce: [0; 32],
    }
}
fn update(view: View, syncing: bool) -> ViewUpdate {
    let m = meta();
    ViewUpdate {
        view,
        configured: m.configured,
        lineage: m.lineage,
        incarnation: m.incarnation,
        revision: 9,
        syncing,
        repaired: false,
        keep: ReplicaSet::new(),
        refill: ReplicaSet::new(),
        rebased: false,
        adopt: Adopt::default(),
        new_history: false,
        stamp: None,
    }
}

/// Fences an engine in and persists what is asked; returns what it was told.
fn take(replica: &mut Replica, hello: Hello) -> Result<(Welcome, Session), Refused> {
    replica.handle_fence(1, hello);
    loop {
        match replica.poll_action().expect("an answer") {
            Action::DropSession => replica.handle_dropped(0, true),
            Action::Persist { .. } => replica.handle_persisted(Ok(())),
            Action::Track(_) => {}
            Action::Welcome { ticket: 1, welcome, session } => return Ok((*welcome, session)),
            Action::Refuse { ticket: 1, refused } => return Err(refused),
            other => panic!("unexpected {other:?}"),
        }
    }
}
fn propose(replica: &mut Replica, generation: u64, update: ViewUpdate) -> (Status, bool) {
    replica.handle_view(7, Generation(generation), update);
    loop {
        match replica.poll_action().expect("an answer") {
            Action::Persist { .. } => replica.handle_persisted(Ok(())),
            Action::Track(_) => {}
            Action::AnswerView { ticket: 7, status, reopen } => return (status, reopen),
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn who_is_taken_and_who_is_not() {
    let (higher, same, lower, foreign) = (hello(5, 6), hello(4, 5), hello(3, 5), hello(4, 6));
    let far = 4 + Generation::JUMP_MAX;
    let table: [(&str, Hello, Option<RefusalKind>); 11] = [
        ("higher", higher.clone(), None),
        ("as far as may be", hello(far, 6), None),
        ("too far", hello(far + 1, 6), Some(RefusalKind::Identity)),
        ("the last number", hello(u64::MAX, 6), Some(RefusalKind::Identity)),
        ("the same again", same, None),
        ("lower", lower, Some(RefusalKind::Fenced)),
        ("equal but foreign", foreign, Some(RefusalKind::Fenced)),
        ("volume", Hello { volume: VolumeId(Uuid::nil()), ..higher.clone() }, Some(RefusalKind::Identity)),
        ("replica", Hello { replica: ReplicaId(1), ..higher.clone() }, Some(RefusalKind::Identity)),
        ("lineage", Hello { lineage: Lineage(Uuid::nil()), ..higher.clone() }, Some(RefusalKind::Identity)),
        ("role", Hello { role: Role::Replica, ..higher }, Some(RefusalKind::Identity)),
    ];
    for (name, hello, refusal) in table {
        let mut replica = Replica::new(meta(), BOOT);
        let taken = take(&mut replica, hello.clone());
        assert_eq!(taken.as_ref().err().map(|r| r.kind), refusal, "{name}");
        match taken {
            Ok((_, session)) => {
                assert_eq!(session.generation, hello.generation, "{name}");
                assert_eq!(
                    (replica.meta().promised, replica.meta().promised_to),
                    (hello.generation, hello.engine)
                );
                assert!(replica.meta().unflushed, "{name}");
            }
            Err(refused) => {
                assert_eq!(replica.meta(), &meta(), "{name}: a refusal changes nothing");
                // It names the one promised to.
                assert_eq!((refused.generation, refused.engine), (Generation(4), engine(5)), "{name}");
            }
        }
    }
}

#[test]
fn the_older_io_ends_then_the_promise_is_durable_then_the_answer() {
    let mut replica = Replica::new(meta(), BOOT);
    replica.handle_fence(1, hello(5, 6));
    assert_eq!(replica.poll_action(), Some(Action::DropSession));
    assert_eq!(replica.poll_action(), None, "nothing before the old I/O has ended");
    assert_eq!(replica.meta().promised, Generation(4));
    replica.handle_dropped(0, false);
    let Some(Action::Persist { meta: next, .. }) = replica.poll_action() else {
        panic!("expected the promise")
    };
    assert_eq!((next.promised, next.promised_to, next.unflushed), (Generation(5), engine(6), true));
    assert_eq!(replica.poll_action(), None, "nothing before the promise is durable");
    replica.handle_persisted(Ok(()));
    assert!(matches!(replica.poll_action(), Some(Action::Welcome { ticket: 1, .. })));
}

#[test]
fn a_promise_that_cannot_be_kept_is_not_given() {
    let mut replica = Replica::new(meta(), BOOT);
    replica.handle_fence(1, hello(5, 6));
    replica.poll_action();
    replica.handle_dropped(0, true);
    replica.poll_action();
    replica.handle_persisted(Err((Status::NoSpace, "disk full".to_owned())));
    let Some(Action::Refuse { refused, .. }) = replica.poll_action() else { panic!("expected a refusal") };
    assert_eq!(refused.kind, RefusalKind::Storage);
    assert!(refused.reason.contains("disk full"));
    assert_eq!(replica.meta(), &meta());
}

#[test]
fn fences_are_taken_one_at_a_time_and_the_older_loses_whatever_the_order() {
    let mut replica = Replica::new(meta(), BOOT);
    replica.handle_fence(1, hello(6, 6));
    replica.handle_fence(2, hello(5, 7));
    assert_eq!(replica.poll_action(), Some(Action::DropSession));
    assert_eq!(replica.poll_action(), None);
    replica.handle_dropped(0, true);
    replica.poll_action();
    replica.handle_persisted(Ok(()));
    assert!(matches!(replica.poll_action(), Some(Action::Welcome { ticket: 1, .. })));
    let Some(Action::Refuse { ticket: 2, refused }) = replica.poll_action() else { panic!() };
    assert_eq!((refused.kind, refused.generation), (RefusalKind::Fenced, Generation(6)));
}

#[test]
fn too_many_waiting_engines_are_sent_away() {
    let mut replica = Replica::new(meta(), BOOT);
    for ticket in 0..=9 {
        replica.handle_fence(ticket, hello(5 + ticket, 6));
    }
    assert_eq!(replica.poll_action(), Some(Action::DropSession));
    assert!(matches!(replica.poll_action(), Some(Action::Refuse { ticket: 9, .. })));
}

#[test]
fn the_flush_sequence_is_the_same_engines_or_none() {
    let mut replica = Replica::new(meta(), BOOT);
    let mut told = |hello| {
        replica.handle_fence(1, hello);
        loop {
            match replica.poll_action().unwrap() {
                Action::DropSession => replica.handle_dropped(42, false),
                Action::Persist { .. } => replica.handle_persisted(Ok(())),
                Action::Track(_) => {}
                Action::Welcome { welcome, .. } => return welcome.flush_sequence,
                other => panic!("unexpected {other:?}"),
            }
        }
    };
    assert_eq!(told(hello(4, 5)), 42);
    assert_eq!(told(hello(5, 6)), 0);
    assert_eq!(told(hello(5, 6)), 42);
}

#[test]
fn which_views_are_persisted() {
    let far = 6 + Epoch::JUMP_MAX;
    let table: [(&str, u64, ViewUpdate, Status); 12] = [
        ("an epoch as far as may be", 4, update(view(4, far, &[1, 2]), false), Status::Ok),
        ("an epoch too far", 4, update(view(4, far + 1, &[1, 2]), false), Status::Invalid),
        ("next epoch", 4, update(view(4, 7, &[1, 2, 3]), false), Status::Ok),
        ("without it", 4, update(view(4, 7, &[1, 3]), false), Status::Ok),
        ("the same again", 4, update(view(4, 6, &[1, 2]), false), Status::Ok),
        ("the same order, other members", 4, update(view(4, 6, &[1]), false), Status::Invalid),
        ("older epoch", 4, update(view(4, 5, &[1, 2]), false), Status::Invalid),
        ("older generation", 4, update(view(3, 9, &[1, 2]), false), Status::Fenced),
        ("newer generation than promised", 4, update(view(5, 1, &[1, 2]), false), Status::Fenced),
        ("of a connection fenced meanwhile", 3, update(view(4, 7, &[1, 2]), false), Status::Fenced),
        ("syncing member", 4, update(view(4, 7, &[1, 2]), true), Status::Invalid),
        (
            "another lineage",
            4,
            ViewUpdate { lineage: Lineage(Uuid::nil()), ..update(view(4, 7, &[2]), false) },
            Status::Invalid,
        ),
    ];
    for (name, generation, update, status) in table {
        let mut replica = Replica::new(meta(), BOOT);
        assert_eq!(propose(&mut replica, generation, update), (status, false), "{name}");
        if status == Status::Ok {
            assert_eq!((replica.meta().view, replica.meta().revision), (update.view, 9), "{name}");
        } else {
            assert_eq!(replica.meta(), &meta(), "{name}");
        }
    }
}

#[test]
fn a_view_is_durable_before_its_answer_and_a_failed_one_is_not_claimed() {
    let mut replica = Replica::new(meta(), BOOT);
    replica.handle_view(7, Generation(4), update(view(4, 7, &[2]), false));
    assert!(matches!(replica.poll_action(), Some(Action::Persist { meta: _, .. })));
    assert_eq!(replica.poll_action(), None);
    replica.handle_persisted(Err((Status::NoSpace, String::new())));
    assert_eq!(
        replica.poll_action(),
        Some(Action::AnswerView { ticket: 7, status: Status::NoSpace, reopen: false })
    );
    assert_eq!(replica.meta().view, view(4, 6, &[1, 2]));
}

#[test]
fn only_a_sync_that_ends_in_membership_clears_what_was_lost() {
    let lost = Meta { cache_lost: true, failed: "EIO".to_owned(), ..meta() };
    // Members stay unreliable however often they are told that they are members.
    let mut replica = Replica::new(lost.clone(), BOOT);
    propose(&mut replica, 4, update(view(4, 7, &[1, 2]), false));
    assert!(replica.meta().cache_lost && !replica.meta().failed.is_empty());
    // Removed, filled, and a member again. A view in between that does not say "syncing" does not end the sync.
    propose(&mut replica, 4, update(view(4, 8, &[1]), false));
    assert!(!replica.meta().syncing);
    assert_eq!(propose(&mut replica, 4, update(view(4, 8, &[1]), true)), (Status::Ok, true));
    propose(&mut replica, 4, update(view(4, 9, &[1]), false));
    assert!(replica.meta().syncing && replica.meta().cache_lost && !replica.meta().failed.is_empty());
    propose(&mut replica, 4, update(view(4, 10, &[1, 2]), false));
    let m = replica.meta();
    assert!(!m.syncing && !m.cache_lost && m.failed.is_empty());
}

#[test]
fn a_sync_whose_fsync_failed_does_not_end_in_membership() {
    let mut replica = Replica::new(meta(), BOOT);
    propose(&mut replica, 4, update(view(4, 7, &[1]), true));
    replica.handle_sync_failed("EIO".to_owned());
    replica.poll_action();
    replica.handle_persisted(Err((Status::Io, "EIO again".to_owned())));
    assert_eq!(replica.meta().failed, "EIO", "known even where it could not be persisted");
    assert_eq!(propose(&mut replica, 4, update(view(4, 8, &[1, 2]), false)).0, Status::Failed);
    assert_eq!(propose(&mut replica, 4, update(view(4, 7, &[1]), true)), (Status::Ok, true), "begun anew");
    assert_eq!(propose(&mut replica, 4, update(view(4, 8, &[1, 2]), false)).0, Status::Ok);
    assert!(replica.meta().failed.is_empty());
}

#[test]
fn a_sync_that_another_process_began_after_a_failed_fsync_does_not_end_in_membership() {
    // Its flushes fail from the beginning, and would go on to after the failure was forgotten.
    let failed = Meta { syncing: true, failed: "EIO".to_owned(), view: view(4, 6, &[1]), ..meta() };
    let mut replica = Replica::new(failed.clone(), BOOT);
    assert_eq!(propose(&mut replica, 4, update(view(4, 7, &[1, 2]), false)), (Status::Failed, false));
    assert_eq!(replica.meta().failed, "EIO");
    assert_eq!(propose(&mut replica, 4, update(view(4, 8, &[1]), true)), (Status::Ok, true));
    assert_eq!(propose(&mut replica, 4, update(view(4, 9, &[1, 2]), false)), (Status::Ok, false));
    assert!(replica.meta().failed.is_empty() && !replica.meta().syncing);
    // A person's word counts as before.
    let mut forced = Replica::new(failed, BOOT);
    let alone = ViewUpdate {
        lineage: Lineage(Uuid::from_u128(4)),
        new_history: true,
        ..update(view(4, 7, &[2]), false)
    };
    assert_eq!(propose(&mut forced, 4, alone), (Status::Ok, true));
}

#[test]
fn unflushed_is_set_once_per_session_and_cleared_when_clean() {
    let mut replica = Replica::new(meta(), BOOT);
    let (_, first) = take(&mut replica, hello(5, 6)).unwrap();
    assert!(replica.meta().unflushed);
    // A reconnect writes nothing to the disk.
    replica.handle_fence(2, hello(5, 6));
    assert_eq!(replica.poll_action(), Some(Action::DropSession));
    replica.handle_dropped(0, false);
    let Some(Action::Welcome { session: second, .. }) = replica.poll_action() else { panic!() };
    // The end of the older session says nothing about the newer one.
    replica.handle_session_ended(first.number, true);
    assert_eq!(replica.poll_action(), None);
    replica.handle_session_ended(second.number, false);
    assert_eq!(replica.poll_action(), None);
    replica.handle_session_ended(second.number, true);
    let Some(Action::Persist { meta: next, .. }) = replica.poll_action() else {
        panic!("expected the clean mark")
    };
    assert!(!next.unflushed);
}

#[test]
fn after_a_write_of_meta_that_failed_nothing_counts_as_written_already() {
    let mut replica = Replica::new(meta(), BOOT);
    let (_, session) = take(&mut replica, hello(5, 6)).unwrap();
    replica.handle_session_ended(session.number, true);
    assert!(matches!(replica.poll_action(), Some(Action::Persist { .. })));
    replica.handle_persisted(Err((Status::Io, "EIO".to_owned())));
    // The clean mark may be there all the same: a restart of the node would then hide what the next session loses.
    replica.handle_fence(2, hello(5, 6));
    assert_eq!(replica.poll_action(), Some(Action::DropSession));
    replica.handle_dropped(0, true);
    let Some(Action::Persist { meta: next, .. }) = replica.poll_action() else { panic!("expected the mark") };
    assert!(next.unflushed);
    replica.handle_persisted(Ok(()));
    assert!(matches!(replica.poll_action(), Some(Action::Welcome { .. })));
}

#[test]
fn a_reboot_after_unflushed_writes_loses_the_cache() {
    let other = BootId(Uuid::from_u128(10));
    for (unflushed, boot, lost) in
        [(true, BOOT, false), (true, other, true), (false, other, false), (false, BOOT, false)]
    {
        let next = reopened(&Meta { unflushed, ..meta() }, boot);
        assert_eq!(next.is_some(), lost, "{unflushed} {boot}");
        assert!(next.is_none_or(|m| m.cache_lost && !m.unflushed && m.boot == boot));
    }
}

#[test]
fn a_history_ends_only_with_a_view_of_this_replica_alone_that_says_so() {
    let another = Lineage(Uuid::from_u128(77));
    let alone = view(5, 9, &[2]);
    for (view, generation, new_history, expected) in [
        (alone, 5, false, Status::Invalid),
        (view(5, 9, &[1, 2]), 5, true, Status::Invalid),
        (view(5, 9, &[1]), 5, true, Status::Invalid),
        (alone, 4, true, Status::Fenced),
        (alone, 5, true, Status::Ok),
    ] {
        let mut replica = Replica::new(Meta { syncing: true, ..meta() }, BOOT);
        take(&mut replica, hello(5, 6)).unwrap();
        let update = ViewUpdate { lineage: another, new_history, ..update(view, false) };
        assert_eq!(propose(&mut replica, generation, update).0, expected, "{view} {new_history}");
        let left = expected == Status::Ok;
        assert_eq!(replica.meta().lineage == another, left);
        assert_eq!(replica.meta().syncing, !left, "it is a member now");
        let old = take(&mut replica, hello(6, 6));
        assert_eq!(old.is_err(), left, "engines of the old history are not served any more");
    }
}

// ---- maps -----------------------------------------------------------------------------------------------------------

const R1: ReplicaId = ReplicaId(1);
const R3: ReplicaId = ReplicaId(3);
fn order(generation: u64, epoch: u64) -> Stamp {
    stamp(generation, epoch, 0)
}
fn stamp(generation: u64, epoch: u64, round: u64) -> Stamp {
    Stamp { generation: Generation(generation), epoch: Epoch(epoch), round }
}
/// What a replica with this `meta` keeps after an update, and which maps begin with it.
fn maps(meta: Meta, update: ViewUpdate) -> (Vec<DirtyMap>, Vec<NewMap>) {
    let mut replica = Replica::new(meta, BOOT);
    replica.handle_view(7, Generation(4), update);
    let Some(Action::Persist { meta, begin }) = replica.poll_action() else { panic!("expected a new meta") };
    let dirty = meta.dirty.clone();
    replica.handle_persisted(Ok(()));
    let tracked = match replica.poll_action() {
        Some(Action::Track(tracked)) => tracked.dirty,
        Some(Action::AnswerView { .. }) => dirty.clone(),
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!(tracked, dirty, "what is on the disk is what is remembered");
    (dirty, begin)
}

#[test]
fn whoever_leaves_is_remembered_from_the_last_view_with_both() {
    let both = Meta { view: view(4, 6, &[1, 2, 3]), ..meta() };
    let left = update(view(4, 7, &[1, 2]), false);
    let map = DirtyMap { replica: R3, base: order(4, 6) };
    assert_eq!(maps(both, left), (vec![map], vec![NewMap { replica: R3, full: false }]));
}

#[test]
fn a_map_stays_until_its_replica_is_known_to_have_come_back() {
    let map = DirtyMap { replica: R3, base: order(3, 1) };
    let away = Meta { dirty: vec![map], ..meta() };
    // Proposed to be added: it may never persist that.
    let added = ViewUpdate { keep: set(&[3]), ..update(view(4, 7, &[1, 2, 3]), false) };
    assert_eq!(maps(away.clone(), added).0, [map]);
    // It did not, and leaves again: what it lacked before, it lacks still.
    let proposed = Meta { view: added.view, ..away };
    let again = update(view(4, 8, &[1, 2]), false);
    assert_eq!(maps(proposed.clone(), again), (vec![map], vec![]));
    let known = update(view(4, 7, &[1, 2, 3]), false);
    assert_eq!(maps(proposed, known), (vec![], vec![]));
}

#[test]
fn of_one_that_was_never_there_nothing_is_known_until_it_is_said_to_lack_everything() {
    let next = update(view(4, 7, &[1, 2]), false);
    assert_eq!(maps(meta(), next), (vec![], vec![]));
    let refilled = ViewUpdate { refill: set(&[3]), ..next };
    let map = DirtyMap { replica: R3, base: order(4, 7) };
    assert_eq!(maps(meta(), refilled), (vec![map], vec![NewMap { replica: R3, full: true }]));
}

#[test]
fn one_that_is_no_member_remembers_nothing_and_keeps_its_basis() {
    let away = Meta { dirty: vec![DirtyMap { replica: R3, base: order(3, 1) }], ..meta() };
    let mut replica = Replica::new(away.clone(), BOOT);
    assert_eq!(propose(&mut replica, 4, update(view(4, 7, &[1]), true)).0, Status::Ok);
    assert_eq!((replica.meta().dirty.len(), replica.meta().basis), (0, Some(order(4, 6))));
    // Filled from nothing, it is covered by the maps that begin with this view.
    let from_nothing = ViewUpdate { rebased: true, ..update(view(4, 7, &[1]), true) };
    let mut replica = Replica::new(away, BOOT);
    assert_eq!(propose(&mut replica, 4, from_nothing).0, Status::Ok);
    assert_eq!(replica.meta().basis, Some(order(4, 7)));
    // What it was told as one that is no member does not make it know others.
    let member = update(view(4, 8, &[1, 2]), false);
    assert_eq!(propose(&mut replica, 4, member).0, Status::Ok);
    assert_eq!(replica.meta().dirty, []);
    assert_eq!((replica.meta().basis, replica.meta().syncing), (Some(order(4, 8)), false));
    let alone = update(view(4, 9, &[2]), false);
    let map = DirtyMap { replica: R1, base: order(4, 8) };
    assert_eq!(propose(&mut replica, 4, alone).0, Status::Ok);
    assert_eq!(replica.meta().dirty, [map], "the one it was a member with, and no other");
}

#[test]
fn a_new_member_takes_over_what_the_others_know() {
    let filled = Meta { view: view(4, 6, &[1]), syncing: true, ..meta() };
    let mut added = update(view(4, 7, &[1, 2]), false);
    added.adopt[0] = Some((R3, order(3, 1)));
    let map = DirtyMap { replica: R3, base: order(3, 1) };
    assert_eq!(maps(filled, added), (vec![map], vec![NewMap { replica: R3, full: true }]));
    // It is not for one that has a map of its own.
    let own = DirtyMap { replica: R3, base: order(4, 5) };
    assert_eq!(maps(Meta { dirty: vec![own], ..meta() }, added), (vec![own], vec![]));
}

#[test]
fn a_map_that_cannot_be_made_answers_no() {
    let mut replica = Replica::new(Meta { view: view(4, 6, &[1, 2, 3]), ..meta() }, BOOT);
    replica.handle_view(7, Generation(4), update(view(4, 7, &[1, 2]), false));
    let Some(Action::Persist { .. }) = replica.poll_action() else { panic!("expected a new meta") };
    replica.handle_persisted(Err((Status::NoSpace, "full".to_owned())));
    let answer = Action::AnswerView { ticket: 7, status: Status::NoSpace, reopen: false };
    assert_eq!(replica.poll_action(), Some(answer));
    assert_eq!(replica.meta().dirty, []);
}
