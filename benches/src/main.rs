//! `cargo run --release -p holdfast-benches -- [OPTIONS]`: the paired macro benchmark.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use holdfast_benches::binary::{built_holdfast, profile_dir};
use holdfast_benches::case;
use holdfast_benches::leg::{LEGS, Leg, QemuAio, QuorumRead, Setup};
use holdfast_benches::runner::{self, Plan};

/// The same fio jobs on Holdfast, the bare file and qemu's own replication, interleaved in one call.
///
/// Needs fio, and qemu-nbd and qemu-storage-daemon for the leg qemu-quorum-3. Run by cargo, it first builds the
/// `holdfast` it measures.
#[derive(Debug, Parser)]
#[command(name = "holdfast-benches", after_help = EXAMPLES)]
struct Arguments {
    /// How often each case runs on each leg
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long each run takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Size of the volume and of the files
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..))]
    size_mib: u64,
    /// Only these cases, by name or by a part of it
    #[arg(long, value_delimiter = ',', value_name = "CASE")]
    only: Vec<String>,
    /// Only these legs
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LEG")]
    legs: Vec<Leg>,
    /// One round of one second on 256 MiB: does it all work, not how fast it is
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "size_mib"])]
    quick: bool,
    /// Where everything is kept, fio's JSON included [default: target/bench-results/macro-SECONDS.json]
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Where data goes: a real disk with four times the size per leg free [default: beside the results]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The holdfast to measure [default: the one built beside this program]
    #[arg(long, value_name = "PATH")]
    holdfast: Option<PathBuf>,
    /// Passed to `holdfast quickstart`
    #[arg(long)]
    io_mode: Option<String>,
    /// How qemu's quorum reads
    #[arg(long, value_enum, default_value = "fifo")]
    quorum_read: QuorumRead,
    /// How qemu's servers do file I/O
    #[arg(long, value_enum, default_value = "auto")]
    qemu_aio: QemuAio,
}

const EXAMPLES: &str = "Examples:
  holdfast-benches --quick
  holdfast-benches --rounds 7 --seconds 10 --json results.json
  holdfast-benches --only randwrite,writeflush --legs holdfast-3,qemu-quorum-3";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cases = case::select(&arguments.only).map_err(|error| anyhow!(error))?;
    let legs: Vec<Leg> =
        LEGS.into_iter().filter(|leg| arguments.legs.is_empty() || arguments.legs.contains(leg)).collect();
    let ours = legs.iter().any(|leg| matches!(leg, Leg::Holdfast3 | Leg::Holdfast1));
    let holdfast = match arguments.holdfast {
        Some(path) => std::path::absolute(path)?,
        None if ours => built_holdfast()?,
        None => profile_dir()?.join("holdfast"),
    };

    let results_dir =
        profile_dir()?.parent().context("failed to find the target directory")?.join("bench-results");
    let data_base = arguments.dir.unwrap_or_else(|| results_dir.clone());
    std::fs::create_dir_all(&data_base)
        .with_context(|| format!("failed to create {}", data_base.display()))?;
    let data = tempfile::Builder::new().prefix("data-").tempdir_in(std::path::absolute(&data_base)?)?;
    // In the system's temporary directory: paths of sockets have at most 107 bytes.
    let sockets = tempfile::Builder::new().prefix("hf-bench-").tempdir()?;

    let (rounds, seconds, size_mib) =
        if arguments.quick { (1, 1, 256) } else { (arguments.rounds, arguments.seconds, arguments.size_mib) };
    let plan = Plan {
        cases,
        legs,
        rounds: usize::from(rounds),
        seconds,
        setup: Setup {
            data_dir: data.path().to_owned(),
            socket_dir: sockets.path().to_owned(),
            size_mib,
            holdfast,
            io_mode: arguments.io_mode,
            quorum_read: arguments.quorum_read,
            qemu_aio: arguments.qemu_aio,
        },
    };
    let results = runner::run(&plan)?;
    println!("{}", results.tables(&plan));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let out = arguments.json.unwrap_or_else(|| results_dir.join(format!("macro-{now}.json")));
    results.keep(&plan, &out)?;
    println!("Raw results: {}", out.display());
    Ok(())
}
