//! Whether this machine can run the block path at all, said in a way that a person can act on.

use io_uring::opcode;
use nix::errno::Errno;

use super::ring::Ring;
use super::{Error, ErrorKind};

/// Everything the driver submits.
const OPCODES: [(u8, &str); 8] = [
    (opcode::Recv::CODE, "recv"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::SyncFileRange::CODE, "sync_file_range"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::AsyncCancel::CODE, "async_cancel"),
];

/// Sets up a small ring, looks for what the driver needs, and describes it in one line.
///
/// # Errors
/// io_uring is missing, forbidden, lacks an operation, or may not have the memory: the message names cause and remedy.
pub fn probe() -> Result<String, Error> {
    let ring = Ring::new(8)?;
    ring.supports(&OPCODES)?;
    let release = nix::sys::utsname::uname()
        .ok()
        .map(|uname| uname.release().to_string_lossy().into_owned())
        .unwrap_or_else(|| "unknown".to_owned());
    Ok(format!("io_uring on Linux {release}: {}", ring.features()))
}

/// Explains why a ring could not be set up.
pub(super) fn setup_error(errno: Errno) -> Error {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let (kind, remedy) = explain(errno, disabled.trim());
    Error::new(kind, "set up an io_uring", errno).with_remedy(remedy)
}

fn explain(errno: Errno, disabled: &str) -> (ErrorKind, &'static str) {
    match (errno, disabled) {
        (Errno::EPERM, "2") => (
            ErrorKind::Forbidden,
            "the sysctl kernel.io_uring_disabled=2 forbids io_uring to everyone: set it to 0",
        ),
        (Errno::EPERM, "1") => (
            ErrorKind::Forbidden,
            "the sysctl kernel.io_uring_disabled=1 forbids io_uring to users outside kernel.io_uring_group: set it \
             to 0, or add this user's group there",
        ),
        (Errno::EPERM | Errno::EACCES, _) => (
            ErrorKind::Forbidden,
            "a seccomp filter or security module forbids io_uring_setup: allow io_uring_setup, io_uring_enter and \
             io_uring_register in the container's or unit's system-call filter",
        ),
        (Errno::ENOSYS, _) => (
            ErrorKind::Unsupported,
            "the kernel was built without io_uring, is older than Linux 5.11, or a seccomp filter hides it",
        ),
        (Errno::ENOMEM, _) => (
            ErrorKind::NoMemory,
            "not enough memory, or the limit on locked memory is too low: raise it (ulimit -l, LimitMEMLOCK=)",
        ),
        (Errno::EMFILE | Errno::ENFILE, _) => {
            (ErrorKind::NoMemory, "too many open files: raise the limit (ulimit -n, LimitNOFILE=)")
        }
        _ => (ErrorKind::Unsupported, "Linux 6.1 or newer is recommended, 5.11 the oldest possible"),
    }
}

/// Closes every descriptor from 3 upwards that this process has inherited.
///
/// Only for a process's first moments: it also closes whatever the process itself has opened by then, so nothing may
/// be open yet. An instance calls it so that it keeps no socket or lock of the agent alive.
pub fn close_inherited_fds() {
    // SAFETY: descriptors that this process owns in Rust types would be closed under them; by this function's
    // contract there are none yet, which the instance's `main` keeps by calling it first.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_one_line() {
        let line = probe().unwrap();
        assert!(line.starts_with("io_uring on Linux ") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn each_refusal_names_its_remedy() {
        for (errno, disabled, kind, words) in [
            (Errno::EPERM, "2", ErrorKind::Forbidden, "io_uring_disabled=2"),
            (Errno::EPERM, "1", ErrorKind::Forbidden, "io_uring_group"),
            (Errno::EPERM, "0", ErrorKind::Forbidden, "seccomp"),
            (Errno::EPERM, "", ErrorKind::Forbidden, "seccomp"),
            (Errno::ENOSYS, "", ErrorKind::Unsupported, "built without io_uring"),
            (Errno::ENOMEM, "0", ErrorKind::NoMemory, "LimitMEMLOCK"),
            (Errno::EMFILE, "0", ErrorKind::NoMemory, "LimitNOFILE"),
        ] {
            let (found, remedy) = explain(errno, disabled);
            assert_eq!(found, kind, "{errno} {disabled}");
            assert!(remedy.contains(words), "{errno} {disabled}: {remedy}");
        }
        let error = setup_error(Errno::ENOMEM);
        assert_eq!((error.kind(), error.errno()), (ErrorKind::NoMemory, Errno::ENOMEM));
        assert!(error.to_string().contains("LimitMEMLOCK"), "{error}");
    }

    /// Runs itself again with a descriptor that is inherited on purpose, and looks whether it is gone.
    #[test]
    fn inherited_descriptors_are_closed() {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        const CHILD: &str = "HOLDFAST_TEST_INHERITED_FD";
        if let Ok(fd) = std::env::var(CHILD) {
            let path = format!("/proc/self/fd/{fd}");
            let before = std::fs::read_link(&path).is_ok();
            close_inherited_fds();
            let after = std::fs::read_link(&path).is_ok();
            std::process::exit(if before && !after { 0 } else { 3 });
        }
        // F_DUPFD leaves close-on-exec off, which is the point.
        let raw = nix::fcntl::fcntl(std::io::stderr(), nix::fcntl::FcntlArg::F_DUPFD(100)).unwrap();
        // SAFETY: the descriptor was made just above and is owned by nobody else.
        let inherited = unsafe { OwnedFd::from_raw_fd(raw) };
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "io::probe::tests::inherited_descriptors_are_closed", "--test-threads=1"])
            .env(CHILD, inherited.as_raw_fd().to_string())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(0));
    }
}
