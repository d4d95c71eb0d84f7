//! The end of `quickstart`: engines first, then replicas, each with the node's deadline. An impatient second Ctrl-C is
//! answered, not obeyed: what is being flushed stays flushed.

use super::agent::{Asked, Signals};
use super::status_line::StatusLine;
use crate::complaint::Complaint;
use crate::node::{NodeHandle, ShutdownProgress};

/// Ends the node with all its instances, saying how far it is.
pub(super) async fn shutdown(
    node: &NodeHandle,
    signals: &mut Signals,
    line: &StatusLine,
    tell: impl Fn(&str),
) -> Result<(), Complaint> {
    let mut progress = node.shutdown_progress();
    let mut watching = true;
    let mut said = String::new();
    let ending = node.shutdown(true);
    tokio::pin!(ending);
    let result = loop {
        tokio::select! {
            result = &mut ending => break result,
            changed = progress.changed(), if watching => {
                watching = changed.is_ok();
                if let Some(text) = stage(&progress.borrow_and_update())
                    && text != said
                {
                    line.say(&text);
                    tell(&text);
                    said = text;
                }
            }
            asked = signals.next() => if asked == Asked::End {
                tell(&remains(&progress.borrow()));
            },
        }
    };
    result?;
    match &*progress.borrow() {
        ShutdownProgress::Done(left) if !left.is_empty() => {
            let message = format!("these did not end in time: {}", left.join(", "));
            Err(Complaint::failed(message)
                .remedy("start it again: it finds them, and ends them at the next Ctrl-C"))
        }
        ShutdownProgress::Done(_)
        | ShutdownProgress::Running
        | ShutdownProgress::Engines(_)
        | ShutdownProgress::Replicas(_) => Ok(()),
    }
}

fn stage(progress: &ShutdownProgress) -> Option<String> {
    match progress {
        ShutdownProgress::Running | ShutdownProgress::Done(_) => None,
        ShutdownProgress::Engines(names) | ShutdownProgress::Replicas(names) if names.is_empty() => None,
        ShutdownProgress::Engines(names) => {
            Some(format!("stopping {}: draining, flushing, writing the clean mark", names.join(", ")))
        }
        ShutdownProgress::Replicas(names) => Some(format!("stopping {}", names.join(", "))),
    }
}

/// The answer to a second Ctrl-C.
fn remains(progress: &ShutdownProgress) -> String {
    let what = stage(progress).unwrap_or_else(|| "stopping".to_owned());
    format!("still {what}; each has a deadline, and no flush is skipped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_interrupt_is_told_what_remains() {
        let engines = ShutdownProgress::Engines(vec!["demo.engine".into()]);
        let text = remains(&engines);
        assert!(text.contains("demo.engine") && text.contains("no flush is skipped"), "{text}");
        let replicas = ShutdownProgress::Replicas(vec!["demo.r1".into(), "demo.r2".into()]);
        assert!(remains(&replicas).contains("demo.r1, demo.r2"));
        assert!(remains(&ShutdownProgress::Running).starts_with("still stopping"));
    }
}
