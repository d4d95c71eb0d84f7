//! Hearing of nodes: everything once, then what changes, in etcd's order; and everything again after a break.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::etcd as pb;
use holdfast_proto::record::NodeRecord;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::inventory::INVENTORY;
use super::presence::LIVE;
use super::records::WISHES;
use super::{Inner, end_of, found, range_below};
use crate::core::nodes::{Documents, Heard};
use crate::core::presence::{PRESENCE_SCHEMA, Presence};
use crate::error::Error;
use crate::registry::Read;
use crate::store::atomic;

const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Tells until nobody listens any more.
pub(super) async fn run(inner: Arc<Inner>, out: mpsc::Sender<Heard>) {
    loop {
        let broken = tokio::select! {
            () = out.closed() => return,
            why = hear(&inner, &out) => why,
        };
        if out.send(Heard::Lost(broken)).await.is_err() {
            return;
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// Lists, and follows to the end of the stream. Returns why it ended.
async fn hear(inner: &Inner, out: &mpsc::Sender<Heard>) -> String {
    let revision = match list(inner, out).await {
        Ok(revision) => revision,
        Err(error) => return error.to_string(),
    };
    let ranges = [INVENTORY, LIVE, WISHES].into_iter().zip(1..).map(|(kind, watch_id)| {
        let prefix = inner.key(kind, "");
        pb::WatchCreateRequest {
            range_end: end_of(&prefix),
            key: prefix.into_bytes(),
            start_revision: revision + 1,
            progress_notify: false,
            prev_kv: false,
            watch_id,
        }
    });
    let (connection, mut stream) = match inner.client.watch(ranges.collect()).await {
        Ok(opened) => opened,
        Err(failure) => return failure.to_string(),
    };
    let why = loop {
        let message = match stream.message().await {
            Ok(Some(message)) if message.canceled => break format!("cancelled: {}", message.cancel_reason),
            Ok(Some(message)) => message,
            Ok(None) => break "the server ended it".to_owned(),
            Err(status) => break connection.failure(&status).to_string(),
        };
        for heard in message.events.iter().filter_map(|event| heard(inner, event)) {
            if out.send(heard).await.is_err() {
                return "nobody listens".to_owned();
            }
        }
    };
    inner.client.drop_connection(&connection);
    why
}

/// Returns the revision at which it was so.
async fn list(inner: &Inner, out: &mpsc::Sender<Heard>) -> Result<i64, Error> {
    let ranges = [INVENTORY, LIVE, WISHES].map(|kind| range_below(&inner.key(kind, "")));
    let answer = inner.read("read what nodes publish", ranges.into()).await?;
    let mut published: BTreeMap<NodeName, Documents> = BTreeMap::new();
    for kv in found(&answer, 0) {
        if let Some((node, key)) = published_key(inner, &kv.key) {
            published.entry(node).or_default().push((key, kv.value.clone()));
        }
    }
    let live = found(&answer, 1).iter().filter_map(|kv| Some((live_key(inner, &kv.key)?, presence(kv)?)));
    let wishes = found(&answer, 2).iter().filter_map(|kv| {
        let node = wished_key(inner, &kv.key)?;
        let wish = wish(inner, &node, kv);
        Some((node, wish))
    });
    let listed = Heard::Listed { published, live: live.collect(), wishes: wishes.collect() };
    let told = out.send(listed).await;
    told.map_err(|_| Error::failed("read what nodes publish: nobody listens"))?;
    Ok(answer.header.map_or(0, |header| header.revision))
}

fn heard(inner: &Inner, event: &pb::Event) -> Option<Heard> {
    let kv = event.kv.as_ref()?;
    let put = event.r#type() == pb::event::EventType::Put;
    if let Some((node, key)) = published_key(inner, &kv.key) {
        return Some(match put {
            true => Heard::Put { node, key, bytes: kv.value.clone() },
            false => Heard::Deleted { node, key },
        });
    }
    if let Some(node) = wished_key(inner, &kv.key) {
        return match put {
            true => wish(inner, &node, kv).map(|wish| Heard::Wished(node, Some(wish))),
            false => Some(Heard::Wished(node, None)),
        };
    }
    let node = live_key(inner, &kv.key)?;
    Some(match presence(kv).filter(|_| put) {
        Some(presence) => Heard::Lives(node, presence),
        None => Heard::Silent(node),
    })
}

/// `inventory/NODE/KEY`.
fn published_key(inner: &Inner, key: &[u8]) -> Option<(NodeName, String)> {
    let prefix = inner.key(INVENTORY, "");
    let (node, key) = std::str::from_utf8(key).ok()?.strip_prefix(&prefix)?.split_once('/')?;
    Some((node.parse().ok()?, key.to_owned()))
}

/// `live/NODE`.
fn live_key(inner: &Inner, key: &[u8]) -> Option<NodeName> {
    named(key, &inner.key(LIVE, ""))
}

/// `wishes/NODE`.
fn wished_key(inner: &Inner, key: &[u8]) -> Option<NodeName> {
    named(key, &inner.key(WISHES, ""))
}

fn named(key: &[u8], prefix: &str) -> Option<NodeName> {
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)?.parse().ok()
}

/// One that cannot be read takes nothing back that was wished before.
fn wish(inner: &Inner, node: &NodeName, kv: &pb::KeyValue) -> Option<NodeRecord> {
    match inner.parse_node(node, &kv.value) {
        Read::Found(record) => Some(record),
        Read::Absent => None,
        Read::Unreadable(reason) => {
            tracing::warn!(reason, "what is wished for a node cannot be read; what was known of it counts");
            None
        }
    }
}

/// A key with a lease alone proves that the agent lives, whatever it says: what it has is not taken for abandoned. None
/// without one: that is no agent's, which would not have to live for it to stand there.
fn presence(kv: &pb::KeyValue) -> Option<Presence> {
    if kv.lease == 0 {
        return None;
    }
    let place = String::from_utf8_lossy(&kv.key).into_owned();
    Some(match atomic::parse_json::<Presence>(&kv.value, &place, PRESENCE_SCHEMA) {
        Read::Found(presence) => presence,
        Read::Absent => Presence::not_understood(),
        Read::Unreadable(reason) => {
            tracing::warn!(reason, "what a node says of itself cannot be understood; it lives");
            Presence::not_understood()
        }
    })
}
