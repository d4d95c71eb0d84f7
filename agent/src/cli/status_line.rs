//! The live status line of `quickstart`: only on a terminal, where it is redrawn in place.

use std::time::Duration;

use holdfast_proto::pb::agent as pb;
use indicatif::{ProgressBar, ProgressStyle};

use super::volume::mode;

/// A line on standard error that always says how the volume is; hidden where there is no terminal.
#[derive(Debug, Clone)]
pub(super) struct StatusLine {
    bar: ProgressBar,
}

impl StatusLine {
    pub(super) fn new(live: bool) -> Self {
        if !live {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar }
    }
    /// For log lines, which go above it.
    pub(super) fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }
    pub(super) fn say(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }
    /// Prints above the line (or just prints).
    pub(super) fn above(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// `demo healthy, 2 clients, r1 member, r2 rebuilding 43%, r3 member`.
pub(super) fn summary(volume: &pb::VolumeInfo) -> String {
    let clients = match volume.clients {
        1 => "1 client".to_owned(),
        n => format!("{n} clients"),
    };
    let replicas: Vec<String> =
        volume.replicas.iter().map(|replica| format!("{} {}", replica.id, mode(replica))).collect();
    let reason = volume.reason.as_ref().filter(|reason| !reason.is_empty());
    let because = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{} {}{because}, {clients}, {}", volume.name, volume.state, replicas.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_state_clients_and_each_replica() {
        let replica = |id: &str, mode: &str| pb::VolumeReplicaInfo {
            id: id.into(),
            mode: mode.into(),
            ..Default::default()
        };
        let volume = pb::VolumeInfo {
            name: "demo".into(),
            state: "degraded".into(),
            clients: 1,
            replicas: vec![replica("r1", "member"), replica("r2", "absent")],
            ..Default::default()
        };
        assert_eq!(summary(&volume), "demo degraded, 1 client, r1 member, r2 absent");
    }
}
