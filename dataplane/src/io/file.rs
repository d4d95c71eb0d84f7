//! Files: operations through the ring, which continue short results themselves, and the synchronous ones that are
//! cheaper inline.

use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use rustix::fs::{SeekFrom, seek};
use rustix::io::{ReadWriteFlags, preadv2, pwrite};

use super::pool::Buf;
use super::slots::Key;

/// How often an operation that the kernel interrupted or could not take is repeated before its error is reported. A
/// guess: far above what signals cause, far below an endless loop.
const RETRIES_MAX: u32 = 100;

/// The page cache keeps what one system call writes in folios of up to that call's size, and ext4 walks all blocks of a
/// folio at each later write to any of them: after writes of 256 KiB, random writes of 4 KiB took 9.0 µs each, after
/// these steps 3.5 µs, and sequential writes of 128 KiB 36 instead of 29 µs (performance.md).
const INLINE_STEP_BYTES: u64 = 16 * 1024;

/// What to do to a range of a file; neither changes the file's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallocateMode {
    /// Gives the blocks back to the file system; the range reads as zeros.
    PunchHole,
    /// Makes the range read as zeros, with blocks reserved for it where the file system can.
    ZeroRange,
}

impl FallocateMode {
    fn bits(self) -> i32 {
        match self {
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Self::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// A file and how much is in flight on it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) fd: OwnedFd,
    pub(super) in_flight: usize,
}

#[derive(Debug)]
pub(super) enum Request {
    Write {
        buf: Buf,
        range: Range<usize>,
    },
    Read {
        buf: Buf,
        len: usize,
    },
    Fdatasync,
    /// Of what is dirty in the page cache; it does not wait for its end.
    BeginWriteback {
        len: u64,
    },
    Fallocate {
        mode: FallocateMode,
        len: u64,
    },
}

/// One operation, from its call to its completion. It holds the buffer, which belongs to the kernel meanwhile.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) file: Key,
    pub(super) token: u64,
    offset: u64,
    request: Request,
    done: usize,
    retries: u32,
}

/// What follows from a result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Again,
    Done(Result<usize, Errno>),
}

impl Operation {
    pub(super) fn new(file: Key, token: u64, offset: u64, request: Request) -> Self {
        match &request {
            Request::Write { buf, range } => {
                assert!(range.start <= range.end && range.end <= buf.len(), "a write within its buffer");
            }
            Request::Read { buf, len } => {
                assert!(
                    *len <= buf.len() && buf.is_unique(),
                    "a buffer to read into is unshared and has room"
                );
            }
            Request::Fdatasync | Request::BeginWriteback { .. } | Request::Fallocate { .. } => {}
        }
        Self { file, token, offset, request, done: 0, retries: 0 }
    }

    /// The entry for what is left to do. `self` must be kept until its completion.
    pub(super) fn entry(&self, fd: &OwnedFd) -> squeue::Entry {
        let fd = types::Fd(fd.as_raw_fd());
        let offset = self.offset + u64::try_from(self.done).expect("usize fits u64");
        match &self.request {
            Request::Write { buf, range } => {
                let rest = &buf.as_slice()[range.start + self.done..range.end];
                opcode::Write::new(fd, rest.as_ptr(), bounded(rest.len())).offset(offset).build()
            }
            Request::Read { buf, len } => {
                // SAFETY: `done` is at most `len`, which is at most the buffer's length.
                let address = unsafe { buf.pointer().add(self.done) };
                opcode::Read::new(fd, address, bounded(len - self.done)).offset(offset).build()
            }
            Request::Fdatasync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            // Without its two waiting flags it takes none of the errors away that are kept for a later fsync.
            Request::BeginWriteback { len } => {
                // 0 is up to the end of the file, and more than that does no harm.
                let len = u32::try_from(*len).unwrap_or(0);
                opcode::SyncFileRange::new(fd, len).offset(offset).flags(libc::SYNC_FILE_RANGE_WRITE).build()
            }
            Request::Fallocate { mode, len } => {
                opcode::Fallocate::new(fd, *len).offset(offset).mode(mode.bits()).build()
            }
        }
    }

    /// Digests the kernel's result for the entry in flight.
    pub(super) fn ended(&mut self, result: i32) -> Next {
        let Ok(n) = usize::try_from(result) else {
            let errno = Errno::from_raw(-result);
            if matches!(errno, Errno::EINTR | Errno::EAGAIN) && self.retries < RETRIES_MAX {
                self.retries += 1;
                return Next::Again;
            }
            return Next::Done(Err(errno));
        };
        self.done += n;
        match &self.request {
            Request::Write { range, .. } if self.done < range.len() => {
                // A write that gets nowhere without an error: no file system should, and we do not wait for it.
                if n == 0 { Next::Done(Err(Errno::EIO)) } else { Next::Again }
            }
            // Zero is the end of the file.
            Request::Read { len, .. } if self.done < *len && n > 0 => Next::Again,
            Request::Write { .. } | Request::Read { .. } => Next::Done(Ok(self.done)),
            Request::Fdatasync | Request::BeginWriteback { .. } | Request::Fallocate { .. } => {
                Next::Done(Ok(0))
            }
        }
    }

    /// Gives the buffer back, once the kernel is done with it.
    pub(super) fn into_buf(self) -> Option<Buf> {
        match self.request {
            Request::Write { buf, .. } | Request::Read { buf, .. } => Some(buf),
            Request::Fdatasync | Request::BeginWriteback { .. } | Request::Fallocate { .. } => None,
        }
    }
}

fn bounded(len: usize) -> u32 {
    u32::try_from(len).expect("bounded by the largest buffer")
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Writes all of `data`, in steps that end where [`INLINE_STEP_BYTES`] divides the offset.
pub(super) fn write_inline(fd: BorrowedFd<'_>, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match pwrite(fd, data.get(..step(offset)).unwrap_or(data), offset) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => {
                data = data.get(n..).unwrap_or_default();
                offset += u64::try_from(n).expect("usize fits u64");
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}

/// How many bytes of the file are left from `offset` to the end of its step.
fn step(offset: u64) -> usize {
    usize::try_from(INLINE_STEP_BYTES - offset % INLINE_STEP_BYTES).expect("at most a step")
}

/// Reads all of `out` if that needs no disk.
pub(super) fn read_cached(fd: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> Result<bool, Errno> {
    let wanted = out.len();
    match preadv2(fd, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
        Ok(n) => Ok(n == wanted),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(errno(error)),
    }
}

/// The run of allocated or unallocated bytes that starts at `offset`, cut at `end`.
pub(super) fn seek_extent(fd: BorrowedFd<'_>, offset: u64, end: u64) -> Result<(u64, bool), Errno> {
    if offset >= end {
        return Ok((0, false));
    }
    let data = match seek(fd, SeekFrom::Data(offset)) {
        Ok(data) => data,
        // No data from here to the end of the file.
        Err(rustix::io::Errno::NXIO) => return Ok((end - offset, false)),
        Err(error) => return Err(errno(error)),
    };
    if data > offset {
        return Ok((data.min(end) - offset, false));
    }
    let hole = seek(fd, SeekFrom::Hole(offset)).map_err(errno)?;
    Ok((hole.min(end) - offset, true))
}

#[cfg(test)]
mod tests {
    use super::super::pool::{Pool, PoolConfig};
    use super::super::slots::Slots;
    use super::*;

    fn operation(request: Request) -> Operation {
        Operation::new(Slots::default().insert(()), 1, 4096, request)
    }

    #[test]
    fn short_results_are_continued() {
        let pool = Pool::new(PoolConfig { small: 2, medium: 0, large: 0 }).unwrap();
        let mut write = operation(Request::Write { buf: pool.alloc(4096).unwrap(), range: 96..4096 });
        assert_eq!(write.ended(1000), Next::Again);
        assert_eq!(write.ended(-libc::EINTR), Next::Again);
        assert_eq!(write.ended(3000), Next::Done(Ok(4000)));
        let mut read = operation(Request::Read { buf: pool.alloc(4096).unwrap(), len: 4096 });
        assert_eq!(read.ended(512), Next::Again);
        assert_eq!(read.ended(0), Next::Done(Ok(512)), "the end of the file");
    }

    #[test]
    fn inline_writes_end_at_steps_and_bring_all() {
        assert_eq!([step(0), step(16 * 1024 - 512), step(48 * 1024 + 4096)], [16 * 1024, 512, 12 * 1024]);
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        write_inline(std::os::fd::AsFd::as_fd(&file), 12_345, &data).unwrap();
        let mut found = vec![0; data.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 12_345).unwrap();
        assert!(found == data);
    }

    #[test]
    fn errors_end_and_retries_are_bounded() {
        let pool = Pool::new(PoolConfig { small: 2, medium: 0, large: 0 }).unwrap();
        let mut write = operation(Request::Write { buf: pool.alloc(4096).unwrap(), range: 0..4096 });
        assert_eq!(write.ended(512), Next::Again);
        assert_eq!(write.ended(-libc::ENOSPC), Next::Done(Err(Errno::ENOSPC)));
        let mut stuck = operation(Request::Write { buf: pool.alloc(1).unwrap(), range: 0..1 });
        assert_eq!(stuck.ended(0), Next::Done(Err(Errno::EIO)));
        let mut sync = operation(Request::Fdatasync);
        for _ in 0..RETRIES_MAX {
            assert_eq!(sync.ended(-libc::EAGAIN), Next::Again);
        }
        assert_eq!(sync.ended(-libc::EAGAIN), Next::Done(Err(Errno::EAGAIN)));
    }
}
