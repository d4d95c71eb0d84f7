//! An engine whose three replicas answer at once, without any I/O.

use std::time::Duration;

use holdfast_dataplane::core::engine::{Action, Config, Engine, RegistryOutcome, Request};
use holdfast_dataplane::wire::handshake::Welcome;
use holdfast_dataplane::wire::{Header, Kind, Status};
use holdfast_proto::ids::{BootId, Epoch, Generation, Incarnation, InstanceUuid, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, View, VolumeStatus};
use uuid::Uuid;

const MEMBERS: u32 = 3;
/// Tables have grown to their size by then.
const WARM_UP: u64 = 200;
/// Nothing is due: neither a heartbeat nor a lease that ends.
const NOW: Duration = Duration::from_secs(1);

/// A frame that was not answered yet.
type Sent = (ReplicaId, u64, Header);

/// See the module.
#[derive(Debug)]
pub(super) struct Rig {
    engine: Engine,
    sent: Vec<Sent>,
    asked: Vec<(u64, VolumeStatus)>,
    version: u64,
    serves: bool,
    completed: u64,
}

fn nothing_written(members: ReplicaSet) -> VolumeStatus {
    VolumeStatus {
        incarnation: Incarnation::nil(),
        lineage: Lineage::nil(),
        generation: Generation(0),
        engine_uuid: InstanceUuid::nil(),
        engine_instance: InstanceUuid::nil(),
        round: 0,
        view: View { generation: Generation(0), epoch: Epoch(0), members, needs_registry: false },
        configured: members,
        clean: true,
        instance_uuids: std::collections::BTreeMap::new(),
        unknown: Default::default(),
    }
}

fn welcome(status: &VolumeStatus, size_bytes: u64) -> Welcome {
    Welcome {
        size_bytes,
        lineage: status.lineage,
        view: status.view,
        configured: status.configured,
        incarnation: status.incarnation,
        revision: 0,
        basis: Some(status.view.stamp(0)),
        stamps: true,
        settled: None,
        syncing: false,
        cache_lost: false,
        failed: String::new(),
        flush_sequence: 0,
    }
}

impl Rig {
    /// One that serves and has done some of everything.
    pub(super) fn warm(volume_bytes: u64) -> Self {
        let members: ReplicaSet = (1..=MEMBERS).map(ReplicaId).collect();
        let config = Config::new(volume_bytes, InstanceUuid(Uuid::from_u128(7)));
        let mut rig = Self {
            engine: Engine::new(config, 1, nothing_written(members)),
            sent: Vec::with_capacity(64),
            asked: Vec::new(),
            version: 1,
            serves: false,
            completed: 0,
        };
        rig.engine.start(NOW);
        for id in members.iter() {
            rig.engine.locate(id, true, true, None, NOW);
        }
        rig.drain();
        let status = rig.store();
        for (id, session) in members.iter().zip(1..) {
            let generation = rig.engine.generation();
            let boot = BootId(Uuid::from_u128(1));
            rig.engine.connected(id, session, generation, welcome(&status, volume_bytes), boot, NOW);
            rig.drain();
        }
        rig.answer();
        assert!(rig.serves, "an engine with all its replicas serves");
        // The record follows.
        rig.store();
        rig.answer();
        for number in 0..WARM_UP {
            rig.write(number * 4096);
            rig.read(number * 4096);
            rig.flush();
        }
        rig
    }

    /// The registry stores what it was asked to.
    fn store(&mut self) -> VolumeStatus {
        let (ask, status) = self.asked.pop().expect("the record is to be changed");
        self.version += 1;
        self.engine.registry_result(ask, RegistryOutcome::Stored { version: self.version }, NOW);
        self.drain();
        status
    }

    fn drain(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Send { replica, session, header, body: _ } => {
                    self.sent.push((replica, session, header));
                }
                Action::Complete { .. } => self.completed += 1,
                Action::CompareAndSwap { ask, status, .. } => self.asked.push((ask, *status)),
                Action::Serve => self.serves = true,
                Action::Connect { .. }
                | Action::Disconnect { .. }
                | Action::Reserve { .. }
                | Action::Release { .. } => {}
                Action::End(ending) => panic!("the engine ends: {ending:?}"),
            }
        }
    }

    /// All that was sent is answered, the newest first.
    fn answer(&mut self) {
        while let Some((replica, session, header)) = self.sent.pop() {
            let mut reply = header.answer(Status::Ok);
            if header.kind == Kind::Read {
                reply.length = 4096;
            }
            self.engine.reply(replica, session, &reply, &[], NOW);
            self.drain();
        }
    }

    fn one(&mut self, request: Request, offset: u64, len: u64) {
        let before = self.completed;
        self.engine.submit(request, offset, len, NOW).expect("it is taken");
        self.drain();
        self.answer();
        assert_eq!(self.completed, before + 1);
    }

    /// A client's 4 KiB write, from its submission to its completion.
    pub(super) fn write(&mut self, offset: u64) {
        self.one(Request::Write { fua: false }, offset, 4096);
    }

    /// A client's 4 KiB read, likewise.
    pub(super) fn read(&mut self, offset: u64) {
        self.one(Request::Read, offset, 4096);
    }

    /// A client's flush, likewise.
    pub(super) fn flush(&mut self) {
        self.one(Request::Flush, 0, 0);
    }
}
