//! The end of a supervisor: with its instances, engines before replicas, or without touching them.

use super::{
    DRAIN_WITHIN, Driver, Duration, Instance, InstanceName, Instant, Kind, Report, Shared, ShutdownProgress,
    StopWish, Supervisor, mpsc, oneshot,
};

/// Beyond the drain: the two signals and the reaping.
const ENGINES_WITHIN: Duration = Duration::from_secs(DRAIN_WITHIN.as_secs() + 30);
/// A replica syncs its maps and goes.
const REPLICAS_WITHIN: Duration = Duration::from_secs(45);

impl Supervisor {
    pub(super) async fn shut_down(
        mut self,
        shared: &Shared,
        stop_instances: bool,
        reports: &mut mpsc::Receiver<Report>,
        reply: oneshot::Sender<Vec<String>>,
    ) {
        if stop_instances {
            let engines = |name: &InstanceName| name.kind() == Kind::Engine;
            self.stop_all(shared, reports, engines, ENGINES_WITHIN, ShutdownProgress::Engines).await;
            let replicas = |name: &InstanceName| matches!(name.kind(), Kind::Replica(_));
            self.stop_all(shared, reports, replicas, REPLICAS_WITHIN, ShutdownProgress::Replicas).await;
        }
        let left = self.living(|_| true);
        // Drivers that are cut off in a send must not wait for a receiver that no longer receives.
        reports.close();
        for (_, driver) in std::mem::take(&mut self.drivers) {
            Driver::release(driver).await;
        }
        // The data directory is free before anybody hears that we are done.
        drop(self.lock);
        shared.progress.send_replace(ShutdownProgress::Done(left.clone()));
        let _ = reply.send(left);
    }

    fn living(&self, which: impl Fn(&InstanceName) -> bool) -> Vec<String> {
        let living = |(name, instance): &(&InstanceName, &Instance)| !instance.is_down() && which(name);
        self.instances.iter().filter(living).map(|(name, _)| name.to_string()).collect()
    }

    async fn stop_all(
        &mut self,
        shared: &Shared,
        reports: &mut mpsc::Receiver<Report>,
        which: impl Fn(&InstanceName) -> bool,
        within: Duration,
        progress: fn(Vec<String>) -> ShutdownProgress,
    ) {
        let until = Instant::now() + within;
        let names: Vec<_> = self.drivers.keys().filter(|name| which(name)).cloned().collect();
        for name in names {
            let Some(uuid) = self.instances.get(&name).map(Instance::uuid) else { continue };
            let drain = name.kind() == Kind::Engine;
            self.stop(shared, &name, uuid, StopWish { drain });
        }
        loop {
            self.publish(shared);
            let living = self.living(&which);
            shared.progress.send_replace(progress(living.clone()));
            if living.is_empty() {
                return;
            }
            match tokio::time::timeout_at(until, reports.recv()).await {
                Ok(Some(report)) => {
                    self.hear(report);
                }
                Ok(None) | Err(_) => return,
            }
        }
    }
}
