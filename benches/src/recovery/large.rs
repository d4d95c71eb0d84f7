//! A very large volume beside a small one: what grows with the size it is provisioned with.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::many::resident_mib;
use super::nbd::{Client, Kind};
use super::node::{Node, Volume, send};
use super::{Figures, Plan, Unit, let_pass, mib, ms};

const CASE: &str = "large";
/// Name, MiB: the largest is 1 MiB below 16 TiB, the next is what it is compared with.
const VOLUMES: [(&str, u64); 2] = [("1gib", 1024), ("16tib", 16 * 1024 * 1024 - 1)];
/// Writes all over the volume, each in a group of its own.
const SCATTERED: u64 = 2000;
const AWAY_FOR: Duration = Duration::from_secs(3);

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    for (name, size_mib) in VOLUMES {
        for round in 0..plan.rounds {
            let mut node = plan.node(&format!("large-{name}-{round}"))?;
            one(&mut node, plan, figures, name, size_mib)?;
            node.kill_everything()?;
            node.remove_data()?;
        }
    }
    Ok(())
}

fn one(node: &mut Node, plan: &Plan, figures: &mut Figures, name: &str, size_mib: u64) -> Result<()> {
    let mut note = |what: &str, unit, value| figures.note(CASE, format!("{name}: {what}"), unit, value);
    let (size, begin) = (format!("{size_mib}MiB"), Instant::now());
    node.cli(&["volume", "create", name, "--size", &size, "--replicas", "3"])?;
    note("create", Unit::Ms, ms(begin.elapsed()));
    let begin = Instant::now();
    node.cli(&["volume", "attach", name])?;
    let volume = node.volume(name)?;
    Client::connect(volume.uri()?)?.call(Kind::Write, 0, &mut [1; 4096])?;
    note("attach to the first write answered", Unit::Ms, ms(begin.elapsed()));
    let volume = node.healthy(name)?;
    memory(&volume, "new", &mut note)?;
    note("one replica's directory, allocated", Unit::Mib, allocated_mib(&volume)?);

    scatter(&volume, size_mib, plan.sized(SCATTERED, 50), 1)?;
    memory(&volume, "after scattered writes", &mut note)?;

    let gone = volume.replica("r2")?.pid.context("r2 has no process")?;
    send(gone, Signal::SIGSTOP)?;
    send(gone, Signal::SIGKILL)?;
    let_pass(AWAY_FOR / 3);
    scatter(&volume, size_mib, plan.sized(SCATTERED, 50), 2)?;
    let begin = Instant::now();
    let volume = node.healthy(name)?;
    note("until a killed replica has what it missed", Unit::Ms, ms(begin.elapsed()));
    memory(&volume, "after a return", &mut note)?;
    note("one replica's directory after that, allocated", Unit::Mib, allocated_mib(&volume)?);

    node.stop();
    let begin = Instant::now();
    node.start_agent()?;
    node.healthy(name)?;
    note("start of everything to healthy, stopped in order", Unit::Ms, ms(begin.elapsed()));
    Ok(())
}

fn memory(volume: &Volume, when: &str, note: &mut impl FnMut(&str, Unit, f64)) -> Result<()> {
    note(&format!("the engine's memory, {when}"), Unit::Mib, resident_mib(volume.engine_pid()?)?);
    let replica = volume.replica("r1")?.pid.context("r1 has no process")?;
    note(&format!("a replica's memory, {when}"), Unit::Mib, resident_mib(replica)?);
    Ok(())
}

/// Writes one block in so many places, evenly over all of it.
fn scatter(volume: &Volume, size_mib: u64, writes: u64, salt: u8) -> Result<()> {
    let mut client = Client::connect(volume.uri()?)?;
    let blocks = size_mib * 256;
    for number in 0..writes {
        let offset = (blocks / writes * number + u64::from(salt)) * 4096;
        client.call(Kind::Write, offset, &mut [salt; 4096])?;
    }
    Ok(())
}

fn allocated_mib(volume: &Volume) -> Result<f64> {
    let dir = &volume.replica("r1")?.data_dir;
    let entries = std::fs::read_dir(dir).with_context(|| format!("failed to read {}", dir.display()))?;
    let blocks = entries.map(|entry| Ok(entry?.metadata()?.blocks())).sum::<std::io::Result<u64>>();
    Ok(mib(blocks.with_context(|| format!("failed to read {}", dir.display()))? * 512))
}
