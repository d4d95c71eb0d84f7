//! Volumes that move to this node: attached here after they were attached on another. Seen by who takes them over, so
//! that a fleet counts each move once; an agent that begins anew begins to look anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_proto::ids::{NodeName, VolumeId, VolumeName};
use holdfast_proto::record::VolumeRecord;

use super::Moment;
use super::claims::is_creation_of;
use super::instance::{Instance, InstanceName, has_volume};
use super::reconcile::{Plan, World};
use super::records::Records;

/// What became of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The volume is to run here now.
    Begun,
    /// Its engine here has it.
    Done,
    /// It is wanted elsewhere, or nowhere, before that.
    GivenUp,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Begun, Self::Done, Self::GivenUp];

    /// For people and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::GivenUp => "given_up",
        }
    }
}

/// A move under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    /// Of which volume.
    pub volume: VolumeName,
    /// Since when.
    pub since: Moment,
    /// Whether something keeps it from going on.
    pub blocked: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Moves {
    /// Where each volume is attached, or was last.
    last: BTreeMap<VolumeId, NodeName>,
    under_way: BTreeMap<VolumeId, Moving>,
}

impl Moves {
    /// Takes in what is known now, and what keeps volumes from what their records say. Returns what happened.
    pub fn update(&mut self, world: World<'_>, plan: &Plan) -> Vec<(VolumeName, Step, Duration)> {
        if matches!(world.records, Records::Unavailable(_)) {
            return Vec::new();
        }
        let mut told = Vec::new();
        let mut there = BTreeSet::new();
        for record in world.records.readable() {
            there.insert(record.id);
            let attached = record.spec.attach.as_ref().map(|attach| &attach.node);
            let before = self.last.get(&record.id).cloned();
            if let Some(node) = attached.or(record.spec.detaching.as_ref()) {
                self.last.insert(record.id, node.clone());
            }
            let here = attached == Some(world.node);
            if here && before.is_some_and(|before| before != *world.node) {
                let moving = Moving { volume: record.name.clone(), since: world.now, blocked: false };
                self.under_way.insert(record.id, moving);
                told.push((record.name.clone(), Step::Begun, Duration::ZERO));
            }
            let Some(moving) = self.under_way.get_mut(&record.id) else { continue };
            moving.blocked = plan.blocked.contains_key(record.name.as_str());
            let end = match here {
                true => serves(world, record).then_some(Step::Done),
                false => Some(Step::GivenUp),
            };
            if let Some(end) = end {
                told.push((record.name.clone(), end, world.now.saturating_sub(moving.since)));
                self.under_way.remove(&record.id);
            }
        }
        // One that cannot be read now is not gone: its move goes on when it can.
        if world.records.unreadable().next().is_none() {
            self.last.retain(|volume, _| there.contains(volume));
            let gone = self.under_way.extract_if(.., |volume, _| !there.contains(volume));
            told.extend(
                gone.map(|(_, moving)| {
                    (moving.volume, Step::GivenUp, world.now.saturating_sub(moving.since))
                }),
            );
        }
        told
    }

    /// Those that are under way.
    pub fn under_way(&self) -> impl Iterator<Item = &Moving> {
        self.under_way.values()
    }
}

fn serves(world: World<'_>, record: &VolumeRecord) -> bool {
    let name = InstanceName::engine(&record.name);
    let meant =
        |engine: &&Instance| engine.volume_id() == record.id && is_creation_of(record, &name, engine.uuid());
    let engine = world.instances.get(&name).filter(meant).filter(|engine| engine.is_up());
    engine.and_then(Instance::engine_status).is_some_and(|told| has_volume(&told.state))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use holdfast_proto::ids::{Incarnation, InstanceUuid};
    use holdfast_proto::pb::instance as ipb;

    use super::*;
    use crate::core::elsewhere::Elsewhere;
    use crate::core::foreign::Foreign;
    use crate::core::instance::{Event, State};
    use crate::core::records::RecordState;
    use crate::core::testing::attached;

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    struct Scene {
        record: VolumeRecord,
        instances: BTreeMap<InstanceName, Instance>,
        plan: Plan,
        moves: Moves,
    }

    impl Scene {
        /// What `node-b` sees of a volume that is attached on `node-a`.
        fn new() -> Self {
            let record = attached("demo", "node-a", 1);
            Self { record, instances: BTreeMap::new(), plan: Plan::default(), moves: Moves::default() }
        }
        fn attach(&mut self, node: Option<&str>) {
            let attach = self.record.spec.attach.take();
            self.record.spec.detaching = attach.map(|attach| attach.node);
            if let Some(node) = node {
                self.record.spec.attach = attached("demo", node, 1).spec.attach;
                self.record.spec.detaching = None;
                let engine = InstanceName::engine(&self.record.name).to_string();
                self.record.status.instance_uuids.insert(engine, InstanceUuid::random());
            }
        }
        fn engine(&mut self, uuid: Option<InstanceUuid>, state: &str) {
            let name = InstanceName::engine(&self.record.name);
            let uuid = uuid.unwrap_or(self.record.status.instance_uuids[&name.to_string()]);
            let down = State::Down { error: None, retry_at: secs(0) };
            let mut engine = Instance::new(uuid, self.record.id, 0, down, secs(0));
            engine.handle(Event::Spawning, secs(0));
            let told = ipb::EngineStatus { state: state.to_owned(), ..Default::default() };
            let status =
                ipb::InstanceStatus { phase: "running".into(), engine: Some(told), ..Default::default() };
            engine.handle(Event::Status(Box::new(status)), secs(0));
            self.instances.insert(name, engine);
        }
        fn look(&mut self, now: Moment) -> Vec<(Step, u64)> {
            let state = RecordState::Readable(Box::new(self.record.clone()));
            self.look_at(now, &Records::Known(BTreeMap::from([("demo".to_owned(), state)])))
        }
        fn look_at(&mut self, now: Moment, records: &Records) -> Vec<(Step, u64)> {
            let world = World {
                node: &"node-b".parse().unwrap(),
                now,
                records,
                foreign: &Foreign::none(),
                instances: &self.instances,
                absent: &BTreeMap::new(),
                missing: &BTreeSet::new(),
                incarnation: Incarnation::random(),
                elsewhere: &Elsewhere::default(),
            };
            let told = self.moves.update(world, &self.plan);
            told.into_iter().map(|(_, step, took)| (step, took.as_secs())).collect()
        }
        fn moving(&self) -> Vec<(u64, bool)> {
            self.moves.under_way().map(|moving| (moving.since.as_secs(), moving.blocked)).collect()
        }
    }

    #[test]
    fn a_volume_that_is_attached_here_after_it_was_elsewhere_moves_until_its_engine_has_it() {
        let mut scene = Scene::new();
        assert_eq!(scene.look(secs(1)), []);
        scene.attach(None);
        assert_eq!(scene.look(secs(2)), []);
        scene.attach(Some("node-b"));
        assert_eq!(scene.look(secs(3)), [(Step::Begun, 0)]);
        scene.plan.blocked.insert("demo".to_owned(), "its engine on node node-a has not ended".to_owned());
        assert_eq!(scene.look(secs(4)), []);
        assert_eq!(scene.moving(), [(3, true)]);
        scene.plan.blocked.clear();
        scene.engine(Some(InstanceUuid::random()), "healthy");
        assert_eq!(scene.look(secs(5)), [], "the engine of an earlier attachment");
        scene.engine(None, "attaching");
        assert_eq!(scene.look(secs(6)), []);
        assert_eq!(scene.moving(), [(3, false)]);
        scene.engine(None, "degraded");
        assert_eq!(scene.look(secs(7)), [(Step::Done, 4)]);
        assert_eq!(scene.look(secs(8)), []);
        assert!(scene.moving().is_empty());
        // Away and back.
        scene.attach(Some("node-a"));
        assert_eq!(scene.look(secs(9)), []);
        scene.attach(Some("node-b"));
        assert_eq!(scene.look(secs(10)), [(Step::Begun, 0)]);
        scene.attach(None);
        assert_eq!(scene.look(secs(12)), [(Step::GivenUp, 2)]);
    }

    #[test]
    fn what_is_attached_here_again_or_first_seen_here_does_not_move() {
        let mut scene = Scene::new();
        scene.attach(Some("node-b"));
        assert_eq!(scene.look(secs(1)), []);
        scene.attach(None);
        assert_eq!(scene.look(secs(2)), []);
        scene.attach(Some("node-b"));
        assert_eq!(scene.look(secs(3)), []);
    }

    #[test]
    fn a_move_is_not_over_because_records_cannot_be_read() {
        let mut scene = Scene::new();
        scene.look(secs(1));
        scene.attach(Some("node-b"));
        assert_eq!(scene.look(secs(2)), [(Step::Begun, 0)]);
        assert_eq!(scene.look_at(secs(3), &Records::Unavailable("down".to_owned())), []);
        let damaged = RecordState::Unreadable("damaged".to_owned());
        let damaged = Records::Known(BTreeMap::from([("demo".to_owned(), damaged)]));
        assert_eq!(scene.look_at(secs(4), &damaged), []);
        assert_eq!(scene.moving(), [(2, false)]);
        assert_eq!(scene.look_at(secs(5), &Records::Known(BTreeMap::new())), [(Step::GivenUp, 3)]);
    }
}
