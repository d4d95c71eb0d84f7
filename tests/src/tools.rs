//! The real clients: fio, libnbd's tools, qemu's tools.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, run};
use crate::wait::{SECOND, check, eventually};

const DEADLINE: Duration = Duration::from_secs(240);

/// The tool as a command.
///
/// # Panics
/// When it is not installed, with the remedy.
#[must_use]
pub fn tool(name: &str) -> Command {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|dir| dir.join(name).exists());
    assert!(found, "{name} is not installed: run `tests/run`, which installs what the tests need");
    Command::new(name)
}

/// Runs a tool, which must succeed.
///
/// # Panics
/// When it does not.
pub fn ok(name: &str, args: &[&str]) -> Finished {
    let mut command = tool(name);
    command.args(args);
    run(command, DEADLINE).ok()
}

/// Runs fio's nbd engine against `uri` with these further arguments.
#[must_use]
pub fn fio(uri: &str, args: &[&str]) -> Finished {
    let mut command = tool("fio");
    command
        .args(["--name=job", "--ioengine=nbd", "--verify_state_save=0", "--eta=never"])
        .arg(format!("--uri={uri}"))
        .args(args);
    run(command, DEADLINE)
}

/// One pass of random 4 KiB writes over `size`, read back and verified by CRC.
#[must_use]
pub fn fio_verify(uri: &str, size: &str) -> Finished {
    let size = format!("--size={size}");
    fio(uri, &["--rw=randwrite", "--bs=4k", "--iodepth=32", &size, "--verify=crc32c", "--verify_fatal=1"])
}

/// fio verify passes, one after the other, until told to end: I/O that never pauses while a test breaks things.
#[derive(Debug)]
pub struct FioLoop {
    stop: Arc<AtomicBool>,
    passes: Arc<AtomicU32>,
    failed: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<Finished>>>,
}

impl FioLoop {
    /// Starts it.
    #[must_use]
    pub fn start(uri: &str, size: &'static str) -> Self {
        let (stop, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let failed = Arc::new(AtomicBool::new(false));
        let uri = uri.to_owned();
        let shared = (Arc::clone(&stop), Arc::clone(&passes), Arc::clone(&failed));
        let thread = std::thread::spawn(move || {
            let (stop, passes, failed) = shared;
            while !stop.load(Ordering::SeqCst) {
                let finished = fio_verify(&uri, size);
                if finished.code != Some(0) {
                    failed.store(true, Ordering::SeqCst);
                    return Some(finished);
                }
                passes.fetch_add(1, Ordering::SeqCst);
            }
            None
        });
        Self { stop, passes, failed, thread: Some(thread) }
    }

    /// Passes that were verified whole.
    #[must_use]
    pub fn passes(&self) -> u32 {
        self.passes.load(Ordering::SeqCst)
    }

    /// Waits until `more` passes have ended well from now on.
    ///
    /// # Panics
    /// When fio fails first.
    pub fn wait_passes(&mut self, more: u32) {
        let until = self.passes() + more;
        eventually(DEADLINE, "fio passes", || {
            if self.failed.load(Ordering::SeqCst) {
                return Ok(());
            }
            check(self.passes() >= until, || format!("{} passes", self.passes()))
        });
        if self.failed.load(Ordering::SeqCst) {
            self.finish();
        }
    }

    /// Lets the pass that runs end, and requires that every one ended well.
    ///
    /// # Panics
    /// When one did not.
    pub fn finish(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { return };
        if let Some(failed) = thread.join().expect("the fio thread does not panic") {
            panic!("fio failed in pass {}: {failed}", self.passes() + 1);
        }
        assert!(self.passes() > 0, "no fio pass was completed");
    }
}

impl Drop for FioLoop {
    fn drop(&mut self) {
        // A test that failed for another reason still must not leave the thread's fio behind unasked to end.
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// `nbdinfo --json`.
///
/// # Panics
/// When it fails, or says no JSON.
#[must_use]
pub fn nbdinfo(uri: &str) -> Value {
    let said = ok("nbdinfo", &["--json", uri]).stdout;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("nbdinfo said no JSON ({e}): {said}"))
}

/// `nbdinfo --map --json`: runs of `base:allocation`.
///
/// # Panics
/// When it fails, or says no JSON.
#[must_use]
pub fn nbdinfo_map(uri: &str) -> Vec<Value> {
    let said = ok("nbdinfo", &["--map", "--json", uri]).stdout;
    let map: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("no JSON ({e}): {said}"));
    map.as_array().unwrap_or_else(|| panic!("no list: {said}")).clone()
}

/// `nbdcopy FROM TO`, flushed at the end.
pub fn nbdcopy(from: &str, to: &str) {
    let _ = ok("nbdcopy", &["--flush", from, to]);
}

/// `sha256sum` of a file.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn sha256(path: &Path) -> String {
    let said = ok("sha256sum", &[&path.to_string_lossy()]).stdout;
    said.split_whitespace().next().expect("sha256sum prints a digest").to_owned()
}

/// `qemu-io -f raw` with these commands, one after the other. Each must succeed; a failed pattern check is an error.
///
/// # Panics
/// When one does not.
pub fn qemu_io(uri: &str, commands: &[&str]) -> Finished {
    let mut command = tool("qemu-io");
    command.args(["-f", "raw", "-t", "writeback", "-d", "unmap"]);
    for c in commands {
        command.args(["-c", c]);
    }
    command.arg(uri);
    let finished = run(command, 60 * SECOND).ok();
    let said = format!("{}{}", finished.stdout, finished.stderr);
    for complaint in ["Pattern verification failed", "failed:", "error"] {
        assert!(!said.contains(complaint), "{finished}");
    }
    finished
}
