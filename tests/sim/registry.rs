//! The registry: one record behind compare-and-swap, which engines reach through the agent of their node.

use std::rc::Rc;

use holdfast::core::records::{RecordState, Records};
use holdfast::registry::engine_cas;
use holdfast_dataplane::core::engine::{RegistryOutcome, Wanted};
use holdfast_proto::ids::{Generation, Incarnation};
use holdfast_proto::record::{RECORD_SCHEMA, VolumeRecord, VolumeSpec, VolumeStatus};
use holdfast_proto::unknown::Unknown;
use uuid::Uuid;

use super::engine::now_of;
use super::process::VOLUME;
use super::queue::{MS, SEC};
use super::world::{Event, World};

/// How long an agent tries before it says that the registry cannot be reached.
const REGISTRY_WITHIN: u64 = 5 * SEC;

/// What an answer follows from: version, incarnation, damaged, hidden.
type Told = (u64, u128, bool, bool);

/// The record, and how the registry is at present.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) version: u64,
    pub(super) status: VolumeStatus,
    /// What the record's spec wants; empty in worlds in which nobody says.
    pub(super) wanted: Vec<Wanted>,
    pub(super) incarnation: u128,
    pub(super) up: bool,
    /// One in so many answers is lost.
    pub(super) lose_one_in: u64,
    /// Taken earlier, to be restored.
    pub(super) backup: Option<(u64, VolumeStatus, VolumeSpec)>,
    /// What operators wrote; of no meaning where nobody reads it.
    pub(super) spec: VolumeSpec,
    /// It cannot be read.
    pub(super) damaged: bool,
    /// The registry says that there is none.
    pub(super) gone: bool,
    /// There is none any more.
    pub(super) deleted: bool,
    /// The last answer, and of what.
    said: Option<(Told, Rc<Records>)>,
}

/// What an engine is told of what is wanted.
pub(super) fn wanted_of(spec: &VolumeSpec) -> Vec<Wanted> {
    spec.replicas.iter().map(|spec| Wanted { replica: spec.id, replaces: spec.replaces }).collect()
}

impl Registry {
    pub(super) fn new(status: VolumeStatus, wanted: Vec<Wanted>, spec: VolumeSpec) -> Self {
        Self {
            version: 1,
            status,
            wanted,
            incarnation: 1,
            up: true,
            lose_one_in: 0,
            backup: None,
            spec,
            damaged: false,
            gone: false,
            deleted: false,
            said: None,
        }
    }

    /// The whole record.
    pub(super) fn record(&self) -> VolumeRecord {
        VolumeRecord {
            schema: RECORD_SCHEMA,
            id: VOLUME,
            name: "sim".parse().expect("a name"),
            version: self.version,
            spec: self.spec.clone(),
            status: self.status.clone(),
            unknown: Unknown::default(),
        }
    }

    /// An operator's change of it.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut VolumeRecord)) {
        let mut record = self.record();
        change(&mut record);
        self.version += 1;
        (self.spec, self.status) = (record.spec, record.status);
        self.wanted = wanted_of(&self.spec);
    }

    /// What agents are answered that ask for all records.
    pub(super) fn records(&mut self) -> Rc<Records> {
        let hidden = self.gone || self.deleted;
        let of = (self.version, self.incarnation, self.damaged, hidden);
        if let Some((_, records)) = self.said.as_ref().filter(|(said, _)| *said == of) {
            return Rc::clone(records);
        }
        let state = match self.damaged {
            true => RecordState::Unreadable("it is damaged".to_owned()),
            false => {
                let record = VolumeRecord { status: self.for_engine(), ..self.record() };
                RecordState::Readable(Box::new(record))
            }
        };
        let records = (!hidden).then(|| ("sim".to_owned(), state)).into_iter().collect();
        let records = Rc::new(Records::Known(records));
        self.said = Some((of, Rc::clone(&records)));
        records
    }

    /// Nobody can read it at present.
    pub(super) fn hides_the_record(&self) -> bool {
        self.damaged || self.gone
    }

    /// The status as engines are told it.
    pub(super) fn for_engine(&self) -> VolumeStatus {
        VolumeStatus { incarnation: Incarnation(Uuid::from_u128(self.incarnation)), ..self.status.clone() }
    }

    /// What `engine_cas::execute` does.
    fn execute(&mut self, expected: u64, wish: &VolumeStatus) -> RegistryOutcome {
        if self.gone {
            return RegistryOutcome::Missing;
        }
        let goes_back = wish.generation < self.status.generation
            || wish.view.order() < self.status.view.order()
            || wish.generation == Generation(0);
        if goes_back || wish.incarnation != Incarnation(Uuid::from_u128(self.incarnation)) {
            return self.conflict();
        }
        if engine_cas::takes_over_from_another(&self.record(), wish) {
            return RegistryOutcome::Missing;
        }
        if self.version != expected {
            let done = self.version > expected && self.status == *wish;
            return if done { RegistryOutcome::Stored { version: self.version } } else { self.conflict() };
        }
        self.version += 1;
        self.status = wish.clone();
        RegistryOutcome::Stored { version: self.version }
    }

    fn conflict(&self) -> RegistryOutcome {
        RegistryOutcome::Conflict { version: self.version, status: Box::new(self.for_engine()) }
    }
}

impl World {
    /// An engine asks its agent.
    pub(super) fn ask(&mut self, engine: usize, ask: u64, expected: u64, status: VolumeStatus) {
        let now = self.queue.now();
        self.engines[engine].asks.insert(ask, (expected, status, now));
        let delay = self.random.between(200, 20 * MS);
        self.queue.after(delay, Event::Ask { engine, ask });
    }

    /// The agent executes it, now or later.
    pub(super) fn executes(&mut self, engine: usize, ask: u64) {
        let host = &self.engines[engine];
        let Some((expected, wish, since)) = host.asks.get(&ask).cloned() else { return };
        let node = host.node;
        if !host.alive && self.random.coin() {
            self.engines[engine].asks.remove(&ask);
            return;
        }
        if !self.agent_is_up(node) {
            self.queue.after(500 * MS, Event::Ask { engine, ask });
            return;
        }
        let outcome = if self.registry_answers(node) && !self.registry.damaged {
            let before = self.registry.version;
            let outcome = self.registry.execute(expected, &wish);
            if self.registry.version != before {
                self.record_changed();
            }
            if self.random.one_in(self.registry.lose_one_in) {
                self.queue.after(SEC, Event::Ask { engine, ask });
                return;
            }
            outcome
        } else if self.queue.now() - since < REGISTRY_WITHIN {
            self.queue.after(SEC, Event::Ask { engine, ask });
            return;
        } else {
            RegistryOutcome::Unreachable
        };
        trace!(self, "registry: e{engine} ask {ask} version {expected}: {outcome:?}");
        self.engines[engine].asks.remove(&ask);
        let delay = self.random.between(100, 5 * MS);
        self.queue.after(delay, Event::Answer { engine, ask, outcome: Box::new(outcome) });
    }

    pub(super) fn answer_ask(&mut self, engine: usize, ask: u64, outcome: RegistryOutcome) {
        if self.engines[engine].alive {
            let now = now_of(self.queue.now());
            self.engines[engine].core.registry_result(ask, outcome, now);
            self.act_engine(engine);
        }
    }

    /// An old backup is put in the place of the record: a new life of the registry.
    pub(super) fn restore_registry(&mut self) {
        // A record from before a change of the set says nothing of replicas that may decide a start, and agents end or
        // leave those: what becomes of it is for people to say.
        if self.plan.change_every > 0 {
            return;
        }
        if let Some((version, status, spec)) = self.registry.backup.take() {
            trace!(self, "registry restored to version {version}: {status:?}");
            self.registry.version = version;
            self.registry.status = status;
            self.registry.spec = spec;
            self.registry.incarnation += 1;
            if self.plan.has_agents() {
                self.record_went_back();
            }
        }
    }
}
