//! What decides: pure functions and small state machines over records and observations. No socket, file, task or
//! clock is named here; `now` is an argument, as the time since some fixed moment on a monotonic clock.

pub mod backoff;
pub mod blocked;
pub mod claims;
pub mod creation;
pub mod elsewhere;
pub mod features;
pub mod follow;
pub mod foreign;
pub mod history;
pub mod identity;
pub mod instance;
pub mod inventory;
pub mod losses;
pub mod moves;
pub mod nodes;
pub mod orphan;
pub mod placement;
pub mod predecessor;
pub mod presence;
pub mod publish;
pub mod published;
pub mod reconcile;
pub mod records;
pub mod rename;
pub mod retry;
#[cfg(test)]
pub(crate) mod testing;
pub mod turns;
pub mod undelete;
pub mod upkeep;
pub mod view;
pub mod waits;

/// A moment on a monotonic clock that only the shell reads.
pub type Moment = std::time::Duration;
