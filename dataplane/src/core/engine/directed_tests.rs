//! Sequences that a random world meets too rarely, step by step: replicas and registry answer only where told to.

use std::time::Duration;

use holdfast_proto::ids::{BootId, Generation, InstanceUuid, ReplicaId};
use holdfast_proto::record::VolumeStatus;

use super::*;
use crate::core::start::tests::{self as start_tests, status, view};
use crate::core::zero_blocks::ZeroBlocks;
use crate::units::REGION_BYTES;
use crate::wire::handshake::Welcome;
use crate::wire::header::{Kind, Status};
use crate::wire::map::MapPart;
use crate::wire::payload::encode_extents;

pub(super) struct Rig {
    pub(super) engine: Engine,
    pub(super) now: Now,
    size: u64,
    /// Frames not answered yet, by replica.
    pub(super) frames: Vec<(u32, u64, Header)>,
    pub(super) asks: Vec<(u64, u64, VolumeStatus)>,
    pub(super) updates: Vec<(u32, ViewUpdate)>,
    pub(super) completed: Vec<(OpId, Outcome)>,
    /// The replicas say that they hold no data.
    pub(super) holes: bool,
    /// Of what is read to be copied.
    pub(super) zeros: ZeroBlocks,
    session: u64,
    version: u64,
}

impl Rig {
    /// An engine that has taken its generation, and looks for the replicas of the record.
    pub(super) fn fencing(config: Config, record: VolumeStatus) -> Self {
        let (size, ids) = (config.volume_bytes, record.configured);
        let mut rig = Self {
            engine: Engine::new(config, 1, record),
            now: Duration::from_secs(1),
            size,
            frames: Vec::new(),
            asks: Vec::new(),
            updates: Vec::new(),
            completed: Vec::new(),
            holes: false,
            zeros: ZeroBlocks::NONE,
            session: 0,
            version: 1,
        };
        rig.engine.start(rig.now);
        for id in ids.iter() {
            rig.engine.locate(id, true, true, None, rig.now);
        }
        rig.collect();
        rig.store();
        rig
    }

    /// An engine that serves these replicas, all of them members.
    pub(super) fn serving(replicas: u32, size: u64, clean: bool) -> Self {
        let ids: Vec<_> = (1..=replicas).collect();
        let mut record = status(&ids, view(0, 0, &ids, false));
        record.clean = clean;
        let mut rig = Self::fencing(config(size), record);
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

    pub(super) fn collect(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Send { replica, session, header, body } => {
                    if let Body::View(update) = body {
                        self.updates.push((replica.0, *update));
                    }
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
    pub(super) fn store(&mut self) {
        let (ask, expected, _) = self.asks.remove(0);
        assert_eq!(expected, self.version);
        self.version += 1;
        self.engine.registry_result(ask, RegistryOutcome::Stored { version: self.version }, self.now);
        self.collect();
    }

    pub(super) fn connect(&mut self, replica: u32) {
        let record = &self.engine.registry.status;
        let mut welcome = start_tests::welcome(record.view);
        (welcome.configured, welcome.lineage) = (record.configured, record.lineage);
        self.connect_as(replica, welcome);
    }

    pub(super) fn connect_as(&mut self, replica: u32, welcome: Welcome) {
        self.session += 1;
        let welcome = Welcome { size_bytes: self.size, ..welcome };
        let (generation, boot) = (self.engine.generation(), BootId(uuid::Uuid::from_u128(1)));
        self.engine.connected(ReplicaId(replica), self.session, generation, welcome, boot, self.now);
        self.collect();
    }

    pub(super) fn disconnect(&mut self, replica: u32) {
        let slot = self.engine.slot_of(ReplicaId(replica)).unwrap();
        let peers::Link::Up { session } = self.engine.peers[slot].link else { panic!("not connected") };
        self.engine.disconnected(ReplicaId(replica), session, "reset", self.now);
        self.frames.retain(|(id, ..)| *id != replica);
        self.collect();
    }

    pub(super) fn gone(&mut self, replica: u32) {
        self.engine.connect_failed(ReplicaId(replica), ConnectFailure::Gone("gone".to_owned()), self.now);
        self.collect();
    }

    /// The first frame of this kind to this replica is answered.
    pub(super) fn answer(&mut self, replica: u32, kind: Kind, status: Status) {
        let at = self.frames.iter().position(|(id, _, h)| *id == replica && h.kind == kind);
        let (id, session, header) = self.frames.remove(at.expect("such a frame was sent"));
        let mut reply = header.answer(status);
        let inline = match kind {
            Kind::Extents => encode_extents(&[Extent { len: header.extent, allocated: !self.holes }]),
            // Each has data of its own.
            Kind::Digest => vec![u8::try_from(id).unwrap(); 32],
            // They may differ everywhere.
            Kind::ReadMap => {
                let words =
                    vec![u64::MAX; usize::try_from(header.extent.div_ceil(64 * REGION_BYTES)).unwrap()];
                MapPart { base: Some(holdfast_proto::record::Stamp::default()), words }.encode()
            }
            Kind::Read => self.zeros.encode().to_vec(),
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
    pub(super) fn answer_all(&mut self, replicas: &[u32]) {
        while let Some((id, _, header)) = self.frames.iter().find(|(id, ..)| replicas.contains(id)).copied() {
            self.answer(id, header.kind, Status::Ok);
        }
    }

    pub(super) fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.engine.tick(self.now);
        self.collect();
    }

    pub(super) fn write(&mut self, offset: u64) -> OpId {
        let op = self.engine.submit(Request::Write { fua: false }, offset, 4096, self.now).unwrap();
        self.collect();
        op
    }

    pub(super) fn sent(&self, replica: u32, kind: Kind) -> usize {
        self.frames.iter().filter(|(id, _, h)| *id == replica && h.kind == kind).count()
    }
}

pub(super) fn config(size: u64) -> Config {
    Config::new(size, InstanceUuid(uuid::Uuid::from_u128(7)))
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
fn a_write_that_failed_is_not_read_from_those_left_before_their_view_counts() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    rig.engine.config.read_lease = Duration::from_secs(3600);
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    // The one that is left has it, and another engine may begin with the one that has it not.
    let write = rig.write(0);
    for _ in 0..302 {
        rig.answer_all(&[1]);
        rig.after(1);
    }
    assert_eq!(rig.completed, [(write, Outcome::Failed(Failure::Unavailable))]);
    rig.answer_all(&[1]);
    rig.engine.submit(Request::Read, 0, 4096, rig.now).unwrap();
    rig.collect();
    assert_eq!(rig.sent(1, Kind::Read), 0, "what it would see might go back");
    rig.store();
    assert_eq!((rig.engine.members, rig.sent(1, Kind::Read)), (0b01, 1));
}

#[test]
fn one_that_was_to_be_added_and_left_again_counts_until_a_later_view_does() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    rig.disconnect(2);
    rig.gone(2);
    rig.answer_all(&[1]);
    rig.store();
    rig.connect(2);
    for _ in 0..30 {
        rig.answer_all(&[1, 2]);
        if rig.engine.required() == 0b11 {
            break;
        }
        rig.after(1);
    }
    assert_eq!((rig.engine.members, rig.engine.required(), rig.asks.len()), (0b01, 0b11, 1));
    // Both have persisted that it is a member; the registry is away, and so is now that one.
    rig.disconnect(2);
    rig.gone(2);
    for _ in 0..7 {
        rig.answer_all(&[1]);
        rig.after(1);
    }
    assert_eq!((rig.engine.required(), rig.engine.possible()), (0b01, 0b11));
    assert!(!rig.engine.may_read(rig.now), "an engine that began with it may serve by now");
    rig.engine.differ(0, 4096);
    assert!(rig.engine.unrepaired.contains(0), "it may have less than the one that is left");
    // The record has the view with it, and then the one without.
    rig.store();
    rig.store();
    rig.answer_all(&[1]);
    assert_eq!((rig.engine.members, rig.engine.possible()), (0b01, 0b01));
    assert!(rig.engine.may_read(rig.now));
}

#[test]
fn what_is_left_to_compare_ends_with_the_second_to_last_member() {
    let mut rig = Rig::serving(2, 400_000 * REGION_BYTES, false);
    assert_eq!(rig.engine.unrepaired.count(), 400_000);
    // Where they may differ is known long before all of it is compared.
    while rig.sent(1, Kind::ReadMap) > 0 {
        rig.answer(1, Kind::ReadMap, Status::Ok);
        rig.answer(2, Kind::ReadMap, Status::Ok);
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
        rig.answer(id, Kind::ReadMap, Status::Ok);
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
        let welcome = start_tests::welcome(view(2, 1, &[1, 2], false));
        let welcome = Welcome { size_bytes: REGION_BYTES, ..welcome };
        let boot = BootId(uuid::Uuid::from_u128(1));
        engine.connected(ReplicaId(id), 1, Generation(2), welcome, boot, Duration::from_secs(1));
    }
    assert_eq!(engine.phase, view::Phase::Opening);
    assert!(engine.writes_done > engine.writes_flushed);
}

impl Rig {
    /// `seconds` pass. These replicas answer at once whatever they are asked; the others only that they are there.
    fn pass(&mut self, seconds: u64, quick: &[u32]) {
        for _ in 0..seconds {
            self.write(0);
            self.answer_all(quick);
            self.pings(&[1, 2, 3]);
            self.after(1);
        }
    }
    fn pings(&mut self, replicas: &[u32]) {
        for id in replicas {
            while self.sent(*id, Kind::Ping) > 0 {
                self.answer(*id, Kind::Ping, Status::Ok);
            }
        }
    }
    fn replica(&self, id: usize) -> ReplicaReport {
        self.engine.report(self.now).replicas[id - 1].clone()
    }
}

#[test]
fn a_slow_member_is_reported_with_its_lag_and_then_left_behind_while_others_are_quick() {
    let mut rig = Rig::serving(3, 4 * REGION_BYTES, true);
    // Not by silence, which is another matter.
    rig.engine.config.replica_timeout = Duration::from_secs(60);
    // r3 answers each write 100 ms after the heartbeat.
    for _ in 0..5 {
        rig.pass(1, &[1, 2]);
        rig.now += Duration::from_millis(100);
        rig.answer_all(&[3]);
    }
    let r3 = rig.replica(3);
    assert_eq!(r3.mode, ReplicaMode::Suspect, "{r3:?}");
    assert!(r3.reason.contains("slow: its answers take over 100 ms"), "{}", r3.reason);
    assert_eq!(rig.engine.members, 0b111, "below the limit it stays");
    assert_eq!(rig.replica(1).mode, ReplicaMode::Member);
    // A write that never ends, while it says that it is there and r1 and r2 answer.
    rig.pass(7, &[1, 2]);
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.engine.members, 0b011, "{:?}", rig.engine.peers);
    assert!(rig.replica(3).reason.contains("left behind"), "{:?}", rig.replica(3));
    // It comes back after a wait that the agent's calls do not shorten.
    rig.engine.locate(ReplicaId(3), true, true, None, rig.now);
    let peers::Link::Down { retry_at } = rig.engine.peers[2].link else { panic!("{:?}", rig.engine.peers) };
    assert!(retry_at >= rig.now + Duration::from_secs(50), "{retry_at:?}");
}

#[test]
fn members_that_are_slow_together_stay_and_so_does_a_sole_one() {
    let mut rig = Rig::serving(3, 4 * REGION_BYTES, true);
    rig.engine.config.replica_timeout = Duration::from_secs(60);
    rig.pass(20, &[]);
    assert_eq!(rig.engine.members, 0b111);
    assert!((1..=3).all(|id| !rig.replica(id).reason.contains("slow")), "{:?}", rig.replica(1));
    let mut rig = Rig::serving(1, 4 * REGION_BYTES, true);
    for _ in 0..20 {
        rig.write(0);
        rig.pings(&[1]);
        rig.after(1);
    }
    assert_eq!(rig.engine.members, 0b001);
    assert!(rig.engine.proposal.is_none());
}

#[test]
fn a_slow_member_stays_where_the_registry_would_have_to_agree_and_does_not_answer() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    rig.engine.config.replica_timeout = Duration::from_secs(60);
    for _ in 0..12 {
        rig.write(0);
        rig.answer_all(&[1]);
        rig.pings(&[2]);
        rig.after(1);
    }
    assert_eq!(rig.engine.required(), 0b11, "it was asked, and has not answered");
    assert_eq!(rig.asks.len(), 1);
    rig.store();
    rig.pings(&[1, 2]);
    rig.after(1);
    rig.answer_all(&[1]);
    rig.store();
    assert_eq!(rig.engine.members, 0b01, "now it is certain that I/O goes on");
}

#[test]
fn one_that_answers_nothing_is_silent_and_not_slow() {
    let mut rig = Rig::serving(3, 4 * REGION_BYTES, true);
    rig.write(0);
    for _ in 0..7 {
        rig.answer_all(&[1, 2]);
        rig.after(1);
    }
    assert_eq!(rig.engine.members, 0b111, "it has the time of a silent one");
    assert!(rig.replica(3).reason.contains("it has not answered for over 2 s"), "{:?}", rig.replica(3));
}

#[test]
fn one_that_answers_pings_and_nothing_else_is_silent() {
    let mut rig = Rig::serving(3, 4 * REGION_BYTES, true);
    rig.engine.config.replica_lag_max = Duration::from_secs(3600);
    rig.pass(10, &[1, 2]);
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.engine.members, 0b011);
    assert!(rig.replica(3).reason.contains("no answer for 8 s"), "{:?}", rig.replica(3));
}

#[test]
fn suspended_io_fails_after_its_time_while_the_engine_lives_and_goes_on_when_members_return() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    let (write, read) = (rig.write(0), rig.engine.submit(Request::Read, 4096, 4096, rig.now).unwrap());
    rig.collect();
    for _ in 0..299 {
        rig.after(1);
    }
    assert_eq!(rig.engine.report(rig.now).state, EngineState::Suspended);
    assert_eq!(rig.completed, []);
    rig.after(1);
    let unavailable = Outcome::Failed(Failure::Unavailable);
    for op in [write, read] {
        assert!(rig.completed.contains(&(op, unavailable.clone())), "{:?}", rig.completed);
    }
    rig.completed.clear();
    rig.write(8192);
    assert_eq!(rig.engine.members, 0b11, "nobody was removed");
    rig.connect(1);
    rig.connect(2);
    rig.after(2);
    rig.answer_all(&[1, 2]);
    assert!(matches!(rig.completed[..], [(_, Outcome::Done)]), "{:?}", rig.completed);
    assert_ne!(rig.engine.report(rig.now).state, EngineState::Suspended);
}

impl Rig {
    fn flush(&mut self) -> OpId {
        let op = self.engine.submit(Request::Flush, 0, 0, self.now).unwrap();
        self.collect();
        op
    }

    /// It is back, and its node has restarted.
    fn connect_rebooted(&mut self, replica: u32) {
        self.session += 1;
        let welcome = start_tests::welcome(self.engine.registry.status.view);
        let welcome = Welcome { size_bytes: self.size, cache_lost: true, ..welcome };
        let (generation, boot) = (self.engine.generation(), BootId(uuid::Uuid::from_u128(2)));
        self.engine.connected(ReplicaId(replica), self.session, generation, welcome, boot, self.now);
        self.collect();
    }

    /// The first replica alone is a member; the second one was filled, and a view with it is proposed.
    fn adding_the_second() -> Self {
        let mut rig = Self::serving(2, REGION_BYTES, true);
        rig.disconnect(2);
        rig.gone(2);
        rig.answer_all(&[1]);
        rig.store();
        assert_eq!(rig.engine.members, 0b01);
        rig.write(0);
        rig.answer_all(&[1]);
        rig.connect(2);
        for _ in 0..200 {
            if rig.engine.proposal.is_some() {
                return rig;
            }
            match rig.frames.first().copied() {
                Some((id, _, header)) => rig.answer(id, header.kind, Status::Ok),
                None => rig.after(1),
            }
        }
        panic!("it is never proposed to be added: {:?}", rig.frames);
    }
}

#[test]
fn the_last_member_that_lost_its_cache_ends_the_engine_also_while_another_is_being_added() {
    let mut rig = Rig::adding_the_second();
    rig.disconnect(1);
    rig.connect_rebooted(1);
    assert_eq!(rig.engine.phase, view::Phase::Ended, "{:?}", rig.engine.peers);
}

#[test]
fn a_flush_that_only_the_one_being_added_has_waits_for_its_view() {
    for becomes_a_member in [true, false] {
        let mut rig = Rig::adding_the_second();
        let flush = rig.flush();
        rig.answer(2, Kind::Flush, Status::Ok);
        rig.answer(1, Kind::Flush, Status::Failed);
        assert!(rig.engine.peers[0].failed.is_none(), "{:?}", rig.engine.peers[0]);
        rig.answer(1, Kind::PersistView, Status::Ok);
        assert!(!rig.completed.iter().any(|(op, _)| *op == flush), "nothing counts yet");
        if becomes_a_member {
            rig.answer(2, Kind::PersistView, Status::Ok);
            rig.store();
            assert_eq!(rig.engine.members, 0b11);
            assert!(!rig.completed.iter().any(|(op, _)| *op == flush), "the first has not left yet");
            rig.answer_all(&[2]);
            rig.store();
            assert_eq!(rig.engine.members, 0b10);
            assert!(rig.completed.contains(&(flush, Outcome::Done)), "{:?}", rig.completed);
        } else {
            rig.answer(2, Kind::PersistView, Status::Failed);
            rig.answer_all(&[1]);
            rig.store();
            assert_eq!(rig.engine.members, 0b01);
            let failed = (flush, Outcome::Failed(Failure::Io));
            assert!(rig.completed.contains(&failed), "{:?}", rig.completed);
        }
    }
}

#[test]
fn what_a_lost_cache_acknowledged_does_not_make_the_other_member_leave() {
    let mut rig = Rig::serving(2, REGION_BYTES, true);
    rig.write(0);
    rig.answer_all(&[1, 2]);
    let flush = rig.flush();
    rig.answer(2, Kind::Flush, Status::Ok);
    rig.disconnect(2);
    rig.disconnect(1);
    rig.gone(2);
    rig.gone(1);
    rig.connect_rebooted(2);
    rig.connect(1);
    rig.answer(1, Kind::Flush, Status::Failed);
    assert!(rig.completed.contains(&(flush, Outcome::Failed(Failure::Io))), "{:?}", rig.completed);
    rig.after(2);
    rig.answer_all(&[1]);
    rig.store();
    assert_eq!(rig.engine.members, 0b01);
}

#[test]
fn one_that_the_first_view_left_out_is_no_member_also_while_the_record_still_names_it() {
    let all = view(0, 0, &[1, 2, 3], false);
    let mut rig = Rig::fencing(config(4 * REGION_BYTES), status(&[1, 2, 3], all));
    // A view without r1 that r2 alone persisted, and that the record never had.
    let newer = start_tests::welcome(view(0, 1, &[2, 3], false));
    for (id, welcome) in [(1, start_tests::welcome(all)), (2, newer), (3, start_tests::welcome(all))] {
        rig.connect_as(id, Welcome { configured: rig.engine.registry.status.configured, ..welcome });
    }
    assert_eq!(rig.replica(1).mode, ReplicaMode::Member, "the record says so, and nothing is served yet");
    for id in [2, 3] {
        rig.answer(id, Kind::PersistView, Status::Ok);
    }
    assert_eq!((rig.engine.phase, rig.engine.members), (view::Phase::Serving, 0b110));
    assert!(rig.engine.registry.status.view.members.contains(ReplicaId(1)), "the record has not followed");
    assert_ne!(rig.replica(1).mode, ReplicaMode::Member, "{:?}", rig.replica(1));
}

#[test]
fn a_record_that_is_missing_ends_no_engine_that_serves_and_starts_none() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    rig.disconnect(2);
    rig.gone(2);
    let write = rig.write(0);
    rig.answer_all(&[1]);
    let (ask, ..) = rig.asks.remove(0);
    rig.engine.registry_result(ask, RegistryOutcome::Missing, rig.now);
    rig.collect();
    assert_eq!(rig.engine.phase, view::Phase::Serving);
    assert_eq!(rig.completed, [], "one of two needs the registry");
    // It is back: asked again, it takes the view.
    rig.after(1);
    rig.store();
    rig.answer_all(&[1]);
    assert_eq!(rig.completed, [(write, Outcome::Done)]);

    let record = status(&[1], view(0, 0, &[1], true));
    let mut engine = Engine::new(config(4 * REGION_BYTES), 1, record);
    engine.start(rig.now);
    let Some(Action::CompareAndSwap { ask, .. }) = engine.poll_action() else { panic!("it attaches first") };
    engine.registry_result(ask, RegistryOutcome::Missing, rig.now);
    assert_eq!(engine.phase, view::Phase::Ended);
}

#[test]
fn a_start_that_several_replicas_refuse_asks_for_a_number_above_all_of_theirs() {
    // The registry was restored: the replicas are promised to an engine that the record knows nothing of.
    let mut rig = Rig::fencing(config(4 * REGION_BYTES), status(&[1, 2, 3], view(0, 0, &[1, 2, 3], false)));
    let refuse = |rig: &mut Rig, replica: u32, by: u64| {
        let why = ConnectFailure::Fenced { generation: Generation(by), engine: InstanceUuid::random() };
        rig.engine.connect_failed(ReplicaId(replica), why, rig.now);
        rig.collect();
    };
    refuse(&mut rig, 1, 4);
    // All were tried at once: the others' answers come while the registry is asked for a higher number.
    refuse(&mut rig, 2, 4);
    refuse(&mut rig, 3, 6);
    assert_eq!(rig.engine.phase, view::Phase::Attaching);
    let asked = |rig: &Rig| rig.asks.iter().map(|(.., status)| status.generation.0).collect::<Vec<_>>();
    assert_eq!(asked(&rig), [5]);
    rig.store();
    assert!(matches!(rig.engine.phase, view::Phase::Fencing { .. }));
    refuse(&mut rig, 3, 6);
    assert_eq!(asked(&rig), [7]);
    rig.store();
    for replica in 1..=3 {
        rig.connect(replica);
    }
    rig.answer_all(&[1, 2, 3]);
    assert_eq!((rig.engine.phase, rig.engine.generation()), (view::Phase::Serving, Generation(7)));
    // One that serves is superseded by whoever was promised more.
    rig.disconnect(3);
    refuse(&mut rig, 3, 8);
    assert_eq!(rig.engine.phase, view::Phase::Ended);
}

/// A frame that says "fenced" answers the first write of this replica.
fn say_fenced(rig: &mut Rig, replica: u32) {
    rig.answer(replica, Kind::Write, Status::Fenced);
}

#[test]
fn fenced_in_a_frame_ends_nothing_and_acknowledges_nothing() {
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    let write = rig.write(0);
    rig.answer(1, Kind::Write, Status::Ok);
    say_fenced(&mut rig, 2);
    assert_eq!((rig.engine.phase, &rig.completed[..]), (view::Phase::Serving, &[][..]));
    assert_eq!(rig.engine.peers[1].link, peers::Link::Connecting, "asked again at once");
    assert_eq!(rig.engine.live, 0b01);
    // It was not so: the write is sent again, and only its own answer counts.
    rig.connect(2);
    assert_eq!((rig.sent(2, Kind::Write), rig.completed.len()), (1, 0));
    rig.answer_all(&[2]);
    assert_eq!(rig.completed, [(write, Outcome::Done)]);
    // It is so: said in the handshake it ends the engine for good.
    let write = rig.write(0);
    say_fenced(&mut rig, 2);
    let (generation, engine) = (rig.engine.generation().next().unwrap(), InstanceUuid::random());
    let why = ConnectFailure::Fenced { generation, engine };
    rig.engine.connect_failed(ReplicaId(2), why, rig.now);
    rig.collect();
    assert_eq!(rig.engine.phase, view::Phase::Ended);
    assert_eq!(rig.completed[1..], [(write, Outcome::Failed(Failure::Unavailable))]);
}

#[test]
fn fenced_in_frame_after_frame_leaves_the_member_out() {
    let mut rig = Rig::serving(3, 4 * REGION_BYTES, true);
    let write = rig.write(0);
    rig.answer_all(&[1, 2]);
    for _ in 0..3 {
        say_fenced(&mut rig, 3);
        assert!(rig.engine.proposal.is_none());
        rig.connect(3);
    }
    say_fenced(&mut rig, 3);
    assert!(rig.engine.proposal.as_ref().is_some_and(|proposal| proposal.members == 0b011));
    assert_eq!(rig.completed, [], "not before a view without it counts");
    rig.answer_all(&[1, 2]);
    assert_eq!(rig.completed, [(write, Outcome::Done)]);
}

#[test]
fn answers_to_nothing_end_the_connection() {
    let bends: [fn(&mut Header); 3] = [|h| h.sequence += 1, |h| h.sequence = 0, |h| h.sequence = u64::MAX];
    for bend in bends {
        let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
        rig.write(0);
        rig.answer(1, Kind::Write, Status::Ok);
        let (id, session, header) = *rig.frames.iter().find(|(id, ..)| *id == 2).unwrap();
        let mut reply = header.answer(Status::Ok);
        bend(&mut reply);
        rig.engine.reply(ReplicaId(id), session, &reply, &[], rig.now);
        rig.collect();
        assert_eq!(rig.completed, []);
        assert_eq!(rig.engine.peers[1].link, peers::Link::Connecting);
    }
    // The same answer twice.
    let mut rig = Rig::serving(2, 4 * REGION_BYTES, true);
    rig.write(0);
    let (id, session, header) = *rig.frames.iter().find(|(id, ..)| *id == 2).unwrap();
    rig.answer(2, Kind::Write, Status::Ok);
    rig.engine.reply(ReplicaId(id), session, &header.answer(Status::Ok), &[], rig.now);
    assert_eq!(rig.engine.peers[1].link, peers::Link::Connecting);
}

#[test]
fn numbers_that_no_history_reached_are_not_believed() {
    let record = || status(&[1, 2], view(0, 0, &[1, 2], false));
    let mut rig = Rig::fencing(config(4 * REGION_BYTES), record());
    let far = Generation(rig.engine.generation().0 + Generation::JUMP_MAX + 1);
    for generation in [far, Generation(u64::MAX - 1), Generation(u64::MAX)] {
        let why = ConnectFailure::Fenced { generation, engine: InstanceUuid::random() };
        rig.engine.connect_failed(ReplicaId(2), why, rig.now);
        rig.collect();
        assert!(matches!(rig.engine.phase, view::Phase::Fencing { .. }), "no higher number is asked for");
        assert!(rig.asks.is_empty());
        assert!(rig.engine.peers[1].reason.contains("no engine can have"), "{}", rig.engine.peers[1].reason);
    }
    for order in [(u64::MAX, 1), (0, u64::MAX), (0, Generation::JUMP_MAX + 1)] {
        let mut welcome = start_tests::welcome(view(order.0, order.1, &[1, 2], false));
        welcome.lineage = rig.engine.registry.status.lineage;
        rig.connect_as(2, welcome);
        assert_eq!(rig.engine.live, 0, "{order:?}");
    }
}

#[test]
fn generations_that_are_used_up_end_the_start_and_do_not_wrap() {
    let mut record = status(&[1], view(0, 0, &[1], false));
    record.generation = Generation::MAX;
    let mut engine = Engine::new(config(4 * REGION_BYTES), 1, record);
    engine.start(Duration::ZERO);
    assert!(matches!(engine.poll_action(), Some(Action::End(Ending::Unclean(_)))));
}
