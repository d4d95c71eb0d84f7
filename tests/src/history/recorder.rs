//! Puts what clients send and what they are answered into one order, in memory and in a file per client, outside of
//! every process under test.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{CellAt, End, Entry, Kind, OpId};

/// The order, shared by all clients.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    entries: Mutex<Vec<Entry>>,
    next_op: AtomicU64,
}

impl Log {
    /// An empty one, whose files are kept in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Arc<Self> {
        let (entries, next_op) = (Mutex::new(Vec::new()), AtomicU64::new(1));
        Arc::new(Self { dir: dir.to_owned(), entries, next_op })
    }

    /// A client's own face of it.
    ///
    /// # Panics
    /// When its file cannot be opened.
    #[must_use]
    pub fn recorder(self: &Arc<Self>, client: u64) -> Recorder {
        let path = self.dir.join(format!("history-{client}"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
        Recorder { log: Arc::clone(self), file: BufWriter::new(file) }
    }

    /// Every cache is lost now.
    ///
    /// # Panics
    /// When a client has panicked.
    pub fn power_cut(&self) {
        self.entries.lock().expect("no client has panicked").push(Entry::PowerCut);
    }

    /// All entries so far; it begins anew.
    ///
    /// # Panics
    /// When a client has panicked.
    #[must_use]
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.entries.lock().expect("no client has panicked"))
    }

    fn push(&self, entry: Entry) -> usize {
        let mut entries = self.entries.lock().expect("no client has panicked");
        entries.push(entry);
        entries.len() - 1
    }
}

/// What one client tells the log.
#[derive(Debug)]
pub struct Recorder {
    log: Arc<Log>,
    file: BufWriter<File>,
}

impl Recorder {
    /// To be called before a request is sent.
    pub fn invoke(&mut self, kind: Kind, cells: &[CellAt]) -> OpId {
        let op = self.log.next_op.fetch_add(1, Ordering::Relaxed);
        let line = format!("{kind:?} {cells:?}");
        let at = self.log.push(Entry::Invoke { op, kind, cells: cells.to_vec() });
        self.line(&format!("{at} invoke {op} {line}"));
        op
    }
    /// To be called once its end is known.
    pub fn ended(&mut self, op: OpId, end: End) {
        let line = format!("{end:?}");
        let at = self.log.push(Entry::Return { op, end });
        self.line(&format!("{at} return {op} {line}"));
    }
    fn line(&mut self, line: &str) {
        // The file is for people; the verdict is reached from what is in memory.
        let _ = writeln!(self.file, "{line}");
    }
}
