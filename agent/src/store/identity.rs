//! `node.json` of a data directory: which node's it is, and where it was when it was last used. [`core::identity`] decides
//! what that means.
//!
//! [`core::identity`]: crate::core::identity

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holdfast_proto::ids::{BootId, NodeName};
use holdfast_proto::record::{RECORD_SCHEMA, VolumeRecord};

use super::{DataDir, Read, atomic, lock, replica_dirs};
use crate::core::identity::{IDENTITY_SCHEMA, Identity, NotOurs, Place, named_by_all};
use crate::error::Error;

/// File systems whose identity (`statfs(2)`, `f_fsid`) is made of the UUID in their superblock and outlives a reboot:
/// ext2 to ext4 and btrfs. That of others is made of a device number.
const LASTING_IDENTITY: [u64; 2] = [0xEF53, 0x9123_683E];

/// The file in a data directory.
#[must_use]
pub fn path_in(root: &Path) -> PathBuf {
    root.join("node.json")
}

/// What the directory says of itself.
///
/// # Errors
/// Where the file is damaged or of a later version: whose directory it is cannot be known then.
pub fn load(root: &Path) -> Result<Option<Identity>, Error> {
    match atomic::read_json(&path_in(root), IDENTITY_SCHEMA) {
        Read::Found(identity) => Ok(Some(identity)),
        Read::Absent => Ok(None),
        Read::Unreadable(reason) => Err(Error::failed(format!(
            "find out whose data directory {} is: {reason}; restore that file, or remove it: the name is then taken from \
             replicas and records",
            root.display()
        ))),
    }
}

/// Makes it durable.
///
/// # Errors
/// When the file system refuses; the old one then stands.
pub fn store(root: &Path, identity: &Identity) -> Result<(), Error> {
    atomic::replace_json(&path_in(root), identity)
}

/// What tells the directory from its copies, now.
///
/// # Errors
/// When the file system cannot be asked.
pub fn place(root: &Path, boot_id: BootId) -> Result<Place, Error> {
    let found = std::fs::metadata(root).map_err(Error::io("look at", root))?;
    let refused = |error: rustix::io::Errno| Error::io("stat the file system of", root)(error.into());
    let kind = rustix::fs::statfs(root).map_err(refused)?.f_type;
    let kind = u64::try_from(kind).unwrap_or_default();
    let lasts = LASTING_IDENTITY.contains(&kind);
    let id = rustix::fs::statvfs(root).map_err(refused)?.f_fsid;
    let machine_id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Ok(Place {
        device: found.dev(),
        inode: found.ino(),
        file_system: lasts.then(|| format!("{kind:x}-{id:016x}")),
        machine_id: machine_id.trim().to_owned(),
        boot_id,
    })
}

/// Whether an agent of the node `name` may use the directory; what it says of itself from now on. Only with its lock held.
///
/// # Errors
/// Where it is another node's, with the ways out; nothing in it was changed then.
pub fn bind(data: &DataDir, name: &NodeName, boot_id: BootId) -> Result<Identity, Error> {
    let root = data.root();
    let known = load(root)?;
    let identity = understood(data, known.as_ref(), name, boot_id)?;
    let admitted = identity.admit(name).map_err(|not_ours| refused(&not_ours, root));
    if identity.freshness_doubt && known.as_ref().is_some_and(|known| !known.freshness_doubt) {
        tracing::warn!(
            data_dir = %root.display(), reason = identity.doubt_reason,
            "the data directory is not where it was: it may be a copy or a restored backup, and its replicas may be older \
             than they say"
        );
    }
    if known.as_ref() != Some(&identity)
        && let Err(error) = store(root, &identity)
    {
        // A full disk must not keep an agent from starting; the same is found at the next start.
        tracing::warn!(%error, "the data directory does not say whose it is");
    }
    admitted.map(|()| identity)
}

/// What the directory says of itself; one that says nothing, and names no node either, is `name`'s.
///
/// # Errors
/// As of [`load`].
pub fn known(data: &DataDir, name: &NodeName, boot_id: BootId) -> Result<Identity, Error> {
    understood(data, load(data.root())?.as_ref(), name, boot_id)
}

fn understood(
    data: &DataDir,
    known: Option<&Identity>,
    name: &NodeName,
    boot_id: BootId,
) -> Result<Identity, Error> {
    let place = place(data.root(), boot_id)?;
    Ok(match known {
        Some(known) => known.used_in(place),
        None => Identity::new(of_older_version(data)?.unwrap_or_else(|| name.clone()), place),
    })
}

/// What an operator reads whose agent is of another node.
#[must_use]
pub fn refused(not_ours: &NotOurs, root: &Path) -> Error {
    let dir = root.display();
    Error::refused(match not_ours {
        NotOurs::AnotherNode { known, asked } => format!(
            "use the data directory {dir} for node {asked}: it belongs to node {known}, and its records and replicas name \
             that; what runs is left running. Where the host was renamed, keep the node's name (--node {known}, or node = \
             \"{known}\" in the configuration), or rename the node: `holdfast node rename {known} {asked} --data-dir {dir}`"
        ),
        NotOurs::BeingRenamed { from, to } => format!(
            "use the data directory {dir}: a rename of node {from} to {to} has begun and has not ended; finish it: \
             `holdfast node rename {from} {to} --data-dir {dir}`"
        ),
    })
}

/// The node that an earlier version used the directory for, by the line in its lock, its replicas and its records.
///
/// # Errors
/// When they cannot be listed: whose the directory is is not known then.
fn of_older_version(data: &DataDir) -> Result<Option<NodeName>, Error> {
    let replicas = data.replicas();
    let labels = if atomic::is_gone(&replicas) { Vec::new() } else { replica_dirs::scan(&replicas)? };
    let labels = labels.into_iter().filter_map(|dir| dir.label.ok()).map(|label| label.node);
    let recorded = recorded(&data.registry())?;
    Ok(named_by_all(lock::last_node(&data.lock()).into_iter().chain(labels).chain(recorded)))
}

/// The nodes that the records of a registry of files name.
///
/// # Errors
/// When they cannot be listed.
fn recorded(registry: &Path) -> Result<Vec<NodeName>, Error> {
    let volumes = registry.join("volumes");
    if atomic::is_gone(&volumes) {
        return Ok(Vec::new());
    }
    let listed = std::fs::read_dir(&volumes).and_then(Iterator::collect);
    let files: Vec<std::fs::DirEntry> = listed.map_err(Error::io("read", &volumes))?;
    let records = files.into_iter().map(|file| atomic::read_json(&file.path(), RECORD_SCHEMA));
    let placed = |read: Read<VolumeRecord>| match read {
        Read::Found(record) => record.placed().map(|spec| spec.node.clone()).collect(),
        Read::Absent | Read::Unreadable(_) => Vec::new(),
    };
    Ok(records.flat_map(placed).collect())
}

#[cfg(test)]
mod tests {
    use holdfast_proto::ids::ReplicaId;
    use holdfast_proto::status::ErrorKind;

    use super::*;
    use crate::core::testing::record;
    use crate::store::lock::AgentLock;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn data_directory_refuses_another_node_and_names_the_way() {
        let tmp = tempfile::tempdir().unwrap();
        let (data, boot) = (DataDir::open(tmp.path()).unwrap(), BootId::random());
        bind(&data, &name("old"), boot).unwrap();
        let before = std::fs::read(path_in(tmp.path())).unwrap();
        let error = bind(&data, &name("new"), boot).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("holdfast node rename old new --data-dir"), "{error}");
        assert_eq!(std::fs::read(path_in(tmp.path())).unwrap(), before);
        bind(&data, &name("old"), BootId::random()).unwrap();
    }

    #[test]
    fn data_directory_of_an_older_version_is_of_the_node_it_names() {
        let tmp = tempfile::tempdir().unwrap();
        let (data, boot) = (DataDir::open(tmp.path()).unwrap(), BootId::random());
        drop(AgentLock::take(&data.lock(), "old", "unix:/a").unwrap());
        let record = record("demo", "old", 1);
        let path = replica_dirs::replica_path(&data.replicas(), &record.name, ReplicaId(1), record.id);
        replica_dirs::create(&path, &name("old"), ReplicaId(1), &record).unwrap();
        assert!(bind(&data, &name("new"), boot).is_err());
        // The refusal has not made it the newcomer's.
        drop(AgentLock::take(&data.lock(), "new", "unix:/a").unwrap());
        assert!(bind(&data, &name("new"), boot).is_err());
        bind(&data, &name("old"), boot).unwrap();
        // One that disagrees with itself belongs to who comes first.
        std::fs::remove_file(path_in(tmp.path())).unwrap();
        bind(&data, &name("third"), boot).unwrap();
    }

    #[test]
    fn a_copied_data_directory_is_doubted_and_used() {
        let tmp = tempfile::tempdir().unwrap();
        let (first, second) = (tmp.path().join("first"), tmp.path().join("second"));
        let boot = BootId::random();
        assert!(!bind(&DataDir::open(&first).unwrap(), &name("a"), boot).unwrap().freshness_doubt);
        let copy = DataDir::open(&second).unwrap();
        std::fs::copy(path_in(&first), path_in(&second)).unwrap();
        let found = bind(&copy, &name("a"), boot).unwrap();
        assert!(found.freshness_doubt && found.doubt_reason.contains("inode"), "{found:?}");
        assert_eq!(load(&second).unwrap(), Some(found), "the doubt is durable");
    }

    #[test]
    fn a_damaged_identity_is_no_ones() {
        let tmp = tempfile::tempdir().unwrap();
        let data = DataDir::open(tmp.path()).unwrap();
        std::fs::write(path_in(tmp.path()), "{\"schema\":9}").unwrap();
        let said = bind(&data, &name("a"), BootId::random()).unwrap_err().to_string();
        assert!(said.contains("node.json") && said.contains("schema"), "{said}");
    }
}
