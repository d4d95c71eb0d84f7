//! Hearing of changes: a watch that goes on where it was when its server failed, and begins anew where etcd has
//! forgotten what was in between. It only says that there is something to read.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::pb::etcd as pb;
use holdfast_proto::record::{VolumeRecord, VolumeSpec};
use tokio::time::sleep;

use super::{Inner, end_of};

const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// What is watched, and under which id less one. Not keys: they need not travel.
const WATCHED: [&str; 3] = ["volumes/", "inventory/", "nodes/"];

/// The revision from which each watch goes on; 0: from now on.
type From = [i64; WATCHED.len()];

/// Ticks for as long as the registry is open.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut from = From::default();
    loop {
        let why = follow(&inner, &mut from).await;
        tracing::debug!(why, ?from, "the watch goes on elsewhere");
        sleep(AGAIN_AFTER).await;
    }
}

/// Follows one stream to its end.
async fn follow(inner: &Inner, from: &mut From) -> String {
    let ranges = WATCHED.iter().zip(from.iter()).zip(1..).map(|((kind, from), id)| {
        let prefix = format!("{}/{kind}", inner.prefix);
        pb::WatchCreateRequest {
            range_end: end_of(&prefix),
            key: prefix.into_bytes(),
            start_revision: *from,
            progress_notify: true,
            prev_kv: true,
            watch_id: id,
        }
    });
    let (connection, mut stream) = match inner.client.watch(ranges.collect()).await {
        Ok(opened) => opened,
        Err(failure) => return failure.to_string(),
    };
    let why = loop {
        match stream.message().await {
            Ok(Some(message)) => {
                if let Err(why) = take(inner, from, &message) {
                    break why;
                }
            }
            Ok(None) => break "the server ended it".to_owned(),
            Err(status) => break connection.failure(&status).to_string(),
        }
    };
    inner.client.drop_connection(&connection);
    why
}

fn take(inner: &Inner, from: &mut From, message: &pb::WatchResponse) -> Result<(), String> {
    let index = usize::try_from(message.watch_id - 1).unwrap_or(usize::MAX);
    let Some(from) = from.get_mut(index) else {
        return Err("it answers a watch that was not asked for".into());
    };
    let now = message.header.as_ref().map_or(0, |header| header.revision);
    if message.canceled {
        if message.compact_revision > 0 {
            // What happened in between cannot be told any more: everything is read.
            *from = 0;
        }
        return Err(format!("cancelled: {}", message.cancel_reason));
    }
    if message.created {
        if *from == 0 {
            *from = now + 1;
            inner.tick();
        }
        return Ok(());
    }
    if message.events.iter().any(|event| matters(inner, event)) {
        inner.tick();
    }
    // A message has all events of its last revision; one without events says that there were none.
    let last = message.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
    *from = (*from).max(last.unwrap_or(now) + 1);
    Ok(())
}

/// Whether a plan may depend on it.
fn matters(inner: &Inner, event: &pb::Event) -> bool {
    let Some(kv) = &event.kv else { return true };
    let key = String::from_utf8_lossy(&kv.key);
    let rest = key.strip_prefix(&inner.prefix).unwrap_or_default();
    if let Some(node) = rest.strip_prefix("/inventory/").or_else(|| rest.strip_prefix("/nodes/")) {
        // This node's own, or a lease that was only written again.
        let same = event.prev_kv.as_ref().is_some_and(|before| before.value == kv.value);
        return node != inner.node.as_str() && !same;
    }
    let new = spec(Some(kv).filter(|_| event.r#type() == pb::event::EventType::Put));
    // A `status` alone is an engine's.
    new.is_none() || new != spec(event.prev_kv.as_ref())
}

fn spec(kv: Option<&pb::KeyValue>) -> Option<VolumeSpec> {
    let record: VolumeRecord = serde_json::from_slice(&kv?.value).ok()?;
    Some(record.spec)
}
