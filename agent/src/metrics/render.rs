//! From what is known to text: pure.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::pb::{agent as pb, instance as ipb};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::counts::{Counts, Histogram};
use crate::core::inventory::Snapshot;
use crate::core::orphan::{Class, Stats};
use crate::core::view::{MODES, STATES};

/// Everything that a scrape shows, as it is at one moment.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// This node.
    pub node: String,
    /// When the agent started, in seconds since 1970.
    pub started_unix_s: u64,
    /// What the agent uses.
    pub process: Option<ProcessUse>,
    /// What it counted.
    pub counts: Counts,
    /// Instances and volumes.
    pub inventory: Snapshot,
    /// What engines counted, by volume.
    pub io: BTreeMap<String, Vec<ipb::IoCounters>>,
    /// How many clients engines dropped for taking no replies, by volume.
    pub clients_stalled: BTreeMap<String, u64>,
    /// Volumes whose I/O is held now, and for how long.
    pub suspended: Vec<Since>,
    /// Volumes that something keeps from what their records say, and for how long.
    pub blocked: Vec<Since>,
    /// Volumes that move to this node, and for how long.
    pub moving: Vec<Since>,
    /// How many of those something keeps from going on.
    pub moves_blocked: u64,
    /// Instances that are to run and do not, by name and kind.
    pub instances_blocked: Vec<(Since, String, &'static str)>,
    /// Replicas of the fleet that ought to be elsewhere and cannot go there, as the one agent knows that moves them.
    pub replica_moves_blocked: u64,
    /// What nobody claims.
    pub orphans: Stats,
    /// Instances that wait before they are started again, by kind.
    pub waiting_to_restart: BTreeMap<&'static str, u64>,
    /// Volumes whose steps failed and are tried again.
    pub retrying: u64,
    /// Whether the records could be read last.
    pub registry_up: bool,
    /// How often hearing of changes had to begin again.
    pub watch_restarts: u64,
    /// The data directory, as it was looked at last.
    pub space: Option<Space>,
}

/// For how long something of a volume has been so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    /// Its name.
    pub volume: String,
    /// As far as this agent has seen.
    pub since: Duration,
}

/// What the agent's process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessUse {
    /// Of user and system.
    pub cpu_seconds: f64,
    /// Of memory.
    pub resident_bytes: u64,
}

/// The data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Of its file system.
    pub capacity_bytes: u64,
    /// To the agent.
    pub available_bytes: u64,
    /// None: it is not known what waits there.
    pub trash: Option<InTrash>,
}

/// What waits in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InTrash {
    /// Directories.
    pub entries: u64,
    /// What they take on disk.
    pub bytes: u64,
}

/// Everything in the text format of Prometheus, version 0.0.4.
#[must_use]
pub fn render(observed: Observed) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(observed));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a String takes all that is written");
    text
}

/// The state of a volume that holds its I/O.
pub(crate) const SUSPENDED: &str = "suspended";

type Written = Result<(), std::fmt::Error>;
type Labels<const N: usize> = [(&'static str, String); N];

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Written {
        let to = &mut Writer(&mut encoder);
        self.agent(to)?;
        self.instances(to)?;
        self.orphans(to)?;
        self.work(to)?;
        self.volumes(to)?;
        self.replicas(to)?;
        self.io(to)
    }
}

impl Observed {
    fn agent(&self, to: &mut Writer<'_, '_>) -> Written {
        let build = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", self.node.clone())];
        to.gauge("holdfast_build_info", "The agent's version and node", [(build, 1u64)])?;
        let started = [([], self.started_unix_s)];
        to.gauge("process_start_time_seconds", "When the agent started, in seconds since 1970", started)?;
        if let Some(process) = self.process {
            to.counter("process_cpu_seconds", "CPU time of the agent", [([], process.cpu_seconds)])?;
            let resident = [([], process.resident_bytes)];
            to.gauge("process_resident_memory_bytes", "Memory of the agent", resident)?;
        }
        if let Some(space) = self.space {
            let help = "Size of the data directory's file system";
            to.gauge("holdfast_data_capacity_bytes", help, [([], space.capacity_bytes)])?;
            let available = [([], space.available_bytes)];
            to.gauge("holdfast_data_available_bytes", "Room in the data directory", available)?;
        }
        if let Some(trash) = self.space.and_then(|space| space.trash) {
            let entries = [([], trash.entries)];
            to.gauge("holdfast_trash_entries", "Directories that wait in the trash", entries)?;
            to.gauge("holdfast_trash_bytes", "What they take on disk", [([], trash.bytes)])?;
        }
        Ok(())
    }

    fn instances(&self, to: &mut Writer<'_, '_>) -> Written {
        let mut counted = BTreeMap::new();
        for i in &self.inventory.instances {
            *counted.entry([&i.kind, &i.state, &i.claim]).or_insert(0u64) += 1;
        }
        let named = |[kind, state, claim]: [&String; 3]| {
            [("kind", kind.clone()), ("state", state.clone()), ("claim", claim.clone())]
        };
        let series = counted.into_iter().map(|(key, count)| (named(key), count));
        to.gauge("holdfast_instances", "Instances of this node", series)?;
        let restarts = self.inventory.instances.iter().map(|i| {
            let labels = [("name", i.name.clone()), ("kind", i.kind.clone()), ("volume", i.volume.clone())];
            (labels, u64::from(i.restarts))
        });
        let help = "How often an instance was started again after an end that nobody asked for";
        to.counter("holdfast_instance_restarts", help, restarts)?;
        let waiting = ["engine", "replica"].into_iter().map(|kind| {
            ([("kind", kind.to_owned())], self.waiting_to_restart.get(kind).copied().unwrap_or_default())
        });
        let help = "Instances that ended by themselves and wait before they are started again";
        to.gauge("holdfast_instances_waiting_to_restart", help, waiting)?;
        let transitions = pairs(&self.counts.instance_transitions, ["kind", "to"]);
        to.counter("holdfast_instance_transitions", "Instances that came into a state", transitions)?;
        let blocked = self.instances_blocked.iter().map(|(since, name, kind)| {
            let labels =
                [("name", name.clone()), ("kind", (*kind).to_owned()), ("volume", since.volume.clone())];
            (labels, since.since.as_secs())
        });
        let help = "For how long an instance has been to run and has not, beyond a minute";
        to.gauge("holdfast_instance_blocked_seconds", help, blocked)
    }

    fn orphans(&self, to: &mut Writer<'_, '_>) -> Written {
        let stats = &self.orphans;
        let count = stats.count.iter().map(|((class, state), count)| {
            ([("class", class.to_string()), ("state", (*state).to_owned())], *count)
        });
        to.gauge("holdfast_orphans", "What no record claims", count)?;
        let by_class =
            |value: &dyn Fn(Class) -> u64| Class::ALL.map(|class| (class_label(class), value(class)));
        let held = by_class(&|class| stats.held_by_breaker.get(&class).copied().unwrap_or_default());
        let help =
            "Orphans that wait for a person because too many turned up at once, or their history is lost";
        to.gauge("holdfast_orphans_held_by_breaker", help, held)?;
        let oldest = by_class(&|class| stats.oldest.get(&class).copied().unwrap_or_default().as_secs());
        let help = "For how long it is confirmed, of the oldest orphan, that nobody claims it";
        to.gauge("holdfast_orphan_oldest_seconds", help, oldest)?;
        let totals = |class: Class| stats.totals.get(&class).copied().unwrap_or_default();
        let cleaned = by_class(&|class| totals(class).cleaned);
        to.counter("holdfast_orphans_cleaned", "Orphans that were stopped or moved to the trash", cleaned)?;
        let reclaimed = by_class(&|class| totals(class).cancelled);
        to.counter("holdfast_orphans_reclaimed", "Orphans that a record claimed again", reclaimed)?;
        let transitions = pairs(&self.counts.orphan_transitions, ["class", "to"]);
        let help = "Lines in the log about orphans, by the state that a thing came into";
        to.counter("holdfast_orphan_transitions", help, transitions)?;
        let requests = words(&self.counts.orphan_requests, "request");
        to.counter("holdfast_orphan_requests", "What persons had done about orphans", requests)
    }

    fn work(&self, to: &mut Writer<'_, '_>) -> Written {
        let counts = &self.counts;
        let help =
            "Comparing records with what is there, and acting on it; a look that finds all as it was is none";
        to.histogram("holdfast_reconcile_duration_seconds", help, [([], shape(&counts.reconciles))])?;
        let help = "Comparisons for which the records could not be read";
        to.counter("holdfast_reconcile_failures", help, [([], counts.reconcile_failures)])?;
        let help = "What became of the steps that were planned for a volume";
        to.counter("holdfast_volume_steps", help, words(&counts.steps, "outcome"))?;
        let help = "Volumes whose steps failed and are tried again";
        to.gauge("holdfast_volumes_retrying", help, [([], self.retrying)])?;
        let help = "Volumes that something keeps from what their records say";
        let blocked = u64::try_from(self.blocked.len()).unwrap_or(u64::MAX);
        to.gauge("holdfast_volumes_blocked", help, [([], blocked)])?;
        let help = "For how long something has kept a volume from what its record says";
        to.gauge("holdfast_volume_blocked_seconds", help, since(&self.blocked))?;
        let asked = counts.registry.iter().map(|((operation, outcome), histogram)| {
            let labels = [("operation", (*operation).to_owned()), ("outcome", (*outcome).to_owned())];
            (labels, shape(histogram))
        });
        to.histogram("holdfast_registry_duration_seconds", "Calls of the registry", asked)?;
        let up = [([], u64::from(self.registry_up))];
        to.gauge("holdfast_registry_up", "Whether the records could be read last", up)?;
        let help = "How often hearing of changes in the registry had to begin again";
        to.counter("holdfast_registry_watch_restarts", help, [([], self.watch_restarts)])?;
        self.moves(to)?;
        let changes = words(&counts.changes, "change");
        to.counter("holdfast_inventory_changes", "Events of the inventory", changes)
    }

    fn moves(&self, to: &mut Writer<'_, '_>) -> Written {
        let moves = words(&self.counts.volume_moves, "step");
        let help = "Volumes that were attached here after they were attached on another node";
        to.counter("holdfast_volume_moves", help, moves)?;
        let help = "For how long a volume that moves here has been without its engine here";
        to.gauge("holdfast_volume_moving_seconds", help, since(&self.moving))?;
        let help = "Volumes that move here and that something keeps from it";
        to.gauge("holdfast_volume_moves_blocked", help, [([], self.moves_blocked)])?;
        let moves = words(&self.counts.replica_moves, "outcome");
        let help = "Replicas of drained, forgotten or silent nodes for which this agent wished a successor elsewhere";
        to.counter("holdfast_replica_moves", help, moves)?;
        let help = "Such replicas for which there is no place or no source now; 0 but on one agent of all";
        to.gauge("holdfast_replica_moves_blocked", help, [([], self.replica_moves_blocked)])
    }

    fn volumes(&self, to: &mut Writer<'_, '_>) -> Written {
        let volumes = &self.inventory.volumes;
        let count = |state: &str| volumes.iter().filter(|v| v.state == state).fold(0u64, |n, _| n + 1);
        let counted = STATES.map(|state| ([("state", state.to_owned())], count(state)));
        to.gauge("holdfast_volumes", "Volumes by state", counted)?;
        let state = volumes.iter().map(|v| ([("volume", v.name.clone()), ("state", v.state.clone())], 1u64));
        to.gauge("holdfast_volume_state", "1 for the state that a volume is in", state)?;
        let members =
            |v: &pb::VolumeInfo| v.replicas.iter().filter(|r| r.mode == "member").fold(0u64, |n, _| n + 1);
        let suspended = |v: &pb::VolumeInfo| {
            let found = self.suspended.iter().find(|suspended| suspended.volume == v.name);
            found.map_or(0, |suspended| suspended.since.as_secs())
        };
        type Value<'a> = &'a dyn Fn(&pb::VolumeInfo) -> u64;
        let values: [(&str, &str, Value<'_>); 8] = [
            ("holdfast_volume_size_bytes", "Size of a volume", &|v| v.size_bytes),
            ("holdfast_volume_generation", "Grows with each engine that takes it over", &|v| v.generation),
            ("holdfast_volume_epoch", "Grows with each change of its members", &|v| v.epoch),
            ("holdfast_volume_clients", "Clients of its engine", &|v| u64::from(v.clients)),
            ("holdfast_volume_unrepaired_bytes", "Still to be compared after an unclean end", &|v| {
                v.unrepaired_bytes
            }),
            ("holdfast_volume_members", "Replicas that are in sync", &members),
            ("holdfast_volume_replicas", "Replicas that it has", &|v| {
                u64::try_from(v.replicas.len()).unwrap_or(u64::MAX)
            }),
            (
                "holdfast_volume_suspended_seconds",
                "For how long its requests have been held; 0: they are not",
                &suspended,
            ),
        ];
        for (name, help, value) in values {
            to.gauge(name, help, volumes.iter().map(|v| ([("volume", v.name.clone())], value(v))))?;
        }
        Ok(())
    }

    fn replicas(&self, to: &mut Writer<'_, '_>) -> Written {
        let all = || self.inventory.volumes.iter().flat_map(|v| v.replicas.iter().map(move |r| (v, r)));
        let labels = |v: &pb::VolumeInfo, r: &pb::VolumeReplicaInfo| {
            [("volume", v.name.clone()), ("replica", r.id.clone()), ("node", r.node.clone())]
        };
        let mut counted: BTreeMap<&str, u64> = MODES.into_iter().map(|mode| (mode, 0)).collect();
        for (_, r) in all() {
            *counted.entry(&r.mode).or_default() += 1;
        }
        let counted = counted.into_iter().map(|(mode, count)| ([("mode", mode.to_owned())], count));
        to.gauge("holdfast_replicas", "Replicas by mode", counted)?;
        let modes = all().map(|(v, r)| {
            let [volume, replica, node] = labels(v, r);
            ([volume, replica, node, ("mode", r.mode.clone())], 1u64)
        });
        to.gauge("holdfast_replica_mode", "1 for the mode that a replica is in", modes)?;
        type Part = fn(&pb::Progress) -> Option<u64>;
        let parts: [(&str, &str, Part); 4] = [
            ("holdfast_rebuild_done_bytes", "Of a filling: dealt with", |p| Some(p.done_bytes)),
            ("holdfast_rebuild_wanted_bytes", "Of a filling: all, as far as is known", |p| {
                Some(p.total_bytes)
            }),
            ("holdfast_rebuild_bytes_per_second", "Of a filling: its rate lately", |p| {
                Some(p.bytes_per_second)
            }),
            (
                "holdfast_rebuild_remaining_seconds",
                "Of a filling: how long the rest takes at that rate",
                |p| p.remaining_s,
            ),
        ];
        for (name, help, part) in parts {
            let series = all().filter_map(|(v, r)| Some((labels(v, r), part(r.progress.as_ref()?)?)));
            to.gauge(name, help, series)?;
        }
        let engines = || all().filter(|(v, _)| v.engine.is_some());
        let copied = engines().map(|(v, r)| (labels(v, r), r.copied_bytes));
        let help = "Sent to a replica by fillings, since its engine began";
        to.counter("holdfast_rebuild_copied_bytes", help, copied)?;
        let compared = engines().map(|(v, r)| (labels(v, r), r.compared_bytes));
        let help = "Found equal by fillings and not sent, since its engine began";
        to.counter("holdfast_rebuild_compared_bytes", help, compared)
    }

    fn io(&self, to: &mut Writer<'_, '_>) -> Written {
        let all = || {
            let volumes = self.io.iter();
            let counted = volumes.flat_map(|(volume, kinds)| kinds.iter().map(move |kind| (volume, kind)));
            counted.map(|(volume, io)| ([("volume", volume.clone()), ("kind", io.kind.clone())], io))
        };
        let requests = all().map(|(labels, io)| (labels, io.requests));
        to.counter("holdfast_io_requests", "Clients' requests that were carried out, or failed", requests)?;
        let errors = all().map(|(labels, io)| (labels, io.errors));
        to.counter("holdfast_io_errors", "Those that failed", errors)?;
        let bytes = all().map(|(labels, io)| (labels, io.bytes));
        to.counter("holdfast_io_bytes", "What the others covered", bytes)?;
        let stalled =
            self.clients_stalled.iter().map(|(volume, count)| ([("volume", volume.clone())], *count));
        let help = "Clients that were dropped because they took no replies while others waited for memory";
        to.counter("holdfast_clients_stalled", help, stalled)?;
        let help = "From a request's header to its answer";
        // What nobody ever asks for has no buckets: there are many.
        let took = all().filter(|(_, io)| io.requests > 0).map(|(labels, io)| (labels, latency(io)));
        to.histogram("holdfast_io_duration_seconds", help, took)
    }
}

/// A histogram as it is written: the sum in seconds, and for each bound in seconds how many are in its bucket.
type Shape = (f64, Vec<(f64, u64)>);

fn shape(histogram: &Histogram) -> Shape {
    (histogram.sum_seconds(), histogram.buckets())
}

/// The bounds double from 32 microseconds on; the last bucket has none.
fn latency(io: &ipb::IoCounters) -> Shape {
    let last = io.latency_buckets.len().saturating_sub(1);
    let bounds = std::iter::successors(Some(32e-6), |bound| Some(bound * 2.0));
    let bounded = bounds.enumerate().map(|(at, bound)| if at < last { bound } else { f64::INFINITY });
    let sum = Duration::from_nanos(io.latency_sum_ns).as_secs_f64();
    (sum, bounded.zip(io.latency_buckets.iter().copied()).collect())
}

fn since(of: &[Since]) -> impl Iterator<Item = (Labels<1>, u64)> + use<'_> {
    of.iter().map(|Since { volume, since }| ([("volume", volume.clone())], since.as_secs()))
}

fn class_label(class: Class) -> Labels<1> {
    [("class", class.to_string())]
}

fn words<'a>(
    counts: &'a BTreeMap<&'static str, u64>,
    label: &'static str,
) -> impl Iterator<Item = (Labels<1>, u64)> + use<'a> {
    counts.iter().map(move |(word, count)| ([(label, (*word).to_owned())], *count))
}

fn pairs<'a>(
    counts: &'a BTreeMap<(&'static str, &'static str), u64>,
    labels: [&'static str; 2],
) -> impl Iterator<Item = (Labels<2>, u64)> + use<'a> {
    counts.iter().map(move |((first, second), count)| {
        ([(labels[0], (*first).to_owned()), (labels[1], (*second).to_owned())], *count)
    })
}

/// Writes families: each name once.
struct Writer<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Writer<'_, '_> {
    fn gauge<const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// `_total` is added to the name.
    fn counter<const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, V, u64>(&value, None)?;
        }
        Ok(())
    }

    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<N>, Shape)>,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, (sum, buckets)) in series {
            let count = buckets.iter().map(|(_, count)| count).sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}
