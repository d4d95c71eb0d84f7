//! The write-intent and dirty maps on the data thread: changes that wait for their group's bit, pages on their way to the
//! disk, and what the engine asks of the maps. What is remembered and when is decided in [`crate::core::tracking`].

use super::data::{Data, OPS_MAX, Op, What};
use super::messages::Track;
use super::request::Request;
use super::serve::status_of;
use crate::core::region_map::RegionMap;
use crate::core::tracking::{MapId, PAGES_AT_ONCE, Page, Tracking};
use crate::io::{Buf, ConnId, Driver, Errno, FileId};
use crate::layout::bitmap::{PAGE_BYTES, encode_page, page_offset};
use crate::units::{GROUP_BYTES, REGION_BYTES, to_usize};
use crate::wire::map::{MapEdit, MapName, MapPart, is_map_range};
use crate::wire::{Header, Kind, Status};

/// Page writes go by names above this; operations by their place in the table, far below.
const TOKENS_FROM: u64 = 1 << 62;
/// Of the intent map, and of a map for each replica of a set.
pub(super) const PAGES_MAX: usize = 9 * PAGES_AT_ONCE;

/// A page on its way.
#[derive(Debug)]
struct Write {
    token: u64,
    page: Page,
    file: FileId,
}

/// The maps of one replica and their files.
#[derive(Debug)]
pub(super) struct Maps {
    tracking: Tracking,
    files: Vec<(MapId, FileId)>,
    /// Replaced while a page was on its way to them.
    retired: Vec<FileId>,
    writes: Vec<Write>,
    next_token: u64,
    /// Operations that wait for a bit, in the order of their arrival.
    waiting: Vec<(u64, Option<Buf>)>,
}

impl Maps {
    pub(super) fn new(driver: &mut Driver, size_bytes: u64, intent: (std::fs::File, RegionMap)) -> Self {
        let (file, map) = intent;
        Self {
            tracking: Tracking::new(size_bytes, map),
            files: vec![(MapId::Intent, driver.add_file(file.into()))],
            retired: Vec::new(),
            writes: Vec::with_capacity(PAGES_MAX),
            next_token: TOKENS_FROM,
            waiting: Vec::with_capacity(OPS_MAX),
        }
    }

    pub(super) fn track(&mut self, driver: &mut Driver, track: Track) {
        let mut kept = Vec::with_capacity(track.dirty.len());
        let mut maps = Vec::with_capacity(track.dirty.len());
        for one in track.dirty {
            let id = MapId::Dirty(one.map.replica);
            let old = self.files.iter().find(|(map, _)| *map == id).map(|(_, file)| *file);
            let (file, bits) = match (one.new, old) {
                (Some((file, bits)), _) => (driver.add_file(file.into()), Some(bits)),
                (None, Some(file)) => (file, None),
                (None, None) => continue,
            };
            kept.push((id, file));
            maps.push((one.map.replica, one.map.base, bits));
        }
        for (map, file) in self.files.drain(..) {
            match map {
                MapId::Intent => kept.push((map, file)),
                MapId::Dirty(_) if kept.iter().any(|(_, other)| *other == file) => {}
                MapId::Dirty(_) => self.retired.push(file),
            }
        }
        self.files = kept;
        self.tracking.keep(maps);
        self.close_retired(driver);
    }

    fn close_retired(&mut self, driver: &mut Driver) {
        self.retired.retain(|file| {
            let busy = driver.files_in_flight(*file) > 0;
            if !busy {
                driver.remove_file(*file);
            }
            busy
        });
    }

    /// Whether a change may be made now; else it waits.
    pub(super) fn admit(&mut self, header: &Header) -> bool {
        let len = super::request::range_len(header);
        header.flags & crate::wire::header::FLAG_FILL != 0 || self.tracking.admit(header.offset, len)
    }

    /// A page of the maps has been written, if the token names one.
    fn take_write(&mut self, token: u64) -> Option<Write> {
        let at = self.writes.iter().position(|write| write.token == token)?;
        Some(self.writes.swap_remove(at))
    }

    fn is_current(&self, write: &Write) -> bool {
        self.files.contains(&(write.page.map, write.file))
    }
}

/// Whether a completion is one of [`Data::page_written`].
pub(super) fn is_page(token: u64) -> bool {
    (TOKENS_FROM..super::data::WRITEBACK_TOKEN).contains(&token)
}

impl Data {
    /// Keeps a change until its group's bit is on stable storage.
    pub(super) fn wait_for_intent(
        &mut self,
        conn: ConnId,
        header: &Header,
        request: Request,
        buf: Option<Buf>,
    ) {
        let token = self.ops.insert(Op { conn, header: *header, what: What::Waiting(request) });
        self.maps.waiting.push((token, buf));
    }

    /// Sends the pages off that have to be.
    pub(super) fn write_pages(&mut self) {
        while self.maps.writes.len() < PAGES_MAX {
            // Without memory they go once some is given back: whatever holds it ends without them.
            let Some(mut buf) = self.driver.pool().alloc(PAGE_BYTES) else { return };
            let Some(page) = self.maps.tracking.poll_page() else { return };
            let Some((_, file)) = self.maps.files.iter().find(|(map, _)| *map == page.map).copied() else {
                self.maps.tracking.page_written(page, false);
                continue;
            };
            let tracking = &self.maps.tracking;
            let out = buf.get_mut().expect("a new buffer is unshared");
            encode_page(page.page, |index| tracking.page_word(page, index), out);
            let token = self.maps.next_token;
            self.maps.next_token += 1;
            self.maps.writes.push(Write { token, page, file });
            self.driver.write(file, token, page_offset(page.page), buf, 0..PAGE_BYTES);
        }
    }

    pub(super) fn page_written(&mut self, token: u64, result: Result<usize, Errno>) {
        let Some(write) = self.maps.take_write(token) else { return };
        if self.maps.is_current(&write) {
            self.maps.tracking.page_written(write.page, result.is_ok());
        }
        self.maps.close_retired(&mut self.driver);
        if write.page.map == MapId::Intent {
            self.let_in(result.err().unwrap_or(Errno::EIO));
        }
    }

    /// Carries out the changes whose bits are there; those whose bits cannot be written fail.
    fn let_in(&mut self, errno: Errno) {
        let mut at = 0;
        while let Some((token, _)) = self.maps.waiting.get(at) {
            let token = *token;
            let header = self.ops.header(token);
            let len = super::request::range_len(&header);
            let admitted = self.maps.tracking.is_admitted(header.offset, len);
            if !admitted && self.maps.tracking.is_awaited(header.offset, len) {
                at += 1;
                continue;
            }
            let (_, buf) = self.maps.waiting.remove(at);
            let Op { conn, what, .. } = self.ops.remove(token);
            match what {
                What::Waiting(request) if admitted => self.carry_out(conn, &header, request, buf),
                _ => self.reply(conn, &header, status_of(errno)),
            }
        }
    }

    fn carry_out(&mut self, conn: ConnId, header: &Header, request: Request, buf: Option<Buf>) {
        match (request, buf) {
            (Request::Write { fua }, Some(buf)) => self.write_whole(conn, header, buf, fua),
            (Request::Zero { punch, fua }, _) => self.zero(conn, header, punch, fua),
            (
                Request::Write { .. }
                | Request::Read { .. }
                | Request::Flush
                | Request::Ping
                | Request::PersistView
                | Request::Extents
                | Request::Digest
                | Request::ReadMap
                | Request::EditMap,
                _,
            ) => unreachable!("only changes wait for their bit"),
        }
    }

    /// What a map says of a range.
    pub(super) fn map_part(&self, header: &Header, payload: &[u8]) -> Result<Vec<u8>, String> {
        let (name, rounds) = MapName::decode(payload).map_err(|e| format!("{:?}: {e}", Kind::ReadMap))?;
        if !is_map_range(header.offset, header.extent, REGION_BYTES) {
            return Err(format!("{:?} of {} bytes at {}", Kind::ReadMap, header.extent, header.offset));
        }
        let (map, base) = match name {
            MapName::Intent => (MapId::Intent, None),
            MapName::Dirty(replica) => (MapId::Dirty(replica), self.maps.tracking.base(replica)),
        };
        let first = to_usize(header.offset / REGION_BYTES / 64);
        let count = to_usize(header.extent.div_ceil(REGION_BYTES).div_ceil(64));
        let words = (first..first + count).map(|index| self.maps.tracking.word(map, index)).collect();
        Ok(MapPart::told(base, words, rounds).encode())
    }

    /// Changes a map as the engine says.
    pub(super) fn edit_map(&mut self, header: &Header, payload: &[u8]) -> Result<Status, String> {
        let edit = MapEdit::decode(payload).map_err(|e| format!("{:?}: {e}", Kind::EditMap))?;
        let bit_bytes = match edit {
            MapEdit::Settled { .. } => GROUP_BYTES,
            MapEdit::Copied { .. } => REGION_BYTES,
        };
        if !is_map_range(header.offset, header.extent, bit_bytes) {
            return Err(format!("{:?} of {} bytes at {}", Kind::EditMap, header.extent, header.offset));
        }
        let first = to_usize(header.offset / bit_bytes / 64);
        match &edit {
            MapEdit::Settled { words } => {
                let mut bits = RegionMap::of(self.size_bytes.div_ceil(bit_bytes));
                for (index, word) in (first..).zip(words) {
                    bits.insert_word(index, *word);
                }
                self.maps.tracking.clear(&bits);
            }
            MapEdit::Copied { replica, words } => self.maps.tracking.has_now(*replica, first, words),
        }
        Ok(Status::Ok)
    }
}
