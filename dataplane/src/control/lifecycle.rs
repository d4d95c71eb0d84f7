//! An instance's first moments and its signals: a session of its own, no inherited descriptors, its log, its lock.

use std::ffi::CString;
use std::fs::{File, TryLockError};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::ids::BootId;
use nix::sys::stat::Mode;
use tokio::signal::unix::{SignalKind, signal};

use super::{Instance, InstanceArgs, Role};
use crate::error::Error;
use crate::private_file::PrivateFile;

/// How long a drain may take where nobody said: longer than any healthy disk needs for what the page cache holds.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Makes this process an instance. Call it first in `main`, before any thread or file: descriptors that the agent
/// leaked are closed. The returned lock must live as long as the process.
///
/// # Errors
/// [`Error::Held`] where another process is this instance.
pub fn begin(args: &InstanceArgs) -> Result<File, Error> {
    name_process();
    // Files that this process makes are closed to other users, whatever umask it inherited.
    nix::sys::stat::umask(Mode::S_IRWXG | Mode::S_IRWXO);
    // Fails only where the process leads a group already, which then is separate from the agent's as well.
    let _ = nix::unistd::setsid();
    crate::io::close_inherited_fds();
    // Standard error, which the agent has pointed at the instance's log.
    holdfast_log::start().map_err(Error::failed("start the thread of the log"))?;
    lock(&args.instance_dir)
}

/// Names the process after `argv[0]`: the agent executes it by a descriptor, and the kernel names it after that number.
fn name_process() {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name =
        program.as_deref().and_then(Path::file_name).and_then(|name| CString::new(name.as_bytes()).ok());
    if let Some(name) = name {
        // Only for people; the kernel cuts it to 15 bytes.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// Takes the instance's lock. It, not a pid, proves that the instance lives.
///
/// # Errors
/// [`Error::Held`] where another process has it.
pub fn lock(instance_dir: &Path) -> Result<File, Error> {
    let path = instance_dir.join("lock");
    let file = PrivateFile::write().create().open(&path).map_err(Error::os("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Held { path }),
        Err(TryLockError::Error(e)) => Err(Error::os("lock", &path)(e)),
    }
}

/// This boot of the node.
///
/// # Errors
/// When `/proc` does not say.
pub fn boot_id() -> Result<BootId, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(Error::os("read", path))?;
    text.trim().parse().map_err(|_| Error::invalid("boot_id", "a UUID", text.trim()))
}

/// When this process started, in clock ticks since the boot: with the pid it names a process for ever.
///
/// # Errors
/// When `/proc` does not say.
pub fn start_time_ticks() -> Result<u64, Error> {
    let path = Path::new("/proc/self/stat");
    let text = std::fs::read_to_string(path).map_err(Error::os("read", path))?;
    parse_start_time(&text).ok_or_else(|| Error::invalid("/proc/self/stat", "a number in field 22", text))
}

/// Field 22. The second field is the program's name in brackets, which may itself hold spaces and brackets.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// SIGTERM and SIGINT drain and end. SIGHUP binds sockets again whose file was removed. (Rust's runtime ignores SIGPIPE
/// from the start.)
pub(super) fn spawn_signal_task<R: Role>(instance: Instance, role: Rc<R>) -> Result<(), Error> {
    let listen = |kind| signal(kind).map_err(Error::failed("listen for signals"));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    // Its handler is what keeps the default action, death, away.
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                Some(()) = hangup.recv() => super::bound::hang_up(),
            }
        }
        tracing::info!("asked by a signal to end: draining");
        let drained = role.drain(DRAIN_DEADLINE).await;
        if !drained.clean {
            tracing::warn!(reason = drained.reason, "ending without a clean mark");
        }
        role.stop().await;
        instance.end(Ok(()));
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_a_hostile_program_name() {
        let stat = "42 (a) b ( c)) S 1 42 42 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 987654 1 2";
        assert_eq!(parse_start_time(stat), Some(987_654));
        assert_eq!(parse_start_time("42 (cut"), None);
        assert_eq!(parse_start_time("42 (cut) S 1"), None);
        assert!(start_time_ticks().unwrap() > 0);
    }

    #[test]
    fn the_second_to_lock_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let held = lock(tmp.path()).unwrap();
        let error = lock(tmp.path()).unwrap_err();
        assert!(matches!(error, Error::Held { .. }), "{error}");
        assert_eq!(error.exit_code(), crate::error::EXIT_HELD);
        drop(held);
        lock(tmp.path()).unwrap();
    }
}
