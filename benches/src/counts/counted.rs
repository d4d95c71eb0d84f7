//! What is counted. Each function here is one that callgrind collects in, from its entry to its return: no closures, whose
//! names would look like another entry, and nothing of the preparation.

use std::hint::black_box;

use holdfast_dataplane::core::region_map::RegionMap;
use holdfast_dataplane::core::tracking::Tracking;
use holdfast_dataplane::units::GROUP_BYTES;
use holdfast_dataplane::wire::{Header, Kind};

use super::engine::Rig;
use super::nbd::Link;

/// How often each operation is done: what is paid once does not show in what is paid each time.
pub const OPERATIONS: u64 = 200;
const VOLUME_BYTES: u64 = 1 << 30;

/// One thing that is counted.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// As committed.
    pub name: &'static str,
    /// The function's own name, in this module.
    pub function: &'static str,
    /// Prepares, and calls it once.
    pub run: fn(),
}

macro_rules! counted {
    ($name:literal, $function:ident, $prepare:expr) => {
        Counted { name: $name, function: stringify!($function), run: || $function(&mut $prepare) }
    };
}

/// All of it, in the order in which it runs.
pub const ALL: [Counted; 10] = [
    counted!("wire/encode_request", wire_encode_request, write_request()),
    counted!("wire/decode_request", wire_decode_request, write_request().encode()),
    counted!("engine/write_4k", engine_write_4k, Rig::warm(VOLUME_BYTES)),
    counted!("engine/read_4k", engine_read_4k, Rig::warm(VOLUME_BYTES)),
    counted!("engine/flush", engine_flush, Rig::warm(VOLUME_BYTES)),
    counted!("map/insert_4k", map_insert_4k, RegionMap::empty(VOLUME_BYTES)),
    counted!("map/next_of_sparse", map_next_of_sparse, sparse_map()),
    counted!("tracking/admit_4k", tracking_admit_4k, tracking()),
    counted!("nbd/write_4k", nbd_write_4k, Link::warm(VOLUME_BYTES)),
    counted!("nbd/read_4k", nbd_read_4k, Link::warm(VOLUME_BYTES)),
];

/// What a replica is sent most often.
#[must_use]
pub fn write_request() -> Header {
    Header {
        sequence: 77,
        offset: 123 << 12,
        length: 4096,
        payload_crc: 0x1234_5678,
        ..Header::request(Kind::Write, 42, 3)
    }
}

/// One region in 1,000 of a map of 64 Ki.
fn sparse_map() -> RegionMap {
    let mut map = RegionMap::of(64 * 1024);
    for region in (0..64 * 1024).step_by(1000) {
        map.insert(region);
    }
    map
}

/// All groups are set and on the disk, as under a load that goes on.
fn tracking() -> Tracking {
    let mut groups = RegionMap::of(VOLUME_BYTES.div_ceil(GROUP_BYTES));
    groups.insert_all();
    Tracking::new(VOLUME_BYTES, groups)
}

/// A place that is not the one before, within `VOLUME_BYTES`.
fn place(number: u64) -> u64 {
    number * 37 * 4096 % VOLUME_BYTES
}

#[inline(never)]
fn wire_encode_request(header: &mut Header) {
    for _ in 0..OPERATIONS {
        black_box(black_box(&*header).encode());
    }
}

#[inline(never)]
fn wire_decode_request(bytes: &mut [u8; holdfast_dataplane::wire::HEADER_BYTES]) {
    for _ in 0..OPERATIONS {
        let decoded = Header::decode(black_box(bytes.as_slice()));
        assert!(black_box(decoded).is_ok());
    }
}

#[inline(never)]
fn engine_write_4k(rig: &mut Rig) {
    for number in 0..OPERATIONS {
        rig.write(place(number));
    }
}

#[inline(never)]
fn engine_read_4k(rig: &mut Rig) {
    for number in 0..OPERATIONS {
        rig.read(place(number));
    }
}

#[inline(never)]
fn engine_flush(rig: &mut Rig) {
    for _ in 0..OPERATIONS {
        rig.flush();
    }
}

#[inline(never)]
fn map_insert_4k(map: &mut RegionMap) {
    for number in 0..OPERATIONS {
        black_box(&mut *map).insert_bytes(black_box(place(number)), 4096);
        assert!(black_box(&*map).touches(black_box(place(number)), 4096));
    }
}

#[inline(never)]
fn map_next_of_sparse(map: &mut RegionMap) {
    for number in 0..OPERATIONS {
        black_box(black_box(&*map).next_from(black_box(number * 300)));
    }
}

#[inline(never)]
fn tracking_admit_4k(tracking: &mut Tracking) {
    for number in 0..OPERATIONS {
        assert!(black_box(&mut *tracking).admit(black_box(place(number)), 4096));
    }
}

#[inline(never)]
fn nbd_write_4k(link: &mut Link) {
    for number in 0..OPERATIONS {
        link.write(place(number));
    }
}

#[inline(never)]
fn nbd_read_4k(link: &mut Link) {
    for number in 0..OPERATIONS {
        link.read(place(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is counted does what it says: each checks its own outcome.
    #[test]
    fn everything_that_is_counted_runs() {
        for case in ALL {
            (case.run)();
        }
    }
}
