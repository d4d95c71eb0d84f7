//! Starts the legs, runs the rounds interleaved, and accounts for each.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::case::{Case, PREFILL};
use crate::cpu;
use crate::fio;
use crate::leg::{self, Leg, Running, Setup};
use crate::machine::Machine;
use crate::report::{self, ProcessCpu, Sample};

/// What is to be measured.
#[derive(Debug)]
pub struct Plan {
    /// In this order.
    pub cases: Vec<Case>,
    /// In this order within each round.
    pub legs: Vec<Leg>,
    /// Of each case.
    pub rounds: usize,
    /// Of each run.
    pub seconds: u64,
    /// How the legs are set up.
    pub setup: Setup,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Results {
    machine: Machine,
    commands: BTreeMap<&'static str, Vec<String>>,
    samples: Vec<Sample>,
}

/// Runs `plan`; what is going on goes to standard error.
///
/// # Errors
/// When a leg does not start, dies, or fails an operation: half a comparison is none.
pub fn run(plan: &Plan) -> Result<Results> {
    let machine = Machine::observe(&plan.setup.data_dir, &plan.setup.holdfast);
    let mut running = Vec::new();
    for leg in &plan.legs {
        eprintln!("starting and filling {}", leg.name());
        let up = leg::start(*leg, &plan.setup)?;
        fio::run(&up.target, PREFILL, plan.setup.size_mib, plan.seconds, &plan.setup.socket_dir)
            .with_context(|| format!("failed to fill {}", leg.name()))?;
        running.push(up);
    }
    let mut samples = Vec::new();
    for case in &plan.cases {
        for round in 0..plan.rounds {
            for up in &running {
                let sample = measure(plan, case, round, up)
                    .with_context(|| format!("failed to run {} on {}", case.name, up.leg.name()))?;
                eprintln!(
                    "{} round {} {}: {:.0} IOPS, p50 {:.0} µs",
                    case.name,
                    round + 1,
                    up.leg.name(),
                    sample.iops,
                    sample.p50_us
                );
                samples.push(sample);
            }
        }
    }
    let commands = running.iter().map(|up| (up.leg.name(), up.commands.clone())).collect();
    Ok(Results { machine, commands, samples })
}

fn measure(plan: &Plan, case: &Case, round: usize, up: &Running) -> Result<Sample> {
    // What the leg before left dirty is written back now, not at this one's expense.
    nix::unistd::sync();
    let used =
        || -> Result<Vec<f64>> { up.accounted.iter().map(|process| cpu::used_us(process.pid)).collect() };
    let before = used()?;
    let raw = fio::run(&up.target, case.job, plan.setup.size_mib, plan.seconds, &plan.setup.socket_dir)?;
    let after = used().context("a serving process ended during the run")?;
    let outcome = fio::outcome(&raw, case.direction)?;
    let cpu = up
        .accounted
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(process, (before, after))| ProcessCpu {
            role: process.role.clone(),
            pid: process.pid,
            us_per_io: (after - before) / outcome.ios,
        })
        .collect();
    Ok(Sample::new(case, up.leg, round, &outcome, cpu, raw))
}

impl Results {
    /// The tables, in Markdown.
    #[must_use]
    pub fn tables(&self, plan: &Plan) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "Machine: {} x{}, {}, Linux {}, data on {}\nVersions: {}; {}; {}; sources {}\nLoad before: {}\n\
             {} rounds of {} s, {} MiB, interleaved. Median over the rounds; ratios are medians of ratios round by \
             round.\nfile-direct writes to the device; everything else is volatile until a flush. Write-and-flush \
             latencies are those of the flush.\n\n",
            machine.processor,
            machine.processors,
            machine.memory,
            machine.kernel,
            machine.file_system,
            machine.holdfast,
            machine.fio,
            machine.qemu,
            machine.commit,
            machine.load_before,
            plan.rounds,
            plan.seconds,
            plan.setup.size_mib,
        );
        for case in &plan.cases {
            text.push_str(&format!("{}\n\n", report::case_table(&self.samples, case, &plan.legs)));
        }
        if plan.legs.len() > 1 {
            text.push_str(&format!("{}\n", report::ratio_table(&self.samples, &plan.cases, &plan.legs)));
        }
        text
    }

    fn json(&self, plan: &Plan) -> Value {
        json!({
            "schema": 1,
            "machine": self.machine,
            "plan": {
                "rounds": plan.rounds,
                "seconds": plan.seconds,
                "size_mib": plan.setup.size_mib,
                "io_mode": plan.setup.io_mode,
                "quorum_read": plan.setup.quorum_read,
                "qemu_aio": plan.setup.qemu_aio,
                "legs": plan.legs,
                "commands": self.commands,
            },
            "summary": report::summaries(&self.samples, &plan.cases, &plan.legs),
            "samples": self.samples,
        })
    }

    /// Writes everything, fio's own JSON included, to `path`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&self, plan: &Plan, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
        }
        let text = serde_json::to_vec_pretty(&self.json(plan)).context("failed to format the results")?;
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }
}
