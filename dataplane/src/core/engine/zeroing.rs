//! Trims and zeroing of clients, step by step: one step is in flight at a time, whoever asked for it, and takes about as
//! long as a write (`core/zero_steps.rs`). So what is asked for meanwhile waits for one step at most, here and on the
//! replicas. Each client's gets a step in turn.
//!
//! A step is an operation of its own as far as its range is concerned: the range lock has that range alone, and what is
//! not reached yet may be written. A request whose parts are in flight together with a write to them has no order with it.
//!
//! A member that is slow at it is slow at nothing else that is known: its lag is not judged while it owes a step, nor by
//! what was owed then. Slow steps are followed by a rest, and in that it is judged as ever.

use std::collections::VecDeque;
use std::time::Duration;

use super::ops::Stage;
use super::{Engine, Mask, Now};
use crate::core::zero_steps::ZeroSteps;

/// A step that takes so long is one that does not end: the least is eight extents. A guess.
const HANGS: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub(super) struct Zeroing {
    /// For their next step.
    pub(super) waiting: VecDeque<u32>,
    /// A step of this is on its way, or waits for its range.
    running: Option<u32>,
    steps: ZeroSteps,
    /// When that step was sent.
    pub(super) sent_at: Now,
    /// Others go first until then.
    rest_until: Now,
}

impl Zeroing {
    /// When the next step may begin that a rest holds back.
    pub(super) fn next_at(&self) -> Option<Now> {
        (self.running.is_none() && !self.waiting.is_empty()).then_some(self.rest_until)
    }
    /// What the model checker tells states apart by; there are none of these in it.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, h: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (&self.waiting, self.running).hash(h);
    }
}

impl Engine {
    /// Lets the next in the row have its step.
    pub(super) fn zero_next(&mut self, now: Now) {
        if self.zeroing.running.is_some() || now < self.zeroing.rest_until {
            return;
        }
        let Some(id) = self.zeroing.waiting.pop_front() else { return };
        self.zeroing.running = Some(id);
        let steps = &self.zeroing.steps;
        let (start, len) = self.ops.begin_step(id, |left| steps.next(left), now);
        if self.lock.acquire(id, start, start + len, true) {
            self.ready.push_back(id);
        }
    }

    /// All members have this step. Whether there is another to come.
    pub(super) fn step_done(&mut self, id: u32, now: Now) -> bool {
        let (bytes, left) = self.ops.step(id);
        if self.zeroing.running == Some(id) {
            let time = now.saturating_sub(self.zeroing.sent_at);
            if let Some(rest) = self.zeroing.steps.took(bytes, time, now) {
                self.zeroing.rest_until = now + rest;
            }
        }
        if left == 0 {
            return false;
        }
        self.ops.step_on(id);
        self.lock.release(id, &mut self.ready);
        self.zeroing.running.take_if(|running| *running == id);
        self.zeroing.waiting.push_back(id);
        self.zero_next(now);
        true
    }

    /// An operation has ended.
    pub(super) fn zeroing_ended(&mut self, id: u32, now: Now) {
        if self.zeroing.running == Some(id) {
            self.zeroing.running = None;
            self.zero_next(now);
        }
    }

    /// Who owes a step, and not for so long that it is more than slow.
    pub(super) fn owes_zeroing(&self, now: Now) -> Mask {
        let sent = self.zeroing.running.map(|id| self.ops.get(id)).filter(|op| op.stage == Stage::Main);
        let hangs = now.saturating_sub(self.zeroing.sent_at) >= HANGS;
        sent.filter(|_| !hangs).map_or(0, |op| op.pending)
    }
}
