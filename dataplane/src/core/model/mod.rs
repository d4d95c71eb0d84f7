//! A model checker for the core: the very engines, promises and start rules that run in production, against a network,
//! registry, disks and clients that are a few lines each, in every order in which things can happen within bounds.
//!
//! - `world`: the whole, its steps, and which states need not be told apart.
//! - `node`: a replica's shell and disk. `truth`: what the clients know, and so what the data may be.
//! - `explore`: visits every state once. `tests`: what is checked in CI. `long`: the same with larger bounds.
//!
//! In every state, whoever could start then must find every acknowledged write on each of its members; so one engine
//! shows what takes a second one to happen. What was explored: `docs/replication.md`, "The proof".

mod explore;
mod long;
mod node;
pub(crate) mod print;
mod tests;
mod truth;
mod world;

use holdfast_proto::ids::{Generation, Incarnation, InstanceUuid, VolumeId};
use holdfast_proto::record::{ReplicaSet, View};

use self::explore::{Order, Report, advance, explore};
use self::node::{Node, boot_id, id_of};
use self::world::{Budget, Kind, SIZE, Step, World};
use crate::core::rules::{Rule, without};
use crate::core::start::tests::{status, view};
use crate::layout::Meta;
use crate::layout::meta::DirtyMap;

/// One engine, one write, and nothing fails.
const ONE: Budget = Budget {
    engines: 1,
    writes: 1,
    reads: 0,
    flushes: 0,
    faults: 0,
    kills: 0,
    reboots: 0,
    failures: 0,
    away: 0,
    restores: 0,
    detaches: 0,
    rollbacks: 0,
};
/// An engine lives on when the next one starts.
const ALIVE: Kind = Kind {
    overwrite: false,
    zombies: true,
    same_instance: false,
    sweeps: false,
    stamps: true,
    as_named: false,
};
/// It has ended by then, wherever it was.
const DEAD: Kind = Kind { zombies: false, ..ALIVE };

fn world(kind: Kind, budget: Budget, record: View, views: &[View]) -> World {
    let ids: Vec<_> = (1..).take(views.len()).collect();
    let mut record = status(&ids, record);
    record.clean = true;
    record.incarnation = Incarnation(uuid::Uuid::from_u128(1));
    let promised = views.iter().map(|view| view.generation).max().unwrap_or(Generation(0));
    (record.generation, record.engine_uuid) = (promised, InstanceUuid(uuid::Uuid::from_u128(1)));
    let nodes = views.iter().enumerate().map(|(slot, view)| {
        Node::new(Meta {
            node: "n".parse().unwrap(),
            volume: VolumeId(uuid::Uuid::from_u128(1)),
            volume_name: "v".parse().unwrap(),
            replica: id_of(slot),
            size_bytes: SIZE,
            lineage: record.lineage,
            promised: view.generation,
            promised_to: record.engine_uuid,
            view: *view,
            configured: record.configured,
            incarnation: record.incarnation,
            revision: 0,
            syncing: false,
            boot: boot_id(1),
            unflushed: false,
            cache_lost: false,
            failed: String::new(),
            basis: Some(view.stamp(0)),
            settled: None,
            unknown: Vec::new(),
            dirty: absent(record.configured, *view, views[views.len() - 1]),
        })
    });
    let nodes = nodes.map(|node| if kind.stamps { node } else { node.without_stamps() });
    World::new(kind, budget, nodes.collect(), record)
}

/// The dirty maps of those that have persisted a view without others: as far back as the view with all.
fn absent(configured: ReplicaSet, view: View, base: View) -> Vec<DirtyMap> {
    let gone = configured.difference(&view.members);
    gone.iter().map(|replica| DirtyMap { replica, base: base.stamp(0) }).collect()
}

/// A volume that was created and never attached.
fn fresh(replicas: u32, kind: Kind, budget: Budget) -> World {
    let ids: Vec<_> = (1..=replicas).collect();
    let first = view(0, 0, &ids, false);
    world(kind, budget, first, &vec![first; ids.len()])
}

/// Three replicas; the record says {r1}, which was about to add r2 when its engine died.
fn uncommitted_add(kind: Kind, budget: Budget) -> World {
    let (all, add) = (view(1, 1, &[1, 2, 3], false), view(1, 4, &[1, 2], true));
    world(kind, budget, view(1, 3, &[1], true), &[add, add, all])
}

/// The same, and an engine that read the record before any of that.
fn uncommitted_add_unknown(kind: Kind, budget: Budget) -> World {
    let mut world = uncommitted_add(kind, budget);
    let record = world.record.clone();
    world.record.1.view = view(1, 1, &[1, 2, 3], false);
    world.apply(Step::Start).expect("nothing has happened yet");
    world.record = record;
    world.record.0 += 1;
    world
}

/// Explores, and says what came of it.
fn run(name: &str, world: &World, order: Order, limit: usize) -> Report {
    let report = explore(world.clone(), order, limit);
    println!(
        "{name}: {} states, {} steps, depth {}, {}",
        report.states,
        report.steps,
        report.depth,
        if report.exhaustive { "exhaustive" } else { "not exhaustive" },
    );
    report
}

/// The steps to a violation, for people.
fn trace(world: &World, report: &Report) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let Some((what, path)) = &report.violation else { return text };
    let mut world = world.clone();
    for step in path {
        let _ = write!(text, "\n  {step:?}");
        match advance(&world, *step) {
            Ok(next) => world = next,
            Err(_) => break,
        }
        let _ = write!(text, "{}", world.summary());
    }
    let _ = write!(text, "\n  {what}");
    text
}

/// Every state within the bounds keeps the invariants.
fn holds(name: &str, world: &World, order: Order, limit: usize) -> Report {
    let report = run(name, world, order, limit);
    assert!(report.violation.is_none(), "{name}: {}", trace(world, &report));
    report
}

/// Without the rule there is a violation. `HOLDFAST_TRACE` prints it.
fn needed(rule: Rule, world: &World) {
    without(Some(rule), || {
        let report = run(&format!("without {rule:?}"), world, Order::Shortest, 3_000_000);
        assert!(report.violation.is_some(), "{rule:?} can go without a violation");
        if std::env::var_os("HOLDFAST_TRACE").is_some() {
            println!("{}", trace(world, &report));
        }
    });
}
