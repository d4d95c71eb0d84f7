//! `cargo run --release -p holdfast-benches -- [OPTIONS]`: the paired macro benchmark.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use holdfast_benches::binary::{built_holdfast, missing, profile_dir, require, results_dir};
use holdfast_benches::case::{self, Case};
use holdfast_benches::cpu::Accounted;
use holdfast_benches::leg::{LEGS, Leg, QemuAio, QuorumRead, Setup};
use holdfast_benches::own::{Own, Place, parse_process};
use holdfast_benches::runner::{self, Plan};

/// The same fio jobs on Holdfast, the bare file, nbdkit and qemu's own replication, or on a volume of yours and what lies
/// under it, interleaved in one call.
///
/// Needs fio, and what each leg needs; a peer that is not installed is left out unless it was asked for. Run by cargo, it
/// first builds the `holdfast` it measures.
#[derive(Debug, Parser)]
#[command(name = "holdfast-benches", after_help = EXAMPLES)]
struct Arguments {
    /// How often each case runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long each run takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Size of the volume and of the files; of a volume of yours, how much of it is used
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..))]
    size_mib: u64,
    /// Only these cases, by name or by a part of it
    #[arg(long, value_delimiter = ',', value_name = "CASE")]
    only: Vec<String>,
    /// Only these legs [default: all; with --target or --bare, just these]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LEG")]
    legs: Vec<Leg>,
    /// One round of one second on 256 MiB: does it all work, not how fast it is
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "size_mib"])]
    quick: bool,
    /// A volume of yours: an NBD URI, or a block device or file, which is opened with O_DIRECT
    #[arg(long, value_name = "URI|PATH", value_parser = Place::parse, help_heading = "Your own node")]
    target: Option<Place>,
    /// What to compare it with: a device, or a file on the disk under it (made and removed if it does not exist); runs
    /// through the page cache and with O_DIRECT
    #[arg(long, value_name = "PATH", help_heading = "Your own node")]
    bare: Option<PathBuf>,
    /// Allow writes to what --target and --bare name: what is there is destroyed
    #[arg(long, help_heading = "Your own node")]
    overwrite_data: bool,
    /// A process that serves the target, whose processor time and system calls are to be told: engine=4711
    #[arg(long = "pid", value_name = "ROLE=PID", value_parser = parse_process, value_delimiter = ',', requires = "target",
        help_heading = "Your own node")]
    processes: Vec<Accounted>,
    /// Instead of the built-in cases, one fio job of yours, which says neither where to nor by which engine;
    /// ${HF_SIZE} and ${HF_SECONDS} stand for size and time
    #[arg(long, value_name = "FILE", conflicts_with = "only", help_heading = "Your own node")]
    job: Option<PathBuf>,
    /// Where everything is kept, fio's JSON included [default: target/bench-results/macro-SECONDS.json]
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Where the latency plot is kept [default: beside the JSON, as .svg]
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
    /// Where data goes: a real disk with four times the size per leg free [default: beside the results]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The holdfast to measure [default: the one built beside this program]
    #[arg(long, value_name = "PATH")]
    holdfast: Option<PathBuf>,
    /// Passed to `holdfast quickstart` for the legs holdfast-3 and holdfast-1
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
  holdfast-benches --only randwrite,writeflush --legs holdfast-3,qemu-quorum-3
  holdfast-benches --target 'nbd+unix:///v?socket=/run/holdfast/nbd-v.sock' --only randread
  holdfast-benches --target /dev/nbd0 --bare /srv/bench.img --overwrite-data --job mine.fio";

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    require(&[("fio", "fio")])?;
    let cases = cases(&arguments)?;
    let legs = legs(&arguments)?;
    let ours = legs.iter().any(|leg| leg.is_holdfast());
    let holdfast = match &arguments.holdfast {
        Some(path) => std::path::absolute(path)?,
        None if ours => built_holdfast()?,
        // Only its version is told.
        None => {
            Some(profile_dir()?.join("holdfast")).filter(|path| path.is_file()).unwrap_or("holdfast".into())
        }
    };
    let (rounds, seconds, size_mib) =
        if arguments.quick { (1, 1, 256) } else { (arguments.rounds, arguments.seconds, arguments.size_mib) };
    let mut own = Own {
        target: arguments.target,
        bare: arguments.bare.map(std::path::absolute).transpose()?,
        overwrite: arguments.overwrite_data,
        processes: arguments.processes,
        ..Own::default()
    };
    // Goes at the end, with the file that was made.
    let (size_mib, _made) = own.prepare(&cases, size_mib)?;

    let results_dir = results_dir()?;
    let data_base = arguments.dir.unwrap_or_else(|| results_dir.clone());
    std::fs::create_dir_all(&data_base)
        .with_context(|| format!("failed to create {}", data_base.display()))?;
    let data = tempfile::Builder::new().prefix("data-").tempdir_in(std::path::absolute(&data_base)?)?;
    // In the system's temporary directory: paths of sockets have at most 107 bytes.
    let sockets = tempfile::Builder::new().prefix("hf-bench-").tempdir()?;
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
            own,
            quorum_read: arguments.quorum_read,
            qemu_aio: arguments.qemu_aio,
        },
    };
    let results = runner::run(&plan)?;
    println!("{}", results.tables(&plan));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let out = arguments.json.unwrap_or_else(|| results_dir.join(format!("macro-{now}.json")));
    let plot = arguments.svg.unwrap_or_else(|| out.with_extension("svg"));
    results.keep(&plan, &out, &plot)?;
    println!("Raw results: {}\nLatency plot: {}", out.display(), plot.display());
    Ok(())
}

fn cases(arguments: &Arguments) -> Result<Vec<Case>> {
    let Some(path) = &arguments.job else {
        return case::select(&arguments.only).map_err(|error| anyhow!(error));
    };
    let job = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let name = path.file_stem().map_or_else(|| "job".to_owned(), |name| name.display().to_string());
    let own = Case::own(&name, &job).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok(vec![own])
}

/// What a person brings comes first. Peers that were asked for must be there; others are left out aloud.
fn legs(arguments: &Arguments) -> Result<Vec<Leg>> {
    let mut legs = Vec::new();
    if arguments.target.is_some() {
        legs.push(Leg::Target);
    }
    if arguments.bare.is_some() {
        legs.extend([Leg::BareBuffered, Leg::BareDirect]);
    }
    let only_own = !legs.is_empty() && arguments.legs.is_empty();
    for leg in LEGS
        .into_iter()
        .filter(|leg| !only_own && (arguments.legs.is_empty() || arguments.legs.contains(leg)))
    {
        if arguments.legs.contains(&leg) {
            require(leg.programs()).with_context(|| format!("failed to run {}", leg.name()))?;
        } else if let Some((program, package)) = missing(leg.programs()).first() {
            eprintln!("leaving out {}: {program} is not installed (package {package})", leg.name());
            continue;
        }
        legs.push(leg);
    }
    Ok(legs)
}
