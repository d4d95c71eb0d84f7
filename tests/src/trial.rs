//! One volume on trial: clients that tell a history, faults under them, and the verdict.

mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{AgentOptions, Cluster};
use crate::faults::proxy::{ADVERTISED, late};
use crate::faults::{Fault, FaultyDisk, Network, Planned, Trouble, WallClock, Weather, disk};
use crate::history::{CellAt, Entry, Log, Value, check};
use crate::image;
use crate::process::{Signal, kill, signal};
use crate::rng::Rng;
use crate::view::Volume;
use crate::wait::{SECOND, check as holds, eventually};
use crate::workload::{self, Load, Tally};

/// Clients at once.
const CLIENTS: u64 = 4;
/// Short, so that faults go beyond it.
pub const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);

/// What the volume stands on.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    /// Copies.
    pub replicas: u64,
    /// Each on a disk of our own, which can fail.
    pub disks: bool,
    /// The wall clock can jump.
    pub clock: bool,
    /// How the agent is started.
    pub settings: &'static [&'static str],
}

const SETTINGS: [&str; 2] = ["--replica-timeout", "2s"];

impl Default for Stage {
    fn default() -> Self {
        Self { replicas: 3, disks: false, clock: false, settings: &SETTINGS }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Trial {
    /// Where it happens.
    pub cluster: Cluster,
    /// Between its engine and its replicas.
    pub network: Network,
    clock: Option<WallClock>,
    upgrades: u32,
    /// Random, and announced.
    pub rng: Rng,
    stage: Stage,
    log: Arc<Log>,
    uri: String,
    /// What the cells held at the beginning of the history.
    before: BTreeMap<CellAt, Value>,
    /// The number of the next client.
    next_client: u64,
    load: Option<Load>,
    tally: Tally,
    name: String,
}

impl Trial {
    /// A healthy volume `demo` under load.
    #[must_use]
    pub fn new(name: &str, stage: Stage) -> Self {
        Self::with_rng(name, stage, Rng::announced(name))
    }

    /// The same, with this source of chance.
    #[must_use]
    pub fn with_rng(name: &str, stage: Stage, rng: Rng) -> Self {
        let advertised = ADVERTISED.to_string();
        let mut cluster = Cluster::agent_not_started(AgentOptions::with(&[
            "--advertise",
            &advertised,
            "--suspend-timeout",
            "2m",
        ]));
        cluster.add_arguments(stage.settings);
        let network = Network::new(cluster.ports().data_port_range());
        let clock = stage.clock.then(|| WallClock::of(&mut cluster));
        cluster.start();
        cluster.create_attached("demo", workload::VOLUME_SIZE, u32::try_from(stage.replicas).expect("few"));
        if stage.disks {
            put_on_faulty_disks(&mut cluster);
        }
        let (log, uri) = (Log::new(cluster.root()), cluster.uri("demo"));
        let mut this = Self {
            cluster,
            network,
            clock,
            upgrades: 0,
            rng,
            stage,
            log,
            uri,
            before: BTreeMap::new(),
            next_client: 1,
            load: None,
            tally: Tally::default(),
            name: name.to_owned(),
        };
        this.start_load();
        this.go_on();
        this
    }

    fn start_load(&mut self) {
        assert!(self.load.is_none(), "there is load already");
        let load = Load::start(&self.uri, &self.log, CLIENTS, self.next_client, &mut self.rng);
        self.next_client += CLIENTS;
        self.load = Some(load);
    }
    /// The clients.
    ///
    /// # Panics
    /// When they were stopped.
    #[must_use]
    pub fn load(&self) -> &Load {
        self.load.as_ref().expect("the load runs")
    }
    /// Requires that I/O goes on now, whatever is broken.
    pub fn go_on(&self) {
        self.load().wait_done(200, 60 * SECOND);
    }
    /// The volume as the agent shows it.
    #[must_use]
    pub fn volume(&self) -> Volume {
        self.cluster.volume("demo")
    }
    /// Waits until all replicas are members.
    pub fn healthy(&self) -> Volume {
        self.cluster.wait_healthy("demo")
    }
    /// Waits until this replica is no member, not even a suspect one.
    pub fn left_out(&self, replica: u64) -> Volume {
        let id = format!("r{replica}");
        self.cluster.wait_volume("demo", &format!("{id} is left out"), |v| {
            let mode = v.replica(&id).mode();
            holds(mode != "member" && mode != "suspect", || format!("it is {mode}"))
        })
    }
    /// The wall clock of all its processes.
    ///
    /// # Panics
    /// When it is the system's.
    #[must_use]
    pub fn clock(&self) -> &WallClock {
        self.clock.as_ref().expect("the clock is ours")
    }
    /// The disk under this replica.
    #[must_use]
    pub fn disk(&self, replica: u64) -> &FaultyDisk {
        &self.cluster.faulty_disks()[usize::try_from(replica - 1).expect("few")]
    }
    /// The port that this replica listens on, where the agent knows it.
    #[must_use]
    pub fn port(volume: &Volume, replica: u64) -> Option<u16> {
        volume.replica(&format!("r{replica}")).address()?.rsplit_once(':')?.1.parse().ok()
    }
    fn pid(volume: &Volume, replica: u64) -> Option<i32> {
        volume.replica(&format!("r{replica}")).pid()
    }

    /// Does what is planned.
    pub fn meet(&mut self, planned: &Planned) {
        println!("{}: {planned}", self.name);
        if planned.fault.spares_one_cache() {
            self.healthy();
        }
        self.begin(planned.fault);
        late(planned.hold);
        self.undo();
        late(planned.rest);
        if planned.heal {
            self.healthy();
        }
    }

    /// Begins a fault. One that stops or kills what does not run at the moment does nothing.
    pub fn begin(&mut self, fault: Fault) {
        let volume = self.volume();
        let replica = |r: u64| Self::pid(&volume, r).into_iter();
        let all = 1..=self.stage.replicas;
        match fault {
            Fault::KillReplica(r) => replica(r).for_each(kill),
            Fault::KillTwoReplicas(a, b) => replica(a).chain(replica(b)).for_each(kill),
            Fault::KillEngine => volume.engine_pid().into_iter().for_each(kill),
            Fault::KillEngineAndReplica(r) => {
                volume.engine_pid().into_iter().chain(replica(r)).for_each(kill)
            }
            Fault::KillAgent => self.cluster.kill_agent(),
            Fault::KillAgentAndReplica(r) => {
                self.cluster.kill_agent();
                replica(r).for_each(kill);
            }
            Fault::KillEverything => self.kill_everything(),
            Fault::StopReplica(r) => replica(r).for_each(|pid| signal(pid, Signal::SIGSTOP)),
            Fault::StopEngine => volume.engine_pid().into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP)),
            Fault::StopAgent => signal(self.cluster.agent_pid(), Signal::SIGSTOP),
            Fault::Reset(r) => Self::port(&volume, r).into_iter().for_each(|port| self.network.reset(port)),
            Fault::CutFrame(r) => {
                Self::port(&volume, r).into_iter().for_each(|port| self.network.cut_in_a_frame(port));
            }
            Fault::Delay(r, ms) => self.weather(&volume, r..=r, late_by(ms)),
            Fault::DelayAll(ms) => self.weather(&volume, all, late_by(ms)),
            Fault::Deaf(r) => self.weather(&volume, r..=r, Weather { deaf: true, ..Weather::default() }),
            Fault::Mute(r) => self.weather(&volume, r..=r, Weather { mute: true, ..Weather::default() }),
            Fault::Partition(r) => self.weather(&volume, r..=r, silent()),
            Fault::PartitionAll => self.weather(&volume, all, silent()),
            Fault::SlowDisk(r, ms) => {
                self.disk(r).set(Trouble { slow: Duration::from_millis(ms), ..Trouble::default() });
            }
            Fault::FullDisk(r) => {
                self.disk(r).set(Trouble { write: Some(nix::libc::ENOSPC), ..Trouble::default() });
            }
            Fault::FailWrites(r) => {
                self.disk(r).set(Trouble { write: Some(nix::libc::EIO), ..Trouble::default() });
            }
            Fault::FailReads(r) => {
                self.disk(r).set(Trouble { read: Some(nix::libc::EIO), ..Trouble::default() });
            }
            Fault::FailSyncs(r) => {
                self.disk(r).set(Trouble { sync: Some(nix::libc::EIO), ..Trouble::default() });
            }
            Fault::PowerCut => self.power_cut(),
            Fault::Reboot(r) => self.reboot(&[r]),
            Fault::RebootTwo(a, b) => {
                self.reboot(&[a]);
                self.reboot(&[b]);
            }
            Fault::Upgrade => self.upgrade(),
        }
    }

    fn weather(&self, volume: &Volume, replicas: std::ops::RangeInclusive<u64>, weather: Weather) {
        for port in replicas.filter_map(|r| Self::port(volume, r)) {
            self.network.set(port, weather);
        }
    }

    /// Ends every fault that lasts.
    pub fn undo(&mut self) {
        self.network.heal();
        for disk in self.cluster.faulty_disks() {
            disk.set(Trouble::default());
        }
        for process in crate::process::processes_of(self.cluster.root()) {
            signal(process.pid, Signal::SIGCONT);
        }
        if !self.cluster.agent_runs() {
            self.cluster.start();
        }
    }

    fn kill_everything(&mut self) {
        self.cluster.kill_agent();
        for process in self.cluster.instance_processes() {
            kill(process.pid);
        }
        self.cluster.wait_no_instances();
    }

    /// The node loses its power: every process at once, and any part of what no disk had synced. It comes back with
    /// another boot id.
    ///
    /// # Panics
    /// When the disks are not ours.
    pub fn power_cut(&mut self) {
        assert!(self.stage.disks, "only disks of our own can lose what was not synced");
        self.kill_everything();
        self.stop_load();
        self.log.power_cut();
        for disk in self.cluster.faulty_disks() {
            let lost = disk.power_cut(&mut self.rng);
            println!("{}: a disk lost {lost} sectors", self.name);
        }
        new_boot_id(&self.cluster);
        self.cluster.start();
        self.start_load();
    }

    fn stop_load(&mut self) {
        let tally = self.load.take().expect("the load runs").finish();
        self.tally = self.tally.plus(tally);
    }

    /// Ends all faults, waits for a healthy volume, stops the load, and reaches the verdict: the history was possible,
    /// and all copies are equal and hold what it ended with. A new history begins.
    ///
    /// # Panics
    /// When it was not.
    pub fn verdict(&mut self) -> Tally {
        self.undo();
        self.go_on();
        self.healthy();
        self.stop_load();
        let mut recorder = self.log.recorder(self.next_client);
        self.next_client += 1;
        let last = workload::read_everything(&self.uri, &mut recorder)
            .unwrap_or_else(|e| panic!("cannot read a healthy volume: {e}"));
        drop(recorder);
        let entries = self.log.take();
        let before = std::mem::replace(&mut self.before, last);
        self.judge(&before, &entries);
        self.cluster.connect("demo").flush().expect("a healthy volume flushes");
        let images = self.volume().images();
        eventually(60 * SECOND, "the images are equal", || image::equal(&images));
        for path in &images {
            let held = workload::read_image(path).expect("an image can be read");
            assert_eq!(held, self.before, "{} holds other than what clients read last", path.display());
        }
        println!("{}: {} entries; {:?}", self.name, entries.len(), self.tally);
        self.tally
    }

    fn judge(&self, before: &BTreeMap<CellAt, Value>, entries: &[Entry]) {
        let Err(wrong) = check(before, entries) else { return };
        let kept = std::env::temp_dir().join(format!("holdfast-history-{}", std::process::id()));
        std::fs::create_dir_all(&kept).expect("a directory for the history");
        let lines: Vec<String> = entries.iter().enumerate().map(|(i, e)| format!("{i} {e:?}")).collect();
        std::fs::write(kept.join("entries"), lines.join("\n")).expect("the history can be kept");
        for violation in wrong.iter().take(5) {
            eprintln!("{violation}");
        }
        panic!(
            "{} cells behaved as no register does; the history is kept in {}",
            wrong.len(),
            kept.display()
        );
    }

    /// [`Self::verdict`], and the load again.
    pub fn verdict_and_on(&mut self) -> Tally {
        let tally = self.verdict();
        self.start_load();
        tally
    }
}

fn boot_id_file(cluster: &Cluster) -> PathBuf {
    cluster.root().join("boot-id")
}

/// Written in place: a mount keeps to its file.
fn new_boot_id(cluster: &Cluster) {
    std::fs::write(boot_id_file(cluster), format!("{}\n", uuid::Uuid::new_v4()))
        .expect("the boot id can be written");
}

fn late_by(ms: u64) -> Weather {
    Weather { delay_max: Duration::from_millis(ms), ..Weather::default() }
}

fn silent() -> Weather {
    Weather { deaf: true, mute: true, ..Weather::default() }
}

/// Whether disks of our own, and boot ids of our own, are possible here.
#[must_use]
pub fn disks_possible() -> bool {
    disk::possible() && mounts_possible()
}

/// Whether the agent can be shown mounts that nobody else sees.
#[must_use]
pub fn mounts_possible() -> bool {
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--mount", "true"]);
    unshare.status().is_ok_and(|status| status.success())
}

fn put_on_faulty_disks(cluster: &mut Cluster) {
    cluster.detach("demo");
    let replicas = cluster.volume("demo").replicas();
    assert!(cluster.end_agent(Signal::SIGTERM).success(), "the agent ended badly");
    for replica in replicas {
        let backing = cluster.root().join(format!("backing-{}", replica.id()));
        let disk = FaultyDisk::over(&replica.data_dir(), &backing);
        disk.volatile();
        cluster.keep_faulty_disk(disk);
    }
    // The agent's own mounts are a copy of ours from its start on: the disks are there by then.
    new_boot_id(cluster);
    cluster.show(boot_id_file(cluster), "/proc/sys/kernel/random/boot_id");
    cluster.start();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
}
