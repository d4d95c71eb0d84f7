//! Which node a data directory belongs to, and whether it is still the directory that it was.
//!
//! An agent uses a directory only under its node's own name: records name nodes, so under another name it would find no
//! record for what runs here, and end it. Everything
//! else about the directory may change (a new machine, a restored backup, a clone), and then its data may be older than
//! it says: that is noted, and never a reason not to start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use holdfast_proto::ids::{BootId, NodeName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The schema this build writes.
pub const IDENTITY_SCHEMA: u32 = 1;

/// What tells a directory from its copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The device number of its file system, which counts within one boot only.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// The identity of its file system; none where it has none that outlives a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// The machine; empty: not known.
    #[serde(default)]
    pub machine_id: String,
    /// The boot in which the directory was last used.
    pub boot_id: BootId,
}

impl Place {
    /// What shows that `now` is another directory than this one was.
    #[must_use]
    pub fn change_to(&self, now: &Self) -> Option<String> {
        let told = |what: &str, was: &dyn fmt::Display, is: &dyn fmt::Display| {
            Some(format!("{what}: expected {was}, found {is}"))
        };
        if !self.machine_id.is_empty() && !now.machine_id.is_empty() && self.machine_id != now.machine_id {
            return told("machine id", &self.machine_id, &now.machine_id);
        }
        if let (Some(was), Some(is)) = (&self.file_system, &now.file_system)
            && was != is
        {
            return told("file system", was, is);
        }
        // Device numbers are given anew at each boot.
        if self.boot_id == now.boot_id && self.device != now.device {
            return told("device", &self.device, &now.device);
        }
        if self.inode != now.inode {
            return told("inode of the data directory", &self.inode, &now.inode);
        }
        None
    }
}

/// What a data directory says of itself. Fields of later versions are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// [`IDENTITY_SCHEMA`].
    pub schema: u32,
    /// The node whose directory it is.
    pub node: NodeName,
    /// The names that the node had before, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_names: Vec<NodeName>,
    /// A rename to this name has begun and has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renaming_to: Option<NodeName>,
    /// Replicas here may be older than they say: shown as a warning; nothing is decided by it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freshness_doubt: bool,
    /// What raised the doubt first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doubt_reason: String,
    /// Where the directory was when it was last used.
    #[serde(flatten)]
    pub place: Place,
    /// Of later versions.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl Identity {
    /// Of a directory that belongs to `node` from now on.
    #[must_use]
    pub fn new(node: NodeName, place: Place) -> Self {
        Self {
            schema: IDENTITY_SCHEMA,
            node,
            former_names: Vec::new(),
            renaming_to: None,
            freshness_doubt: false,
            doubt_reason: String::new(),
            place,
            unknown: BTreeMap::new(),
        }
    }

    /// The same directory, used now.
    #[must_use]
    pub fn used_in(&self, place: Place) -> Self {
        let change = self.place.change_to(&place);
        let mut next = Self { place, ..self.clone() };
        if let Some(change) = change.filter(|_| !self.freshness_doubt) {
            (next.freshness_doubt, next.doubt_reason) = (true, change);
        }
        next
    }

    /// Whether an agent of the node `name` may use the directory.
    ///
    /// # Errors
    /// Whose it is.
    pub fn admit(&self, name: &NodeName) -> Result<(), NotOurs> {
        match &self.renaming_to {
            Some(to) => Err(NotOurs::BeingRenamed { from: self.node.clone(), to: to.clone() }),
            None if self.node == *name => Ok(()),
            None => Err(NotOurs::AnotherNode { known: self.node.clone(), asked: name.clone() }),
        }
    }

    /// Begins to rename the node, or goes on with a rename that was interrupted. `None`: it has that name already.
    ///
    /// # Errors
    /// Where the directory is another node's, or another rename is under way.
    pub fn begin_rename(&self, from: &NodeName, to: &NodeName) -> Result<Option<Self>, NotOurs> {
        match &self.renaming_to {
            Some(begun) if self.node == *from && begun == to => Ok(Some(self.clone())),
            Some(begun) => Err(NotOurs::BeingRenamed { from: self.node.clone(), to: begun.clone() }),
            None if self.node == *to && self.former_names.last() == Some(from) => Ok(None),
            None if self.node == *from => Ok(Some(Self { renaming_to: Some(to.clone()), ..self.clone() })),
            None => Err(NotOurs::AnotherNode { known: self.node.clone(), asked: from.clone() }),
        }
    }

    /// The rename that was begun is done.
    #[must_use]
    pub fn end_rename(&self) -> Self {
        let mut next = self.clone();
        if let Some(to) = next.renaming_to.take() {
            next.former_names.retain(|name| *name != to);
            next.former_names.push(std::mem::replace(&mut next.node, to));
        }
        next
    }
}

/// Why a directory is not this agent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotOurs {
    /// It belongs to another name.
    AnotherNode {
        /// Whose it is.
        known: NodeName,
        /// Who wanted it.
        asked: NodeName,
    },
    /// A rename was interrupted.
    BeingRenamed {
        /// Its name before.
        from: NodeName,
        /// Its name afterwards.
        to: NodeName,
    },
}

/// The node that a directory without an [`Identity`] (of an earlier version) belongs to: the one that everything in it
/// names. None where it is empty or disagrees with itself.
#[must_use]
pub fn named_by_all(names: impl IntoIterator<Item = NodeName>) -> Option<NodeName> {
    let names: BTreeSet<NodeName> = names.into_iter().collect();
    let mut names = names.into_iter();
    names.next().filter(|_| names.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn place() -> Place {
        Place {
            device: 7,
            inode: 12,
            file_system: Some("ef53-1".into()),
            machine_id: "m".into(),
            boot_id: BootId::random(),
        }
    }

    #[test]
    fn identity_only_its_own_name_is_admitted() {
        let known = Identity::new(name("old"), place());
        assert_eq!(known.admit(&name("old")), Ok(()));
        let refused = NotOurs::AnotherNode { known: name("old"), asked: name("new") };
        assert_eq!(known.admit(&name("new")), Err(refused));
    }

    #[test]
    fn identity_another_place_is_a_doubt_and_no_refusal() {
        let was = place();
        let known = Identity::new(name("a"), was.clone());
        let rebooted = Place { boot_id: BootId::random(), device: 9, ..was.clone() };
        assert!(!known.used_in(rebooted).freshness_doubt, "device numbers are given anew at each boot");
        let changes: [(Place, &str); 4] = [
            (Place { device: 9, ..was.clone() }, "device"),
            (Place { inode: 13, ..was.clone() }, "inode"),
            (Place { file_system: Some("ef53-2".into()), ..was.clone() }, "file system"),
            (Place { machine_id: "n".into(), ..was.clone() }, "machine id"),
        ];
        for (now, what) in changes {
            let next = known.used_in(now.clone());
            assert!(next.freshness_doubt && next.doubt_reason.starts_with(what), "{next:?}");
            assert_eq!(next.admit(&name("a")), Ok(()));
            // The doubt outlives the next start, and keeps its first reason.
            let later = next.used_in(Place { inode: 99, ..now });
            assert_eq!((later.freshness_doubt, later.doubt_reason), (true, next.doubt_reason));
        }
        let unknown = Place { file_system: None, machine_id: String::new(), ..was };
        assert!(!known.used_in(unknown).freshness_doubt, "what is not known has not changed");
    }

    #[test]
    fn rename_is_completed_by_its_repeat() {
        let known = Identity::new(name("old"), place());
        let begun = known.begin_rename(&name("old"), &name("new")).unwrap().unwrap();
        for asked in ["old", "new", "other"] {
            assert!(matches!(begun.admit(&name(asked)), Err(NotOurs::BeingRenamed { .. })), "{asked}");
        }
        assert_eq!(begun.begin_rename(&name("old"), &name("new")), Ok(Some(begun.clone())));
        assert!(begun.begin_rename(&name("old"), &name("other")).is_err());
        let done = begun.end_rename();
        assert_eq!((done.admit(&name("new")), &done.former_names[..]), (Ok(()), &[name("old")][..]));
        assert_eq!(done.begin_rename(&name("old"), &name("new")), Ok(None));
        assert!(done.begin_rename(&name("old"), &name("other")).is_err());
        let back = done.begin_rename(&name("new"), &name("old")).unwrap().unwrap().end_rename();
        assert_eq!((back.node, &back.former_names[..]), (name("old"), &[name("new")][..]));
    }

    #[test]
    fn identity_fields_of_later_versions_are_kept() {
        let mut value = serde_json::to_value(Identity::new(name("a"), place())).unwrap();
        value["later"] = serde_json::json!({ "x": [1, 2] });
        let read: Identity = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(read.used_in(read.place.clone())).unwrap(), value);
    }

    #[test]
    fn identity_of_an_older_directory_is_what_all_in_it_name() {
        assert_eq!(named_by_all([name("a"), name("a")]), Some(name("a")));
        assert_eq!(named_by_all([name("a"), name("b")]), None);
        assert_eq!(named_by_all([]), None);
    }
}
