//! `cargo run --release -p holdfast-benches --bin recovery -- [OPTIONS]`: what happens when something dies, and what it
//! costs to be ready for that.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser;
use holdfast_benches::binary::{built_holdfast, require, results_dir};
use holdfast_benches::recovery::{self, CASES, Case, Plan};

/// Returns, rebuilds, pauses, restarts, the price of the maps on the path of I/O, attaching, and many instances.
///
/// Needs fio. Run by cargo, it first builds the `holdfast` it measures.
#[derive(Debug, Parser)]
#[command(name = "recovery", after_help = EXAMPLES)]
struct Arguments {
    /// Only these cases
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CASE")]
    case: Vec<Case>,
    /// How often each case runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// One small round: does it all work, not how fast it is
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Where all values are kept, pictures beside it [default: target/bench-results/recovery-SECONDS.json]
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Where data goes: a real disk with 40 GiB free [default: beside the results]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The holdfast to measure [default: the one built beside this program]
    #[arg(long, value_name = "PATH")]
    holdfast: Option<PathBuf>,
    /// One from before the maps, which the case cost compares with: commit 20abfa8, built in release
    #[arg(long, value_name = "PATH")]
    before: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  recovery --quick --case catch-up,rebuild,pauses
  recovery --case rebuild --rounds 5 --json rebuild.json
  recovery --case cost --before ../holdfast-20abfa8/target/release/holdfast";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    require(&[("fio", "fio")])?;
    let asked = |case: &Case| {
        // Without anything to compare with there is no cost.
        let possible = arguments.before.is_some() || *case != Case::Cost;
        if arguments.case.is_empty() { possible } else { arguments.case.contains(case) }
    };
    let holdfast = match arguments.holdfast {
        Some(path) => std::path::absolute(path)?,
        None => built_holdfast()?,
    };
    let results_dir = results_dir()?;
    let data_base = arguments.dir.clone().unwrap_or_else(|| results_dir.clone());
    std::fs::create_dir_all(&data_base)
        .with_context(|| format!("failed to create {}", data_base.display()))?;
    let data = tempfile::Builder::new().prefix("data-").tempdir_in(std::path::absolute(&data_base)?)?;
    // In the system's temporary directory: paths of sockets have at most 107 bytes.
    let sockets = tempfile::Builder::new().prefix("hfr-").tempdir()?;
    let plan = Plan {
        cases: CASES.into_iter().filter(asked).collect(),
        rounds: if arguments.quick { 1 } else { arguments.rounds },
        quick: arguments.quick,
        data_dir: data.path().to_owned(),
        socket_dir: sockets.path().to_owned(),
        holdfast,
        before: arguments.before.as_ref().map(std::path::absolute).transpose()?,
    };
    let results = recovery::run(&plan)?;
    println!("{}", results.tables());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let out = arguments.json.unwrap_or_else(|| results_dir.join(format!("recovery-{now}.json")));
    for path in results.keep(&plan, &out)? {
        println!("Written: {}", path.display());
    }
    Ok(())
}
