//! Arbitrary bytes in arbitrary pieces: nothing panics, and the pieces make no difference.

use proptest::prelude::*;

use super::rig::{Rig, SIMPLE, STRUCTURED};
use crate::frontend::BlockRequest;
use crate::frontend::nbd::ClientLimits;
use crate::frontend::nbd::handshake::{ExportInfo, Handshake, Progress};
use crate::frontend::nbd::proto::{
    ErrorCode, Fields, OptionHeader, RequestHeader, block_status_chunk, chunk, data_chunk, error_chunk,
    simple_reply,
};
use crate::io::PoolConfig;

const SIZE: usize = 1 << 20;

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

/// Requests that are almost right, and garbage between them.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let near_limits = prop_oneof![0..2 * SIZE as u64, any::<u64>(), Just(u64::MAX), Just(u64::MAX - 4095)];
    let len = prop_oneof![0..10_000_u32, any::<u32>(), Just(u32::MAX), Just(32 << 20)];
    let header = (any::<u16>(), 0..9_u16, any::<u64>(), near_limits, len);
    let header = header.prop_map(|(flags, command, cookie, offset, len)| {
        RequestHeader { flags: flags & 0x1f, command, cookie, offset, len }.encode().to_vec()
    });
    let piece = prop_oneof![6 => header, 1 => garbage()];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

/// What the engine is asked, and how the connection ends.
fn parts(bytes: &[u8], pieces: &[usize], structured: bool) -> (Vec<BlockRequest>, bool) {
    let negotiated = if structured { STRUCTURED } else { SIMPLE };
    let pool = PoolConfig { small: 8, medium: 4, large: 4 };
    let mut rig = Rig::with(negotiated, SIZE, ClientLimits::default(), pool);
    let (mut seen, mut rest, mut pieces) = (Vec::new(), bytes, pieces.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
        rest = after;
        let mut result = rig.feed(piece);
        while result.is_ok() && !rig.pending.is_empty() {
            seen.extend(rig.kinds());
            while !rig.pending.is_empty() {
                rig.complete(0);
            }
            rig.link.queued = 0;
            result = rig.parse();
        }
        if result.is_err() {
            seen.extend(rig.kinds());
            while !rig.pending.is_empty() {
                rig.complete(0);
            }
            assert_eq!(rig.client.in_flight(), 0, "nothing is left behind");
            return (seen, false);
        }
    }
    (seen, true)
}

fn export() -> ExportInfo {
    ExportInfo { name: "demo".into(), description: "a volume".into(), size_bytes: 1 << 30 }
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        garbage(),
        Just(b"\0\0\0\x04demo\0\x01\0\x03".to_vec()),
        Just(b"\0\0\0\x04demo\0\0\0\x01\0\0\0\x0fbase:allocation".to_vec()),
        Just(b"\0\0\0\x04demo\xff\xff\xff\xff\0\0\0\0".to_vec()),
        Just(b"\xff\xff\xff\xff".to_vec()),
        Just(vec![0; 20_000]),
    ];
    let option = (0..12_u32, data, prop::option::weighted(0.1, any::<u32>()));
    let option = option.prop_map(|(option, data, len)| {
        let len = len.unwrap_or(u32::try_from(data.len()).unwrap());
        [&OptionHeader { option, len }.encode()[..], &data].concat()
    });
    (0..4_u32, prop::collection::vec(prop_oneof![8 => option, 1 => garbage()], 0..12))
        .prop_map(|(flags, options)| [&flags.to_be_bytes()[..], &options.concat()].concat())
}

fn handshake(mut bytes: &[u8]) {
    let export = export();
    let mut out = Vec::new();
    let mut handshake = Handshake::start(&export, &mut out);
    while let Some((input, rest)) = bytes.split_at_checked(handshake.wants()) {
        assert!((1..=16 * 1024).contains(&handshake.wants()));
        out.clear();
        let progress = handshake.advance(input, &mut out);
        assert!(out.len() < 1024, "an answer is short");
        match progress {
            Ok(Progress::More) => bytes = rest,
            Ok(Progress::Ready(negotiated)) => {
                assert!(negotiated.structured_replies || !negotiated.base_allocation);
                return;
            }
            Ok(Progress::Ended) | Err(_) => return,
        }
    }
}

proptest! {
    #[test]
    fn transmission_takes_any_bytes_in_any_pieces(
        bytes in prop_oneof![garbage(), requests()],
        pieces in prop::collection::vec(1..400_usize, 1..10),
        structured: bool,
    ) {
        let whole = parts(&bytes, &[usize::MAX], structured);
        let pieces = parts(&bytes, &pieces, structured);
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn handshake_takes_any_bytes(bytes in prop_oneof![garbage(), options()]) {
        handshake(&bytes);
    }

    #[test]
    fn request_headers_round_trip(flags: u16, command: u16, cookie: u64, offset: u64, len: u32, bad: u32) {
        let header = RequestHeader { flags, command, cookie, offset, len };
        let mut bytes = header.encode();
        prop_assert_eq!(RequestHeader::parse(&bytes), Ok(header));
        bytes[..4].copy_from_slice(&bad.to_be_bytes());
        prop_assert_eq!(RequestHeader::parse(&bytes).is_ok(), bad == 0x2560_9513);
    }

    #[test]
    fn option_headers_round_trip(option: u32, len: u32, bad: u64) {
        let header = OptionHeader { option, len };
        let mut bytes = header.encode();
        prop_assert_eq!(OptionHeader::parse(&bytes), Ok(header));
        bytes[..8].copy_from_slice(&bad.to_be_bytes());
        prop_assert_eq!(OptionHeader::parse(&bytes).is_ok(), &bad.to_be_bytes() == b"IHAVEOPT");
    }

    #[test]
    fn reply_heads_round_trip(cookie: u64, done: bool, offset: u64, len in 1..=32_u32 << 20) {
        let bytes = data_chunk(cookie, done, offset, len);
        let mut fields = Fields::new(&bytes);
        prop_assert_eq!(fields.u32(), Some(0x668e_33ef));
        prop_assert_eq!(fields.u16(), Some(u16::from(done)));
        prop_assert_eq!(fields.u16(), Some(chunk::OFFSET_DATA));
        prop_assert_eq!((fields.u64(), fields.u32()), (Some(cookie), Some(len + 8)));
        prop_assert_eq!((fields.u64(), fields.is_empty()), (Some(offset), true));
    }
}

/// The specification's numbers, byte by byte, so that a slip in a constant shows.
#[test]
fn golden_bytes() {
    let header =
        RequestHeader { flags: 1, command: 6, cookie: 0x0102_0304_0506_0708, offset: 4096, len: 512 };
    assert_eq!(
        header.encode(),
        *b"\x25\x60\x95\x13\0\x01\0\x06\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0"
    );
    assert_eq!(simple_reply(7, Some(ErrorCode::NoSpace)), *b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x07");
    assert_eq!(
        error_chunk(7, ErrorCode::Shutdown),
        *b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x07\0\0\0\x06\0\0\0\x6c\0\0"
    );
    let mut out = vec![1, 2, 3];
    block_status_chunk(&mut out, 7, [(4096, 3), (512, 0)].into_iter());
    let expected = b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x07\0\0\0\x14\0\0\0\x01\
        \0\0\x10\0\0\0\0\x03\0\0\x02\0\0\0\0\0";
    assert_eq!(out, expected);
}
