//! Trims and zeroing on the data thread: one call of the file system at a time, of a size that takes about as long as a
//! write, and each frame in turn. A call holds the file's lock, and every write to the image waits for it: also those that
//! this thread makes itself, and with it heartbeats and flushes.

use std::collections::VecDeque;
use std::time::Duration;

use super::data::{Data, OPS_MAX, Op, What};
use crate::core::zero_steps::ZeroSteps;
use crate::io::FallocateMode;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Zeroing {
    /// Tokens of operations, for their next step.
    waiting: VecDeque<u64>,
    running: Option<Step>,
    steps: ZeroSteps,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    bytes: u64,
    began_at: Duration,
}

impl Zeroing {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(OPS_MAX), running: None, steps: ZeroSteps::default() }
    }
}

impl Data {
    /// An operation waits for its next step.
    pub(super) fn zero_on(&mut self, op: Op) {
        let token = self.ops.insert(op);
        self.zeroing.waiting.push_back(token);
        self.zero_next();
    }

    /// Begins the next step, unless one is under way.
    pub(super) fn zero_next(&mut self) {
        if self.zeroing.running.is_some() {
            return;
        }
        let Some(token) = self.zeroing.waiting.pop_front() else { return };
        let Op { header, what: What::Zero { punch, next, .. }, .. } = self.ops.get(token) else {
            unreachable!("what waits for a step is zeroing")
        };
        let bytes = self.zeroing.steps.next(header.offset + header.extent - next);
        self.zeroing.running = Some(Step { bytes, began_at: self.elapsed() });
        let mode = if punch { FallocateMode::PunchHole } else { FallocateMode::ZeroRange };
        self.driver.fallocate(self.file, token, mode, next, bytes);
    }

    /// The step under way has ended: its bytes.
    pub(super) fn step_ended(&mut self) -> u64 {
        let Step { bytes, began_at } = self.zeroing.running.take().expect("a step was under way");
        let now = self.elapsed();
        // Between two there is room for whoever waits for the file: there is nothing to rest from here.
        let _ = self.zeroing.steps.took(bytes, now.saturating_sub(began_at), now);
        bytes
    }
}
