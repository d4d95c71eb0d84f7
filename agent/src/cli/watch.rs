//! `holdfast watch`: everything, then each change. Falling behind is said, and everything is printed again; what the
//! agent repeats every minute is printed for programs alone.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::watch_event::Event;
use holdfast_proto::status::ErrorKind;

use super::client::{Client, ask, told};
use super::output::Out;
use super::volume::mode;
use super::{Global, json};
use crate::complaint::Complaint;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast watch   one line for each thing that is there, then for each change
  holdfast watch -o json   the same as events; every minute one \"snapshot\" with everything again
  holdfast watch -o json | jq -c 'select(.event == \"volume_changed\") | .volume.state'";

pub(super) async fn run(global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let what = "watch the agent";
    loop {
        let mut events = ask(what, client.instances().watch(pb::WatchRequest {})).await?;
        let (mut resync, mut first) = (false, true);
        while let Some(event) = events.message().await.map_err(|status| told(what, &status))? {
            resync = matches!(event.event, Some(Event::Resync(_)));
            let repeated = matches!(event.event, Some(Event::Snapshot(_))) && !std::mem::take(&mut first);
            if repeated && !out.is_json() {
                continue;
            }
            if let Some(line) = json::Event::of(&event) {
                out.event(&line, || describe(&event))?;
            }
        }
        if !resync {
            return Err(Complaint::new(ErrorKind::Unreachable, "the agent ended the watch")
                .remedy("it is stopping or restarting; run `holdfast watch` again"));
        }
    }
}

fn describe(event: &pb::WatchEvent) -> String {
    let revision = event.revision;
    match &event.event {
        Some(Event::Snapshot(all)) => {
            let volumes = all.volumes.iter().map(volume);
            let lines: Vec<String> = volumes.chain(all.instances.iter().map(instance)).collect();
            let here = format!("{revision} {} volumes, {} instances", all.volumes.len(), all.instances.len());
            std::iter::once(here)
                .chain(lines.into_iter().map(|line| format!("{revision} {line}")))
                .collect::<Vec<_>>()
                .join("\n")
        }
        Some(Event::InstanceChanged(changed)) => format!("{revision} {}", instance(changed)),
        Some(Event::InstanceRemoved(name)) => format!("{revision} instance {name} is gone"),
        Some(Event::VolumeChanged(changed)) => format!("{revision} {}", volume(changed)),
        Some(Event::VolumeRemoved(name)) => format!("{revision} volume {name} is gone"),
        Some(Event::Resync(resync)) => format!("{revision} some changes were missed: {}", resync.reason),
        None => String::new(),
    }
}

/// `volume demo healthy: r1 member, r2 rebuilding 43%`.
pub(super) fn volume(volume: &pb::VolumeInfo) -> String {
    let replicas: Vec<String> =
        volume.replicas.iter().map(|replica| format!("{} {}", replica.id, mode(replica))).collect();
    format!(
        "volume {} {}{}: {}",
        volume.name,
        volume.state,
        because(volume.reason.as_deref()),
        replicas.join(", ")
    )
}

fn instance(instance: &pb::InstanceInfo) -> String {
    let pid = instance.pid.map(|pid| format!(" pid {pid}")).unwrap_or_default();
    let because = because(instance.reason.as_deref());
    let claim = if instance.claim == "claimed" { String::new() } else { format!(" {}", instance.claim) };
    format!("{} {} {}{pid}{claim}{because}", instance.kind, instance.name, instance.state)
}

fn because(reason: Option<&str>) -> String {
    reason.filter(|reason| !reason.is_empty()).map(|reason| format!(" ({reason})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_one_line_with_its_revision() {
        let instance = pb::InstanceInfo {
            name: "demo.r1".into(),
            kind: "replica".into(),
            state: "running".into(),
            pid: Some(7),
            claim: "unclaimed".into(),
            ..Default::default()
        };
        let changed = pb::WatchEvent { revision: 9, event: Some(Event::InstanceChanged(instance.clone())) };
        assert_eq!(describe(&changed), "9 replica demo.r1 running pid 7 unclaimed");
        let all = pb::watch_event::Snapshot { instances: vec![instance], volumes: vec![] };
        let snapshot = pb::WatchEvent { revision: 8, event: Some(Event::Snapshot(all)) };
        assert_eq!(
            describe(&snapshot),
            "8 0 volumes, 1 instances\n8 replica demo.r1 running pid 7 unclaimed"
        );
    }
}
