//! The nodes as operators name and see them.

use std::sync::Arc;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::inventory as ipb;
use holdfast_proto::record::VolumeRecord;
use ipb::entry::Entry as Of;

use super::info;
use super::shared::Shared;
use crate::core::nodes::Known;
use crate::error::Error;

/// An agent that has just started hears of the others within this.
pub(super) const HEARD_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// The node that a person named; this one where that is nobody.
pub(super) fn named(shared: &Shared, operation: &str, name: &str) -> Result<NodeName, Error> {
    match name {
        "" => Ok(shared.config.node.clone()),
        name => name.parse().map_err(|e| Error::invalid(format!("{operation}: node: {e}"))),
    }
}

/// Refuses nodes that nobody has heard of.
pub(super) async fn require_known<'a>(
    shared: &Shared,
    operation: &str,
    nodes: impl IntoIterator<Item = &'a NodeName>,
) -> Result<(), Error> {
    let others: Vec<_> = nodes.into_iter().filter(|node| **node != shared.config.node).collect();
    if others.is_empty() {
        return Ok(());
    }
    shared.wait_elsewhere(HEARD_WITHIN, |known| known.is_heard()).await;
    let known = shared.elsewhere.borrow().clone();
    let Some(stranger) = others.into_iter().find(|node| known.is_live(node).is_none()) else { return Ok(()) };
    let there: Vec<_> = known.names().chain([&shared.config.node]).map(NodeName::as_str).collect();
    Err(Error::invalid(format!(
        "{operation}: the registry knows no node {stranger}, only {}; its agent registers it when it starts: `holdfast \
         node ls`",
        there.join(", ")
    )))
}

/// Refuses nodes that nobody has heard of, and those that take no new replicas.
pub(super) async fn require_takes<'a>(
    shared: &Shared,
    operation: &str,
    nodes: impl IntoIterator<Item = &'a NodeName>,
) -> Result<(), Error> {
    let nodes: Vec<_> = nodes.into_iter().collect();
    require_known(shared, operation, nodes.iter().copied()).await?;
    let known = shared.nodes.lock();
    for node in nodes {
        let why = match known.wish(node) {
            Some(wish) if wish.forgotten => "was forgotten",
            Some(wish) if wish.draining => "is being drained",
            Some(_) | None => continue,
        };
        return Err(Error::refused(format!(
            "{operation}: node {node} {why} and takes no new replicas; place it on another, or `holdfast node undrain \
             {node}`"
        )));
    }
    Ok(())
}

/// Whether a volume whose engine has not been seen to end may be attached on `node` all the same: where the engine's
/// node does not answer, it is fenced by the new one's generation.
pub(super) fn may_pass_over_engine(shared: &Shared, record: &VolumeRecord, node: &NodeName) -> bool {
    let engines = record.spec.detaching.as_ref().filter(|engines| *engines != node);
    engines.is_some_and(|engines| is_silent(shared, engines))
}

/// Whether this is another node, and its agent has not spoken lately, as far as is known.
pub(super) fn is_silent(shared: &Shared, node: &NodeName) -> bool {
    let known = shared.elsewhere.borrow();
    *node != shared.config.node && known.is_heard() && known.is_live(node) != Some(true)
}

/// The same, with what has to be looked for where the registry does not tell of this node.
pub(super) async fn looked_for(shared: &Arc<Shared>) -> Vec<pb::NodeSummary> {
    let mut all = list(shared);
    let told = shared.nodes.lock().iter().any(|(name, _)| *name == shared.config.node);
    if let Some(here) = all.iter_mut().find(|node| node.here && !told) {
        match info::replica_dirs(shared).await {
            Ok(found) => here.replicas = u32::try_from(found.len()).unwrap_or(u32::MAX),
            Err(error) => here.reason = Some(error.to_string()),
        }
    }
    all
}

/// Every node that the registry tells of, and this one.
pub(super) fn list(shared: &Shared) -> Vec<pb::NodeSummary> {
    let here = &shared.config.node;
    let nodes = shared.nodes.lock();
    let now = shared.now();
    let known = nodes.iter().map(|(name, known)| pb::NodeSummary {
        name: name.to_string(),
        here: name == here,
        live: known.presence.is_some(),
        silent_s: known.silent_since.map(|since| now.saturating_sub(since).as_secs()),
        address: known.presence.as_ref().map(|presence| presence.address.clone()).unwrap_or_default(),
        reason: known.doubt().map(str::to_owned),
        ..published(known)
    });
    let forgotten = nodes.forgotten().filter(|node| nodes.iter().all(|(known, _)| known != *node));
    let forgotten = forgotten.map(|name| pb::NodeSummary { name: name.to_string(), ..Default::default() });
    let mut all: Vec<_> = known.chain(forgotten).collect();
    if !all.iter().any(|node| node.here) {
        all.push(this_one(shared));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    for node in &mut all {
        let wish = node.name.parse().ok().and_then(|name| nodes.wish(&name));
        node.draining = wish.is_some_and(|wish| wish.draining);
        node.forgotten = wish.is_some_and(|wish| wish.forgotten);
    }
    all
}

/// Where the registry tells of no nodes, or not of this one yet.
fn this_one(shared: &Shared) -> pb::NodeSummary {
    let running = shared.snapshot().instances.into_iter().filter(|instance| !instance.ended).count();
    pb::NodeSummary {
        name: shared.config.node.to_string(),
        here: true,
        live: true,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: shared.config.advertise.unwrap_or(shared.config.bind).to_string(),
        instances: u32::try_from(running).unwrap_or(u32::MAX),
        ..Default::default()
    }
}

fn published(known: &Known) -> pb::NodeSummary {
    let mut summary = pb::NodeSummary::default();
    for entry in known.published().into_iter().flat_map(|inventory| inventory.entries.values()) {
        match &entry.entry {
            Some(Of::Node(node)) => {
                summary.version.clone_from(&node.version);
                let told = node.pressure.unwrap_or_default();
                summary.pressure_cpu = level(told.cpu()).to_owned();
                summary.pressure_memory = level(told.memory()).to_owned();
                summary.pressure_io = level(told.io()).to_owned();
            }
            Some(Of::Instance(instance)) if !instance.ended => summary.instances += 1,
            Some(Of::ReplicaDir(_)) => summary.replicas += 1,
            Some(Of::Instance(_) | Of::Disk(_)) | None => {}
        }
    }
    summary
}

fn level(level: ipb::Level) -> &'static str {
    match level {
        ipb::Level::Unspecified => "",
        ipb::Level::None => "none",
        ipb::Level::Some => "some",
        ipb::Level::High => "high",
        ipb::Level::Severe => "severe",
    }
}
