//! Random histories of volumes, their copies and their records, looked at as the shell does: nodes are renamed, copies
//! vanish between the look and the act, clocks jump, and the registry answers from the past. What is wrongly deleted is
//! judged by the world itself, which the code under test never sees. Of a wall clock nothing here takes any; that the
//! trash does not either is shown where it has names from one. `HOLDFAST_SEEDS` says how many histories; `HOLDFAST_SEED`
//! replays one.

use holdfast_proto::ids::{Epoch, Generation, Incarnation, InstanceUuid, NodeName, ReplicaId};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::record::{ReplicaSet, VolumeRecord};

use super::fuzz::Random;
use super::*;
use crate::core::elsewhere::Elsewhere;
use crate::core::foreign::Foreign;
use crate::core::instance::{Event, Instance, InstanceName, State};
use crate::core::placement::{forget_left, unwant, want};
use crate::core::reconcile::World;
use crate::core::records::{RecordState, Records};
use crate::core::testing::record;
use crate::core::waits::{self, LOOKS_APART_MAX, Waits};

const GRACE: Duration = Duration::from_secs(100);
const TTL: Duration = Duration::from_secs(200);
const VOLUMES: usize = 2;
const STEPS: u64 = 120;

/// A directory as it really is.
#[derive(Debug, Clone)]
struct Directory {
    copy: Copy,
    /// The newest write that it holds.
    data: u64,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    /// On the other node.
    There,
    /// Its disk is not mounted.
    Away,
    /// In the trash, since this moment by the time in which agents ran.
    Trash(Duration),
    Gone,
}

#[derive(Debug, Clone)]
struct Volume {
    record: VolumeRecord,
    /// The newest acknowledged write.
    latest: u64,
    /// The order of the view that engines work with, which the record may not have yet.
    view: (Generation, Epoch, ReplicaSet),
    uuid: InstanceUuid,
    directories: Vec<Directory>,
}

struct Fuzz {
    random: Random,
    now: Moment,
    /// For how long agents ran, of all that time.
    ran: Duration,
    here: NodeName,
    /// Another name than its own: a new one, or, as a clone, that of the other node.
    renamed: Option<&'static str>,
    incarnation: Incarnation,
    volumes: Vec<Volume>,
    /// What the registry said earlier.
    past: Vec<Vec<VolumeRecord>>,
    tracker: Tracker,
    saved: Option<Saved>,
    waits: Waits,
    saved_waits: Option<waits::Saved>,
    settings: Settings,
    trashed: usize,
    unlinked: usize,
}

fn of(members: ReplicaSet, id: ReplicaId) -> bool {
    members.contains(id)
}

impl Volume {
    fn new(index: usize, here: &NodeName, incarnation: Incarnation) -> Self {
        let mut record = record(&format!("v{index}"), here.as_str(), 3);
        record.status.incarnation = incarnation;
        // The last one is on the other node.
        record.spec.replicas[2].node = "node-b".parse().unwrap();
        let view = (Generation(0), Epoch(0), record.status.view.members);
        let mut volume = Self { record, latest: 0, view, uuid: InstanceUuid::random(), directories: vec![] };
        for id in [1, 2, 3] {
            volume.make(ReplicaId(id), if id == 3 { Place::There } else { Place::Here }, true);
        }
        volume
    }

    fn make(&mut self, replica: ReplicaId, place: Place, whole: bool) {
        let copy = Copy {
            directory: format!("{}.{replica}", self.record.name),
            volume_name: self.record.name.clone(),
            volume: self.record.id,
            replica,
            lineage: self.record.status.lineage,
            order: (self.view.0, self.view.1),
            whole,
            in_place: true,
            marked: false,
            changing: false,
        };
        self.directories.push(Directory { copy, data: 0, place });
    }

    /// The members learn of a view, and the record if it is lucky.
    fn new_view(&mut self, members: ReplicaSet, epoch: Epoch, told: bool) {
        self.view = (self.record.status.generation, epoch, members);
        for found in self.directories.iter_mut().filter(|found| of(members, found.copy.replica)) {
            if matches!(found.place, Place::Here | Place::There) {
                found.copy.order = (self.view.0, self.view.1);
                found.copy.whole = true;
                found.data = self.latest;
            }
        }
        if told {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let status = &mut self.record.status;
        (status.view.generation, status.view.epoch, status.view.members) = self.view;
        status.configured = self.record.spec.replicas.iter().map(|spec| spec.id).collect();
    }

    fn is_attached(&self) -> bool {
        self.record.spec.attach.is_some()
    }

    /// What can be read and written now.
    fn is_there(&self, id: ReplicaId) -> bool {
        let there = |place: Place| matches!(place, Place::Here | Place::There);
        self.directories.iter().any(|found| found.copy.replica == id && there(found.place))
    }
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let (here, incarnation): (NodeName, _) = ("node-a".parse().unwrap(), Incarnation::random());
        let volumes = (0..VOLUMES).map(|index| Volume::new(index, &here, incarnation)).collect();
        Self {
            random: Random(seed),
            now: Duration::from_secs(500),
            ran: Duration::ZERO,
            here,
            renamed: None,
            incarnation,
            volumes,
            past: Vec::new(),
            tracker: Tracker::default(),
            saved: None,
            waits: Waits::default(),
            saved_waits: None,
            settings: Settings { auto_cleanup: Class::ALL.into(), grace: GRACE },
            trashed: 0,
            unlinked: 0,
        }
    }

    fn records(&self) -> Vec<VolumeRecord> {
        self.volumes.iter().map(|volume| volume.record.clone()).collect()
    }

    /// Something happens to a volume.
    fn disturb(&mut self) {
        if self.random.one_in(4) {
            self.past.push(self.records());
        }
        let index = usize::try_from(self.random.below(VOLUMES as u64)).unwrap();
        let (choice, pick) = (self.random.below(14), self.random.below(6));
        let lucky = self.random.one_in(2);
        let incarnation = self.incarnation;
        let volume = &mut self.volumes[index];
        let one = |volume: &Volume| {
            let count = volume.directories.len();
            usize::try_from(pick).unwrap() % count
        };
        match choice {
            0 if !volume.is_attached() => {
                // A new engine takes over where all that may hold the newest data is there.
                let wanted = |id: &ReplicaId| volume.record.spec.replicas.iter().any(|spec| spec.id == *id);
                let members: ReplicaSet = volume.view.2.iter().filter(wanted).collect();
                let (all, any) = (
                    members.iter().all(|id| volume.is_there(id)),
                    members.iter().find(|id| volume.is_there(*id)),
                );
                if any.is_some() && (all || volume.record.status.clean) {
                    let there: ReplicaSet = members.iter().filter(|id| volume.is_there(*id)).collect();
                    volume.record.spec.attach = crate::core::testing::attached("v", "node-a", 1).spec.attach;
                    volume.record.status.generation = volume.record.status.generation.next().unwrap();
                    volume.record.status.incarnation = incarnation;
                    volume.record.status.clean = false;
                    volume.new_view(there, Epoch(1), true);
                }
            }
            1 if volume.is_attached() => {
                volume.record.spec.attach = None;
                volume.record.status.clean = lucky;
                if lucky {
                    volume.tell();
                    forget_left(&mut volume.record);
                }
            }
            2 | 3 if volume.is_attached() => {
                volume.latest += 1;
                let members: ReplicaSet = volume.view.2.iter().filter(|id| volume.is_there(*id)).collect();
                if members != volume.view.2 && !members.is_empty() {
                    volume.new_view(members, Epoch(volume.view.1.0 + 1), lucky);
                } else if members.is_empty() {
                    volume.latest -= 1;
                } else {
                    let latest = volume.latest;
                    let found = volume.directories.iter_mut();
                    found
                        .filter(|found| of(members, found.copy.replica))
                        .for_each(|found| found.data = latest);
                }
            }
            4 if volume.is_attached() => {
                // One member leaves: it did not answer.
                let left: ReplicaSet =
                    volume.view.2.iter().skip(1).filter(|id| volume.is_there(*id)).collect();
                if !left.is_empty() {
                    volume.new_view(left, Epoch(volume.view.1.0 + 1), lucky);
                }
            }
            5 if volume.is_attached() => {
                // All that are wanted and there are filled again.
                let wanted = volume.record.spec.replicas.iter().map(|spec| spec.id);
                let filled: ReplicaSet = wanted.filter(|id| volume.is_there(*id)).collect();
                let sourced = volume.view.2.iter().any(|id| volume.is_there(id));
                if sourced && !filled.is_empty() {
                    volume.new_view(filled, Epoch(volume.view.1.0 + 1), true);
                }
            }
            6 | 7 => {
                let spec = &volume.record.spec.replicas;
                let id = spec[usize::try_from(pick).unwrap() % spec.len()].id;
                let others = volume.view.2.without(id);
                let healthy = others.iter().any(|id| {
                    volume.is_there(id) && volume.record.spec.replicas.iter().any(|spec| spec.id == id)
                });
                if healthy {
                    unwant(&mut volume.record, id);
                    volume.record.status.configured = volume.record.status.configured.without(id);
                    if volume.is_attached() {
                        volume.new_view(others, Epoch(volume.view.1.0 + 1), lucky);
                    }
                }
            }
            8 if volume.record.spec.replicas.len() < 4 => {
                let id = volume.record.fresh_replica_id();
                let node = if lucky { "node-a" } else { "node-b" }.parse().unwrap();
                want(&mut volume.record, id, InstanceUuid::random(), &node, None);
                volume.make(id, if lucky { Place::Here } else { Place::There }, false);
            }
            9 => {
                let at = one(volume);
                if volume.directories[at].place == Place::Here {
                    volume.directories[at].place = Place::Away;
                }
            }
            10 => {
                let at = one(volume);
                if volume.directories[at].place == Place::Away {
                    volume.directories[at].place = Place::Here;
                }
            }
            11 => {
                let at = one(volume);
                volume.directories[at].copy.marked ^= lucky;
            }
            12 => {
                let at = one(volume);
                // A disk of the other node dies; never the last copy of the newest data, which is another matter.
                if volume.directories[at].place == Place::There && volume.directories[at].data < volume.latest
                {
                    volume.directories[at].place = Place::Gone;
                }
            }
            _ => {}
        }
    }

    /// What the registry says: the truth, nothing, or something that was so once.
    fn answer(&mut self) -> Records {
        let records = match self.random.below(8) {
            0 => return Records::Unavailable("away".to_owned()),
            1 | 2 if !self.past.is_empty() => {
                let at = self.random.below(self.past.len() as u64);
                self.past[usize::try_from(at).unwrap()].clone()
            }
            _ => self.records(),
        };
        let state = |record: VolumeRecord| (record.name.to_string(), RecordState::Readable(Box::new(record)));
        Records::Known(records.into_iter().map(state).collect())
    }

    fn instances(&self) -> BTreeMap<InstanceName, Instance> {
        let mut instances = BTreeMap::new();
        for volume in self.volumes.iter().filter(|volume| volume.is_attached() && self.renamed.is_none()) {
            let mut engine = Instance::new(volume.uuid, volume.record.id, 0, State::Pending, self.now);
            let mode = |id: ReplicaId| if volume.is_there(id) { "member" } else { "suspect" };
            let replicas = volume.view.2.iter().map(|id| pb::ReplicaState {
                id: id.0,
                mode: mode(id).into(),
                ..Default::default()
            });
            let status = pb::InstanceStatus {
                phase: "running".into(),
                engine: Some(pb::EngineStatus {
                    generation: volume.view.0.0,
                    epoch: volume.view.1.0,
                    replicas: replicas.collect(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            engine.handle(Event::Status(Box::new(status)), self.now);
            instances.insert(InstanceName::engine(&volume.record.name), engine);
        }
        instances
    }

    fn copies(&self) -> Vec<Copy> {
        let all = self.volumes.iter().flat_map(|volume| &volume.directories);
        all.filter(|found| found.place == Place::Here).map(|found| found.copy.clone()).collect()
    }

    fn in_world<T>(&self, records: &Records, look: impl FnOnce(World<'_>) -> T) -> T {
        let (absent, missing) = (BTreeMap::new(), BTreeSet::new());
        let (elsewhere, foreign) = (Elsewhere::default(), Foreign::none());
        let name = self.renamed.map_or_else(|| self.here.clone(), |name| name.parse().unwrap());
        look(World {
            node: &name,
            now: self.now,
            records,
            foreign: &foreign,
            instances: &self.instances(),
            absent: &absent,
            missing: &missing,
            incarnation: self.incarnation,
            elsewhere: &elsewhere,
        })
    }

    fn look(&mut self) -> (Records, Vec<Sighting>) {
        let (records, copies) = (self.answer(), self.copies());
        let seen = self.in_world(&records, |world| data(world, &copies));
        (records, seen)
    }

    /// One round of an agent.
    fn round(&mut self) {
        let (_, sightings) = self.look();
        let reading = Reading { class: Class::ReplicaData, asked_at: self.now, sightings };
        self.tracker.observe(&reading, &self.settings, self.now);
        self.saved = self.tracker.save(self.now).or(self.saved.take());
        let due = self.tracker.due(&self.settings, self.now);
        if !due.is_empty() {
            let took = Duration::from_millis(1 + self.random.below(50));
            (self.now, self.ran) = (self.now + took, self.ran + took);
            if self.random.one_in(3) {
                self.disturb();
            }
            let asked_at = self.now;
            let (records, sightings) = self.look();
            for sighting in sightings.iter().filter(|sighting| due.contains(&sighting.subject)) {
                if self.tracker.confirm(sighting, asked_at, &self.settings, self.now) {
                    self.clean(&records, &sighting.subject);
                }
            }
        }
        self.sweep();
    }

    /// As the shell: into the trash, and back where the copy that it was given up for is gone meanwhile.
    fn clean(&mut self, records: &Records, subject: &Subject) {
        if self.random.one_in(3) {
            self.disturb();
        }
        let ran = self.ran;
        let named = |found: &Directory| {
            found.copy.directory == subject.name
                && found.copy.volume.0 == subject.uuid
                && found.place == Place::Here
        };
        let mut all = self.volumes.iter_mut().flat_map(|volume| &mut volume.directories);
        let Some(found) = all.find(|found| named(found)) else {
            return self.tracker.failed(subject, "it has vanished", self.now);
        };
        if found.copy.marked {
            return self.tracker.failed(subject, "it is marked", self.now);
        }
        found.place = Place::Trash(ran);
        let copy = found.copy.clone();
        let copies = self.copies();
        if let Err(why) = self.in_world(records, |world| is_spared(world, &copies, &copy)) {
            let mut all = self.volumes.iter_mut().flat_map(|volume| &mut volume.directories);
            if let Some(found) = all.find(|found| found.copy.directory == copy.directory) {
                found.place = Place::Here;
            }
            return self.tracker.failed(subject, &why, self.now);
        }
        self.tracker.cleaned(subject);
        self.check(&copy);
        // Its list is named after the directory: it may have had that name before.
        self.waits.begin(&copy.directory, self.now);
        self.saved_waits = self.waits.save(self.now).or(self.saved_waits.take());
        self.trashed += 1;
    }

    /// Whether this one may be in the trash.
    fn check(&self, gone: &Copy) {
        assert!(self.renamed.is_none(), "{} was cleaned by a renamed node", gone.directory);
        let volume = self.volumes.iter().find(|volume| volume.record.id == gone.volume).unwrap();
        let wanted = volume.record.placed().any(|spec| spec.id == gone.replica);
        assert!(!wanted, "{} is wanted: {:?}", gone.directory, volume.record.spec);
        let held = |found: &&Directory| found.copy.directory == gone.directory;
        let data = volume.directories.iter().find(held).unwrap().data;
        let better = volume.directories.iter().any(|found| {
            let usable = matches!(found.place, Place::Here | Place::There) && found.copy.whole;
            usable && found.copy.directory != gone.directory && found.data >= data
        });
        assert!(better, "{} holds {data}, and no other does: {volume:#?}", gone.directory);
    }

    fn sweep(&mut self) {
        let all = self.volumes.iter().flat_map(|volume| &volume.directories);
        let in_trash = all.filter(|found| matches!(found.place, Place::Trash(_)));
        let there: BTreeSet<String> = in_trash.map(|found| found.copy.directory.clone()).collect();
        self.waits.observe(&there, self.now);
        self.saved_waits = self.waits.save(self.now).or(self.saved_waits.take());
        for name in self.waits.over(TTL) {
            let ran = self.ran;
            let mut all = self.volumes.iter_mut().flat_map(|volume| &mut volume.directories);
            let found = all.find(|found| found.copy.directory == name).unwrap();
            let Place::Trash(since) = found.place else { panic!("{name} is not in the trash") };
            assert!(
                ran.saturating_sub(since) >= TTL,
                "{name} is unlinked early: {:?}",
                ran.saturating_sub(since)
            );
            found.place = Place::Gone;
            self.unlinked += 1;
        }
    }

    fn restart(&mut self) {
        self.now += Duration::from_secs(self.random.below(200));
        self.tracker = Tracker::restore(self.saved.clone());
        self.waits = Waits::restore(self.saved_waits.clone());
        if self.random.one_in(3) {
            let other = if self.random.one_in(2) { "node-z" } else { "node-b" };
            self.renamed = if self.renamed.is_none() { Some(other) } else { None };
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.random.below(24) {
                0..=7 => self.disturb(),
                8 => self.restart(),
                // The clock jumps, or a read hung.
                9 | 10 if self.random.one_in(4) => {
                    let jump = Duration::from_secs(self.random.below(86_400) / (1 + self.random.below(600)));
                    self.now += jump;
                    self.ran += if jump <= LOOKS_APART_MAX { jump } else { Duration::ZERO };
                }
                11 => {
                    let all = self.tracker.entries.keys().cloned().collect::<Vec<_>>();
                    for subject in &all {
                        self.tracker.release(subject);
                    }
                }
                _ => {}
            }
            let step = Duration::from_millis(self.random.below(20_000));
            self.now += step;
            self.ran += step;
            self.round();
        }
    }
}

#[test]
fn o_nothing_that_a_volume_needs_is_deleted_on_a_doubt() {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seeds = match number("HOLDFAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HOLDFAST_SEEDS").unwrap_or(2_000),
    };
    let (mut trashed, mut unlinked) = (0, 0);
    for seed in seeds.clone() {
        let told = std::panic::catch_unwind(|| {
            let mut fuzz = Fuzz::new(seed);
            fuzz.run();
            (fuzz.trashed, fuzz.unlinked)
        });
        match told {
            Ok((some, gone)) => (trashed, unlinked) = (trashed + some, unlinked + gone),
            Err(panic) => {
                eprintln!("replay with HOLDFAST_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{} histories, {trashed} into the trash, {unlinked} unlinked", seeds.end - seeds.start);
    assert!(
        seeds.end - seeds.start < 1000 || trashed > 50 && unlinked > 5,
        "the histories are not about anything"
    );
}
