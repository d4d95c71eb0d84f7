//! From the threads that say something to the one that writes it.
//!
//! A disk may be full, read-only, failing or hung, and a reader of a pipe may have stopped reading: none of that may
//! be felt by a thread that serves I/O. Lines wait in a bounded buffer; what finds no room is dropped and counted, what
//! cannot be written is lost and counted, and the count is written when writing works again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

use crate::limit::{Kind, Limiter, Limits, Verdict};
use crate::{Format, line};

/// Lines that wait: thousands of them, and what a process can spare.
const WAITING_BYTES_MAX: usize = 256 << 10;
/// A longer line is cut: a peer or an operator may have had a hand in it.
const LINE_BYTES_MAX: usize = 16 << 10;
/// What was lost is told at the latest so long after writing works again.
const TELL_LOST_EVERY: Duration = Duration::from_secs(10);
/// No thread holds the lock for longer than copying a line takes; a panic while it is held must not wait for it.
const LOCK_WITHIN: Duration = Duration::from_millis(100);
/// It formats a line and writes it.
const STACK_BYTES: usize = 256 << 10;

/// The lines that wait, and the limits that they have passed.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) format: Format,
    waiting: Mutex<Waiting>,
    more: Condvar,
    written: Condvar,
    limiter: Mutex<Limiter>,
    began: Instant,
    /// Lines that were dropped without the lock.
    unqueued: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    /// The thread has taken bytes and not finished with them.
    writing: bool,
    /// Lines were left out, and the thread may not know when to speak of them.
    left_out: bool,
}

impl Queue {
    /// Starts the thread. It lives as long as the process.
    pub(crate) fn start(format: Format, output: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            format,
            waiting: Mutex::default(),
            more: Condvar::new(),
            written: Condvar::new(),
            limiter: Mutex::new(Limiter::new(Limits::default())),
            began: Instant::now(),
            unqueued: AtomicU64::new(0),
        });
        let output = Output { to: Box::new(output), format, lost: 0, torn: false, why: String::new() };
        let thread = Arc::clone(&queue);
        Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || thread.write_on(output))?;
        Ok(queue)
    }

    /// Adds a line. Never waits for the output.
    pub(crate) fn push(&self, line: &[u8]) {
        // Held for longer by a thread that panics and says so, or where a great many kinds are looked through.
        let Some(mut waiting) = self.waiting.try_lock_for(LOCK_WITHIN) else {
            self.unqueued.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if waiting.bytes.len() + line.len().min(LINE_BYTES_MAX) > WAITING_BYTES_MAX {
            waiting.dropped += 1;
        } else if let Some(cut) = line.get(..LINE_BYTES_MAX).filter(|cut| cut.len() < line.len()) {
            waiting.bytes.extend_from_slice(cut);
            waiting.bytes.extend_from_slice(" ...\n".as_bytes());
        } else {
            waiting.bytes.extend_from_slice(line);
        }
        self.more.notify_one();
    }

    /// Whether this line may be written.
    pub(crate) fn line(&self, kind: Kind, failure: bool, message: &str) -> Verdict {
        let verdict = self.limiter.lock().line(kind, failure, message, self.began.elapsed());
        if verdict == Verdict::LeaveOut {
            let mut waiting = self.waiting.lock();
            if !std::mem::replace(&mut waiting.left_out, true) {
                self.more.notify_one();
            }
        }
        verdict
    }

    /// Waits until everything is written, or tried.
    pub(crate) fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let Some(mut waiting) = self.waiting.try_lock_for(LOCK_WITHIN) else { return };
        while waiting.writing || !waiting.bytes.is_empty() {
            if self.written.wait_until(&mut waiting, until).timed_out() {
                return;
            }
        }
    }

    fn write_on(&self, mut output: Output) {
        let mut tell_at = None;
        loop {
            let mut waiting = self.waiting.lock();
            waiting.writing = false;
            self.written.notify_all();
            let next = self.wait(waiting, tell_at);
            output.put(&next.bytes);
            output.lost += next.dropped + self.unqueued.swap(0, Ordering::Relaxed);
            if next.overdue {
                self.say_left_out();
            }
            tell_at = (output.lost > 0).then(|| Instant::now() + TELL_LOST_EVERY);
            output.tell_lost();
        }
    }

    /// Returns when there is something to write or to say.
    fn wait(&self, mut waiting: MutexGuard<'_, Waiting>, tell_at: Option<Instant>) -> Next {
        loop {
            let overdue_at = waiting.left_out.then(|| self.limiter.lock().overdue_at()).flatten();
            waiting.left_out = overdue_at.is_some();
            let overdue_at = overdue_at.map(|at| self.began + at);
            let until = overdue_at.into_iter().chain(tell_at).min();
            let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
            if is_due(until) || !waiting.bytes.is_empty() || waiting.dropped > 0 {
                waiting.writing = true;
                let (bytes, dropped) =
                    (std::mem::take(&mut waiting.bytes), std::mem::take(&mut waiting.dropped));
                return Next { bytes, dropped, overdue: is_due(overdue_at) };
            }
            match until {
                Some(at) => drop(self.more.wait_until(&mut waiting, at)),
                None => self.more.wait(&mut waiting),
            }
        }
    }

    fn say_left_out(&self) {
        let overdue = self.limiter.lock().overdue(self.began.elapsed());
        overdue.iter().for_each(line::say_left_out);
    }
}

/// What is to be done now.
struct Next {
    bytes: Vec<u8>,
    /// Lines that had no room.
    dropped: u64,
    /// It is time to say of some kinds how many of their lines were left out.
    overdue: bool,
}

/// Where lines go, and what did not get there.
struct Output {
    to: Box<dyn Write + Send>,
    format: Format,
    lost: u64,
    /// The last line that was written has no end.
    torn: bool,
    why: String,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // In order: what was lost before these lines is told before them.
        self.tell_lost();
        if self.lost > 0 || !self.write(bytes) {
            self.lost += count_lines(bytes);
        }
    }

    /// Writes how many lines were lost, where that can be written now.
    fn tell_lost(&mut self) {
        if self.lost == 0 {
            return;
        }
        let why = if self.why.is_empty() { "they came too fast" } else { &self.why };
        let told = format!("{} lines of the log were lost: {why}", self.lost);
        let line = line::plain(self.format, "WARN", &told);
        if self.write(line.as_bytes()) {
            self.lost = 0;
            self.why.clear();
        }
    }

    /// Whether all of it was written. Drops the rest where it was not.
    fn write(&mut self, bytes: &[u8]) -> bool {
        if self.torn {
            match self.to.write(b"\n") {
                Ok(1) => self.torn = false,
                Ok(_) => return false,
                Err(error) => return self.failed(&error),
            }
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return self.failed(&io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let done = bytes.len() - rest.len();
                    self.torn = done > 0 && bytes.get(done - 1) != Some(&b'\n');
                    return self.failed(&error);
                }
            }
        }
        true
    }

    fn failed(&mut self, error: &io::Error) -> bool {
        self.why = format!("the log could not be written: {error}");
        false
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    u64::try_from(lines).unwrap_or(u64::MAX)
}

/// Hands what a layer has formatted to the queue.
#[derive(Debug)]
pub(crate) struct Writer(pub(crate) Arc<Queue>);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Push<'a>;
    fn make_writer(&'a self) -> Push<'a> {
        Push(&self.0)
    }
}

/// One line on its way.
#[derive(Debug)]
pub(crate) struct Push<'a>(&'a Queue);

impl Write for Push<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match line.split_last() {
            None => {}
            // One line is one record, whatever a field's text holds.
            Some((b'\n', text)) if text.contains(&b'\n') => {
                let mut one: Vec<u8> =
                    text.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect();
                one.push(b'\n');
                self.0.push(&one);
            }
            Some(_) => self.0.push(line),
        }
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_secs(20);

    /// A disk: what is on it, and how much more it takes.
    #[derive(Debug, Default)]
    struct Disk {
        text: Vec<u8>,
        room: usize,
        error: Option<io::ErrorKind>,
    }
    #[derive(Debug, Clone, Default)]
    struct Shared(Arc<Mutex<Disk>>);
    impl Shared {
        fn with_room(room: usize) -> Self {
            let this = Self::default();
            this.0.lock().room = room;
            this
        }
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().text.clone()).unwrap()
        }
    }
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock();
            if let Some(error) = disk.error {
                return Err(error.into());
            }
            let taken = bytes.len().min(disk.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.text.extend_from_slice(&bytes[..taken]);
            disk.room -= taken;
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn output(disk: &Shared) -> Output {
        let to = Box::new(disk.clone());
        Output { to, format: Format::Text, lost: 0, torn: false, why: String::new() }
    }

    #[test]
    fn full_disk_loses_lines_and_says_how_many() {
        let disk = Shared::with_room(7);
        let mut output = output(&disk);
        output.put(b"one\ntwo and more\n");
        output.put(b"three\nfour\n");
        assert_eq!(disk.text(), "one\ntwo");
        disk.0.lock().room = 10_000;
        output.put(b"five\n");
        let text = disk.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[2].contains("4 lines of the log were lost"), "{lines:?}");
        assert_eq!((lines[0], lines[1], lines[3]), ("one", "two", "five"), "a torn line is ended first");
        assert_eq!(output.lost, 0);
    }

    #[test]
    fn failing_disk_is_named_with_its_error() {
        let disk = Shared::with_room(10_000);
        let mut output = output(&disk);
        for error in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::Other, io::ErrorKind::BrokenPipe] {
            disk.0.lock().error = Some(error);
            output.put(b"lost\n");
            disk.0.lock().error = None;
            output.put(b"kept\n");
            let text = disk.text();
            assert!(text.contains(&io::Error::from(error).to_string()), "{text}");
        }
        assert_eq!(disk.text().matches("kept").count(), 3);
        assert_eq!(disk.text().matches("1 lines of the log were lost").count(), 3);
    }

    /// Takes one line and then hangs until it is let go, like a disk that does not answer.
    struct Hung(mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>);
    impl Write for Hung {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            self.1.recv().map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn hung_disk_stops_no_thread_that_logs() {
        let (written, lines) = mpsc::channel();
        let (go_on, hangs) = mpsc::channel();
        let queue = Queue::start(Format::Text, Hung(written, hangs)).unwrap();
        queue.push(b"first\n");
        assert_eq!(lines.recv_timeout(SOON).unwrap(), b"first\n");
        // Far more than may wait: it would not come to an end if one of them waited.
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        (0..10_000).for_each(|_| queue.push(&line));
        assert!(queue.waiting.lock().bytes.len() <= WAITING_BYTES_MAX);
        assert_eq!(queue.waiting.lock().dropped, 10_000 - 256);
        queue.flush(Duration::from_millis(1));
        drop((0..3).map(|_| go_on.send(())).collect::<Vec<_>>());
        assert_eq!(lines.recv_timeout(SOON).unwrap().len(), 256 << 10);
        let told = String::from_utf8(lines.recv_timeout(SOON).unwrap()).unwrap();
        assert!(told.contains("9744 lines of the log were lost: they came too fast"), "{told}");
    }

    #[test]
    fn long_line_is_cut() {
        let disk = Shared::with_room(1 << 20);
        let queue = Queue::start(Format::Text, disk.clone()).unwrap();
        queue.push(&[b'x'; 1 << 19]);
        queue.flush(SOON);
        let text = disk.text();
        assert_eq!(text.len(), LINE_BYTES_MAX + 5);
        assert!(text.ends_with("x ...\n"));
    }
}
