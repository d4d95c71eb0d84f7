//! What the inventories of many nodes cost a registry: `scale [--nodes N] [--volumes N] [--at-a-time N]`
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use holdfast::core::follow::Follower;
use holdfast::core::publish::{Op, Publisher};
use holdfast::core::published;
use holdfast_proto::pb::agent as pb;
use holdfast_tests::scale::{Counts, Report, Scenario, Size, run};

#[derive(Debug)]
struct Args {
    size: Size,
    at_a_time: usize,
}

fn args() -> Result<Args, String> {
    let mut args = Args { size: Size { nodes: 10_002, volumes_per_node: 25 }, at_a_time: 100 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let text = words.next().ok_or_else(|| format!("{word}: expected a number"))?;
        let number = text.parse().map_err(|e| format!("{word} {text}: {e}"))?;
        match word.as_str() {
            "--nodes" => args.size.nodes = number,
            "--volumes" => args.size.volumes_per_node = number,
            "--at-a-time" => args.at_a_time = number,
            other => return Err(format!("argument {other:?} is not known")),
        }
    }
    let most = args.size.nodes / 9;
    if !args.size.nodes.is_multiple_of(3) || most == 0 || args.at_a_time > most {
        return Err(
            "expected a number of nodes that three divides, and at most a ninth of them at a time".into()
        );
    }
    Ok(args)
}

fn main() {
    let Args { size, at_a_time } = args().unwrap_or_else(|why| {
        eprintln!("scale: {why}");
        std::process::exit(2);
    });
    println!("{} nodes, {} instances", size.nodes, size.instances());
    println!(
        "| | writes/s | most | KB/s | most | keep-alives/s | watched MB/s | most | if all watch all, MB/s | live MB | written in 5 min, MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let scenarios = [
        ("all begin within a minute", Scenario::Start),
        ("idle", Scenario::Idle),
        ("daily life", Scenario::Daily),
        ("rolling upgrade", Scenario::RollingUpgrade { at_a_time }),
        ("zone loss and return", Scenario::ZoneLoss),
    ];
    for (name, scenario) in scenarios {
        let began = Instant::now();
        let report = run(size, scenario);
        println!("{}", row(name, &report));
        eprintln!(
            "{name}: {:.1} s, {} readers agree; {:?}",
            began.elapsed().as_secs_f64(),
            report.readers,
            report.total
        );
    }
    one_node();
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn row(name: &str, report: &Report) -> String {
    let Counts { transactions, bytes, keepalives, watched_bytes, watched_by_all_bytes, .. } = report.total;
    let rate = |count: u64, unit: f64| count as f64 / report.seconds as f64 / unit;
    let most = report.most;
    format!(
        "| {name} | {:.0} | {} | {:.0} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} |",
        rate(transactions, 1.0),
        most.transactions,
        rate(bytes, 1e3),
        most.bytes as f64 / 1e3,
        rate(keepalives, 1.0),
        rate(watched_bytes, 1e6),
        most.watched_bytes as f64 / 1e6,
        rate(watched_by_all_bytes, 1e6),
        report.live_bytes as f64 / 1e6,
        report.history_bytes as f64 / 1e6,
    )
}

/// The processor's time that one node with a thousand instances needs.
fn one_node() {
    const INSTANCES: u32 = 1000;
    const CHANGES: u32 = 10_000;
    let name = "node-a".parse().unwrap();
    let instance = |number: u32, generation: u64| pb::InstanceInfo {
        name: format!("pvc-{number:08}.r1"),
        uuid: uuid::Uuid::from_u128(u128::from(number)).to_string(),
        volume_id: uuid::Uuid::from_u128(7).to_string(),
        state: "running".to_owned(),
        address: Some("10.100.100.100:20000".to_owned()),
        claim: "claimed".to_owned(),
        generation,
        ..Default::default()
    };
    let node = pb::NodeInfo {
        node: "node-a".to_owned(),
        boot_id: uuid::Uuid::from_u128(1).to_string(),
        ..Default::default()
    };
    let mut entries = vec![published::Steps::default().node(&node)];
    entries.extend((0..INSTANCES).map(|number| published::instance(&instance(number, 1))));
    let mut publisher = Publisher::new(&name, &[], 1, entries, Duration::ZERO);
    let mut follower = Follower::new(name);
    let (mut now, mut bytes, mut writes) = (Duration::ZERO, 0, 0_u32);
    let mut write = |publisher: &mut Publisher, now: Duration, bytes: &mut usize| {
        for op in publisher.poll_write(now).unwrap_or_default() {
            match op {
                Op::Put { key, bytes: value } => {
                    *bytes += value.len();
                    follower.put(&key, &value);
                }
                Op::Delete { key } => follower.delete(&key),
            }
        }
        publisher.written(now);
    };
    let began = Instant::now();
    write(&mut publisher, now, &mut bytes);
    println!(
        "\nOne node, {INSTANCES} instances: a full list {bytes} B, written and read in {:?}",
        began.elapsed()
    );
    println!("idle: the next full list is due at {:?}", publisher.poll_timeout());
    bytes = 0;
    let began = Instant::now();
    for change in 0..CHANGES {
        now += Duration::from_secs(1);
        publisher.set(published::instance(&instance(change % INSTANCES, 2 + u64::from(change))), now);
        let before = bytes;
        write(&mut publisher, now + Duration::from_millis(200), &mut bytes);
        writes += u32::from(bytes > before);
    }
    let each = began.elapsed() / CHANGES;
    println!(
        "a change a second: {writes} writes, {} B each, {each:?} of processor time each",
        bytes / writes as usize
    );
}
