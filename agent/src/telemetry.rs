//! The agent's log: text for people, JSON for collectors; the level can change while running. How lines are written, and
//! which, is the business of `holdfast_log`.

use std::io::{self, IsTerminal, Write};
use std::str::FromStr;

use indicatif::ProgressBar;
use serde::Serialize;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::complaint::Complaint;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a log format: expected text or json")),
        }
    }
}

/// A level (`info`) or a filter with targets (`info,holdfast=debug`), known to be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Warnings and errors only.
    #[must_use]
    pub fn warn() -> Self {
        Self("warn".to_owned())
    }
    fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}
impl Default for LogLevel {
    fn default() -> Self {
        Self("info".to_owned())
    }
}
impl FromStr for LogLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected error, warn, info, debug or trace, or a filter such as info,holdfast=debug";
        let known = |part: &str| {
            let level = part.rsplit('=').next().unwrap_or_default();
            matches!(level, "off" | "error" | "warn" | "info" | "debug" | "trace")
        };
        // The filter alone would take any word for the name of a target and then log nothing.
        if !text.split(',').all(known) {
            return Err(format!("{text:?} is not a log level: {expected}"));
        }
        EnvFilter::try_new(text)
            .map_err(|error| format!("{text:?} is not a log level ({error}): {expected}"))?;
        Ok(Self(text.to_owned()))
    }
}

/// Standard error, or above the live status line where one is drawn.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    bar: Option<ProgressBar>,
}

impl Sink {
    /// Above this status line.
    #[must_use]
    pub fn above(bar: ProgressBar) -> Self {
        Self { bar: Some(bar) }
    }
}

impl Write for Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().lock().write(lines);
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Changes what is logged while the process runs.
#[derive(Debug, Clone)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Telemetry {
    /// Starts logging for the whole process, which a panic ends from now on. A second call keeps the first one's
    /// settings.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(format: LogFormat, level: &LogLevel, sink: Sink) -> Result<Self, Complaint> {
        holdfast_log::end_on_panic();
        let (filter, handle) = reload::Layer::new(level.filter());
        let format = match format {
            LogFormat::Text => holdfast_log::Format::Text,
            LogFormat::Json => holdfast_log::Format::Json,
        };
        let lines = holdfast_log::layer(format, io::stderr().is_terminal(), sink)
            .map_err(|error| Complaint::failed(format!("failed to start the log's thread: {error}")))?;
        // Fails only where a subscriber is already set, as in tests.
        drop(Registry::default().with(filter).with(lines).try_init());
        Ok(Self { filter: handle })
    }

    /// From now on this level.
    ///
    /// # Errors
    /// When logging has ended already.
    pub fn set_level(&self, level: &LogLevel) -> Result<(), String> {
        self.filter.reload(level.filter()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked_before_they_silence_everything() {
        for good in ["info", "debug", "off", "info,holdfast=debug", "warn,tonic=error"] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
        for bad in ["", "loud", "inf", "info,", "holdfast=chatty"] {
            let error = bad.parse::<LogLevel>().unwrap_err();
            assert!(error.contains("is not a log level") && error.contains("debug"), "{bad}: {error}");
        }
    }

    #[test]
    fn formats_are_two() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("yaml".parse::<LogFormat>().unwrap_err().contains("text or json"));
    }
}
