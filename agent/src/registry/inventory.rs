//! Where a node's published inventory is kept: a few keys below a prefix of the node's own.
//!
//! It is observed, not wanted: what is lost is not known until its agent next has something to say or begins anew, and
//! that is all, so a home needs no durability for it, and no failure here may hold up anything else.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::ids::NodeName;

use crate::blocking::blocking;
use crate::core::publish::Op;
use crate::error::Error;
use crate::store::atomic;

/// A home of one node's published inventory.
#[tonic::async_trait]
pub trait InventoryHome: fmt::Debug + Send + Sync {
    /// Every key below the node's prefix, and its bytes; complete, or an error.
    async fn found(&self) -> Result<Vec<(String, Vec<u8>)>, Error>;
    /// Does these in this order, in one transaction where it can. After an error each of them may have been done, or be
    /// done within the next 30 s.
    async fn write(&self, ops: Vec<Op>) -> Result<(), Error>;
}

/// Files in the registry's directory: `inventory/NODE/full.0` and so on.
#[derive(Debug, Clone)]
pub struct InventoryFiles {
    dir: PathBuf,
}

impl InventoryFiles {
    /// Of this node, below the registry's directory.
    #[must_use]
    pub fn new(registry: &Path, node: &NodeName) -> Self {
        Self { dir: registry.join("inventory").join(node.as_str()) }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key.replace('/', "."))
    }

    fn make(&self) -> Result<(), Error> {
        // Not the registry itself: where that is missing, its disk may be.
        for dir in self.dir.parent().into_iter().chain([self.dir.as_path()]) {
            match std::fs::create_dir(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::io("create", dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.make()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(Error::io("read", &self.dir))? {
            let path = entry.map_err(Error::io("read", &self.dir))?.path();
            let key = path.file_name().unwrap_or_default().to_string_lossy().replace('.', "/");
            // Anything else that somebody put there is not ours.
            if key.starts_with("full/") || key.starts_with("delta/") {
                found.push((key, atomic::read_bounded(&path).map_err(Error::io("read", &path))?));
            }
        }
        Ok(found)
    }

    fn do_all(&self, ops: &[Op]) -> Result<(), Error> {
        self.make()?;
        for op in ops {
            let path = self.path(op.key());
            match op {
                Op::Put { bytes, .. } => {
                    // A reader never sees half of it. It is not synced: after a power cut it is written again.
                    let new = self.dir.join("new");
                    let file = PrivateFile::write().create().truncate().open(&new);
                    file.and_then(|mut file| file.write_all(bytes)).map_err(Error::io("write", &new))?;
                    std::fs::rename(&new, &path).map_err(Error::io("rename", &new))?;
                }
                Op::Delete { .. } => match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path)(error));
                    }
                    _ => {}
                },
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl InventoryHome for InventoryFiles {
    async fn found(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let files = self.clone();
        blocking(move || files.read()).await
    }
    async fn write(&self, ops: Vec<Op>) -> Result<(), Error> {
        let files = self.clone();
        blocking(move || files.do_all(&ops)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, bytes: &[u8]) -> Op {
        Op::Put { key: key.to_owned(), bytes: bytes.to_vec() }
    }

    #[tokio::test]
    async fn what_was_written_is_found_and_what_was_deleted_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let home = InventoryFiles::new(tmp.path(), &"node-a.example".parse().unwrap());
        assert_eq!(home.found().await.unwrap(), []);
        let delete = |key: &str| Op::Delete { key: key.to_owned() };
        home.write(vec![put("full/0", b"a"), put("delta/000f", b"b"), put("full/0", b"c")]).await.unwrap();
        home.write(vec![delete("delta/000f"), delete("delta/000f")]).await.unwrap();
        assert_eq!(home.found().await.unwrap(), [("full/0".to_owned(), b"c".to_vec())]);
        // What others put there is passed over; what they take away is made again.
        let dir = tmp.path().join("inventory/node-a.example");
        std::fs::create_dir(dir.join("strange")).unwrap();
        assert_eq!(home.found().await.unwrap().len(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
        home.write(vec![put("full/0", b"d")]).await.unwrap();
        assert_eq!(home.found().await.unwrap(), [("full/0".to_owned(), b"d".to_vec())]);
    }
}
