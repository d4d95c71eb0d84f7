//! What no record claims, as tests see it and bring it about.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cluster::{Cluster, SOON};
use crate::records::record_path;
use crate::wait::{check, eventually};

/// All that `orphan ls` lists.
///
/// # Panics
/// When it lists nothing of that kind.
#[must_use]
pub fn orphans(cluster: &Cluster) -> Vec<Value> {
    cluster.json(&["orphan", "ls"])["orphans"].as_array().expect("a list of orphans").clone()
}

/// The one of this name.
#[must_use]
pub fn orphan(cluster: &Cluster, name: &str) -> Option<Value> {
    orphans(cluster).into_iter().find(|orphan| orphan["name"] == name)
}

/// For how long it is confirmed that nobody claims it.
///
/// # Panics
/// When it does not say.
#[must_use]
pub fn confirmed_s(orphan: &Value) -> u64 {
    orphan["confirmed_s"].as_u64().expect("a number of seconds")
}

/// Waits until the orphan is there and as `wanted` says.
///
/// # Panics
/// When that takes too long.
pub fn wait_orphan(cluster: &Cluster, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(3 * SOON, &format!("{name}: {what}"), || {
        let found = orphan(cluster, name).ok_or_else(|| format!("{:?}", orphans(cluster)))?;
        check(wanted(&found), || found.to_string())?;
        Ok(found)
    })
}

/// Takes the volume's record away; what it claimed is nobody's then. Returns where it is.
///
/// # Panics
/// When it cannot be moved.
pub fn remove_record(cluster: &Cluster, volume: &str) -> PathBuf {
    let aside = cluster.root().join(format!("{volume}.json"));
    std::fs::rename(record_path(&cluster.data_dir(), volume), &aside).expect("a record can be moved");
    aside
}

/// Puts it back.
///
/// # Panics
/// When it cannot be moved.
pub fn restore_record(cluster: &Cluster, volume: &str, aside: &Path) {
    std::fs::rename(aside, record_path(&cluster.data_dir(), volume)).expect("a record can be moved");
}
