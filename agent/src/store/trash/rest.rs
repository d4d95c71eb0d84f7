//! How a directory gets to where it waits, back, and away for good; never said before it is so.
//!
//! Most are renamed into the trash. What a rename cannot take there waits on its own file system, and a symbolic link in
//! the trash leads to it: a directory that `replicas/` only links to stays where it is; the content of a mount point waits
//! in `.trash` below that; where all of `replicas/` is another file system, in `.trash` there.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use holdfast_proto::ids::VolumeId;

use super::Move;
use crate::error::Error;
use crate::store::atomic;
use crate::store::replica_dirs::{self, FoundDir};

/// Where data waits that cannot leave its file system.
const WAITING_ROOM: &str = ".trash";
/// What a file system may have of its own at its root.
const NOT_OURS: [&str; 1] = ["lost+found"];

/// Moves the directory, or completes that.
///
/// # Errors
/// When the file system refuses; a repeat goes on.
pub(super) fn move_once(step: &Move, replicas: &Path) -> Result<(), Error> {
    let outside = is_outside(step);
    carry(step, replicas)?;
    if outside {
        // Logged where it is done: a purge that waits for other nodes carries its list out again and again.
        tracing::info!(from = %step.from.display(), to = %step.to.display(), "to the trash");
    }
    Ok(())
}

fn carry(step: &Move, replicas: &Path) -> Result<(), Error> {
    let Move { from, to, .. } = step;
    match (is_there(from), is_there(to)) {
        // Moved by an earlier attempt, or gone since the list was made: nothing to do either way.
        (false, _) => return Ok(()),
        (true, true) if is_led_to_by(&room_of(from, to), to) => return Ok(()),
        (true, true) if from.is_symlink() && is_led_to_by(from, to) => return remove_link(from),
        (true, true) if is_way_to(replicas, to) => return into_room(from, to, replicas),
        (true, true) => {
            let (from, to) = (from.display(), to.display());
            return Err(Error::refused(format!("move {from} to trash: {to} is already there")));
        }
        (true, false) => {}
    }
    if from.is_symlink() {
        let data = from.canonicalize().map_err(Error::io("follow", from))?;
        link(&data, to)?;
        return remove_link(from);
    }
    if is_mount_point(from) {
        return empty_into(from, to);
    }
    match std::fs::rename(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // The way to it first: what has moved is never without one.
            link(&replicas.join(WAITING_ROOM).join(to.file_name().unwrap_or_default()), to)?;
            into_room(from, to, replicas)
        }
        Err(error) => Err(Error::io("move to trash", from)(error)),
    }
}

fn into_room(from: &Path, to: &Path, replicas: &Path) -> Result<(), Error> {
    let room = replicas.join(WAITING_ROOM);
    atomic::make_dir(&room)?;
    std::fs::rename(from, room.join(to.file_name().unwrap_or_default()))
        .map_err(Error::io("move to trash", from))?;
    atomic::sync_dir(&room)
}

/// Whether `to` leads to where nothing is yet in the waiting room of `replicas`.
fn is_way_to(replicas: &Path, to: &Path) -> bool {
    let data = replicas.join(WAITING_ROOM).join(to.file_name().unwrap_or_default());
    std::fs::read_link(to).is_ok_and(|link| link == data) && !is_there(&data)
}

/// Completes a move that was interrupted between its steps.
pub(super) fn finish(step: &Move, replicas: &Path) -> Result<(), Error> {
    let Move { from, to, .. } = step;
    let emptied = !is_there(to) && room_of(from, to).is_dir();
    let linked = is_there(from) && (is_way_to(replicas, to) || from.is_symlink() && is_led_to_by(from, to));
    if emptied || linked { move_once(step, replicas) } else { Ok(()) }
}

/// Whether the directory is still where it was, and not in the trash.
pub(super) fn is_outside(step: &Move) -> bool {
    is_there(&step.from) && !is_there(&step.to)
}

/// Puts the directory back.
///
/// # Errors
/// When something is in its place, or the file system refuses.
pub(super) fn restore(step: &Move) -> Result<(), Error> {
    let Move { from, to, .. } = step;
    let data = where_is(to)?;
    if data == room_of(from, to) {
        fill_from(from, &data)?;
        return remove_link(to);
    }
    // An empty directory in its place would be replaced by a rename without a word.
    if is_there(from) {
        let (name, from) = (to.file_name().unwrap_or_default().display(), from.display());
        return Err(Error::conflict(format!("restore {name}: {from} exists; move that away first")));
    }
    if !to.is_symlink() {
        return std::fs::rename(to, from).map_err(Error::io("restore", to));
    }
    let in_room = data.parent().and_then(Path::file_name).is_some_and(|name| name == WAITING_ROOM);
    if in_room && data.parent().and_then(Path::parent) == from.parent() {
        std::fs::rename(&data, from).map_err(Error::io("restore", &data))?;
    } else {
        link(&data, from)?;
    }
    remove_link(to)
}

/// Removes the data for good. When this returns without error it is gone.
///
/// # Errors
/// Why it is not: then it still waits.
pub(super) fn remove(step: &Move, volume: VolumeId) -> Result<(), Error> {
    let to = &step.to;
    let data = where_is(to)?;
    for entry in std::fs::read_dir(&data).map_err(Error::io("read", &data))? {
        let path = entry.map_err(Error::io("read", &data))?.path();
        if let Ok(other) = std::fs::read_link(&path) {
            let (path, other) = (path.display(), other.display());
            return Err(Error::refused(format!(
                "unlink {path}: it is a symbolic link, and the data is in {other}; remove that by hand, then the link"
            )));
        }
    }
    if !to.is_symlink() {
        return std::fs::remove_dir_all(to).map_err(Error::io("remove", to));
    }
    if let Ok(label) = replica_dirs::found(&data).label
        && label.volume != volume
    {
        return Err(Error::refused(format!(
            "unlink {}: expected data of volume {volume} in {}, found volume {}; move that away, or remove the link",
            to.display(),
            data.display(),
            label.volume
        )));
    }
    remove_ours(&data)?;
    // From here on nothing of the data is left. An empty mount point stays.
    remove_link(to)?;
    for dir in [Some(data.as_path()), data.parent().filter(|dir| dir.ends_with(WAITING_ROOM))] {
        let _ = dir.map(std::fs::remove_dir);
    }
    Ok(())
}

/// Refuses where something is at `path` that cannot be looked into: whether it is the data is not known then.
///
/// # Errors
/// What is there, and what to do.
pub(super) fn require_known(path: &Path, found: Option<&FoundDir>) -> Result<(), Error> {
    let why = match found.map(|dir| &dir.label) {
        Some(Ok(_)) => return Ok(()),
        Some(Err(why)) => why.clone(),
        None => "it is no directory".to_owned(),
    };
    if replica_dirs::is_missing(path) || is_mount_point(path) && is_empty(path) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "purge {}: whether it holds the data cannot be known: {why}; mount its disk, or, where the data is lost, remove \
         that directory",
        path.display()
    )))
}

/// Whether a directory is only another name of one in the same place.
pub(super) fn is_alias(path: &Path, replicas: &Path) -> bool {
    let leads_to = path.is_symlink().then(|| path.canonicalize().ok()).flatten();
    leads_to.is_some_and(|data| replicas.canonicalize().is_ok_and(|replicas| data.starts_with(replicas)))
}

/// Where the data of an entry of the trash is.
pub(super) fn where_is(to: &Path) -> Result<PathBuf, Error> {
    if !to.is_symlink() {
        return Ok(to.to_owned());
    }
    let data = std::fs::read_link(to).map_err(Error::io("follow", to))?;
    if data.is_dir() {
        return Ok(data);
    }
    let (to, data) = (to.display(), data.display());
    Err(Error::failed(format!(
        "look into {to}: its data is in {data}, which is not there: is the disk mounted? Where it is gone for good, \
         remove the link {to}"
    )))
}

/// Whether something is there, or may be: only what is certainly gone is not.
pub(super) fn is_there(path: &Path) -> bool {
    !atomic::is_gone(path)
}

fn room_of(from: &Path, to: &Path) -> PathBuf {
    from.join(WAITING_ROOM).join(to.file_name().unwrap_or_default())
}

fn is_led_to_by(data: &Path, link: &Path) -> bool {
    link.is_symlink()
        && data.canonicalize().is_ok_and(|data| std::fs::read_link(link).is_ok_and(|l| l == data))
}

fn link(data: &Path, link: &Path) -> Result<(), Error> {
    symlink(data, link).map_err(Error::io("link to", link))?;
    link.parent().map_or(Ok(()), atomic::sync_dir)
}

fn remove_link(link: &Path) -> Result<(), Error> {
    std::fs::remove_file(link).map_err(Error::io("remove", link))?;
    link.parent().map_or(Ok(()), atomic::sync_dir)
}

/// Whether another file system, or a part of one, is mounted there.
fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let root = statx(rustix::fs::CWD, path, flags, StatxFlags::BASIC_STATS)
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    let device = |path: &Path| path.metadata().map(|stat| stat.dev()).ok();
    root || path.parent().and_then(device) != device(path)
}

fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| NOT_OURS.iter().any(|name| entry.file_name() == *name)))
    })
}

/// Everything in `dir` that is not the file system's own, the label last: it says whose the rest is.
fn content(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let kept = BTreeSet::from(NOT_OURS.map(std::ffi::OsString::from));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        if !kept.contains(&entry.file_name()) && entry.file_name() != WAITING_ROOM {
            found.push(entry.path());
        }
    }
    found.sort_by_key(|path| path.ends_with("meta"));
    Ok(found)
}

/// Moves what is in a mount point into its waiting room. The way to it is made last: until then the move is not done.
fn empty_into(from: &Path, to: &Path) -> Result<(), Error> {
    let data = room_of(from, to);
    atomic::make_dir(&data)?;
    move_all(from, &data)?;
    link(&data.canonicalize().map_err(Error::io("resolve", &data))?, to)
}

fn fill_from(from: &Path, data: &Path) -> Result<(), Error> {
    move_all(data, from)?;
    for dir in [Some(data), data.parent()].into_iter().flatten() {
        // What else waits there keeps it.
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

fn move_all(from: &Path, to: &Path) -> Result<(), Error> {
    for path in content(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        if is_there(&target) {
            let (path, target) = (path.display(), target.display());
            return Err(Error::conflict(format!("move {path}: {target} exists; move that away first")));
        }
        std::fs::rename(&path, &target).map_err(Error::io("move", &path))?;
    }
    atomic::sync_dir(to)?;
    atomic::sync_dir(from)
}

/// Removes the files of a replica.
///
/// # Errors
/// When something else is left there: somebody else may need it.
fn remove_ours(data: &Path) -> Result<(), Error> {
    let ours = |path: &Path| {
        let named = ["meta", "meta.spare", "head.img", "lock", replica_dirs::KEEP];
        named.iter().any(|name| path.ends_with(name)) || path.extension().is_some_and(|e| e == "bm")
    };
    let (ours, others): (Vec<_>, Vec<_>) = content(data)?.into_iter().partition(|path| ours(path));
    for path in ours {
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    atomic::sync_dir(data)?;
    let Some(other) = others.first() else { return Ok(()) };
    Err(Error::refused(format!(
        "unlink {}: {} and {} more are not files of a replica; move them away, or remove them by hand",
        data.display(),
        other.display(),
        others.len() - 1
    )))
}
