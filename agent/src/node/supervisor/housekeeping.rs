//! What is due every few seconds whatever happens: logs, the trash, copies of the binary that nothing runs any more,
//! and instances that nobody could ask.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{
    Event, Instance, InstanceName, Records, Shared, State, Supervisor, blocking, happened, logs, proc,
    replica_dirs,
};
use crate::error::Error;
use crate::process::binary;
use crate::runtime_dir;
use crate::store::atomic::is_gone;
use crate::store::trash::Swept;

/// The trash is looked through every so many ticks: its times are hours.
const SWEEP_EVERY_TICKS: u64 = 12;

impl Supervisor {
    pub(super) async fn keep_house(&mut self, shared: &Shared) {
        self.look_at_the_undriven(shared).await;
        self.look_for_sockets(shared).await;
        let paths: Vec<_> =
            self.instances.keys().map(|name| shared.store.log_of(&name.to_string())).collect();
        // Nothing is unlinked while the registry is not believed: it may be about what is in the trash.
        let sweep =
            self.ticks.is_multiple_of(SWEEP_EVERY_TICKS) && matches!(*self.records, Records::Known(_));
        self.ticks = self.ticks.wrapping_add(1);
        let (trash, ttl, now) = (shared.trash.clone(), shared.config.trash_ttl, shared.now());
        let replicas = shared.data.replicas();
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
            if sweep {
                replica_dirs::clear_unfinished(&replicas);
                return trash.sweep(ttl, now);
            }
            Ok(Swept::default())
        });
        match done.await {
            Ok(Swept { gone, failed }) => {
                if !gone.is_empty() {
                    tracing::info!(?gone, "unlinked from the trash");
                }
                for reason in failed {
                    tracing::warn!(reason, "what waits in the trash cannot be unlinked; tried again");
                }
            }
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

    /// Sockets whose files were removed, and the directory of sockets, are made again. Who is connected has not noticed.
    async fn look_for_sockets(&mut self, shared: &Shared) {
        // Before it has answered a process may have no handler, and the signal that asks it would end it.
        let answers = |(_, instance): &(&InstanceName, &Instance)| {
            matches!(instance.state(), State::Starting | State::Running)
        };
        let there: Vec<_> = self.instances.iter().filter(answers).collect();
        let wanted: Vec<(InstanceName, PathBuf)> = there
            .into_iter()
            .flat_map(|(name, instance)| {
                let nbd = instance.engine_status().map(|engine| PathBuf::from(&engine.nbd_socket));
                let nbd = nbd.filter(|socket| !socket.as_os_str().is_empty());
                self.sockets.get(name).cloned().into_iter().chain(nbd).map(|socket| (name.clone(), socket))
            })
            .collect();
        let dir = shared.config.runtime_dir.clone();
        let looked = blocking(move || {
            if is_gone(&dir) {
                runtime_dir::prepare(&dir).map_err(|complaint| Error::failed(complaint.to_string()))?;
                tracing::warn!(runtime_dir = %dir.display(), "the directory of sockets was removed; it is there again");
            }
            Ok(wanted
                .into_iter()
                .filter(|(_, socket)| is_gone(socket))
                .map(|(name, _)| name)
                .collect::<BTreeSet<_>>())
        });
        let gone = match looked.await {
            Ok(gone) => gone,
            Err(error) => {
                // Tried for as long as it fails, said once per cause.
                let said = error.to_string();
                if self.sockets_lost != said {
                    tracing::warn!(error = said, "the directory of sockets is gone");
                    self.sockets_lost = said;
                }
                return;
            }
        };
        self.sockets_lost.clear();
        for name in gone {
            if let Some(driver) = self.drivers.get(&name) {
                driver.bind_again();
            }
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
                happened(shared, &name, instance, Event::Ended("no process holds its lock".to_owned()));
            }
        }
    }
}
