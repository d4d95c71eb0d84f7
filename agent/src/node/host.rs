//! What the kernel tells of this node: room and errors of file systems, and how long tasks wait.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use holdfast_proto::pb::agent as pb;

use crate::error::Error;

/// Room of the file system that `path` is on, and the errors it has counted.
///
/// # Errors
/// When it cannot be asked.
pub(super) fn disk(path: &Path) -> Result<pb::DiskInfo, Error> {
    let stat = rustix::fs::statvfs(path).map_err(|e| Error::io("stat", path)(e.into()))?;
    Ok(pb::DiskInfo {
        path: path.to_string_lossy().into_owned(),
        capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        errors: device(path).and_then(file_system_errors),
        faulted_replicas: 0,
        last_error: None,
        reserved_bytes: 0,
    })
}

/// The device that `path` is on.
pub(super) fn device(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.dev())
}

/// What ext4 keeps in its superblock; other file systems have no such count.
fn file_system_errors(device: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let count = Path::new("/sys/fs/ext4").join(link.file_name()?).join("errors_count");
    std::fs::read_to_string(count).ok()?.trim().parse().ok()
}

/// How long tasks wait for the processor, memory and disks; none where the kernel does not tell.
pub(super) fn pressure() -> Option<pb::PressureInfo> {
    let of = |what: &str| some_avg10(&std::fs::read_to_string(format!("/proc/pressure/{what}")).ok()?);
    let (cpu, memory, io) = (of("cpu"), of("memory"), of("io"));
    (cpu.is_some() || memory.is_some() || io.is_some()).then_some(pb::PressureInfo { cpu, memory, io })
}

/// `some avg10=0.04 avg60=...`: the share of the last ten seconds, in percent.
fn some_avg10(text: &str) -> Option<f32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    average.parse().ok().filter(|percent: &f32| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_ten_seconds_is_read_and_nothing_else_is_believed() {
        let text = "some avg10=12.50 avg60=3.81 avg300=6.18 total=3480179502\nfull avg10=99.00 avg60=0 avg300=0 total=1\n";
        assert_eq!(some_avg10(text), Some(12.5));
        for bad in ["", "full avg10=1.00\n", "some avg60=1.00\n", "some avg10=many\n", "some avg10=NaN\n"] {
            assert_eq!(some_avg10(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_directory_is_on_a_disk_with_room() {
        let tmp = tempfile::tempdir().unwrap();
        let disk = disk(tmp.path()).unwrap();
        assert!(disk.capacity_bytes >= disk.available_bytes && disk.capacity_bytes > 0, "{disk:?}");
        assert!(super::disk(&tmp.path().join("gone")).is_err());
    }
}
