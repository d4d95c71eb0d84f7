//! On what, and with which versions, the figures were taken. Best effort: what cannot be found says so.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{major, minor};
use serde::Serialize;

use crate::process;

/// The machine and its software.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// `MemTotal`.
    pub memory: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// Type and options of the file system with the data.
    pub file_system: String,
    /// The disk under it, and its largest request: where a virtual disk is a file in its host's page cache, what was first
    /// written in large requests may take small writes at a third of the rate.
    pub disk: String,
    /// Load averages before anything was started: anything but idle makes the figures worth less.
    pub load_before: String,
    /// Of fio.
    pub fio: String,
    /// Of qemu-nbd.
    pub qemu: String,
    /// Of the holdfast that is measured.
    pub holdfast: String,
    /// Of the sources.
    pub commit: String,
}

impl Machine {
    /// Looks around.
    #[must_use]
    pub fn observe(data_dir: &Path, holdfast: &Path) -> Self {
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory: field("/proc/meminfo", "MemTotal"),
            kernel: whole("/proc/sys/kernel/osrelease"),
            file_system: file_system(&whole("/proc/self/mounts"), data_dir),
            disk: disk(data_dir).unwrap_or_else(|| "not known".to_owned()),
            load_before: whole("/proc/loadavg"),
            fio: said(Command::new("fio").arg("--version")),
            qemu: said(Command::new("qemu-nbd").arg("--version")),
            holdfast: said(Command::new(holdfast).arg("--version")),
            commit: said(Command::new("git").args(["describe", "--always", "--dirty"])),
        }
    }
}

impl Machine {
    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "Machine: {} x{}, {}, Linux {}, data on {}\nDisk: {}\nVersions: {}; {}; sources {}\nLoad before: {}",
            self.processor,
            self.processors,
            self.memory,
            self.kernel,
            self.file_system,
            self.disk,
            self.holdfast,
            self.fio,
            self.commit,
            self.load_before,
        )
    }
}

/// Time of all processors so far, in ticks: all of it, and what the hypervisor gave to others while it was wanted here.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// As of now; nothing where the system does not tell.
    #[must_use]
    pub fn now() -> Self {
        Self::parse(&whole("/proc/stat"))
    }

    fn parse(stat: &str) -> Self {
        let first = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; the two for guests are in user and nice already.
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).map_while(|word| word.parse().ok()).collect();
        Self { all: ticks.iter().sum(), stolen: ticks.get(7).copied().unwrap_or_default() }
    }

    /// The share of all processors that was taken away since then, 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures of a benchmark")]
    pub fn stolen_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }
}

fn whole(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

fn field(path: &str, name: &str) -> String {
    let text = whole(path);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    value.map_or_else(|| "not known".to_owned(), |(_, value)| value.trim().to_owned())
}

fn said(command: &mut Command) -> String {
    let line = process::output(command).map(|text| text.lines().next().unwrap_or_default().to_owned());
    line.unwrap_or_else(|error| format!("not known ({error})"))
}

/// The mount with the longest path above `dir`.
fn file_system(mounts: &str, dir: &Path) -> String {
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?, words.next()?, words.next()?))
    });
    let best = fields.filter(|(point, _, _)| dir.starts_with(point)).max_by_key(|(point, _, _)| point.len());
    best.map_or_else(|| "not known".to_owned(), |(_, kind, options)| format!("{kind} ({options})"))
}

/// The block device that `dir` is on, by the kernel's name for it. None: it is on none, as in memory or over the network.
fn disk(dir: &Path) -> Option<String> {
    let device = std::fs::metadata(dir).ok()?.dev();
    let path = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    requests_of(&Path::new(&path).canonicalize().ok()?)
}

/// Of a disk or a partition in sysfs.
fn requests_of(device: &Path) -> Option<String> {
    // A partition has no queue of its own.
    let whole_disk = device.ancestors().take(2).find(|at| at.join("queue").is_dir())?;
    let kib = std::fs::read_to_string(whole_disk.join("queue/max_sectors_kb")).ok()?;
    Some(format!("{}, requests of at most {} KiB", whole_disk.file_name()?.to_string_lossy(), kib.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_the_requests_of_its_disk() {
        let sysfs = tempfile::tempdir().unwrap();
        let disk = sysfs.path().join("vdb");
        std::fs::create_dir_all(disk.join("queue")).unwrap();
        std::fs::create_dir_all(disk.join("vdb1")).unwrap();
        std::fs::write(disk.join("queue/max_sectors_kb"), "1280\n").unwrap();
        let said = Some("vdb, requests of at most 1280 KiB".to_owned());
        assert_eq!(requests_of(&disk), said);
        assert_eq!(requests_of(&disk.join("vdb1")), said);
    }

    #[test]
    fn what_is_on_no_disk_has_none() {
        assert_eq!(disk(Path::new("/proc")), None);
        assert_eq!(disk(Path::new("/nowhere")), None);
    }

    #[test]
    fn stolen_time_is_a_share_of_all_processors() {
        let before = Ticks::parse("cpu  100 0 100 700 0 0 0 100 0 0\ncpu0 1 2 3");
        let after = Ticks::parse("cpu  150 0 130 800 0 0 0 120 9 9");
        assert!((after.stolen_since(before) - 0.1).abs() < 1e-9);
        assert!(Ticks::parse("").stolen_since(before) < 1e-9);
    }

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw,nosuid 0 0\n/dev/b /tmp2 xfs rw 0 0";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")), "tmpfs (rw,nosuid)");
        assert_eq!(file_system(mounts, Path::new("/home/x")), "ext4 (rw)");
        assert_eq!(file_system("", Path::new("/home/x")), "not known");
    }
}
