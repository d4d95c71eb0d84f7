//! The output of instances, bounded.
//!
//! An instance writes to a descriptor that it got at its spawn and that outlives agents, so rotation copies and then
//! truncates: the descriptor is opened for appending, and the next write goes to the new beginning. What is written
//! between the last copy and the truncation is lost; that window is one system call long. While no agent runs,
//! nothing rotates.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use holdfast_dataplane::private_file::PrivateFile;

use crate::error::Error;

/// A log is rotated when it is larger than this: months of state changes, and small enough to open in an editor.
pub const LOG_BYTES_MAX: u64 = 8 << 20;
/// So many old ones are kept.
pub const LOGS_KEPT: u32 = 3;
const LAST_LINE_BYTES_MAX: u64 = 2048;
const LAST_LINE_CHARS_MAX: usize = 300;

/// Opens a log for an instance's output.
///
/// # Errors
/// When the file system refuses.
pub fn open(path: &Path) -> Result<File, Error> {
    PrivateFile::write().append().create().open(path).map_err(Error::io("open", path))
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Rotates `path` if it is larger than `bytes_max`: `log` to `log.1`, `log.1` to `log.2`, and so on.
///
/// # Errors
/// When the file system refuses; the log is then as long as it was.
pub fn rotate(path: &Path, bytes_max: u64, kept: u32) -> Result<bool, Error> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > bytes_max => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("stat", path)(error));
        }
        _ => return Ok(false),
    }
    for number in (1..kept).rev() {
        let (from, to) = (numbered(path, number), numbered(path, number + 1));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("rotate", &from)(error));
            }
            _ => {}
        }
    }
    copy_and_truncate(path, &numbered(path, 1)).map_err(Error::io("rotate", path))?;
    Ok(true)
}

fn copy_and_truncate(path: &Path, to: &Path) -> io::Result<()> {
    let mut from = PrivateFile::read_write().open(path)?;
    let mut to = PrivateFile::write().create().truncate().open(to)?;
    io::copy(&mut from, &mut to)?;
    // The copy may have taken a while; what came meanwhile follows, and then the window is one call long.
    io::copy(&mut from, &mut to)?;
    from.set_len(0)
}

/// The last line of a log: why an instance ended is usually in there.
#[must_use]
pub fn last_line(path: &Path) -> Option<String> {
    let mut file = PrivateFile::read().open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_BYTES_MAX))).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_LINE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LAST_LINE_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn rotation_is_bounded_and_the_writer_goes_on() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("log");
        let mut writer = open(&path).unwrap();
        for round in 0..6 {
            writeln!(writer, "round {round}").unwrap();
            assert!(rotate(&path, 4, 3).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        }
        assert!(!rotate(&path, 4, 3).unwrap(), "an empty one stays");
        writeln!(writer, "after").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
        for (number, round) in [(1, 5), (2, 4), (3, 3)] {
            let old = std::fs::read_to_string(numbered(&path, number)).unwrap();
            assert_eq!(old, format!("round {round}\n"));
        }
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 4);
        assert!(!rotate(&tmp.path().join("none"), 4, 3).unwrap());
    }

    #[test]
    fn the_last_line_is_found_and_bounded() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("log");
        assert_eq!(last_line(&path), None);
        std::fs::write(&path, "first\nERROR io_uring is forbidden\n\n").unwrap();
        assert_eq!(last_line(&path).unwrap(), "ERROR io_uring is forbidden");
        std::fs::write(&path, [&[0xFF; 5000][..], b"\x1b[31mred\n"].concat()).unwrap();
        assert!(last_line(&path).unwrap().chars().count() <= LAST_LINE_CHARS_MAX);
    }
}
