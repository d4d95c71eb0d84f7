//! What happens when something dies, and what it costs to be ready for that: returns, rebuilds, pauses, restarts, and
//! the price of the maps on the path of I/O; how long an attach takes; and what many instances, many volumes under
//! load, very large volumes, long links and data threads that look before they sleep need or bring; and what a trim costs
//! the other clients.
//!
//! `timeline` draws what a client notices while a replica fails and is replaced. `node` is an agent whose parts are
//! killed, `load` a client that times every answer, `watch` the volume's states as they come; one module a case;
//! `figures` keeps what was found.

mod attach;
mod catch_up;
mod cost;
mod fair;
mod figures;
mod large;
mod link;
mod load;
mod many;
mod nbd;
mod node;
mod pauses;
mod rebuild;
mod restart;
mod shards;
mod spin;
mod timeline;
mod trim;
mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

pub use figures::{Figure, Figures, Unit};

use crate::case::PREFILL;
use crate::fio::{self, Target};
use crate::leg::TARGET_NBD;
use crate::machine::{Machine, Ticks};
use crate::targets;
use node::{Node, Volume};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// A replica that was away for ten seconds gets what it missed
    CatchUp,
    /// A replica of which nothing is known gets everything
    Rebuild,
    /// Replicas are killed, stopped and replaced under load
    Pauses,
    /// The engine is killed
    Restart,
    /// Writes with the maps and before there were any
    Cost,
    /// A volume is attached; its record goes away
    Attach,
    /// A node with many instances
    Many,
    /// 200 volumes under load at once
    Fair,
    /// A volume of 16 TiB beside one of 1 GiB
    Large,
    /// Replicas behind links with a delay, and of 1 and 10 Gbit/s; needs root, ip and tc
    Link,
    /// Two clients on one volume, and on a volume each
    Shards,
    /// Data threads that look before they sleep, and such that do not
    Spin,
    /// One client trims a range in many pieces while another reads and writes
    Trim,
}

/// In the order in which they run.
pub const CASES: [Case; 13] = [
    Case::CatchUp,
    Case::Rebuild,
    Case::Pauses,
    Case::Restart,
    Case::Cost,
    Case::Attach,
    Case::Many,
    Case::Fair,
    Case::Large,
    Case::Link,
    Case::Shards,
    Case::Spin,
    Case::Trim,
];

/// What is to be measured, and with what.
#[derive(Debug)]
pub struct Plan {
    /// These, in this order.
    pub cases: Vec<Case>,
    /// Of each case.
    pub rounds: u64,
    /// Small and short: does it all work, not how fast it is.
    pub quick: bool,
    /// For data: a real disk.
    pub data_dir: PathBuf,
    /// For sockets: a short path.
    pub socket_dir: PathBuf,
    /// The `holdfast` to measure.
    pub holdfast: PathBuf,
    /// One from before the maps, to compare with.
    pub before: Option<PathBuf>,
}

impl Plan {
    /// `full`, or a small part of it.
    fn sized(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }
    fn node(&self, name: &str) -> Result<Node> {
        self.node_of(name, &self.holdfast)
    }
    fn node_of(&self, name: &str, binary: &Path) -> Result<Node> {
        Node::start(binary, &self.data_dir.join(name), &self.socket_dir.join(name), Vec::new())
    }
    /// One whose agent has more flags.
    fn node_with(&self, name: &str, arguments: Vec<String>) -> Result<Node> {
        Node::start(&self.holdfast, &self.data_dir.join(name), &self.socket_dir.join(name), arguments)
    }
}

/// Everything that was found.
#[derive(Debug)]
pub struct Results {
    machine: Machine,
    /// The share of the processors that the hypervisor gave to others meanwhile.
    stolen: f64,
    figures: Figures,
}

/// Runs `plan`; what is found goes to standard error as it comes.
///
/// # Errors
/// When something does not recover: that is no figure, but a fault.
pub fn run(plan: &Plan) -> Result<Results> {
    let machine = Machine::observe(&plan.data_dir, &plan.holdfast);
    let mut figures = Figures::default();
    let ticks = Ticks::now();
    for case in &plan.cases {
        let run = match case {
            Case::CatchUp => catch_up::run,
            Case::Rebuild => rebuild::run,
            Case::Pauses => pauses::run,
            Case::Restart => restart::run,
            Case::Cost => cost::run,
            Case::Attach => attach::run,
            Case::Many => many::run,
            Case::Fair => fair::run,
            Case::Large => large::run,
            Case::Link => link::run,
            Case::Shards => shards::run,
            Case::Spin => spin::run,
            Case::Trim => trim::run,
        };
        run(plan, &mut figures).with_context(|| format!("{case:?}"))?;
    }
    Ok(Results { machine, stolen: Ticks::now().stolen_since(ticks), figures })
}

impl Results {
    /// In Markdown.
    #[must_use]
    pub fn tables(&self) -> String {
        let judged = targets::of_figures(self.figures.all());
        let mut text = format!(
            "{}\nTaken by the hypervisor for others: {:.0} % of the processors\n\n{}",
            self.machine.describe(),
            self.stolen * 100.0,
            self.figures.tables()
        );
        if judged.iter().any(|goal| goal.verdict != targets::Verdict::NotMeasured) {
            text.push_str(&format!("{}\n", targets::table(&judged)));
        }
        text
    }

    /// Writes all values to `path`, and pictures beside it; which files these are.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, plan: &Plan, path: &Path) -> Result<Vec<PathBuf>> {
        let all: Value = json!({
            "schema": 1,
            "machine": self.machine,
            "stolen": self.stolen,
            "plan": { "rounds": plan.rounds, "quick": plan.quick },
            "load_after": std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
            "figures": self.figures.all(),
            "targets": targets::of_figures(self.figures.all()),
        });
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
        }
        let text = serde_json::to_vec_pretty(&all).context("failed to format the results")?;
        let mut written = Vec::new();
        let mut write = |path: PathBuf, text: &[u8]| {
            std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
            written.push(path);
            Ok::<(), anyhow::Error>(())
        };
        write(path.to_owned(), &text)?;
        let stem = path.file_stem().map_or_else(String::new, |stem| stem.display().to_string());
        for (name, svg) in self.figures.pictures() {
            write(path.with_file_name(format!("{stem}-{name}.svg")), svg.as_bytes())?;
        }
        Ok(written)
    }
}

const MIB: u64 = 1 << 20;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What a case is about, without an event: time that is let pass.
fn let_pass(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn nbd(volume: &Volume) -> Result<Target> {
    Ok(Target { text: TARGET_NBD, variable: ("HF_URI", volume.uri()?.to_owned()), read_only: false })
}

/// Writes the first `size_mib` of a volume, and waits until all of it is on the disk: what is measured next does not pay
/// for it.
fn prefill(node: &Node, volume: &Volume, size_mib: u64) -> Result<()> {
    eprintln!("filling {size_mib} MiB of {}", volume.name);
    fio::run(&nbd(volume)?, PREFILL, size_mib, 1, node.scratch())?;
    nix::unistd::sync();
    Ok(())
}
