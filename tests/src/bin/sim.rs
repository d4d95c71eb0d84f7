//! Many seeds of the simulation, or one of them aloud.
//!
//! `sim [--seeds N] [--from S] [--keep-going]`, `sim --seed S [--trace]`; `--first`, `--second`: worlds as they were in
//! those eras
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Instant;

use holdfast_tests::sim::plan::{Era, Plan};
use holdfast_tests::sim::{Report, replay, run_plan};

#[derive(Debug)]
struct Args {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    trace: bool,
    keep_going: bool,
    era: Era,
}

impl Args {
    fn plan(&self, seed: u64) -> Plan {
        Plan::of_era(seed, self.era)
    }
}

fn args() -> Result<Args, String> {
    let mut args = Args { seeds: 1000, from: 0, seed: None, trace: false, keep_going: false, era: Era::Now };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().ok_or_else(|| format!("{word}: expected a number"))?;
            text.replace('_', "").parse::<u64>().map_err(|e| format!("{word} {text}: {e}"))
        };
        match word.as_str() {
            "--seeds" => args.seeds = number()?,
            "--from" => args.from = number()?,
            "--seed" => args.seed = Some(number()?),
            "--trace" => args.trace = true,
            "--first" => args.era = Era::First,
            "--second" => args.era = Era::Second,
            "--keep-going" => args.keep_going = true,
            other => return Err(format!("argument {other:?} is not known")),
        }
    }
    Ok(args)
}

fn failed(plan: &Plan, report: &Report) {
    println!(
        "seed {} ({:?}, {} replicas): {}",
        plan.seed,
        plan.kind,
        plan.replicas,
        report.failure.as_deref().unwrap_or("")
    );
    println!("replay: {}", replay(plan));
}

fn main() {
    let args = args().unwrap_or_else(|why| {
        eprintln!("sim: {why}");
        std::process::exit(2);
    });
    if let Some(seed) = args.seed {
        let plan = args.plan(seed);
        println!("{plan:?}");
        let report = run_plan(plan.clone(), args.trace);
        println!("{report:?}");
        if report.failure.is_some() {
            failed(&plan, &report);
            std::process::exit(1);
        }
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let (mut answered, mut failed_ops, mut events, mut engines, mut sim_us) = (0, 0, 0, 0, 0);
    let (mut agents, mut cleaned) = (0, 0);
    let mut failures: BTreeMap<String, u64> = BTreeMap::new();
    let mut count = 0;
    for seed in args.from..args.from.saturating_add(args.seeds) {
        let plan = args.plan(seed);
        let report = run_plan(plan.clone(), false);
        count += 1;
        answered += report.answered;
        failed_ops += report.failed_ops;
        events += report.events;
        engines += report.engines;
        agents += report.agents;
        cleaned += report.cleaned;
        sim_us += report.sim_us;
        if let Some(why) = &report.failure {
            failed(&plan, &report);
            *failures.entry(why.split(':').next().unwrap_or_default().to_owned()).or_default() += 1;
            if !args.keep_going {
                break;
            }
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds from {} in {took:.1} s ({:.0} seeds/s): {answered} operations answered ({failed_ops} failed), \
         {engines} engines, {agents} agents ({cleaned} orphans ended), {events} events, {:.0} h simulated; failures: {failures:?}",
        args.from,
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took,
        f64::from(u32::try_from(sim_us / 1_000_000).unwrap_or(u32::MAX)) / 3600.0,
    );
    if !failures.is_empty() {
        std::process::exit(1);
    }
}
