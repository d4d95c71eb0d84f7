//! Replicas behind links with a delay, or with little bandwidth: the same jobs on each, and what the cost model says of them.

mod proxy;

use std::time::Duration;

use anyhow::{Error, Result};
use holdfast_dataplane::wire::HEADER_BYTES;

use super::node::{Node, Volume};
use super::{Figures, Plan, Unit, nbd, prefill};
use crate::case::{self, Direction};
use crate::fio;
use proxy::Proxy;

const CASE: &str = "link";
const SIZE_MIB: u64 = 512;
const SECONDS: u64 = 4;
/// Ports of the replicas, each of which has its twin at the proxy's address.
const PORTS: std::ops::RangeInclusive<u16> = 23_100..=23_107;
const JOBS: [&str; 3] = ["randwrite-4k-qd1", "randwrite-4k-qd32", "randwrite-4k-qd128"];
/// Nothing in between first, then the proxy without and with delays.
const ROUND_TRIPS: [Option<Duration>; 5] = [
    None,
    Some(Duration::ZERO),
    Some(Duration::from_micros(200)),
    Some(Duration::from_millis(1)),
    Some(Duration::from_millis(5)),
];
/// Bits a second.
const RATES: [u64; 2] = [1_000_000_000, 10_000_000_000];
/// With the bytes of one request.
const SHAPED_JOBS: [(&str, u64); 3] =
    [("randwrite-4k-qd32", 4 << 10), ("seqwrite-128k-qd16", 128 << 10), ("seqread-128k-qd16", 128 << 10)];

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    for round in 0..plan.rounds {
        for replicas in [1, 3] {
            for round_trip in ROUND_TRIPS {
                delayed(plan, figures, round, replicas, round_trip)?;
            }
            for bits in RATES {
                shaped(plan, figures, round, replicas, bits)?;
            }
        }
    }
    Ok(())
}

fn delayed(
    plan: &Plan,
    figures: &mut Figures,
    round: u64,
    replicas: u32,
    round_trip: Option<Duration>,
) -> Result<()> {
    let proxy = round_trip.map(|time| Proxy::start(PORTS, time / 2)).transpose()?;
    let link = match round_trip {
        None => "no proxy".to_owned(),
        Some(time) => format!("proxy, {} ms", time.as_secs_f64() * 1e3),
    };
    let say = |what: &str| format!("{replicas} replicas, {link}: {what}");
    let (first, last) = (PORTS.start(), PORTS.end());
    let mut arguments = vec!["--data-ports".to_owned(), format!("{first}-{last}")];
    let mut measured_us = None;
    if let Some(proxy) = &proxy {
        arguments.extend(["--advertise".to_owned(), proxy::ADDRESS.to_string()]);
        let us = proxy.round_trip()?.as_secs_f64() * 1e6;
        figures.note(CASE, say("a round trip of one byte"), Unit::Us, us);
        measured_us = Some(us);
    }
    let name = format!("link-{round}-{replicas}-{}", round_trip.map_or(0, |time| time.as_micros() + 1));
    let mut node = plan.node_with(&name, arguments)?;
    let volume = volume(plan, &node, replicas)?;
    for case in case::select(&JOBS.map(str::to_owned)).map_err(Error::msg)? {
        let job = case.name;
        let outcome = outcome(plan, &node, &volume, case.job, case.direction)?;
        figures.note(CASE, say(&format!("{job}, rate")), Unit::Iops, outcome.iops);
        figures.note(CASE, say(&format!("{job}, p50")), Unit::Us, outcome.p50_us);
        if let (Some(us), true) = (measured_us, job.ends_with("-qd128")) {
            let most = 128.0 / (us / 1e6);
            figures.note(
                CASE,
                say(&format!("{job}, of depth / round trip")),
                Unit::Ratio,
                outcome.iops / most,
            );
        }
    }
    node.kill_everything()?;
    node.remove_data()
}

/// A loopback of so many bits a second, which carries what goes to all replicas and what comes back from them.
fn shaped(plan: &Plan, figures: &mut Figures, round: u64, replicas: u32, bits: u64) -> Result<()> {
    let mut node = plan.node(&format!("shaped-{round}-{replicas}-{bits}"))?;
    node.shape(bits)?;
    let volume = volume(plan, &node, replicas)?;
    for (job, bytes) in SHAPED_JOBS {
        for case in case::select(&[job.to_owned()]).map_err(Error::msg)? {
            let outcome = outcome(plan, &node, &volume, case.job, case.direction)?;
            // One there, and one back.
            let frames = 2 * HEADER_BYTES as u64;
            let copies = if case.direction == Direction::Read { 1 } else { u64::from(replicas) };
            #[expect(clippy::cast_precision_loss, reason = "figures of a benchmark")]
            let most = (bits / 8) as f64 / (copies * (bytes + frames)) as f64;
            let say =
                |what: &str| format!("{replicas} replicas, {} Gbit/s, {job}: {what}", bits / 1_000_000_000);
            figures.note(CASE, say("rate"), Unit::Iops, outcome.iops);
            figures.note(CASE, say("of what the link carries"), Unit::Ratio, outcome.iops / most);
        }
    }
    node.kill_everything()?;
    node.remove_data()
}

fn volume(plan: &Plan, node: &Node, replicas: u32) -> Result<Volume> {
    let size = plan.sized(SIZE_MIB, 64);
    let volume = node.create("v", size, replicas)?;
    prefill(node, &volume, size)?;
    Ok(volume)
}

fn outcome(
    plan: &Plan,
    node: &Node,
    volume: &Volume,
    job: &str,
    direction: Direction,
) -> Result<fio::Outcome> {
    let seconds = plan.sized(SECONDS, 1);
    let said = fio::run(&nbd(volume)?, job, plan.sized(SIZE_MIB, 64), seconds, node.scratch())?;
    fio::outcome(&said, direction)
}
