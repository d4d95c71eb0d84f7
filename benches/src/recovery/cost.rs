//! What the maps cost writes: a binary from before there were any, and this one, in turns.

use anyhow::{Context as _, Result};

use super::node::{Node, Volume};
use super::{Figures, Plan, Unit, nbd, prefill};
use crate::case::Direction;
use crate::fio;

const CASE: &str = "cost";
const WARM: &str = "warm";
const COLD: &str = "cold";
/// So large that a short run hardly comes to the same 4 MiB twice.
const COLD_MIB: u64 = 1024 * 1024;

struct Leg {
    name: &'static str,
    node: Node,
    warm: Volume,
    cold: Volume,
}

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let before = plan.before.as_ref().context("give a binary from before the maps with --before")?;
    let warm = plan.sized(1024, 256);
    let mut legs = Vec::new();
    for (name, binary) in [("before", before), ("now", &plan.holdfast)] {
        let node = plan.node_of(&format!("cost-{name}"), binary)?;
        let warm_volume = node.create(WARM, warm, 3)?;
        prefill(&node, &warm_volume, warm)?;
        let cold = node.create(COLD, COLD_MIB, 3)?;
        legs.push(Leg { name, node, warm: warm_volume, cold });
    }
    for round in 0..plan.rounds {
        for depth in [1, 32] {
            in_turns(figures, &legs, round, &format!("randwrite 4k qd{depth}, warm"), |leg| {
                // Not measured: sets the bits of the groups, which a run before this one may have let go.
                let job = random(depth, round);
                fio::run(&nbd(&leg.warm)?, &job, warm, 1, leg.node.scratch())?;
                rate(leg, &leg.warm, &job, warm, plan.sized(5, 1))
            })?;
            in_turns(figures, &legs, round, &format!("randwrite 4k qd{depth}, cold"), |leg| {
                // Bounded, for a file system takes long to take so many pieces away again.
                let job = format!("{}number_ios=16000\n", random(depth, round));
                rate(leg, &leg.cold, &job, COLD_MIB, plan.sized(2, 1))
            })?;
        }
        in_turns(figures, &legs, round, "write 128k qd16, new volume", |leg| {
            let size = plan.sized(2048, 128);
            let volume = leg.node.create("seq", size, 3)?;
            nix::unistd::sync();
            let job = "[global]\nsize=${HF_SIZE}\n[seq]\nrw=write\nbs=128k\niodepth=16\n";
            let found = rate(leg, &volume, job, size, 1)?;
            leg.node.delete("seq")?;
            Ok(found)
        })?;
    }
    Ok(())
}

/// Another sequence of places each time.
fn random(depth: u64, round: u64) -> String {
    format!(
        "[global]\nsize=${{HF_SIZE}}\ntime_based=1\nruntime=${{HF_SECONDS}}\nnorandommap=1\nrandseed={}\n\
         [cost]\nrw=randwrite\nbs=4k\niodepth={depth}\n",
        1000 * depth + round
    )
}

/// Rate and 99th percentile.
fn rate(leg: &Leg, volume: &Volume, job: &str, size_mib: u64, seconds: u64) -> Result<(f64, f64)> {
    let json = fio::run(&nbd(volume)?, job, size_mib, seconds, leg.node.scratch())?;
    let found = fio::outcome(&json, Direction::Write)?;
    Ok((found.iops, found.p99_us))
}

fn in_turns(
    figures: &mut Figures,
    legs: &[Leg],
    round: u64,
    what: &str,
    job: impl Fn(&Leg) -> Result<(f64, f64)>,
) -> Result<()> {
    let mut found = Vec::new();
    // Who comes first takes turns too.
    let mut order: Vec<usize> = (0..legs.len()).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    for at in order {
        let leg = legs.get(at).context("no such leg")?;
        nix::unistd::sync();
        let (rate, p99) = job(leg).with_context(|| format!("{what}, {}", leg.name))?;
        figures.note(CASE, format!("{what}: {}", leg.name), Unit::Iops, rate);
        figures.note(CASE, format!("{what}: {}, p99", leg.name), Unit::Us, p99);
        found.push((at, rate, p99));
    }
    found.sort_by_key(|(at, ..)| *at);
    if let [(_, before, _), (_, now, _)] = found[..] {
        figures.note(CASE, format!("{what}: now / before"), Unit::Ratio, now / before);
    }
    Ok(())
}
