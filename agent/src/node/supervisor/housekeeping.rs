//! What is due every few seconds whatever happens: logs, the trash, and instances that nobody could ask.

use std::time::SystemTime;

use super::{Event, Instance, InstanceName, Shared, Supervisor, blocking, logs, proc};

/// The trash is looked through every so many ticks: its times are hours.
const SWEEP_EVERY_TICKS: u64 = 12;

/// Seconds of the wall clock since 1970: for names and ages of what waits in the trash.
pub(super) fn unix_now_s() -> u64 {
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
        let done = blocking(move || {
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
                instance.handle(Event::Ended("no process holds its lock".to_owned()), shared.now());
            }
        }
    }
}
