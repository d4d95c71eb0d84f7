//! Opening files that are this process's own: the one way in which paths of data, records, keys, locks and settings are
//! opened.
//!
//! What another user could have put there, or could change, is refused: a link, a FIFO (which would hold the opener for
//! ever), a device, a file of another owner, one that others may write to, one that has a second name, one that is larger
//! than anything of ours. What is opened is looked at by its descriptor, so that nothing can be exchanged in between.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, open};

/// Where nothing else bounds the size of what is read.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct PrivateFile {
    flags: OFlags,
    rule: Rule,
}

/// What an opened file must be.
#[derive(Debug, Clone, Copy)]
struct Rule {
    /// Bits of its mode that it must not have.
    open_to: u32,
    links_max: u64,
    bytes_max: u64,
}

/// What an opened file is.
#[derive(Debug, Clone, Copy)]
struct Found {
    kind: FileType,
    mode: u32,
    owner: u32,
    links: u64,
    bytes: u64,
}

impl PrivateFile {
    const fn with(flags: OFlags) -> Self {
        // No links pass, too: the file was replaced or removed after it was opened.
        let rule = Rule { open_to: 0o022, links_max: 1, bytes_max: u64::MAX };
        Self { flags: flags.union(OFlags::NOFOLLOW), rule }
    }
    /// For reading.
    pub const fn read() -> Self {
        Self::with(OFlags::RDONLY)
    }
    /// For writing.
    pub const fn write() -> Self {
        Self::with(OFlags::WRONLY)
    }
    /// For both.
    pub const fn read_write() -> Self {
        Self::with(OFlags::RDWR)
    }
    /// A file that an operator wrote, for reading: it may be reached by links, as mounted settings are, and its group may
    /// write to it.
    pub const fn settings() -> Self {
        let rule = Rule { open_to: 0o002, links_max: u64::MAX, bytes_max: SETTINGS_BYTES_MAX };
        Self { flags: OFlags::RDONLY, rule }
    }
    /// Makes it, mode 0600, where it is missing.
    pub const fn create(self) -> Self {
        Self { flags: self.flags.union(OFlags::CREATE), ..self }
    }
    /// Empties it.
    pub const fn truncate(self) -> Self {
        Self { flags: self.flags.union(OFlags::TRUNC), ..self }
    }
    /// Every write goes to its end.
    pub const fn append(self) -> Self {
        Self { flags: self.flags.union(OFlags::APPEND), ..self }
    }
    /// Past the page cache.
    pub const fn direct(self) -> Self {
        Self { flags: self.flags.union(OFlags::DIRECT), ..self }
    }
    /// A write returns once it is on stable storage.
    pub const fn data_sync(self) -> Self {
        Self { flags: self.flags.union(OFlags::DSYNC), ..self }
    }
    /// Larger ones are refused.
    pub const fn at_most(self, bytes_max: u64) -> Self {
        Self { rule: Rule { bytes_max, ..self.rule }, ..self }
    }

    /// Opens it. Never waits for a peer.
    ///
    /// # Errors
    /// Those of the operating system; and what was expected and found, where it is not what it must be.
    pub fn open(self, path: impl AsRef<Path>) -> io::Result<File> {
        // A file is emptied only once it is known to be ours.
        let first =
            self.flags.difference(OFlags::TRUNC) | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match open(path.as_ref(), first, Mode::RUSR | Mode::WUSR) {
            Ok(descriptor) => File::from(descriptor),
            Err(rustix::io::Errno::LOOP) => {
                return Err(io::Error::other("expected a regular file, found a symbolic link"));
            }
            Err(error) => return Err(error.into()),
        };
        let found = Found::from(&file.metadata()?);
        self.rule.check(&found, rustix::process::geteuid().as_raw()).map_err(io::Error::other)?;
        // To io_uring it would mean that nothing may be waited for.
        fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
        if self.flags.contains(OFlags::TRUNC) {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Opens it and reads all of it.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn read_all(self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let (mut bytes, bytes_max) = (Vec::new(), self.rule.bytes_max);
        self.open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
        // It may have grown since it was looked at.
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("expected at most {bytes_max} bytes")));
        }
        Ok(bytes)
    }
}

/// Whether a directory is this process's own, or root's, and no other user may write to it.
///
/// # Errors
/// Those of the operating system; and what was expected and found.
pub fn check_directory(path: impl AsRef<Path>) -> io::Result<()> {
    let found = Found::from(&std::fs::metadata(path)?);
    found.check_directory(rustix::process::geteuid().as_raw()).map_err(io::Error::other)
}

impl Found {
    fn check_directory(&self, ours: u32) -> Result<(), String> {
        if self.kind != FileType::Directory {
            return Err(format!("expected a directory, found {}", named(self.kind)));
        }
        if self.owner != 0 && self.owner != ours {
            let owner = self.owner;
            return Err(format!("expected a directory of user {ours} or of root, found one of user {owner}"));
        }
        if self.mode & 0o022 != 0 {
            return Err(format!(
                "expected a directory that no other user may write to, found mode {:o}; take that away with chmod go-w",
                self.mode
            ));
        }
        Ok(())
    }
}

impl From<&Metadata> for Found {
    fn from(file: &Metadata) -> Self {
        Self {
            kind: FileType::from_raw_mode(file.mode()),
            mode: file.mode() & 0o7777,
            owner: file.uid(),
            links: file.nlink(),
            bytes: file.len(),
        }
    }
}

impl Rule {
    fn check(&self, found: &Found, ours: u32) -> Result<(), String> {
        if found.kind != FileType::RegularFile {
            return Err(format!("expected a regular file, found {}", named(found.kind)));
        }
        if found.owner != 0 && found.owner != ours {
            return Err(format!(
                "expected a file of user {ours} or of root, found one of user {}",
                found.owner
            ));
        }
        if found.mode & self.open_to != 0 {
            return Err(format!(
                "expected a file that no other user may write to, found mode {:o}; take that away with chmod go-w",
                found.mode
            ));
        }
        if found.links > self.links_max {
            return Err(format!("expected a file with one name, found {} hard links", found.links));
        }
        if found.bytes > self.bytes_max {
            return Err(format!("expected at most {} bytes, found {}", self.bytes_max, found.bytes));
        }
        Ok(())
    }
}

fn named(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something else",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::{CWD, mkfifoat};

    use super::*;

    const OURS: Found = Found { kind: FileType::RegularFile, mode: 0o600, owner: 7, links: 1, bytes: 10 };

    #[test]
    fn private_file_must_be_ours_alone() {
        let rule = PrivateFile::read().at_most(10).rule;
        for good in
            [OURS, Found { owner: 0, ..OURS }, Found { mode: 0o644, ..OURS }, Found { links: 0, ..OURS }]
        {
            assert_eq!(rule.check(&good, 7), Ok(()), "{good:?}");
        }
        let bad = [
            (Found { kind: FileType::Fifo, ..OURS }, "found a FIFO"),
            (Found { kind: FileType::Directory, ..OURS }, "found a directory"),
            (Found { kind: FileType::BlockDevice, ..OURS }, "found a device"),
            (Found { owner: 8, ..OURS }, "found one of user 8"),
            (Found { mode: 0o620, ..OURS }, "mode 620"),
            (Found { mode: 0o602, ..OURS }, "mode 602"),
            (Found { links: 2, ..OURS }, "2 hard links"),
            (Found { bytes: 11, ..OURS }, "at most 10 bytes, found 11"),
        ];
        for (found, said) in bad {
            let why = rule.check(&found, 7).unwrap_err();
            assert!(why.contains(said) && why.contains("expected"), "{why}");
        }
        let settings = PrivateFile::settings().rule;
        assert_eq!(settings.check(&Found { mode: 0o664, links: 3, ..OURS }, 7), Ok(()));
        assert!(settings.check(&Found { mode: 0o666, ..OURS }, 7).is_err());
        assert!(settings.check(&Found { owner: 8, ..OURS }, 7).is_err());
    }

    #[test]
    fn private_directory_must_be_closed_to_others() {
        let dir = Found { kind: FileType::Directory, mode: 0o755, links: 9, ..OURS };
        for good in [dir, Found { owner: 0, ..dir }, Found { mode: 0o1750, ..dir }] {
            assert_eq!(good.check_directory(7), Ok(()), "{good:?}");
        }
        for bad in
            [OURS, Found { owner: 8, ..dir }, Found { mode: 0o775, ..dir }, Found { mode: 0o1777, ..dir }]
        {
            assert!(bad.check_directory(7).unwrap_err().contains("expected a directory"), "{bad:?}");
        }
        assert!(check_directory("/nonexistent").is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn private_file_follows_no_link_and_waits_for_no_peer() {
        let tmp = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (tmp.path().join("file"), tmp.path().join("link"), tmp.path().join("fifo"));
        std::fs::write(&file, "precious").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        for how in [PrivateFile::read(), PrivateFile::read_write().create().truncate()] {
            assert!(how.open(&link).unwrap_err().to_string().contains("symbolic link"));
            assert!(how.open(&fifo).unwrap_err().to_string().contains("FIFO"));
        }
        assert_eq!(PrivateFile::settings().read_all(&link).unwrap(), b"precious");
        assert_eq!(
            PrivateFile::read().open(tmp.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        std::fs::hard_link(&file, tmp.path().join("second")).unwrap();
        assert!(PrivateFile::write().truncate().open(&file).unwrap_err().to_string().contains("hard links"));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious", "what is refused is not emptied");
    }

    #[test]
    fn private_file_is_opened_blocking_and_made_closed_to_others() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a");
        let file = PrivateFile::write().create().append().open(&path).unwrap();
        let flags = fcntl_getfl(&file).unwrap();
        assert!(flags.contains(OFlags::APPEND) && !flags.contains(OFlags::NONBLOCK), "{flags:?}");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        file.set_len(5).unwrap();
        assert!(
            PrivateFile::read().at_most(4).read_all(&path).unwrap_err().to_string().contains("at most 4")
        );
        assert_eq!(PrivateFile::read().at_most(5).read_all(&path).unwrap().len(), 5);
    }
}
