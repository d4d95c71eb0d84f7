//! The pages of `intent.bm` and `dirty-<id>.bm`: bytes to bits and back. `docs/disk-format.md` shows them.
//!
//! What cannot be read counts as set: a bit too many costs a comparison or a copy, a bit too few loses data.

use holdfast_proto::ids::{ReplicaId, VolumeId};

use crate::bytes_codec::{FieldError, Reader, Writer};
use crate::units::{to_u64, to_usize};

/// The size of every page, the first one (which says what the file is) included.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words in a page.
pub const PAGE_WORDS: usize = (PAGE_BYTES - PAGE_PREFIX_BYTES) / 8;
/// Bits in a page.
pub const PAGE_BITS: u64 = PAGE_WORDS as u64 * 64;
const PAGE_PREFIX_BYTES: usize = 16;
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"HFBP");
const FILE_MAGIC: &[u8; 8] = b"HFBITMAP";
const VERSION: u32 = 1;

/// What a bitmap file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The volume.
    pub volume: VolumeId,
    /// The replica whose directory it is in.
    pub replica: ReplicaId,
    /// Of a dirty map: the replica that misses these regions. None: the write-intent map.
    pub of: Option<ReplicaId>,
    /// How many bits.
    pub bits: u64,
}

/// Why a file is not the bitmap that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// Cut off.
    #[error("expected at least {PAGE_BYTES} bytes, found {0}")]
    Short(usize),
    /// Not a bitmap.
    #[error("expected a file that starts with HFBITMAP, found {0:02x?}")]
    Magic(Vec<u8>),
    /// Written by another version.
    #[error("expected format version {VERSION}, found {0}")]
    Version(u32),
    /// Damaged.
    #[error("checksum: expected {expected:#010x}, found {found:#010x}")]
    Crc {
        /// Carried by the file.
        expected: u32,
        /// Computed over it.
        found: u32,
    },
    /// Another replica's, or of another size.
    #[error("expected the map of {expected:?}, found that of {found:?}")]
    Label {
        /// What was looked for.
        expected: Label,
        /// What it is.
        found: Label,
    },
    /// A field does not say what its type needs.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// How many pages of bits a map of `bits` has.
#[must_use]
pub fn pages(bits: u64) -> u32 {
    u32::try_from(bits.div_ceil(PAGE_BITS)).unwrap_or(u32::MAX)
}

/// Where a page of bits is in its file.
#[must_use]
pub fn page_offset(page: u32) -> u64 {
    (u64::from(page) + 1) * to_u64(PAGE_BYTES)
}

/// The page that holds this bit.
#[must_use]
pub fn page_of(bit: u64) -> u32 {
    u32::try_from(bit / PAGE_BITS).unwrap_or(u32::MAX)
}

/// The first page of a file.
#[must_use]
pub fn encode_label(label: &Label) -> Vec<u8> {
    let mut body = Writer::new();
    body.uuid(label.volume.0).u32(label.replica.0).u32(label.of.map_or(0, |of| of.0)).u64(label.bits);
    let body = body.into_bytes();
    let mut out = Writer::new();
    out.raw(FILE_MAGIC).u32(VERSION).u32(crc32fast::hash(&body)).raw(&body);
    let mut bytes = out.into_bytes();
    bytes.resize(PAGE_BYTES, 0);
    bytes
}

/// Checks the first page of a file.
///
/// # Errors
/// When it is not the one that was looked for.
pub fn check_label(bytes: &[u8], expected: &Label) -> Result<(), BitmapError> {
    if bytes.len() < PAGE_BYTES {
        return Err(BitmapError::Short(bytes.len()));
    }
    let mut r = Reader::new(bytes);
    let magic = r.take("magic", FILE_MAGIC.len())?;
    if magic != FILE_MAGIC {
        return Err(BitmapError::Magic(magic.to_vec()));
    }
    let version = r.u32("version")?;
    if version != VERSION {
        return Err(BitmapError::Version(version));
    }
    let crc = r.u32("crc")?;
    let body = r.take("body", 32)?;
    let found = crc32fast::hash(body);
    if found != crc {
        return Err(BitmapError::Crc { expected: crc, found });
    }
    let mut r = Reader::new(body);
    let found = Label {
        volume: VolumeId(r.uuid("volume")?),
        replica: ReplicaId(r.u32("replica")?),
        of: Some(r.u32("of")?).filter(|of| *of != 0).map(ReplicaId),
        bits: r.u64("bits")?,
    };
    if found == *expected { Ok(()) } else { Err(BitmapError::Label { expected: *expected, found }) }
}

/// Writes the bits of `page` into `out`, which has [`PAGE_BYTES`].
///
/// # Panics
/// When `out` is shorter.
pub fn encode_page(page: u32, word: impl Fn(usize) -> u64, out: &mut [u8]) {
    let (prefix, body) = out[..PAGE_BYTES].split_at_mut(PAGE_PREFIX_BYTES);
    let first = first_word(page);
    for (index, bytes) in body.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(first + index).to_le_bytes());
    }
    prefix[..4].copy_from_slice(&PAGE_MAGIC.to_le_bytes());
    prefix[4..8].copy_from_slice(&page.to_le_bytes());
    prefix[8..12].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    prefix[12..].fill(0);
}

/// Hands each word of `page` to `insert`, with its place among all words of the map. False: the bytes cannot be read,
/// and every bit of the page counts as set. So does a page of zeros: every page is written when its file is made, and
/// zeros in its place are a block that was lost.
pub fn decode_page(bytes: &[u8], page: u32, mut insert: impl FnMut(usize, u64)) -> bool {
    let first = first_word(page);
    match read_page(bytes, page) {
        Some(body) => {
            for (index, bytes) in body.chunks_exact(8).enumerate() {
                let mut word = [0; 8];
                word.copy_from_slice(bytes);
                insert(first + index, u64::from_le_bytes(word));
            }
            true
        }
        None => {
            (0..PAGE_WORDS).for_each(|index| insert(first + index, u64::MAX));
            false
        }
    }
}

fn read_page(bytes: &[u8], page: u32) -> Option<&[u8]> {
    let bytes = bytes.get(..PAGE_BYTES)?;
    let body = &bytes[PAGE_PREFIX_BYTES..];
    let mut r = Reader::new(bytes);
    let good = r.u32("magic").ok()? == PAGE_MAGIC
        && r.u32("page").ok()? == page
        && r.u32("crc").ok()? == crc32fast::hash(body);
    good.then_some(body)
}

fn first_word(page: u32) -> usize {
    to_usize(u64::from(page)) * PAGE_WORDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    /// A map as its words.
    struct Map(Vec<u64>);

    impl Map {
        fn of(bits: u64) -> Self {
            Self(vec![0; to_usize(bits.div_ceil(64))])
        }
        fn insert(&mut self, bit: u64) {
            self.0[to_usize(bit / 64)] |= 1 << (bit % 64);
        }
        fn word(&self, index: usize) -> u64 {
            self.0.get(index).copied().unwrap_or(0)
        }
        fn count(&self) -> u64 {
            self.0.iter().map(|word| u64::from(word.count_ones())).sum()
        }
    }

    fn decode(bytes: &[u8], page: u32, map: &mut Map) -> bool {
        decode_page(bytes, page, |index, word| {
            if let Some(place) = map.0.get_mut(index) {
                *place |= word;
            }
        })
    }

    fn label() -> Label {
        Label {
            volume: VolumeId(Uuid::from_u128(1)),
            replica: ReplicaId(2),
            of: Some(ReplicaId(3)),
            bits: 100_000,
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode_label(&label());
        let hex: String = bytes[..48].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "48464249544d4150010000009c8245e4000000000000000000000000000000010200000003000000a086010000000000"
        );
        let mut map = Map::of(100_000);
        [0, 63, 32_640, 65_279].iter().for_each(|bit| map.insert(*bit));
        let mut page = vec![0xff; PAGE_BYTES];
        encode_page(1, |index| map.word(index), &mut page);
        let hex: String = page[..24].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "484642500100000031793aba000000000100000000000000");
    }

    #[test]
    fn a_label_is_checked() {
        let good = encode_label(&label());
        assert_eq!(check_label(&good, &label()), Ok(()));
        let other = Label { of: None, ..label() };
        assert!(matches!(check_label(&good, &other), Err(BitmapError::Label { .. })));
        assert_eq!(check_label(&good[..100], &label()), Err(BitmapError::Short(100)));
        for at in 0..48 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(check_label(&bad, &label()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn bitmap_damaged_or_zeroed_page_counts_as_set() {
        let bits = 2 * PAGE_BITS - 128;
        let mut page = vec![0; PAGE_BYTES];
        let mut map = Map::of(bits);
        assert!(!decode(&page, 1, &mut map), "F-W3: a block that was lost");
        assert_eq!(map.count(), PAGE_BITS - 128);
        let mut map = Map::of(bits);
        encode_page(1, |_| 0, &mut page);
        page[700] ^= 1;
        assert!(!decode(&page, 1, &mut map));
        assert_eq!((map.count(), map.word(PAGE_WORDS - 1)), (PAGE_BITS - 128, 0));
        let mut map = Map::of(bits);
        assert!(!decode(&page[..17], 0, &mut map), "cut off");
        assert_eq!(map.count(), PAGE_BITS);
        let mut elsewhere = vec![0; PAGE_BYTES];
        encode_page(0, |_| 1, &mut elsewhere);
        assert!(!decode(&elsewhere, 1, &mut Map::of(bits)), "another page's bytes");
    }

    proptest! {
        #[test]
        fn round_trip(bits in proptest::collection::btree_set(0u64..70_000, 0..200)) {
            let mut map = Map::of(70_000);
            bits.iter().for_each(|bit| map.insert(*bit));
            let mut back = Map::of(70_000);
            let mut bytes = vec![0; PAGE_BYTES];
            for page in 0..pages(70_000) {
                encode_page(page, |index| map.word(index), &mut bytes);
                prop_assert!(decode(&bytes, page, &mut back));
            }
            prop_assert_eq!(back.0, map.0);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = check_label(&bytes, &label());
            decode(&bytes, 1, &mut Map::of(70_000));
        }
    }
}
