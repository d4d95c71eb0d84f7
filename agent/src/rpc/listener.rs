//! The agent's socket: taken from nobody who lives, open to nobody who should not.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_dataplane::control::server::bind_private;
use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::status::ErrorKind;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Group, chown};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::complaint::Complaint;
use crate::config::RUNTIME_DIR;
use crate::runtime_dir::{self, SOCKET_PATH_MAX};
use crate::store::atomic;

/// Members of this group may use the agent.
const GROUP: &str = "holdfast";

/// How soon a socket whose file was removed is there again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    inode: u64,
    lock: Flock<File>,
}

/// The peers of a socket, as they come.
pub(super) type Peers = mpsc::Receiver<io::Result<UnixStream>>;

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
        let (socket, held) = take(path)?;
        Ok(Self { socket, guard: Guard { path: path.to_owned(), held: Arc::new(Mutex::new(held)) } })
    }

    /// Accepts on the runtime of the caller until the peers are dropped, and binds the socket again where its file was removed.
    pub(super) fn into_parts(self) -> Result<(Peers, Guard), Complaint> {
        let socket = for_runtime(self.socket)
            .map_err(|error| Complaint::failed(format!("failed to set up the socket: {error}")))?;
        let (peers, stream) = mpsc::channel(1);
        let (path, held) = (self.guard.path.clone(), Arc::clone(&self.guard.held));
        tokio::spawn(accept(socket, path, held, peers));
        Ok((stream, self.guard))
    }
}

/// Takes the lock of the place and binds the socket.
fn take(path: &Path) -> Result<(UnixListener, Held), Complaint> {
    let failed = |error: io::Error| {
        Complaint::failed(format!("failed to listen on {}: {error}", path.display())).remedy(
            match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run as root, or name a socket in a directory of yours with --listen unix:PATH"
                }
                _ => "name another socket with --listen unix:PATH",
            },
        )
    };
    if let Some(parent) = path.parent() {
        make(parent).map_err(failed)?;
        runtime_dir::check_way(parent).map_err(|why| failed(io::Error::other(why)))?;
    }
    let lock = lock(path, failed)?;
    check_stale(path, failed)?;
    let (socket, inode) = listen(path).map_err(failed)?;
    Ok((socket, Held { inode, lock }))
}

impl Drop for Guard {
    fn drop(&mut self) {
        let inode = self.held.lock().inode;
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == inode) {
            drop(fs::remove_file(&self.path));
        }
    }
}

fn for_runtime(socket: UnixListener) -> io::Result<tokio::net::UnixListener> {
    socket.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(socket)
}

async fn accept(
    mut socket: tokio::net::UnixListener,
    path: PathBuf,
    held: Arc<Mutex<Held>>,
    peers: mpsc::Sender<io::Result<UnixStream>>,
) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = String::new();
    loop {
        tokio::select! {
            accepted = socket.accept() => {
                if peers.send(accepted.map(|(stream, _)| stream)).await.is_err() {
                    return;
                }
            }
            _ = tick.tick() => {
                let (looked, now_held) = (path.clone(), Arc::clone(&held));
                let again = tokio::task::spawn_blocking(move || bind_where_gone(&looked, &now_held));
                match again.await.unwrap_or_else(|error| Err(Complaint::failed(error.to_string()))) {
                    Ok(None) => said.clear(),
                    Ok(Some(again)) => {
                        tracing::warn!(socket = %path.display(), "the agent's socket was removed; it is there again");
                        socket = again;
                    }
                    // Tried for as long as it fails, said once per cause.
                    Err(complaint) if complaint.message == said => {}
                    Err(complaint) => {
                        tracing::warn!(%complaint, "the agent's socket was removed");
                        said = complaint.message;
                    }
                }
            }
            () = peers.closed() => return,
        }
    }
}

/// Binds the socket where there is none any more. What stands in its place is another's.
fn bind_where_gone(path: &Path, held: &Mutex<Held>) -> Result<Option<tokio::net::UnixListener>, Complaint> {
    let failed =
        |error: io::Error| Complaint::failed(format!("failed to listen on {}: {error}", path.display()));
    if !atomic::is_gone(path) {
        return Ok(None);
    }
    let mut held = held.lock();
    let ours = held.lock.metadata().map_err(failed)?.ino();
    let socket = if fs::symlink_metadata(lock_path(path)).is_ok_and(|there| there.ino() == ours) {
        let (socket, inode) = listen(path).map_err(failed)?;
        held.inode = inode;
        socket
    } else {
        // Another agent may have come first: then the place is its.
        let (socket, taken) = take(path)?;
        *held = taken;
        socket
    };
    for_runtime(socket).map(Some).map_err(failed)
}

/// Makes the directory of the socket and its parents, closed to others; the packaged one is passed by the members of the
/// group that may use the agent.
fn make(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let packaged = dir == Path::new(RUNTIME_DIR);
    if packaged { fs::set_permissions(dir, Permissions::from_mode(0o755)) } else { Ok(()) }
}

/// Binds the socket in the place of one without a listener. Returns it, and the inode of its file. Closed to others from its first
/// moment, then opened to the group.
fn listen(path: &Path) -> io::Result<(UnixListener, u64)> {
    let socket = bind_private(path).map_err(io::Error::other)?;
    restrict(path)?;
    Ok((socket, fs::symlink_metadata(path)?.ino()))
}

/// Two agents that start at once must not both find the socket stale.
fn lock(path: &Path, failed: impl Fn(io::Error) -> Complaint) -> Result<Flock<File>, Complaint> {
    let file = PrivateFile::read_write().create().open(lock_path(path)).map_err(&failed)?;
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

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
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
    match StdStream::connect(path) {
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
        StdStream::connect(&path).unwrap();
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
    fn agents_with_sockets_in_one_directory_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        // What agent a called its socket before it had its name was the name of this one's.
        let other = dir.path().join("~.sock");
        let _other = Listener::bind(&other).unwrap();
        let _first = Listener::bind(&dir.path().join("a.sock")).unwrap();
        let _second = Listener::bind(&dir.path().join("b.sock")).unwrap();
        for name in ["a.sock", "b.sock", "~.sock"] {
            StdStream::connect(dir.path().join(name)).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn socket_that_was_removed_is_there_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("run");
        let path = dir.join("a.sock");
        let (mut peers, guard) = Listener::bind(&path).unwrap().into_parts().unwrap();
        let listens = async |peers: &mut Peers| {
            let there = async {
                while UnixStream::connect(&path).await.is_err() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            tokio::time::timeout(LOOK_EVERY * 100, there).await.expect("it is there again");
            peers.recv().await.unwrap().unwrap();
        };
        listens(&mut peers).await;
        // The socket alone, then all of it: with it goes the lock, which is taken anew.
        fs::remove_file(&path).unwrap();
        listens(&mut peers).await;
        fs::remove_dir_all(&dir).unwrap();
        listens(&mut peers).await;
        assert!(Listener::bind(&path).unwrap_err().message.contains("listens on"), "it is held");
        drop((peers, guard));
        assert!(!path.exists());
    }

    #[test]
    fn lock_of_a_socket_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, precious) = (dir.path().join("a.sock"), dir.path().join("precious"));
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("a.sock.lock")).unwrap();
        let error = Listener::bind(&path).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        fs::remove_file(dir.path().join("a.sock.lock")).unwrap();
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a.sock.lock")).unwrap().mode() & 0o777, 0o600);
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
