//! Completions of file operations into replies.

use super::data::{Data, Op, SYNC_TOKEN, WRITEBACK_TOKEN, Waiter, What};
use super::messages::FromData;
use super::serve::status_of;
use crate::io::{Buf, Errno};
use crate::units::to_u64;
use crate::wire::{Kind, Status};

impl Data {
    pub(super) fn completed(&mut self, token: u64, result: Result<usize, Errno>, buf: Option<Buf>) {
        if token == SYNC_TOKEN {
            return self.synced(result);
        }
        if token == WRITEBACK_TOKEN {
            return self.writeback_begun(result);
        }
        let Op { conn, header, what } = self.ops.remove(token);
        match what {
            What::Waiting(_) => unreachable!("nothing of it is in flight"),
            What::Write { fua } => self.changed(conn, &header, result.map(drop), fua),
            What::Read | What::Digest => match (result, buf) {
                (Ok(n), Some(buf)) if to_u64(n) == header.extent => match what {
                    What::Digest => {
                        self.reply_digest(conn, &header, buf.as_slice().get(..n).unwrap_or_default())
                    }
                    _ => self.reply_bytes(conn, &header, &buf),
                },
                // Short: somebody has cut the image.
                (Ok(_), _) => self.reply(conn, &header, Status::Io),
                (Err(errno), _) => self.reply(conn, &header, status_of(errno)),
            },
            What::Zero { punch, fua, next } => {
                let next = next + self.step_ended();
                let end = header.offset + header.extent;
                match result {
                    Err(Errno::EOPNOTSUPP) => {
                        // This file system never will.
                        if punch {
                            self.can_punch = false;
                        } else {
                            self.can_zero_range = false;
                        }
                        self.write_zeros(conn, &header, header.offset, end, fua);
                    }
                    Ok(_) if next < end => {
                        self.zero_on(Op { conn, header, what: What::Zero { punch, fua, next } });
                    }
                    result => self.changed(conn, &header, result.map(drop), fua),
                }
                self.zero_next();
            }
            What::WriteZeros { next, end, fua } => match result {
                Ok(_) if next < end => self.write_zeros(conn, &header, next, end, fua),
                result => self.changed(conn, &header, result.map(drop), fua),
            },
        }
    }

    /// The kernel keeps most errors of write-back for the next fsync. One of beginning it, as where no block can be had
    /// for what was promised one, it may have told us alone, and have dropped the data.
    fn writeback_begun(&mut self, result: Result<usize, Errno>) {
        self.early.begun();
        match result {
            // It is tried again with the next flush, or this file system has none.
            Ok(_) | Err(Errno::ENOMEM | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            Err(errno) => {
                self.gate.lost();
                self.tell(FromData::SyncFailed { reason: format!("write-back: {errno}") });
            }
        }
    }

    fn synced(&mut self, result: Result<usize, Errno>) {
        let mut drained = None;
        let Self { gate, driver, flush_sequence, .. } = self;
        gate.completed(result.is_ok(), |waiter, ok| match waiter {
            Waiter::Frame { conn, header } => {
                let status = if ok { Status::Ok } else { Status::Failed };
                if ok && header.kind == Kind::Flush {
                    *flush_sequence = header.sequence;
                }
                driver.send(conn, &header.answer(status).encode(), None);
            }
            Waiter::Drain => drained = Some(ok),
        });
        if let Err(errno) = result {
            self.tell(FromData::SyncFailed { reason: format!("fdatasync: {errno}") });
        }
        if let Some(flushed) = drained {
            self.drained(flushed);
        }
    }
}
