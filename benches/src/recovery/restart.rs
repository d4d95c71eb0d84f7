//! The engine is killed, and the agent starts another: how long until a client is served, and until the members are
//! known to be equal.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::nbd::{Client, Kind};
use super::node::{Node, Volume, WITHIN, began, send};
use super::watch::Watch;
use super::{Figures, Plan, Unit, let_pass, mib, ms, prefill};

const CASE: &str = "restart";
/// How long the comparison of a large volume is watched; what is left then is reckoned from the rate.
const COMPARED_FOR: Duration = Duration::from_secs(40);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(1);

/// Name, MiB, whether it is written in full.
const VOLUMES: [(&str, u64, bool); 2] = [("1gib", 1024, true), ("1tib", 1024 * 1024, false)];

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    for (name, size, written) in VOLUMES {
        let mut node = plan.node(&format!("restart-{name}"))?;
        let volume = node.create(name, size, 3)?;
        prefill(&node, &volume, if written { size } else { 256 })?;
        for _ in 0..plan.rounds {
            one(&mut node, figures, name, "clear map", false)?;
            if !one(&mut node, figures, name, "full map", true)? {
                // The next round begins with members that are known to be equal, which here would take too long.
                node.delete(name)?;
                prefill(&node, &node.create(name, size, 3)?, if written { size } else { 256 })?;
            }
        }
    }
    Ok(())
}

fn one(node: &mut Node, figures: &mut Figures, name: &str, map: &str, full: bool) -> Result<bool> {
    let volume = node.healthy(name)?;
    // An end in order: all that was written is known to be equal, and nobody waits longer for having died before.
    node.stop();
    for replica in volume.replicas.iter().filter(|_| full) {
        // A map that is missing counts as full.
        let file = replica.data_dir.join("intent.bm");
        std::fs::remove_file(&file).with_context(|| format!("failed to remove {}", file.display()))?;
    }
    node.start_agent()?;
    let volume = node.healthy(name)?;
    let watch = Watch::start(node, name)?;
    watch.until("healthy", |volume| volume.state == "healthy")?;
    let kill = Instant::now();
    let killed = volume.engine_pid()?;
    send(killed, Signal::SIGKILL)?;
    let (wrote, read) = served(&volume)?;
    let say = |what: &str| format!("{name}, {map}: {what}");
    figures.note(CASE, say("kill to the first write answered"), Unit::Ms, ms(wrote - kill));
    figures.note(CASE, say("kill to the first read answered"), Unit::Ms, ms(read - kill));
    let is_new = |volume: &Volume| volume.engine_pid().is_ok_and(|pid| pid != killed);
    let mut now = node.volume(name)?;
    while !is_new(&now) {
        now = node.volume(name)?;
    }
    let process = began(now.engine_pid()?)?;
    figures.note(CASE, say("of these, until the process began"), Unit::Ms, ms(process - kill));
    compared(node, &watch, figures, &say("kill to all compared"), name, (kill, killed))
}

/// Connects as often as it takes; the moments at which a write and a read elsewhere were answered.
fn served(volume: &Volume) -> Result<(Instant, Instant)> {
    let uri = volume.uri()?;
    let deadline = Instant::now() + WITHIN;
    let mut block = [0x3c; 4096];
    loop {
        let served = Client::connect(uri).and_then(|mut client| {
            client.call(Kind::Write, 0, &mut block)?;
            let wrote = Instant::now();
            client.call(Kind::Read, 128 << 20, &mut block)?;
            Ok((wrote, Instant::now()))
        });
        match served {
            Ok(moments) => return Ok(moments),
            Err(error) if Instant::now() > deadline => return Err(error).context("not served again"),
            Err(_) => std::thread::park_timeout(AGAIN),
        }
    }
}

/// Until it is healthy (true); or, where that takes too long, for a while, and the rest reckoned.
fn compared(
    node: &Node,
    watch: &Watch,
    figures: &mut Figures,
    what: &str,
    name: &str,
    (kill, killed): (Instant, i32),
) -> Result<bool> {
    let done = watch.until_or("compared", COMPARED_FOR, |volume| {
        volume.state == "healthy" && volume.engine_pid().is_ok_and(|pid| pid != killed)
    })?;
    if let Some((at, _)) = done {
        figures.note(CASE, what, Unit::Ms, ms(at - kill));
        return Ok(true);
    }
    let left = node.volume(name)?.unrepaired_bytes;
    let from = Instant::now();
    let_pass(COMPARED_FOR / 4);
    let now = node.volume(name)?.unrepaired_bytes;
    let rate = mib(left.saturating_sub(now)) / from.elapsed().as_secs_f64();
    figures.note(CASE, format!("{what}, reckoned"), Unit::Ms, ms(from - kill) + mib(left) / rate * 1e3);
    figures.note(CASE, format!("{what}: rate"), Unit::MibPerSec, rate);
    Ok(false)
}
