//! Replicas behind links with a delay: the same jobs at several round-trip times, and what the cost model says of them.

mod proxy;

use std::time::Duration;

use anyhow::{Error, Result};

use super::{Figures, Plan, Unit, nbd, prefill};
use crate::case;
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

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    for round in 0..plan.rounds {
        for replicas in [1, 3] {
            for round_trip in ROUND_TRIPS {
                one(plan, figures, round, replicas, round_trip)?;
            }
        }
    }
    Ok(())
}

fn one(
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
    if let Some(proxy) = &proxy {
        arguments.extend(["--advertise".to_owned(), proxy::ADDRESS.to_string()]);
        let measured = proxy.round_trip()?.as_secs_f64() * 1e6;
        figures.note(CASE, say("a round trip of one byte"), Unit::Us, measured);
    }
    let name = format!("link-{round}-{replicas}-{}", round_trip.map_or(0, |time| time.as_micros() + 1));
    let mut node = plan.node_with(&name, arguments)?;
    let volume = node.create("v", plan.sized(SIZE_MIB, 64), replicas)?;
    prefill(&node, &volume, plan.sized(SIZE_MIB, 64))?;
    for case in case::select(&JOBS.map(str::to_owned)).map_err(Error::msg)? {
        let job = case.name;
        let seconds = plan.sized(SECONDS, 1);
        let said = fio::run(&nbd(&volume)?, case.job, plan.sized(SIZE_MIB, 64), seconds, node.scratch())?;
        let outcome = fio::outcome(&said, case.direction)?;
        figures.note(CASE, say(&format!("{job}, rate")), Unit::Iops, outcome.iops);
        figures.note(CASE, say(&format!("{job}, p50")), Unit::Us, outcome.p50_us);
    }
    node.kill_everything()?;
    node.remove_data()
}
