//! What several data threads for one volume could bring: a load of two clients on one volume, and the same two clients
//! on a volume each. The second is what shards of one volume would be at best: engines and replicas with a data thread
//! for each half, without anything that keeps the halves one volume.

use anyhow::{Result, ensure};

use super::fair::{jobs, rates};
use super::{Figures, Plan, Unit, prefill};
use crate::fio;

const CASE: &str = "shards";
const SIZE_MIB: u64 = 256;
const SECONDS: u64 = 5;
const JOBS: [(&str, &str); 4] = [
    ("randwrite 4k, 2 x qd1", "rw=randwrite\nbs=4k\niodepth=1"),
    ("randwrite 4k, 2 x qd32", "rw=randwrite\nbs=4k\niodepth=32"),
    ("randread 4k, 2 x qd32", "rw=randread\nbs=4k\niodepth=32"),
    ("write 128k, 2 x qd8", "rw=write\nbs=128k\niodepth=8"),
];

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let size = plan.sized(SIZE_MIB, 16);
    for round in 0..plan.rounds {
        for replicas in [1, 3] {
            let mut node = plan.node(&format!("shards-{round}-{replicas}"))?;
            let mut uris = Vec::new();
            for name in ["a", "b"] {
                let volume = node.create(name, size, replicas)?;
                prefill(&node, &volume, size)?;
                uris.push(volume.uri()?.to_owned());
            }
            let shared = vec![uris[0].clone(); 2];
            for (what, job) in JOBS {
                let mut all = Vec::new();
                for (volumes, uris) in [("one volume", &shared), ("two volumes", &uris)] {
                    nix::unistd::sync();
                    let said = fio::run_jobs(&jobs(uris, size, job, plan.sized(SECONDS, 1)), node.scratch())?;
                    let rates = rates(&said)?;
                    ensure!(rates.len() == 2, "fio tells of {} jobs of 2", rates.len());
                    let rate: f64 = rates.iter().sum();
                    let say = format!("{replicas} replicas, {what}: {volumes}");
                    figures.note(CASE, say, Unit::Iops, rate);
                    all.push(rate);
                }
                if let [one, two] = all[..] {
                    let say = format!("{replicas} replicas, {what}: two volumes / one");
                    figures.note(CASE, say, Unit::Ratio, two / one);
                }
            }
            node.kill_everything()?;
            node.remove_data()?;
        }
    }
    Ok(())
}
