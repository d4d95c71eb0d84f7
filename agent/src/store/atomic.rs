//! Small files that are there whole or not at all, and reading them back without guessing.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_dataplane::private_file::PrivateFile;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::core::features;
use crate::error::Error;

/// Larger than any record this build writes, by far; bounds what a foreign file can make us read.
const FILE_BYTES_MAX: u64 = 1 << 20;
const TEMPORARY: &str = ".tmp~";

/// What a file says: something, that it is not there, or nothing that can be relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read<T> {
    /// It says this.
    Found(T),
    /// It does not exist. An error is never this.
    Absent,
    /// It cannot be read, is partial, or is written in a schema this build does not know.
    Unreadable(String),
}

impl<T> Read<T> {
    /// Applies a further check to what was found.
    pub fn check(self, check: impl FnOnce(&T) -> Result<(), String>) -> Self {
        match self {
            Self::Found(value) => match check(&value) {
                Ok(()) => Self::Found(value),
                Err(reason) => Self::Unreadable(reason),
            },
            other => other,
        }
    }
}

/// Whether certainly nothing is at `path`. What cannot be looked at may be there.
#[must_use]
pub fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Makes `path` and its parents, 0700, where it is missing.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("create", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the entries of a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("fsync", path))
}

/// Replaces (or makes) `path`, mode 0600; on stable storage when this returns.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    // Two threads may replace the same file; neither may write into the other's temporary one.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::failed(format!("write {}: it has no directory", path.display())));
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".{}.{count}{TEMPORARY}", name.to_string_lossy()));
    let written = PrivateFile::write()
        .create()
        .truncate()
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // The old file stands; a temporary that cannot be removed either is cleared at the next start.
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io("write", path)(error));
    }
    sync_dir(dir)
}

/// Removes what an interrupted [`replace`] left in `dir`. Only for the one owner of the directory.
pub fn clear_temporaries(dir: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMPORARY) {
            std::fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
        }
    }
    Ok(())
}

/// Replaces `path` by `value` as JSON for people.
pub fn replace_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::failed(format!("encode {}: {e}", path.display())))?;
    bytes.push(b'\n');
    replace(path, &bytes)
}

/// Reads `path` as JSON whose field `schema` is one from 1 to `schema`, and which needs no feature that this build does
/// not know.
#[must_use]
pub fn read_json<T: DeserializeOwned>(path: &Path, schema: u32) -> Read<T> {
    let bytes = match read_bounded(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Read::Absent,
        Err(error) => return Read::Unreadable(format!("read {}: {error}", path.display())),
    };
    parse_json(&bytes, &path.display().to_string(), schema)
}

/// The same for bytes that were read elsewhere, from `place`. Never [`Read::Absent`].
#[must_use]
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8], place: &str, schema: u32) -> Read<T> {
    let value: serde_json::Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(error) => return Read::Unreadable(format!("{place} is damaged: {error}")),
    };
    if value.get("schema").and_then(serde_json::Value::as_u64).is_none_or(|found| found == 0) {
        return Read::Unreadable(format!("{place}: expected schema {}, found none", known(schema)));
    }
    if let Err(why) = check_newer(&value, schema) {
        return Read::Unreadable(format!("{place}: {why}"));
    }
    match serde_json::from_value(value) {
        Ok(found) => Read::Found(found),
        Err(error) => Read::Unreadable(format!("{place}: {error}")),
    }
}

/// The schemas that are read where `schema` is written.
fn known(schema: u32) -> String {
    if schema == 1 { schema.to_string() } else { format!("1 to {schema}") }
}

/// Checks that this build is new enough for a record.
fn check_newer(value: &serde_json::Value, schema: u32) -> Result<(), String> {
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(schema) => {
            Err(format!("expected schema {}, found {found}; {}", known(schema), features::REMEDY))
        }
        Some(_) | None => features::check(value),
    }
}

/// Why the file at `path` is one of a newer build, which this one must not replace; none: it is not.
#[must_use]
pub fn newer(path: &Path, schema: u32) -> Option<String> {
    let value = serde_json::from_slice(&read_bounded(path).ok()?).ok()?;
    check_newer(&value, schema).err().map(|why| format!("{}: {why}", path.display()))
}

/// What cannot be read at `path` and why, with the remedy for one that is damaged. One of a newer build needs another,
/// which its reason says.
#[must_use]
pub fn with_remedy(path: &Path, schema: u32, reason: String, remedy: &str) -> String {
    if newer(path, schema).is_some() { reason } else { format!("{reason}; {remedy}") }
}

/// The whole of a file of ours that is not larger than any of them.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    PrivateFile::read().at_most(FILE_BYTES_MAX).read_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        schema: u32,
        text: String,
    }

    fn read(bytes: &[u8]) -> Read<Sample> {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a.json");
        std::fs::write(&path, bytes).unwrap();
        read_json(&path, 1)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_is_left_beside_it() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a.json");
        for text in ["one", "two"] {
            replace_json(&path, &Sample { schema: 1, text: text.into() }).unwrap();
            assert_eq!(read_json(&path, 1), Read::Found(Sample { schema: 1, text: text.into() }));
        }
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_missing_file_is_absent() {
        assert_eq!(read_json::<Sample>(Path::new("/nonexistent/a.json"), 1), Read::Absent);
        let bad: [&[u8]; 8] = [
            b"",
            b"{",
            b"\0\0\0",
            br#"{"text":"no schema"}"#,
            br#"{"schema":2,"text":"newer"}"#,
            br#"{"schema":0,"text":"x"}"#,
            br#"{"schema":1}"#,
            br#"{"schema":1,"text":"x","requires":["tomorrow"]}"#,
        ];
        for bytes in bad {
            assert!(matches!(read(bytes), Read::Unreadable(_)), "{:?}", String::from_utf8_lossy(bytes));
        }
        let tmp = tempfile::tempdir().unwrap();
        assert!(matches!(read_json::<Sample>(tmp.path(), 1), Read::Unreadable(_)), "a directory");
    }

    #[test]
    fn a_file_of_a_newer_build_is_told_from_a_damaged_one() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a.json");
        let newer = [r#"{"schema":2}"#, r#"{"schema":1,"text":"x","requires":["tomorrow"]}"#];
        for text in newer {
            std::fs::write(&path, text).unwrap();
            let Read::Unreadable(reason) = read_json::<Sample>(&path, 1) else { panic!("{text}") };
            assert!(reason.contains("upgrade this node's agent"), "{reason}");
            assert_eq!(super::newer(&path, 1), Some(reason.clone()));
            assert_eq!(with_remedy(&path, 1, reason.clone(), "remove it"), reason);
        }
        for text in
            ["", "{", r#"{"text":"x"}"#, r#"{"schema":1,"text":"x"}"#, r#"{"schema":1,"text":"x","more":1}"#]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(super::newer(&path, 1), None, "{text}");
        }
        assert_eq!(with_remedy(&path, 1, "damaged".into(), "remove it"), "damaged; remove it");
        std::fs::write(&path, r#"{"schema":1,"text":"x"}"#).unwrap();
        assert_eq!(
            read_json(&path, 2),
            Read::Found(Sample { schema: 1, text: "x".into() }),
            "an older schema"
        );
    }

    #[test]
    fn an_oversized_file_is_not_swallowed() {
        let text = vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
        assert!(matches!(read(&text), Read::Unreadable(r) if r.contains("at most")));
    }

    #[test]
    fn temporaries_of_an_interrupted_write_are_cleared_and_nothing_else() {
        let tmp = tempfile::tempdir().unwrap();
        for name in [".a.json.7.tmp~", "a.json", ".hidden", "x.tmp~"] {
            std::fs::write(tmp.path().join(name), b"x").unwrap();
        }
        clear_temporaries(tmp.path()).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".hidden", "a.json", "x.tmp~"]);
    }
}
