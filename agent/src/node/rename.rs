//! Gives a node another name while its agent is stopped: records, claims, wishes, and last of all its data directory.
//!
//! The directory says first that the rename has begun, and no agent starts on it before the rename has ended. Every step
//! may be interrupted and is completed by a repeat. Replicas and engines go on meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::{ClaimRecord, NodeRecord, VolumeRecord};
use tokio::time::{Instant, sleep, timeout};

use super::{NodeConfig, open_registry};
use crate::blocking::blocking;
use crate::core::foreign::Stored;
use crate::core::identity::Identity;
use crate::core::nodes::Heard;
use crate::core::rename::rename_in;
use crate::core::upkeep::names;
use crate::error::Error;
use crate::process::proc;
use crate::registry::{Entry, Read, Registry, Swap};
use crate::store::DataDir;
use crate::store::identity;
use crate::store::lock::AgentLock;

/// A record that changes under us so often is being fought over.
const WRITES_MAX: usize = 16;
/// Longer than the lease of an agent that has just ended.
const SILENT_WITHIN: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The registry lists its nodes at once, or cannot be asked.
const LISTED_WITHIN: Duration = Duration::from_secs(10);

/// What was renamed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Renamed {
    /// The node had the new name already.
    pub unchanged: bool,
    /// Volumes whose record named the node.
    pub volumes: Vec<String>,
    /// Instances whose claims were the node's.
    pub claims: Vec<String>,
}

/// Renames the node of `config`'s data directory. `say` is told what is waited for.
///
/// # Errors
/// `Conflict` while the agent runs; `Refused` where the directory is another node's, or another node has or uses one of the
/// names; any other failure is completed by a repeat.
pub async fn rename(
    config: &NodeConfig,
    from: &NodeName,
    to: &NodeName,
    say: impl Fn(&str),
) -> Result<Renamed, Error> {
    let rename = Rename { from, to, say: &say };
    if from == to {
        return Err(Error::invalid(rename.told("both names are the same")));
    }
    let data_dir = config.data_dir.clone();
    if !data_dir.is_dir() {
        return Err(Error::not_found(rename.told(&format!("{} is not there", data_dir.display()))));
    }
    let name = from.clone();
    let (_lock, data, known) = blocking(move || take(&data_dir, &name)).await?;
    let begun = known.begin_rename(from, to).map_err(|not_ours| identity::refused(&not_ours, data.root()))?;
    let Some(begun) = begun else { return Ok(Renamed { unchanged: true, ..Renamed::default() }) };
    let registry = open_registry(config).await?;
    let registry = &*registry;
    rename.nobody_lives(registry).await?;
    if known.renaming_to.is_none() {
        rename.name_is_free(registry).await?;
        keep(&data, &begun).await?;
    }
    let volumes = rename.records(registry).await?;
    let claims = rename.claims(registry).await?;
    rename.wishes(registry).await?;
    keep(&data, &begun.end_rename()).await?;
    Ok(Renamed { unchanged: false, volumes, claims })
}

/// The directory's lock, and what it says of itself. One that an earlier version wrote is `from`'s, as an operator says.
fn take(data_dir: &Path, from: &NodeName) -> Result<(AgentLock, DataDir, Identity), Error> {
    let lock = AgentLock::hold(&DataDir::lock_in(data_dir))?;
    let data = DataDir::open(data_dir)?;
    let known = identity::known(&data, from, proc::boot_id()?)?;
    Ok((lock, data, known))
}

async fn keep(data: &DataDir, identity: &Identity) -> Result<(), Error> {
    let (root, identity) = (data.root().to_owned(), identity.clone());
    blocking(move || identity::store(&root, &identity)).await
}

struct Rename<'a> {
    from: &'a NodeName,
    to: &'a NodeName,
    say: &'a dyn Fn(&str),
}

impl Rename<'_> {
    fn told(&self, why: &str) -> String {
        format!("rename node {} to {}: {why}", self.from, self.to)
    }

    /// Waits until no agent says that it is one of the two.
    async fn nobody_lives(&self, registry: &dyn Registry) -> Result<(), Error> {
        let until = Instant::now() + SILENT_WITHIN;
        let mut said = false;
        loop {
            let live = self.live(registry).await?;
            let Some((name, address)) =
                [self.from, self.to].into_iter().find_map(|name| live.get_key_value(name))
            else {
                return Ok(());
            };
            if Instant::now() >= until {
                let why = format!("an agent of node {name} lives (at {address}); stop it first");
                return Err(Error::refused(self.told(&why)));
            }
            if !std::mem::replace(&mut said, true) {
                (self.say)(&format!("waiting for the registry to forget that an agent of node {name} lived"));
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// The nodes whose agents live, and their addresses. A registry of one node tells of none: its lock is held.
    async fn live(&self, registry: &dyn Registry) -> Result<BTreeMap<NodeName, String>, Error> {
        let Some(mut feed) = registry.follow_nodes() else { return Ok(BTreeMap::new()) };
        let mut why = "no answer".to_owned();
        let listed = timeout(LISTED_WITHIN, async {
            while let Some(heard) = feed.recv().await {
                match heard {
                    Heard::Listed { live, .. } => return Some(live),
                    Heard::Lost(reason) => why = reason,
                    _ => {}
                }
            }
            None
        });
        match listed.await {
            Ok(Some(live)) => Ok(live.into_iter().map(|(name, presence)| (name, presence.address)).collect()),
            Ok(None) | Err(_) => {
                Err(Error::failed(self.told(&format!("which nodes live cannot be known: {why}"))))
            }
        }
    }

    async fn name_is_free(&self, registry: &dyn Registry) -> Result<(), Error> {
        for record in self.readable(registry).await? {
            if names(&record, self.to) {
                let why =
                    format!("volume {} names a node {} already; choose another name", record.name, self.to);
                return Err(Error::refused(self.told(&why)));
            }
        }
        if registry.claims(self.to).await?.is_empty() {
            return Ok(());
        }
        let why = format!("there are claims of a node {} already; choose another name", self.to);
        Err(Error::refused(self.told(&why)))
    }

    /// All records, or none where one may name the node and cannot be read.
    async fn readable(&self, registry: &dyn Registry) -> Result<Vec<VolumeRecord>, Error> {
        let entries = registry.list().await?.into_iter().map(|entry| match entry {
            Entry::Readable(record) => Ok(*record),
            Entry::Unreadable { name, reason } => Err(Error::refused(
                self.told(&format!("the record of volume {name} cannot be read: {reason}")),
            )),
        });
        entries.collect()
    }

    /// Until a whole look finds none that names the node as it was.
    async fn records(&self, registry: &dyn Registry) -> Result<Vec<String>, Error> {
        let mut changed = Vec::new();
        for _ in 0..WRITES_MAX {
            let left: Vec<_> = self
                .readable(registry)
                .await?
                .into_iter()
                .filter(|record| names(record, self.from))
                .collect();
            if left.is_empty() {
                return Ok(changed);
            }
            for mut record in left {
                let (name, version) = (record.name.to_string(), record.version);
                rename_in(&mut record, self.from, self.to);
                // One that has changed meanwhile is found by the next look.
                if let Swap::Stored(_) = registry.compare_and_swap(version, record).await? {
                    changed.push(name);
                }
            }
        }
        Err(Error::conflict(self.told("records keep changing; try again")))
    }

    async fn claims(&self, registry: &dyn Registry) -> Result<Vec<String>, Error> {
        let mut moved = Vec::new();
        let there = registry.claims(self.to).await?;
        for (name, stored) in registry.claims(self.from).await? {
            let claim = match stored {
                Stored::Readable(claim) => *claim,
                Stored::Unreadable(reason) => {
                    return Err(Error::refused(
                        self.told(&format!("the claim of {name} cannot be read: {reason}")),
                    ));
                }
            };
            let version = claim.version;
            // One that is there already was put by a run that was interrupted.
            if !there.contains_key(&name) {
                let renamed = ClaimRecord { node: self.to.clone(), version: 0, ..claim };
                if !registry.put_claim(renamed).await? {
                    return Err(Error::conflict(
                        self.told(&format!("the claim of {name} is being changed; try again")),
                    ));
                }
            }
            if !registry.delete_claim(self.from, &name, version).await? {
                return Err(Error::conflict(
                    self.told(&format!("the claim of {name} is being changed; try again")),
                ));
            }
            moved.push(name.to_string());
        }
        Ok(moved)
    }

    /// What operators wished for the node stays wished. What it published under the old name goes; under the new one its
    /// agent publishes anew.
    async fn wishes(&self, registry: &dyn Registry) -> Result<(), Error> {
        let unreadable =
            |reason: String| Error::refused(self.told(&format!("its wishes cannot be read: {reason}")));
        let version = match registry.node(self.from).await? {
            Read::Found(wished) => {
                let there = match registry.node(self.to).await? {
                    Read::Found(record) => record.version,
                    Read::Absent => 0,
                    Read::Unreadable(reason) => return Err(unreadable(reason)),
                };
                let old_version = wished.version;
                let renamed = NodeRecord { name: self.to.clone(), version: there, ..wished };
                if !registry.put_node(renamed).await? {
                    return Err(self.changing());
                }
                old_version
            }
            Read::Absent => 0,
            Read::Unreadable(reason) => return Err(unreadable(reason)),
        };
        if registry.forget_node(self.from, version).await? { Ok(()) } else { Err(self.changing()) }
    }

    fn changing(&self) -> Error {
        Error::conflict(self.told("what is wished for it is being changed; try again"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_proto::ids::VolumeName;
    use holdfast_proto::record::{AttachSpec, CLAIM_SCHEMA, Desired};
    use holdfast_proto::status::ErrorKind;

    use super::*;
    use crate::core::testing::record;
    use crate::registry::file::FileRegistry;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    /// A stopped node `old` with two volumes, a claim and a wish.
    async fn stopped(dir: &Path) -> (NodeConfig, Arc<dyn Registry>) {
        let config = NodeConfig::new(name("old"), dir.join("data"), dir.join("run"));
        let data = DataDir::open(&config.data_dir).unwrap();
        identity::bind(&data, &config.node, proc::boot_id().unwrap()).unwrap();
        let registry: Arc<dyn Registry> = Arc::new(FileRegistry::open(&data.registry()).unwrap());
        for volume in ["demo", "other"] {
            let mut record = record(volume, "old", 2);
            record.spec.attach = Some(AttachSpec {
                node: name("old"),
                nbd_tcp: None,
                force_from: None,
                unknown: Default::default(),
            });
            let record = registry.create(record).await.unwrap();
            if volume == "demo" {
                let claim = ClaimRecord {
                    schema: CLAIM_SCHEMA,
                    instance: "demo.r1".into(),
                    uuid: None,
                    node: name("old"),
                    volume_id: record.id,
                    owner: "csi".into(),
                    desired: Desired::Keep,
                    lease_s: 0,
                    version: 0,
                    unknown: Default::default(),
                };
                assert!(registry.put_claim(claim).await.unwrap());
            }
        }
        let wish = NodeRecord { draining: true, ..NodeRecord::new(name("old")) };
        assert!(registry.put_node(wish).await.unwrap());
        (config, registry)
    }

    async fn is_renamed(config: &NodeConfig, registry: &dyn Registry) {
        for entry in registry.list().await.unwrap() {
            let Entry::Readable(record) = entry else { panic!("{entry:?}") };
            assert!(!names(&record, &name("old")) && names(&record, &name("new")), "{record:?}");
        }
        assert!(registry.claims(&name("old")).await.unwrap().is_empty());
        assert_eq!(registry.claims(&name("new")).await.unwrap().len(), 1);
        assert_eq!(registry.node(&name("old")).await.unwrap(), Read::Absent);
        let Read::Found(wish) = registry.node(&name("new")).await.unwrap() else { panic!("no wish") };
        assert!(wish.draining);
        let identity = identity::load(&config.data_dir).unwrap().unwrap();
        assert_eq!((identity.node, identity.renaming_to), (name("new"), None));
    }

    #[tokio::test]
    async fn rename_takes_all_that_names_the_node_along() {
        let tmp = tempfile::tempdir().unwrap();
        let (config, registry) = stopped(tmp.path()).await;
        let done = rename(&config, &name("old"), &name("new"), |_| {}).await.unwrap();
        assert_eq!(
            (&done.volumes[..], &done.claims[..]),
            (&["demo".into(), "other".into()][..], &["demo.r1".into()][..])
        );
        is_renamed(&config, &*registry).await;
        let again = rename(&config, &name("old"), &name("new"), |_| {}).await.unwrap();
        assert!(again.unchanged);
    }

    #[tokio::test]
    async fn rename_that_was_interrupted_is_completed() {
        let tmp = tempfile::tempdir().unwrap();
        let (config, registry) = stopped(tmp.path()).await;
        let (old, new) = (name("old"), name("new"));
        // As after a crash between two records, with the claim in both places.
        let known = identity::load(&config.data_dir).unwrap().unwrap();
        identity::store(&config.data_dir, &known.begin_rename(&old, &new).unwrap().unwrap()).unwrap();
        let Read::Found(mut record) = registry.get(&"demo".parse::<VolumeName>().unwrap()).await.unwrap()
        else {
            panic!("no record")
        };
        let version = record.version;
        rename_in(&mut record, &old, &new);
        registry.compare_and_swap(version, record).await.unwrap();
        let claims = registry.claims(&old).await.unwrap();
        let Some(Stored::Readable(claim)) = claims.into_values().next() else { panic!("no claim") };
        assert!(registry.put_claim(ClaimRecord { node: new.clone(), version: 0, ..*claim }).await.unwrap());
        assert!(rename(&config, &old, &name("third"), |_| {}).await.is_err(), "another rename is under way");
        let done = rename(&config, &old, &new, |_| {}).await.unwrap();
        assert_eq!(done.volumes, ["other"]);
        is_renamed(&config, &*registry).await;
    }

    #[tokio::test]
    async fn rename_to_a_name_in_use_changes_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let (config, registry) = stopped(tmp.path()).await;
        registry.create(record("third", "new", 1)).await.unwrap();
        let before = registry.list().await.unwrap();
        let error = rename(&config, &name("old"), &name("new"), |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("volume third names a node new already"), "{error}");
        assert_eq!(registry.list().await.unwrap(), before);
        assert_eq!(identity::load(&config.data_dir).unwrap().unwrap().renaming_to, None);
        let error = rename(&config, &name("stranger"), &name("x"), |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("belongs to node old"), "{error}");
    }

    #[tokio::test]
    async fn rename_waits_for_no_running_agent() {
        let tmp = tempfile::tempdir().unwrap();
        let (config, _registry) = stopped(tmp.path()).await;
        let _agent = AgentLock::take(&DataDir::lock_in(&config.data_dir), "old", "unix:/a").unwrap();
        let error = rename(&config, &name("old"), &name("new"), |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}
