//! Runs this program under callgrind, and reads what it counted.
//!
//! Only instructions of this program's own code count. What the C library does (copies, allocation) is left out, for it
//! chooses its code by the processor; so does `crc32fast`. That nothing is allocated per request is
//! `dataplane/tests/no_alloc_*`'s to say.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Counts;
use super::counted::{ALL, OPERATIONS};
use crate::process;

/// A function of this crate that is chosen by the processor.
const BY_PROCESSOR: &str = "crc32fast";

/// What was counted of each, and where.
#[derive(Debug, Default)]
pub struct Counted {
    /// Per operation.
    pub counts: Counts,
    /// Per operation, by the function that they were in, the most first.
    pub inside: BTreeMap<String, Vec<(String, u64)>>,
}

/// Counts everything in `program`, which called with `argument` and a name runs that one of [`ALL`]; files go to `dir`.
///
/// # Errors
/// When valgrind is missing or fails, or does not find what is to be counted.
pub fn count(program: &Path, argument: &str, dir: &Path) -> Result<Counted> {
    let mut counted = Counted::default();
    // A run each: what it collects in must not depend on what was collected before.
    for case in ALL {
        let out = dir.join(case.function);
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--quiet", "--error-exitcode=99"]);
        command.args(["--compress-strings=no", "--compress-pos=no", "--dump-line=no"]);
        command.arg(format!("--callgrind-out-file={}", out.display()));
        command.arg(format!("--toggle-collect=holdfast_benches::counts::counted::{}", case.function));
        command.arg(program).args([argument, case.name]);
        process::output(&mut command).with_context(|| {
            format!(
                "failed to count the instructions of {}; valgrind is needed: apt-get install -y \
                 --no-install-recommends valgrind",
                case.name
            )
        })?;
        let text =
            std::fs::read_to_string(&out).with_context(|| format!("failed to read {}", out.display()))?;
        let costs = own_costs(&text, program)?;
        let total: u64 = costs.values().sum();
        ensure!(
            total >= OPERATIONS,
            "callgrind saw no call of {}: was this program stripped of its symbols?",
            case.function
        );
        let mut inside: Vec<(String, u64)> =
            costs.into_iter().map(|(at, cost)| (at, cost / OPERATIONS)).collect();
        inside.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        counted.counts.insert(case.name.to_owned(), total / OPERATIONS);
        counted.inside.insert(case.name.to_owned(), inside);
    }
    Ok(counted)
}

/// The instructions of each function in `program`'s own code, calls of others apart.
fn own_costs(text: &str, program: &Path) -> Result<BTreeMap<String, u64>> {
    let program = program.display().to_string();
    let mut costs = BTreeMap::new();
    let (mut ours, mut function) = (false, "");
    let mut is_a_call = false;
    for line in text.lines() {
        if let Some(object) = line.strip_prefix("ob=") {
            ours = object == program;
        } else if let Some(name) = line.strip_prefix("fn=") {
            function = name;
        } else if line.starts_with("calls=") {
            // The line after it is what the called function cost.
            is_a_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost = line.split(' ').nth(1).with_context(|| format!("callgrind's line {line:?}"))?;
            let cost: u64 = cost.parse().with_context(|| format!("callgrind's line {line:?}"))?;
            if !std::mem::take(&mut is_a_call) && ours && !function.contains(BY_PROCESSOR) {
                *costs.entry(function.to_owned()).or_default() += cost;
            }
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_code_counts_and_calls_do_not() {
        let text = "version: 1\nevents: Ir\n\nob=/x/counts\nfl=a.rs\n\
                    fn=a::b\n0 100\ncob=/lib/libc.so.6\ncfn=memcpy\ncalls=1 0 \n0 5000\n0 20\n\n\
                    ob=/lib/libc.so.6\nfn=memcpy\n0 5000\n\nob=/x/counts\nfn=crc32fast::baseline\n0 70\n\
                    fn=a::c\n0 3\n\ntotals: 5193\n";
        let costs = own_costs(text, Path::new("/x/counts")).unwrap();
        let expected = [("a::b".to_owned(), 120), ("a::c".to_owned(), 3)];
        assert_eq!(costs, BTreeMap::from(expected));
    }
}
