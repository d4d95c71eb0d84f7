//! The bitmap files of a replica directory: made whole or not at all, opened so that a write returns once it is on stable
//! storage.
//!
//! A member that is lost is one that the others can write down without room on their disks: the maps for it are made of
//! spare files, which were written when the replica was made, and a map that does not count any more is a spare one again.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use holdfast_proto::ids::ReplicaId;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::Meta;
use super::bitmap::{
    Label, PAGE_BYTES, check_label, decode_page, encode_label, encode_page, page_offset, pages,
};
use super::replica_dir::{ReplicaDir, ReplicaDirError, failed, private_file, sync_dir};
use crate::private_file::PrivateFile;
use crate::units::REGION_BYTES;

/// The name of a replica's map in the directory.
#[must_use]
pub fn file_name(of: Option<ReplicaId>) -> String {
    of.map_or_else(|| "intent.bm".to_owned(), |replica| format!("dirty-{replica}.bm"))
}

fn spare_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("spare-{number}.bm"))
}

/// Writes a map with no bit set or with all into a new file; its content is on stable storage when this returns.
pub(super) fn write_bitmap(path: &Path, label: &Label, full: bool) -> Result<(), ReplicaDirError> {
    let mut file = private_file(path).map_err(failed("create", path))?;
    fill(&mut file, label, full).map_err(failed("write", path))
}

/// From the beginning of the file, over whatever is there.
fn fill(file: &mut File, label: &Label, full: bool) -> std::io::Result<()> {
    file.write_all(&encode_label(label))?;
    let mut bytes = vec![0; PAGE_BYTES];
    let word = if full { u64::MAX } else { 0 };
    for page in 0..pages(label.bits) {
        // Written, not only allocated: a page that is replaced later then costs no change of the file system.
        encode_page(page, |_| word, &mut bytes);
        file.write_all(&bytes)?;
    }
    file.set_len(page_offset(pages(label.bits)))?;
    file.sync_all()
}

/// The map for a replica that is away, in the directory of a replica that was made with `meta`.
pub(super) fn dirty_label(meta: &Meta, of: ReplicaId) -> Label {
    let bits = meta.size_bytes.div_ceil(REGION_BYTES);
    Label { volume: meta.volume, replica: meta.replica, of: Some(of), bits }
}

/// How many maps for others there is room for: one for each other replica, and one to make another in the place of.
fn files_wanted(meta: &Meta) -> usize {
    match meta.configured.len() {
        0 | 1 => 0,
        replicas => replicas,
    }
}

/// Writes the spare files of a new directory.
pub(super) fn write_spares(dir: &Path, meta: &Meta) -> Result<(), ReplicaDirError> {
    let label = dirty_label(meta, meta.replica);
    (0..files_wanted(meta)).try_for_each(|number| write_bitmap(&spare_path(dir, number), &label, false))
}

/// A bitmap file, as it was found.
#[derive(Debug)]
pub struct BitmapFile {
    /// For writing pages: a write returns once it is on stable storage.
    pub file: File,
    /// Why some or all bits count as set that may not have been; none: all could be read.
    pub doubt: Option<String>,
}

impl ReplicaDir {
    /// The label of this directory's map for a replica that is away, or of its write-intent map, with `bits`.
    #[must_use]
    pub fn bitmap_label(&self, of: Option<ReplicaId>, bits: u64) -> Label {
        Label { volume: self.meta().volume, replica: self.meta().replica, of, bits }
    }

    /// Makes a map in the place of the one there was, with no bit set or with all; on stable storage when this returns.
    ///
    /// # Errors
    /// When the disk refuses: the old one then stands.
    pub fn make_bitmap(&self, label: &Label, full: bool) -> Result<(), ReplicaDirError> {
        let path = self.path().join(file_name(label.of));
        let making = self.path().join(format!("{}.making", file_name(label.of)));
        // One that was left half made is as good as a spare one, of which the write-intent map needs none: it is there.
        let spare = if label.of.is_some() && !making.exists() { self.take_spare(&making) } else { None };
        let mut file = match spare {
            Some(file) => file,
            None => PrivateFile::read_write().create().open(&making).map_err(failed("create", &making))?,
        };
        fill(&mut file, label, full).map_err(failed("write", &making))?;
        match renameat2(AT_FDCWD, &making, AT_FDCWD, &path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => self.keep_or_remove(&making),
            Err(_) => std::fs::rename(&making, &path).map_err(failed("rename", &making))?,
        }
        sync_dir(self.path())
    }

    /// Renames a spare file that nobody writes to any more: the data thread may still have one open that was replaced.
    fn take_spare(&self, making: &Path) -> Option<File> {
        self.spares().into_iter().rev().find_map(|spare| {
            let file = PrivateFile::read_write().open(&spare).ok()?;
            file.try_lock().ok()?;
            std::fs::rename(&spare, making).ok()?;
            Some(file)
        })
    }

    /// The spare files, by number.
    fn spares(&self) -> Vec<PathBuf> {
        let paths = (0..files_wanted(self.meta())).map(|number| spare_path(self.path(), number));
        paths.filter(|path| path.is_file()).collect()
    }

    /// Makes a file of a map that does not count a spare one where one is wanted. One that cannot be removed is only a
    /// file too many.
    fn keep_or_remove(&self, path: &Path) {
        let free = (0..files_wanted(self.meta()))
            .map(|number| spare_path(self.path(), number))
            .find(|spare| !spare.exists());
        let kept = free.filter(|_| self.files() < files_wanted(self.meta()));
        let _ = match kept {
            Some(spare) => std::fs::rename(path, spare),
            None => std::fs::remove_file(path),
        };
    }

    /// Maps that count, and spare ones.
    fn files(&self) -> usize {
        self.meta().dirty.len() + self.spares().len()
    }

    /// Room for the maps that the loss of every other replica takes, in spare files.
    ///
    /// # Errors
    /// When the disk refuses: then a member that is lost is written down only where there is room.
    pub fn reserve_bitmaps(&self) -> Result<(), ReplicaDirError> {
        let label = dirty_label(self.meta(), self.meta().replica);
        let whole = page_offset(pages(label.bits));
        // Those of a shorter volume, or of a making that was interrupted.
        for spare in self.spares() {
            if std::fs::symlink_metadata(&spare).is_ok_and(|found| found.len() != whole) {
                std::fs::remove_file(&spare).map_err(failed("remove", &spare))?;
            }
        }
        for number in 0..files_wanted(self.meta()) {
            let path = spare_path(self.path(), number);
            if self.files() >= files_wanted(self.meta()) {
                break;
            }
            if !path.exists() {
                let written = write_bitmap(&path, &label, false);
                written.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
            }
        }
        sync_dir(self.path())
    }

    /// Opens a map and hands its words to `insert`. What is missing, foreign or damaged counts as set.
    ///
    /// # Errors
    /// When the file cannot be opened for writing, or not be made where it is missing.
    pub fn open_bitmap(
        &self,
        label: &Label,
        mut insert: impl FnMut(usize, u64),
    ) -> Result<BitmapFile, ReplicaDirError> {
        let path = self.path().join(file_name(label.of));
        let first = PrivateFile::read().open(&path).map_err(|e| e.to_string()).and_then(|file| {
            let mut bytes = vec![0; PAGE_BYTES];
            file.read_exact_at(&mut bytes, 0).map_err(|e| e.to_string())?;
            check_label(&bytes, label).map_err(|e| e.to_string())?;
            Ok(file)
        });
        let (reader, mut doubt) = match first {
            Ok(file) => (file, None),
            Err(why) => {
                self.make_bitmap(label, true)?;
                (PrivateFile::read().open(&path).map_err(failed("open", &path))?, Some(why))
            }
        };
        let mut bytes = vec![0; PAGE_BYTES];
        for page in 0..pages(label.bits) {
            let read = reader.read_exact_at(&mut bytes, page_offset(page));
            let bytes = if read.is_ok() { bytes.as_slice() } else { &[] };
            if !decode_page(bytes, page, &mut insert) {
                doubt.get_or_insert_with(|| format!("page {page} is damaged"));
            }
        }
        let synced = PrivateFile::write().data_sync();
        // Not every file system knows O_DIRECT; without it the ring hands each write to a kernel thread.
        let file =
            synced.direct().open(&path).or_else(|_| synced.open(&path)).map_err(failed("open", &path))?;
        // For as long as it is open: no other map is made of it (`take_spare`).
        file.try_lock_shared().map_err(|e| failed("lock", &path)(e.into()))?;
        Ok(BitmapFile { file, doubt })
    }

    /// Makes spare files of the dirty maps that do not count any more, and removes what is not wanted.
    pub fn remove_stale_bitmaps(&self) {
        let counts: Vec<_> = self.meta().dirty.iter().map(|map| file_name(Some(map.replica))).collect();
        let Ok(entries) = std::fs::read_dir(self.path()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with("dirty-") && !counts.iter().any(|kept| kept == name) {
                self.keep_or_remove(&entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::super::create_replica_dir;
    use super::super::meta::DirtyMap;
    use super::super::meta::tests::sample;
    use super::*;

    fn sample_small() -> Meta {
        Meta { size_bytes: 1 << 20, dirty: Vec::new(), ..sample() }
    }

    fn dir(tmp: &tempfile::TempDir) -> ReplicaDir {
        let path = tmp.path().join("demo.r2");
        create_replica_dir(&path, &sample_small()).unwrap();
        ReplicaDir::open(&path).unwrap()
    }

    fn bits(dir: &ReplicaDir, label: &Label) -> (u32, bool) {
        let mut count = 0;
        let doubt = dir.open_bitmap(label, |_, word| count += word.count_ones()).unwrap().doubt;
        (count, doubt.is_some())
    }

    fn inodes(dir: &ReplicaDir) -> Vec<u64> {
        let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let maps = entries.filter(|e| {
            let name = e.file_name().into_string().unwrap();
            name.starts_with("dirty-") || name.starts_with("spare-")
        });
        let mut found: Vec<_> = maps.map(|e| e.metadata().unwrap().ino()).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn maps_for_all_others_take_no_file_that_was_not_there_when_the_replica_was_made() {
        let tmp = tempfile::tempdir().unwrap();
        let mut dir = dir(&tmp);
        let before = inodes(&dir);
        assert_eq!(before.len(), 3, "of three replicas two may be away, and one map be made anew");
        let label = |of| dirty_label(&sample_small(), ReplicaId(of));
        let meta = dir.meta().clone();
        let map = |of| DirtyMap { replica: ReplicaId(of), base: meta.view.stamp(0) };
        dir.make_bitmap(&label(1), false).unwrap();
        dir.store(Meta { dirty: vec![map(1)], ..meta.clone() }).unwrap();
        dir.make_bitmap(&label(3), true).unwrap();
        dir.store(Meta { dirty: vec![map(1), map(3)], ..meta.clone() }).unwrap();
        assert_eq!(inodes(&dir), before);
        dir.make_bitmap(&label(3), false).unwrap();
        assert_eq!((inodes(&dir), bits(&dir, &label(3))), (before.clone(), (0, false)));
        dir.store(Meta { dirty: vec![map(3)], ..meta.clone() }).unwrap();
        dir.remove_stale_bitmaps();
        dir.reserve_bitmaps().unwrap();
        assert_eq!(inodes(&dir), before, "what does not count any more is spare again");
        // Of one that is still written to by name of the map it was, no other is made.
        let old = dir.open_bitmap(&label(3), |_, _| {}).unwrap().file;
        let its_inode = old.metadata().unwrap().ino();
        for of in [3, 1, 1, 1] {
            dir.make_bitmap(&label(of), false).unwrap();
        }
        let of_1 = dir.path().join(file_name(Some(ReplicaId(1))));
        assert_ne!(of_1.metadata().unwrap().ino(), its_inode);
        drop(old);
        dir.remove_stale_bitmaps();
        dir.reserve_bitmaps().unwrap();
        assert_eq!(inodes(&dir).len(), 3);
        // A spare that is missing or cut off is written again.
        std::fs::remove_file(spare_path(dir.path(), 0)).unwrap();
        let cut = dir.spares()[0].clone();
        File::options().write(true).open(&cut).unwrap().set_len(100).unwrap();
        dir.reserve_bitmaps().unwrap();
        let length = page_offset(pages(label(3).bits));
        assert_eq!((inodes(&dir).len(), cut.metadata().unwrap().len()), (3, length));
    }

    #[test]
    fn made_empty_or_full_and_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = dir(&tmp);
        let label = dir.bitmap_label(Some(ReplicaId(3)), 128);
        dir.make_bitmap(&label, false).unwrap();
        assert_eq!(bits(&dir, &label), (0, false));
        dir.make_bitmap(&label, true).unwrap();
        assert!(bits(&dir, &label).0 >= 128);
    }

    #[test]
    fn what_is_missing_foreign_or_damaged_counts_as_set() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = dir(&tmp);
        let label = dir.bitmap_label(Some(ReplicaId(3)), 128);
        let (count, doubt) = bits(&dir, &label);
        assert!(count >= 128 && doubt, "missing");
        assert!(!bits(&dir, &label).1, "it is there now, with every bit");
        dir.make_bitmap(&label, false).unwrap();
        let path = dir.path().join("dirty-r3.bm");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[7], 4096 + 100).unwrap();
        let (count, doubt) = bits(&dir, &label);
        assert!(count >= 128 && doubt, "damaged");
        dir.make_bitmap(&label, false).unwrap();
        let larger = dir.bitmap_label(Some(ReplicaId(3)), 129);
        assert!(bits(&dir, &larger).1, "made for another size");
        file.set_len(0).unwrap();
    }

    #[test]
    fn maps_that_do_not_count_are_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let mut dir = dir(&tmp);
        for of in [3, 7] {
            dir.make_bitmap(&dir.bitmap_label(Some(ReplicaId(of)), 128), false).unwrap();
        }
        let map = DirtyMap { replica: ReplicaId(3), base: dir.meta().view.stamp(0) };
        dir.store(Meta { dirty: vec![map], ..dir.meta().clone() }).unwrap();
        dir.remove_stale_bitmaps();
        assert!(dir.path().join("dirty-r3.bm").exists() && !dir.path().join("dirty-r7.bm").exists());
    }
}
