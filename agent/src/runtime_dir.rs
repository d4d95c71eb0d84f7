//! The short directory that sockets live in: the same one for the same data directory, and nobody else's.
//!
//! Sockets cannot stand in the data directory: their paths are limited to 107 bytes. A directory under `/tmp` can be
//! made by anybody first, so its owner and mode are checked before anything in it is trusted.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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
/// that is not set or too long. Only computes; see [`prepare`].
#[must_use]
pub fn path_for(data_dir: &Path) -> PathBuf {
    let uid = nix::unistd::getuid().as_raw();
    compute(data_dir, std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), uid)
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

/// Makes the directory (0700) where it is missing, and refuses one that another user could have planted. A directory
/// right below a sticky, world-writable one (`/tmp`) must be ours and closed to others.
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
        // The packaged directory is passed by the members of the group that may use the agent's socket in it.
        let mode = if *path == Path::new(crate::config::RUNTIME_DIR) { 0o755 } else { 0o700 };
        match fs::DirBuilder::new().mode(mode).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(path, &error)),
        }
    }
    for path in planted_candidates(dir) {
        verify(path, remedy)?;
    }
    let meta = fs::metadata(dir).map_err(|error| failed(dir, &error))?;
    if !meta.is_dir() {
        return Err(Complaint::failed(format!("{} is not a directory", dir.display())).remedy(remedy));
    }
    Ok(())
}

/// The directory itself, and its parents up to one that others may write to.
fn planted_candidates(dir: &Path) -> Vec<&Path> {
    let mut chain = Vec::new();
    for path in dir.ancestors() {
        let open_to_all = fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o002 != 0);
        if open_to_all && path != dir {
            return chain;
        }
        chain.push(path);
    }
    // No parent is open to others: only root or this user can have made it, and only its own mode is left to see.
    chain.retain(|path| *path == dir && fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o002 != 0));
    chain
}

fn verify(path: &Path, remedy: &str) -> Result<(), Complaint> {
    let meta = fs::symlink_metadata(path).map_err(|error| {
        Complaint::failed(format!("failed to look at {}: {error}", path.display())).remedy(remedy)
    })?;
    let uid = nix::unistd::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        let message = format!(
            "{} is not a directory that only this user can write to (owner {}, mode {:o}; expected owner {uid}, \
             mode 700), and its sockets could be somebody else's",
            path.display(),
            meta.uid(),
            meta.mode() & 0o7777
        );
        return Err(Complaint::failed(message).remedy(format!("remove it, or {remedy}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
    fn a_directory_that_others_can_write_to_is_refused() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let dir = base.path().join("a");
        if dir.join("b").as_os_str().len() > RUNTIME_DIR_MAX {
            return assert!(prepare(&dir.join("b")).is_err());
        }
        prepare(&dir.join("b")).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        prepare(&dir.join("b")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o770)).unwrap();
        let error = prepare(&dir.join("b")).unwrap_err().to_string();
        assert!(error.contains("mode 770") && error.contains("--runtime-dir"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/", &dir).unwrap();
        assert!(prepare(&dir.join("b")).is_err());
    }

    #[test]
    fn a_long_directory_is_refused_with_the_limit() {
        let error = prepare(Path::new(&format!("/{}", "x".repeat(RUNTIME_DIR_MAX)))).unwrap_err().to_string();
        assert!(error.contains("108 bytes") && error.contains("--runtime-dir"), "{error}");
    }
}
