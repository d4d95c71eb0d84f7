//! Working on a data directory as the agent would: as its owner.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};

use crate::complaint::Complaint;

/// Where root works on the directory of another user, everything from here on is done as that user: the agent must be able to
/// read what is written, and root must not be led by what that user put there.
///
/// # Errors
/// When the system refuses.
pub(super) fn work_as_owner(data_dir: &Path) -> Result<(), Complaint> {
    let Ok(found) = data_dir.metadata() else { return Ok(()) };
    if !geteuid().is_root() || found.uid() == 0 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    setgroups(&[group]).and_then(|()| setgid(group)).and_then(|()| setuid(user)).map_err(|error| {
        let message = format!("failed to work as user {user}, who owns {}: {error}", data_dir.display());
        Complaint::failed(message).remedy("run this as that user")
    })
}
