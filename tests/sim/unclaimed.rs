//! What an agent does about what nobody claims: `agent::node::supervisor::orphans`, mirrored, for instances.

use std::time::Duration;

use holdfast::core::claims::{Claim, of_instance};
use holdfast::core::instance::{Instance, InstanceName, Kind};
use holdfast::core::orphan::{self, Class, Reading, Settings, Subject};
use holdfast::core::view::may_be_stopped;
use holdfast_proto::ids::InstanceUuid;

use super::agent::Live;
use super::plan::Broken;
use super::queue::{SEC, Time};
use super::world::World;

impl World {
    pub(super) fn orphan_settings(&self) -> Settings {
        let auto_cleanup = self.plan.grace.map(|_| Class::Instance).into_iter().collect();
        let grace = match self.plan.broken {
            Some(Broken::CleansAtOnce) => 1,
            Some(_) | None => self.plan.grace.unwrap_or(SEC),
        };
        Settings { auto_cleanup, grace: Duration::from_micros(grace) }
    }

    pub(super) fn look_for_orphans(&mut self, node: usize, live: &mut Live, asked_at: Time) -> Option<()> {
        let settings = self.orphan_settings();
        let now = self.queue.now();
        let sightings = orphan::instances(live.world(now));
        let asked_at = live.moment(asked_at);
        let reading = Reading { class: Class::Instance, asked_at, sightings };
        live.tracker.observe(&reading, &settings, live.moment(now));
        self.remember(node, live)?;
        let due = live.tracker.due(&settings, live.moment(now));
        if !due.is_empty() {
            self.asks(node, live, due);
        }
        Some(())
    }

    fn remember(&mut self, node: usize, live: &mut Live) -> Option<()> {
        if let Some(saved) = live.tracker.save(live.moment(self.queue.now())) {
            self.agents[node].orphans = Some(saved);
            self.survives(node)?;
        }
        Some(())
    }

    /// What was due is looked at once more, and ended where it is still nobody's.
    pub(super) fn clean(
        &mut self,
        node: usize,
        live: &mut Live,
        asked_at: Time,
        due: &[Subject],
    ) -> Option<()> {
        let (settings, now) = (self.orphan_settings(), self.queue.now());
        let (asked_at, moment) = (live.moment(asked_at), live.moment(now));
        let sightings = orphan::instances(live.world(now));
        for sighting in sightings.iter().filter(|sighting| due.contains(&sighting.subject)) {
            if !live.tracker.confirm(sighting, asked_at, &settings, moment) {
                continue;
            }
            self.survives(node)?;
            let name: Option<InstanceName> = sighting.subject.name.parse().ok();
            match name.filter(|name| live.drivers.contains_key(name)) {
                Some(name) => {
                    let uuid = InstanceUuid(sighting.subject.uuid);
                    self.check_clean(node, &name, uuid);
                    self.ask_to_end(node, live, &name, uuid, name.kind() == Kind::Engine);
                    live.forgetting.insert(name);
                }
                None => live.tracker.failed(&sighting.subject, "it is not there to be told", moment),
            }
        }
        self.remember(node, live)
    }

    /// A person ends what nobody claims.
    pub(super) fn stop_unclaimed(&mut self, node: usize) {
        let Some(mut live) = self.agents[node].live.take() else { return };
        let unclaimed = |(name, instance): &(&InstanceName, &Instance)| {
            !instance.is_down() && !self.deeds.is_claimed(node, &live.node, name, instance.uuid())
        };
        let names: Vec<_> = live.instances.iter().filter(unclaimed).map(|(name, _)| name.clone()).collect();
        live.to_stop.extend(names);
        self.look(node, &mut live, 0);
        self.agents[node].live = Some(live);
    }

    pub(super) fn stop_as_told(&mut self, node: usize, live: &mut Live) {
        for name in std::mem::take(&mut live.to_stop) {
            let Some(instance) = live.instances.get(&name) else { continue };
            let (uuid, volume) = (instance.uuid(), instance.volume_id());
            if of_instance(live.world(self.queue.now()), &name, uuid, volume) != Claim::Unclaimed {
                continue;
            }
            if !instance.is_down() {
                if may_be_stopped(&name, instance).is_err() {
                    continue;
                }
                self.check_stop_unclaimed(node, &name, uuid);
                self.ask_to_end(node, live, &name, uuid, name.kind() == Kind::Engine);
            }
            live.forgetting.insert(name);
        }
    }
}
