//! What operators ask of a whole node: to give its replicas away, whether it may be restarted, that it does not come
//! back. Moves are carried out by whichever agent is on duty (`upkeep`); here wishes are written, and looked at.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::{BootId, NodeName};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::instance as ipb;
use holdfast_proto::pb::instance::watch_item::Item;
use holdfast_proto::status::ErrorKind;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::shared::{Shared, blocking};
use super::{nodes, wishes};
use crate::core::instance::InstanceName;
use crate::core::records::Records;
use crate::core::upkeep::{self, Answers, Fleet, Left, Standing};
use crate::error::Error;
use crate::process::link::{self, ANSWER_WITHIN, Expected};
use crate::store::Read;
use crate::store::instances::InstanceStore;

/// How long the registry and the disks may take before they are said not to answer.
const LOOK_WITHIN: Duration = Duration::from_secs(20);

/// Marks the node as draining, and says what is left there.
pub(super) async fn drain(shared: &Shared, name: &str) -> Result<pb::NodeParts, Error> {
    let node = known(shared, "drain", name).await?;
    wishes::wish(shared, &node, |wish| wish.draining = true).await?;
    tracing::info!(%node, "it is being drained");
    left(shared, node.as_str()).await
}

/// Takes all marks back.
pub(super) async fn undrain(shared: &Shared, name: &str) -> Result<pb::NodeSummary, Error> {
    let node = known(shared, "undrain", name).await?;
    wishes::wish(shared, &node, |wish| (wish.draining, wish.forgotten) = (false, false)).await?;
    tracing::info!(%node, "it takes replicas again");
    Ok(summary(shared, &node))
}

/// What is left on the node.
pub(super) async fn left(shared: &Shared, name: &str) -> Result<pb::NodeParts, Error> {
    let node = known(shared, "look at", name).await?;
    let seen = look(shared).await?;
    let wait = *shared.replenish_after.lock();
    let stuck = upkeep::plan(&seen.records, &seen.fleet, wait).stuck;
    let left = upkeep::left_on(&node, &seen.records, &seen.fleet, &stuck);
    Ok(seen.parts(&node, left))
}

/// What speaks against restarting the node now.
pub(super) async fn safe_to_reboot(shared: &Shared, name: &str) -> Result<pb::NodeParts, Error> {
    let node = known(shared, "look at", name).await?;
    // A look at a disk that hangs does not return: that it ran out of time is the answer then.
    let Ok(seen) = timeout(LOOK_WITHIN, look(shared)).await else {
        return Err(Error::new(
            ErrorKind::TimedOut,
            format!(
                "say whether node {node} may be restarted: what is there could not be looked at within {LOOK_WITHIN:?}; \
                 does a disk hang, or the registry?"
            ),
        ));
    };
    let seen = seen?;
    let here = &shared.config.node;
    let mut asking = JoinSet::new();
    for name in upkeep::instances_to_ask(&node, here, &seen.records) {
        let (store, boot_id) = (shared.store.clone(), shared.boot_id);
        asking.spawn(async move {
            let answer = timeout(ANSWER_WITHIN, ask(name.clone(), store, boot_id)).await;
            (name, answer.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}"))))
        });
    }
    let answers = Answers { here, by: asking.join_all().await.into_iter().collect() };
    let against = upkeep::unsafe_to_reboot(&node, &seen.records, &seen.fleet, &answers);
    Ok(seen.parts(&node, against))
}

/// Asks an instance what it is doing now, past whatever it told its driver.
async fn ask(
    name: InstanceName,
    store: InstanceStore,
    boot_id: BootId,
) -> Result<ipb::InstanceStatus, String> {
    let text = name.to_string();
    let read = blocking(move || Ok(store.read(&text))).await.map_err(|error| error.to_string())?;
    let record = match read {
        Read::Found(record) => record,
        Read::Absent => return Err("it does not run".to_owned()),
        Read::Unreadable(why) => return Err(why),
    };
    let pid = record.process.map(|process| process.pid);
    let expected = Expected { name, uuid: record.uuid, boot_id, pid };
    let (mut client, _) = link::connect(&record.control_socket, pid).await?;
    link::hello(&mut client, &expected).await?;
    let mut items = link::within(client.watch(ipb::WatchRequest {})).await?;
    // The first thing that a watcher gets is the whole status.
    match items.message().await {
        Ok(Some(ipb::WatchItem { item: Some(Item::Status(status)) })) => Ok(status),
        Ok(_) => Err("it closed the connection".to_owned()),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Declares that the node does not come back.
pub(super) async fn forget(shared: &Shared, name: &str) -> Result<pb::NodeSummary, Error> {
    let node = known(shared, "forget", name).await?;
    let seen = look(shared).await?;
    let refused = |why: String| Err(Error::refused(format!("forget node {node}: {why}")));
    if let Some(doubt) = seen.doubt {
        return refused(format!("whether its agent lives is not known: {}", doubt.reason));
    }
    let lives = seen.fleet.get(&node).is_some_and(|sight| sight.standing == Standing::Live);
    if lives || node == shared.config.node {
        return refused(format!(
            "its agent lives; move what is there away with `holdfast node drain {node}`, end its agent, and wait until \
             `holdfast node ls` shows it as silent"
        ));
    }
    wishes::wish(shared, &node, |wish| wish.forgotten = true).await?;
    tracing::warn!(%node, "it was forgotten: nobody waits for it any more, and its replicas are placed elsewhere");
    Ok(summary(shared, &node))
}

/// The node that is meant, where anybody has heard of it.
async fn known(shared: &Shared, verb: &str, name: &str) -> Result<NodeName, Error> {
    let operation = format!("{verb} node {name}");
    let node = nodes::named(shared, &operation, name)?;
    // One that is marked was known once.
    let marked = shared.nodes.lock().wish(&node).is_some();
    if !marked {
        nodes::require_known(shared, &operation, [&node]).await?;
    }
    Ok(node)
}

fn summary(shared: &Shared, node: &NodeName) -> pb::NodeSummary {
    let listed = nodes::list(shared).into_iter().find(|known| known.name == node.as_str());
    listed.unwrap_or_else(|| pb::NodeSummary { name: node.to_string(), ..Default::default() })
}

/// Everything that is known of volumes and nodes.
struct Seen {
    records: Arc<Records>,
    fleet: Fleet,
    /// Why what is known of nodes may not be so now.
    doubt: Option<Left>,
}

/// Looks at the registry and at what is heard of nodes.
async fn look(shared: &Shared) -> Result<Seen, Error> {
    let several = shared.config.registry.is_shared();
    if several {
        shared.wait_elsewhere(nodes::HEARD_WITHIN, |known| known.is_heard()).await;
    }
    // The records as they are now.
    shared.reconcile().await?;
    let records = Arc::clone(&shared.records.lock());
    let nodes = shared.nodes.lock();
    let fleet = upkeep::fleet(&nodes, &shared.config.node, shared.now());
    let deaf = several && !nodes.is_complete();
    let doubt = deaf.then(|| Left {
        volume: "*".to_owned(),
        replica: None,
        reason: "the registry tells nothing of the nodes now; try again when it does".to_owned(),
    });
    Ok(Seen { records, fleet, doubt })
}

impl Seen {
    fn parts(self, node: &NodeName, parts: Vec<Left>) -> pb::NodeParts {
        let parts = self.doubt.into_iter().chain(parts).map(|left| pb::NodePart {
            volume: left.volume,
            replica: left.replica.map(|id| id.to_string()).unwrap_or_default(),
            reason: left.reason,
        });
        pb::NodeParts {
            node: node.to_string(),
            draining: self.fleet.get(node).is_some_and(|sight| sight.draining),
            parts: parts.collect(),
        }
    }
}
