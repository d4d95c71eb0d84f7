//! Tagged fields: what a format carries behind its fixed fields, so that it can grow.
//!
//! Each field is `tag u16, flags u16, length u32`, then that many bytes; little-endian, one behind the other, to the end
//! of the byte string. Bit 0 of the flags says "required": a reader that does not know the tag must not act on the whole.
//! A reader skips what it does not know and is not required; a reader that writes back keeps it as it was, flags included.
//! No tag comes twice. A tag's number is never given to another meaning. The caller bounds the length of the whole.

use std::collections::BTreeSet;

use crate::bytes_codec::{FieldError, Reader, Writer};

/// A reader must know the tag to act on the whole.
const FLAG_REQUIRED: u16 = 1;
/// What stands in front of the bytes of each field.
pub const TAG_PREFIX_BYTES: usize = 8;

/// One field, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag<'a> {
    /// Which.
    pub tag: u16,
    /// All of them: those this build does not know are kept too.
    pub flags: u16,
    /// Its content.
    pub bytes: &'a [u8],
}

impl Tag<'_> {
    /// Whether a reader that does not know the tag has to refuse the whole.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.flags & FLAG_REQUIRED != 0
    }

    /// A copy of its own, to be written back later.
    #[must_use]
    pub fn kept(&self) -> KeptTag {
        KeptTag { tag: self.tag, flags: self.flags, bytes: self.bytes.to_vec() }
    }
}

/// A field that this build does not know, kept to be written back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTag {
    tag: u16,
    flags: u16,
    bytes: Vec<u8>,
}

impl KeptTag {
    /// The field.
    #[must_use]
    pub fn as_tag(&self) -> Tag<'_> {
        Tag { tag: self.tag, flags: self.flags, bytes: &self.bytes }
    }
}

/// All fields of `bytes`, in their order.
///
/// # Errors
/// When the last one is cut short, or a tag comes twice.
pub fn read_tags(bytes: &[u8]) -> Result<Vec<Tag<'_>>, FieldError> {
    let mut reader = Reader::new(bytes);
    let (mut tags, mut seen) = (Vec::new(), BTreeSet::new());
    while !reader.rest().is_empty() {
        let (tag, flags) = (reader.u16("tag")?, reader.u16("tag.flags")?);
        let length = reader.u32("tag.length")?;
        // A length past what this machine can address is past the end too.
        let bytes = reader.take("tag.bytes", usize::try_from(length).unwrap_or(usize::MAX))?;
        if !seen.insert(tag) {
            return Err(FieldError {
                field: "tag",
                problem: format!("expected each once, found {tag} twice"),
            });
        }
        tags.push(Tag { tag, flags, bytes });
    }
    Ok(tags)
}

/// The fields that `known` does not name.
///
/// # Errors
/// When one of the others is required.
pub fn unknown_tags<'a>(tags: &[Tag<'a>], known: &[u16]) -> Result<Vec<Tag<'a>>, FieldError> {
    let others: Vec<_> = tags.iter().filter(|tag| !known.contains(&tag.tag)).copied().collect();
    match others.iter().find(|tag| tag.is_required()) {
        None => Ok(others),
        Some(tag) => {
            let problem =
                format!("{} is required and not known to this build; a newer one knows it", tag.tag);
            Err(FieldError { field: "tag", problem })
        }
    }
}

/// The content of the field `tag`, if it is there.
#[must_use]
pub fn find_tag<'a>(tags: &[Tag<'a>], tag: u16) -> Option<&'a [u8]> {
    tags.iter().find(|found| found.tag == tag).map(|found| found.bytes)
}

/// Writes fields one behind the other.
#[derive(Debug, Default)]
pub struct TagWriter {
    out: Writer,
    written: BTreeSet<u16>,
}

impl TagWriter {
    /// Begins with none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    ///
    /// # Panics
    /// When the tag was written before, or there are 4 GiB of `bytes`: both are this program's own mistake.
    pub fn put(&mut self, tag: u16, required: bool, bytes: &[u8]) -> &mut Self {
        self.keep(&Tag { tag, flags: if required { FLAG_REQUIRED } else { 0 }, bytes })
    }

    /// Adds a field as it was read.
    ///
    /// # Panics
    /// As [`Self::put`].
    pub fn keep(&mut self, field: &Tag<'_>) -> &mut Self {
        assert!(self.written.insert(field.tag), "tag {} is written twice", field.tag);
        let length = u32::try_from(field.bytes.len()).expect("a field of less than 4 GiB");
        self.out.u16(field.tag).u16(field.flags).u32(length).raw(field.bytes);
        self
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.out.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A required field of three bytes, an optional one of none, and one with a flag of the future.
    const GOLDEN: [u8; 28] = [
        1, 0, 1, 0, 3, 0, 0, 0, b'a', b'b', b'c', //
        0x34, 0x12, 0, 0, 0, 0, 0, 0, //
        7, 0, 2, 0x80, 1, 0, 0, 0, 0xff,
    ];

    #[test]
    fn tags_golden_bytes() {
        let mut out = TagWriter::new();
        out.put(1, true, b"abc").put(0x1234, false, b"");
        out.keep(&Tag { tag: 7, flags: 0x8002, bytes: &[0xff] });
        assert_eq!(out.into_bytes(), GOLDEN);
        let tags = read_tags(&GOLDEN).unwrap();
        assert_eq!(tags.len(), 3);
        assert!(tags[0].is_required() && !tags[1].is_required() && !tags[2].is_required());
        assert_eq!(find_tag(&tags, 1), Some(&b"abc"[..]));
        assert_eq!(find_tag(&tags, 0x1234), Some(&b""[..]));
        assert_eq!(find_tag(&tags, 2), None);
    }

    #[test]
    fn tags_none_is_no_byte() {
        assert_eq!(TagWriter::new().into_bytes(), b"");
        assert_eq!(read_tags(b""), Ok(Vec::new()));
    }

    #[test]
    fn tags_cut_anywhere_are_refused() {
        let whole_fields = [0, 11, 19, GOLDEN.len()];
        for end in 0..=GOLDEN.len() {
            assert_eq!(read_tags(&GOLDEN[..end]).is_ok(), whole_fields.contains(&end), "{end} bytes");
        }
        let too_long = [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(read_tags(&too_long).unwrap_err().field, "tag.bytes");
    }

    #[test]
    fn tags_that_come_twice_are_refused() {
        let twice = [&GOLDEN[..], &GOLDEN[11..19]].concat();
        assert!(read_tags(&twice).unwrap_err().to_string().contains("4660 twice"));
    }

    #[test]
    fn tags_unknown_and_required_are_refused_optional_kept() {
        let tags = read_tags(&GOLDEN).unwrap();
        let unknown = unknown_tags(&tags, &[1]).unwrap();
        assert_eq!(unknown, tags[1..]);
        assert_eq!(unknown_tags(&tags, &[1, 7, 0x1234]), Ok(Vec::new()));
        let refused = unknown_tags(&tags, &[7, 0x1234]).unwrap_err();
        assert!(refused.to_string().contains("1 is required"), "{refused}");

        let kept: Vec<KeptTag> = unknown.iter().map(Tag::kept).collect();
        let mut out = TagWriter::new();
        out.put(1, true, b"abc");
        for field in &kept {
            out.keep(&field.as_tag());
        }
        assert_eq!(out.into_bytes(), GOLDEN, "flags of the future included");
    }

    #[test]
    #[should_panic(expected = "tag 3 is written twice")]
    fn tags_written_twice_are_our_own_mistake() {
        TagWriter::new().put(3, false, b"").put(3, true, b"");
    }

    proptest! {
        #[test]
        fn tags_round_trip(fields in proptest::collection::btree_map(
            any::<u16>(), (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut out = TagWriter::new();
            for (tag, (flags, bytes)) in &fields {
                out.keep(&Tag { tag: *tag, flags: *flags, bytes });
            }
            let bytes = out.into_bytes();
            let tags = read_tags(&bytes).unwrap();
            let read: Vec<_> = tags.iter().map(|t| (t.tag, (t.flags, t.bytes.to_vec()))).collect();
            prop_assert_eq!(read, fields.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn tags_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_tags(&bytes);
        }
    }
}
