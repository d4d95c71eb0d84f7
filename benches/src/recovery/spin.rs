//! What looking before sleeping brings and costs: the same jobs with `--spin off` and `auto` in turns, on a machine of
//! their own and beside programs that want every processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};

use super::many::sum;
use super::node::Volume;
use super::{Figures, Plan, Unit, let_pass, nbd, prefill};
use crate::case;
use crate::cpu::used_us;
use crate::fio;

const CASE: &str = "spin";
const SIZE_MIB: u64 = 512;
const SECONDS: u64 = 4;
const IDLE_FOR: Duration = Duration::from_secs(10);
const MODES: [&str; 2] = ["off", "auto"];
const JOBS: [&str; 5] =
    ["randwrite-4k-qd1", "randread-4k-qd1", "writeflush-4k-qd1", "randwrite-4k-qd32", "randread-4k-qd32"];

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let size = plan.sized(SIZE_MIB, 64);
    let cases = case::select(&JOBS.map(str::to_owned)).map_err(Error::msg)?;
    for round in 0..plan.rounds {
        // Of two volumes the first is a little quicker, whatever its mode.
        let turn = usize::from(round % 2 == 1);
        let mut modes = MODES;
        modes.rotate_left(turn);
        for replicas in [1, 3] {
            let mut nodes = Vec::new();
            for mode in modes {
                let arguments = vec!["--spin".to_owned(), mode.to_owned()];
                let node = plan.node_with(&format!("spin-{round}-{replicas}-{mode}"), arguments)?;
                let volume = node.create("v", size, replicas)?;
                prefill(&node, &volume, size)?;
                nodes.push((mode, node, volume));
            }
            for crowded in [false, true] {
                let _hogs = crowded.then(Hogs::start);
                let beside = if crowded { ", beside busy programs" } else { "" };
                for case in &cases {
                    let job = case.name;
                    let mut rates = Vec::new();
                    for (mode, node, volume) in &nodes {
                        nix::unistd::sync();
                        let pids = pids(volume)?;
                        let before = sum(&pids, used_us)?;
                        let seconds = plan.sized(SECONDS, 1);
                        let said = fio::run(&nbd(volume)?, case.job, size, seconds, node.scratch())?;
                        let outcome = fio::outcome(&said, case.direction)?;
                        let cpu = (sum(&pids, used_us)? - before) / outcome.ios;
                        let say = |what: &str| format!("{replicas} replicas, {job}{beside}, {mode}: {what}");
                        figures.note(CASE, say("rate"), Unit::Iops, outcome.iops);
                        figures.note(CASE, say("p50"), Unit::Us, outcome.p50_us);
                        figures.note(CASE, say("p99"), Unit::Us, outcome.p99_us);
                        figures.note(CASE, say("processor time of engine and replicas"), Unit::Us, cpu);
                        rates.push(outcome.iops);
                    }
                    rates.rotate_left(turn);
                    if let [off, auto] = rates[..] {
                        let say = format!("{replicas} replicas, {job}{beside}: rate of auto / off");
                        figures.note(CASE, say, Unit::Ratio, auto / off);
                    }
                }
            }
            for (mode, node, volume) in &mut nodes {
                let (pids, begin) = (pids(volume)?, Instant::now());
                let before = sum(&pids, used_us)?;
                let_pass(if plan.quick { IDLE_FOR / 10 } else { IDLE_FOR });
                let percent = (sum(&pids, used_us)? - before) / begin.elapsed().as_secs_f64() / 1e4;
                let say = format!("{replicas} replicas, idle, {mode}: all instances, of a core");
                figures.note(CASE, say, Unit::Percent, percent);
                node.kill_everything()?;
                node.remove_data()?;
            }
        }
    }
    Ok(())
}

fn pids(volume: &Volume) -> Result<Vec<i32>> {
    let mut pids = vec![volume.engine_pid()?];
    pids.extend(volume.replicas.iter().filter_map(|replica| replica.pid));
    Ok(pids)
}

/// One thread for each processor that never sleeps; they end with this value.
struct Hogs {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hogs {
    fn start() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let hog = |_| {
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..count).map(hog).collect();
        Self { ended, threads }
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}
