//! Reads replies as a strict client would, and panics where one would hang up.

use std::collections::HashMap;

use crate::frontend::nbd::proto::{self, Fields, RequestHeader, chunk, command};

/// All that was said about one request.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) error: u32,
    pub(super) done: bool,
    /// By byte of a read.
    pub(super) data: Vec<Option<u8>>,
    pub(super) content_chunks: usize,
    pub(super) runs: Vec<(u32, u32)>,
}

impl Reply {
    /// The data of a read, all of it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.data.iter().map(|byte| byte.expect("the data covers all of the request")).collect()
    }
}

pub(super) fn decode(sent: &[u8], requests: &[RequestHeader], structured: bool) -> HashMap<u64, Reply> {
    let requests: HashMap<u64, &RequestHeader> = requests.iter().map(|r| (r.cookie, r)).collect();
    let mut replies = HashMap::new();
    let mut fields = Fields::new(sent);
    while !fields.is_empty() {
        let magic = fields.u32().unwrap();
        if magic == proto::SIMPLE_REPLY_MAGIC {
            let (error, cookie) = (fields.u32().unwrap(), fields.u64().unwrap());
            let request = requests[&cookie];
            assert!(!(structured && request.command == command::READ), "a read needs chunks");
            let data = if request.command == command::READ && error == 0 {
                fields.bytes(usize::try_from(request.len).unwrap()).expect("all the data").to_vec()
            } else {
                Vec::new()
            };
            let data = data.into_iter().map(Some).collect();
            let reply = Reply { error, done: true, data, content_chunks: 1, runs: Vec::new() };
            assert!(replies.insert(cookie, reply).is_none(), "one simple reply");
        } else {
            assert_eq!(magic, proto::CHUNK_MAGIC);
            assert!(structured, "chunks were not negotiated");
            decode_chunk(&mut fields, &requests, &mut replies);
        }
    }
    replies
}

fn decode_chunk(
    fields: &mut Fields<'_>,
    requests: &HashMap<u64, &RequestHeader>,
    replies: &mut HashMap<u64, Reply>,
) {
    let (flags, kind) = (fields.u16().unwrap(), fields.u16().unwrap());
    let cookie = fields.u64().unwrap();
    let payload = fields.string().expect("the chunk's payload");
    let (len, mut payload) = (payload.len(), Fields::new(payload));
    let request = requests[&cookie];
    let reply = replies.entry(cookie).or_default();
    assert!(!reply.done, "nothing follows the last chunk");
    assert_eq!(flags & !chunk::FLAG_DONE, 0);
    reply.done = flags & chunk::FLAG_DONE != 0;
    match kind {
        chunk::NONE => assert!(len == 0 && reply.done),
        chunk::ERROR => {
            reply.error = payload.u32().unwrap();
            assert_ne!(reply.error, 0);
            assert_eq!(usize::from(payload.u16().unwrap()), len - 6);
        }
        chunk::OFFSET_DATA => {
            assert!(request.command == command::READ && len > 8);
            let offset = payload.u64().unwrap();
            reply.data.resize(usize::try_from(request.len).unwrap(), None);
            reply.content_chunks += 1;
            let at = usize::try_from(offset.checked_sub(request.offset).unwrap()).unwrap();
            let data = payload.bytes(len - 8).unwrap();
            for (slot, byte) in reply.data[at..at + data.len()].iter_mut().zip(data) {
                assert!(slot.replace(*byte).is_none(), "chunks do not overlap");
            }
        }
        chunk::BLOCK_STATUS => {
            assert_eq!(request.command, command::BLOCK_STATUS);
            assert_eq!(payload.u32(), Some(proto::BASE_ALLOCATION_ID));
            while !payload.is_empty() {
                reply.runs.push((payload.u32().unwrap(), payload.u32().unwrap()));
            }
            assert!(!reply.runs.is_empty() && reply.runs.iter().all(|(len, _)| *len > 0));
            assert!(reply.runs.iter().map(|(len, _)| len).sum::<u32>() <= request.len);
        }
        other => panic!("unexpected chunk type {other}"),
    }
}
