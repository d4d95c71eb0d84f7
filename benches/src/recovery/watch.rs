//! `holdfast watch`, with the moment at which each line came.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::node::{Node, Volume, WITHIN};

/// The states of a volume as they come. The engine reports at most ten times a second.
#[derive(Debug)]
pub(super) struct Watch {
    child: Child,
    states: Receiver<(Instant, Volume)>,
}

impl Watch {
    /// Watches `volume` of an agent that runs.
    ///
    /// # Errors
    /// When the watch cannot be started.
    pub(super) fn start(node: &Node, volume: &str) -> Result<Self> {
        let mut command = node.command(&["watch", "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("failed to start the watch")?;
        let lines = BufReader::new(child.stdout.take().context("the watch has no output")?).lines();
        let (tell, states) = channel();
        let name = volume.to_owned();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let at = Instant::now();
                for state in volumes_in(&line).into_iter().filter(|state| state.name == name) {
                    // Nobody listens any more: the watch is about to end.
                    let _ = tell.send((at, state));
                }
            }
        });
        Ok(Self { child, states })
    }

    /// The first state from now on with which `wanted` is content, and when it came.
    ///
    /// # Errors
    /// When it does not come in time.
    pub(super) fn until(&self, what: &str, wanted: impl FnMut(&Volume) -> bool) -> Result<(Instant, Volume)> {
        self.until_or(what, WITHIN, wanted)?.with_context(|| format!("not {what} within {WITHIN:?}"))
    }

    /// The same, but not longer than `within`.
    ///
    /// # Errors
    /// When the watch ends.
    pub(super) fn until_or(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Volume) -> bool,
    ) -> Result<Option<(Instant, Volume)>> {
        let deadline = Instant::now() + within;
        loop {
            match self.states.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, volume)) if wanted(&volume) => return Ok(Some((at, volume))),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => bail!("the watch ended before {what}"),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Either fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn volumes_in(line: &str) -> Vec<Volume> {
    let Ok(mut event) = serde_json::from_str::<Value>(line) else { return Vec::new() };
    let found = match event.get("event").and_then(Value::as_str) {
        Some("snapshot") => event["volumes"].take(),
        Some("volume_changed") => Value::Array(vec![event["volume"].take()]),
        Some(_) | None => return Vec::new(),
    };
    serde_json::from_value(found).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_line_hold_volumes() {
        let volume = r#"{"name":"v","state":"healthy","endpoint":null,"engine":null,"replicas":[]}"#;
        let snapshot = format!(r#"{{"revision":1,"event":"snapshot","instances":[],"volumes":[{volume}]}}"#);
        let changed = format!(r#"{{"revision":2,"event":"volume_changed","volume":{volume}}}"#);
        for line in [snapshot, changed] {
            assert_eq!(volumes_in(&line).len(), 1, "{line}");
        }
        assert!(volumes_in(r#"{"revision":3,"event":"volume_removed","name":"v"}"#).is_empty());
    }
}
