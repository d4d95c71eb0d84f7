//! Comparing what replicas stored, byte by byte.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const CHUNK: usize = 1 << 20;

fn read_full(file: &mut File, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read(&mut out[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Whether all images hold the same bytes.
///
/// # Errors
/// Where the first difference is, in words.
pub fn equal(images: &[PathBuf]) -> Result<(), String> {
    let open = |path: &PathBuf| File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()));
    let mut files = images.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut buffers = vec![vec![0; CHUNK]; files.len()];
    let mut offset = 0;
    loop {
        let mut lengths = Vec::new();
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            lengths.push(read_full(file, buffer).map_err(|e| format!("cannot read an image: {e}"))?);
        }
        let Some(len) = lengths.first().copied() else { return Err("no images to compare".to_owned()) };
        if lengths.iter().any(|other| *other != len) {
            return Err(format!("images differ in length near byte {offset}: {lengths:?}"));
        }
        for (i, buffer) in buffers.iter().enumerate().skip(1) {
            if buffer[..len] != buffers[0][..len] {
                let at = offset + buffer[..len].iter().zip(&buffers[0]).take_while(|(a, b)| a == b).count();
                return Err(format!(
                    "{} and {} differ at byte {at} (block {})",
                    images[0].display(),
                    images[i].display(),
                    at / 4096
                ));
            }
        }
        if len < CHUNK {
            return Ok(());
        }
        offset += len;
    }
}

/// Whether the files start with the same bytes, the rest of the longer one being zeros.
///
/// # Panics
/// When one cannot be read, or they differ.
pub fn assert_same_content(a: &Path, b: &Path) {
    if let Err(difference) = equal(&[a.to_owned(), b.to_owned()]) {
        panic!("{difference}");
    }
}

/// The bytes a file occupies on disk.
#[must_use]
pub fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}
