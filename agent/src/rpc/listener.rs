//! The agent's socket: taken from nobody who lives, open to nobody who should not.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use holdfast_proto::status::ErrorKind;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Group, chown};

use crate::complaint::Complaint;
use crate::runtime_dir::SOCKET_PATH_MAX;

/// Members of this group may use the agent.
const GROUP: &str = "holdfast";

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    guard: Guard,
}

/// Removes the socket file when dropped, if it is still the one that was bound; then releases the lock.
#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    inode: u64,
    _lock: Flock<File>,
}

impl Listener {
    /// Binds `path`, with mode 0660 for the group `holdfast` where that exists, else 0600. A socket file that a
    /// dead agent left is replaced; that of a living one is a conflict.
    ///
    /// # Errors
    /// Says what stands in the way and the remedy.
    pub fn bind(path: &Path) -> Result<Self, Complaint> {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            let message = format!(
                "the socket path {} has {length} bytes; the kernel allows {SOCKET_PATH_MAX} (108 with the final zero)",
                path.display()
            );
            return Err(
                Complaint::new(ErrorKind::Invalid, message).remedy("give a shorter one with --listen")
            );
        }
        let failed = |error: io::Error| {
            Complaint::failed(format!("failed to listen on {}: {error}", path.display())).remedy(match error
                .kind()
            {
                io::ErrorKind::PermissionDenied => {
                    "run as root, or name a socket in a directory of yours with --listen unix:PATH"
                }
                _ => "name another socket with --listen unix:PATH",
            })
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let lock = lock(path, failed)?;
        check_stale(path, failed)?;
        // Bound under another name and renamed, so that nobody ever meets it with a wider mode.
        let unborn = unborn(path);
        match fs::remove_file(&unborn) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixListener::bind(&unborn).map_err(failed)?;
        restrict(&unborn).map_err(failed)?;
        fs::rename(&unborn, path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { socket, guard: Guard { path: path.to_owned(), inode, _lock: lock } })
    }

    /// For the runtime that accepts on it.
    pub(super) fn into_parts(self) -> Result<(tokio::net::UnixListener, Guard), Complaint> {
        let failed = |error: io::Error| Complaint::failed(format!("failed to set up the socket: {error}"));
        self.socket.set_nonblocking(true).map_err(failed)?;
        let socket = tokio::net::UnixListener::from_std(self.socket).map_err(failed)?;
        Ok((socket, self.guard))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Same directory, same length, never the same name.
fn unborn(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().as_bytes().to_vec();
    if let Some(first) = name.first_mut() {
        *first = if *first == b'~' { b'_' } else { b'~' };
    }
    path.with_file_name(std::ffi::OsStr::from_bytes(&name))
}

/// Two agents that start at once must not both find the socket stale.
fn lock(path: &Path, failed: impl Fn(io::Error) -> Complaint) -> Result<Flock<File>, Complaint> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(Path::new(&name))
        .map_err(&failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // The pid is for the message of the next one alone; the lock is what counts.
            drop(lock.set_len(0).and_then(|()| lock.write_all(std::process::id().to_string().as_bytes())));
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            drop(io::Read::by_ref(&mut file).take(16).read_to_string(&mut pid));
            Err(in_use(path, pid.trim()))
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn in_use(path: &Path, pid: &str) -> Complaint {
    let who = if pid.is_empty() { "another process".to_owned() } else { format!("process {pid}") };
    Complaint::new(ErrorKind::Conflict, format!("{who} listens on {} already", path.display())).remedy(
        "use that agent (`holdfast node show`), end it first, or name another socket with --listen unix:PATH",
    )
}

fn check_stale(path: &Path, failed: impl Fn(io::Error) -> Complaint) -> Result<(), Complaint> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(Complaint::failed(format!("{} is there and is not a socket", path.display()))
            .remedy("remove it, or name another path with --listen unix:PATH"));
    }
    match UnixStream::connect(path) {
        Ok(stream) => {
            let pid = getsockopt(&stream, PeerCredentials).map(|peer| peer.pid().to_string());
            Err(in_use(path, &pid.unwrap_or_default()))
        }
        // Nobody listens: what is left of an agent that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn restrict(path: &Path) -> io::Result<()> {
    let group = Group::from_name(GROUP).ok().flatten();
    let shared = group.is_some_and(|group| chown(path, None, Some(group.gid)).is_ok());
    fs::set_permissions(path, Permissions::from_mode(if shared { 0o660 } else { 0o600 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        // A listener that went without removing its file, as after kill -9.
        drop(UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!path.exists());
        Listener::bind(&path).unwrap();
    }

    #[test]
    fn the_socket_of_a_stranger_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let stranger = UnixListener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        drop(stranger);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&path).unwrap_err().message.contains("not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn only_the_owner_or_the_group_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _listener = Listener::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
    }

    #[test]
    fn a_path_that_is_too_long_says_the_limit() {
        let error = Listener::bind(Path::new(&format!("/tmp/{}", "x".repeat(120)))).unwrap_err().to_string();
        assert!(
            error.contains("125 bytes") && error.contains("108") && error.contains("--listen"),
            "{error}"
        );
    }
}
