//! A replica of which nothing is known gets everything, against `cp --sparse=always` of the same image, and what a
//! client notices meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::catch_up::{AWAY, until_settled};
use super::load::{Load, Shape};
use super::nbd::{Client, Kind};
use super::node::{Node, Volume, began, send};
use super::watch::Watch;
use super::{Figures, Plan, Unit, let_pass, mib, prefill};
use crate::process;

const CASE: &str = "rebuild";
const NAME: &str = "v";
const IMAGE: &str = "head.img";

/// A filling, as it was seen.
#[derive(Debug)]
pub(super) struct Filling {
    /// Since the target's process began.
    pub(super) process_to_member: Duration,
    /// Being filled, by the engine's reports: to a tenth of a second.
    pub(super) from: Instant,
    pub(super) to: Instant,
}

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let size = plan.sized(4 * 1024, 256);
    let mut node = plan.node("rebuild")?;
    let volume = node.create(NAME, size, 3)?;
    prefill(&node, &volume, size)?;
    for _ in 0..plan.rounds {
        let (image, target) = paths(&node.healthy(NAME)?)?;
        read_through(&image)?;
        let (filling, volume) = fill_anew(&mut node, NAME)?;
        let copied = volume.replica(AWAY)?.copied_bytes;
        let rate = mib(copied) / (filling.to - filling.from).as_secs_f64();
        figures.note(CASE, "rebuild, no other load", Unit::MibPerSec, rate);
        read_through(&image)?;
        let cp = mib(size << 20) / copy(&image, &target)?.as_secs_f64();
        figures.note(CASE, "cp --sparse=always and fsync", Unit::MibPerSec, cp);
        figures.note_against(CASE, "rebuild / cp", Unit::Ratio, Some("at least 0.70"), rate / cp);
        under_load(plan, &mut node, figures, size)?;
    }
    Ok(())
}

/// Where from and where to `cp` copies: the directories of a source and of the target.
fn paths(volume: &Volume) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let dir = |id: &str| volume.replica(id).map(|replica| replica.data_dir.clone());
    Ok((dir("r1")?.join(IMAGE), dir(AWAY)?.with_file_name("copy-of-head.img")))
}

/// Into the page cache, where there is room.
fn read_through(path: &Path) -> Result<()> {
    nix::unistd::sync();
    let mut file = std::fs::File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<Duration> {
    let began = Instant::now();
    process::output(Command::new("cp").arg("--sparse=always").arg(from).arg(to))?;
    std::fs::File::open(to)?.sync_all().context("failed to fsync the copy")?;
    let took = began.elapsed();
    std::fs::remove_file(to).context("failed to remove the copy")?;
    nix::unistd::sync();
    Ok(took)
}

fn under_load(plan: &Plan, node: &mut Node, figures: &mut Figures, size_mib: u64) -> Result<()> {
    let shape = Shape { depth: 8, read_percent: 50, range: size_mib << 20 };
    let seconds = Duration::from_secs(plan.sized(8, 2));
    let uri = node.healthy(NAME)?.uri()?.to_owned();
    let load = Load::start(&uri, shape)?;
    let_pass(Duration::from_secs(1));
    let from = Instant::now();
    let_pass(seconds);
    let to = Instant::now();
    let without = load.end()?.percentiles(from, to);
    read_through(&paths(&node.healthy(NAME)?)?.0)?;

    forget(node, NAME)?;
    node.start_agent()?;
    let watch = Watch::start(node, NAME)?;
    let load = Load::start_once_served(&uri, shape)?;
    let (from, to, volume) = filled(&watch)?;
    let during = load.end()?.percentiles(from, to);
    drop(watch);
    let_pass(Duration::from_millis(1500));
    let copied = node.volume(NAME)?.replica(AWAY)?.copied_bytes.max(volume.replica(AWAY)?.copied_bytes);
    figures.note(CASE, "rebuild under load", Unit::MibPerSec, mib(copied) / (to - from).as_secs_f64());
    for (when, (p50, p99, rate)) in [("without", without), ("during", during)] {
        figures.note(CASE, format!("randrw 4k qd8 {when}: rate"), Unit::Iops, rate);
        figures.note(CASE, format!("randrw 4k qd8 {when}: p50"), Unit::Us, p50);
        figures.note(CASE, format!("randrw 4k qd8 {when}: p99"), Unit::Us, p99);
    }
    let ratio = during.1 / without.1;
    figures.note_against(CASE, "p99 during / without", Unit::Ratio, Some("at most 3"), ratio);
    Ok(())
}

/// Makes the replica one of which nobody knows anything, and waits until it is a member again.
pub(super) fn fill_anew(node: &mut Node, name: &str) -> Result<(Filling, Volume)> {
    forget(node, name)?;
    node.start_agent()?;
    let watch = Watch::start(node, name)?;
    let (from, to, volume) = filled(&watch)?;
    drop(watch);
    let pid = volume.replica(AWAY)?.pid.context("the replica has no process")?;
    let process_to_member = to.saturating_duration_since(began(pid)?);
    // Counters may be told later than states.
    let_pass(Duration::from_millis(1500));
    Ok((Filling { process_to_member, from, to }, node.healthy(name)?))
}

/// When it was first seen being filled, and when it was a member.
fn filled(watch: &Watch) -> Result<(Instant, Instant, Volume)> {
    let mode = |volume: &Volume, modes: &[&str]| {
        volume.replica(AWAY).is_ok_and(|replica| modes.contains(&replica.mode.as_str()))
    };
    let (from, _) = watch.until("being filled", |volume| mode(volume, &["rebuilding", "catching_up"]))?;
    let (to, volume) = watch.until("filled", |volume| mode(volume, &["member"]))?;
    Ok((from, to, volume))
}

/// Everything is killed; the members' maps of the replica are taken away, which then count as full, and the replica's
/// image is emptied. What was written before is settled, so that hardly anything has to be compared first.
fn forget(node: &mut Node, name: &str) -> Result<()> {
    let volume = node.healthy(name)?;
    until_settled(&volume)?;
    node.kill_agent()?;
    send(volume.replica(AWAY)?.pid.context("the replica has no process")?, Signal::SIGKILL)?;
    // A view without it.
    let mut client = Client::connect(volume.uri()?)?;
    client.call(Kind::Write, 0, &mut [0x5a; 4096])?;
    drop(client);
    node.kill_everything()?;
    for replica in &volume.replicas {
        if replica.id == AWAY {
            let image = replica.data_dir.join(IMAGE);
            let file = std::fs::OpenOptions::new().write(true).open(&image)?;
            let size = file.metadata()?.len();
            file.set_len(0).and_then(|()| file.set_len(size)).context("failed to empty the image")?;
        } else {
            let map = replica.data_dir.join(format!("dirty-{AWAY}.bm"));
            std::fs::remove_file(&map).with_context(|| format!("failed to remove {}", map.display()))?;
        }
    }
    nix::unistd::sync();
    Ok(())
}
