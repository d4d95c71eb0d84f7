//! A disk in memory behind the frontend; checks that every part keeps to the contract.

use crate::frontend::{BlockKind, Extent, Submit};
use crate::io::{BLOCK, Buf, PART_BYTES_MAX};

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
}

impl Disk {
    pub(super) fn new(size: usize) -> Self {
        Self { bytes: vec![0; size], allocated: vec![false; size / BLOCK] }
    }

    /// Carries a part out. The buffer of a write comes back: an engine has it until the answer.
    pub(super) fn execute(&mut self, submit: Submit) -> (Outcome, Option<Buf>) {
        let Submit { request, mut buf, .. } = submit;
        let (at, len) = (usize::try_from(request.offset).unwrap(), usize::try_from(request.len).unwrap());
        let end = at + len;
        assert!(end <= self.bytes.len(), "{request:?} is within the volume");
        assert_eq!(buf.is_some(), matches!(request.kind, BlockKind::Write | BlockKind::Read));
        let covering = at - at % BLOCK..end.next_multiple_of(BLOCK);
        if let Some(buf) = &buf {
            assert_eq!(buf.len(), covering.len(), "the buffer covers the blocks around {request:?}");
        }
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
                let mut buf = buf.unwrap();
                buf.get_mut().unwrap().copy_from_slice(&self.bytes[covering]);
                return (Outcome::Data(buf), None);
            }
            BlockKind::Write => {
                let buf = buf.as_mut().unwrap();
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
            BlockKind::BlockStatus => return (Outcome::Extents(self.extents(at)), None),
        }
        (Outcome::Done, buf)
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
