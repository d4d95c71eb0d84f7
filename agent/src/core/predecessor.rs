//! Whether the engine that a volume's record names is known not to run any more. A new engine that knows need not wait
//! until the old one's read lease has certainly run out.

use std::collections::BTreeMap;

use holdfast_proto::ids::{InstanceUuid, VolumeId};
use holdfast_proto::record::VolumeStatus;

/// The engines of this node that are proven to have ended: per volume the last one.
#[derive(Debug, Clone, Default)]
pub struct EndedEngines(BTreeMap<VolumeId, InstanceUuid>);

impl EndedEngines {
    /// No process of this engine exists: its lock is free, or another process has it.
    pub fn note(&mut self, volume: VolumeId, engine: InstanceUuid) {
        self.0.insert(volume, engine);
    }

    /// The volume is gone, and nobody asks again.
    pub fn forget(&mut self, volume: VolumeId) {
        self.0.remove(&volume);
    }

    /// Whether the engine that `status` names has ended before `engine`, which runs as this volume's engine on this
    /// node, was started. An instance has one process at a time, so an earlier one of the same UUID has ended.
    #[must_use]
    pub fn gone_before(&self, volume: VolumeId, status: &VolumeStatus, engine: InstanceUuid) -> bool {
        let named = status.engine_instance;
        // Of a record that does not say which instance it was, nothing is known.
        if named == InstanceUuid::nil() {
            return status.engine_uuid == InstanceUuid::nil();
        }
        named == engine || self.0.get(&volume) == Some(&named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;

    #[test]
    fn only_what_is_known_counts() {
        let mut status = record("demo", "node-a", 2).status;
        let (volume, mine, other) = (VolumeId::random(), InstanceUuid::random(), InstanceUuid::random());
        let mut ended = EndedEngines::default();
        assert!(ended.gone_before(volume, &status, mine), "there was none");
        status.engine_uuid = InstanceUuid::random();
        assert!(!ended.gone_before(volume, &status, mine), "the record does not say whose process it was");
        status.engine_instance = mine;
        assert!(ended.gone_before(volume, &status, mine), "an earlier process of the same instance");
        status.engine_instance = other;
        assert!(!ended.gone_before(volume, &status, mine), "it may run on another node");
        ended.note(VolumeId::random(), other);
        assert!(!ended.gone_before(volume, &status, mine), "that was another volume's");
        ended.note(volume, other);
        assert!(ended.gone_before(volume, &status, mine));
        ended.note(volume, InstanceUuid::random());
        assert!(!ended.gone_before(volume, &status, mine), "only the last one is remembered");
        ended.forget(volume);
        assert!(!ended.gone_before(volume, &status, mine));
    }
}
