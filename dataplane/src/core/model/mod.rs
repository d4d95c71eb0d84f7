//! The model checker.

mod explore;
mod node;
pub(crate) mod print;
mod truth;
mod world;

use std::time::Instant;

use holdfast_proto::ids::{Incarnation, VolumeId};

use self::explore::{Order, Report, explore};
use self::node::{Node, boot_id, id_of};
use self::world::{Budget, Kind, SIZE, Step, World};
use crate::core::rules::{Rule, without};
use crate::core::start::tests::{status, view};
use crate::layout::Meta;

const NONE: Budget = Budget {
    engines: 1,
    writes: 0,
    reads: 0,
    flushes: 0,
    faults: 0,
    kills: 0,
    reboots: 0,
    away: 0,
    restores: 0,
};
const ALIVE: Kind = Kind { overwrite: false, zombies: true, same_instance: false };
const DEAD: Kind = Kind { zombies: false, ..ALIVE };

/// A volume that was created and never attached.
fn fresh(replicas: u32, kind: Kind, budget: Budget) -> World {
    let ids: Vec<_> = (1..=replicas).collect();
    let mut record = status(&ids, view(0, 0, &ids, false));
    record.clean = true;
    record.incarnation = Incarnation(uuid::Uuid::from_u128(1));
    let nodes = (0..ids.len()).map(|slot| {
        Node::new(Meta {
            node: "n".parse().unwrap(),
            volume: VolumeId(uuid::Uuid::from_u128(1)),
            volume_name: "v".parse().unwrap(),
            replica: id_of(slot),
            size_bytes: SIZE,
            lineage: record.lineage,
            promised: record.generation,
            promised_to: record.engine_uuid,
            view: record.view,
            configured: record.configured,
            incarnation: record.incarnation,
            revision: 0,
            syncing: false,
            boot: boot_id(1),
            unflushed: false,
            cache_lost: false,
            failed: String::new(),
        })
    });
    World::new(kind, budget, nodes.collect(), record)
}

fn run(name: &str, world: World, order: Order, limit: usize) -> Report {
    let start = Instant::now();
    let report = explore(world.clone(), order, limit);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name}: {} states, {} steps, depth {}, {} in {seconds:.1} s",
        report.states,
        report.steps,
        report.depth,
        if report.exhaustive { "exhaustive" } else { "NOT exhaustive" },
    );
    if let Some((what, path)) = &report.violation {
        println!("  {what}");
        for step in path {
            println!("    {step:?}");
        }
    }
    report
}

#[test]
fn scratch() {
    let env = |name: &str, or: u8| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or);
    let budget = Budget {
        engines: env("E", 1), writes: env("W", 1), reads: env("R", 0), flushes: env("FL", 0), faults: env("F", 1),
        kills: env("K", 0), reboots: env("B", 0), away: env("A", 0), restores: env("RS", 0),
    };
    let kind = Kind { zombies: env("Z", 1) == 1, same_instance: env("SAME", 0) == 1, overwrite: env("OV", 0) == 1 };
    let order = if env("DFS", 0) == 1 { Order::Depth } else { Order::Breadth };
    let limit = std::env::var("LIMIT").ok().and_then(|v| v.parse().ok()).unwrap_or(2_000_000);
    use Rule::*;
    let omit = std::env::var("OMIT").unwrap_or_default();
    let all = [StartQuorum, GenerationOrders, OwnView, AddStays, RecordMinority, Flag, AwayNeedsAll, WentBackNeedsAll,
        SameLife, RepairFirst, RepairWaits, ReadWaits, BootId, LostLeftOut, LostStays, AnswersCount, RepairCounts,
        UncleanCounts, CleanIsNewest, Refuse, PromisePersists, AckCommitted, AckByAll, MinorityAsks, SyncingLeftOut,
        CasWhole, Drain, FilledFirst];
    let omit = all.into_iter().find(|rule| format!("{rule:?}") == omit);
    without(omit, || run(&format!("{omit:?}"), fresh(u32::from(env("N", 2)), kind, budget), order, limit));
}
