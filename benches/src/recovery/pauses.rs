//! How long a client waits when a replica is killed, stopped, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::load::{Load, Shape};
use super::node::{Node, send};
use super::watch::Watch;
use super::{Figures, Plan, Unit, let_pass, ms, prefill, timeline};

const CASE: &str = "pauses";
const NAME: &str = "v";
/// The agent starts what has died after a second; until then the replica is only gone.
const GONE: Duration = Duration::from_millis(900);

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let size = plan.sized(1024, 256);
    let node = plan.node("pauses")?;
    let volume = node.create(NAME, size, 3)?;
    prefill(&node, &volume, size)?;
    for round in 0..plan.rounds {
        // Another one each time: one that dies often is started later and later.
        let victim = format!("r{}", round % 3 + 1);
        for depth in [1, 8] {
            let shape = Shape { depth, read_percent: 0, range: size << 20 };
            killed(plan, &node, figures, &victim, shape)?;
            stopped(&node, figures, &victim, shape)?;
        }
    }
    timeline::run(plan, &node, figures)
}

fn killed(plan: &Plan, node: &Node, figures: &mut Figures, victim: &str, shape: Shape) -> Result<()> {
    let volume = node.healthy(NAME)?;
    let pid = volume.replica(victim)?.pid.context("the replica has no process")?;
    let watch = Watch::start(node, NAME)?;
    watch.until("healthy", |volume| volume.state == "healthy")?;
    let load = Load::start(volume.uri()?, shape)?;
    let_pass(Duration::from_secs(1));
    let quiet = Instant::now();
    let_pass(Duration::from_secs(plan.sized(5, 2)));
    let kill = Instant::now();
    send(pid, Signal::SIGKILL)?;
    let_pass(GONE);
    let gone = Instant::now();
    watch.until("degraded", |volume| volume.state == "degraded")?;
    watch.until("healthy again", |volume| volume.state == "healthy")?;
    let_pass(Duration::from_secs(1));
    let end = Instant::now();
    let seen = load.end()?;
    let say = |what: &str| format!("qd{}: longest pause, {what}", shape.depth);
    figures.note(CASE, say("nothing happens"), Unit::Ms, ms(seen.longest_pause(quiet, kill)));
    let pause = ms(seen.longest_pause(kill, gone));
    figures.note_against(CASE, say("a replica is killed"), Unit::Ms, Some("at most 50 ms"), pause);
    figures.note(CASE, say("it returns and catches up"), Unit::Ms, ms(seen.longest_pause(gone, end)));
    Ok(())
}

fn stopped(node: &Node, figures: &mut Figures, victim: &str, shape: Shape) -> Result<()> {
    let volume = node.healthy(NAME)?;
    let pid = volume.replica(victim)?.pid.context("the replica has no process")?;
    let watch = Watch::start(node, NAME)?;
    watch.until("healthy", |volume| volume.state == "healthy")?;
    let load = Load::start(volume.uri()?, shape)?;
    let_pass(Duration::from_secs(1));
    let stop = Instant::now();
    send(pid, Signal::SIGSTOP)?;
    let left = watch.until("without it", |volume| {
        volume.replica(victim).is_ok_and(|replica| !matches!(replica.mode.as_str(), "member" | "suspect"))
    });
    let_pass(Duration::from_secs(2));
    let gone = Instant::now();
    send(pid, Signal::SIGCONT)?;
    left?;
    watch.until("healthy again", |volume| volume.state == "healthy")?;
    let_pass(Duration::from_secs(1));
    let end = Instant::now();
    let seen = load.end()?;
    let say = |what: &str| format!("qd{}: longest pause, {what}", shape.depth);
    let pause = ms(seen.longest_pause(stop, gone));
    let target = Some("at most 8500 ms: its time-out and 0.5 s");
    figures.note_against(CASE, say("a replica is stopped"), Unit::Ms, target, pause);
    figures.note(CASE, say("it continues and catches up"), Unit::Ms, ms(seen.longest_pause(gone, end)));
    Ok(())
}
