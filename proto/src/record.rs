//! The volume record: what the registry keeps of a volume, in the words of the domain.
//!
//! `spec` is written by operators. `status` is changed only by compare-and-swap on the whole record, and only by
//! attach and membership changes. What is merely observed (pids, ports, progress) is never here.
//!
//! Records grow: each type but [`View`] keeps the fields that this build does not know ([`Unknown`]).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{
    Epoch, Generation, Incarnation, InstanceUuid, Lineage, NodeName, ReplicaId, VolumeId, VolumeName,
};
use crate::unknown::Unknown;

/// The schema this build writes.
pub const RECORD_SCHEMA: u32 = 1;
/// The schema of [`NodeRecord`].
pub const NODE_SCHEMA: u32 = 1;
/// The schema of [`ClaimRecord`].
pub const CLAIM_SCHEMA: u32 = 1;
/// A volume has at most this many replicas: acknowledgements are tracked in one byte per write.
pub const REPLICAS_MAX: usize = 5;

/// A small sorted set of replicas, cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaSet {
    len: u8,
    ids: [u32; Self::CAPACITY],
}

impl ReplicaSet {
    /// One replica more than a volume has, for the moment in which one is being replaced.
    pub const CAPACITY: usize = 8;

    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { len: 0, ids: [0; Self::CAPACITY] }
    }
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Whether `id` is in it.
    #[must_use]
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.iter().any(|other| other == id)
    }
    /// In ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = ReplicaId> + '_ {
        self.ids.iter().take(self.len()).map(|id| ReplicaId(*id))
    }
    /// This set and `id`.
    ///
    /// # Panics
    /// When the set would grow past [`Self::CAPACITY`]; callers bound their input first.
    #[must_use]
    pub fn with(&self, id: ReplicaId) -> Self {
        if self.contains(id) {
            return *self;
        }
        assert!(self.len() < Self::CAPACITY, "a replica set holds at most {}", Self::CAPACITY);
        let mut ids = self.ids;
        ids[self.len()] = id.0;
        ids[..=self.len()].sort_unstable();
        Self { len: self.len + 1, ids }
    }
    /// This set less `id`.
    #[must_use]
    pub fn without(&self, id: ReplicaId) -> Self {
        self.iter().filter(|other| *other != id).collect()
    }
    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|id| other.contains(*id)).collect()
    }
    /// What is in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.iter().filter(|id| !other.contains(*id)).collect()
    }
    /// Whether each of these is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.iter().all(|id| other.contains(id))
    }
    /// A set from ids that came from a disk, a peer or a person: `None` where there are too many or one twice.
    #[must_use]
    pub fn checked(ids: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut set = Self::new();
        for id in ids {
            if set.len() == Self::CAPACITY || set.contains(ReplicaId(id)) {
                return None;
            }
            set = set.with(ReplicaId(id));
        }
        Some(set)
    }
}
impl FromIterator<ReplicaId> for ReplicaSet {
    fn from_iter<I: IntoIterator<Item = ReplicaId>>(ids: I) -> Self {
        ids.into_iter().fold(Self::new(), |set, id| set.with(id))
    }
}
impl fmt::Display for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, id) in self.iter().enumerate() {
            write!(f, "{}{id}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("}")
    }
}
impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Serialize for ReplicaSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}
impl<'de> Deserialize<'de> for ReplicaSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ids = Vec::<ReplicaId>::deserialize(deserializer)?;
        Self::checked(ids.into_iter().map(|id| id.0))
            .ok_or_else(|| serde::de::Error::custom("a replica is listed twice, or there are more than 8"))
    }
}

/// One period of the volume with a fixed set of members. Views are ordered by `(generation, epoch)`.
///
/// It takes no unknown fields: it goes through engines and replicas, which would lose them. What belongs to a view and is
/// new becomes a field of [`VolumeStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Of the engine that proposed it.
    pub generation: Generation,
    /// Grows with each proposal.
    pub epoch: Epoch,
    /// The in-sync replicas.
    pub members: ReplicaSet,
    /// The next view must be committed in the registry too.
    pub needs_registry: bool,
}

impl View {
    /// What views are ordered by.
    #[must_use]
    pub fn order(&self) -> (Generation, Epoch) {
        (self.generation, self.epoch)
    }
    /// The stamp of a member that has persisted this view and `round`.
    #[must_use]
    pub fn stamp(&self, round: u64) -> Stamp {
        Stamp { generation: self.generation, epoch: self.epoch, round }
    }
}
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}.{} {}", self.generation, self.epoch, self.members)?;
        f.write_str(if self.needs_registry { " q)" } else { ")" })
    }
}

/// A place in a volume's history: a view, and the settling round within it. Stamps are ordered by
/// `(generation, epoch, round)`. A replica's stamp grows with each view and round that it persists; a copy of its
/// directory that was put back has an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp {
    /// Of the view.
    pub generation: Generation,
    /// Of the view.
    pub epoch: Epoch,
    /// 0 where the view was persisted and no round after it.
    pub round: u64,
}

impl Stamp {
    /// No volume comes so far: one a second would take 36 billion years.
    pub const ROUND_MAX: u64 = (1 << 60) - 1;

    /// The view's place in the order of views.
    #[must_use]
    pub fn order(&self) -> (Generation, Epoch) {
        (self.generation, self.epoch)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.generation, self.epoch, self.round)
    }
}

/// The part of a record that attach and membership changes write, by compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The registry's life in which this was written.
    pub incarnation: Incarnation,
    /// The history that the data belongs to.
    pub lineage: Lineage,
    /// The highest generation handed out.
    pub generation: Generation,
    /// The engine it was handed to: one process, never another; nil before the first attach.
    pub engine_uuid: InstanceUuid,
    /// The instance that engine was a process of; nil: not known.
    #[serde(default = "InstanceUuid::nil")]
    pub engine_instance: InstanceUuid,
    /// The newest view the registry was told of.
    pub view: View,
    /// The newest settling round of that view that every member had persisted.
    #[serde(default, skip_serializing_if = "is_no_round")]
    pub round: u64,
    /// The configured set that decides majorities.
    pub configured: ReplicaSet,
    /// The last engine ended after a drain and a flush on every member.
    pub clean: bool,
    /// Instance name to the UUID of its creation.
    #[serde(default)]
    pub instance_uuids: BTreeMap<String, InstanceUuid>,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What operators wish for a whole node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// [`NODE_SCHEMA`].
    pub schema: u32,
    /// Which node.
    pub name: NodeName,
    /// Grows by one with each write; 0: never written.
    pub version: u64,
    /// `holdfast uninstall` may end and remove what runs there.
    #[serde(default)]
    pub uninstall_allowed: bool,
    /// It takes no new replicas and gives its own away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// It does not come back: nobody waits for it any more, and its replicas are placed elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl NodeRecord {
    /// Of a node for which nobody has wished anything.
    #[must_use]
    pub fn new(name: NodeName) -> Self {
        Self {
            schema: NODE_SCHEMA,
            name,
            version: 0,
            uninstall_allowed: false,
            draining: false,
            forgotten: false,
            unknown: Unknown::default(),
        }
    }
}

/// What the owner of a claim wants of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// To be left as it is.
    Keep,
    /// To run, whether its volume is attached or not.
    Running,
    /// To end, unless its volume's record wants it.
    Stopped,
}

/// A claim of a controller that is not Holdfast: an instance belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// [`CLAIM_SCHEMA`].
    pub schema: u32,
    /// The instance's name, `VOLUME.rN` or `VOLUME.engine`.
    pub instance: String,
    /// Only this creation of it; none: whichever has the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<InstanceUuid>,
    /// Where it is.
    pub node: NodeName,
    /// The volume that it is of.
    pub volume_id: VolumeId,
    /// Who claims it; for people, and so that two controllers do not take from each other.
    pub owner: String,
    /// What becomes of it.
    pub desired: Desired,
    /// How long the claim counts after it was written, in seconds; 0: until it is deleted.
    #[serde(default)]
    pub lease_s: u32,
    /// Grows by one with each write; 0: never written.
    #[serde(default)]
    pub version: u64,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Where one replica belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// Its number.
    pub id: ReplicaId,
    /// Its node.
    pub node: NodeName,
    /// Its disk on that node; none: the agent's data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Its node is still to make its directory. Once that is done nothing ever makes it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_make: bool,
    /// Those that stay members until this one is.
    #[serde(default, skip_serializing_if = "ReplicaSet::is_empty")]
    pub replaces: ReplicaSet,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl ReplicaSpec {
    /// A replica on `node` whose directory is made already, and that replaces none.
    #[must_use]
    pub fn new(id: ReplicaId, node: NodeName) -> Self {
        Self {
            id,
            node,
            disk: None,
            to_make: false,
            replaces: ReplicaSet::new(),
            unknown: Unknown::default(),
        }
    }
}

/// A person's word that a volume starts from one replica, whatever the rules say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForceFrom {
    /// Whose data the volume is to have.
    pub replica: ReplicaId,
    /// Also if it was being filled.
    #[serde(default)]
    pub even_if_syncing: bool,
    /// The history that begins with it. The word is over once the record's status has it.
    pub lineage: Lineage,
    /// Of the record's view when the word was given. It is over, too, once another view counts: the volume has been
    /// served since, and nobody wants that undone by a restart.
    pub generation: Generation,
    /// See `generation`.
    pub epoch: Epoch,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl ForceFrom {
    /// Whether the volume has not been served since the word was given, by force or otherwise.
    #[must_use]
    pub fn counts(&self, status: &VolumeStatus) -> bool {
        self.lineage != status.lineage && (self.generation, self.epoch) == status.view.order()
    }
}

/// Where the volume is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// The node whose agent runs the engine.
    pub node: NodeName,
    /// Serve NBD on this TCP address too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_tcp: Option<String>,
    /// Start from this replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_from: Option<ForceFrom>,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What an operator wants to become of the volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// To keep it.
    #[default]
    Keep,
    /// To end its instances and forget its record; replica data stays where it is.
    Delete,
    /// The same, and to move exactly this volume's data to the trash: `<volume-id>@<generation>`.
    Purge(String),
}

/// What operators write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// A multiple of 4096.
    pub size_bytes: u64,
    /// The replicas wanted.
    pub replicas: Vec<ReplicaSpec>,
    /// Where replicas are that are not wanted any more. They still run while `status.configured` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<ReplicaSpec>,
    /// Every id below it was given to a replica once, and is never given again; 0: ids were only given at creation.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub next_replica_id: u32,
    /// Where it is wanted; none: detached.
    #[serde(default)]
    pub attach: Option<AttachSpec>,
    /// It was attached there last, replicas are on other nodes too, and that node's agent has not said yet that the engine
    /// has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detaching: Option<NodeName>,
    /// Keep or delete.
    #[serde(default)]
    pub intent: Intent,
    /// How replicas do file I/O: "buffered" or "direct".
    pub io_mode: String,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl VolumeSpec {
    /// Of a volume that is attached nowhere and had none of its replicas removed.
    #[must_use]
    pub fn detached(
        size_bytes: u64,
        replicas: Vec<ReplicaSpec>,
        next_replica_id: u32,
        io_mode: &str,
    ) -> Self {
        Self {
            size_bytes,
            replicas,
            leaving: Vec::new(),
            next_replica_id,
            attach: None,
            detaching: None,
            intent: Intent::Keep,
            io_mode: io_mode.to_owned(),
            unknown: Unknown::default(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_no_round(round: &u64) -> bool {
    *round == 0
}

/// A volume as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Its identity.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Grows with every write of the record; what compare-and-swap compares.
    pub version: u64,
    /// What operators want.
    pub spec: VolumeSpec,
    /// What engines did.
    pub status: VolumeStatus,
    /// What this build does not know of it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl VolumeRecord {
    /// The replicas that belong to the volume now: those wanted, and those that are still configured.
    pub fn placed(&self) -> impl Iterator<Item = &ReplicaSpec> {
        let stays = |spec: &&ReplicaSpec| {
            let wanted = self.spec.replicas.iter().any(|wanted| wanted.id == spec.id);
            self.status.configured.contains(spec.id) && !wanted
        };
        self.spec.replicas.iter().chain(self.spec.leaving.iter().filter(stays))
    }

    /// Wants it attached nowhere.
    pub fn detach(&mut self) {
        let Some(attach) = self.spec.attach.take() else { return };
        let others = self.placed().any(|spec| spec.node != attach.node);
        self.spec.detaching = others.then_some(attach.node);
    }

    /// Whether this id was a replica's that was taken out of the volume. Of one that this record never gave (it may
    /// have been restored from a backup) nobody knows.
    #[must_use]
    pub fn was_removed(&self, id: ReplicaId) -> bool {
        id.0 < self.spec.next_replica_id && !self.placed().any(|spec| spec.id == id)
    }

    /// An id that no replica of the volume has or had.
    #[must_use]
    pub fn fresh_replica_id(&self) -> ReplicaId {
        let wanted = self.spec.replicas.iter().chain(&self.spec.leaving).map(|spec| spec.id);
        let told = self.status.configured.iter().chain(self.status.view.members.iter());
        let highest = wanted.chain(told).map(|id| id.0).max().unwrap_or(0);
        ReplicaId(self.spec.next_replica_id.max(highest.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(spec: &str) -> VolumeRecord {
        let status = r#"{"incarnation":"00000000-0000-0000-0000-000000000001",
            "lineage":"00000000-0000-0000-0000-000000000002","generation":4,
            "engine_uuid":"00000000-0000-0000-0000-000000000003",
            "view":{"generation":4,"epoch":9,"members":["r1","r3"],"needs_registry":true},
            "configured":["r1","r2","r3"],"clean":false}"#;
        let id = "00000000-0000-0000-0000-000000000004";
        let text = format!(
            r#"{{"schema":1,"id":"{id}","name":"demo","version":7,"spec":{spec},"status":{status}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_record_of_a_volume_whose_replicas_never_changed_reads_and_writes_as_before() {
        let spec = r#"{"size_bytes":4096,"replicas":[{"id":"r1","node":"a"},{"id":"r2","node":"a"},{"id":"r3","node":"a"}],
            "attach":{"node":"a"},"intent":"keep","io_mode":"buffered"}"#;
        let record = record(spec);
        assert_eq!(record.placed().count(), 3);
        assert_eq!(record.fresh_replica_id(), ReplicaId(4));
        assert!(!record.was_removed(ReplicaId(4)) && !record.was_removed(ReplicaId(2)));
        let text = serde_json::to_string(&record).unwrap();
        for added in ["to_make", "leaving", "next_replica_id", "replaces", "force_from", "detaching"] {
            assert!(!text.contains(added), "{added}: {text}");
        }
    }

    #[test]
    fn a_node_for_which_nothing_new_is_wished_reads_and_writes_as_before() {
        let text = r#"{"schema":1,"name":"vm","version":1,"uninstall_allowed":true}"#;
        let mut record: NodeRecord = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        (record.draining, record.forgotten) = (true, true);
        let marked = serde_json::to_string(&record).unwrap();
        assert!(marked.ends_with(r#","draining":true,"forgotten":true}"#), "{marked}");
        assert_eq!(serde_json::from_str::<NodeRecord>(&marked).unwrap(), record);
    }

    #[test]
    fn one_that_leaves_belongs_to_the_volume_while_it_is_configured_and_its_id_is_never_given_again() {
        let spec = r#"{"size_bytes":4096,"replicas":[{"id":"r1","node":"a"},{"id":"r6","node":"a","replaces":["r2"]}],
            "leaving":[{"id":"r2","node":"a"},{"id":"r5","node":"a"}],"next_replica_id":8,"io_mode":"buffered"}"#;
        let record = record(spec);
        let placed: Vec<_> = record.placed().map(|spec| spec.id.0).collect();
        assert_eq!(placed, [1, 6, 2], "r5 is not configured any more");
        assert!(record.was_removed(ReplicaId(5)) && record.was_removed(ReplicaId(7)));
        assert!(!record.was_removed(ReplicaId(2)) && !record.was_removed(ReplicaId(8)));
        assert_eq!(record.fresh_replica_id(), ReplicaId(8));
    }

    #[test]
    fn records_keep_what_they_do_not_know_at_every_level() {
        let spec = r#"{"size_bytes":4096,"replicas":[{"id":"r1","node":"a"}],"leaving":[{"id":"r2","node":"a"}],
            "attach":{"node":"a","force_from":{"replica":"r1","even_if_syncing":false,
            "lineage":"00000000-0000-0000-0000-000000000002","generation":1,"epoch":1}},"io_mode":"buffered"}"#;
        let known = serde_json::to_value(record(spec)).unwrap();
        let levels = [
            "",
            "/spec",
            "/status",
            "/spec/replicas/0",
            "/spec/leaving/0",
            "/spec/attach",
            "/spec/attach/force_from",
        ];
        for level in levels {
            let mut grown = known.clone();
            grown.pointer_mut(level).unwrap()["later"] = serde_json::json!({"a": [1, null, u64::MAX, 0.5]});
            let read: VolumeRecord = serde_json::from_value(grown.clone()).unwrap();
            assert_ne!(serde_json::to_value(&read).unwrap(), known, "{level}");
            assert_eq!(serde_json::to_value(&read).unwrap(), grown, "{level}");
        }
        let mut view = known;
        view["status"]["view"]["later"] = 1.into();
        assert!(serde_json::from_value::<VolumeRecord>(view).is_err(), "a view could not keep it");
    }
}
