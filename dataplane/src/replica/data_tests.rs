//! The data thread over real TCP, with a real image.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use holdfast_proto::ids::{Epoch, Generation, Incarnation, Lineage, ReplicaId};
use holdfast_proto::record::{ReplicaSet, Stamp, View};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::config::IoMode;
use super::data::{DataHandle, DataOptions, spawn};
use super::messages::{FromData, ToData, Track, TrackFor};
use super::test_engine::{PATIENCE, TestEngine};
use crate::core::region_map::RegionMap;
use crate::core::replica::Session;
use crate::io::SpinMode;
use crate::layout::bitmap::{decode_page, encode_page};
use crate::layout::meta::DirtyMap;
use crate::units::{GROUP_BYTES, REGION_BYTES};
use crate::wire::handshake::Terms;
use crate::wire::header::{FLAG_FILL, FLAG_FUA, FLAG_HOLE, FLAG_PUNCH, FLAG_SPARSE};
use crate::wire::map::{MapEdit, MapName, MapPart};
use crate::wire::payload::{Adopt, Extent, ViewUpdate, decode_extents};
use crate::wire::{FEATURE_TAGS, Header, Kind, Status};

const SIZE: u64 = 8 << 20;
const K64: usize = 64 * 1024;
const R2: ReplicaId = ReplicaId(2);
const BASE: Stamp = Stamp { generation: Generation(1), epoch: Epoch(1), round: 3 };

struct Fixture {
    data: DataHandle,
    events: mpsc::Receiver<FromData>,
    sessions: u64,
    tmp: tempfile::TempDir,
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..=250u8).cycle().skip(usize::from(seed)).take(len).collect()
}

/// A bitmap file without a bit, of one page.
fn map_file(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let mut page = vec![0; 4096];
    encode_page(0, |_| 0, &mut page);
    file.set_len(4096).unwrap();
    file.write_all_at(&page, 4096).unwrap();
    file
}

/// Of one of two replicas; the other is away.
fn options(dir: &Path) -> DataOptions {
    let map = DirtyMap { replica: R2, base: BASE };
    let new = Some((map_file(&dir.join("dirty-r2.bm")), RegionMap::of(SIZE.div_ceil(REGION_BYTES))));
    DataOptions {
        size_bytes: SIZE,
        io_mode: IoMode::Buffered,
        spin: SpinMode::default(),
        dirty: false,
        failed: false,
        intent: (map_file(&dir.join("intent.bm")), RegionMap::of(SIZE.div_ceil(GROUP_BYTES))),
        track: Track { dirty: vec![TrackFor { map, new }] },
    }
}

/// The bits of a page as the file has them.
fn bits(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let mut map = RegionMap::of(64);
    assert!(decode_page(&bytes[4096..8192], 0, |index, word| map.insert_word(index, word)), "a sound page");
    map.iter().collect()
}

fn start_in(tmp: tempfile::TempDir, dir: &Path, io_mode: IoMode, size_bytes: u64) -> Option<Fixture> {
    let flags = if io_mode == IoMode::Direct { nix::fcntl::OFlag::O_DIRECT.bits() } else { 0 };
    let image = match OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(flags)
        .open(dir.join("head.img"))
    {
        Ok(image) => image,
        Err(e) => {
            eprintln!("SKIPPED: the file system of {} has no O_DIRECT: {e}", dir.display());
            return None;
        }
    };
    image.set_len(size_bytes).unwrap();
    let options = DataOptions { size_bytes, io_mode, ..options(dir) };
    let (data, events) = spawn(image, options).unwrap();
    Some(Fixture { data, events, sessions: 0, tmp })
}

fn start(io_mode: IoMode) -> Option<Fixture> {
    // Not in /tmp, which may have no O_DIRECT: beside the build.
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let tmp = tempfile::tempdir_in(base).or_else(|_| tempfile::tempdir()).unwrap();
    let dir = tmp.path().to_owned();
    start_in(tmp, &dir, io_mode, SIZE)
}

fn both_modes(test: impl Fn(Fixture)) {
    for io_mode in [IoMode::Buffered, IoMode::Direct] {
        if let Some(fixture) = start(io_mode) {
            test(fixture);
        }
    }
}

impl Fixture {
    fn engine(&mut self, generation: u64) -> TestEngine {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0.into();
        self.sessions += 1;
        let session = Session { number: self.sessions, generation: Generation(generation) };
        let terms = Terms { version: 3, features: FEATURE_TAGS, payload_bytes_max: 262_144 };
        self.data.send(ToData::Attach { socket, session, terms });
        TestEngine::new(stream, generation)
    }

    fn event(&mut self) -> FromData {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, self.events.recv()).await.unwrap().unwrap() })
    }

    fn ended(&mut self) -> (bool, String) {
        match self.event() {
            FromData::SessionEnded { session, clean, reason } => {
                assert_eq!(session.number, self.sessions);
                (clean, reason)
            }
            other => panic!("expected the end of the session, found {other:?}"),
        }
    }

    /// Asks for the end of the present session and waits for it.
    fn dropped(&mut self) -> (u64, bool) {
        self.data.send(ToData::Drop);
        match self.event() {
            FromData::Dropped { flush_sequence, clean } => (flush_sequence, clean),
            other => panic!("expected the drop, found {other:?}"),
        }
    }
}

#[test]
fn what_is_written_is_read_and_lies_in_the_image() {
    both_modes(|mut fixture| {
        let mut engine = fixture.engine(3);
        let (small, large) = (pattern(1, 4096), pattern(2, 256 * 1024));
        assert_eq!(engine.write(4096, &small, 0), Status::Ok);
        assert_eq!(engine.write(1 << 20, &large, FLAG_FUA), Status::Ok);
        assert_eq!(engine.read(4096, 4096), small);
        assert_eq!(engine.read(1 << 20, 256 * 1024), large);
        assert_eq!(engine.read(0, 4096), vec![0; 4096]);
        assert_eq!(engine.flush(), Status::Ok);
        assert_eq!(engine.range(Kind::Ping, 0, 0, 0).0.status, Status::Ok);
        let image = std::fs::read(fixture.tmp.path().join("head.img")).unwrap();
        assert_eq!(&image[4096..8192], small);
        assert_eq!(&image[1 << 20..(1 << 20) + large.len()], large);
        drop(engine);
        assert!(fixture.ended().0, "all was flushed");
    });
}

#[test]
fn many_frames_at_once_in_any_packets_are_all_answered() {
    both_modes(|mut fixture| {
        let mut engine = fixture.engine(1);
        let mut bytes = Vec::new();
        let mut tags = Vec::new();
        for n in 0..600u16 {
            let len = [4096, 8192, K64, 4096][usize::from(n % 4)];
            let payload = pattern(n.to_le_bytes()[0], len);
            let header = engine.header(Kind::Write, u64::from(n % 60) * (128 * 1024), 0);
            tags.push(header.tag);
            bytes.extend(TestEngine::frame(header, &payload));
        }
        let mut writer = engine.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for (n, part) in bytes.chunks(10_007).enumerate() {
                writer.write_all(part).unwrap();
                if n % 7 == 0 {
                    writer.write_all(&[]).unwrap();
                }
            }
        });
        let mut answered: Vec<u64> = (0..600)
            .map(|_| {
                let (reply, _) = engine.receive();
                assert_eq!(reply.status, Status::Ok);
                reply.tag
            })
            .collect();
        sender.join().unwrap();
        answered.sort_unstable();
        assert_eq!(answered, tags);
        assert_eq!(engine.flush(), Status::Ok);
        assert!(fixture.dropped().1);
    });
}

#[test]
fn more_reads_than_buffers_wait_their_turn() {
    both_modes(|mut fixture| {
        let mut engine = fixture.engine(1);
        let payload = pattern(9, 256 * 1024);
        engine.write(0, &payload, 0);
        let mut bytes = Vec::new();
        for _ in 0..200 {
            let header = engine.header(Kind::Read, 0, 256 * 1024);
            bytes.extend(TestEngine::frame(header, &[]));
        }
        engine.stream.write_all(&bytes).unwrap();
        for _ in 0..200 {
            let (reply, read) = engine.receive();
            assert_eq!((reply.status, read.len()), (Status::Ok, payload.len()));
            assert!(read == payload);
        }
    });
}

#[test]
fn zeros_holes_extents_and_digests() {
    both_modes(|mut fixture| {
        let mut engine = fixture.engine(1);
        let payload = pattern(3, K64);
        let k64 = 64 * 1024;
        for n in 0..4 {
            engine.write(n * k64, &payload, 0);
        }
        assert_eq!(engine.range(Kind::Trim, 0, k64, 0).0.status, Status::Ok);
        assert_eq!(engine.range(Kind::WriteZeroes, k64, k64, FLAG_PUNCH).0.status, Status::Ok);
        assert_eq!(engine.range(Kind::WriteZeroes, 2 * k64, k64, FLAG_FUA).0.status, Status::Ok);
        assert_eq!(engine.read(0, 3 * k64), vec![0; 3 * K64]);
        assert_eq!(engine.read(3 * k64, k64), payload);

        let (reply, bytes) = engine.range(Kind::Extents, 0, SIZE, 0);
        assert_eq!(reply.status, Status::Ok);
        let extents = decode_extents(&bytes).unwrap();
        assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), SIZE);
        assert!(!extents[0].allocated && extents[0].len >= 2 * k64, "{extents:?}");
        assert_eq!(extents.last().unwrap(), &Extent { len: SIZE - 4 * k64, allocated: false });

        let (reply, bytes) = engine.range(Kind::Read, 0, k64, FLAG_SPARSE);
        assert_eq!((reply.flags, bytes.len()), (FLAG_HOLE, 0));
        let (reply, bytes) = engine.range(Kind::Read, 3 * k64, k64, FLAG_SPARSE);
        assert_eq!((reply.flags, bytes), (0, payload.clone()));

        let (reply, bytes) = engine.range(Kind::Digest, 3 * k64, k64, 0);
        assert_eq!((reply.flags, bytes.as_slice()), (0, Sha256::digest(&payload).as_slice()));
        let (reply, _) = engine.range(Kind::Digest, 4 * k64, SIZE - 4 * k64, 0);
        assert_eq!(
            (reply.status, reply.flags),
            (Status::Ok, FLAG_HOLE),
            "a hole of any length is told at once"
        );
        assert_eq!(engine.range(Kind::Digest, 0, SIZE, 0).0.status, Status::Invalid);
        assert_eq!(engine.range(Kind::Read, 0, SIZE, 0).0.status, Status::Invalid);
    });
}

#[test]
fn what_cannot_be_is_answered_and_the_connection_goes_on() {
    both_modes(|mut fixture| {
        let mut engine = fixture.engine(1);
        for (offset, len) in [(SIZE, 4096), (SIZE - 4096, 8192), (1, 4096), (0, 100), (u64::MAX - 4095, 4096)]
        {
            assert_eq!(engine.write(offset, &pattern(0, len), 0), Status::Invalid);
        }
        for kind in [Kind::Read, Kind::Trim, Kind::WriteZeroes, Kind::Extents, Kind::Digest] {
            assert_eq!(engine.range(kind, 512, 4096, 0).0.status, Status::Invalid, "{kind:?}");
            assert_eq!(engine.range(kind, 0, 0, 0).0.status, Status::Invalid, "{kind:?}");
        }
        assert_eq!(engine.write(0, &pattern(0, 4096), 0), Status::Ok);
    });
}

#[test]
fn a_frame_of_another_generation_is_fenced_and_closes() {
    let mut fixture = start(IoMode::Buffered).unwrap();
    let mut engine = fixture.engine(5);
    assert_eq!(engine.write(0, &pattern(1, 4096), 0), Status::Ok);
    engine.generation = Generation(4);
    assert_eq!(engine.write(0, &pattern(2, 4096), 0), Status::Fenced);
    assert!(engine.until_closed().is_empty());
    let (clean, reason) = fixture.ended();
    assert!(!clean && reason.contains("generation 4"), "{reason}");
    let mut next = fixture.engine(5);
    assert_eq!(next.read(0, 4096), pattern(1, 4096));
}

#[test]
fn bad_bytes_close_the_connection_and_nothing_else() {
    both_modes(|mut fixture| {
        let good = |engine: &mut TestEngine| {
            let header = engine.header(Kind::Write, 8192, 0);
            TestEngine::frame(header, &pattern(7, 8192))
        };
        let mut first = fixture.engine(1);
        assert_eq!(first.write(8192, &pattern(1, 8192), 0), Status::Ok);
        let length = good(&mut first).len();
        drop(first);
        fixture.ended();
        type Damage = Box<dyn Fn(&mut TestEngine, Vec<u8>) -> Vec<u8>>;
        let mut damages: Vec<(String, Damage)> = vec![
            ("random bytes".to_owned(), Box::new(|_, _| vec![0xa5; 5000])),
            (
                "a damaged payload".to_owned(),
                Box::new(|_, mut b| {
                    *b.last_mut().unwrap() ^= 1;
                    b
                }),
            ),
            (
                "a reply".to_owned(),
                Box::new(|e, _| Header { reply: true, ..e.header(Kind::Ping, 0, 0) }.encode().to_vec()),
            ),
            (
                "a read with payload".to_owned(),
                Box::new(|e, _| TestEngine::frame(e.header(Kind::Read, 0, 4096), &[1; 4096])),
            ),
            (
                "a view of too few bytes".to_owned(),
                Box::new(|e, _| TestEngine::frame(e.header(Kind::PersistView, 0, 0), &[1; 9])),
            ),
            (
                "a length beyond the maximum".to_owned(),
                Box::new(|e, _| Header { length: u32::MAX, ..e.header(Kind::Write, 0, 0) }.encode().to_vec()),
            ),
        ];
        for at in [0, 4, 5, 6, 48, 60] {
            damages.push((
                format!("byte {at} damaged"),
                Box::new(move |_, mut b| {
                    b[at] ^= 0x10;
                    b
                }),
            ));
        }
        for (name, damage) in damages {
            let mut engine = fixture.engine(1);
            let bytes = good(&mut engine);
            let bytes = damage(&mut engine, bytes);
            // It may close while we write.
            let _ = engine.stream.write_all(&bytes);
            assert!(engine.until_closed().is_empty(), "{name}");
            let (_, reason) = fixture.ended();
            assert!(reason.starts_with("bad frame"), "{name}: {reason}");
        }
        for cut in [1, 63, 64, 65, length - 1] {
            let mut engine = fixture.engine(1);
            let bytes = good(&mut engine);
            engine.stream.write_all(&bytes[..cut]).unwrap();
            engine.stream.shutdown(Shutdown::Write).unwrap();
            assert!(engine.until_closed().is_empty());
            fixture.ended();
        }
        let mut last = fixture.engine(1);
        assert_eq!(last.read(8192, 8192), pattern(1, 8192), "nothing of it was written");
    });
}

#[test]
fn a_view_is_answered_once_it_is_persisted() {
    let mut fixture = start(IoMode::Buffered).unwrap();
    let mut engine = fixture.engine(2);
    let update = ViewUpdate {
        view: View {
            generation: Generation(2),
            epoch: Epoch(1),
            members: ReplicaSet::checked([1, 2]).unwrap(),
            needs_registry: false,
        },
        configured: ReplicaSet::checked([1, 2]).unwrap(),
        lineage: Lineage::random(),
        incarnation: Incarnation::random(),
        revision: 1,
        syncing: false,
        repaired: false,
        keep: ReplicaSet::new(),
        refill: ReplicaSet::new(),
        rebased: false,
        adopt: Adopt::default(),
        new_history: false,
        stamp: None,
    };
    let header = engine.header(Kind::PersistView, 0, 0);
    engine.send(header, &update.encode(true));
    let FromData::View { from, update: asked } = fixture.event() else { panic!("expected the view") };
    assert_eq!(*asked, update);
    // The data path does not wait for it.
    assert_eq!(engine.write(0, &pattern(1, 4096), 0), Status::Ok);
    fixture.data.send(ToData::AnswerView { from, status: Status::Invalid, reopen: false });
    let (reply, _) = engine.receive();
    assert_eq!((reply.kind, reply.tag, reply.status), (Kind::PersistView, header.tag, Status::Invalid));
}

#[test]
fn a_reconnect_finds_what_the_flush_covered() {
    let mut fixture = start(IoMode::Buffered).unwrap();
    let mut engine = fixture.engine(2);
    engine.write(0, &pattern(1, 4096), 0);
    assert_eq!(engine.flush(), Status::Ok);
    let flushed = engine.header(Kind::Ping, 0, 0).sequence - 1;
    assert_eq!(fixture.dropped(), (flushed, true));
    assert!(engine.until_closed().is_empty());
    let mut again = fixture.engine(2);
    again.write(0, &pattern(2, 4096), 0);
    assert_eq!(fixture.dropped(), (flushed, false));
    let _other = fixture.engine(3);
    assert_eq!(fixture.dropped(), (0, false), "another engine's flush");
    assert_eq!(fixture.dropped(), (0, false), "a repeat is answered too");
}

#[test]
fn a_drain_flushes_and_takes_no_more() {
    both_modes(|mut fixture| {
        let mut engine = fixture.engine(2);
        assert_eq!(engine.write(0, &pattern(1, 4096), 0), Status::Ok);
        fixture.data.send(ToData::Drain);
        assert!(matches!(fixture.event(), FromData::Drained(Ok(()))));
        assert!(engine.until_closed().is_empty());
        assert!(fixture.ended().0);
    });
}

#[test]
fn after_a_failed_fsync_no_flush_is_claimed_until_all_is_filled_anew() {
    let tmp = tempfile::tempdir().unwrap();
    let image = tmp.path().join("head.img");
    std::fs::write(&image, vec![0; K64]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&image).unwrap();
    let options = DataOptions { size_bytes: 64 * 1024, dirty: true, failed: true, ..options(tmp.path()) };
    let (data, events) = spawn(file, options).unwrap();
    let mut fixture = Fixture { data, events, sessions: 0, tmp };
    let mut engine = fixture.engine(1);
    assert_eq!(engine.write(0, &pattern(1, 4096), 0), Status::Ok);
    assert_eq!(engine.write(0, &pattern(1, 4096), FLAG_FUA), Status::Failed);
    assert_eq!(engine.flush(), Status::Failed);
    let header = engine.header(Kind::PersistView, 0, 0);
    let update = ViewUpdate {
        view: View {
            generation: Generation(1),
            epoch: Epoch(1),
            members: ReplicaSet::new(),
            needs_registry: false,
        },
        configured: ReplicaSet::new(),
        lineage: Lineage::nil(),
        incarnation: Incarnation::nil(),
        revision: 0,
        syncing: true,
        repaired: false,
        keep: ReplicaSet::new(),
        refill: ReplicaSet::new(),
        rebased: false,
        adopt: Adopt::default(),
        new_history: false,
        stamp: None,
    };
    engine.send(header, &update.encode(true));
    let FromData::View { from, .. } = fixture.event() else { panic!("expected the view") };
    fixture.data.send(ToData::AnswerView { from, status: Status::Ok, reopen: true });
    assert_eq!(engine.receive().0.status, Status::Ok);
    assert_eq!(engine.flush(), Status::Ok);
}

/// The null device takes every write, and has no write-back.
#[test]
fn after_a_failed_write_back_no_flush_is_claimed() {
    let tmp = tempfile::tempdir().unwrap();
    let image = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let (data, events) = spawn(image, options(tmp.path())).unwrap();
    let mut fixture = Fixture { data, events, sessions: 0, tmp };
    let mut engine = fixture.engine(1);
    let region = pattern(1, usize::try_from(REGION_BYTES).unwrap());
    // What it is filled with goes to the disk long before a flush.
    for n in 0..SIZE / REGION_BYTES {
        assert_eq!(engine.write(n * REGION_BYTES, &region, FLAG_FILL), Status::Ok);
    }
    let FromData::SyncFailed { reason } = fixture.event() else { panic!("expected the failure") };
    assert!(reason.starts_with("write-back: ESPIPE"), "{reason}");
    assert_eq!(engine.flush(), Status::Failed);
}

/// A small tmpfs: it can be full, and it cannot zero a range by itself.
#[test]
fn a_full_disk_is_told_as_such_and_zeros_are_written_where_they_cannot_be_allocated() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("full");
    std::fs::create_dir(&dir).unwrap();
    if let Err(e) = mount(Some("none"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=256k")) {
        eprintln!("SKIPPED: mounting a tmpfs needs root: {e}");
        return;
    }
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    let _unmount = Unmount(dir.clone());
    let mut fixture = start_in(tmp, &dir, IoMode::Buffered, 1 << 20).unwrap();
    let mut engine = fixture.engine(1);
    let payload = pattern(1, K64);
    let k64 = 64 * 1024;
    let mut full = 0;
    for n in 0..8 {
        match engine.write(n * k64, &payload, 0) {
            Status::Ok => {}
            status => {
                assert_eq!(status, Status::NoSpace);
                full += 1;
            }
        }
    }
    assert!(full >= 4);
    assert_eq!(engine.read(0, k64), payload, "what was taken is there");
    assert_eq!(engine.range(Kind::Trim, 0, k64, 0).0.status, Status::Ok, "room can be made");
    assert_eq!(engine.range(Kind::WriteZeroes, k64, k64, 0).0.status, Status::Ok);
    assert_eq!(engine.read(k64, k64), vec![0; K64]);
    assert_eq!(engine.write(0, &payload, 0), Status::Ok);
}

#[test]
fn the_image_is_what_plain_tools_read() {
    let mut fixture = start(IoMode::Buffered).unwrap();
    let mut engine = fixture.engine(1);
    let image = OpenOptions::new().write(true).open(fixture.tmp.path().join("head.img")).unwrap();
    image.write_all_at(&pattern(5, 4096), 12288).unwrap();
    assert_eq!(engine.read(12288, 4096), pattern(5, 4096));
}

#[test]
fn the_intent_is_on_the_disk_before_the_write_is_answered_and_goes_when_all_is_settled() {
    both_modes(|mut fixture| {
        let (intent, dirty) = (fixture.tmp.path().join("intent.bm"), fixture.tmp.path().join("dirty-r2.bm"));
        let mut engine = fixture.engine(1);
        let part = |engine: &mut TestEngine, name: MapName| {
            let header = engine.header(Kind::ReadMap, 0, SIZE);
            MapPart::decode(&engine.call(header, &name.encode(true)).1).unwrap()
        };
        assert_eq!(part(&mut engine, MapName::Intent).words, [0]);
        // A copy to a replica that is being filled is remembered by the members.
        assert_eq!(engine.write(REGION_BYTES, &pattern(1, 4096), FLAG_FILL), Status::Ok);
        assert_eq!(part(&mut engine, MapName::Intent).words, [0]);
        assert_eq!(engine.write(GROUP_BYTES + REGION_BYTES, &pattern(1, 4096), 0), Status::Ok);
        assert_eq!(bits(&intent), [1], "the second group");
        assert_eq!(part(&mut engine, MapName::Intent).words, [1 << 17], "and of it one region");
        let lacks = part(&mut engine, MapName::Dirty(R2));
        assert_eq!((lacks.base, lacks.words), (Some(BASE), vec![1 << 17]));
        assert_eq!(part(&mut engine, MapName::Dirty(ReplicaId(3))).base, None, "nothing is known of it");
        assert_eq!(engine.range(Kind::Trim, 0, REGION_BYTES, 0).0.status, Status::Ok);
        assert_eq!(bits(&intent), [0, 1]);
        assert!(!dirty.exists() || bits(&dirty).is_empty());
        let header = engine.header(Kind::EditMap, 0, SIZE);
        let settled = MapEdit::Settled { words: vec![0b11] }.encode();
        assert_eq!(engine.call(header, &settled).0.status, Status::Ok);
        // The pages follow by themselves, one after the other.
        let deadline = std::time::Instant::now() + PATIENCE;
        while !bits(&intent).is_empty() {
            assert!(std::time::Instant::now() < deadline, "the intent is never cleared");
            engine.range(Kind::Ping, 0, 0, 0);
        }
        assert_eq!(bits(&dirty), [0, 17], "on the disk before the intent was cleared");
        assert_eq!(part(&mut engine, MapName::Dirty(R2)).words, [1 << 17 | 1]);
        let header = engine.header(Kind::EditMap, 0, SIZE);
        let copied = MapEdit::Copied { replica: R2, words: vec![1] }.encode();
        assert_eq!(engine.call(header, &copied).0.status, Status::Ok);
        assert_eq!(part(&mut engine, MapName::Dirty(R2)).words, [1 << 17]);
    });
}

#[test]
fn a_map_frame_that_makes_no_sense_ends_the_connection() {
    for (kind, offset, payload) in [
        (Kind::ReadMap, 0, vec![9, 0, 0, 0, 0]),
        (Kind::ReadMap, 4096, MapName::Intent.encode(false)),
        (Kind::EditMap, 0, vec![1, 0, 0, 0, 0, 7]),
        (Kind::EditMap, 0, Vec::new()),
    ] {
        let mut fixture = start(IoMode::Buffered).unwrap();
        let mut engine = fixture.engine(1);
        let header = engine.header(kind, offset, SIZE);
        engine.send(header, &payload);
        engine.until_closed();
        fixture.ended();
    }
}
