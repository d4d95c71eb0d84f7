//! What engines wait for and how long, how slow a replica may be, how fast one is filled, and how data threads wait.

use std::time::Duration;

use holdfast_dataplane::io::SpinMode;

use super::{Partial, Sourced};

/// Limits that instances are started with. `docs/operations.md` has the reason of each default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A replica that owes an answer for this long is left out.
    pub replica_timeout: Duration,
    /// Held I/O fails after this long.
    pub suspend_timeout: Duration,
    /// Below this many members I/O is suspended.
    pub min_in_sync: u32,
    /// Reads are answered only while every member answered something sent no longer ago than this.
    pub read_lease: Duration,
    /// A member that goes on being slower than this, while others are quick, is left behind.
    pub replica_lag_max: Duration,
    /// Every replica is asked this often whether it is there.
    pub heartbeat: Duration,
    /// How long a start waits for the replicas that it could do without.
    pub start_patience: Duration,
    /// Regions in flight while a replica is filled.
    pub rebuild_inflight: u32,
    /// Bytes per second that the engines of this node copy to replicas that are filled, all together; 0: no limit.
    pub rebuild_bandwidth: u64,
    /// So many volumes whose engine is on this node are filled at a time; others wait for their turn.
    pub rebuild_concurrency: u32,
    /// How the data threads of engines and replicas wait for what comes next.
    pub spin: SpinMode,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            replica_timeout: Duration::from_secs(8),
            suspend_timeout: Duration::from_secs(300),
            min_in_sync: 1,
            read_lease: Duration::from_secs(5),
            replica_lag_max: Duration::from_secs(2),
            heartbeat: Duration::from_secs(1),
            start_patience: Duration::from_secs(3),
            rebuild_inflight: 4,
            rebuild_bandwidth: 0,
            rebuild_concurrency: 4,
            spin: SpinMode::Auto,
        }
    }
}

impl Limits {
    /// Every setting under its key, as people write it.
    #[must_use]
    pub(super) fn list(&self) -> [(&'static str, String); 11] {
        let time = crate::units::format_duration;
        [
            ("replica_timeout", time(self.replica_timeout)),
            ("suspend_timeout", time(self.suspend_timeout)),
            ("min_in_sync", self.min_in_sync.to_string()),
            ("read_lease", time(self.read_lease)),
            ("replica_lag_max", time(self.replica_lag_max)),
            ("heartbeat", time(self.heartbeat)),
            ("start_patience", time(self.start_patience)),
            ("rebuild_inflight", self.rebuild_inflight.to_string()),
            ("rebuild_bandwidth", self.rebuild_bandwidth.to_string()),
            ("rebuild_concurrency", self.rebuild_concurrency.to_string()),
            ("spin", self.spin.to_string()),
        ]
    }
}

impl Partial {
    /// What is set, and the defaults for the rest.
    pub(super) fn limits(&self) -> Limits {
        fn or<T: Copy>(setting: Option<&Sourced<T>>, default: T) -> T {
            setting.map_or(default, |s| s.value)
        }
        let default = Limits::default();
        let replica_timeout = or(self.replica_timeout.as_ref(), default.replica_timeout);
        let read_lease = or(self.read_lease.as_ref(), default.read_lease);
        // Where only one of the others is set, it need not be set too.
        let heartbeat = default.heartbeat.min(replica_timeout / 2).min(read_lease / 2);
        Limits {
            replica_timeout,
            suspend_timeout: or(self.suspend_timeout.as_ref(), default.suspend_timeout),
            min_in_sync: or(self.min_in_sync.as_ref(), default.min_in_sync),
            read_lease,
            replica_lag_max: or(self.replica_lag_max.as_ref(), default.replica_lag_max),
            heartbeat: or(self.heartbeat.as_ref(), heartbeat),
            start_patience: or(self.start_patience.as_ref(), default.start_patience),
            rebuild_inflight: or(self.rebuild_inflight.as_ref(), default.rebuild_inflight),
            rebuild_bandwidth: or(self.rebuild_bandwidth.as_ref(), default.rebuild_bandwidth),
            rebuild_concurrency: or(self.rebuild_concurrency.as_ref(), default.rebuild_concurrency),
            spin: or(self.spin.as_ref(), default.spin),
        }
    }
}
