//! What the node allows this engine beside the others: how fast it may fill replicas, and whether it waits for its turn.
//!
//! A turn is waited for only so long as was said: nobody is left without a copy because whoever gives turns is away.

use std::time::Duration;

use super::Stage;
use crate::core::engine::{Engine, Now};
use crate::core::rebuild_budget::Limits;

/// What the node allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Bytes copied per second at most; 0: no limit.
    pub bytes_per_second: u64,
    /// Others go first.
    pub wait: Option<Wait>,
}

/// A turn that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// For so long, unless it is said again.
    pub at_most: Duration,
    /// Why, for people.
    pub reason: String,
}

/// Until when, and why.
#[derive(Debug, Clone)]
pub(in crate::core::engine) struct Waiting {
    until: Now,
    reason: String,
}

impl super::Fill {
    /// Why nothing is copied now, where the node lets others go first.
    pub(in crate::core::engine) fn waits_for_turn(&self, now: Now) -> Option<&str> {
        self.waiting.as_ref().filter(|waiting| now < waiting.until).map(|waiting| waiting.reason.as_str())
    }

    /// Whether a target that lacks something waits for its turn. One that lacks nothing any more is made a member.
    pub(super) fn is_held(&self, now: Now) -> bool {
        let lacks = |target: &super::Target| !target.todo.is_empty() || !target.compare.is_empty();
        self.waits_for_turn(now).is_some() && self.target.as_ref().is_some_and(lacks)
    }

    /// Forgets a turn that was waited for long enough.
    pub(super) fn end_turn_waited_for(&mut self, now: Now) {
        self.waiting.take_if(|waiting| waiting.until <= now);
    }

    /// When the next copy may begin that the node's turn, or the bandwidth limit, holds back.
    pub(in crate::core::engine) fn next_at(&self) -> Option<Now> {
        self.target.as_ref().filter(|target| target.stage == Stage::Copying)?;
        let turn = self.waiting.as_ref().map(|waiting| waiting.until);
        turn.into_iter().chain(self.budget.next_at()).max()
    }
}

impl Engine {
    /// The node allows this from here on; none: what the engine was started with.
    pub fn pace_fill(&mut self, pace: Option<Pace>, now: Now) {
        let started_with = self.config.rebuild_bytes_per_second;
        let bytes_per_second = pace.as_ref().map_or(started_with, |pace| pace.bytes_per_second);
        let limits = Limits { inflight_max: self.config.copies_max, bytes_per_second };
        self.fill.budget.set_limits(limits, now);
        self.fill.waiting = pace
            .and_then(|pace| pace.wait)
            .map(|wait| Waiting { until: now + wait.at_most, reason: wait.reason });
        self.fill_next(now);
    }
}
