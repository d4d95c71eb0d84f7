//! The io_uring itself: set-up with fallbacks, one `io_uring_enter` at a time, and the names of operations.
//!
//! It knows nothing of sockets and files. Whoever pushes an entry keeps what the entry points to until the entry's
//! completion has been reaped. Source: io_uring_setup(2), io_uring_enter(2).

use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, squeue};
use nix::errno::Errno;

use super::{Error, ErrorKind};

/// Set-up flags, best first. Each step drops what an older kernel does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Linux 6.1: completions run only when we ask for them, on this thread, without interrupts.
    DeferTaskrun,
    /// Linux 5.19: completions run at the next system call, without interrupts.
    CoopTaskrun,
    /// Linux 5.11: nothing beyond what the driver cannot do without.
    Plain,
}

impl Level {
    const ALL: [Self; 3] = [Self::DeferTaskrun, Self::CoopTaskrun, Self::Plain];

    fn names(self) -> &'static str {
        match self {
            Self::DeferTaskrun => "single_issuer defer_taskrun coop_taskrun",
            Self::CoopTaskrun => "coop_taskrun (no defer_taskrun: kernel before 6.1)",
            Self::Plain => "no task-run flags (kernel before 5.19)",
        }
    }

    fn build(self, entries: u32) -> std::io::Result<IoUring> {
        let mut builder = IoUring::builder();
        // Four completions per submission: an entry stays in flight long after its place in the queue is free again.
        builder.setup_clamp().setup_cqsize(entries.saturating_mul(4));
        match self {
            Self::DeferTaskrun => {
                builder.setup_single_issuer().setup_defer_taskrun();
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Self::CoopTaskrun => {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Self::Plain => {}
        }
        builder.build(entries)
    }
}

/// What an operation is, packed into its `user_data` with the slot it concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    /// A receive of the connection in this slot.
    Recv(u32),
    /// A send of the connection in this slot.
    Send(u32),
    /// The file operation in this slot.
    File(u32),
    /// The read of the waker's counter.
    Wake,
    /// A cancellation; its own result does not matter.
    Cancel,
}

impl Tag {
    pub(super) fn to_user_data(self) -> u64 {
        let (kind, slot) = match self {
            Self::Recv(slot) => (1u64, slot),
            Self::Send(slot) => (2, slot),
            Self::File(slot) => (3, slot),
            Self::Wake => (4, 0),
            Self::Cancel => (5, 0),
        };
        kind << 32 | u64::from(slot)
    }

    pub(super) fn from_user_data(user_data: u64) -> Self {
        let slot = u32::try_from(user_data & u64::from(u32::MAX)).expect("masked to 32 bits");
        match user_data >> 32 {
            1 => Self::Recv(slot),
            2 => Self::Send(slot),
            3 => Self::File(slot),
            4 => Self::Wake,
            5 => Self::Cancel,
            kind => unreachable!("completion of an operation of kind {kind}, which nobody submits"),
        }
    }
}

/// How long `enter` waits for a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    For(Duration),
    Forever,
}

/// The ring.
pub(super) struct Ring {
    ring: IoUring,
    level: Level,
    /// Entries pushed whose completion was not reaped yet.
    in_flight: usize,
    enters: u64,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("level", &self.level)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Sets up a ring with the best flags the kernel knows.
    pub(super) fn new(entries: u32) -> Result<Self, Error> {
        let mut last = Errno::EINVAL;
        for level in Level::ALL {
            match level.build(entries) {
                Ok(ring) => {
                    let params = ring.params();
                    if !params.is_feature_ext_arg()
                        || !params.is_feature_nodrop()
                        || !params.is_feature_fast_poll()
                    {
                        return Err(Error::new(ErrorKind::Unsupported, "set up an io_uring", Errno::ENOSYS)
                            .with_remedy(
                                "the kernel is older than Linux 5.11; Linux 6.1 or newer is recommended",
                            ));
                    }
                    return Ok(Self { ring, level, in_flight: 0, enters: 0 });
                }
                Err(error) => last = Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            }
            if last != Errno::EINVAL {
                break;
            }
        }
        Err(super::probe::setup_error(last))
    }

    /// The set-up that this kernel allowed, in words.
    pub(super) fn features(&self) -> &'static str {
        self.level.names()
    }

    /// Free places in the submission queue.
    pub(super) fn room(&mut self) -> usize {
        let queue = self.ring.submission();
        queue.capacity() - queue.len()
    }

    /// Whether there are completions, or the kernel has some that it would bring when asked: without a system call.
    pub(super) fn has_news(&mut self) -> bool {
        let queue = self.ring.submission();
        let kernel_has_work = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        kernel_has_work || !self.ring.completion().is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    /// Queues an entry; the caller has made sure of [`Ring::room`].
    ///
    /// # Safety
    /// All memory and the descriptor that the entry names stay valid, and the memory is not touched in a way that
    /// conflicts with the operation, until the completion with this tag has been reaped.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.to_user_data());
        // SAFETY: passed on to the caller.
        unsafe { self.ring.submission().push(&entry) }.expect("the caller looked for room");
        self.in_flight += 1;
    }

    /// Submits what is queued and waits as told, in at most one system call.
    ///
    /// Returns false when the kernel was out of room and wants completions to be reaped first.
    pub(super) fn enter(&mut self, wait: Wait) -> Result<bool, Error> {
        let queue = self.ring.submission();
        let (queued, kernel_has_work) = (queue.len(), queue.taskrun() || queue.cq_overflow());
        drop(queue);
        let ready = !self.ring.completion().is_empty();
        // Only the plain level does not tell whether there is work; then it must be asked.
        let known_idle = self.level != Level::Plain && !kernel_has_work;
        if queued == 0 && (ready || (wait == Wait::No && known_idle)) {
            return Ok(true);
        }
        self.enters += 1;
        match self.enter_raw(u32::try_from(queued).expect("bounded by the queue"), wait) {
            Ok(_) => Ok(true),
            // The timeout passed, or a signal arrived: the caller looks at its clock and decides.
            Err(Errno::ETIME | Errno::EINTR) => Ok(true),
            Err(Errno::EAGAIN | Errno::EBUSY) => Ok(false),
            Err(errno) => Err(Error::new(ErrorKind::Ring, "enter the io_uring", errno)),
        }
    }

    /// Waits for a completion, at most for `duration`, without submitting anything.
    pub(super) fn rest(&mut self, duration: Duration) -> Result<(), Error> {
        self.enters += 1;
        match self.enter_raw(0, Wait::For(duration)) {
            Ok(_) | Err(Errno::ETIME | Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => Ok(()),
            Err(errno) => Err(Error::new(ErrorKind::Ring, "enter the io_uring", errno)),
        }
    }

    fn enter_raw(&self, to_submit: u32, wait: Wait) -> Result<usize, Errno> {
        let submitter = self.ring.submitter();
        // With deferred task-run, completions appear only in a call that asks for them, waiting or not.
        let flags = EnterFlags::GETEVENTS;
        let result = match wait {
            Wait::For(duration) => {
                let timeout = Timespec::from(duration);
                let args = SubmitArgs::new().timespec(&timeout);
                // SAFETY: with EXT_ARG the argument is an io_uring_getevents_arg, which SubmitArgs is transparently;
                // it and the timespec live until the call returns. `to_submit` entries were pushed under `push`.
                unsafe { submitter.enter(to_submit, 1, (flags | EnterFlags::EXT_ARG).bits(), Some(&args)) }
            }
            Wait::No | Wait::Forever => {
                let want = u32::from(wait == Wait::Forever);
                // SAFETY: without EXT_ARG a null signal mask is valid. `to_submit` entries were pushed under `push`.
                unsafe { submitter.enter::<libc::sigset_t>(to_submit, want, flags.bits(), None) }
            }
        };
        result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// Moves all completions into `out` as (tag, result).
    pub(super) fn reap(&mut self, out: &mut Vec<(Tag, i32)>) {
        let before = out.len();
        out.extend(
            self.ring.completion().map(|entry| (Tag::from_user_data(entry.user_data()), entry.result())),
        );
        self.in_flight -= out.len() - before;
    }

    /// Asks which operations the kernel has; used by the probe.
    pub(super) fn supports(&self, opcodes: &[(u8, &'static str)]) -> Result<(), Error> {
        let mut probe = io_uring::Probe::new();
        self.ring.submitter().register_probe(&mut probe).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            Error::new(ErrorKind::Unsupported, "ask for the operations of io_uring", errno)
        })?;
        match opcodes.iter().find(|(code, _)| !probe.is_supported(*code)) {
            None => Ok(()),
            Some((_, name)) => Err(Error::new(ErrorKind::Unsupported, "probe io_uring", Errno::EOPNOTSUPP)
                .with_remedy(format!(
                    "the kernel's io_uring lacks {name}; Linux 6.1 or newer is recommended"
                ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_the_round_trip() {
        for tag in
            [Tag::Recv(0), Tag::Recv(u32::MAX), Tag::Send(7), Tag::File(1 << 31), Tag::Wake, Tag::Cancel]
        {
            assert_eq!(Tag::from_user_data(tag.to_user_data()), tag);
        }
    }

    #[test]
    fn every_level_completes_operations() {
        for level in Level::ALL {
            let ring = level.build(8).unwrap();
            let mut ring = Ring { ring, level, in_flight: 0, enters: 0 };
            // SAFETY: a no-op names no memory.
            unsafe { ring.push(io_uring::opcode::Nop::new().build(), Tag::File(3)) };
            assert!(ring.enter(Wait::Forever).unwrap());
            let mut out = Vec::new();
            ring.reap(&mut out);
            assert_eq!((out.as_slice(), ring.in_flight()), ([(Tag::File(3), 0)].as_slice(), 0), "{level:?}");
            assert!(ring.enter(Wait::No).unwrap());
            assert!(ring.enter(Wait::For(Duration::from_millis(1))).unwrap());
            ring.rest(Duration::from_millis(1)).unwrap();
        }
    }
}
