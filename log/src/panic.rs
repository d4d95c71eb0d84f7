//! A panic is a bug of ours, and what it leaves is a process that does half of its work and looks whole: it ends.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Format, PROCESS, last_words, line};

/// The exit code of a process that a panic ended. Told apart from the others because the log may be what is full.
pub const EXIT_PANICKED: u8 = 24;

/// From now on a panic in any thread or task ends the process with [`EXIT_PANICKED`], with its reason as the last line
/// of the log where that can be written.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        static ENDING: AtomicBool = AtomicBool::new(false);
        // A second one, while the first is being told, ends it without a word.
        if !ENDING.swap(true, Ordering::SeqCst) {
            tell(info);
        }
        std::process::exit(i32::from(EXIT_PANICKED));
    }));
}

fn tell(info: &PanicHookInfo<'_>) {
    let format = PROCESS.get().map_or(Format::Text, |queue| queue.format);
    let thread = std::thread::current();
    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
    let said = info.payload_as_str().unwrap_or("without a message");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        last_words(&backtrace.to_string());
    }
    let thread = thread.name().unwrap_or("without a name");
    let told = format!("the process ends: thread {thread} panicked{place}: {said}");
    last_words(line::plain(format, "ERROR", &told).trim_end());
}
