//! What is due every few seconds whatever happens: logs, the trash, copies of the binary that nothing runs any more,
//! and instances that nobody could ask.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::{Event, Instance, InstanceName, Shared, Supervisor, blocking, happened, logs, proc};
use crate::process::binary;

/// The trash is looked through every so many ticks: its times are hours.
const SWEEP_EVERY_TICKS: u64 = 12;

/// Seconds of the wall clock since 1970: for names and ages of what waits in the trash.
pub(in crate::node) fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Supervisor {
    pub(super) async fn keep_house(&mut self, shared: &Shared) {
        self.look_at_the_undriven(shared).await;
        let paths: Vec<_> =
            self.instances.keys().map(|name| shared.store.log_of(&name.to_string())).collect();
        let sweep = self.ticks.is_multiple_of(SWEEP_EVERY_TICKS);
        self.ticks = self.ticks.wrapping_add(1);
        let (trash, ttl) = (shared.trash.clone(), shared.config.trash_ttl);
        let bin_dir = shared.config.bin_dir.clone().unwrap_or_else(|| shared.data.bin());
        let used = self.binaries_in_use();
        let done = blocking(move || {
            match used.map(|used| binary::remove_unused(&bin_dir, &used)) {
                None => {}
                Some(Ok(gone)) if gone.is_empty() => {}
                Some(Ok(gone)) => tracing::info!(?gone, "removed unused copies of the binary"),
                Some(Err(error)) => tracing::warn!(%error, "unused copies of the binary stay"),
            }
            for path in paths {
                if let Err(error) = logs::rotate(&path, logs::LOG_BYTES_MAX, logs::LOGS_KEPT) {
                    tracing::warn!(%error, "a log is not rotated");
                }
            }
            if sweep { trash.sweep(ttl, unix_now_s()) } else { Ok(Vec::new()) }
        });
        match done.await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "unlinked from the trash"),
            Err(error) => tracing::warn!(%error, "the trash is not emptied"),
        }
    }

    /// The copies of the binary that something runs, or will be started from; none where that is not known.
    fn binaries_in_use(&self) -> Option<BTreeSet<String>> {
        let mut used = BTreeSet::from([self.context.binary.digest.clone()]);
        for name in self.instances.iter().filter(|(_, i)| !i.is_down()).map(|(name, _)| name) {
            used.insert(self.digests.get(name)?.clone());
        }
        Some(used)
    }

    /// An instance without a readable spawn record has no driver; its lock still tells when it has ended.
    async fn look_at_the_undriven(&mut self, shared: &Shared) {
        let undriven = |(name, instance): &(&InstanceName, &Instance)| {
            !instance.is_down() && !self.drivers.contains_key(*name)
        };
        let names: Vec<_> = self.instances.iter().filter(undriven).map(|(name, _)| name.clone()).collect();
        for name in names {
            let lock = shared.store.lock_of(&name.to_string());
            let life = blocking(move || proc::probe(&lock)).await;
            if let (Ok(proc::Life::Free), Some(instance)) = (life, self.instances.get_mut(&name)) {
                happened(shared, &name, instance, Event::Ended("no process holds its lock".to_owned()));
            }
        }
    }
}
