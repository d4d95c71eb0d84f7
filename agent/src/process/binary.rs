//! The binary that instances run: a copy named by its content, so that replacing the package never touches a
//! running instance, and two versions can stand beside each other.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_dataplane::private_file::{PrivateFile, check_directory};
use parking_lot::Mutex;
use rustix::fs::StatVfsMountFlags;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::store::atomic;

/// Enough of the SHA-256 to tell any two builds apart.
const DIGEST_CHARS: usize = 16;
const PREFIX: &str = "holdfast-";

/// The installed copy, held open: what is executed is what was hashed, whatever becomes of its name.
#[derive(Debug, Clone)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
    /// The part of its digest that its name carries.
    pub digest: String,
    file: Arc<File>,
    hashed: Arc<Mutex<Stamp>>,
}

/// Changes with the content: the kernel sees to its last part, whoever writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl Binary {
    /// The path by which exactly the bytes of its digest are executed. They are hashed again where the file was touched.
    ///
    /// # Errors
    /// When its content has changed since.
    pub fn program(&self) -> Result<PathBuf, Error> {
        let mut hashed = self.hashed.lock();
        let now = Stamp::of(&self.file).map_err(Error::io("look at", &self.path))?;
        if now != *hashed {
            let found = digest_of(&self.file, &self.path)?;
            if found != self.digest {
                return Err(Error::failed(format!(
                    "execute {}: expected content with the digest {}, found {found}; restart the agent, which copies it anew",
                    self.path.display(),
                    self.digest
                )));
            }
            *hashed = now;
        }
        // The descriptor is closed on exec, which happens after it was resolved.
        Ok(PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd())))
    }
}

/// Copies `source` into `bin_dir` under its digest, unless exactly that is there.
///
/// # Errors
/// When nothing in `bin_dir` can be executed, others may write to it, or the file system refuses.
pub fn install(source: &Path, bin_dir: &Path) -> Result<Binary, Error> {
    atomic::make_dir(bin_dir)?;
    check_directory(bin_dir).map_err(Error::io("run instances from", bin_dir))?;
    require_exec(bin_dir)?;
    let digest = digest_of(&File::open(source).map_err(Error::io("open", source))?, source)?;
    let path = bin_dir.join(format!("{PREFIX}{digest}"));
    // A copy that was cut off or damaged does not have the digest that it is named by.
    let there = match opened(&path, &digest) {
        Ok(there) => there,
        Err(_) => {
            copy(source, &path)?;
            opened(&path, &digest)?
        }
    };
    let (file, stamp) = there;
    Ok(Binary { path, digest, file: Arc::new(file), hashed: Arc::new(Mutex::new(stamp)) })
}

/// The copy at `path`, if it has this digest.
fn opened(path: &Path, digest: &str) -> Result<(File, Stamp), Error> {
    let file = PrivateFile::read().open(path).map_err(Error::io("open", path))?;
    // Before it is read: what is written meanwhile changes it.
    let stamp = Stamp::of(&file).map_err(Error::io("look at", path))?;
    let found = digest_of(&file, path)?;
    if found == digest {
        return Ok((file, stamp));
    }
    Err(Error::failed(format!("open {}: expected the digest {digest}, found {found}", path.display())))
}

fn require_exec(bin_dir: &Path) -> Result<(), Error> {
    let stat = rustix::fs::statvfs(bin_dir).map_err(|e| Error::io("stat", bin_dir)(e.into()))?;
    if stat.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(Error::failed(format!(
            "start instances from {}: it is mounted noexec; choose another place with --bin-dir",
            bin_dir.display()
        )));
    }
    Ok(())
}

fn digest_of(mut file: &File, path: &Path) -> Result<String, Error> {
    use std::fmt::Write as _;
    file.rewind().map_err(Error::io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer).map_err(Error::io("read", path))?;
        match buffer.get(..n) {
            Some(read) if n > 0 => hash.update(read),
            _ => break,
        }
    }
    let mut text = String::new();
    for byte in hash.finalize().iter().take(DIGEST_CHARS / 2) {
        write!(text, "{byte:02x}").map_err(|e| Error::failed(e.to_string()))?;
    }
    Ok(text)
}

fn copy(source: &Path, path: &Path) -> Result<(), Error> {
    let temporary = path.with_extension("copying");
    let result = (|| -> io::Result<()> {
        let mut from = File::open(source)?;
        let mut to = PrivateFile::write().create().truncate().open(&temporary)?;
        to.set_permissions(Permissions::from_mode(0o755))?;
        io::copy(&mut from, &mut to)?;
        to.flush()?;
        to.sync_all()?;
        // Closed before it has its name: a file open for writing cannot be executed.
        drop(to);
        std::fs::rename(&temporary, path)
    })();
    if let Err(error) = result {
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io("copy the binary to", path)(error));
    }
    path.parent().map_or(Ok(()), atomic::sync_dir)
}

/// Removes the copies that no instance was spawned from. Returns what went.
///
/// # Errors
/// When the directory cannot be read; a copy that cannot be removed is left.
pub fn remove_unused(bin_dir: &Path, used: &BTreeSet<String>) -> Result<Vec<PathBuf>, Error> {
    let mut gone = Vec::new();
    for entry in std::fs::read_dir(bin_dir).map_err(Error::io("read", bin_dir))? {
        let entry = entry.map_err(Error::io("read", bin_dir))?;
        let name = entry.file_name();
        let Some(digest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        // Only what we named ourselves, whole or cut off.
        let ours = digest.strip_suffix(".copying").unwrap_or(digest);
        let is_digest = ours.len() == DIGEST_CHARS && ours.bytes().all(|b| b.is_ascii_hexdigit());
        if is_digest && !used.contains(digest) && std::fs::remove_file(entry.path()).is_ok() {
            gone.push(entry.path());
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_named_by_its_content_and_made_once() {
        let tmp = tempfile::tempdir().unwrap();
        let (source, bin) = (tmp.path().join("source"), tmp.path().join("bin"));
        std::fs::write(&source, b"one").unwrap();
        let first = install(&source, &bin).unwrap();
        // SHA-256 of "one".
        assert_eq!(first.digest, "7692c3ad3540bb80");
        assert_eq!(std::fs::read(&first.path).unwrap(), b"one");
        assert_eq!(std::fs::metadata(&first.path).unwrap().permissions().mode() & 0o777, 0o755);
        let again = install(&source, &bin).unwrap();
        assert_eq!((&again.path, &again.digest), (&first.path, &first.digest));
        std::fs::write(&first.path, b"on").unwrap();
        assert_eq!(install(&source, &bin).unwrap().path, first.path);
        assert_eq!(std::fs::read(&first.path).unwrap(), b"one", "a damaged copy is replaced");
        std::fs::write(&source, b"two").unwrap();
        assert_ne!(install(&source, &bin).unwrap().path, first.path);
        assert!(first.path.exists(), "what runs is not touched");
    }

    #[test]
    fn binary_that_was_changed_is_not_executed() {
        let tmp = tempfile::tempdir().unwrap();
        let (source, bin) = (tmp.path().join("source"), tmp.path().join("bin"));
        std::fs::write(&source, b"one").unwrap();
        let binary = install(&source, &bin).unwrap();
        assert_eq!(std::fs::read(binary.program().unwrap()).unwrap(), b"one");
        // Another file under its name is not what was hashed, and what was hashed is still there.
        std::fs::write(tmp.path().join("two"), b"two").unwrap();
        std::fs::rename(tmp.path().join("two"), &binary.path).unwrap();
        assert_eq!(std::fs::read(binary.program().unwrap()).unwrap(), b"one");
        let changed = install(&source, &bin).unwrap();
        // Of another length, as times may be as coarse as a tick.
        std::fs::write(&changed.path, b"three").unwrap();
        let said = changed.program().unwrap_err().to_string();
        assert!(said.contains("expected content with the digest 7692c3ad3540bb80"), "{said}");
        std::fs::write(&changed.path, b"one").unwrap();
        changed.program().unwrap();
        std::fs::set_permissions(&bin, Permissions::from_mode(0o777)).unwrap();
        assert!(install(&source, &bin).unwrap_err().to_string().contains("mode 777"));
    }

    #[test]
    fn only_unused_copies_of_ours_are_removed() {
        let tmp = tempfile::tempdir().unwrap();
        for name in [
            "holdfast-0000000000000001",
            "holdfast-0000000000000002",
            "holdfast-0000000000000003.copying",
            "holdfast-of-somebody-else",
            "other",
        ] {
            std::fs::write(tmp.path().join(name), b"x").unwrap();
        }
        let used = BTreeSet::from(["0000000000000001".to_owned()]);
        assert_eq!(remove_unused(tmp.path(), &used).unwrap().len(), 2);
        let mut left: Vec<_> =
            std::fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["holdfast-0000000000000001", "holdfast-of-somebody-else", "other"]);
    }

    #[test]
    fn a_noexec_place_names_the_remedy() {
        // /proc is mounted noexec wherever it is mounted by the usual tools.
        let proc = Path::new("/proc");
        if !rustix::fs::statvfs(proc).unwrap().f_flag.contains(StatVfsMountFlags::NOEXEC) {
            eprintln!("skipped: /proc is not mounted noexec here");
            return;
        }
        let said = require_exec(proc).unwrap_err().to_string();
        assert!(said.contains("noexec") && said.contains("--bin-dir"), "{said}");
    }
}
