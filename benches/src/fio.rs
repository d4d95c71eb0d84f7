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
    /// fio's own processor time per operation.
    pub fio_cpu_us_per_io: f64,
}

/// Runs `job` on `target` and gives fio's JSON, whole.
///
/// # Errors
/// When fio cannot be started, or an operation failed.
pub fn run(target: &Target, job: &str, size_mib: u64, seconds: u64, dir: &Path) -> Result<Value> {
    let (variable, value) = &target.variable;
    let mut command = command(&format!("{}{job}", target.text), dir)?;
    command
        .env(variable, value)
        .env("HF_SIZE", format!("{size_mib}m"))
        .env("HF_SECONDS", seconds.to_string());
    parse(&process::output(&mut command)?)
}

/// Runs a job file that names all it needs itself, and gives fio's JSON, whole.
///
/// # Errors
/// As in [`run`].
pub fn run_text(text: &str, dir: &Path) -> Result<Value> {
    parse(&process::output(&mut command(text, dir)?)?)
}

fn command(text: &str, dir: &Path) -> Result<Command> {
    let file = dir.join("job.fio");
    std::fs::write(&file, text).context("failed to write the job file")?;
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--eta=never"]).arg(&file).current_dir(dir);
    Ok(command)
}

/// fio may say a word of its own before the JSON.
fn parse(said: &str) -> Result<Value> {
    let json = said.find('{').and_then(|start| said.get(start..)).context("fio printed no JSON")?;
    let value: Value = serde_json::from_str(json).context("failed to read fio's JSON")?;
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
    let (rates, times) = match direction {
        Direction::Read => ("/jobs/0/read", "/jobs/0/read/clat_ns"),
        Direction::Write => ("/jobs/0/write", "/jobs/0/write/clat_ns"),
        Direction::WriteFlush => ("/jobs/0/write", "/jobs/0/sync/lat_ns"),
    };
    let ios = number(&format!("{rates}/total_ios"))?;
    if ios < 1.0 {
        bail!("nothing completed within the time of the job");
    }
    // Percentages of the job's wall-clock time.
    let busy_percent = number("/jobs/0/usr_cpu")? + number("/jobs/0/sys_cpu")?;
    Ok(Outcome {
        ios,
        iops: number(&format!("{rates}/iops"))?,
        bytes_per_sec: number(&format!("{rates}/bw_bytes"))?,
        p50_us: number(&format!("{times}/percentile/50.000000"))? / 1e3,
        p99_us: number(&format!("{times}/percentile/99.000000"))? / 1e3,
        fio_cpu_us_per_io: busy_percent / 100.0 * number("/jobs/0/job_runtime")? * 1e3 / ios,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;
    use serde_json::json;

    #[test]
    fn figures_are_found_and_converted() {
        let side = |ios: u64| {
            json!({"total_ios": ios, "iops": 500.0, "bw_bytes": 2_048_000,
            "clat_ns": {"percentile": {"50.000000": 90_000, "99.000000": 250_000}}})
        };
        let json = json!({"jobs": [{"error": 0, "usr_cpu": 10.0, "sys_cpu": 15.0, "job_runtime": 2000,
            "read": side(0), "write": side(1000),
            "sync": {"lat_ns": {"percentile": {"50.000000": 1_000_000, "99.000000": 9_000_000}}}}]});
        let write = outcome(&json, Direction::Write).unwrap();
        let expected = Outcome {
            ios: 1000.0,
            iops: 500.0,
            bytes_per_sec: 2_048_000.0,
            p50_us: 90.0,
            p99_us: 250.0,
            fio_cpu_us_per_io: 500.0,
        };
        assert_eq!(write, expected);
        let flush = outcome(&json, Direction::WriteFlush).unwrap();
        assert_eq!((flush.p50_us, flush.p99_us), (1000.0, 9000.0));
        assert!(outcome(&json, Direction::Read).unwrap_err().to_string().contains("nothing completed"));
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
