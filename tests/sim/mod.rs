//! The real cores of engine and replica in a simulated world: time, network, disks, registry, agents.
//!
//! A seed makes a world ([`plan`]) and everything that happens in it. Every read must be one that a register can give
//! ([`check`]); what was flushed survives; a newer engine never serves before an older one is done for; when the faults
//! stop, the volume becomes healthy within a bound, with all copies equal. `docs/testing.md` says what is real here.

macro_rules! trace {
    ($world:expr, $($said:tt)*) => {
        if $world.trace {
            eprintln!("{:>10.6} {}", std::time::Duration::from_micros($world.queue.now()).as_secs_f64(), format_args!($($said)*));
        }
    };
}

mod agent;
mod changes;
pub mod check;
mod clients;
mod deeds;
pub mod disk;
mod engine;
mod faults;
mod maps;
mod net;
mod operator;
pub mod plan;
mod process;
pub mod queue;
pub mod random;
mod registry;
mod replica;
mod serve;
mod standin;
mod unclaimed;
mod world;

use plan::{Era, Plan};
use world::World;

/// What became of a world.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// What should not be.
    pub failure: Option<String>,
    /// Clients' operations that were answered, and how many of them with a failure.
    pub answered: u64,
    /// See `answered`.
    pub failed_ops: u64,
    /// Processes of engines.
    pub engines: u64,
    /// Processes of agents.
    pub agents: u64,
    /// Orphans that agents ended.
    pub cleaned: u64,
    /// What happened.
    pub events: u64,
    /// Simulated microseconds.
    pub sim_us: u64,
}

/// The command that shows what happens in a world.
#[must_use]
pub fn replay(plan: &Plan) -> String {
    let era = match plan.era {
        Era::First => " --first",
        Era::Second => " --second",
        Era::Now => "",
    };
    format!("cargo run --release -p holdfast-tests --bin sim -- --seed {}{era} --trace", plan.seed)
}

/// The worlds that once found something.
pub fn regressions() -> impl Iterator<Item = Plan> {
    let lines = include_str!("regressions.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let seed = words.next()?.parse().ok()?;
        let era = match words.next() {
            Some("first") => Era::First,
            Some("second") => Era::Second,
            Some(_) | None => Era::Now,
        };
        Some(Plan::of_era(seed, era))
    })
}

/// Runs the world of a seed.
#[must_use]
pub fn run(seed: u64, trace: bool) -> Report {
    run_plan(Plan::of(seed), trace)
}

/// Runs a world. A panic in a core is a failure like any other.
#[must_use]
pub fn run_plan(plan: Plan, trace: bool) -> Report {
    let result = std::panic::catch_unwind(|| World::new(plan, trace).run());
    result.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default();
        Report { failure: Some(format!("panic: {said}")), ..Report::default() }
    })
}
