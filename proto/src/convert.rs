//! Wire messages to domain types and back.

use std::collections::BTreeMap;

use crate::ids::{Epoch, Generation, InstanceUuid};
use crate::pb::instance as pb;
use crate::record::{ReplicaSet, View, VolumeStatus};
use crate::unknown::Unknown;

/// A message that does not say what its type needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field} of {message} is not valid: {found}")]
pub struct InvalidMessage {
    message: &'static str,
    field: &'static str,
    found: String,
}

impl InvalidMessage {
    /// `field` of `message` is missing or does not parse.
    pub fn new(message: &'static str, field: &'static str, found: impl ToString) -> Self {
        Self { message, field, found: found.to_string() }
    }
}

impl From<&View> for pb::View {
    fn from(view: &View) -> Self {
        Self {
            generation: view.generation.0,
            epoch: view.epoch.0,
            members: view.members.iter().map(|id| id.0).collect(),
            needs_registry: view.needs_registry,
        }
    }
}
impl TryFrom<&pb::View> for View {
    type Error = InvalidMessage;
    fn try_from(view: &pb::View) -> Result<Self, InvalidMessage> {
        let bad = |field, found: u64| InvalidMessage::new("View", field, found);
        Ok(Self {
            generation: Generation::checked(view.generation)
                .ok_or_else(|| bad("generation", view.generation))?,
            epoch: Epoch::checked(view.epoch).ok_or_else(|| bad("epoch", view.epoch))?,
            members: ReplicaSet::checked(view.members.iter().copied())
                .ok_or_else(|| InvalidMessage::new("View", "members", format!("{:?}", view.members)))?,
            needs_registry: view.needs_registry,
        })
    }
}

impl From<&VolumeStatus> for pb::VolumeStatus {
    fn from(status: &VolumeStatus) -> Self {
        Self {
            incarnation: status.incarnation.to_string(),
            lineage: status.lineage.to_string(),
            generation: status.generation.0,
            engine_uuid: status.engine_uuid.to_string(),
            engine_instance: status.engine_instance.to_string(),
            view: Some((&status.view).into()),
            round: status.round,
            configured: status.configured.iter().map(|id| id.0).collect(),
            clean: status.clean,
            instance_uuids: status
                .instance_uuids
                .iter()
                .map(|(name, uuid)| (name.clone(), uuid.to_string()))
                .collect(),
        }
    }
}
impl TryFrom<&pb::VolumeStatus> for VolumeStatus {
    type Error = InvalidMessage;
    fn try_from(status: &pb::VolumeStatus) -> Result<Self, InvalidMessage> {
        let bad = |field, found: &dyn ToString| InvalidMessage::new("VolumeStatus", field, found.to_string());
        let view = status.view.as_ref().ok_or_else(|| bad("view", &"missing"))?;
        let mut instance_uuids = BTreeMap::new();
        for (name, uuid) in &status.instance_uuids {
            let uuid: InstanceUuid = uuid.parse().map_err(|e| bad("instance_uuids", &e))?;
            instance_uuids.insert(name.clone(), uuid);
        }
        Ok(Self {
            incarnation: status.incarnation.parse().map_err(|e| bad("incarnation", &e))?,
            lineage: status.lineage.parse().map_err(|e| bad("lineage", &e))?,
            generation: Generation::checked(status.generation)
                .ok_or_else(|| bad("generation", &status.generation))?,
            engine_uuid: status.engine_uuid.parse().map_err(|e| bad("engine_uuid", &e))?,
            engine_instance: match status.engine_instance.as_str() {
                "" => InstanceUuid::nil(),
                uuid => uuid.parse().map_err(|e| bad("engine_instance", &e))?,
            },
            view: view.try_into()?,
            round: status.round,
            configured: ReplicaSet::checked(status.configured.iter().copied())
                .ok_or_else(|| bad("configured", &format!("{:?}", status.configured)))?,
            clean: status.clean,
            instance_uuids,
            // Engines are not told of them; the agent keeps those of the record.
            unknown: Unknown::default(),
        })
    }
}
