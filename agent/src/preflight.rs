//! What must be true before a node starts, each with the one message that a person needs when it is not.
//!
//! These are courtesies: whatever they do not see still fails later, with a poorer message. Nothing here changes
//! data; at most it makes the directories that the agent needs anyway.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use holdfast_dataplane::private_file::check_directory;
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::complaint::Complaint;
use crate::config::AgentConfig;
use crate::runtime_dir;
use crate::units::format_size;

/// Below this much room an agent could not even keep its records and a copy of its binary.
const ROOM_BYTES_MIN: u64 = 128 << 20;

/// Checks everything; the answer is a list of warnings that do not stop the start.
///
/// # Errors
/// The first thing that would stop the node from working, with its remedy.
pub fn check<E: Display>(
    config: &AgentConfig,
    probe_io_uring: impl FnOnce() -> Result<String, E>,
) -> Result<Vec<String>, Complaint> {
    io_uring(probe_io_uring())?;
    let fresh = data_dir(&config.data_dir)?;
    room(&config.data_dir)?;
    executable(&config.bin_dir)?;
    runtime_dir::prepare(&config.runtime_dir)?;
    let mut warnings = Vec::new();
    match ports(config.bind, &config.data_ports) {
        Ok(()) => {}
        // Replicas that outlived their agent may well hold every port of a small range.
        Err(problem) if !fresh => warnings.push(problem.message),
        Err(problem) => return Err(problem),
    }
    if config.runtime_dir.starts_with(&config.data_dir) {
        warnings.push("sockets stand in the data directory: a backup of it will meet them".to_owned());
    }
    Ok(warnings)
}

fn io_uring<E: Display>(probed: Result<String, E>) -> Result<(), Complaint> {
    match probed {
        Ok(features) => {
            tracing::debug!(%features, "io_uring is there");
            Ok(())
        }
        Err(error) => Err(Complaint::failed(format!("io_uring cannot be used here: {error}")).remedy(
            "allow it: `sysctl kernel.io_uring_disabled=0`; in a container, a seccomp profile with io_uring_setup, \
             io_uring_enter and io_uring_register (docker: --security-opt seccomp=PROFILE)",
        )),
    }
}

/// Makes it (0700: volumes hold other people's data) where it is missing and writes to it. Whether it holds nothing yet.
fn data_dir(dir: &Path) -> Result<bool, Complaint> {
    let failed = |what: &str, error: &io::Error| {
        let message = format!("failed to {what} {}: {error}", dir.display());
        Complaint::failed(message).remedy(match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "run as its owner or as root, or choose another directory with --data-dir"
            }
            io::ErrorKind::StorageFull => {
                "free some room on its file system, or choose another with --data-dir"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount its file system writable, or choose another with --data-dir"
            }
            _ => "choose another directory with --data-dir",
        })
    };
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(|error| failed("make the data directory", &error))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(error) => return Err(failed("make the data directory", &error)),
    }
    check_directory(dir).map_err(|error| {
        let message = format!("the data directory {} cannot be trusted: {error}", dir.display());
        Complaint::failed(message).remedy("run as its owner, or choose another directory with --data-dir")
    })?;
    let mut entries = fs::read_dir(dir).map_err(|error| failed("read the data directory", &error))?;
    let fresh = entries.next().is_none();
    tempfile::Builder::new()
        .prefix(".write-test-")
        .tempfile_in(dir)
        .and_then(|mut file| file.write_all(&[0; 4096]))
        .map_err(|error| failed("write to the data directory", &error))?;
    Ok(fresh)
}

fn room(dir: &Path) -> Result<(), Complaint> {
    let Ok(found) = statvfs(dir) else {
        // The write above has worked; a file system that cannot say how full it is does not stop us.
        return Ok(());
    };
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    if free >= ROOM_BYTES_MIN {
        return Ok(());
    }
    let message = format!(
        "the file system of {} has {} left; the agent needs {} for records and binaries alone",
        dir.display(),
        format_size(free),
        format_size(ROOM_BYTES_MIN)
    );
    Err(Complaint::failed(message).remedy("free some room, or choose another directory with --data-dir"))
}

fn executable(bin_dir: &Path) -> Result<(), Complaint> {
    let existing = bin_dir.ancestors().find(|path| path.exists()).unwrap_or(bin_dir);
    let Ok(found) = statvfs(existing) else { return Ok(()) };
    if !found.flags().contains(FsFlags::ST_NOEXEC) {
        return Ok(());
    }
    let message =
        format!("{} is on a file system mounted noexec, and instances are run from there", bin_dir.display());
    Err(Complaint::failed(message).remedy("name a directory that may hold programs with --bin-dir"))
}

/// The address is this node's, and at least one port of the range is free.
fn ports(bind: IpAddr, range: &RangeInclusive<u16>) -> Result<(), Complaint> {
    let mut in_use = 0usize;
    for port in range.clone() {
        match TcpListener::bind(SocketAddr::new(bind, port)) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => in_use += 1,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let message = format!("failed to listen on port {port} of {bind}: {error}");
                return Err(Complaint::failed(message).remedy("use ports from 1024 with --data-ports"));
            }
            Err(error) => {
                let message = format!("failed to listen on {bind}: {error}");
                return Err(Complaint::failed(message)
                    .remedy("name an address of this machine with --bind (see `ip address`)"));
            }
        }
    }
    let message = format!("all {in_use} ports {}-{} of {bind} are in use", range.start(), range.end());
    Err(Complaint::failed(message).remedy("name a range with free ports with --data-ports"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_io_uring_names_sysctl_and_seccomp() {
        let error = io_uring(Err("EPERM")).unwrap_err().to_string();
        assert!(error.contains("EPERM"), "{error}");
        assert!(error.contains("kernel.io_uring_disabled") && error.contains("seccomp"), "{error}");
        assert!(io_uring(Ok::<_, String>("linux 6.1".to_owned())).is_ok());
    }

    #[test]
    fn a_range_in_use_is_said_with_its_remedy() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let error = ports(loopback, &(port..=port)).unwrap_err().to_string();
        assert!(error.contains(&format!("{port}-{port}")) && error.contains("--data-ports"), "{error}");
        drop(held);
        ports(loopback, &(port..=port)).unwrap();
    }

    #[test]
    fn a_foreign_address_is_said_with_its_remedy() {
        let error = ports(IpAddr::from([192, 0, 2, 1]), &(20000..=20001)).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1") && error.contains("--bind"), "{error}");
    }

    #[test]
    fn a_data_directory_is_made_and_tried() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a/b");
        assert!(data_dir(&dir).unwrap());
        fs::write(dir.join("x"), "x").unwrap();
        assert!(!data_dir(&dir).unwrap());
        let error = data_dir(&dir.join("x")).unwrap_err().to_string();
        assert!(error.contains("failed to make") && error.contains("--data-dir"), "{error}");
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let error = data_dir(&dir).unwrap_err().to_string();
        assert!(error.contains("mode 777") && error.contains("chmod go-w"), "{error}");
    }
}
