//! The short directory that sockets live in: the same one for the same data directory, and nobody else's.
//!
//! Sockets cannot stand in the data directory: their paths are limited to 107 bytes. A directory under `/tmp` can be
//! made by anybody first, so owner and mode of every part of the way are checked before anything in it is trusted.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::complaint::Complaint;

/// What the kernel's `sockaddr_un` holds, less the final zero byte.
pub const SOCKET_PATH_MAX: usize = 107;
/// What instances put below the directory at most: a folder, a volume name of 40 characters and its suffixes.
const BELOW_MAX: usize = 56;
/// The longest directory in which every socket still fits.
pub const RUNTIME_DIR_MAX: usize = SOCKET_PATH_MAX - BELOW_MAX;

/// The directory for this data directory: `$XDG_RUNTIME_DIR/holdfast/<hash>`, or `/tmp/holdfast-<uid>/<hash>` where
/// that is not set, too long, or another user's. Makes nothing; see [`prepare`].
#[must_use]
pub fn path_for(data_dir: &Path) -> PathBuf {
    let uid = nix::unistd::getuid().as_raw();
    // That of another user, left in the environment by sudo, is no place for our sockets.
    let is_ours = |dir: &PathBuf| fs::metadata(dir).is_ok_and(|found| found.uid() == uid);
    compute(data_dir, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(is_ours), uid)
}

fn compute(data_dir: &Path, xdg: Option<PathBuf>, uid: u32) -> PathBuf {
    let own = PathBuf::from(format!("/tmp/holdfast-{uid}")).join(hash(data_dir));
    match xdg {
        Some(xdg) if xdg.is_absolute() => {
            let path = xdg.join("holdfast").join(hash(data_dir));
            if path.as_os_str().len() <= RUNTIME_DIR_MAX { path } else { own }
        }
        _ => own,
    }
}

/// Twelve hexadecimal digits: enough that two directories of one person do not meet, short enough for a socket.
fn hash(data_dir: &Path) -> String {
    let canonical = canonical(data_dir);
    let digest = Sha256::digest(canonical.as_os_str().as_encoded_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The same text whether or not the directory exists already, and by whatever link it is reached.
fn canonical(path: &Path) -> PathBuf {
    if let Ok(full) = path.canonicalize() {
        return full;
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// Makes the directory (0700) where it is missing, and refuses one that another user could have planted or could exchange.
///
/// # Errors
/// Says who owns it, or why it cannot be made, and the remedy.
pub fn prepare(dir: &Path) -> Result<(), Complaint> {
    let remedy = "choose another directory with --runtime-dir";
    let failed = |path: &Path, error: &io::Error| {
        Complaint::failed(format!("failed to make the socket directory {}: {error}", path.display()))
            .remedy(remedy)
    };
    let length = dir.as_os_str().len();
    if length > RUNTIME_DIR_MAX {
        let message = format!(
            "the socket directory {} has {length} bytes; with more than {RUNTIME_DIR_MAX} its sockets would not fit \
             the 108 bytes that a socket path may have",
            dir.display()
        );
        return Err(Complaint::failed(message).remedy("choose a shorter one with --runtime-dir"));
    }
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|path| fs::symlink_metadata(path).is_err()).collect();
    for path in missing.iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            // Passed by the members of the group that may use the agent's socket in it.
            Ok(()) if *path == Path::new(crate::config::RUNTIME_DIR) => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|e| failed(path, &e))?;
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(path, &error)),
        }
    }
    check_way(dir).map_err(|why| {
        let message = format!("the sockets in {} could be another user's: {why}", dir.display());
        Complaint::failed(message).remedy(format!("mend that, or {remedy}"))
    })
}

/// Whether only root and this user can exchange the directory or what is on the way to it. The way ends at a sticky
/// directory of root's, such as `/tmp`: in it, everybody can exchange only what is his own.
///
/// # Errors
/// Which part of the way is another's, expected and found.
pub fn check_way(dir: &Path) -> Result<(), String> {
    let ours = nix::unistd::geteuid().as_raw();
    // As it is written, whose links others must not turn; and where those lead.
    let led = dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
    for way in [dir, &led] {
        for (step, path) in way.ancestors().enumerate() {
            let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let found =
                fs::symlink_metadata(shown).map_err(|error| format!("{}: {error}", shown.display()))?;
            let part = Part {
                is_dir: found.is_dir(),
                is_link: found.is_symlink(),
                owner: found.uid(),
                mode: found.mode(),
            };
            match part.judge(step == 0, ours) {
                Judged::Safe => {}
                Judged::End => break,
                Judged::Refused(why) => return Err(format!("{}: {why}", shown.display())),
            }
        }
    }
    Ok(())
}

/// One part of the way to a directory.
#[derive(Debug, Clone, Copy)]
struct Part {
    is_dir: bool,
    is_link: bool,
    owner: u32,
    mode: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Safe,
    /// Whatever is above does not matter.
    End,
    Refused(String),
}

impl Part {
    fn judge(&self, is_last: bool, ours: u32) -> Judged {
        if !self.is_dir && !self.is_link {
            return Judged::Refused("expected a directory".to_owned());
        }
        if self.owner != 0 && self.owner != ours {
            return Judged::Refused(format!("expected owner {ours} or root, found owner {}", self.owner));
        }
        // Of a link the mode means nothing.
        if self.is_link || self.mode & 0o022 == 0 {
            return Judged::Safe;
        }
        if self.owner == 0 && self.mode & 0o1000 != 0 && !is_last {
            return Judged::End;
        }
        let mode = self.mode & 0o7777;
        Judged::Refused(format!("expected a directory that no other user may write to, found mode {mode:o}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_data_directory_finds_its_sockets_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let before = compute(&data, None, 7);
        fs::create_dir(&data).unwrap();
        assert_eq!(compute(&data, None, 7), before);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        assert_eq!(compute(&link, None, 7), before);
        assert_ne!(compute(dir.path(), None, 7), before);
        assert!(before.starts_with("/tmp/holdfast-7"), "{before:?}");
    }

    #[test]
    fn the_runtime_directory_of_the_session_is_preferred_while_it_is_short() {
        let short = compute(Path::new("/d"), Some("/run/user/7".into()), 7);
        assert!(short.starts_with("/run/user/7/holdfast"), "{short:?}");
        for xdg in ["relative".to_owned(), format!("/{}", "x".repeat(60))] {
            let path = compute(Path::new("/d"), Some(xdg.into()), 7);
            assert!(path.starts_with("/tmp/holdfast-7"), "{path:?}");
        }
    }

    #[test]
    fn way_to_sockets_must_be_roots_or_ours() {
        const OURS: Part = Part { is_dir: true, is_link: false, owner: 7, mode: 0o40700 };
        let tmp = Part { owner: 0, mode: 0o41777, ..OURS };
        let link = Part { is_dir: false, is_link: true, mode: 0o120_777, ..OURS };
        for (part, is_last, judged) in [
            (OURS, true, Judged::Safe),
            (Part { owner: 0, mode: 0o40755, ..OURS }, false, Judged::Safe),
            (tmp, false, Judged::End),
            (link, false, Judged::Safe),
        ] {
            assert_eq!(part.judge(is_last, 7), judged, "{part:?}");
        }
        for (part, is_last) in [
            (tmp, true),
            // Sticky, and not root's: its owner can exchange everything in it.
            (Part { mode: 0o41777, ..OURS }, false),
            (Part { owner: 8, mode: 0o41777, ..OURS }, false),
            (Part { owner: 0, mode: 0o40777, ..OURS }, false),
            (Part { mode: 0o40770, ..OURS }, true),
            (Part { owner: 8, ..OURS }, false),
            (Part { owner: 8, ..link }, false),
            (Part { is_dir: false, ..OURS }, true),
        ] {
            assert!(matches!(part.judge(is_last, 7), Judged::Refused(_)), "{part:?} {is_last}");
        }
    }

    #[test]
    fn a_planted_directory_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a");
        if dir.join("b").as_os_str().len() > RUNTIME_DIR_MAX {
            return assert!(prepare(&dir.join("b")).is_err());
        }
        prepare(&dir.join("b")).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        prepare(&dir.join("b")).unwrap();
        // A stranger's, that everybody may write to: what stands below it can be exchanged.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let error = prepare(&dir.join("b")).unwrap_err().to_string();
        assert!(error.contains("mode 777") && error.contains("--runtime-dir"), "{error}");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        prepare(&link.join("b")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(prepare(&link.join("b")).is_err(), "where the link leads is looked at");
    }

    #[test]
    fn a_long_directory_is_refused_with_the_limit() {
        let error = prepare(Path::new(&format!("/{}", "x".repeat(RUNTIME_DIR_MAX)))).unwrap_err().to_string();
        assert!(error.contains("108 bytes") && error.contains("--runtime-dir"), "{error}");
    }
}
