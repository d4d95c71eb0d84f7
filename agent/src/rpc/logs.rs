//! The lines of an instance's log: the last ones, and then those that come, across rotations.
//!
//! Kept files are `NAME`, `NAME.1` (older), `NAME.2` (older still), and so on. A rotation renames `NAME`, or copies and
//! truncates it; both are noticed.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_dataplane::private_file::PrivateFile;
use holdfast_proto::pb::agent as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::status::status;
use super::{Stopped, stop_asked};
use crate::error::Error;

/// One message; far below what gRPC allows.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks between the file and one connection.
const QUEUE_MAX: usize = 4;
/// How soon a new line is seen (a guess: quick for a person, cheap for the machine).
const POLL: Duration = Duration::from_millis(250);
/// More rotated files than any supervisor keeps.
const ROTATED_MAX: u32 = 32;

type Chunks = mpsc::Sender<Result<pb::LogsChunk, Status>>;

/// The last `tail_lines` lines (0: all that is kept); with `follow`, also what is appended until the client goes.
pub(super) fn stream(
    path: PathBuf,
    tail_lines: u32,
    follow: bool,
    stopped: Stopped,
) -> ReceiverStream<Result<pb::LogsChunk, Status>> {
    let (chunks, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(async move {
        tokio::select! {
            result = run(&path, tail_lines, follow, &chunks) => {
                if let Err(error) = result {
                    drop(chunks.send(Err(status(error))).await);
                }
            }
            () = chunks.closed() => {}
            () = stop_asked(stopped) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn run(path: &Path, tail_lines: u32, follow: bool, chunks: &Chunks) -> Result<(), Error> {
    let start = path.to_owned();
    let mut tail = blocking(path, move || Tail::open(start, tail_lines)).await?;
    if tail.files.is_empty() && !follow {
        return Err(Error::not_found(format!("read {}: there is no log yet", path.display())));
    }
    let mut ticks = tokio::time::interval(POLL);
    loop {
        let (back, chunk) = blocking(path, move || {
            let chunk = tail.next(follow)?;
            Ok((tail, chunk))
        })
        .await?;
        tail = back;
        match chunk {
            Some(data) => {
                if chunks.send(Ok(pb::LogsChunk { data })).await.is_err() {
                    return Ok(());
                }
            }
            None if follow => {
                ticks.tick().await;
            }
            None => return Ok(()),
        }
    }
}

/// File reads stay off the threads that serve other clients.
async fn blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other);
    read.and_then(|result| result).map_err(Error::io("read", path))
}

/// Open files, oldest first; the last one is followed.
struct Tail {
    path: PathBuf,
    files: VecDeque<Open>,
}

struct Open {
    file: File,
    position: u64,
}

impl Tail {
    fn open(path: PathBuf, tail_lines: u32) -> io::Result<Self> {
        let mut files = VecDeque::new();
        let mut wanted = if tail_lines == 0 { u64::MAX } else { u64::from(tail_lines) };
        for number in 0..=ROTATED_MAX {
            let mut file = match PrivateFile::read().open(numbered(&path, number)) {
                Ok(file) => file,
                // The newest may be missing for a moment, in the middle of a rotation.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let position = if tail_lines == 0 {
                0
            } else {
                let (position, found) = last_lines(&mut file, wanted)?;
                wanted = wanted.saturating_sub(found);
                position
            };
            file.seek(SeekFrom::Start(position))?;
            files.push_front(Open { file, position });
            if wanted == 0 {
                break;
            }
        }
        Ok(Self { path, files })
    }

    /// The next bytes, or `None` where there are none now.
    fn next(&mut self, follow: bool) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(open) = self.files.front_mut()
                && let Some(data) = open.read()?
            {
                return Ok(Some(data));
            }
            if self.files.len() > 1 {
                self.files.pop_front();
            } else if !follow || !self.turn()? {
                return Ok(None);
            }
        }
    }

    /// Notices a rotation of the file that is followed; whether there may be more to read. A new file is put behind
    /// the old one, which is read once more first: it may have grown until it was renamed.
    fn turn(&mut self) -> io::Result<bool> {
        let now = match fs::metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if let Some(open) = self.files.front_mut() {
            let meta = open.file.metadata()?;
            if meta.ino() == now.ino() && meta.dev() == now.dev() {
                let truncated = now.len() < open.position;
                if truncated {
                    open.file.seek(SeekFrom::Start(0))?;
                    let seen = std::mem::take(&mut open.position);
                    self.copied(seen)?;
                }
                return Ok(truncated);
            }
        }
        match PrivateFile::read().open(&self.path) {
            Ok(file) => {
                self.files.push_back(Open { file, position: 0 });
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Tail {
    /// The lines between the last read and a truncation stand in the copy that was made before it, where they stood.
    fn copied(&mut self, seen: u64) -> io::Result<()> {
        let mut file = match PrivateFile::read().open(numbered(&self.path, 1)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // A shorter file is no copy of what was read: somebody else truncated the log.
        if file.metadata()?.len() > seen {
            file.seek(SeekFrom::Start(seen))?;
            self.files.push_front(Open { file, position: seen });
        }
        Ok(())
    }
}

impl Open {
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut data = vec![0; CHUNK_BYTES];
        let length = self.file.read(&mut data)?;
        data.truncate(length);
        self.position += length as u64;
        Ok((length > 0).then_some(data))
    }
}

/// 0 is the file that is written now.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if number > 0 {
        name.push(format!(".{number}"));
    }
    PathBuf::from(name)
}

/// Offset of the last `wanted` lines, and how many there are. Reads backwards, a chunk at a time.
fn last_lines(file: &mut File, wanted: u64) -> io::Result<(u64, u64)> {
    let end = file.metadata()?.len();
    let mut found = 0;
    let mut at = end;
    while at > 0 {
        let length = at.min(CHUNK_BYTES as u64);
        at -= length;
        file.seek(SeekFrom::Start(at))?;
        let mut part = Vec::with_capacity(CHUNK_BYTES);
        Read::by_ref(file).take(length).read_to_end(&mut part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let offset = at + index as u64;
            // The newline at the very end closes the last line and opens none.
            if *byte == b'\n' && offset + 1 < end {
                found += 1;
                if found == wanted {
                    return Ok((offset + 1, found));
                }
            }
        }
    }
    Ok((0, found + u64::from(end > 0)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use holdfast_proto::status::ErrorKind;
    use tokio_stream::StreamExt;

    use super::*;

    struct Log {
        dir: tempfile::TempDir,
        _stop: tokio::sync::watch::Sender<bool>,
        stopped: Stopped,
    }

    impl Log {
        fn new() -> Self {
            let (stop, stopped) = tokio::sync::watch::channel(false);
            Self { dir: tempfile::tempdir().unwrap(), _stop: stop, stopped }
        }
        fn path(&self) -> PathBuf {
            self.dir.path().join("demo.log")
        }
        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
        fn append(&self, text: &str) {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        fn open(&self, tail: u32, follow: bool) -> ReceiverStream<Result<pb::LogsChunk, Status>> {
            stream(self.path(), tail, follow, self.stopped.clone())
        }
        async fn tail(&self, tail: u32) -> String {
            let mut stream = self.open(tail, false);
            let mut text = Vec::new();
            while let Some(chunk) = stream.next().await {
                text.extend(chunk.unwrap().data);
            }
            String::from_utf8(text).unwrap()
        }
    }

    /// Reads until the text is there; a deadline far beyond any poll makes a failure of a hang.
    async fn expect(stream: &mut ReceiverStream<Result<pb::LogsChunk, Status>>, text: &str) {
        let mut got = String::new();
        let all = async {
            while got != text {
                let chunk = stream.next().await.expect("the stream goes on").unwrap();
                got.push_str(std::str::from_utf8(&chunk.data).unwrap());
                assert!(text.starts_with(&got), "{got:?} is no beginning of {text:?}");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all).await.unwrap_or_else(|_| panic!("no {text:?}"));
    }

    #[tokio::test]
    async fn the_last_lines_reach_back_into_rotated_files() {
        let log = Log::new();
        log.write("demo.log.2", "a\nb\n");
        log.write("demo.log.1", "c\nd\n");
        log.write("demo.log", "e\nf\n");
        assert_eq!(log.tail(0).await, "a\nb\nc\nd\ne\nf\n");
        assert_eq!(log.tail(1).await, "f\n");
        assert_eq!(log.tail(2).await, "e\nf\n");
        assert_eq!(log.tail(3).await, "d\ne\nf\n");
        assert_eq!(log.tail(99).await, "a\nb\nc\nd\ne\nf\n");
    }

    #[tokio::test]
    async fn long_files_are_read_from_their_end() {
        let log = Log::new();
        let lines: Vec<String> = (0..20_000).map(|n| format!("line {n}\n")).collect();
        log.write("demo.log", &lines.concat());
        assert_eq!(log.tail(7_000).await, lines[13_000..].concat());
        log.write("demo.log", "no newline at the end");
        assert_eq!(log.tail(1).await, "no newline at the end");
    }

    #[tokio::test]
    async fn following_survives_a_rename_and_a_truncation() {
        let log = Log::new();
        log.append("one\n");
        let mut stream = log.open(1, true);
        expect(&mut stream, "one\n").await;
        log.append("two\n");
        fs::rename(log.path(), log.dir.path().join("demo.log.1")).unwrap();
        log.append("three\n");
        expect(&mut stream, "two\nthree\n").await;
        // Copied, then truncated, as the supervisor does it: what came before the copy is not lost.
        log.append("four\n");
        log.write("demo.log.1", "three\nfour\n");
        log.write("demo.log", "5\n");
        expect(&mut stream, "four\n5\n").await;
    }

    #[tokio::test]
    async fn following_waits_for_a_log_that_is_not_there_yet() {
        let log = Log::new();
        let mut stream = log.open(10, true);
        log.append("first\n");
        expect(&mut stream, "first\n").await;
        let empty = Log::new();
        let error = empty.open(0, false).next().await.unwrap().unwrap_err();
        assert_eq!(ErrorKind::from_code(error.code()), ErrorKind::NotFound);
    }
}
