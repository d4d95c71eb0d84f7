//! The bitmap files of a replica directory: made whole or not at all, opened so that a write returns once it is on stable
//! storage.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use holdfast_proto::ids::ReplicaId;

use super::bitmap::{
    Label, PAGE_BYTES, check_label, decode_page, encode_label, encode_page, page_offset, pages,
};
use super::replica_dir::{ReplicaDir, ReplicaDirError, failed, private_file, sync_dir};
use crate::private_file::PrivateFile;

/// The name of a replica's map in the directory.
#[must_use]
pub fn file_name(of: Option<ReplicaId>) -> String {
    of.map_or_else(|| "intent.bm".to_owned(), |replica| format!("dirty-{replica}.bm"))
}

/// Writes a map with no bit set or with all; its content is on stable storage when this returns.
pub(super) fn write_bitmap(path: &Path, label: &Label, full: bool) -> Result<(), ReplicaDirError> {
    let mut file = private_file(path).map_err(failed("create", path))?;
    let write = |file: &mut File| {
        file.write_all(&encode_label(label))?;
        let mut bytes = vec![0; PAGE_BYTES];
        let word = if full { u64::MAX } else { 0 };
        for page in 0..pages(label.bits) {
            // Written, not only allocated: a page that is replaced later then costs no change of the file system.
            encode_page(page, |_| word, &mut bytes);
            file.write_all(&bytes)?;
        }
        file.sync_all()
    };
    write(&mut file).map_err(failed("write", path))
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
        match std::fs::remove_file(&making) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", &making)(e)),
            Ok(()) | Err(_) => {}
        }
        write_bitmap(&making, label, full)?;
        std::fs::rename(&making, &path).map_err(failed("rename", &making))?;
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
        Ok(BitmapFile { file, doubt })
    }

    /// Removes the dirty maps that do not count any more. One that cannot be removed is only a file too many.
    pub fn remove_stale_bitmaps(&self) {
        let counts: Vec<_> = self.meta().dirty.iter().map(|map| file_name(Some(map.replica))).collect();
        let Ok(entries) = std::fs::read_dir(self.path()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with("dirty-") && !counts.iter().any(|kept| kept == name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::meta::tests::sample;
    use super::super::{Meta, create_replica_dir};
    use super::*;

    fn dir(tmp: &tempfile::TempDir) -> ReplicaDir {
        let path = tmp.path().join("demo.r2");
        create_replica_dir(&path, &Meta { size_bytes: 1 << 20, ..sample() }).unwrap();
        ReplicaDir::open(&path).unwrap()
    }

    fn bits(dir: &ReplicaDir, label: &Label) -> (u32, bool) {
        let mut count = 0;
        let doubt = dir.open_bitmap(label, |_, word| count += word.count_ones()).unwrap().doubt;
        (count, doubt.is_some())
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
        let dir = dir(&tmp);
        for of in [3, 7] {
            dir.make_bitmap(&dir.bitmap_label(Some(ReplicaId(of)), 128), false).unwrap();
        }
        dir.remove_stale_bitmaps();
        assert!(dir.path().join("dirty-r3.bm").exists() && !dir.path().join("dirty-r7.bm").exists());
    }
}
