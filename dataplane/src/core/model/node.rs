//! A replica: the real promises and views over a disk of two blocks, with what its shell does.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use holdfast_proto::ids::{BootId, Epoch, Generation, InstanceUuid, ProcessUuid, ReplicaId};

use super::truth::{BLOCKS, Data};
use super::world::{Names, SIZE};
use crate::core::region_map::RegionMap;
use crate::core::replica::{Action, NewMap, Replica, Tracked, reopened, welcome};
use crate::core::rules::{Rule, kept};
use crate::core::tracking::{MapId, Page, Tracking};
use crate::layout::Meta;
use crate::units::{BLOCK_BYTES, GROUP_BYTES, REGION_BYTES, to_usize};
use crate::wire::handshake::{Hello, Refused, Role, Welcome};
use crate::wire::header::{FLAG_FILL, FLAG_HOLE, FLAG_SPARSE, Header, Kind, Status};
use crate::wire::map::{MapEdit, MapName, MapPart};
use crate::wire::payload::{Extent, ViewUpdate, encode_extents};

/// A request on its way to a replica.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) header: Header,
    /// Of writes: the blocks written, in their places.
    pub(super) data: Data,
    pub(super) update: Option<Box<ViewUpdate>>,
    /// Of what is about maps.
    pub(super) bytes: Vec<u8>,
}

impl Frame {
    pub(super) fn blocks(&self) -> std::ops::Range<usize> {
        let first = to_usize(self.header.offset / BLOCK_BYTES);
        first..first + to_usize(self.header.extent / BLOCK_BYTES)
    }
    pub(super) fn flushes(&self) -> bool {
        self.header.kind == Kind::Flush
    }
    /// Whether a replica is another one after it.
    pub(super) fn changes(&self) -> bool {
        match self.header.kind {
            Kind::Write
            | Kind::Trim
            | Kind::WriteZeroes
            | Kind::Flush
            | Kind::PersistView
            | Kind::EditMap => true,
            Kind::Read | Kind::Ping | Kind::Extents | Kind::Digest | Kind::ReadMap => false,
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
    /// An fsync failed, and nothing has been filled anew since.
    cannot_flush: bool,
    boot: u8,
    session: u64,
    /// The highest generation that an engine was told it was promised.
    told: Generation,
    /// Whose connection it has.
    pub(super) engine: Option<usize>,
    /// Writes of connections that are gone, still on their way to the disk: only where the drain is taken away.
    pub(super) undrained: Vec<Frame>,
    pub(super) tracking: Tracking,
    /// The bitmap files: of each the one word that the model's volume needs.
    pages: BTreeMap<MapId, u64>,
    /// It knows stamps.
    stamps: bool,
    /// Its disk went back to an earlier state, and nothing was filled since.
    pub(super) older: bool,
}

pub(super) fn boot_id(boot: u8) -> BootId {
    BootId(uuid::Uuid::from_u128(u128::from(boot)))
}

impl Node {
    pub(super) fn new(meta: Meta) -> Self {
        let mut node = Self {
            core: Replica::new(meta.clone(), boot_id(1)),
            meta,
            data: [0; BLOCKS],
            stable: [0; BLOCKS],
            dirty: false,
            cannot_flush: false,
            boot: 1,
            session: 0,
            told: Generation(0),
            engine: None,
            undrained: Vec::new(),
            tracking: Tracking::new(SIZE, RegionMap::of(0)),
            pages: BTreeMap::new(),
            stamps: true,
            older: false,
        };
        node.open_maps();
        node
    }

    /// As a build from before there were stamps.
    pub(super) fn without_stamps(mut self) -> Self {
        self.stamps = false;
        self
    }

    /// `caches`: whether what is unflushed may be lost, or was.
    pub(super) fn fingerprint(&self, caches: bool, h: &mut impl Hasher) {
        self.core.fingerprint(caches, h);
        (self.data, self.engine, self.told).hash(h);
        if caches {
            (self.stable, self.dirty, self.cannot_flush).hash(h);
        }
        for frame in &self.undrained {
            (frame.data, frame.header.offset, frame.header.extent).hash(h);
        }
        h.write_u8(0);
        (&self.tracking, &self.pages, self.older).hash(h);
    }

    /// Whether it lost its cache or failed to flush it, or nobody knows yet whether it did.
    pub(super) fn lost_cache(&self) -> bool {
        let lost = |meta: &Meta| meta.cache_lost || !meta.failed.is_empty() || meta.boot != self.boot();
        lost(&self.meta) || lost(self.core.meta())
    }

    /// All that engines which are gone have left, to be named anew. It has no connection.
    pub(super) fn rename(&mut self, names: &mut impl Names) {
        let mut core = self.core.meta().clone();
        let boot = if core.boot == self.boot() { 1 } else { 2 };
        for meta in [&mut self.meta, &mut core] {
            names.generation(&mut meta.promised);
            names.engine(&mut meta.promised_to);
            names.view(&mut meta.view);
            names.heard(&mut meta.revision);
            let bases = meta.dirty.iter_mut().map(|map| &mut map.base);
            for stamp in bases.chain(&mut meta.basis).chain(&mut meta.settled) {
                names.order(&mut stamp.generation, &mut stamp.epoch);
            }
            meta.boot = boot_id(1);
        }
        self.boot = boot;
        self.core.rename(core, self.boot());
        names.generation(&mut self.told);
        self.tracking.bases_mut().for_each(|base| names.order(&mut base.generation, &mut base.epoch));
    }

    /// The word of a map on the disk.
    fn map(&self, id: MapId, bits: u64) -> RegionMap {
        let mut map = RegionMap::of(bits);
        map.insert_word(0, self.pages.get(&id).copied().unwrap_or(0));
        map
    }

    /// A process that starts knows what is on the disk.
    fn open_maps(&mut self) {
        let tracked = Tracked::of(&self.meta);
        self.pages.retain(|id, _| match id {
            MapId::Intent => true,
            MapId::Dirty(replica) => tracked.dirty.iter().any(|map| map.replica == *replica),
        });
        self.tracking = Tracking::new(SIZE, self.map(MapId::Intent, SIZE.div_ceil(GROUP_BYTES)));
        self.track(&tracked, true);
    }

    fn track(&mut self, tracked: &Tracked, opens: bool) {
        let maps: Vec<_> = tracked
            .dirty
            .iter()
            .map(|map| {
                let begun = opens || tracked.begun.iter().any(|new| new.replica == map.replica);
                let bits = self.map(MapId::Dirty(map.replica), SIZE.div_ceil(REGION_BYTES));
                (map.replica, map.base, begun.then_some(bits))
            })
            .collect();
        self.tracking.keep(maps);
    }

    /// Every page that has to reach the disk does, at once: a process that dies before has done nothing that anybody
    /// could have seen of it, since writes and clearing wait for it. Pages that come late or never are what the seeded
    /// world is for.
    fn write_pages(&mut self) {
        while let Some(Page { map, page }) = self.tracking.poll_page() {
            let word = self.tracking.page_word(Page { map, page }, 0);
            if map != MapId::Intent || kept(Rule::IntentFirst) {
                self.pages.insert(map, word);
            }
            self.tracking.page_written(Page { map, page }, true);
        }
    }

    pub(super) fn boot(&self) -> BootId {
        boot_id(self.boot)
    }

    fn persist(&mut self, next: Meta, begin: &[NewMap]) -> Result<(), String> {
        if next.promised < self.meta.promised || next.view.order() < self.meta.view.order() {
            return Err(format!("{}: a promise or a view goes back", next.replica));
        }
        if self.meta.syncing && !next.syncing {
            self.older = false;
        }
        for new in begin {
            self.pages.insert(MapId::Dirty(new.replica), if new.full { u64::MAX } else { 0 });
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
                    self.core.handle_dropped(0, self.clean());
                }
                Action::Persist { meta, begin } => self.persist(*meta, &begin)?,
                Action::Track(tracked) => self.track(&tracked, false),
                Action::Welcome { session, .. } if session.generation < self.told => {
                    return Err(format!("{} takes an engine after it promised not to", self.meta.replica));
                }
                Action::Welcome { welcome, session, .. } => {
                    self.told = session.generation;
                    self.session = session.number;
                    self.engine = Some(engine);
                    return Ok(Ok(Welcome { stamps: self.stamps, ..*welcome }));
                }
                Action::Refuse { refused, .. } => return Ok(Err(refused)),
                Action::AnswerView { .. } => return Err("an answer that nobody asked for".to_owned()),
            }
        }
        Err("a handshake without an answer".to_owned())
    }

    fn clean(&self) -> bool {
        !self.dirty && !self.cannot_flush
    }

    /// An fsync fails.
    pub(super) fn flush_fails(&mut self) -> Result<(), String> {
        self.cannot_flush = true;
        self.core.handle_sync_failed("fsync".to_owned());
        while let Some(action) = self.core.poll_action() {
            if let Action::Persist { meta, begin } = action {
                self.persist(*meta, &begin)?;
            }
        }
        Ok(())
    }

    /// The connection is gone, and all that it had submitted has ended.
    pub(super) fn session_ended(&mut self) -> Result<(), String> {
        self.engine = None;
        self.core.handle_session_ended(self.session, self.clean());
        while let Some(action) = self.core.poll_action() {
            if let Action::Persist { meta, begin } = action {
                self.persist(*meta, &begin)?;
            }
        }
        Ok(())
    }

    /// The process is killed and another one started; `lost`: the node was, and of what was not flushed these blocks
    /// are gone.
    pub(super) fn restart(&mut self, lost: Option<u8>) {
        if let Some(lost) = lost {
            self.boot += 1;
            self.lose(lost);
        }
        self.engine = None;
        if let Some(next) = reopened(&self.meta, self.boot()) {
            self.meta = next;
        }
        self.dirty = self.meta.unflushed;
        self.cannot_flush = !self.meta.failed.is_empty();
        self.core = Replica::new(self.meta.clone(), self.boot());
        self.open_maps();
    }

    /// Of what was not flushed, these blocks are gone; what is left is on the disk.
    pub(super) fn lose(&mut self, lost: u8) {
        for block in 0..BLOCKS {
            if lost >> block & 1 == 1 {
                self.data[block] = self.stable[block];
            }
        }
        self.stable = self.data;
    }

    /// This disk in the place of `now`'s, in a node that has just started.
    pub(super) fn put_back(&self, now: &Self) -> Self {
        let mut node = self.clone();
        node.boot = now.boot;
        node.restart(Some(0));
        node.older = node.data != now.data || node.meta.basis != now.meta.basis || node.pages != now.pages;
        node
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
            Kind::Write | Kind::Trim | Kind::WriteZeroes => {
                let (offset, len) = (frame.header.offset, frame.header.extent);
                if frame.header.flags & FLAG_FILL == 0 && !self.tracking.admit(offset, len) {
                    self.write_pages();
                    if !self.tracking.is_admitted(offset, len) {
                        return Err("a write that is never admitted".to_owned());
                    }
                }
                self.write(frame);
            }
            Kind::Read => {
                let hole = self.data[blocks].iter().all(|value| *value == 0);
                if hole && frame.header.flags & FLAG_SPARSE != 0 {
                    reply.header.flags = FLAG_HOLE;
                } else {
                    reply.data = self.data;
                    reply.header.length = u32::try_from(frame.header.extent).expect("small");
                }
            }
            Kind::Flush if self.cannot_flush => reply.header.status = Status::Failed,
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
            Kind::ReadMap => {
                let (name, rounds) = MapName::decode(&frame.bytes).map_err(|error| error.to_string())?;
                let (map, base) = match name {
                    MapName::Intent => (MapId::Intent, None),
                    MapName::Dirty(replica) => (MapId::Dirty(replica), self.tracking.base(replica)),
                };
                reply.inline = MapPart::told(base, vec![self.tracking.word(map, 0)], rounds).encode();
                reply.header.length = u32::try_from(reply.inline.len()).expect("small");
            }
            Kind::EditMap => self.edit_map(&frame.bytes)?,
        }
        Ok(reply)
    }

    fn edit_map(&mut self, bytes: &[u8]) -> Result<(), String> {
        let bits = |words: Vec<u64>, bytes: u64| {
            let mut map = RegionMap::of(SIZE.div_ceil(bytes));
            words.iter().enumerate().for_each(|(index, word)| map.insert_word(index, *word));
            map
        };
        match MapEdit::decode(bytes).map_err(|error| error.to_string())? {
            MapEdit::Settled { words } => self.tracking.clear(&bits(words, GROUP_BYTES)),
            MapEdit::Copied { replica, words } => self.tracking.has_now(replica, 0, &words),
        }
        self.write_pages();
        Ok(())
    }

    /// The regions that a replica may lack as this one knows, if it goes back to when that one was a member.
    pub(super) fn lacks(&self, other: &Self) -> Option<u64> {
        let id = other.meta.replica;
        let reaches = self
            .tracking
            .base(id)
            .zip(other.meta.basis)
            .is_some_and(|(base, basis)| base <= basis || !kept(Rule::BasisReaches));
        reaches.then(|| self.tracking.word(MapId::Dirty(id), 0) | other.tracking.word(MapId::Intent, 0))
    }

    /// The regions in which this replica may differ from other members.
    pub(super) fn intent(&self) -> u64 {
        self.tracking.word(MapId::Intent, 0)
    }

    fn persist_view(&mut self, frame: &Frame) -> Result<Status, String> {
        let update = frame.update.as_deref().ok_or("a view without a view")?;
        self.core.handle_view(1, Generation(frame.header.generation), *update);
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Persist { meta, begin } => self.persist(*meta, &begin)?,
                Action::Track(tracked) => self.track(&tracked, false),
                Action::AnswerView { status, reopen, .. } => {
                    if reopen {
                        // What the failed fsync did not put on the disk is not there, whatever the page cache showed.
                        self.data = self.stable;
                        self.cannot_flush = false;
                    }
                    return Ok(status);
                }
                other => return Err(format!("not an answer to a view: {other:?}")),
            }
        }
        Err("a view without an answer".to_owned())
    }

    /// What it would say of itself to an engine that fenced it now.
    pub(super) fn welcome(&self) -> Welcome {
        Welcome { stamps: self.stamps, ..welcome(&self.meta, 0) }
    }
}

fn hello(meta: &Meta, generation: Generation, engine: InstanceUuid) -> Hello {
    Hello {
        version_min: 2,
        version_max: 2,
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
