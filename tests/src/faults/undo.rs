//! What a volatile disk could lose: what each write that was not synced yet replaced.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::rng::Rng;

const SECTOR: u64 = 512;
const SECTOR_BYTES: usize = 512;

#[derive(Debug)]
struct Replaced {
    sector: u64,
    bytes: Vec<u8>,
}

/// Per file, by its inode, in the order of the writes.
#[derive(Debug, Default)]
pub(super) struct Undo {
    files: BTreeMap<u64, (Arc<File>, Vec<Replaced>)>,
}

impl Undo {
    /// To be called before `len` bytes at `offset` are replaced. What is beyond the end of the file is not kept.
    pub(super) fn keep(
        &mut self,
        inode: u64,
        file: &Arc<File>,
        offset: u64,
        len: u64,
    ) -> std::io::Result<()> {
        let size = file.metadata()?.len();
        let (_, replaced) = self.files.entry(inode).or_insert_with(|| (Arc::clone(file), Vec::new()));
        for sector in offset / SECTOR..(offset + len).min(size).div_ceil(SECTOR) {
            let mut bytes = vec![0; SECTOR_BYTES];
            let n = file.read_at(&mut bytes, sector * SECTOR)?;
            bytes.truncate(n);
            replaced.push(Replaced { sector, bytes });
        }
        Ok(())
    }

    /// What was written before is on stable storage: it cannot be lost any more.
    pub(super) fn synced(&mut self, inode: u64) {
        self.files.remove(&inode);
    }

    /// Each sector goes back to any of the contents that it had since its last sync. Tells how many went back.
    pub(super) fn lose(&mut self, rng: &mut Rng) -> usize {
        let mut lost = 0;
        for (file, replaced) in std::mem::take(&mut self.files).into_values() {
            let mut versions: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
            for one in replaced {
                versions.entry(one.sector).or_default().push(one.bytes);
            }
            // A disk that loses all, or nothing, is as likely as one that loses some.
            let mood = rng.below(4);
            for (sector, versions) in versions {
                let back = match mood {
                    0 => Some(0),
                    1 => None,
                    _ => Some(rng.index(versions.len() + 1)),
                };
                if let Some(bytes) = back.and_then(|i| versions.get(i)) {
                    file.write_all_at(bytes, sector * SECTOR).expect("the backing file can be written");
                    lost += 1;
                }
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_goes_back_to_something_that_it_held_since_its_sync() {
        for seed in 0..40 {
            let file = Arc::new(tempfile::tempfile().unwrap());
            file.write_all_at(&[1; 2048], 0).unwrap();
            let mut undo = Undo::default();
            let write = |undo: &mut Undo, byte: u8| {
                undo.keep(7, &file, 100, 1000).unwrap();
                file.write_all_at(&[byte; 1000], 100).unwrap();
            };
            write(&mut undo, 2);
            undo.synced(7);
            write(&mut undo, 3);
            write(&mut undo, 4);
            undo.lose(&mut Rng::seeded(seed));
            let mut now = [0; 2048];
            file.read_exact_at(&mut now, 0).unwrap();
            for sector in now[100..1100].chunk_by(|a, b| a == b) {
                assert!((2..=4).contains(&sector[0]), "{sector:?}");
            }
            assert!(now[..100].iter().chain(&now[1100..]).all(|b| *b == 1));
        }
    }
}
