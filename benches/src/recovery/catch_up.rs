//! A replica is away for ten seconds of random writes, and comes back; beside it, the same replica filled anew.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::node::{Node, Volume, WITHIN, began, send};
use super::watch::Watch;
use super::{Figures, Plan, Unit, mib, ms, nbd, prefill, rebuild};
use crate::fio;

const CASE: &str = "catch-up";
const NAME: &str = "v";
/// The replica that is away.
pub(super) const AWAY: &str = "r3";
const REGION: u64 = 256 << 10;

/// A load while the replica is away.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    range_mib: u64,
    /// A line of fio's job.
    rate: &'static str,
    /// The same load ran before the replica went.
    before: bool,
}

/// One that comes to most of a part of the volume; and one that is thin and everywhere, after silence and as a part of
/// what went on before.
const LOADS: [Load; 3] = [
    Load { name: "dense", range_mib: 1024, rate: "", before: false },
    Load { name: "thin", range_mib: 5120, rate: "rate_iops=200", before: false },
    Load { name: "thin, also before", range_mib: 5120, rate: "rate_iops=200", before: true },
];

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let (size, written) = (plan.sized(10 * 1024, 512), plan.sized(5 * 1024, 256));
    let mut node = plan.node("catch-up")?;
    let volume = node.create(NAME, size, 3)?;
    prefill(&node, &volume, written)?;
    for _ in 0..plan.rounds {
        for load in LOADS {
            let range_mib = load.range_mib.min(written);
            one_return(plan, &mut node, figures, Load { range_mib, ..load })?;
        }
        let (full, volume) = rebuild::fill_anew(&mut node, NAME)?;
        figures.note(CASE, "full rebuild: process start to member", Unit::Ms, ms(full.process_to_member));
        figures.note(CASE, "full rebuild: copied", Unit::Mib, mib(volume.replica(AWAY)?.copied_bytes));
    }
    Ok(())
}

fn one_return(plan: &Plan, node: &mut Node, figures: &mut Figures, load: Load) -> Result<()> {
    let volume = node.healthy(NAME)?;
    until_settled(&volume)?;
    if load.before {
        write_randomly(plan, node, &volume, load)?;
    }
    let before = volume.replica(AWAY)?.clone();
    node.kill_agent()?;
    send(before.pid.context("the replica has no process")?, Signal::SIGKILL)?;
    let dirtied = write_randomly(plan, node, &volume, load)?;
    node.start_agent()?;
    let (came, is_member, volume) = returns(node, NAME)?;
    let after = volume.replica(AWAY)?;
    let (copied, compared) =
        (after.copied_bytes - before.copied_bytes, after.compared_bytes - before.compared_bytes);
    let say = |what: &str| format!("{}: {what}", load.name);
    figures.note(CASE, say("dirtied, in whole regions"), Unit::Mib, mib(dirtied));
    figures.note(CASE, say("copied on return"), Unit::Mib, mib(copied));
    figures.note(CASE, say("compared on return"), Unit::Mib, mib(compared));
    let share = copied as f64 / dirtied.max(1) as f64;
    figures.note_against(CASE, say("copied / dirtied"), Unit::Ratio, Some("at most 1.2"), share);
    figures.note(CASE, say("process start to member"), Unit::Ms, ms(is_member - came));
    Ok(())
}

/// Waits until no member's write-intent map has a bit set: what was written last is known to be everywhere, and a replica
/// that goes now has missed nothing.
pub(super) fn until_settled(volume: &Volume) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    for replica in &volume.replicas {
        let map = replica.data_dir.join("intent.bm");
        loop {
            let bytes = std::fs::read(&map).with_context(|| format!("failed to read {}", map.display()))?;
            // Behind the label, pages with a prefix of 16 bytes.
            if bytes.chunks(4096).skip(1).all(|page| page.iter().skip(16).all(|byte| *byte == 0)) {
                break;
            }
            if Instant::now() > deadline {
                bail!("{} does not become clear", map.display());
            }
            super::let_pass(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// Waits until the replica is a member again: when its process began, when it was one, and the volume then.
pub(super) fn returns(node: &Node, name: &str) -> Result<(Instant, Instant, Volume)> {
    let watch = Watch::start(node, name)?;
    let mut pid = None;
    let (at, volume) = watch.until("a member again", |volume| {
        let Ok(replica) = volume.replica(AWAY) else { return false };
        pid = replica.pid.or(pid);
        // The agent says what it remembers until the engine has reported.
        replica.mode == "member" && pid.is_some() && volume.state == "healthy"
    })?;
    drop(watch);
    // Counters may be told later than states.
    super::let_pass(Duration::from_millis(1500));
    let volume_now = node.volume(name)?;
    let pid = volume.replica(AWAY)?.pid.context("the replica has no process")?;
    Ok((began(pid)?, at, volume_now))
}

/// Ten seconds of fio; the bytes of the regions that it wrote to, by its own log.
fn write_randomly(plan: &Plan, node: &Node, volume: &Volume, load: Load) -> Result<u64> {
    let seconds = plan.sized(10, 2);
    let rate = load.rate;
    let job = format!(
        "[global]\nsize=${{HF_SIZE}}\ntime_based=1\nruntime=${{HF_SECONDS}}\nnorandommap=1\nrandrepeat=0\n\
         [away]\nrw=randwrite\nbs=4k\niodepth=8\n{rate}\nwrite_lat_log=away\nlog_offset=1\n"
    );
    fio::run(&nbd(volume)?, &job, load.range_mib, seconds, node.scratch())?;
    let log = node.scratch().join("away_clat.1.log");
    let text = std::fs::read_to_string(&log).with_context(|| format!("failed to read {}", log.display()))?;
    regions_in(&text).map(|regions| regions.len() as u64 * REGION)
}

/// Lines are `time, latency, direction, size, offset, ...`.
fn regions_in(log: &str) -> Result<BTreeSet<u64>> {
    log.lines()
        .map(|line| {
            let offset = line.split(',').nth(4).context("fio's log has no offsets")?;
            Ok(offset.trim().parse::<u64>().with_context(|| format!("offset {offset:?}"))? / REGION)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_counted_once() {
        let log = "1, 5000, 1, 4096, 0, 0\n2, 5000, 1, 4096, 4096, 0\n2, 1, 1, 4096, 262144, 0\n";
        assert_eq!(regions_in(log).unwrap().len(), 2);
        assert!(regions_in("1, 2, 3").is_err());
    }
}
