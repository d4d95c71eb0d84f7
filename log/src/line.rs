//! One line: what it is about, whether it is written, and how many it speaks for.

use std::fmt::{self, Debug, Write as _};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::Format;
use crate::limit::{Kind, LeftOut, Verdict};
use crate::queue::Queue;

/// The target of lines that say how many were left out; the limiter has counted those.
const LEFT_OUT: &str = "holdfast_log::left_out";
/// Characters kept of a message, and of each field that names what it is about, for saying how many were left out.
const MESSAGE_CHARS_MAX: usize = 120;

/// Formats like `F` what is to be written.
#[derive(Debug)]
pub(crate) struct Limited<F> {
    inner: F,
    format: Format,
    queue: Arc<Queue>,
}

impl<F> Limited<F> {
    pub(crate) fn new(inner: F, format: Format, queue: Arc<Queue>) -> Self {
        Self { inner, format, queue }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        // Debug and trace lines are not limited: an operator asked for them.
        if *metadata.level() > Level::INFO || metadata.target() == LEFT_OUT {
            return self.inner.format_event(ctx, to, event);
        }
        let failure = *metadata.level() <= Level::WARN;
        let mut said = Said::default();
        event.record(&mut said);
        let kind = Kind { object: said.object(failure), cause: cause(metadata) };
        match self.queue.line(kind, failure, &said.message) {
            Verdict::LeaveOut => Ok(()),
            Verdict::Write { left_out: 0 } => self.inner.format_event(ctx, to, event),
            Verdict::Write { left_out } => {
                let mut line = String::new();
                self.inner.format_event(ctx, Writer::new(&mut line), event)?;
                to.write_str(&with_count(&line, left_out, self.format))
            }
        }
    }
}

/// The place in the code, or the name that several places share.
fn cause(metadata: &Metadata<'static>) -> (&'static str, u32) {
    match (metadata.module_path(), metadata.file(), metadata.line()) {
        (Some(module), Some(file), Some(line)) if module == metadata.target() => (file, line),
        _ => (metadata.target(), 0),
    }
}

fn with_count(line: &str, left_out: u64, format: Format) -> String {
    let line = line.trim_end_matches('\n');
    match format {
        Format::Text => format!("{line} left_out={left_out}\n"),
        Format::Json => format!("{},\"left_out\":{left_out}}}\n", line.strip_suffix('}').unwrap_or(line)),
    }
}

/// Says that lines were left out, where no later one could.
pub(crate) fn say_left_out(left_out: &LeftOut) {
    let LeftOut { failure, object, message, lines } = left_out;
    if *failure {
        tracing::warn!(target: LEFT_OUT, left_out = lines, about = object, like = message, "lines were left out");
    } else {
        tracing::info!(target: LEFT_OUT, left_out = lines, about = object, like = message, "lines were left out");
    }
}

/// A line that is not an event: of what happened to the log itself, and of a panic.
pub(crate) fn plain(format: Format, level: &str, message: &str) -> String {
    let mut time = String::new();
    // A time that cannot be written is left out.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let clean: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match format {
        Format::Text => format!("{time} {level:>5} {clean}\n"),
        Format::Json => {
            let escaped = clean.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{{\"timestamp\":\"{time}\",\"level\":\"{level}\",\"message\":\"{escaped}\"}}\n")
        }
    }
}

/// The fields that say what a line is about.
#[derive(Debug, Default)]
struct Said {
    message: String,
    volume: String,
    part: String,
    from: String,
    to: String,
}

impl Said {
    /// Of a failure: the volume. Of a state change: what changes, and how.
    fn object(&self, failure: bool) -> String {
        let whole = if self.volume.is_empty() { &self.part } else { &self.volume };
        if failure && self.from.is_empty() {
            // VOLUME.engine, VOLUME.rN
            return whole.split('.').next().unwrap_or_default().to_owned();
        }
        let mut object = whole.clone();
        for more in [&self.part, &self.from, &self.to].into_iter().filter(|more| !more.is_empty()) {
            object.push(' ');
            object.push_str(more);
        }
        object
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let to = match field.name() {
            "message" => &mut self.message,
            "volume" => &mut self.volume,
            "instance" | "replica" | "name" | "node" | "change" => &mut self.part,
            "from" => &mut self.from,
            "to" => &mut self.to,
            _ => return,
        };
        // Writing to a string does not fail, and a value that refuses to be written is about nothing.
        let _ = write!(Bounded(to), "{value:?}");
    }
}

/// Takes only so much.
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MESSAGE_CHARS_MAX.saturating_sub(self.0.chars().count());
        self.0.extend(text.chars().take(room));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    /// What was written, shared with the test.
    #[derive(Debug, Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, say: impl FnOnce()) -> Vec<String> {
        let page = Page::default();
        let (queue, layer) = crate::layer_with_queue(format, false, page.clone()).unwrap();
        tracing::subscriber::with_default(Registry::default().with(layer), say);
        queue.flush(std::time::Duration::from_secs(20));
        let text = String::from_utf8(page.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn line_of_a_loop_is_written_twice() {
        let lines = logged(Format::Text, || {
            for n in 0..100 {
                tracing::warn!(instance = "v.r1", server = n, "it does not answer");
            }
            tracing::warn!(instance = "w.r1", "it does not answer");
        });
        assert_eq!(lines.len(), 3, "{lines:?}");
    }

    #[test]
    fn line_of_each_state_is_written() {
        let lines = logged(Format::Text, || {
            for replica in 1..=5 {
                for (from, to) in [("pending", "starting"), ("starting", "running"), ("running", "error")] {
                    tracing::info!(instance = format!("v.r{replica}"), from, to, "state");
                }
            }
        });
        assert_eq!(lines.len(), 15, "{lines:?}");
    }

    #[test]
    fn line_with_a_target_shares_its_limit() {
        let lines = logged(Format::Text, || {
            tracing::info!(target: "holdfast::clients", "a client has come");
            tracing::warn!(target: "holdfast::clients", "a client is dropped");
            tracing::info!(target: "holdfast::clients", "a client has gone");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
    }

    #[test]
    fn line_is_one_whatever_its_fields_hold() {
        let lines = logged(Format::Text, || tracing::warn!(error = %"two\nlines", "no"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("two lines"), "{lines:?}");
    }

    #[test]
    fn line_that_was_asked_for_is_not_limited() {
        let lines = logged(Format::Text, || {
            for _ in 0..100 {
                tracing::debug!(instance = "v.r1", "looked");
            }
        });
        assert_eq!(lines.len(), 100);
    }

    #[test]
    fn count_is_part_of_the_line_in_both_formats() {
        assert_eq!(with_count("12 WARN x a=1\n", 7, Format::Text), "12 WARN x a=1 left_out=7\n");
        let line = with_count("{\"a\":1,\"span\":\"s\"}\n", 7, Format::Json);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["left_out"], 7);
        let lines = logged(Format::Json, || tracing::warn!(volume = "v", "x"));
        let parsed: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(parsed["message"], "x");
    }

    #[test]
    fn plain_line_is_one_line_whatever_it_says() {
        let line = plain(Format::Json, "ERROR", "a \"b\" \\ \x1b[31m\nc");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["message"], "a \"b\" \\  [31m c");
        assert_eq!(plain(Format::Text, "WARN", "a\nb").lines().count(), 1);
    }
}
