//! The write-intent and dirty maps: the real tracking over simulated bitmap files, as `replica::maps` does it.

use std::collections::BTreeMap;

use holdfast_dataplane::core::region_map::RegionMap;
use holdfast_dataplane::core::replica::{NewMap, Tracked};
use holdfast_dataplane::core::tracking::{MapId, Page, Tracking};
use holdfast_dataplane::layout::Meta;
use holdfast_dataplane::layout::bitmap::{PAGE_BYTES, decode_page, encode_page};
use holdfast_dataplane::units::{GROUP_BYTES, REGION_BYTES, to_usize};
use holdfast_dataplane::wire::header::FLAG_FILL;
use holdfast_dataplane::wire::map::{MapEdit, MapName, MapPart, is_map_range};
use holdfast_dataplane::wire::{Header, Kind, Status};

use super::queue::MS;
use super::random::Random;
use super::replica::{FileOp, What};
use super::serve::range_len;
use super::world::{Event, World};

type Bytes = Box<[u8]>;

/// The bitmap files of a replica. Each has one page here; a write of it is on stable storage when it ends.
#[derive(Debug, Default, Clone)]
pub(super) struct Files {
    /// The file's number (a file made in the place of another is another), and its page.
    files: BTreeMap<MapId, (u64, Bytes)>,
    made: u64,
}

impl Files {
    pub(super) fn new() -> Self {
        let mut files = Self::default();
        files.make(MapId::Intent, false);
        files
    }
    fn make(&mut self, map: MapId, full: bool) {
        let mut bytes = vec![0; PAGE_BYTES];
        encode_page(0, |_| if full { u64::MAX } else { 0 }, &mut bytes);
        self.made += 1;
        self.files.insert(map, (self.made, bytes.into()));
    }
    /// Opens a map; one that is missing or damaged counts as full.
    fn open(&mut self, map: MapId, bits: u64) -> (u64, RegionMap) {
        if !self.files.contains_key(&map) {
            self.make(map, true);
        }
        let mut found = RegionMap::of(bits);
        let (number, bytes) = &self.files[&map];
        decode_page(bytes, 0, |index, word| found.insert_word(index, word));
        (*number, found)
    }
    /// Makes the maps that a meta names first.
    pub(super) fn begin(&mut self, begin: &[NewMap]) {
        for new in begin {
            self.make(MapId::Dirty(new.replica), new.full);
        }
    }
    /// Removes those that do not count any more.
    pub(super) fn remove_stale(&mut self, meta: &Meta) {
        self.files.retain(|map, _| match map {
            MapId::Intent => true,
            MapId::Dirty(replica) => meta.dirty.iter().any(|dirty| dirty.replica == *replica),
        });
    }
    fn write(&mut self, write: &Write) {
        if let Some((number, bytes)) = self.files.get_mut(&write.page.map)
            && *number == write.file
        {
            bytes.clone_from(&write.bytes);
        }
    }
    /// A write is cut off by the end of its process, or of its node: then it may be torn at a sector.
    fn cut_off(&mut self, write: &Write, with_its_node: bool, random: &mut Random) {
        if !with_its_node {
            if random.coin() {
                self.write(write);
            }
            return;
        }
        if let Some((number, bytes)) = self.files.get_mut(&write.page.map)
            && *number == write.file
        {
            for (old, new) in bytes.chunks_mut(512).zip(write.bytes.chunks(512)) {
                if random.coin() {
                    old.copy_from_slice(new);
                }
            }
        }
    }
}

/// A page on its way.
#[derive(Debug)]
struct Write {
    token: u64,
    page: Page,
    file: u64,
    bytes: Bytes,
}

/// What the data thread has of the maps.
#[derive(Debug)]
pub(super) struct Maps {
    tracking: Tracking,
    files: BTreeMap<MapId, u64>,
    writes: Vec<Write>,
    next_token: u64,
    /// Changes that wait for their group's bit, in the order of their arrival.
    pub(super) waiting: Vec<FileOp>,
}

impl Maps {
    /// As an opened directory has them.
    pub(super) fn open(files: &mut Files, meta: &Meta) -> Self {
        files.remove_stale(meta);
        let (number, intent) = files.open(MapId::Intent, meta.size_bytes.div_ceil(GROUP_BYTES));
        let mut maps = Self {
            tracking: Tracking::new(meta.size_bytes, intent),
            files: BTreeMap::from([(MapId::Intent, number)]),
            writes: Vec::new(),
            next_token: 0,
            waiting: Vec::new(),
        };
        maps.track(files, &Tracked::of(meta), meta.size_bytes);
        maps
    }

    pub(super) fn track(&mut self, files: &mut Files, tracked: &Tracked, size: u64) {
        let mut kept = BTreeMap::from([(MapId::Intent, self.files[&MapId::Intent])]);
        let mut maps = Vec::new();
        for map in &tracked.dirty {
            let id = MapId::Dirty(map.replica);
            let begun = tracked.begun.iter().any(|new| new.replica == map.replica);
            let old = self.files.get(&id).copied();
            let (file, bits) = match old {
                Some(file) if !begun => (file, None),
                Some(_) | None => {
                    let (file, bits) = files.open(id, size.div_ceil(REGION_BYTES));
                    (file, Some(bits))
                }
            };
            kept.insert(id, file);
            maps.push((map.replica, map.base, bits));
        }
        self.files = kept;
        self.tracking.keep(maps);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn admit(&mut self, header: &Header) -> bool {
        header.flags & FLAG_FILL != 0 || self.tracking.admit(header.offset, range_len(header))
    }

    /// Its process ends.
    pub(super) fn cut_off(self, files: &mut Files, with_its_node: bool, random: &mut Random) {
        for write in &self.writes {
            files.cut_off(write, with_its_node, random);
        }
    }

    fn part(&self, header: &Header, name: MapName, rounds: bool) -> MapPart {
        let (map, base) = match name {
            MapName::Intent => (MapId::Intent, None),
            MapName::Dirty(replica) => (MapId::Dirty(replica), self.tracking.base(replica)),
        };
        let first = to_usize(header.offset / REGION_BYTES / 64);
        let count = to_usize(header.extent.div_ceil(REGION_BYTES).div_ceil(64));
        let words = (first..first + count).map(|index| self.tracking.word(map, index)).collect();
        MapPart::told(base, words, rounds)
    }

    fn edit(&mut self, header: &Header, edit: MapEdit, size: u64) {
        let bit_bytes = match edit {
            MapEdit::Settled { .. } => GROUP_BYTES,
            MapEdit::Copied { .. } => REGION_BYTES,
        };
        let first = to_usize(header.offset / bit_bytes / 64);
        match &edit {
            MapEdit::Settled { words } => {
                let mut bits = RegionMap::of(size.div_ceil(bit_bytes));
                for (index, word) in (first..).zip(words) {
                    bits.insert_word(index, *word);
                }
                self.tracking.clear(&bits);
            }
            MapEdit::Copied { replica, words } => self.tracking.has_now(*replica, first, words),
        }
    }
}

impl World {
    /// Sends the pages off that have to be.
    pub(super) fn write_pages(&mut self, slot: usize) {
        loop {
            let host = &mut self.replicas[slot];
            let run = host.run;
            let Some(open) = &mut host.open else { return };
            let maps = &mut open.maps;
            let Some(page) = maps.tracking.poll_page() else { return };
            let Some(file) = maps.files.get(&page.map).copied() else {
                maps.tracking.page_written(page, false);
                continue;
            };
            let mut bytes = vec![0; PAGE_BYTES];
            encode_page(page.page, |index| maps.tracking.page_word(page, index), &mut bytes);
            maps.next_token += 1;
            let token = maps.next_token;
            maps.writes.push(Write { token, page, file, bytes: bytes.into() });
            let takes = 20 + self.random.below(3 * MS);
            let at = (self.queue.now() + takes).max(self.replicas[slot].stalled_until);
            self.queue.at(at, Event::PageWritten { replica: slot, run, token });
        }
    }

    pub(super) fn page_written(&mut self, slot: usize, token: u64) {
        let bad_one_in = self.replicas[slot].bad_one_in;
        let ok = !self.random.one_in(bad_one_in);
        let host = &mut self.replicas[slot];
        let Some(open) = &mut host.open else { return };
        let maps = &mut open.maps;
        let Some(at) = maps.writes.iter().position(|write| write.token == token) else { return };
        let write = maps.writes.swap_remove(at);
        if ok {
            host.map_files.write(&write);
        }
        if maps.files.get(&write.page.map) == Some(&write.file) {
            maps.tracking.page_written(write.page, ok);
        }
        if write.page.map == MapId::Intent {
            self.let_in(slot);
        }
        self.settle_replica(slot);
    }

    /// Carries out the changes whose bits are there; those whose bits cannot be written fail.
    fn let_in(&mut self, slot: usize) {
        let mut at = 0;
        while let Some(maps) = self.replicas[slot].open.as_mut().map(|open| &mut open.maps) {
            let Some(op) = maps.waiting.get(at) else { return };
            let (offset, len) = (op.header.offset, range_len(&op.header));
            let admitted = maps.tracking.is_admitted(offset, len);
            if !admitted && maps.tracking.is_awaited(offset, len) {
                at += 1;
                continue;
            }
            let FileOp { conn, header, what } = maps.waiting.remove(at);
            if admitted {
                self.begin(slot, conn, &header, what);
            } else {
                self.reply(slot, conn, &header, Status::Io);
            }
        }
    }

    /// A change of the data: now, or once its group's bit is on stable storage.
    pub(super) fn change(&mut self, slot: usize, conn: usize, header: &Header, what: What) {
        let Some(open) = &mut self.replicas[slot].open else { return };
        if open.maps.admit(header) {
            self.begin(slot, conn, header, what);
        } else {
            open.maps.waiting.push(FileOp { conn, header: *header, what });
        }
    }

    /// `ReadMap` and `EditMap`. False: it makes no sense.
    pub(super) fn map_frame(&mut self, slot: usize, conn: usize, header: &Header, payload: &[u8]) -> bool {
        let size = self.size;
        let Some(open) = &mut self.replicas[slot].open else { return true };
        if header.kind == Kind::ReadMap {
            let Ok((name, rounds)) = MapName::decode(payload) else { return false };
            if !is_map_range(header.offset, header.extent, REGION_BYTES) {
                return false;
            }
            let part = open.maps.part(header, name, rounds).encode();
            self.reply_small(slot, conn, header, part);
            return true;
        }
        let Ok(edit) = MapEdit::decode(payload) else { return false };
        let bit_bytes = match &edit {
            MapEdit::Settled { .. } => GROUP_BYTES,
            MapEdit::Copied { .. } => REGION_BYTES,
        };
        if !is_map_range(header.offset, header.extent, bit_bytes) {
            return false;
        }
        open.maps.edit(header, edit, size);
        self.reply(slot, conn, header, Status::Ok);
        true
    }
}
