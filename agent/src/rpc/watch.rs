//! What a watcher is told: the snapshot, then each change in order, the snapshot again every minute, or a plain statement
//! that some changes were missed.
//!
//! A subscriber that does not read fills a short queue of its own, then lags behind the node's changes, and is told
//! so: it is cheaper to look again than to guess.

use std::time::Duration;

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::watch_event::Event;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Stopped, stop_asked};
use crate::node::{Change, Snapshot};

/// Events between the node and one connection; more are kept, bounded, by the node.
const QUEUE_MAX: usize = 16;
/// Everything is told again this long after it was told last, whatever changes meanwhile: what a subscriber made of the
/// changes it can then compare.
const FULL_EVERY: Duration = Duration::from_secs(60);

/// What the next received change means to one subscriber.
#[derive(Debug, PartialEq)]
enum Step {
    Send(pb::WatchEvent),
    /// It was part of the snapshot.
    Skip,
    /// The last event of the stream.
    SendAndEnd(pb::WatchEvent),
    End,
}

/// Pure: `seen` is the last revision that the subscriber has.
fn step(received: Result<(u64, Change), broadcast::error::RecvError>, seen: &mut u64) -> Step {
    let resync = |revision: u64, reason: String| {
        let resync = pb::watch_event::Resync { reason };
        Step::SendAndEnd(pb::WatchEvent { revision, event: Some(Event::Resync(resync)) })
    };
    match received {
        Ok((revision, _)) if revision <= *seen => Step::Skip,
        // The node counts every change; a gap is one this stream never got.
        Ok((revision, _)) if revision != *seen + 1 => {
            resync(*seen, format!("changes {} to {} were missed", *seen + 1, revision - 1))
        }
        Ok((revision, change)) => {
            *seen = revision;
            Step::Send(pb::WatchEvent { revision, event: Some(event(change)) })
        }
        Err(broadcast::error::RecvError::Lagged(missed)) => {
            resync(*seen, format!("the subscriber was too slow: {missed} changes were missed"))
        }
        Err(broadcast::error::RecvError::Closed) => Step::End,
    }
}

fn everything(snapshot: Snapshot) -> pb::WatchEvent {
    let Snapshot { revision, instances, volumes } = snapshot;
    let all = pb::watch_event::Snapshot { instances, volumes };
    pb::WatchEvent { revision, event: Some(Event::Snapshot(all)) }
}

fn event(change: Change) -> Event {
    match change {
        Change::InstanceChanged(instance) => Event::InstanceChanged(instance),
        Change::InstanceRemoved(name) => Event::InstanceRemoved(name),
        Change::VolumeChanged(volume) => Event::VolumeChanged(volume),
        Change::VolumeRemoved(name) => Event::VolumeRemoved(name),
    }
}

/// Everything, then every change, and everything again every minute, until the subscriber or the server goes, or it
/// lags. `look` makes a snapshot as it is when called; all changes that it holds have been sent by then.
pub(super) fn stream(
    snapshot: Snapshot,
    changes: broadcast::Receiver<(u64, Change)>,
    look: impl Fn() -> Snapshot + Send + 'static,
    stopped: Stopped,
) -> ReceiverStream<Result<pb::WatchEvent, Status>> {
    let (events, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(async move {
        tokio::select! {
            () = pump(snapshot, changes, look, &events) => {}
            () = events.closed() => {}
            () = stop_asked(stopped) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn pump(
    snapshot: Snapshot,
    mut changes: broadcast::Receiver<(u64, Change)>,
    look: impl Fn() -> Snapshot,
    events: &mpsc::Sender<Result<pb::WatchEvent, Status>>,
) {
    let mut seen = snapshot.revision;
    let mut full = Some(snapshot);
    let mut full_at = Instant::now() + FULL_EVERY;
    loop {
        // What it holds beyond what was told is told first, change by change: no subscriber misses one.
        if let Some(snapshot) = full.take_if(|snapshot| snapshot.revision <= seen)
            && events.send(Ok(everything(snapshot))).await.is_err()
        {
            return;
        }
        let received = tokio::select! {
            received = changes.recv() => received,
            () = sleep_until(full_at) => {
                full = Some(look());
                full_at = Instant::now() + FULL_EVERY;
                continue;
            }
        };
        match step(received, &mut seen) {
            Step::Skip => {}
            Step::Send(event) => {
                if events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            Step::SendAndEnd(event) => {
                drop(events.send(Ok(event)).await);
                return;
            }
            Step::End => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    fn removed(name: &str) -> Change {
        Change::VolumeRemoved(name.to_owned())
    }

    fn kept(revision: u64) -> Snapshot {
        Snapshot { revision, ..Snapshot::default() }
    }

    fn once() -> Snapshot {
        panic!("a minute is not over")
    }

    async fn collect(mut stream: ReceiverStream<Result<pb::WatchEvent, Status>>) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            let text = match event.event.unwrap() {
                Event::Snapshot(_) => "snapshot".to_owned(),
                Event::VolumeRemoved(name) => name,
                Event::Resync(resync) => format!("resync: {}", resync.reason),
                other => format!("{other:?}"),
            };
            seen.push((event.revision, text));
        }
        seen
    }

    #[tokio::test]
    async fn the_snapshot_then_every_later_change_once_and_in_order() {
        let (sender, receiver) = broadcast::channel(16);
        for revision in 6..=9 {
            sender.send((revision, removed(&format!("v{revision}")))).unwrap();
        }
        drop(sender);
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        // 6 and 7 are in the snapshot already.
        let got = collect(stream(kept(7), receiver, once, stopped)).await;
        assert_eq!(got, [(7, "snapshot".to_owned()), (8, "v8".to_owned()), (9, "v9".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn everything_is_told_again_every_minute_and_no_change_is_left_out_for_it() {
        let (sender, receiver) = broadcast::channel(16);
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(7));
        // Each look finds a change that was sent just before, as under the node's lock.
        let look = move || {
            let revision = 1 + count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            sender.send((revision, removed("v"))).unwrap();
            kept(revision)
        };
        let mut stream = stream(kept(7), receiver, look, stopped);
        let begun = Instant::now();
        let mut seen = Vec::new();
        while seen.len() < 7 {
            let event = stream.next().await.unwrap().unwrap();
            let full = matches!(event.event, Some(Event::Snapshot(_)));
            seen.push((begun.elapsed().as_secs(), event.revision, full));
        }
        let minute = |n: u64, revision| [(60 * n, revision, false), (60 * n, revision, true)];
        let expected = [vec![(0, 7, true)], minute(1, 8).into(), minute(2, 9).into(), minute(3, 10).into()];
        assert_eq!(seen, expected.concat());
    }

    #[tokio::test]
    async fn a_subscriber_that_lags_is_told_to_look_again_and_the_stream_ends() {
        let (sender, receiver) = broadcast::channel(4);
        for revision in 1..=20 {
            sender.send((revision, removed("v"))).unwrap();
        }
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        let got = collect(stream(kept(0), receiver, once, stopped)).await;
        assert_eq!(got.len(), 2, "{got:?}");
        assert_eq!(got[0], (0, "snapshot".to_owned()));
        assert!(got[1].1.starts_with("resync: the subscriber was too slow: 16 "), "{got:?}");
        drop(sender);
    }

    #[tokio::test]
    async fn a_stop_ends_the_stream_of_a_client_that_does_not_read() {
        let (sender, receiver) = broadcast::channel(64);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let stream = stream(kept(0), receiver, once, stopped);
        for revision in 1..=60 {
            sender.send((revision, removed("v"))).unwrap();
        }
        stop.send_replace(true);
        // It ends although the sender of changes is still there.
        assert!(collect(stream).await.len() <= QUEUE_MAX + 1);
        drop(sender);
    }

    #[test]
    fn a_gap_in_the_revisions_is_a_resync() {
        let mut seen = 4;
        let Step::SendAndEnd(event) = step(Ok((7, removed("v"))), &mut seen) else { panic!("no resync") };
        let Some(Event::Resync(resync)) = event.event else { panic!("{event:?}") };
        assert_eq!(resync.reason, "changes 5 to 6 were missed");
        assert_eq!(step(Ok((4, removed("v"))), &mut seen), Step::Skip);
        assert_eq!(step(Err(broadcast::error::RecvError::Closed), &mut seen), Step::End);
    }
}
