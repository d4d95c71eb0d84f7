//! Many volumes at once: how long they take to start, what they need, and whether each gets its share of the machine.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::many::{resident_mib, restarted, running, sum};
use super::{Figures, Plan, Unit, let_pass, ms};
use crate::cpu::used_us;
use crate::fio;
use crate::stats::median;

const CASE: &str = "fair";
const VOLUME_MIB: u64 = 16;
const REPLICAS: u32 = 3;
const IDLE_FOR: Duration = Duration::from_secs(20);
const SECONDS: u64 = 20;

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let volumes = plan.sized(200, 4);
    for round in 0..plan.rounds {
        let mut node = plan.node(&format!("fair-{round}"))?;
        let mut uris = Vec::new();
        for number in 0..volumes {
            uris.push(node.create(&format!("v{number}"), VOLUME_MIB, REPLICAS)?.uri()?.to_owned());
        }
        let mut note = |what: &str, unit, target, value| {
            figures.note_against(CASE, format!("{volumes} volumes: {what}"), unit, target, value);
        };
        let started = restarted(&mut node, volumes)?;
        note("start of an agent to all volumes healthy", Unit::Ms, None, ms(started));

        let pids = running(&node, volumes * u64::from(REPLICAS + 1))?;
        let pids: Vec<i32> = pids.into_iter().map(|(_, pid)| pid).collect();
        let_pass(IDLE_FOR);
        let (begin, used) = (Instant::now(), sum(&pids, used_us)?);
        let_pass(IDLE_FOR);
        let percent = (sum(&pids, used_us)? - used) / begin.elapsed().as_secs_f64() / 1e4;
        note("all idle instances, of a core", Unit::Percent, None, percent);
        note("memory of all instances, idle", Unit::Mib, None, sum(&pids, resident_mib)?);

        let seconds = plan.sized(SECONDS, 2);
        for (what, job) in [
            ("randwrite 4k qd4", "rw=randwrite\nbs=4k\niodepth=4"),
            ("randread 4k qd4", "rw=randread\nbs=4k\niodepth=4"),
        ] {
            let said = fio::run_jobs(&jobs(&uris, VOLUME_MIB, job, seconds), node.scratch())?;
            let rates = rates(&said)?;
            ensure!(rates.len() == uris.len(), "fio tells of {} jobs of {}", rates.len(), uris.len());
            let all: f64 = rates.iter().sum();
            let share = all / rates.len() as f64;
            let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
            note(&format!("{what}: all together"), Unit::Iops, None, all);
            let middle = median(&rates).context("no rates")?;
            note(&format!("{what}: the middle one of its fair share"), Unit::Ratio, None, middle / share);
            let goal = Some("at least 0.50");
            note(&format!("{what}: the slowest of its fair share"), Unit::Ratio, goal, least / share);
        }
        note("memory of all instances, after the load", Unit::Mib, None, sum(&pids, resident_mib)?);
        node.kill_everything()?;
        node.remove_data()?;
    }
    Ok(())
}

/// One job for each of `uris`, all at the same time, on the first `size_mib` of each.
pub(super) fn jobs(uris: &[String], size_mib: u64, job: &str, seconds: u64) -> String {
    let mut text = format!(
        "[global]\nioengine=nbd\nthread=1\nsize={size_mib}m\ntime_based=1\nruntime={seconds}\nnorandommap=1\n{job}\n"
    );
    for (number, uri) in uris.iter().enumerate() {
        text.push_str(&format!("[v{number}]\nuri={uri}\n"));
    }
    text
}

/// Operations a second of each job.
///
/// # Errors
/// When fio's JSON does not tell them.
pub(super) fn rates(said: &Value) -> Result<Vec<f64>> {
    let jobs = said["jobs"].as_array().context("fio's JSON has no jobs")?;
    let rate = |job: &Value| Some(job["read"]["iops"].as_f64()? + job["write"]["iops"].as_f64()?);
    jobs.iter().map(|job| rate(job).context("a job without a rate")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_has_a_job_and_a_rate() {
        let text = jobs(&["nbd+unix:///a".into(), "nbd+unix:///b".into()], 16, "rw=randread", 3);
        assert!(
            text.contains("[v0]\nuri=nbd+unix:///a\n[v1]\nuri=nbd+unix:///b\n") && text.contains("runtime=3")
        );
        let said = serde_json::json!({"jobs": [
            {"read": {"iops": 10.0}, "write": {"iops": 0.0}}, {"read": {"iops": 0.0}, "write": {"iops": 20.5}}]});
        assert_eq!(rates(&said).unwrap(), [10.0, 20.5]);
        assert!(rates(&serde_json::json!({"jobs": [{}]})).is_err());
    }
}
