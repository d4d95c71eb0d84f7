//! Follows what the registry tells of the other nodes, and lets the supervisor know what changed.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::shared::Shared;
use crate::core::features;
use crate::core::nodes::Heard;

/// A burst of changes is one reason to look; the supervisor reads the whole registry each time.
const COALESCE: Duration = Duration::from_millis(100);
/// Everything is listed again no sooner than this.
const LIST_AGAIN: Duration = Duration::from_secs(1);

/// Follows until the node has ended.
pub(super) async fn run(shared: Weak<Shared>) {
    loop {
        let Some(node) = shared.upgrade() else { return };
        // A registry that other nodes cannot reach tells of none.
        let Some(feed) = node.registry.follow_nodes() else { return };
        drop(node);
        follow(&shared, feed).await;
        sleep(LIST_AGAIN).await;
    }
}

/// Takes in one feed until it ends, or everything is to be listed again.
async fn follow(shared: &Weak<Shared>, mut feed: mpsc::Receiver<Heard>) {
    let mut written = BTreeSet::new();
    while let Some(first) = feed.recv().await {
        sleep(COALESCE).await;
        let Some(node) = shared.upgrade() else { return };
        let now = node.now();
        let (elsewhere, list) = {
            let mut nodes = node.nodes.lock();
            let mut next = Some(first);
            while let Some(heard) = next {
                nodes.handle(heard, now);
                next = feed.try_recv().ok();
            }
            (Arc::new(nodes.elsewhere(&node.config.node)), nodes.wants_list())
        };
        say_what_is_written(&node, &mut written);
        node.elsewhere.send_if_modified(|known| {
            let new = *known != elsewhere;
            *known = elsewhere;
            new
        });
        if list {
            return;
        }
    }
}

/// Logs which features of records began to be written, or no more are.
fn say_what_is_written(node: &Shared, written: &mut BTreeSet<&'static str>) {
    let now: BTreeSet<_> = features::READ.into_iter().filter(|f| node.features.may_write(f)).collect();
    for feature in now.difference(written) {
        tracing::info!(feature, "records may be written with this feature: every live agent reads it");
    }
    for feature in written.difference(&now) {
        tracing::info!(feature, "records are not written with this feature: not every live agent reads it");
    }
    *written = now;
}
