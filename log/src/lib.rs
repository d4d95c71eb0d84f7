//! The log of every process that stays: the agent, engines and replicas.
//!
//! Three promises. A log line costs the thread that says it nothing but memory: lines go through a bounded queue to a
//! thread that writes them, and what finds no room or cannot be written is counted and said later (`queue`). One
//! failure cannot fill a log: lines are limited by what they are about and by the place that says them, not by their
//! text (`limit`). And a panic in any thread or task ends the process, with its reason as the last line and an exit
//! code of its own ([`end_on_panic`]).
//!
//! Lines that have no place of their own in the code, or several, name their cause as `target:`; all lines with one
//! target then share one limit.
#![forbid(unsafe_code)]

mod limit;
mod line;
mod panic;
mod queue;

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

pub use panic::{EXIT_PANICKED, end_on_panic};
use queue::Queue;

/// How long a process that ends waits for its last lines to be written. A healthy disk takes microseconds.
const LAST_LINES_WITHIN: Duration = Duration::from_millis(500);

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// The queue of this process, for its last words.
static PROCESS: OnceLock<Arc<Queue>> = OnceLock::new();

/// Logs to standard error for the whole process, with the level of `RUST_LOG`, and ends it when anything in it panics.
/// A second call changes nothing.
///
/// # Errors
/// When no thread can be had.
pub fn start() -> io::Result<()> {
    end_on_panic();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = layer(Format::Text, false, io::stderr())?;
    // Fails only where a subscriber is set already, as in tests.
    drop(Registry::default().with(filter).with(lines).try_init());
    Ok(())
}

/// A layer that writes lines to `output` from a thread of its own. The first one of a process also takes its last words.
///
/// # Errors
/// When no thread can be had.
pub fn layer<S>(format: Format, ansi: bool, output: impl Write + Send + 'static) -> io::Result<Boxed<S>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (queue, layer) = layer_with_queue(format, ansi, output)?;
    // Of two, the first stays.
    drop(PROCESS.set(queue));
    Ok(layer)
}

/// A layer of any kind.
pub type Boxed<S> = Box<dyn Layer<S> + Send + Sync>;

fn layer_with_queue<S>(
    format: Format,
    ansi: bool,
    output: impl Write + Send + 'static,
) -> io::Result<(Arc<Queue>, Boxed<S>)>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let queue = Queue::start(format, output)?;
    let limits = Arc::clone(&queue);
    let lines = fmt::layer().with_writer(queue::Writer(Arc::clone(&queue))).with_target(false);
    // Otherwise it writes to standard error for each line that it cannot write.
    let lines = lines.log_internal_errors(false);
    let layer = match format {
        Format::Text => {
            lines.with_ansi(ansi).map_event_format(|f| line::Limited::new(f, format, limits)).boxed()
        }
        Format::Json => fmt::Layer::json(lines)
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .map_event_format(|f| line::Limited::new(f, format, limits))
            .boxed(),
    };
    Ok((queue, layer))
}

/// Waits, for half a second at most, until what was said is written. The last thing that a process does.
pub fn flush() {
    if let Some(queue) = PROCESS.get() {
        queue.flush(LAST_LINES_WITHIN);
    }
}

/// Says why the process ends, as the last line of its log, and waits for that like [`flush`]. Where no log was started
/// the line goes to standard error.
pub fn last_words(text: &str) {
    let line = format!("{text}\n");
    match PROCESS.get() {
        Some(queue) => {
            queue.push(line.as_bytes());
            queue.flush(LAST_LINES_WITHIN);
        }
        // A closed or full standard error leaves nothing to do.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}
