//! The look every few seconds at what others may have changed without a word. Where nothing is under way and nothing has
//! changed, a plan would be the one that was made last, and none is made: with a thousand instances that is most of what
//! an idle agent would do.

use std::sync::Arc;
use std::time::Duration;

use super::{Reads, Shared, State, Supervisor, blocking};
use crate::core::foreign::Foreign;
use crate::core::records::Records;

/// A plan is made at least this often, whatever was or was not noticed.
const PLAN_EVERY: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Whether a plan made now would certainly be the last one. Records and claims are read for it; what instances and
    /// other nodes say, and what time alone changes, brings a plan by itself.
    pub(super) async fn is_as_planned(&mut self, shared: &Shared) -> bool {
        if shared.now().saturating_sub(self.planned_at) >= PLAN_EVERY || !self.is_settled() {
            return false;
        }
        self.read_records(shared, Reads::Changed).await;
        if self.planned_from != (Arc::clone(&self.records), Arc::clone(&self.foreign)) {
            return false;
        }
        let (replicas, labels) = (shared.data.replicas(), Arc::clone(&shared.labels));
        let then = self.orphans.labels_then;
        blocking(move || labels.are_as_of(then, &replicas)).await.unwrap_or_default()
    }

    /// Whether nothing is under way, waits, fails, or is in doubt.
    fn is_settled(&self) -> bool {
        let rests = |state: &State| matches!(state, State::Running | State::Down { error: None, .. });
        matches!((&*self.records, &*self.foreign), (Records::Known(_), Foreign::Known(_)))
            && self.plan.blocked.is_empty()
            && self.plan.next_at.is_none()
            && self.instances.values().all(|instance| rests(instance.state()))
            && self.blocked.is_empty()
            && self.moves.under_way().next().is_none()
            && self.retries.failing() == 0
            && self.turns.is_idle()
            && self.forgetting.is_empty()
            && self.orphans.is_settled()
    }
}
