//! Runs one fio job against one target and reads its JSON.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::case::Direction;
use crate::process;

/// What a job is pointed at: a `target-*.fio` text and the variables in it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Text in front of the job's.
    pub text: &'static str,
    /// `HF_URI` or `HF_FILE`, and its value.
    pub variable: (&'static str, String),
    /// Nothing there may be changed: fio refuses a job that would write.
    pub read_only: bool,
}

/// One job as it is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// On what.
    pub target: &'a Target,
    /// What.
    pub job: &'a str,
    /// Within how much of it.
    pub size_mib: u64,
    /// For how long.
    pub seconds: u64,
    /// For the job file and what the job itself writes.
    pub dir: &'a Path,
}

/// What one run of a job gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Operations completed; of a write-and-flush job the writes.
    pub ios: f64,
    /// Of these, a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_sec: f64,
    /// Median time of an operation; of a write-and-flush job of a flush.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// 99.9th percentile of the same.
    pub p999_us: f64,
    /// All percentiles that fio tells, of a hundred, with their microseconds.
    pub percentiles: Vec<(f64, f64)>,
    /// fio's own processor time per operation.
    pub fio_cpu_us_per_io: f64,
}

/// Runs `job` on `target` and gives fio's JSON, whole.
///
/// # Errors
/// When fio cannot be started, or an operation failed.
pub fn run(target: &Target, job: &str, size_mib: u64, seconds: u64, dir: &Path) -> Result<Value> {
    run_under(&[], &Run { target, job, size_mib, seconds, dir })
}

/// The same, as the command of another one, which is `before` without it.
///
/// # Errors
/// As [`run`].
pub fn run_under(before: &[String], run: &Run<'_>) -> Result<Value> {
    let mut command = command(before, &format!("{}{}", run.target.text, run.job), run.dir)?;
    if run.target.read_only {
        command.arg("--readonly");
    }
    let (variable, value) = &run.target.variable;
    command
        .env(variable, value)
        .env("HF_SIZE", format!("{}m", run.size_mib))
        .env("HF_SECONDS", run.seconds.to_string());
    parse(&process::output(&mut command)?)
}

/// Runs a file of several jobs that names all it needs itself, and gives fio's JSON, whole.
///
/// # Errors
/// When fio cannot be started, or an operation of any job failed: fio's own exit code says so.
pub fn run_jobs(text: &str, dir: &Path) -> Result<Value> {
    json(&process::output(&mut command(&[], text, dir)?)?)
}

fn command(before: &[String], text: &str, dir: &Path) -> Result<Command> {
    let file = dir.join("job.fio");
    std::fs::write(&file, text).context("failed to write the job file")?;
    let mut words = before.iter().map(String::as_str).chain(["fio"]);
    let mut command = Command::new(words.next().unwrap_or("fio"));
    command.args(words).args(["--output-format=json", "--eta=never"]).arg(&file).current_dir(dir);
    Ok(command)
}

/// fio may say a word of its own before the JSON.
fn json(said: &str) -> Result<Value> {
    let json = said.find('{').and_then(|start| said.get(start..)).context("fio printed no JSON")?;
    serde_json::from_str(json).context("failed to read fio's JSON")
}

fn parse(said: &str) -> Result<Value> {
    let value = json(said)?;
    if value.pointer("/jobs/1").is_some() {
        bail!("fio ran several jobs apart; a job file with numjobs needs group_reporting=1");
    }
    match value.pointer("/jobs/0/error").and_then(Value::as_i64) {
        Some(0) => Ok(value),
        Some(error) => bail!("fio's job failed with error {error}"),
        None => bail!("fio's JSON has no job"),
    }
}

/// The figures in fio's JSON.
///
/// # Errors
/// When a field is not there, or nothing completed.
pub fn outcome(json: &Value, direction: Direction) -> Result<Outcome> {
    let number = |path: &str| {
        json.pointer(path)
            .and_then(Value::as_f64)
            .with_context(|| format!("failed to find {path} in fio's JSON"))
    };
    let read = ("/jobs/0/read", "/jobs/0/read/clat_ns/percentile");
    let write = ("/jobs/0/write", "/jobs/0/write/clat_ns/percentile");
    let mut sides = match direction {
        Direction::Read => vec![read],
        Direction::Write => vec![write],
        Direction::WriteFlush => vec![("/jobs/0/write", "/jobs/0/sync/lat_ns/percentile")],
        Direction::Mixed => vec![read, write],
    };
    let ios_of = |rates: &str| number(&format!("{rates}/total_ios"));
    for (rates, _) in &sides {
        ios_of(rates)?;
    }
    sides.retain(|(rates, _)| ios_of(rates).is_ok_and(|ios| ios >= 1.0));
    if sides.is_empty() {
        bail!("nothing completed within the time of the job");
    }
    let sum = |field: &str| -> Result<f64> {
        sides.iter().map(|(rates, _)| number(&format!("{rates}/{field}"))).sum()
    };
    let percentiles = slowest(sides.iter().map(|(_, times)| percentiles(json, times)).collect());
    let at = |percent: f64| {
        let found = percentiles.iter().find(|(known, _)| (known - percent).abs() < 1e-6);
        found.map(|(_, us)| *us).with_context(|| {
            format!(
                "fio did not tell percentile {percent}: a job's percentile_list must hold 50, 99 and 99.9"
            )
        })
    };
    // Percentages of the job's wall-clock time.
    let busy_percent = number("/jobs/0/usr_cpu")? + number("/jobs/0/sys_cpu")?;
    let ios = sum("total_ios")?;
    Ok(Outcome {
        ios,
        iops: sum("iops")?,
        bytes_per_sec: sum("bw_bytes")?,
        p50_us: at(50.0)?,
        p99_us: at(99.0)?,
        p999_us: at(99.9)?,
        fio_cpu_us_per_io: busy_percent / 100.0 * number("/jobs/0/job_runtime")? * 1e3 / ios,
        percentiles,
    })
}

/// Percentages and microseconds at `path`, in ascending order.
fn percentiles(json: &Value, path: &str) -> Vec<(f64, f64)> {
    let Some(Value::Object(found)) = json.pointer(path) else { return Vec::new() };
    let mut all: Vec<(f64, f64)> =
        found.iter().filter_map(|(percent, ns)| Some((percent.parse().ok()?, ns.as_f64()? / 1e3))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

/// Of several kinds of operation, the slower one at each percentile.
fn slowest(kinds: Vec<Vec<(f64, f64)>>) -> Vec<(f64, f64)> {
    kinds
        .into_iter()
        .reduce(|a, b| a.into_iter().zip(b).map(|((percent, x), (_, y))| (percent, x.max(y))).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;
    use serde_json::json;

    fn job(reads: u64, writes: u64) -> Value {
        let side = |ios: u64| {
            let us = if ios > 1000 { 95_000 } else { 90_000 };
            json!({"total_ios": ios, "iops": 500.0, "bw_bytes": 2_048_000, "clat_ns": {"percentile":
                {"99.900000": 900_000, "50.000000": us, "99.000000": 250_000}}})
        };
        json!({"jobs": [{"error": 0, "usr_cpu": 10.0, "sys_cpu": 15.0, "job_runtime": 2000,
            "read": side(reads), "write": side(writes), "sync": {"lat_ns": {"percentile":
                {"50.000000": 1_000_000, "99.000000": 9_000_000, "99.900000": 9_500_000}}}}]})
    }

    #[test]
    fn figures_are_found_and_converted() {
        let json = job(0, 1000);
        let write = outcome(&json, Direction::Write).unwrap();
        let expected = Outcome {
            ios: 1000.0,
            iops: 500.0,
            bytes_per_sec: 2_048_000.0,
            p50_us: 90.0,
            p99_us: 250.0,
            p999_us: 900.0,
            percentiles: vec![(50.0, 90.0), (99.0, 250.0), (99.9, 900.0)],
            fio_cpu_us_per_io: 500.0,
        };
        assert_eq!(write, expected);
        assert_eq!(outcome(&json, Direction::Mixed).unwrap(), expected, "only one kind was done");
        let flush = outcome(&json, Direction::WriteFlush).unwrap();
        assert_eq!((flush.p50_us, flush.p99_us, flush.p999_us), (1000.0, 9000.0, 9500.0));
        assert!(outcome(&json, Direction::Read).unwrap_err().to_string().contains("nothing completed"));
    }

    #[test]
    fn mixed_jobs_give_sums_and_the_slower_kind() {
        let mixed = outcome(&job(1500, 500), Direction::Mixed).unwrap();
        assert_eq!((mixed.ios, mixed.iops, mixed.p50_us), (2000.0, 1000.0, 95.0));
    }

    #[test]
    fn failed_jobs_and_foreign_text_are_errors() {
        assert!(parse("note: something\n{\"jobs\": [{\"error\": 0}]}").is_ok());
        for said in ["", "no json", "{\"jobs\": []}", "{\"jobs\": [{\"error\": 5}]}", "{ cut"] {
            assert!(parse(said).is_err(), "{said}");
        }
    }

    /// Every job file is one that fio accepts: it parses each with a target in front.
    #[test]
    fn fio_accepts_every_job_file() {
        let target = include_str!("../fio/target-file-buffered.fio");
        for case in CASES {
            let dir = tempfile::tempdir().unwrap();
            let job = dir.path().join("job.fio");
            std::fs::write(&job, format!("{target}{}", case.job)).unwrap();
            let mut command = Command::new("fio");
            command.arg("--parse-only").arg(&job).env("HF_FILE", dir.path().join("data"));
            command.env("HF_SIZE", "1m").env("HF_SECONDS", "1");
            process::output(&mut command).unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
        }
    }
}
