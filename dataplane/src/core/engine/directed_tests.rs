//! Sequences that a random world meets too rarely, step by step: replicas and registry answer only where told to.

use std::time::Duration;

use holdfast_proto::ids::{BootId, Generation, Incarnation, InstanceUuid, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, VolumeStatus};

use super::*;
use crate::core::start::tests::{status, view};
use crate::units::REGION_BYTES;
use crate::wire::handshake::Welcome;
use crate::wire::header::{Kind, Status};
use crate::wire::payload::encode_extents;

struct Rig {
    engine: Engine,
    now: Now,
    size: u64,
    /// Frames not answered yet, by replica.
    frames: Vec<(u32, u64, Header)>,
    asks: Vec<(u64, u64, VolumeStatus)>,
    completed: Vec<(OpId, Outcome)>,
    session: u64,
    version: u64,
}

impl Rig {
    /// An engine that serves these replicas, all of them members.
    fn serving(replicas: u32, size: u64, clean: bool) -> Self {
        let ids: Vec<_> = (1..=replicas).collect();
        let mut record = status(&ids, view(0, 0, &ids, false));
        record.clean = clean;
        let config = Config::new(size, InstanceUuid(uuid::Uuid::from_u128(7)));
        let engine = Engine::new(config, 1, record);
        let mut rig = Self {
            engine,
            now: Duration::from_secs(1),
            size,
            frames: Vec::new(),
            asks: Vec::new(),
            completed: Vec::new(),
            session: 0,
            version: 1,
        };
        rig.engine.start(rig.now);
        for id in &ids {
            rig.engine.locate(ReplicaId(*id), true, true, None, rig.now);
        }
        rig.collect();
        rig.store();
        for id in ids {
            rig.connect(id);
        }
        for id in 1..=replicas {
            rig.answer(id, Kind::PersistView, Status::Ok);
        }
        assert_eq!(rig.engine.phase, view::Phase::Serving);
        // The record follows.
        rig.store();
        rig
    }

    fn collect(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Send { replica, session, header, .. } => {
                    self.frames.push((replica.0, session, header));
                }
                Action::Disconnect { replica, session } => {
                    self.frames.retain(|(id, s, _)| (*id, *s) != (replica.0, session));
                }
                Action::CompareAndSwap { ask, expected_version, status } => {
                    self.asks.push((ask, expected_version, *status));
                }
                Action::Complete { op, outcome } => self.completed.push((op, outcome)),
                _ => {}
            }
        }
    }

    /// The registry stores what it was asked to.
    fn store(&mut self) {
        let (ask, expected, _) = self.asks.remove(0);
        assert_eq!(expected, self.version);
        self.version += 1;
        self.engine.registry_result(ask, RegistryOutcome::Stored { version: self.version }, self.now);
        self.collect();
    }

    fn connect(&mut self, replica: u32) {
        self.session += 1;
        let ids: ReplicaSet = [ReplicaId(replica)].into_iter().collect();
        let welcome = Welcome {
            size_bytes: self.size,
            lineage: Lineage::nil(),
            view: self.engine.registry.status.view,
            configured: ids,
            incarnation: Incarnation::nil(),
            revision: 0,
            syncing: false,
            cache_lost: false,
            failed: String::new(),
            flush_sequence: 0,
        };
        let (generation, boot) = (self.engine.generation(), BootId(uuid::Uuid::from_u128(1)));
        self.engine.connected(ReplicaId(replica), self.session, generation, welcome, boot, self.now);
        self.collect();
    }

    fn disconnect(&mut self, replica: u32) {
        let slot = usize::try_from(replica).unwrap() - 1;
        let peers::Link::Up { session } = self.engine.peers[slot].link else { panic!("not connected") };
        self.engine.disconnected(ReplicaId(replica), session, "reset", self.now);
        self.frames.retain(|(id, ..)| *id != replica);
        self.collect();
    }

    fn gone(&mut self, replica: u32) {
        self.engine.connect_failed(ReplicaId(replica), ConnectFailure::Gone("gone".to_owned()), self.now);
        self.collect();
    }

    /// The first frame of this kind to this replica is answered.
    fn answer(&mut self, replica: u32, kind: Kind, status: Status) {
        let at = self.frames.iter().position(|(id, _, h)| *id == replica && h.kind == kind);
        let (id, session, header) = self.frames.remove(at.expect("such a frame was sent"));
        let mut reply = header.answer(status);
        let inline = match kind {
            Kind::Extents => encode_extents(&[Extent { len: header.extent, allocated: true }]),
            // Each has data of its own.
            Kind::Digest => vec![u8::try_from(id).unwrap(); 32],
            _ => Vec::new(),
        };
        reply.length = u32::try_from(inline.len()).unwrap();
        if kind == Kind::Read {
            reply.length = u32::try_from(header.extent).unwrap();
        }
        self.engine.reply(ReplicaId(id), session, &reply, &inline, self.now);
        self.collect();
    }

    /// These replicas answer all that they are asked.
    fn answer_all(&mut self, replicas: &[u32]) {
        while let Some((id, _, header)) = self.frames.iter().find(|(id, ..)| replicas.contains(id)).copied() {
            self.answer(id, header.kind, Status::Ok);
        }
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.engine.tick(self.now);
        self.collect();
    }

    fn write(&mut self, offset: u64) -> OpId {
        let op = self.engine.submit(Request::Write { fua: false }, offset, 4096, self.now).unwrap();
        self.collect();
        op
    }

    fn sent(&self, replica: u32, kind: Kind) -> usize {
        self.frames.iter().filter(|(id, _, h)| *id == replica && h.kind == kind).count()
    }
}

#[test]
fn a_stall_of_all_members_removes_none() {
    let mut rig = Rig::serving(3, 4 * REGION_BYTES, true);
    rig.write(0);
    rig.after(9);
    assert!(rig.engine.proposal.is_none(), "{:?}", rig.engine.proposal);
    for id in 1..=3 {
        rig.connect(id);
    }
    rig.answer_all(&[1, 2, 3]);
    assert_eq!(rig.completed.len(), 1);
    assert_eq!(rig.engine.members, 0b111);
}

#[test]
fn a_write_that_failed_while_a_member_has_it_is_not_passed_by_the_next() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    assert_eq!(rig.asks.len(), 1, "two of two down to one needs the registry, which is away");
    rig.after(1);
    rig.answer_all(&[1]);
    let first = rig.write(0);
    rig.answer_all(&[1]);
    for _ in 0..300 {
        rig.after(1);
        rig.answer(1, Kind::Ping, Status::Ok);
        if rig.engine.oldest_client().is_some_and(|since| rig.now - since >= Duration::from_secs(299)) {
            break;
        }
    }
    // In flight to the member that answers when the oldest one's time is over.
    let second = rig.write(4096);
    let _queued = rig.write(4096);
    rig.after(2);
    assert_eq!(rig.completed.len(), 3);
    assert!(
        rig.completed.iter().any(|(op, _)| *op == first) && rig.completed.iter().any(|(op, _)| *op == second)
    );
    assert_eq!(rig.sent(1, Kind::Write), 1);
    rig.write(4096);
    assert_eq!(rig.sent(1, Kind::Write), 1, "the replica may still be writing what failed");
    rig.answer(1, Kind::Write, Status::Ok);
    assert_eq!(rig.sent(1, Kind::Write), 1, "now it is the next one's turn");
    rig.answer(1, Kind::Write, Status::Ok);
    rig.store();
    assert!(matches!(rig.completed.last(), Some((_, Outcome::Done))));
}

#[test]
fn what_is_left_to_compare_ends_with_the_second_to_last_member() {
    let mut rig = Rig::serving(2, 400_000 * REGION_BYTES, false);
    assert_eq!(rig.engine.unrepaired.count(), 400_000);
    // Where there is data is known long before all of it is compared.
    while rig.sent(1, Kind::Extents) > 0 {
        rig.answer(1, Kind::Extents, Status::Ok);
        rig.answer(2, Kind::Extents, Status::Ok);
    }
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    rig.store();
    rig.after(1);
    rig.answer_all(&[1]);
    assert!(rig.engine.unrepaired.is_empty());
}

#[test]
fn a_repair_begins_again_although_a_member_was_away_when_another_left() {
    let mut rig = Rig::serving(3, REGION_BYTES, false);
    for id in 1..=3 {
        rig.answer(id, Kind::Extents, Status::Ok);
    }
    let read = rig.engine.submit(Request::Read, 0, 4096, rig.now).unwrap();
    rig.collect();
    assert_eq!(rig.sent(2, Kind::Digest), 1);
    rig.disconnect(3);
    rig.gone(3);
    rig.answer(2, Kind::PersistView, Status::Ok);
    rig.disconnect(2);
    rig.answer(1, Kind::PersistView, Status::Ok);
    assert_eq!(rig.engine.members, 0b011);
    rig.connect(2);
    rig.answer_all(&[1, 2]);
    assert!(rig.completed.iter().any(|(op, outcome)| *op == read && *outcome == Outcome::Done));
}

#[test]
fn a_member_that_cannot_be_looked_for_has_failed() {
    let mut rig = Rig::serving(3, REGION_BYTES, true);
    let gone = Some("its directory is missing".to_owned());
    rig.engine.locate(ReplicaId(3), true, true, gone, rig.now);
    rig.disconnect(3);
    rig.write(0);
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.engine.members, 0b011);
    assert_eq!(rig.completed.len(), 1);
}

#[test]
fn a_clean_mark_that_is_older_than_the_newest_view_does_not_count() {
    let mut record = status(&[1, 2], view(1, 1, &[1, 2], false));
    record.clean = true;
    let config = Config::new(REGION_BYTES, InstanceUuid(uuid::Uuid::from_u128(7)));
    let mut engine = Engine::new(config, 1, record);
    engine.start(Duration::from_secs(1));
    while engine.poll_action().is_some() {}
    engine.registry_result(1, RegistryOutcome::Stored { version: 2 }, Duration::from_secs(1));
    for id in [1, 2] {
        let welcome = crate::core::start::tests::welcome(view(2, 1, &[1, 2], false));
        let welcome = Welcome { size_bytes: REGION_BYTES, ..welcome };
        let boot = BootId(uuid::Uuid::from_u128(1));
        engine.connected(ReplicaId(id), 1, Generation(2), welcome, boot, Duration::from_secs(1));
    }
    assert_eq!(engine.phase, view::Phase::Opening);
    assert!(engine.writes_done > engine.writes_flushed);
}

#[test]
fn a_registry_of_another_life_is_not_told_what_was_known_in_the_last() {
    let mut rig = Rig::serving(2, REGION_BYTES, true);
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    let (ask, _, wish) = rig.asks.remove(0);
    // Restored to what it was when this engine attached: the record still names it.
    let restored = VolumeStatus {
        incarnation: Incarnation(uuid::Uuid::from_u128(99)),
        view: view(0, 0, &[1, 2], false),
        ..wish
    };
    let outcome = RegistryOutcome::Conflict { version: 2, status: Box::new(restored) };
    rig.engine.registry_result(ask, outcome, rig.now);
    rig.collect();
    assert_eq!(rig.engine.phase, view::Phase::Ended);
    assert!(rig.asks.is_empty());
}

#[test]
fn nothing_is_read_unrepaired_while_the_member_that_may_have_more_has_not_left() {
    let mut rig = Rig::serving(2, REGION_BYTES, false);
    rig.disconnect(1);
    rig.gone(1);
    let read = rig.engine.submit(Request::Read, 0, 4096, rig.now).unwrap();
    rig.collect();
    rig.answer_all(&[2]);
    assert_eq!(rig.asks.len(), 1, "the view without r1 is not committed");
    assert!(rig.completed.is_empty(), "r1 may have a write that r2 lacks, and be a member again");
    rig.store();
    rig.answer_all(&[2]);
    assert_eq!(rig.completed, [(read, Outcome::Done)]);
}
