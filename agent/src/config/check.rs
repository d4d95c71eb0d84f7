//! Values that are out of range, and combinations that cannot work, whichever sources they come from.

use std::time::Duration;

use holdfast_proto::record::REPLICAS_MAX;

use super::{Origin, Partial, Sourced};
use crate::units::format_duration;

const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// A copy is 256 KiB: below four a second, a rebuild of any size takes days.
const BANDWIDTH_MIN: u64 = 1 << 20;
/// The engine has 16 buffers for copies.
const INFLIGHT_MAX: u32 = 16;
/// As many as a node is meant to have volumes: no limit at all.
const CONCURRENCY_MAX: u32 = 1000;

impl Partial {
    /// Appends what is wrong.
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        self.check_addresses(problems);
        self.check_registry(problems);
        self.check_ranges(problems);
        self.check_times(problems);
    }

    fn check_addresses(&self, problems: &mut Vec<String>) {
        // What is advertised where it is given, else what is bound.
        if let Some(reached) = self.advertise.as_ref().or(self.bind.as_ref())
            && reached.value.is_unspecified()
        {
            problems.push(format!(
                "{} = {} cannot be reached by engines; remedy: give the one address of this node that others use, \
                 such as 127.0.0.1 or ::1 for this node alone, as bind or as advertise",
                reached.origin, reached.value
            ));
        }
        if let (Some(data), Some(runtime)) = (&self.data_dir, &self.runtime_dir)
            && data.value == runtime.value
        {
            problems.push(format!(
                "{}: data and sockets cannot share {}; remedy: give the sockets a directory of their own with \
                 --runtime-dir",
                runtime.origin,
                data.value.display()
            ));
        }
    }

    fn check_ranges(&self, problems: &mut Vec<String>) {
        let second = Duration::from_secs(1);
        let times = [
            (&self.replica_timeout, second, WEEK),
            (&self.suspend_timeout, second, WEEK),
            (&self.read_lease, Duration::from_millis(200), Duration::from_secs(3600)),
            (&self.replica_lag_max, Duration::from_millis(10), WEEK),
            (&self.heartbeat, Duration::from_millis(100), Duration::from_secs(60)),
            (&self.start_patience, Duration::from_millis(100), WEEK),
            (&self.orphan_grace_period, Duration::ZERO, WEEK * 52),
            (&self.replenish_after, second, WEEK * 52),
        ];
        for (time, least, most) in times {
            if let Some(Sourced { value, origin }) = time
                && !(least..=most).contains(value)
            {
                let [value, least, most] = [*value, least, most].map(format_duration);
                problems.push(format!("{origin} = {value} is out of range; remedy: {least} to {most}"));
            }
        }
        let replicas = u32::try_from(REPLICAS_MAX).unwrap_or(u32::MAX);
        for (count, most) in [
            (&self.min_in_sync, replicas),
            (&self.rebuild_inflight, INFLIGHT_MAX),
            (&self.rebuild_concurrency, CONCURRENCY_MAX),
        ] {
            if let Some(Sourced { value, origin }) = count
                && !(1..=most).contains(value)
            {
                problems.push(format!("{origin} = {value} is out of range; remedy: 1 to {most}"));
            }
        }
        if let Some(Sourced { value, origin }) = &self.rebuild_bandwidth
            && (1..BANDWIDTH_MIN).contains(value)
        {
            problems.push(format!(
                "{origin} = {value} would make a rebuild last for ever; remedy: at least 1MiB (a second), or 0 for \
                 no limit"
            ));
        }
    }

    /// Times that only make sense together.
    fn check_times(&self, problems: &mut Vec<String>) {
        let limits = self.limits();
        let short = |time: Duration, other: Duration| (format_duration(time), format_duration(other));
        let origin = |first: &Option<Sourced<Duration>>, second: &Option<Sourced<Duration>>| {
            first.as_ref().or(second.as_ref()).map(|setting| setting.origin.clone())
        };
        let suspend: Option<Origin> = origin(&self.suspend_timeout, &self.replica_timeout);
        if let Some(origin) = suspend
            && limits.suspend_timeout < limits.replica_timeout
        {
            let (suspend, replica) = short(limits.suspend_timeout, limits.replica_timeout);
            problems.push(format!(
                "{origin}: the suspend timeout ({suspend}) is below the replica timeout ({replica}), so I/O would \
                 fail before a replica could be left out; remedy: make the suspend timeout the longer one"
            ));
        }
        if let Some(origin) = origin(&self.read_lease, &self.heartbeat)
            && limits.read_lease < limits.heartbeat * 2
        {
            let (lease, heartbeat) = short(limits.read_lease, limits.heartbeat);
            problems.push(format!(
                "{origin}: the read lease ({lease}) is below two heartbeats of {heartbeat}, so reads would stop \
                 between one and the next; remedy: a longer read_lease or a shorter heartbeat"
            ));
        }
        if let Some(origin) = origin(&self.heartbeat, &self.replica_timeout)
            && limits.replica_timeout < limits.heartbeat * 2
        {
            let (replica, heartbeat) = short(limits.replica_timeout, limits.heartbeat);
            problems.push(format!(
                "{origin}: the replica timeout ({replica}) is below two heartbeats of {heartbeat}, so a replica \
                 that is only late would be left out; remedy: a longer replica_timeout or a shorter heartbeat"
            ));
        }
    }
}
