//! Starts the legs, runs the rounds interleaved, and accounts for each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::case::{Case, PREFILL};
use crate::cpu;
use crate::fio::{self, Run};
use crate::leg::{self, Leg, Running, Setup};
use crate::machine::{Machine, Ticks};
use crate::plot;
use crate::report::{self, ProcessCpu, Sample, Syscalls};
use crate::syscalls::{self, Source};
use crate::targets;

/// System calls per operation hardly vary: longer than this is not needed to count them.
const COUNTING_SECONDS_MAX: u64 = 2;
/// Of one panel of the plot.
const PANEL: (f64, f64) = (560.0, 340.0);

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
    /// Who counted system calls, or why nobody did.
    counter: Result<Source, String>,
    syscalls: Vec<Syscalls>,
}

/// Runs `plan`; what is going on goes to standard error.
///
/// # Errors
/// When a leg does not start, dies, or fails an operation: half a comparison is none.
pub fn run(plan: &Plan) -> Result<Results> {
    let machine = Machine::observe(&plan.setup.data_dir, &plan.setup.holdfast);
    let mut running = Vec::new();
    for leg in &plan.legs {
        let up = leg::start(*leg, &plan.setup)?;
        if up.target.read_only {
            eprintln!(
                "{} is not written to: what it never held is read as a hole, which is faster",
                leg.name()
            );
        } else {
            eprintln!("filling {}", leg.name());
            fio::run(&up.target, PREFILL, plan.setup.size_mib, plan.seconds, &plan.setup.socket_dir)
                .with_context(|| format!("failed to fill {}", leg.name()))?;
        }
        running.push(up);
    }
    let mut results = Results {
        machine,
        commands: BTreeMap::new(),
        samples: Vec::new(),
        counter: syscalls::source(),
        syscalls: Vec::new(),
    };
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
                results.samples.push(sample);
            }
        }
        for up in &running {
            results.count_syscalls(plan, case, up);
        }
    }
    results.commands = running.iter().map(|up| (up.leg.name(), up.commands.clone())).collect();
    Ok(results)
}

fn measure(plan: &Plan, case: &Case, round: usize, up: &Running) -> Result<Sample> {
    // What the leg before left dirty is written back now, not at this one's expense.
    nix::unistd::sync();
    let used =
        || -> Result<Vec<f64>> { up.accounted.iter().map(|process| cpu::used_us(process.pid)).collect() };
    let (before, ticks) = (used()?, Ticks::now());
    let raw = fio::run(&up.target, case.job, plan.setup.size_mib, plan.seconds, &plan.setup.socket_dir)?;
    let stolen = Ticks::now().stolen_since(ticks);
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
    Ok(Sample::new(case, up.leg, round, &outcome, cpu, stolen, raw))
}

impl Results {
    /// In a run of its own. What cannot be counted is no reason to lose what was measured: it is said once, and left out.
    fn count_syscalls(&mut self, plan: &Plan, case: &Case, up: &Running) {
        let Ok(source) = self.counter else { return };
        if up.accounted.is_empty() {
            return;
        }
        let run = Run {
            target: &up.target,
            job: case.job,
            size_mib: plan.setup.size_mib,
            seconds: plan.seconds.min(COUNTING_SECONDS_MAX),
            dir: &plan.setup.socket_dir,
        };
        let counted = syscalls::counted(source, &up.accounted, &run)
            .and_then(|(said, calls)| Ok((fio::outcome(&said, case.direction)?.ios, calls)));
        match counted {
            Ok((ios, calls)) => {
                let roles = up.accounted.iter().map(|process| process.role.clone());
                let per_io = roles.zip(calls.into_iter().map(|count| count / ios)).collect();
                self.syscalls.push(Syscalls { case: case.name, leg: up.leg, per_io });
            }
            Err(error) => self.counter = Err(format!("{}: {error:#}", source.name())),
        }
    }

    /// The tables, in Markdown.
    #[must_use]
    pub fn tables(&self, plan: &Plan) -> String {
        let mut text = format!(
            "{}\nqemu: {}\n{} rounds of {} s, {} MiB, interleaved. Median over the rounds; ratios are medians of \
             ratios round by round.\nfile-direct, bare-direct and holdfast-*-direct write to the device; everything \
             else is volatile until a flush.\nLatencies of write and flush are those of the flush.\n{}\n\n",
            self.machine.describe(),
            self.machine.qemu,
            plan.rounds,
            plan.seconds,
            plan.setup.size_mib,
            report::stolen_text(&self.samples),
        );
        for case in &plan.cases {
            text.push_str(&format!("{}\n\n", report::case_table(&self.samples, case, &plan.legs)));
        }
        text.push_str(&format!("{}\n\n", report::cpu_table(&self.samples, &plan.cases, &plan.legs)));
        text.push_str(&self.syscalls_text());
        let judged = targets::of_samples(&self.samples);
        // A volume of a person's own has none.
        if judged.iter().any(|goal| goal.verdict != targets::Verdict::NotMeasured) {
            text.push_str(&format!(
                "Targets, by the medians above: those of three replicas on one machine with two cores.\nThe commands \
                 stand behind `cargo run --release -p holdfast-benches`.\n\n{}\n",
                targets::table(&judged)
            ));
        }
        text
    }

    fn syscalls_text(&self) -> String {
        let mut text = String::new();
        if !self.syscalls.is_empty() {
            text.push_str(&format!("{}\n", report::syscalls_table(&self.syscalls)));
        }
        // Writing to a string does not fail.
        let _ = match &self.counter {
            Ok(source) => writeln!(
                text,
                "Counted by {}, in runs of their own of at most {COUNTING_SECONDS_MAX} s; the kernel's workers make \
                 none.\n",
                source.name()
            ),
            Err(reason) => writeln!(text, "System calls per I/O: – ({reason})\n"),
        };
        text
    }

    /// Percentiles of latency, one panel a case.
    #[must_use]
    pub fn plot(&self, plan: &Plan) -> String {
        let panels = report::latency_panels(&self.samples, &plan.cases, &plan.legs);
        let subtitle = format!(
            "{} x{}, Linux {}; {}; {} rounds of {} s, {} MiB; median over the rounds",
            self.machine.processor,
            self.machine.processors,
            self.machine.kernel,
            self.machine.holdfast,
            plan.rounds,
            plan.seconds,
            plan.setup.size_mib
        );
        plot::svg("Latency", &subtitle, &panels, 2, PANEL)
    }

    fn json(&self, plan: &Plan) -> Value {
        json!({
            "schema": 2,
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
            "syscalls": {
                "source": self.counter.as_ref().ok(),
                "missing_because": self.counter.as_ref().err(),
                "per_io": self.syscalls,
            },
            "targets": targets::of_samples(&self.samples),
            "summary": report::summaries(&self.samples, &plan.cases, &plan.legs),
            "samples": self.samples,
        })
    }

    /// Writes everything, fio's own JSON included, to `path`, and the plot to `plot`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, plan: &Plan, path: &Path, plot: &Path) -> Result<()> {
        for dir in [path, plot].into_iter().filter_map(Path::parent) {
            std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
        }
        let text = serde_json::to_vec_pretty(&self.json(plan)).context("failed to format the results")?;
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
        std::fs::write(plot, self.plot(plan)).with_context(|| format!("failed to write {}", plot.display()))
    }
}
