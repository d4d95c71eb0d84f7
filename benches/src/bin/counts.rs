//! `benches/counts [--update]`: instructions per operation of the block path's pure parts, against what is committed.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Parser;
use holdfast_benches::counts::callgrind::{self, Counted};
use holdfast_benches::counts::{Change, Committed, Line, counted};
use holdfast_benches::process;

/// Counts the instructions of the block path's pure parts under callgrind, and fails where one takes more than 10 % more
/// than what is committed in benches/counts.txt.
///
/// Needs valgrind. Run it as `benches/counts`, which builds it optimised.
#[derive(Debug, Parser)]
#[command(name = "counts")]
struct Arguments {
    /// Write the counts to benches/counts.txt, to be committed with the change that made them
    #[arg(long)]
    update: bool,
    /// For programs: the counts, without comparing them
    #[arg(long, conflicts_with = "update")]
    json: bool,
    /// What callgrind calls
    #[arg(hide = true, num_args = 2)]
    inner: Vec<String>,
}

const RUN_ONE: &str = "run-one";
/// How many functions are named of what takes too many instructions.
const NAMED: usize = 6;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let [word, name] = &arguments.inner[..] {
        let case = counted::ALL.iter().find(|case| word == RUN_ONE && case.name == name);
        (case.with_context(|| format!("there is nothing to be run by {word} {name}"))?.run)();
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        bail!("this is not an optimised build, whose counts mean nothing: run benches/counts");
    }
    let dir = tempfile::Builder::new().prefix("hf-counts-").tempdir()?;
    let program = std::env::current_exe().context("failed to find this program")?;
    let found = callgrind::count(&program, RUN_ONE, dir.path())?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&found.counts)?);
        return Ok(ExitCode::SUCCESS);
    }
    let now = Committed {
        compiler: compiler()?,
        arch: std::env::consts::ARCH.to_owned(),
        counts: found.counts.clone(),
    };
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("counts.txt");
    if arguments.update {
        std::fs::write(&file, now.text()).with_context(|| format!("failed to write {}", file.display()))?;
        println!("{} counts written to {}", now.counts.len(), file.display());
        return Ok(ExitCode::SUCCESS);
    }
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
    let committed =
        Committed::parse(&text).map_err(|error| anyhow!("failed to read {}: {error}", file.display()))?;
    Ok(judge(&committed, &now, &found))
}

fn compiler() -> Result<String> {
    let said = process::output(Command::new("rustc").arg("--version"))?;
    Ok(said.trim().to_owned())
}

/// Prints the comparison; fails where a count rose by the same compiler's work on the same kind of processor.
fn judge(committed: &Committed, now: &Committed, found: &Counted) -> ExitCode {
    let lines = committed.compare(&now.counts);
    print_all(&lines);
    for line in lines.iter().filter(|line| line.change != Change::Same) {
        let kind = if line.fails() { "error" } else { "hint" };
        println!("{kind}: {}", line.verdict());
        if line.change == Change::More {
            let inside = found.inside.get(&line.name).into_iter().flatten().take(NAMED);
            inside.for_each(|(function, cost)| println!("    {cost:>6} in {function}"));
        }
    }
    if !lines.iter().any(Line::fails) {
        return ExitCode::SUCCESS;
    }
    if (&committed.compiler, &committed.arch) != (&now.compiler, &now.arch) {
        println!(
            "not failed for it: the committed counts are of {} on {}, and this is {} on {}",
            committed.compiler, committed.arch, now.compiler, now.arch
        );
        return ExitCode::SUCCESS;
    }
    println!(
        "Is the rise wanted? Then run `benches/counts --update`, commit benches/counts.txt with the change, and say in \
         its message what the instructions buy."
    );
    ExitCode::FAILURE
}

fn print_all(lines: &[Line]) {
    println!("{:<24} {:>9} {:>9} {:>8}", "instructions", "committed", "now", "change");
    for line in lines {
        let show = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let change = match (line.before, line.now) {
            (Some(before), Some(now)) if before > 0 => {
                format!("{:+.1} %", (now as f64 / before as f64 - 1.0) * 100.0)
            }
            _ => String::new(),
        };
        println!("{:<24} {:>9} {:>9} {change:>8}", line.name, show(line.before), show(line.now));
    }
}
