//! A replica of the seeded world: the real promises, views and maps, over a disk that loses what was not flushed.

use std::collections::{BTreeMap, VecDeque};

use holdfast_proto::ids::{
    BootId, Generation, Incarnation, InstanceUuid, Lineage, ProcessUuid, ReplicaId, VolumeId,
};
use holdfast_proto::record::{ReplicaSet, View};

use super::{Frame, Random, SIZE};
use crate::core::region_map::RegionMap;
use crate::core::replica::{Action, Replica, Tracked, reopened};
use crate::core::tracking::{MapId, Page, Tracking};
use crate::layout::Meta;
use crate::layout::bitmap::PAGE_WORDS;
use crate::units::{BLOCK_BYTES, GROUP_BYTES, REGION_BYTES, to_usize};
use crate::wire::handshake::{Hello, Refused, Role, Welcome};
use crate::wire::header::{FLAG_FILL, FLAG_FUA, FLAG_HOLE, FLAG_SPARSE, Header, Kind, Status};
use crate::wire::map::{MapEdit, MapName, MapPart};
use crate::wire::payload::{Extent, ViewUpdate, encode_extents};

pub(super) struct Reply {
    pub(super) header: Header,
    pub(super) payload: Vec<u64>,
    pub(super) inline: Vec<u8>,
}

/// What one replica has.
pub(super) struct Disk {
    pub(super) data: BTreeMap<u64, u64>,
    /// As the last flush left it.
    pub(super) stable: BTreeMap<u64, u64>,
    boot: u128,
    core: Replica,
    /// An fsync failed, and nothing has been filled anew since: no flush is claimed.
    cannot_flush: bool,
    tracking: Tracking,
    /// The bitmap files, and pages on their way to them.
    pages: BTreeMap<Page, Vec<u64>>,
    writing: VecDeque<(Page, Vec<u64>)>,
    /// Changes that wait for their group's bit.
    waiting: Vec<Frame>,
    pub(super) up: bool,
    pub(super) session: u64,
}

fn boot_id(boot: u128) -> BootId {
    BootId(uuid::Uuid::from_u128(boot))
}

impl Disk {
    pub(super) fn new(replica: ReplicaId, configured: ReplicaSet, view: View) -> Self {
        let meta = Meta {
            node: "node-a".parse().unwrap(),
            volume: VolumeId(uuid::Uuid::nil()),
            volume_name: "demo".parse().unwrap(),
            replica,
            size_bytes: SIZE,
            lineage: Lineage::nil(),
            promised: Generation(0),
            promised_to: InstanceUuid::nil(),
            view,
            configured,
            incarnation: Incarnation::nil(),
            revision: 0,
            // One that is made later has nothing.
            syncing: !view.members.contains(replica),
            boot: BootId::nil(),
            unflushed: false,
            cache_lost: false,
            failed: String::new(),
            basis: view.members.contains(replica).then(|| view.stamp(0)),
            settled: None,
            dirty: Vec::new(),
            unknown: Vec::new(),
        };
        let mut disk = Self {
            data: BTreeMap::new(),
            stable: BTreeMap::new(),
            boot: 1,
            core: Replica::new(meta, boot_id(1)),
            cannot_flush: false,
            tracking: Tracking::new(SIZE, RegionMap::of(0)),
            pages: BTreeMap::new(),
            writing: VecDeque::new(),
            waiting: Vec::new(),
            up: true,
            session: 0,
        };
        disk.open();
        disk
    }

    pub(super) fn boot(&self) -> BootId {
        boot_id(self.boot)
    }
    pub(super) fn meta(&self) -> &Meta {
        self.core.meta()
    }

    /// A process opens what is on the disk.
    fn open(&mut self) {
        let mut meta = self.core.meta().clone();
        if let Some(next) = reopened(&meta, self.boot()) {
            meta = next;
        }
        let tracked = Tracked::of(&meta);
        self.cannot_flush = !meta.failed.is_empty();
        self.core = Replica::new(meta, self.boot());
        self.waiting.clear();
        self.tracking = Tracking::new(SIZE, self.map(MapId::Intent, SIZE.div_ceil(GROUP_BYTES)));
        let maps: Vec<_> = tracked
            .dirty
            .iter()
            .map(|map| {
                let bits = self.map(MapId::Dirty(map.replica), SIZE.div_ceil(REGION_BYTES));
                (map.replica, map.base, Some(bits))
            })
            .collect();
        self.tracking.keep(maps);
    }

    fn map(&self, id: MapId, bits: u64) -> RegionMap {
        let mut map = RegionMap::of(bits);
        for (page, words) in self.pages.iter().filter(|(page, _)| page.map == id) {
            assert_eq!(page.page, 0, "the model's maps have one page");
            words.iter().enumerate().for_each(|(index, word)| map.insert_word(index, *word));
        }
        map
    }

    /// The process is killed and started again: what was on its way to the disk is there or not.
    pub(super) fn restart(&mut self, random: &mut Random) {
        while let Some((page, words)) = self.writing.pop_front() {
            if random.one_in(2) {
                self.pages.insert(page, words);
            }
        }
        self.open();
    }

    /// The node restarts: of what was not flushed, each block is there or not.
    pub(super) fn reboot(&mut self, random: &mut Random) {
        let blocks: Vec<_> = self.data.keys().chain(self.stable.keys()).copied().collect();
        for block in blocks {
            if random.one_in(2) {
                match self.stable.get(&block) {
                    Some(value) => self.data.insert(block, *value),
                    None => self.data.remove(&block),
                };
            }
        }
        self.stable = self.data.clone();
        self.boot += 1;
        self.restart(random);
    }

    pub(super) fn fence(&mut self, generation: Generation, engine: InstanceUuid) -> Result<Welcome, Refused> {
        let meta = self.core.meta();
        let hello = Hello {
            version_min: 2,
            version_max: 2,
            features: 0,
            payload_bytes_max: 1,
            volume: meta.volume,
            replica: meta.replica,
            key_id: 1,
            role: Role::Engine,
            lineage: meta.lineage,
            generation,
            engine,
            epoch: holdfast_proto::ids::Epoch(0),
            process: ProcessUuid(uuid::Uuid::nil()),
            boot: BootId::nil(),
            nonce: [0; 32],
        };
        // What waits was submitted by the older connection: it ends before the promise.
        self.waiting.clear();
        self.core.handle_fence(1, hello);
        let clean = self.data == self.stable;
        loop {
            match self.core.poll_action().expect("an answer") {
                Action::DropSession => self.core.handle_dropped(0, clean),
                Action::Welcome { welcome, .. } => return Ok(*welcome),
                Action::Refuse { refused, .. } => return Err(refused),
                Action::AnswerView { .. } => unreachable!("no view was asked for"),
                action => self.act(action),
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Persist { begin, .. } => {
                for new in begin {
                    let word = if new.full { u64::MAX } else { 0 };
                    let page = Page { map: MapId::Dirty(new.replica), page: 0 };
                    self.writing.retain(|(other, _)| *other != page);
                    self.pages.insert(page, vec![word; PAGE_WORDS]);
                }
                self.core.handle_persisted(Ok(()));
            }
            Action::Track(tracked) => {
                let maps: Vec<_> = tracked
                    .dirty
                    .iter()
                    .map(|map| {
                        let begun = tracked.begun.iter().any(|new| new.replica == map.replica);
                        let bits = self.map(MapId::Dirty(map.replica), SIZE.div_ceil(REGION_BYTES));
                        (map.replica, map.base, begun.then_some(bits))
                    })
                    .collect();
                self.tracking.keep(maps);
            }
            Action::DropSession
            | Action::Welcome { .. }
            | Action::Refuse { .. }
            | Action::AnswerView { .. } => unreachable!("dealt with by the caller"),
        }
    }

    fn view(&mut self, generation: Generation, update: ViewUpdate) -> Status {
        self.core.handle_view(1, generation, update);
        loop {
            match self.core.poll_action().expect("an answer") {
                Action::AnswerView { status, reopen, .. } => {
                    self.cannot_flush &= !reopen;
                    return status;
                }
                action => self.act(action),
            }
        }
    }

    fn sync_failed(&mut self) {
        self.cannot_flush = true;
        self.core.handle_sync_failed("fsync".to_owned());
        while let Some(action) = self.core.poll_action() {
            self.act(action);
        }
    }

    /// A page reaches the disk, or not; what waited for it goes on. The replies.
    pub(super) fn disk_turn(&mut self, fails: bool) -> Vec<Reply> {
        while let Some(page) = self.tracking.poll_page() {
            let words = (0..PAGE_WORDS).map(|index| self.tracking.page_word(page, index)).collect();
            self.writing.push_back((page, words));
        }
        let Some((page, words)) = self.writing.pop_front() else { return Vec::new() };
        if !fails {
            self.pages.insert(page, words);
        }
        self.tracking.page_written(page, !fails);
        let mut replies = Vec::new();
        for frame in std::mem::take(&mut self.waiting) {
            let (offset, len) = (frame.header.offset, frame.len());
            if self.tracking.is_admitted(offset, len) {
                replies.push(self.change(&frame, false));
            } else if self.tracking.is_awaited(offset, len) {
                self.waiting.push(frame);
            } else {
                replies.push(reply(frame.header.answer(Status::Io)));
            }
        }
        replies
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_empty() && self.waiting.is_empty()
    }

    fn change(&mut self, frame: &Frame, bad: bool) -> Reply {
        let h = frame.header;
        let first = h.offset / BLOCK_BYTES;
        let blocks = first..first + frame.len() / BLOCK_BYTES;
        let fua = h.flags & FLAG_FUA != 0;
        for (at, block) in blocks.enumerate() {
            match frame.payload.get(at) {
                Some(value) => self.data.insert(block, *value),
                None => self.data.remove(&block),
            };
            if fua {
                match frame.payload.get(at) {
                    Some(value) => self.stable.insert(block, *value),
                    None => self.stable.remove(&block),
                };
            }
        }
        reply(h.answer(if bad { Status::NoSpace } else { Status::Ok }))
    }

    /// Does what a frame says. None: it waits for its group's bit.
    pub(super) fn carry_out(&mut self, frame: Frame, bad: bool) -> Option<Reply> {
        let h = frame.header;
        let meta = self.core.meta();
        if Generation(h.generation) != meta.promised {
            return Some(reply(h.answer(Status::Fenced)));
        }
        let (first, count) = (h.offset / BLOCK_BYTES, h.extent / BLOCK_BYTES);
        let blocks = first..first + count;
        let mut out = reply(h.answer(Status::Ok));
        match h.kind {
            Kind::Write | Kind::Trim | Kind::WriteZeroes => {
                let fill = h.flags & FLAG_FILL != 0;
                if !fill && !self.tracking.admit(h.offset, frame.len()) {
                    self.waiting.push(frame);
                    return None;
                }
                return Some(self.change(&frame, bad));
            }
            Kind::Read => {
                let all_hole = blocks.clone().all(|block| !self.data.contains_key(&block));
                if h.flags & FLAG_SPARSE != 0 && all_hole {
                    out.header.flags = FLAG_HOLE;
                } else {
                    out.payload = blocks.map(|b| self.data.get(&b).copied().unwrap_or(0)).collect();
                    out.header.length = u32::try_from(h.extent).unwrap();
                }
            }
            Kind::Flush => {
                if self.cannot_flush {
                    out.header.status = Status::Failed;
                } else if bad {
                    self.sync_failed();
                    out.header.status = Status::Failed;
                } else {
                    self.stable = self.data.clone();
                }
            }
            Kind::Ping => {}
            Kind::PersistView => {
                let update = frame.update.expect("with its payload");
                assert!(update.view.order() >= meta.view.order(), "I4: a view goes back");
                out.header.status = self.view(Generation(h.generation), update);
            }
            Kind::Extents => {
                let runs: Vec<_> = blocks
                    .map(|block| Extent { len: BLOCK_BYTES, allocated: self.data.contains_key(&block) })
                    .fold(Vec::new(), |mut runs: Vec<Extent>, run| {
                        match runs.last_mut() {
                            Some(last) if last.allocated == run.allocated => last.len += run.len,
                            _ => runs.push(run),
                        }
                        runs
                    });
                out.set_inline(encode_extents(&runs));
            }
            Kind::Digest => {
                let mut sum = 1u64;
                for (block, value) in self.data.range(blocks).filter(|(_, value)| **value != 0) {
                    sum = sum.wrapping_mul(31).wrapping_add(block.wrapping_mul(7)).wrapping_add(*value);
                }
                out.set_inline(sum.to_le_bytes().repeat(4));
            }
            Kind::ReadMap => {
                let (name, rounds) = MapName::decode(&frame.bytes).expect("a name");
                let (map, base) = match name {
                    MapName::Intent => (MapId::Intent, None),
                    MapName::Dirty(replica) => (MapId::Dirty(replica), self.tracking.base(replica)),
                };
                let words = 0..to_usize(h.extent.div_ceil(REGION_BYTES).div_ceil(64));
                let words = words.map(|index| self.tracking.word(map, index)).collect();
                out.set_inline(MapPart::told(base, words, rounds).encode());
            }
            Kind::EditMap => {
                let bits = |words: Vec<u64>, bytes: u64| {
                    let mut map = RegionMap::of(SIZE.div_ceil(bytes));
                    words.iter().enumerate().for_each(|(index, word)| map.insert_word(index, *word));
                    map
                };
                match MapEdit::decode(&frame.bytes).expect("an edit") {
                    MapEdit::Settled { words } => self.tracking.clear(&bits(words, GROUP_BYTES)),
                    MapEdit::Copied { replica, words } => self.tracking.has_now(replica, 0, &words),
                }
            }
        }
        Some(out)
    }
}

fn reply(header: Header) -> Reply {
    Reply { header, payload: Vec::new(), inline: Vec::new() }
}

impl Reply {
    fn set_inline(&mut self, inline: Vec<u8>) {
        self.header.length = u32::try_from(inline.len()).unwrap();
        self.inline = inline;
    }
}
