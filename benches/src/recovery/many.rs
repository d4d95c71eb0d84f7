//! A node with many instances: what they and their agent need when nothing happens, and how long the agent takes to take
//! them over, and to start them all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::node::Node;
use super::{Figures, Plan, Unit, let_pass, mib, ms};
use crate::cpu::used_us;

const CASE: &str = "many";
/// Of each volume: three replicas and an engine.
const INSTANCES_PER_VOLUME: u64 = 4;
/// Heartbeats and what follows a start are over by then.
const SETTLES: Duration = Duration::from_secs(15);
const IDLE_FOR: Duration = Duration::from_secs(30);

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let sizes: &[u64] = if plan.quick { &[2] } else { &[3, 25, 250] };
    for volumes in sizes {
        for _ in 0..plan.rounds {
            let mut node = plan.node(&format!("many-{volumes}"))?;
            one(&mut node, *volumes, figures).with_context(|| format!("{volumes} volumes"))?;
            node.kill_everything()?;
            node.remove_data()?;
        }
    }
    Ok(())
}

fn one(node: &mut Node, volumes: u64, figures: &mut Figures) -> Result<()> {
    let count = volumes * INSTANCES_PER_VOLUME;
    for number in 0..volumes {
        node.create(&format!("v{number}"), 16, 3)?;
    }
    let instances = running(node, count)?;
    let pids = |kind: &str| -> Vec<i32> {
        instances
            .iter()
            .filter(|(of_kind, _)| kind.is_empty() || of_kind == kind)
            .map(|(_, pid)| *pid)
            .collect()
    };
    let (all, engines, replicas) = (pids(""), pids("engine"), pids("replica"));
    let mut note =
        |what: &str, unit, value| figures.note(CASE, format!("{count} instances: {what}"), unit, value);

    let_pass(SETTLES);
    let (agent, before) = (node.agent_pid()?, Instant::now());
    let (agent_before, all_before) = (used_us(agent)?, sum(&all, used_us)?);
    let (engines_before, replicas_before) = (sum(&engines, wake_ups)?, sum(&replicas, wake_ups)?);
    let_pass(IDLE_FOR);
    let percent = |used_us: f64| used_us / before.elapsed().as_secs_f64() / 1e4;
    note("the idle agent, of a core", Unit::Percent, percent(used_us(agent)? - agent_before));
    note("all idle instances, of a core", Unit::Percent, percent(sum(&all, used_us)? - all_before));
    let seconds = before.elapsed().as_secs_f64();
    let mut per_process =
        |what: &str, unit, total: f64, of: &[i32]| note(what, unit, total / of.len() as f64);
    let woken = |of: &[i32], before: f64| Ok::<f64, anyhow::Error>((sum(of, wake_ups)? - before) / seconds);
    per_process("an idle engine's wake-ups", Unit::PerSec, woken(&engines, engines_before)?, &engines);
    per_process("an idle replica's wake-ups", Unit::PerSec, woken(&replicas, replicas_before)?, &replicas);
    per_process("an engine's memory", Unit::Mib, sum(&engines, resident_mib)?, &engines);
    per_process("a replica's memory", Unit::Mib, sum(&replicas, resident_mib)?, &replicas);
    note("the agent's memory", Unit::Mib, resident_mib(agent)?);
    note("one instance's memory", Unit::Mib, sum(&all, resident_mib)? / count as f64);

    node.kill_agent()?;
    let begin = Instant::now();
    node.start_agent()?;
    let adopted = running(node, count)?;
    note("start of an agent to all taken over", Unit::Ms, ms(begin.elapsed()));
    ensure!(adopted == instances, "other processes run than before");

    note("start of an agent to all volumes healthy", Unit::Ms, ms(restarted(node, volumes)?));
    Ok(())
}

/// Stops everything in order, and starts it again: how long until all volumes are healthy.
pub(super) fn restarted(node: &mut Node, volumes: u64) -> Result<Duration> {
    node.stop();
    let begin = Instant::now();
    node.start_agent()?;
    for number in 0..volumes {
        node.healthy(&format!("v{number}"))?;
    }
    Ok(begin.elapsed())
}

/// Kind and process of all instances, once so many run.
pub(super) fn running(node: &Node, count: u64) -> Result<Vec<(String, i32)>> {
    let deadline = Instant::now() + super::node::WITHIN;
    loop {
        let said: Value = serde_json::from_str(&node.cli(&["instance", "ls", "-o", "json"])?)?;
        let instances = said["instances"].as_array().context("no list of instances")?;
        let running = instances.iter().filter(|instance| instance["state"] == "running");
        let of = |i: &Value| Some((i["kind"].as_str()?.to_owned(), i32::try_from(i["pid"].as_i64()?).ok()?));
        let found: Vec<(String, i32)> = running.filter_map(of).collect();
        if found.len() as u64 == count {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{} of {count} instances run", found.len());
        let_pass(Duration::from_millis(5));
    }
}

pub(super) fn sum(pids: &[i32], of: impl Fn(i32) -> Result<f64>) -> Result<f64> {
    pids.iter().map(|pid| of(*pid)).sum()
}

/// How often its threads went to sleep so far, which is how often they were woken.
fn wake_ups(pid: i32) -> Result<f64> {
    let dir = format!("/proc/{pid}/task");
    let mut woken = 0;
    for task in std::fs::read_dir(&dir).with_context(|| format!("failed to read {dir}"))? {
        let path = task?.path().join("status");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = line.and_then(|line| line.trim().parse::<u32>().ok());
        woken += count.with_context(|| format!("no voluntary_ctxt_switches in {}", path.display()))?;
    }
    Ok(f64::from(woken))
}

/// Resident memory, pages of files included.
pub(super) fn resident_mib(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(mib(kib.with_context(|| format!("no VmRSS in {path}"))? * 1024))
}
