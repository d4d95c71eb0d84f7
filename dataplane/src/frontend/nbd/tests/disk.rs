//! A disk in memory behind the frontend; checks that every part keeps to the contract.

use crate::frontend::{BlockKind, Extent, Submit};
use crate::io::{BLOCK, Buf, PART_BYTES_MAX, Pool, PoolConfig};

/// What a part will be answered with.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    Data(Buf),
    Extents(Vec<Extent>),
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    /// By block.
    pub(super) allocated: Vec<bool>,
    pool: Pool,
}

impl Disk {
    pub(super) fn new(size: usize) -> Self {
        let pool = Pool::new(PoolConfig { small: 512, medium: 512, large: 160 }).unwrap();
        Self { bytes: vec![0; size], allocated: vec![false; size / BLOCK], pool }
    }

    pub(super) fn execute(&mut self, submit: &Submit) -> Outcome {
        let request = submit.request;
        let (at, len) = (usize::try_from(request.offset).unwrap(), usize::try_from(request.len).unwrap());
        let end = at + len;
        assert!(end <= self.bytes.len(), "{request:?} is within the volume");
        assert_eq!(submit.buf.is_some(), request.kind == BlockKind::Write);
        let covering = at - at % BLOCK..end.next_multiple_of(BLOCK);
        match request.kind {
            BlockKind::Read | BlockKind::Write => {
                assert!(len > 0 && at / PART_BYTES_MAX == (end - 1) / PART_BYTES_MAX, "{request:?}");
            }
            BlockKind::Trim | BlockKind::WriteZeroes { .. } => {
                assert!(len > 0 && at.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK), "{request:?}");
            }
            BlockKind::Flush => assert_eq!((at, len), (0, 0)),
            BlockKind::BlockStatus => assert!(len > 0),
        }
        match request.kind {
            BlockKind::Read => {
                let mut buf = self.pool.alloc(covering.len()).expect("the test's pool suffices");
                buf.get_mut().unwrap().copy_from_slice(&self.bytes[covering]);
                return Outcome::Data(buf);
            }
            BlockKind::Write => {
                let buf = submit.buf.as_ref().unwrap();
                assert_eq!(buf.len(), covering.len(), "the buffer covers the blocks around {request:?}");
                let payload = at % BLOCK..at % BLOCK + len;
                self.bytes[at..end].copy_from_slice(&buf.as_slice()[payload]);
                self.mark(covering, true);
            }
            BlockKind::Trim | BlockKind::WriteZeroes { may_punch: true } => {
                self.bytes[at..end].fill(0);
                self.mark(covering, false);
            }
            BlockKind::WriteZeroes { may_punch: false } => {
                self.bytes[at..end].fill(0);
                self.mark(covering, true);
            }
            BlockKind::Flush => {}
            BlockKind::BlockStatus => return Outcome::Extents(self.extents(at)),
        }
        Outcome::Done
    }

    fn mark(&mut self, range: std::ops::Range<usize>, allocated: bool) {
        self.allocated[range.start / BLOCK..range.end / BLOCK].fill(allocated);
    }

    /// Per block and to the end of the disk: joining and cutting is the frontend's work.
    fn extents(&self, at: usize) -> Vec<Extent> {
        let mut len = BLOCK - at % BLOCK;
        let run = self.allocated[at / BLOCK..].iter().map(|&allocated| {
            let extent = Extent { len: u64::try_from(len).unwrap(), allocated };
            len = BLOCK;
            extent
        });
        run.collect()
    }
}
