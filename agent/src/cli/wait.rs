//! Waiting for a volume's state: told by the agent's watch, not asked for in a loop. A watch that ends, or an agent
//! that restarts meanwhile, is watched again until the time is up.

use std::time::Duration;

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::watch_event::Event;
use holdfast_proto::status::ErrorKind;
use tokio::time::Instant;

use super::Global;
use super::client::{Client, told};
use crate::complaint::Complaint;
use crate::units::format_duration;

/// Between two attempts to reach an agent that was there before.
const RECONNECT: Duration = Duration::from_millis(200);

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Target {
    /// All replicas are members, and known to be equal
    Healthy,
    /// It serves with fewer members, or with copies still to be compared
    Degraded,
    /// Nothing of it runs
    Detached,
}

impl Target {
    fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Detached => "detached",
        }
    }
}

/// What has been seen of the volume so far.
#[derive(Debug, Default)]
struct Seen {
    volume: Option<pb::VolumeInfo>,
    gone: bool,
}

impl Seen {
    fn take(&mut self, name: &str, event: Event) {
        match event {
            Event::Snapshot(all) => {
                self.volume = all.volumes.into_iter().find(|volume| volume.name == name);
                self.gone = self.volume.is_none();
            }
            Event::VolumeChanged(volume) if volume.name == name => {
                self.volume = Some(volume);
                self.gone = false;
            }
            Event::VolumeRemoved(removed) if removed == name => self.gone = true,
            Event::VolumeChanged(_)
            | Event::VolumeRemoved(_)
            | Event::InstanceChanged(_)
            | Event::InstanceRemoved(_)
            | Event::Resync(_) => {}
        }
    }

    /// The volume once it is in the state, or that there is none to wait for.
    fn verdict(&self, name: &str, target: Target) -> Option<Result<pb::VolumeInfo, Complaint>> {
        if self.gone {
            let message = format!("there is no volume {name}");
            let complaint = Complaint::new(ErrorKind::NotFound, message);
            return Some(Err(complaint.remedy("`holdfast volume ls` lists all")));
        }
        self.volume.as_ref().filter(|volume| volume.state == target.as_str()).cloned().map(Ok)
    }

    fn late(&self, name: &str, target: Target, timeout: Duration) -> Complaint {
        let state = self.volume.as_ref().map_or("not known", |volume| volume.state.as_str());
        let reason = self.volume.as_ref().and_then(|volume| volume.reason.clone()).unwrap_or_default();
        let because = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let message = format!(
            "volume {name} is {state}{because}, not {}, after {}",
            target.as_str(),
            format_duration(timeout)
        );
        let complaint = Complaint::new(ErrorKind::TimedOut, message);
        match (state, target) {
            ("detached", Target::Healthy | Target::Degraded) => {
                complaint.remedy(format!("attach it: `holdfast volume attach {name}`"))
            }
            (_, Target::Detached) => complaint.remedy(format!("detach it: `holdfast volume detach {name}`")),
            _ => complaint.remedy(format!("`holdfast volume show {name}` says what each replica is doing")),
        }
    }
}

/// Returns the volume as it is once it is in the state.
pub(super) async fn wait(
    client: Client,
    global: &Global,
    name: &str,
    target: Target,
    timeout: Duration,
) -> Result<pb::VolumeInfo, Complaint> {
    let deadline = Instant::now() + timeout;
    let mut seen = Seen::default();
    let until_told = async {
        let mut client = Some(client);
        loop {
            let connected = match client.take() {
                Some(client) => Ok(client),
                None => Client::connect(global).await,
            };
            if let Ok(connected) = connected
                && let Some(verdict) = follow(&connected, name, target, &mut seen).await
            {
                return verdict;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    };
    match tokio::time::timeout_at(deadline, until_told).await {
        Ok(verdict) => verdict,
        Err(_) => Err(seen.late(name, target, timeout)),
    }
}

/// One watch, to its end; `None` when it ended without a verdict.
async fn follow(
    client: &Client,
    name: &str,
    target: Target,
    seen: &mut Seen,
) -> Option<Result<pb::VolumeInfo, Complaint>> {
    let mut events = match client.instances().watch(pb::WatchRequest {}).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            let complaint = told(&format!("watch volume {name}"), &status);
            return (complaint.kind != ErrorKind::Unreachable).then_some(Err(complaint));
        }
    };
    while let Ok(Some(event)) = events.message().await {
        seen.take(name, event.event?);
        if let Some(verdict) = seen.verdict(name, target) {
            return Some(verdict);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, state: &str) -> pb::VolumeInfo {
        pb::VolumeInfo { name: name.into(), state: state.into(), ..Default::default() }
    }

    fn snapshot(volumes: Vec<pb::VolumeInfo>) -> Event {
        Event::Snapshot(pb::watch_event::Snapshot { instances: vec![], volumes })
    }

    #[test]
    fn the_state_is_what_counts_and_other_volumes_are_not() {
        let mut seen = Seen::default();
        assert!(seen.verdict("a", Target::Healthy).is_none());
        seen.take("a", snapshot(vec![volume("a", "attaching"), volume("b", "healthy")]));
        assert!(seen.verdict("a", Target::Healthy).is_none());
        seen.take("a", Event::VolumeChanged(volume("b", "healthy")));
        assert!(seen.verdict("a", Target::Healthy).is_none());
        seen.take("a", Event::VolumeChanged(volume("a", "healthy")));
        assert_eq!(seen.verdict("a", Target::Healthy).unwrap().unwrap().state, "healthy");
        assert!(seen.verdict("a", Target::Degraded).is_none());
    }

    #[test]
    fn a_volume_that_is_not_there_is_not_waited_for() {
        let mut seen = Seen::default();
        seen.take("a", snapshot(vec![volume("b", "healthy")]));
        assert_eq!(seen.verdict("a", Target::Healthy).unwrap().unwrap_err().kind, ErrorKind::NotFound);
        seen.take("a", snapshot(vec![volume("a", "healthy")]));
        seen.take("a", Event::VolumeRemoved("a".into()));
        assert_eq!(seen.verdict("a", Target::Healthy).unwrap().unwrap_err().kind.exit_code(), 3);
    }

    #[test]
    fn being_late_says_what_it_is_instead() {
        let mut seen = Seen::default();
        seen.take("a", snapshot(vec![volume("a", "detached")]));
        let complaint = seen.late("a", Target::Healthy, Duration::from_secs(60));
        assert_eq!(complaint.kind.exit_code(), 6);
        let text = complaint.to_string();
        assert!(text.contains("volume a is detached, not healthy, after 1m"), "{text}");
        assert!(text.contains("holdfast volume attach a"), "{text}");
    }
}
