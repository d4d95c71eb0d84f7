//! What `/proc` and locks tell about processes.

use std::fs::TryLockError;
use std::io;
use std::path::Path;
use std::time::Duration;

use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::ids::BootId;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::error::Error;
use crate::metrics::ProcessUse;
use crate::store::instances::ProcessId;

/// Whether an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Its lock is held.
    Held,
    /// Nobody holds its lock: no process of it exists.
    Free,
}

/// Looks at an instance's lock without keeping it.
///
/// Taking it for a moment can make an instance that is just starting fail to get it; so this is done only before a
/// spawn and for an instance that cannot be asked, never while a child of ours is known to start.
///
/// # Errors
/// When the lock cannot be looked at: then nothing is known.
pub fn probe(lock: &Path) -> Result<Life, Error> {
    let file = match PrivateFile::read_write().open(lock) {
        Ok(file) => file,
        // An instance makes its lock file before anything else.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Life::Free),
        Err(error) => return Err(Error::io("open", lock)(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Life::Free),
        Err(TryLockError::WouldBlock) => Ok(Life::Held),
        Err(TryLockError::Error(error)) => Err(Error::io("probe the lock", lock)(error)),
    }
}

/// This boot of this node.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> Result<BootId, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    text.trim().parse().map_err(|e| Error::failed(format!("read {}: {e}", path.display())))
}

/// The process of this number, as told apart from a later one; none when it does not exist.
#[must_use]
pub fn process(pid: i32) -> Option<ProcessId> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    Some(ProcessId { pid, start_time_ticks: start_time(&stat)? })
}

/// Field 22 of `/proc/PID/stat`. The second field is the command in parentheses and may itself hold spaces and
/// parentheses, so fields are counted from the last one.
fn start_time(stat: &[u8]) -> Option<u64> {
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(after..)?).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// What this process uses; none where `/proc` does not say it.
#[must_use]
pub fn own_use() -> Option<ProcessUse> {
    let times = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let time = times.user_time() + times.system_time();
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
    let cpu = Duration::from_micros(u64::try_from(time.num_microseconds()).ok()?);
    Some(ProcessUse { cpu_seconds: cpu.as_secs_f64(), resident_bytes: kib * 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        for command in ["holdfast", "a b", ") 1 2 (", "))", ""] {
            let stat = format!("7 ({command}) {}\n", fields.join(" "));
            assert_eq!(start_time(stat.as_bytes()), Some(22), "{command}");
        }
        for bad in ["", "7 (x", "7 (x) S 1 2", "7 (x) S a b c d e f g h i j k l m n o p q r s"] {
            assert_eq!(start_time(bad.as_bytes()), None, "{bad}");
        }
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(process(own), process(own));
        assert!(process(own).is_some() && process(-1).is_none());
    }

    #[test]
    fn a_held_lock_is_life_and_a_free_or_missing_one_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        assert_eq!(probe(&path).unwrap(), Life::Free);
        let holder = File::create(&path).unwrap();
        holder.try_lock().unwrap();
        assert_eq!(probe(&path).unwrap(), Life::Held);
        assert_eq!(probe(&path).unwrap(), Life::Held, "looking does not change it");
        drop(holder);
        assert_eq!(probe(&path).unwrap(), Life::Free);
        assert!(probe(Path::new("/proc/self/mem/lock")).is_err(), "an error is no answer");
    }
}
