//! A replica: the real promises and views over a disk of two blocks, with what its shell does.

use std::hash::{Hash, Hasher};

use holdfast_proto::ids::{BootId, Epoch, Generation, InstanceUuid, ProcessUuid, ReplicaId};

use super::truth::{BLOCKS, Data};
use crate::core::replica::{Action, Replica, reopened};
use crate::layout::Meta;
use crate::units::{BLOCK_BYTES, to_usize};
use crate::wire::handshake::{Hello, Refused, Role, Welcome};
use crate::wire::header::{FLAG_HOLE, FLAG_SPARSE, Header, Kind, Status};
use crate::wire::payload::{Extent, ViewUpdate, encode_extents};

/// A request on its way to a replica.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) header: Header,
    /// Of writes: the blocks written, in their places.
    pub(super) data: Data,
    pub(super) update: Option<Box<ViewUpdate>>,
}

impl Frame {
    pub(super) fn blocks(&self) -> std::ops::Range<usize> {
        let first = to_usize(self.header.offset / BLOCK_BYTES);
        first..first + to_usize(self.header.extent / BLOCK_BYTES)
    }
    /// Whether a replica is another one after it.
    pub(super) fn changes(&self) -> bool {
        match self.header.kind {
            Kind::Write | Kind::Trim | Kind::WriteZeroes | Kind::Flush | Kind::PersistView => true,
            Kind::Read | Kind::Ping | Kind::Extents | Kind::Digest => false,
        }
    }
}

/// An answer.
pub(super) struct Reply {
    pub(super) header: Header,
    pub(super) data: Data,
    pub(super) inline: Vec<u8>,
}

/// A replica and its node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) core: Replica,
    /// On stable storage.
    meta: Meta,
    pub(super) data: Data,
    pub(super) stable: Data,
    /// Something was written that no fsync covered.
    dirty: bool,
    boot: u8,
    session: u64,
    /// The highest generation that an engine was told it was promised.
    told: Generation,
    /// Whose connection it has.
    pub(super) engine: Option<usize>,
    /// Writes of connections that are gone, still on their way to the disk: only where the drain is taken away.
    pub(super) undrained: Vec<Frame>,
}

pub(super) fn boot_id(boot: u8) -> BootId {
    BootId(uuid::Uuid::from_u128(u128::from(boot)))
}

impl Node {
    pub(super) fn new(meta: Meta) -> Self {
        Self {
            core: Replica::new(meta.clone(), boot_id(1)),
            meta,
            data: [0; BLOCKS],
            stable: [0; BLOCKS],
            dirty: false,
            boot: 1,
            session: 0,
            told: Generation(0),
            engine: None,
            undrained: Vec::new(),
        }
    }

    pub(super) fn fingerprint(&self, h: &mut impl Hasher) {
        self.core.fingerprint(h);
        (self.data, self.stable, self.dirty, self.engine, self.told).hash(h);
        for frame in &self.undrained {
            (frame.data, frame.header.offset, frame.header.extent).hash(h);
        }
        h.write_u8(0);
    }

    pub(super) fn boot(&self) -> BootId {
        boot_id(self.boot)
    }

    fn persist(&mut self, next: Meta) -> Result<(), String> {
        if next.promised < self.meta.promised || next.view.order() < self.meta.view.order() {
            return Err(format!("{}: a promise or a view goes back", next.replica));
        }
        self.meta = next;
        self.core.handle_persisted(Ok(()));
        Ok(())
    }

    /// An engine shakes hands. Persisting is immediate: nobody can tell a replica that died before from one that was
    /// not asked, nor one that died after from one whose answer was lost.
    pub(super) fn fence(
        &mut self,
        engine: usize,
        generation: Generation,
        uuid: InstanceUuid,
    ) -> Result<Result<Welcome, Refused>, String> {
        self.core.handle_fence(1, hello(&self.meta, generation, uuid));
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::DropSession => {
                    self.engine = None;
                    self.core.handle_dropped(0, !self.dirty);
                }
                Action::Persist(next) => self.persist(*next)?,
                Action::Welcome { session, .. } if session.generation < self.told => {
                    return Err(format!("{} takes an engine after it promised not to", self.meta.replica));
                }
                Action::Welcome { welcome, session, .. } => {
                    self.told = session.generation;
                    self.session = session.number;
                    self.engine = Some(engine);
                    return Ok(Ok(*welcome));
                }
                Action::Refuse { refused, .. } => return Ok(Err(refused)),
                Action::AnswerView { .. } => return Err("an answer that nobody asked for".to_owned()),
            }
        }
        Err("a handshake without an answer".to_owned())
    }

    /// The connection is gone, and all that it had submitted has ended.
    pub(super) fn session_ended(&mut self) -> Result<(), String> {
        self.engine = None;
        self.core.handle_session_ended(self.session, !self.dirty);
        while let Some(action) = self.core.poll_action() {
            if let Action::Persist(next) = action {
                self.persist(*next)?;
            }
        }
        Ok(())
    }

    /// The process is killed and another one started; `lost`: the node was, and of what was not flushed these blocks
    /// are gone.
    pub(super) fn restart(&mut self, lost: Option<u8>) {
        if let Some(lost) = lost {
            self.boot += 1;
            for block in 0..BLOCKS {
                if lost >> block & 1 == 1 {
                    self.data[block] = self.stable[block];
                }
            }
            self.stable = self.data;
        }
        self.engine = None;
        if let Some(next) = reopened(&self.meta, self.boot()) {
            self.meta = next;
        }
        self.dirty = self.meta.unflushed;
        self.core = Replica::new(self.meta.clone(), self.boot());
    }

    /// Blocks that a restart of the node could lose.
    pub(super) fn unflushed(&self) -> u8 {
        (0..BLOCKS).filter(|b| self.data[*b] != self.stable[*b]).fold(0, |set, b| set | 1 << b)
    }

    pub(super) fn write(&mut self, frame: &Frame) {
        for block in frame.blocks() {
            self.data[block] = if frame.header.kind == Kind::Write { frame.data[block] } else { 0 };
        }
        self.dirty = true;
    }

    /// Does what a frame says. A flush is one step: another write during it would count as after it.
    pub(super) fn carry_out(&mut self, frame: &Frame) -> Result<Reply, String> {
        let mut reply =
            Reply { header: frame.header.answer(Status::Ok), data: [0; BLOCKS], inline: Vec::new() };
        let blocks = frame.blocks();
        match frame.header.kind {
            Kind::Write | Kind::Trim | Kind::WriteZeroes => self.write(frame),
            Kind::Read => {
                let hole = self.data[blocks].iter().all(|value| *value == 0);
                if hole && frame.header.flags & FLAG_SPARSE != 0 {
                    reply.header.flags = FLAG_HOLE;
                } else {
                    reply.data = self.data;
                    reply.header.length = u32::try_from(frame.header.extent).expect("small");
                }
            }
            Kind::Flush => {
                self.stable = self.data;
                self.dirty = false;
            }
            Kind::Ping => {}
            Kind::PersistView => reply.header.status = self.persist_view(frame)?,
            Kind::Extents => {
                let run = |block| Extent { len: BLOCK_BYTES, allocated: self.data[block] != 0 };
                reply.inline = encode_extents(&blocks.map(run).collect::<Vec<_>>());
                reply.header.length = u32::try_from(reply.inline.len()).expect("small");
            }
            Kind::Digest => {
                reply.inline = self.data.repeat(16);
                reply.inline.resize(32, 0);
                reply.header.length = 32;
            }
        }
        Ok(reply)
    }

    fn persist_view(&mut self, frame: &Frame) -> Result<Status, String> {
        let update = frame.update.as_deref().ok_or("a view without a view")?;
        self.core.handle_view(1, Generation(frame.header.generation), *update);
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Persist(next) => self.persist(*next)?,
                Action::AnswerView { status, .. } => return Ok(status),
                other => return Err(format!("not an answer to a view: {other:?}")),
            }
        }
        Err("a view without an answer".to_owned())
    }

    /// What it would say of itself to an engine that fenced it now.
    pub(super) fn welcome(&self) -> Welcome {
        let meta = &self.meta;
        Welcome {
            size_bytes: meta.size_bytes,
            lineage: meta.lineage,
            view: meta.view,
            configured: meta.configured,
            incarnation: meta.incarnation,
            revision: meta.revision,
            syncing: meta.syncing,
            cache_lost: meta.cache_lost,
            failed: meta.failed.clone(),
            flush_sequence: 0,
        }
    }
}

fn hello(meta: &Meta, generation: Generation, engine: InstanceUuid) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        payload_bytes_max: 262_144,
        volume: meta.volume,
        replica: meta.replica,
        key_id: 1,
        role: Role::Engine,
        lineage: meta.lineage,
        generation,
        engine,
        epoch: Epoch(0),
        process: ProcessUuid(uuid::Uuid::nil()),
        boot: BootId(uuid::Uuid::nil()),
        nonce: [0; 32],
    }
}

/// The number of a replica.
pub(super) fn id_of(slot: usize) -> ReplicaId {
    ReplicaId(u32::try_from(slot).expect("few") + 1)
}
