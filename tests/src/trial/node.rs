//! What happens to nodes: one restarts, its agent is replaced by a newer one.

use std::path::Path;
use std::process::Command;

use holdfast_dataplane::layout::meta::Meta;
use holdfast_proto::ids::BootId;

use super::Trial;
use crate::process::{Process, Signal, holdfast, kill, run, signal};
use crate::records;
use crate::wait::{SECOND, check, eventually};

impl Trial {
    /// The nodes of these replicas lose their power and come back, while the engine's stays up: their processes end,
    /// any part of what their disks had not synced is gone, and they find another boot id. All replicas of a volume
    /// are on one node with one boot id today, so that of these is another one in their `meta`, and on the network in
    /// their handshakes.
    ///
    /// # Panics
    /// When the disks are not ours.
    pub fn reboot(&mut self, replicas: &[u64]) {
        assert!(self.stage.disks, "only disks of our own can lose what was not synced");
        let volume = self.volume();
        let (_, key) = records::key(&self.cluster.data_dir(), &volume);
        // Nobody starts them again before their disks have lost what they lose.
        signal(self.cluster.agent_pid(), Signal::SIGSTOP);
        let pids: Vec<i32> = replicas.iter().filter_map(|r| Self::pid(&volume, *r)).collect();
        pids.iter().copied().for_each(kill);
        eventually(20 * SECOND, "they are gone", || {
            check(pids.iter().all(|pid| Process::find(*pid).is_none()), || format!("{pids:?}"))
        });
        for &r in replicas {
            let index = usize::try_from(r - 1).expect("few");
            let disk = &self.cluster.faulty_disks()[index];
            let lost = disk.power_cut(&mut self.rng);
            println!("{}: the disk of r{r} lost {lost} sectors", self.name);
            opened_in_another_boot(disk.backing());
            if let Some(port) = Self::port(&volume, r) {
                self.network.reboot(port, key);
            }
        }
        signal(self.cluster.agent_pid(), Signal::SIGCONT);
    }

    /// The agent is killed, and one of another build takes its place.
    ///
    /// # Panics
    /// When the build cannot be made.
    pub fn upgrade(&mut self) {
        self.upgrades += 1;
        let newer = self.cluster.root().join(format!("holdfast-{}", self.upgrades));
        // The same program under another digest: bytes behind the end of an ELF file are not part of it. Written by
        // another process: a program that somebody has open for writing cannot be run, and tests fork all the time.
        let mut copy = Command::new("sh");
        copy.args(["-c", "cp \"$0\" \"$1\" && echo \"$1\" >> \"$1\""]).arg(holdfast()).arg(&newer);
        let _ = run(copy, 60 * SECOND).ok();
        self.cluster.kill_agent();
        self.cluster.use_binary(newer);
        self.cluster.start();
    }
}

/// Whoever opens this replica's directory next finds that the last one did so in another boot of its node.
fn opened_in_another_boot(data_dir: &Path) {
    let path = data_dir.join("meta");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let meta = Meta::decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    std::fs::write(&path, Meta { boot: BootId::random(), ..meta }.encode())
        .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
