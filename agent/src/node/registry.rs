//! What operators see of the registry itself, and their word that it counts as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_proto::ids::{Incarnation, VolumeId};
use holdfast_proto::pb::agent as pb;

use super::shared::{Shared, blocking};
use crate::core::losses::{Trace, losses};
use crate::core::records::{RecordState, Records};
use crate::error::Error;
use crate::registry::{Entry, Review};

/// What there is, and what it would lose if it counted.
pub(super) async fn show(shared: &Arc<Shared>) -> Result<pb::RegistryInfo, Error> {
    let incarnation = shared.registry.incarnation().to_string();
    let Some(review) = shared.registry.review().await? else {
        let place = shared.data.registry().to_string_lossy().into_owned();
        let found_incarnation = incarnation.clone();
        return Ok(pb::RegistryInfo { place, incarnation, found_incarnation, ..Default::default() });
    };
    let losses = if review.doubt.is_some() { lost(shared, &review).await? } else { Vec::new() };
    let unreadable = review.records.iter().filter(|entry| matches!(entry, Entry::Unreadable { .. })).count();
    Ok(pb::RegistryInfo {
        place: review.place,
        incarnation: review.incarnation.to_string(),
        found_incarnation: review.found.map(|found| found.to_string()).unwrap_or_default(),
        revision: review.revision,
        found_revision: review.found_revision,
        doubt: review.doubt,
        records: u32::try_from(review.records.len()).unwrap_or(u32::MAX),
        unreadable: u32::try_from(unreadable).unwrap_or(u32::MAX),
        losses,
    })
}

/// Begins a new incarnation in the registry that was shown.
pub(super) async fn accept(shared: &Arc<Shared>, shown: &str) -> Result<pb::RegistryInfo, Error> {
    let before = show(shared).await?;
    if before.doubt.is_none() {
        return Err(Error::refused("accept the registry: it is believed, and nothing is to be accepted"));
    }
    let shown: Option<Incarnation> = match shown {
        "" => None,
        shown => Some(
            shown.parse::<Incarnation>().map_err(|e| Error::invalid(format!("accept the registry: {e}")))?,
        ),
    };
    shared.registry.accept(&shared.config.node, shown).await?;
    shared.reconcile().await?;
    show(shared).await
}

async fn lost(shared: &Arc<Shared>, review: &Review) -> Result<Vec<pb::RegistryLoss>, Error> {
    let there: BTreeMap<VolumeId, u64> = review.records.iter().filter_map(readable).collect();
    let known = shared.last_known.lock().clone();
    let before: Option<BTreeMap<_, _>> =
        known.as_deref().map(|known| known.readable().map(|record| (record.id, record.version)).collect());
    let mut traces = match known.as_deref() {
        Some(known) => of_records(known),
        None => Vec::new(),
    };
    traces.extend(here(shared, review.incarnation).await?);
    let elsewhere = shared.elsewhere.borrow().clone();
    traces.extend(elsewhere.instances().map(|(node, name, place)| Trace {
        id: place.volume_id,
        name: String::new(),
        version: None,
        what: format!("{name} on node {node}"),
    }));
    let lost = losses(&traces, &there, before.as_ref()).into_iter();
    Ok(lost
        .map(|loss| pb::RegistryLoss {
            volume: loss.name,
            volume_id: loss.id.to_string(),
            what: loss.what,
            known_by: loss.known_by,
        })
        .collect())
}

fn readable(entry: &Entry) -> Option<(VolumeId, u64)> {
    match entry {
        Entry::Readable(record) => Some((record.id, record.version)),
        Entry::Unreadable { .. } => None,
    }
}

fn of_records(known: &Records) -> Vec<Trace> {
    let Records::Known(records) = known else { return Vec::new() };
    let traces = records.values().filter_map(|state| match state {
        RecordState::Readable(record) => Some(Trace {
            id: record.id,
            name: record.name.to_string(),
            version: Some(record.version),
            what: format!("its record of version {}", record.version),
        }),
        RecordState::Unreadable(_) => None,
    });
    traces.collect()
}

/// What runs and lies on this node.
async fn here(shared: &Arc<Shared>, incarnation: Incarnation) -> Result<Vec<Trace>, Error> {
    let (replicas, labels) = (shared.data.replicas(), Arc::clone(&shared.labels));
    let found = blocking(move || labels.scan(&replicas)).await?;
    let labels = found.into_iter().filter_map(|dir| dir.label.ok());
    let mut traces: Vec<_> = labels
        .map(|meta| Trace {
            id: meta.volume,
            name: meta.volume_name.to_string(),
            // Versions of another life of the registry are not compared.
            version: (meta.incarnation == incarnation).then_some(meta.revision),
            what: format!("the data of {} on this node", meta.replica),
        })
        .collect();
    let running = shared.snapshot().instances.into_iter().filter(|instance| !instance.ended);
    traces.extend(running.filter_map(|instance| {
        let (id, name) = (instance.volume_id.parse().ok()?, instance.volume);
        Some(Trace { id, name, version: None, what: format!("{} on this node", instance.name) })
    }));
    Ok(traces)
}
