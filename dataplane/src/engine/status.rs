//! What the core reports, in the agent's words.

use holdfast_proto::pb::instance as pb;

use crate::core::engine::{Ending, EngineState, ReplicaMode, ReplicaReport, Report};
use crate::frontend::{IoCounters, IoKind, KindCounters};

/// What the control thread knows beside the report.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) report: Option<Report>,
    pub(super) clients: usize,
    pub(super) clients_stalled: u64,
    pub(super) io: IoCounters,
    /// Set while clients can come.
    pub(super) nbd_socket: String,
    pub(super) nbd_tcp: String,
    /// What goes wrong with a frontend, for people.
    pub(super) trouble: String,
    pub(super) served: bool,
    pub(super) draining: bool,
    pub(super) ending: Option<Ending>,
}

impl Facts {
    /// Writes it down for watchers.
    pub(super) fn show(&self, status: &mut pb::InstanceStatus) {
        let Some(report) = &self.report else { return };
        let phase = match (self.draining, self.served) {
            (true, _) => "stopping",
            (false, true) => "running",
            (false, false) => "starting",
        };
        phase.clone_into(&mut status.phase);
        status.reason = self.reason(report);
        status.engine = Some(pb::EngineStatus {
            state: self.state(report).to_owned(),
            generation: report.generation.0,
            epoch: report.epoch.0,
            nbd_socket: self.nbd_socket.clone(),
            nbd_tcp: self.nbd_tcp.clone(),
            replicas: report
                .replicas
                .iter()
                .map(|replica| pb::ReplicaState {
                    id: replica.id.0,
                    mode: mode(replica.mode).to_owned(),
                    reason: replica.reason.clone(),
                    done_bytes: replica.done_bytes,
                    total_bytes: replica.total_bytes,
                    bytes_per_second: replica.rate.bytes_per_second,
                    remaining_s: replica.rate.remaining.map(|left| left.as_secs()),
                    copied_bytes: replica.copied_bytes,
                    compared_bytes: replica.compared_bytes,
                })
                .collect(),
            clients: u32::try_from(self.clients).unwrap_or(u32::MAX),
            waiting_for: report.waiting_for.clone(),
            reads: report.reads,
            writes: report.writes,
            fenced: matches!(self.ending, Some(Ending::Fenced { .. })),
            unrepaired_bytes: report.unrepaired_bytes,
            configured: report.configured.iter().map(|id| id.0).collect(),
            change_waits_for: report.change_waits_for.clone(),
            forced: report.forced.clone(),
            io: self.io.kinds().map(io_counters).collect(),
            clients_stalled: self.clients_stalled,
        });
    }

    /// The replicas whose mode is another one in `next`, and what it was.
    pub(super) fn modes_that_change<'a>(
        &self,
        next: &'a Report,
    ) -> impl Iterator<Item = (&'a ReplicaReport, &'static str)> {
        let before = self.report.as_ref().map_or(&[][..], |report| &report.replicas);
        next.replicas.iter().filter_map(|replica| {
            let old = before.iter().find(|old| old.id == replica.id)?;
            (old.mode != replica.mode).then(|| (replica, mode(old.mode)))
        })
    }

    fn reason(&self, report: &Report) -> String {
        let reason = match &self.ending {
            Some(ending) => describe(ending),
            None if !report.waiting_for.is_empty() => format!("waiting for {}", report.waiting_for),
            None if !report.change_waits_for.is_empty() => {
                format!("the set of replicas is being changed: {}", report.change_waits_for)
            }
            None => report.forced.clone(),
        };
        match (reason.is_empty(), self.trouble.is_empty()) {
            (true, _) => self.trouble.clone(),
            (false, true) => reason,
            (false, false) => format!("{reason}; {}", self.trouble),
        }
    }

    fn state(&self, report: &Report) -> &'static str {
        match (&self.ending, report.state) {
            (Some(Ending::Clean | Ending::Unclean(_)), _) | (None, EngineState::Detaching) => "detaching",
            (Some(Ending::Fenced { .. } | Ending::CacheLost | Ending::RecordMissing), _)
            | (None, EngineState::Faulted) => "faulted",
            (None, EngineState::Attaching) => "attaching",
            (None, EngineState::Healthy) => "healthy",
            (None, EngineState::Degraded) => "degraded",
            (None, EngineState::Suspended) => "suspended",
        }
    }
}

fn io_counters((kind, counted): (IoKind, &KindCounters)) -> pb::IoCounters {
    pb::IoCounters {
        kind: kind.as_str().to_owned(),
        requests: counted.requests,
        errors: counted.errors,
        bytes: counted.bytes,
        latency_sum_ns: counted.latency_sum_ns,
        latency_buckets: counted.latency_buckets.to_vec(),
    }
}

/// How an engine ended, for people.
pub(super) fn describe(ending: &Ending) -> String {
    match ending {
        Ending::Clean => "drained and flushed on every member".to_owned(),
        Ending::Unclean(why) => why.clone(),
        Ending::Fenced { by } => {
            format!(
                "an engine of generation {by} has taken the volume over; this one serves nothing any more"
            )
        }
        Ending::CacheLost => {
            "every member lost its cache with writes in it that were acknowledged and not flushed; \
             what was flushed is safe"
                .to_owned()
        }
        Ending::RecordMissing => {
            "the volume has no record any more, or one that means another engine".to_owned()
        }
    }
}

pub(super) fn mode(mode: ReplicaMode) -> &'static str {
    match mode {
        ReplicaMode::Member => "member",
        ReplicaMode::Suspect => "suspect",
        ReplicaMode::CatchingUp => "catching_up",
        ReplicaMode::Rebuilding => "rebuilding",
        ReplicaMode::Faulted => "faulted",
        ReplicaMode::Absent => "absent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::rebuild_budget::Progress;
    use holdfast_proto::ids::{Epoch, Generation};

    fn report(state: EngineState) -> Report {
        Report {
            state,
            generation: Generation(3),
            epoch: Epoch(4),
            configured: holdfast_proto::record::ReplicaSet::new(),
            replicas: Vec::new(),
            waiting_for: String::new(),
            change_waits_for: String::new(),
            forced: String::new(),
            unrepaired_bytes: 0,
            reads: 0,
            writes: 0,
        }
    }

    fn shown(facts: &Facts) -> (String, String, bool) {
        let mut status = pb::InstanceStatus::default();
        facts.show(&mut status);
        let engine = status.engine.unwrap();
        (status.phase, engine.state, engine.fenced)
    }

    #[test]
    fn a_fenced_engine_says_so_and_keeps_running() {
        let facts = Facts {
            report: Some(report(EngineState::Faulted)),
            served: true,
            ending: Some(Ending::Fenced { by: Generation(9) }),
            ..Facts::default()
        };
        assert_eq!(shown(&facts), ("running".to_owned(), "faulted".to_owned(), true));
    }

    #[test]
    fn a_change_of_a_replicas_mode_is_told_once() {
        let with = |mode| {
            let mut report = report(EngineState::Healthy);
            let id = holdfast_proto::ids::ReplicaId(2);
            let replica = ReplicaReport {
                id,
                mode,
                reason: "slow".to_owned(),
                done_bytes: 0,
                total_bytes: 0,
                rate: Progress::default(),
                copied_bytes: 0,
                compared_bytes: 0,
            };
            report.replicas.push(replica);
            report
        };
        let facts = Facts { report: Some(with(ReplicaMode::Member)), ..Facts::default() };
        assert_eq!(facts.modes_that_change(&with(ReplicaMode::Member)).count(), 0);
        let next = with(ReplicaMode::Suspect);
        let changes: Vec<_> = facts.modes_that_change(&next).map(|(r, from)| (r.mode, from)).collect();
        assert_eq!(changes, [(ReplicaMode::Suspect, "member")]);
    }

    #[test]
    fn after_a_drain_it_is_detaching_and_not_faulted() {
        let facts = Facts {
            report: Some(report(EngineState::Faulted)),
            served: true,
            draining: true,
            ending: Some(Ending::Clean),
            ..Facts::default()
        };
        assert_eq!(shown(&facts), ("stopping".to_owned(), "detaching".to_owned(), false));
    }

    #[test]
    fn what_a_start_waits_for_is_the_reason() {
        let mut waiting = report(EngineState::Attaching);
        waiting.waiting_for = "{r2}: it would decide".to_owned();
        let facts = Facts { report: Some(waiting), ..Facts::default() };
        let mut status = pb::InstanceStatus::default();
        facts.show(&mut status);
        assert_eq!(
            (status.phase.as_str(), status.reason.as_str()),
            ("starting", "waiting for {r2}: it would decide")
        );
    }
}
