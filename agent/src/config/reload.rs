//! What SIGHUP changes, and what it cannot.

use super::AgentConfig;
use crate::core::orphan;
use crate::units::format_duration;

/// The difference between the configuration that runs and the one that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// What runs from now on: the old values where a restart is needed.
    pub config: AgentConfig,
    /// What has changed, as `key: old -> new`.
    pub applied: Vec<String>,
    /// What was asked for and needs a restart, the same way.
    pub needs_restart: Vec<String>,
}

impl AgentConfig {
    /// Compares with a configuration that was read again. What only this process looks at changes at once; what the
    /// node and its instances were started with needs a restart of the agent, which interrupts no I/O.
    #[must_use]
    pub fn reload(&self, wanted: &Self) -> Reload {
        let mut applied = Vec::new();
        let mut needs_restart = Vec::new();
        let mut note = |list: Kind, key: &str, old: String, new: String| {
            if old != new {
                let line = format!("{key}: {old} -> {new}");
                match list {
                    Kind::Live => applied.push(line),
                    Kind::Fixed => needs_restart.push(line),
                }
            }
        };
        let time = format_duration;
        let (old, new) = (self, wanted);
        let mut live = |key: &str, old: String, new: String| note(Kind::Live, key, old, new);
        live("log_level", old.log_level.as_str().to_owned(), new.log_level.as_str().to_owned());
        live("stop_instances", old.stop_instances.to_string(), new.stop_instances.to_string());
        live("orphan_auto_cleanup", classes(&old.orphans), classes(&new.orphans));
        live("orphan_grace_period", time(old.orphans.grace), time(new.orphans.grace));
        live("replenish_after", time(old.replenish_after), time(new.replenish_after));
        live("disk_reserve", old.disk_reserve.to_string(), new.disk_reserve.to_string());
        let mut fixed = |key: &str, old: String, new: String| note(Kind::Fixed, key, old, new);
        fixed("data_dir", old.data_dir.display().to_string(), new.data_dir.display().to_string());
        fixed("listen", old.listen.display().to_string(), new.listen.display().to_string());
        fixed("node", old.node.to_string(), new.node.to_string());
        fixed("registry", old.registry.to_string(), new.registry.to_string());
        fixed("data_ports", format!("{:?}", old.data_ports), format!("{:?}", new.data_ports));
        fixed("bind", old.bind.to_string(), new.bind.to_string());
        let advertised = |c: &Self| c.advertise.unwrap_or(c.bind).to_string();
        fixed("advertise", advertised(old), advertised(new));
        fixed("bin_dir", old.bin_dir.display().to_string(), new.bin_dir.display().to_string());
        fixed("runtime_dir", old.runtime_dir.display().to_string(), new.runtime_dir.display().to_string());
        fixed("trash_ttl", time(old.trash_ttl), time(new.trash_ttl));
        let served = |c: &Self| c.metrics.map_or("nowhere".to_owned(), |address| address.to_string());
        fixed("metrics", served(old), served(new));
        for ((key, old), (_, new)) in old.limits.list().into_iter().zip(new.limits.list()) {
            fixed(key, old, new);
        }
        fixed("log_format", format!("{:?}", old.log_format), format!("{:?}", new.log_format));
        let config = Self {
            log_level: new.log_level.clone(),
            stop_instances: new.stop_instances,
            orphans: new.orphans.clone(),
            replenish_after: new.replenish_after,
            disk_reserve: new.disk_reserve,
            ..old.clone()
        };
        Reload { config, applied, needs_restart }
    }
}

fn classes(settings: &orphan::Settings) -> String {
    let names: Vec<_> = settings.auto_cleanup.iter().map(|class| class.as_str()).collect();
    format!("[{}]", names.join(", "))
}

#[derive(Clone, Copy)]
enum Kind {
    Live,
    Fixed,
}
