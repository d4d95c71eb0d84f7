//! Starting an instance: what it is told on its command line, what it inherits, and where it listens.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use holdfast_proto::ids::InstanceUuid;
use sha2::{Digest as _, Sha256};

use super::binary::Binary;
use super::logs;
use crate::error::Error;
use crate::store::instances::{InstanceStore, SpawnRecord};

/// `sun_path` is 108 bytes with its final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Nothing else is inherited: an instance behaves the same whoever started its agent.
const ENVIRONMENT: [&str; 4] = ["PATH", "RUST_LOG", "RUST_BACKTRACE", "TZ"];

/// Where an instance listens for its agent: short, because names are not.
///
/// # Errors
/// When the runtime directory is too long for a socket.
pub fn control_socket(
    runtime_dir: &Path,
    uuid: InstanceUuid,
    taken: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Error> {
    // Two creations whose eight digits agree are rare and must still not meet.
    for salt in 0_u32..1000 {
        let hash = Sha256::new().chain_update(uuid.0.as_bytes()).chain_update(salt.to_le_bytes()).finalize();
        let mut name = String::new();
        for byte in hash.iter().take(4) {
            name.push_str(&format!("{byte:02x}"));
        }
        let path = runtime_dir.join(format!("{name}.sock"));
        check_socket_path(&path)?;
        if !taken(&path) {
            return Ok(path);
        }
    }
    Err(Error::failed(format!("find a free socket name in {}", runtime_dir.display())))
}

/// Whether a unix socket can have this path.
///
/// # Errors
/// The length, the limit and the remedy.
pub fn check_socket_path(path: &Path) -> Result<(), Error> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        return Err(Error::invalid(format!(
            "use the socket {}: its path has {length} bytes, the limit is {SOCKET_PATH_BYTES_MAX}; choose a \
             shorter runtime directory",
            path.display()
        )));
    }
    Ok(())
}

/// Starts the process of a record that is already durable.
///
/// The child makes a session of its own (a caller of `setsid` must not lead a process group, so none is made for it
/// here). The agent's own descriptors are all close-on-exec; what the agent itself inherited, the child closes first.
///
/// # Errors
/// When the log cannot be opened or the binary cannot be executed.
pub fn spawn(record: &SpawnRecord, binary: &Binary, store: &InstanceStore) -> Result<Child, Error> {
    let name = record.name.to_string();
    let log = logs::open(&store.log_of(&name))?;
    let errors = log.try_clone().map_err(Error::io("duplicate", store.log_of(&name)))?;
    let mut command = command(record, &binary.program()?, &binary.path, store);
    command.stdout(log).stderr(errors);
    command.spawn().map_err(Error::io("execute", &binary.path))
}

/// What executes `program` under the name `shown`.
fn command(record: &SpawnRecord, program: &Path, shown: &Path, store: &InstanceStore) -> Command {
    let name = record.name.to_string();
    let mut command = Command::new(program);
    command
        .arg0(shown)
        .arg(record.name.kind().as_str())
        .args(["--name", &name, "--uuid", &record.uuid.to_string(), "--instance-dir"])
        .arg(store.dir_of(&name))
        .arg("--control")
        .arg(&record.control_socket)
        .current_dir("/")
        .env_clear()
        .envs(ENVIRONMENT.iter().filter_map(|key| Some((key, std::env::var_os(key)?))))
        .stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::instances::tests::sample;
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn control_sockets_are_short_stable_and_apart() {
        let (uuid, runtime) = (InstanceUuid::random(), Path::new("/run/holdfast"));
        let path = control_socket(runtime, uuid, |_| false).unwrap();
        assert_eq!(path.file_name().unwrap().len(), 8 + 5);
        assert_eq!(control_socket(runtime, uuid, |_| false).unwrap(), path);
        assert_ne!(control_socket(runtime, InstanceUuid::random(), |_| false).unwrap(), path);
        let asked = Cell::new(0);
        let second = control_socket(runtime, uuid, |p| {
            asked.set(asked.get() + 1);
            p == path
        });
        assert_ne!(second.unwrap(), path);
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_with_its_length() {
        let exact = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX - 1));
        assert!(check_socket_path(Path::new(&exact)).is_ok());
        let long = "/x".repeat(60);
        let said = control_socket(Path::new(&long), InstanceUuid::random(), |_| false).unwrap_err();
        assert!(said.to_string().contains("limit is 107"), "{said}");
    }

    #[test]
    fn a_child_gets_its_arguments_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        let store = InstanceStore::new(tmp.path().to_owned());
        let record = sample("demo.r2");
        store.write(&record).unwrap();
        let script = tmp.path().join("script");
        std::fs::write(&script, "#!/bin/sh\necho \"$@\"\nenv\npwd\nls -l /proc/$$/fd | wc -l\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let log = logs::open(&store.log_of("demo.r2")).unwrap();
        let mut command = command(&record, &script, &script, &store);
        assert!(command.stdout(log).status().unwrap().success());
        let said = std::fs::read_to_string(store.log_of("demo.r2")).unwrap();
        let dir = store.dir_of("demo.r2");
        let arguments = format!(
            "replica --name demo.r2 --uuid {} --instance-dir {} --control {}\n",
            record.uuid,
            dir.display(),
            record.control_socket.display()
        );
        assert!(said.starts_with(&arguments), "{said}");
        for line in said.lines().filter(|line| line.contains('=')) {
            let key = line.split('=').next().unwrap();
            // The shell adds these itself.
            assert!(ENVIRONMENT.contains(&key) || ["PWD", "OLDPWD", "SHLVL", "_"].contains(&key), "{line}");
        }
        assert!(said.contains("\n/\n"), "{said}");
        assert_eq!(std::fs::metadata(store.log_of("demo.r2")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
