//! One turn: submit what is queued, wait, work off the completions.

use std::mem;
use std::time::{Duration, Instant};

use io_uring::opcode;

use super::super::conn::State;
use super::super::file::Next;
use super::super::ring::{Tag, Wait};
use super::super::{Awaited, Completion, ConnId, Errno, Error, ErrorKind, Spinner};
use super::Driver;

/// How often in a row the kernel may be too short of memory to take entries before the driver gives up, and how long it
/// waits for completions in between: ten seconds in all, a guess, well beyond a moment of reclaim.
const BUSY_MAX: u32 = 10_000;
const BUSY_REST: Duration = Duration::from_millis(1);

impl Driver {
    /// Submits all that is queued in one system call, waits for something to report or for `wait_until` (`None`: for
    /// ever; a time that has passed: not at all), and appends what happened to `out`.
    ///
    /// Without anything to submit or to reap, a turn that does not wait makes no system call, so spinning is cheap.
    ///
    /// # Errors
    /// The ring itself failed; the driver cannot go on.
    pub fn turn(&mut self, wait_until: Option<Instant>, out: &mut Vec<Completion>) -> Result<(), Error> {
        let mut busy = 0;
        loop {
            let full = self.fill();
            let wait = if full || !self.ready.is_empty() { Wait::No } else { wait_for(wait_until) };
            let taken = self.ring.enter(wait)?;
            self.reap();
            if !self.ready.is_empty() {
                // Also when there is more to submit than fits: under a flood that might never end.
                out.append(&mut self.ready);
                return Ok(());
            }
            if !taken {
                busy += 1;
                if busy > BUSY_MAX {
                    return Err(Error::new(ErrorKind::Ring, "submit to the io_uring", Errno::EBUSY));
                }
                self.ring.rest(BUSY_REST)?;
                continue;
            }
            if full {
                continue;
            }
            // Nothing to report: a partial send went on, a signal came, or the time has passed.
            if wait == Wait::No || wait_until.is_some_and(|until| until <= Instant::now()) {
                return Ok(());
            }
        }
    }

    /// Like [`Driver::turn`], but where `spinner` says so it looks for completions for a while before it sleeps.
    /// `depth`: how many operations are in flight; `epoch`: what the spinner's times count from.
    ///
    /// # Errors
    /// As there.
    pub fn turn_looking(
        &mut self,
        spinner: &mut Spinner,
        (awaited, depth): (Awaited, usize),
        epoch: Instant,
        wait_until: Option<Instant>,
        out: &mut Vec<Completion>,
    ) -> Result<(), Error> {
        if spinner.is_off() {
            return self.turn(wait_until, out);
        }
        let began = Instant::now();
        let look = spinner.look(awaited, depth, began - epoch);
        if look > Duration::ZERO {
            let until = wait_until.map_or(began + look, |at| at.min(began + look));
            self.turn(Some(began), out)?;
            if has_come(out) {
                spinner.was_there(awaited);
            }
            self.look(spinner, epoch, until, out)?;
        }
        if out.is_empty() {
            self.turn(wait_until, out)?;
        }
        // That the time has passed without anything is a long wait.
        if out.is_empty() || has_come(out) {
            spinner.came(awaited, began.elapsed());
        }
        Ok(())
    }

    /// Looks until there is something to report, or somebody else needs the processor.
    fn look(
        &mut self,
        spinner: &mut Spinner,
        epoch: Instant,
        until: Instant,
        out: &mut Vec<Completion>,
    ) -> Result<(), Error> {
        let mut now = Instant::now();
        loop {
            // The kernel's word alone is no reason to go on: it may stand for work that has been done already, for as
            // long as nothing else comes.
            if self.ring.has_news() {
                self.turn(Some(now), out)?;
            }
            if !out.is_empty() || now >= until {
                return Ok(());
            }
            std::thread::yield_now();
            let before = mem::replace(&mut now, Instant::now());
            if spinner.gave_way(now - before, now - epoch) {
                return Ok(());
            }
        }
    }

    /// Fills the submission queue; true when it is full with more to come.
    fn fill(&mut self) -> bool {
        if !self.wake.is_armed() {
            if self.ring.room() == 0 {
                return true;
            }
            let entry = self.wake.arm();
            // SAFETY: the counter and the eventfd live in `self.wake` until the read has ended or the driver leaks it.
            unsafe { self.ring.push(entry, Tag::Wake) };
        }
        self.fill_cancels() || self.fill_conns() || self.fill_operations()
    }

    pub(super) fn fill_cancels(&mut self) -> bool {
        while !self.cancels.is_empty() {
            if self.ring.room() == 0 {
                return true;
            }
            let Some(tag) = self.cancels.pop() else { break };
            let entry = opcode::AsyncCancel::new(tag.to_user_data()).build();
            // SAFETY: a cancellation names no memory. Should the slot have been reused, it ends the new connection's
            // receive or send with an error, which is an outage but not a breach; `settle` and the order of
            // submission (cancellations first) make that impossible.
            unsafe { self.ring.push(entry, Tag::Cancel) };
        }
        false
    }

    fn fill_conns(&mut self) -> bool {
        while let Some(&slot) = self.dirty.front() {
            // A connection submits at most a receive and a send.
            if self.ring.room() < 2 {
                return true;
            }
            self.dirty.pop_front();
            let Some((key, conn)) = self.conns.at(slot) else { continue };
            conn.dirty = false;
            if conn.state < State::Failed {
                let fd = conn.fd();
                if let Some(entry) = conn.rx.next(fd) {
                    // SAFETY: the receive buffer, the caller's buffer and the socket are kept by the connection, which
                    // stays in the table until it is idle (`settle`); `rx` leaves the range alone until `ended`.
                    unsafe { self.ring.push(entry, Tag::Recv(slot)) };
                    self.stats.recvs += 1;
                }
                if let Some(entry) = conn.tx.next(fd) {
                    // SAFETY: the message, its vectors, heads and payloads and the socket are kept by the connection,
                    // which stays in the table until it is idle; `tx` leaves them alone until `ended`.
                    unsafe { self.ring.push(entry, Tag::Send(slot)) };
                    self.stats.sends += 1;
                }
            }
            self.settle(key);
        }
        false
    }

    fn fill_operations(&mut self) -> bool {
        while let Some(&slot) = self.pending.front() {
            if self.ring.room() == 0 {
                return true;
            }
            self.pending.pop_front();
            let (_, operation) = self.operations.at(slot).expect("a pending operation is in the table");
            let file =
                self.files.get(operation.file).expect("a file with operations in flight is not removed");
            let entry = operation.entry(&file.fd);
            // SAFETY: the buffer is kept by the operation, which stays in the table until `operation_ended`; the file
            // is kept by the count of operations in flight on it.
            unsafe { self.ring.push(entry, Tag::File(slot)) };
            self.stats.file_ops += 1;
        }
        false
    }

    fn reap(&mut self) {
        let mut reaped = mem::take(&mut self.reaped);
        self.ring.reap(&mut reaped);
        for (tag, result) in reaped.drain(..) {
            match tag {
                Tag::Recv(slot) => self.recv_ended(slot, result),
                Tag::Send(slot) => self.send_ended(slot, result),
                Tag::File(slot) => self.operation_ended(slot, result),
                Tag::Wake => {
                    self.wake.disarm();
                    self.stats.wakes += 1;
                    self.ready.push(Completion::Wake);
                }
                Tag::Cancel => {}
            }
        }
        self.reaped = reaped;
    }

    fn recv_ended(&mut self, slot: u32, result: i32) {
        let (key, conn) = self.conns.at(slot).expect("a connection stays until its last completion");
        let id = ConnId(key);
        let progress = conn.rx.ended(usize::try_from(result).unwrap_or(0));
        match conn.state {
            State::Open if result > 0 => {
                if let Some(buf) = progress.filled {
                    self.ready.push(Completion::ReceivedInto { conn: id, buf });
                }
                if progress.received {
                    self.ready.push(Completion::Received { conn: id });
                }
            }
            State::Open if result == -libc::EINTR => {}
            State::Open if result == 0 && conn.outlives_input => {
                conn.rx.set_paused(true);
                conn.rx.release();
                self.ready.push(Completion::Ended { conn: id });
            }
            State::Open => {
                conn.fail();
                let error = if result == 0 { Errno::ECONNRESET } else { Errno::from_raw(-result) };
                self.ready.push(Completion::Failed { conn: id, error });
            }
            State::Draining => {
                conn.rx.abandon();
                // The peer will send no more; that does not keep it from reading.
                conn.rx.set_paused(result <= 0 && result != -libc::EINTR);
            }
            State::Failed => conn.rx.release(),
            State::Closing => conn.rx.abandon(),
        }
        self.touch(key);
    }

    fn send_ended(&mut self, slot: u32, result: i32) {
        let (key, conn) = self.conns.at(slot).expect("a connection stays until its last completion");
        let id = ConnId(key);
        let emptied = conn.tx.ended(usize::try_from(result).unwrap_or(0));
        let failed = result < 0 && result != -libc::EINTR;
        match conn.state {
            State::Open if failed => {
                conn.fail();
                self.ready.push(Completion::Failed { conn: id, error: Errno::from_raw(-result) });
            }
            State::Open if emptied => self.ready.push(Completion::Sent { conn: id }),
            State::Draining if failed || emptied => self.close(id),
            State::Open | State::Draining => {}
            State::Failed | State::Closing => conn.tx.abandon(),
        }
        self.touch(key);
    }

    fn operation_ended(&mut self, slot: u32, result: i32) {
        let (key, operation) = self.operations.at(slot).expect("an operation stays until its completion");
        match operation.ended(result) {
            Next::Again => self.pending.push_back(slot),
            Next::Done(result) => {
                let operation = self.operations.remove(key).expect("found just above");
                if let Some(file) = self.files.get_mut(operation.file) {
                    file.in_flight -= 1;
                }
                let token = operation.token;
                self.ready.push(Completion::File { token, result, buf: operation.into_buf() });
            }
        }
    }
}

fn wait_for(until: Option<Instant>) -> Wait {
    let Some(until) = until else { return Wait::Forever };
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Wait::No,
        left => Wait::For(left),
    }
}

/// Whether there is more than that the kernel took what we sent, which is no answer.
fn has_come(out: &[Completion]) -> bool {
    out.iter().any(|completion| !matches!(completion, Completion::Sent { .. }))
}
