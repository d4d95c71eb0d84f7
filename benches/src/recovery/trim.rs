//! What clients of a volume feel while another one trims a range that is in many pieces.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::load::{Load, Shape};
use super::nbd::{Client, Kind};
use super::node::{Node, Volume};
use super::{Figures, MIB, Plan, Unit, let_pass, ms, prefill};

const CASE: &str = "trim";
const REPLICAS: u32 = 3;
/// What the others write to, at the beginning of the volume.
const OTHERS_MIB: u64 = 256;
/// What is trimmed, behind it: every other block of it is data.
const PIECES_MIB: u64 = 1024;
const ALONE_FOR: Duration = Duration::from_secs(10);
/// Requests in flight while the pieces are written.
const DEPTH: u64 = 128;
const BLOCK: [u8; 4096] = [0x5a; 4096];

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let pieces_mib = plan.sized(PIECES_MIB, 64);
    let alone_for = if plan.quick { ALONE_FOR / 10 } else { ALONE_FOR };
    for round in 0..plan.rounds {
        for read_percent in [0, 50] {
            let mut node = plan.node(&format!("trim-{round}-{read_percent}"))?;
            let volume = node.create("v", OTHERS_MIB + pieces_mib, REPLICAS)?;
            prefill(&node, &volume, OTHERS_MIB)?;
            let mut note = |what: &str, unit, target, value| {
                let name = format!("{read_percent} % reads, {pieces_mib} MiB in pieces: {what}");
                figures.note_against(CASE, name, unit, target, value);
            };
            let (from, len) = (OTHERS_MIB * MIB, pieces_mib * MIB);
            let mut client = Client::connect(volume.uri()?)?;
            cut_up(&mut client, from, len)?;
            nix::unistd::sync();

            let shape = Shape { depth: 1, read_percent, range: OTHERS_MIB * MIB };
            let (load, begin) = (Load::start(volume.uri()?, shape)?, Instant::now());
            let_pass(alone_for);
            let trims = Instant::now();
            client.trim(from, u32::try_from(len).context("more than one request can trim")?)?;
            let end = Instant::now();
            let seen = load.end()?;
            let (alone, beside) = (seen.percentiles(begin, trims), seen.percentiles(trims, end));
            note("the trim", Unit::Ms, None, ms(end - trims));
            note("p50 of the others alone", Unit::Us, None, alone.0);
            note("p50 of the others beside it", Unit::Us, None, beside.0);
            note("p99 of the others alone", Unit::Us, None, alone.1);
            note("p99 of the others beside it", Unit::Us, None, beside.1);
            note("p99 beside it / alone", Unit::Ratio, Some("at most 3.00"), beside.1 / alone.1);
            let pause = seen.longest_pause(trims, end);
            note("longest pause of the others beside it", Unit::Ms, None, ms(pause));
            all_are_members(&node, &volume)?;
            node.kill_everything()?;
            node.remove_data()?;
        }
    }
    Ok(())
}

/// Writes every other block of a range.
fn cut_up(client: &mut Client, from: u64, len: u64) -> Result<()> {
    let blocks = len / 8192;
    let (mut sent, mut answered) = (0, 0);
    while answered < blocks {
        if sent < blocks && sent < answered + DEPTH {
            client.send(Kind::Write, sent, from + sent * 8192, &BLOCK)?;
            sent += 1;
        } else {
            client.answer(&mut [], |_| Kind::Write)?;
            answered += 1;
        }
    }
    Ok(())
}

/// One that was left out for being slow at it is no figure, but a fault.
fn all_are_members(node: &Node, volume: &Volume) -> Result<()> {
    let now = node.volume(&volume.name)?;
    let all = now.replicas.iter().all(|replica| replica.mode == "member");
    ensure!(all, "a replica was left out: {:?}", now.replicas);
    Ok(())
}
