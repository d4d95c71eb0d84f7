//! Hearing of changes: a watch that goes on where it was when its server failed, and begins anew where etcd has
//! forgotten what was in between. It only says that there is something to read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_proto::pb::etcd as pb;
use holdfast_proto::record::{VolumeRecord, VolumeSpec};
use tokio::time::sleep;

use super::{Inner, end_of};

const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// What is watched. Not keys: they need not travel.
const WATCHED: &str = "volumes";
const WATCH_ID: i64 = 1;

/// Ticks for as long as the registry is open.
pub(super) async fn run(inner: Arc<Inner>) {
    // The revision from which the watch goes on; 0: from now on.
    let mut from = 0;
    loop {
        let why = follow(&inner, &mut from).await;
        inner.watch_restarts.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(why, ?from, "the watch goes on elsewhere");
        sleep(AGAIN_AFTER).await;
    }
}

/// Follows one stream to its end.
async fn follow(inner: &Inner, from: &mut i64) -> String {
    let prefix = inner.key(WATCHED, "");
    let range = pb::WatchCreateRequest {
        range_end: end_of(&prefix),
        key: prefix.into_bytes(),
        start_revision: *from,
        progress_notify: true,
        prev_kv: true,
        watch_id: WATCH_ID,
    };
    let (connection, mut stream) = match inner.client.watch(vec![range]).await {
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

fn take(inner: &Inner, from: &mut i64, message: &pb::WatchResponse) -> Result<(), String> {
    if message.watch_id != WATCH_ID {
        return Err("it answers a watch that was not asked for".into());
    }
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
    if message.events.iter().any(matters) {
        inner.tick();
    }
    // A message has all events of its last revision; one without events says that there were none.
    let last = message.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
    *from = (*from).max(last.unwrap_or(now) + 1);
    Ok(())
}

/// Whether a plan may depend on it.
fn matters(event: &pb::Event) -> bool {
    let Some(kv) = &event.kv else { return true };
    let new = spec(Some(kv).filter(|_| event.r#type() == pb::event::EventType::Put));
    // A `status` alone is an engine's.
    new.is_none() || new != spec(event.prev_kv.as_ref())
}

fn spec(kv: Option<&pb::KeyValue>) -> Option<VolumeSpec> {
    let record: VolumeRecord = serde_json::from_slice(&kv?.value).ok()?;
    Some(record.spec)
}
