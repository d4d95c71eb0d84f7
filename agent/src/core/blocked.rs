//! Which instances are to run and do not, for how long, and what keeps them (R4).

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::record::{Intent, VolumeRecord};

use super::Moment;
use super::instance::{Instance, InstanceName, State};
use super::reconcile::{Plan, World, local_replicas};
use super::records::Records;

/// Starts and restarts take seconds; what has not come by then will not come by itself.
pub const BLOCKED_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Waiting {
    since: Moment,
    by: String,
    told: bool,
}

/// See the module. One that starts and ends again and again counts as not running until it does run.
#[derive(Debug, Default)]
pub struct Blocked {
    waiting: BTreeMap<InstanceName, Waiting>,
}

impl Blocked {
    /// Takes in what is known now. Returns those that have just become blocked, each once, with the reason.
    pub fn update(&mut self, world: World<'_>, plan: &Plan) -> Vec<(InstanceName, String)> {
        // What is wanted is not known: nothing begins to be blocked, and nothing ceases to be.
        if matches!(world.records, Records::Unavailable(_)) {
            return Vec::new();
        }
        let mut waiting = BTreeMap::new();
        for record in world.records.readable() {
            for name in wanted(record, world) {
                let instance = world.instances.get(&name).filter(|i| i.volume_id() == record.id);
                let held = self.waiting.remove(&name);
                let since = match (instance.map(Instance::state), held.as_ref()) {
                    (Some(State::Running), _) => continue,
                    (_, Some(held)) => held.since,
                    (None | Some(State::Down { .. }), None) => world.now,
                    (Some(State::Pending | State::Starting | State::Stopping | State::Unknown(_)), None) => {
                        continue;
                    }
                };
                let by = (world.absent.get(&name).cloned())
                    .or_else(|| instance.and_then(Instance::reason))
                    .or_else(|| plan.blocked.get(record.name.as_str()).cloned())
                    .unwrap_or_else(|| "it has not been started yet".to_owned());
                let told = held.is_some_and(|held| held.told);
                waiting.insert(name, Waiting { since, by, told });
            }
        }
        self.waiting = waiting;
        let late = self.waiting.iter_mut().filter(|(_, w)| !w.told && is_late(w.since, world.now));
        late.map(|(name, waiting)| {
            waiting.told = true;
            (name.clone(), waiting.by.clone())
        })
        .collect()
    }

    /// Whether everything runs that is to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What keeps this one from running, where it is to run and has not for [`BLOCKED_AFTER`].
    #[must_use]
    pub fn by(&self, name: &InstanceName, now: Moment) -> Option<&str> {
        self.waiting.get(name).filter(|w| is_late(w.since, now)).map(|w| w.by.as_str())
    }

    /// All that are blocked, and for how long each has been to run.
    pub fn waits(&self, now: Moment) -> impl Iterator<Item = (&InstanceName, Duration)> {
        let late = self.waiting.iter().filter(move |(_, w)| is_late(w.since, now));
        late.map(move |(name, w)| (name, now.saturating_sub(w.since)))
    }

    /// All that are blocked, with the reason.
    pub fn all(&self, now: Moment) -> impl Iterator<Item = (&InstanceName, &str)> {
        let late = self.waiting.iter().filter(move |(_, w)| is_late(w.since, now));
        late.map(|(name, w)| (name, w.by.as_str()))
    }
}

fn is_late(since: Moment, now: Moment) -> bool {
    now.saturating_sub(since) > BLOCKED_AFTER
}

/// The instances of `record` that are to run on this node.
fn wanted(record: &VolumeRecord, world: World<'_>) -> Vec<InstanceName> {
    let replicas = local_replicas(record, world.node);
    let Some(attach) = record.spec.attach.as_ref().filter(|_| matches!(record.spec.intent, Intent::Keep))
    else {
        return replicas.filter(|name| world.is_wanted_by_others(record, name)).collect();
    };
    let engine = (attach.node == *world.node).then(|| InstanceName::engine(&record.name));
    replicas.chain(engine).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use holdfast_proto::ids::{Incarnation, InstanceUuid, NodeName};

    use super::*;
    use crate::core::elsewhere::Elsewhere;
    use crate::core::foreign::Foreign;
    use crate::core::instance::Event;
    use crate::core::records::RecordState;
    use crate::core::testing::attached;

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    struct Scene {
        node: NodeName,
        record: VolumeRecord,
        records: Records,
        instances: BTreeMap<InstanceName, Instance>,
        absent: BTreeMap<InstanceName, String>,
        missing: BTreeSet<InstanceName>,
        incarnation: Incarnation,
        elsewhere: Elsewhere,
        plan: Plan,
        blocked: Blocked,
    }

    impl Scene {
        fn new() -> Self {
            let record = attached("demo", "node-a", 1);
            let state = RecordState::Readable(Box::new(record.clone()));
            Self {
                node: "node-a".parse().unwrap(),
                records: Records::Known(BTreeMap::from([("demo".to_owned(), state)])),
                record,
                instances: BTreeMap::new(),
                absent: BTreeMap::new(),
                missing: BTreeSet::new(),
                incarnation: Incarnation::random(),
                elsewhere: Elsewhere::default(),
                plan: Plan::default(),
                blocked: Blocked::default(),
            }
        }
        fn at(&mut self, now: Moment) -> Vec<String> {
            let world = World {
                node: &self.node,
                now,
                records: &self.records,
                foreign: &Foreign::none(),
                instances: &self.instances,
                absent: &self.absent,
                missing: &self.missing,
                incarnation: self.incarnation,
                elsewhere: &self.elsewhere,
            };
            let new = self.blocked.update(world, &self.plan);
            new.into_iter().map(|(name, by)| format!("{name}: {by}")).collect()
        }
        fn instance(&mut self, name: &str, events: Vec<Event>) {
            let state = State::Down { error: None, retry_at: secs(0) };
            let mut instance = Instance::new(InstanceUuid::random(), self.record.id, 0, state, secs(0));
            for event in events {
                instance.handle(event, secs(0));
            }
            self.instances.insert(name.parse().unwrap(), instance);
        }
        fn runs(&mut self, name: &str) {
            let status = holdfast_proto::pb::instance::InstanceStatus {
                phase: "running".into(),
                ..Default::default()
            };
            self.instance(name, vec![Event::Spawning, Event::Status(Box::new(status))]);
        }
    }

    #[test]
    fn r4_what_is_to_run_and_has_not_for_a_minute_says_what_blocks_it_once() {
        let mut scene = Scene::new();
        scene.runs("demo.engine");
        scene.absent.insert("demo.r1".parse().unwrap(), "the directory is missing".to_owned());
        let r1: InstanceName = "demo.r1".parse().unwrap();
        assert_eq!(scene.at(secs(10)), [""; 0]);
        assert_eq!(scene.at(secs(70)), [""; 0], "not before the minute is over");
        assert_eq!(scene.blocked.by(&r1, secs(70)), None);
        assert_eq!(scene.at(secs(71)), ["demo.r1: the directory is missing"]);
        assert_eq!(scene.at(secs(76)), [""; 0], "an event is told once");
        assert_eq!(scene.blocked.by(&r1, secs(76)), Some("the directory is missing"));
        let waits: Vec<_> = scene.blocked.waits(secs(76)).collect();
        assert_eq!(waits, [(&r1, secs(66))], "since it was to run");
        scene.absent.clear();
        scene.runs("demo.r1");
        scene.at(secs(80));
        assert_eq!(scene.blocked.all(secs(1000)).count(), 0, "it runs");
    }

    #[test]
    fn r4_one_that_ends_again_and_again_is_blocked_by_its_end() {
        let mut scene = Scene::new();
        scene.runs("demo.engine");
        for second in (0..=60).step_by(5) {
            let ended = Event::Ended("killed by signal 9".to_owned());
            let up = second % 10 == 0 && second > 0;
            scene.instance("demo.r1", if up { vec![Event::Spawning] } else { vec![Event::Spawning, ended] });
            assert_eq!(scene.at(secs(second)), [""; 0]);
        }
        scene.instance("demo.r1", vec![Event::Spawning, Event::Ended("killed by signal 9".to_owned())]);
        assert_eq!(scene.at(secs(65)), ["demo.r1: killed by signal 9"]);
    }

    #[test]
    fn r4_what_is_not_wanted_here_or_not_known_is_not_blocked() {
        let mut scene = Scene::new();
        scene.at(secs(0));
        // The registry goes away: nothing is certain any more, and what was counted stays.
        let known = std::mem::replace(&mut scene.records, Records::Unavailable("down".to_owned()));
        assert_eq!(scene.at(secs(100)), [""; 0]);
        scene.records = known;
        assert_eq!(scene.at(secs(101)).len(), 2);
        scene.record.spec.attach = None;
        let state = RecordState::Readable(Box::new(scene.record.clone()));
        scene.records = Records::Known(BTreeMap::from([("demo".to_owned(), state)]));
        scene.at(secs(102));
        assert_eq!(scene.blocked.all(secs(1000)).count(), 0, "it is detached");
    }
}
