//! A data directory as version 0.1.0 wrote it, which every later one reads: `tests/tests/golden/data-0.1.0`. The files
//! are never written anew; what later releases write gets a directory of its own beside it.

use std::path::{Path, PathBuf};

use holdfast_proto::pb::inventory::document::Body;
use holdfast_proto::record::{ClaimRecord, Desired, NodeRecord, VolumeRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::core::features;
use crate::core::foreign::Stored;
use crate::core::orphan::{Hold, Saved, Tracker};
use crate::core::presence::Presence;
use crate::registry::file::FileRegistry;
use crate::registry::{Entry, Read, Registry as _};
use crate::store::atomic;
use crate::store::instances::{InstanceStore, SpawnRecord};
use crate::store::trash::TrashList;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/golden/data-0.1.0")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &to) } else { std::fs::copy(&path, &to).map(drop).unwrap() }
    }
}

/// What the file says; written back it is the same, byte by byte.
fn same<T: Serialize + DeserializeOwned>(file: &str) -> T {
    let bytes = std::fs::read(golden().join(file)).unwrap();
    let Read::Found(value) = atomic::parse_json::<T>(&bytes, file, 1) else { panic!("{file} is not read") };
    let tmp = tempfile::tempdir().unwrap();
    let again = tmp.path().join("again.json");
    atomic::replace_json(&again, &value).unwrap();
    assert_eq!(std::fs::read_to_string(&again).unwrap(), String::from_utf8(bytes).unwrap(), "{file}");
    value
}

#[tokio::test]
async fn golden_registry_of_0_1_0_is_read() {
    let tmp = tempfile::tempdir().unwrap();
    copy(&golden().join("registry"), tmp.path());
    let registry = FileRegistry::open(tmp.path()).unwrap();
    assert_eq!(registry.incarnation().to_string(), "8e8d795f-e489-444e-8ea6-f3b395e297f7");
    let list = registry.list().await.unwrap();
    let [Entry::Readable(record)] = &list[..] else { panic!("{list:?}") };
    assert_eq!((record.name.as_str(), record.version, record.status.view.epoch.0), ("demo", 6, 3));
    assert!(record.unknown.is_empty() && record.status.unknown.is_empty(), "{record:?}");
    assert!(matches!(registry.key(record.id).await.unwrap(), Read::Found(key) if key.key_id == 1));
    let node = "node-a".parse().unwrap();
    assert!(
        matches!(registry.node(&node).await.unwrap(), Read::Found(node) if node.draining && node.version == 3)
    );
    let claims = registry.claims(&node).await.unwrap();
    let Some(Stored::Readable(claim)) = claims.values().next() else { panic!("{claims:?}") };
    assert_eq!((claim.owner.as_str(), claim.desired, claim.lease_s), ("controller", Desired::Running, 60));
}

#[test]
fn golden_records_are_written_as_they_were_read() {
    same::<VolumeRecord>("registry/volumes/demo.json");
    same::<NodeRecord>("registry/nodes/node-a.json");
    same::<ClaimRecord>("registry/claims/node-a/demo.r1.json");
    same::<SpawnRecord>("instances/demo.r1/record.json");
    same::<TrashList>("trash/orphan-gone.r1.332d0a6b.json");
    same::<Saved>("orphans.json");
}

#[test]
fn golden_stores_of_0_1_0_are_read() {
    let store = InstanceStore::new(golden().join("instances"));
    let list = store.list().unwrap();
    let [(name, Read::Found(record))] = &list[..] else { panic!("{list:?}") };
    assert_eq!((name.as_str(), record.preferred_port), ("demo.r1", Some(41001)));
    let saved = same::<Saved>("orphans.json");
    assert_eq!((saved.orphans[0].hold, saved.orphans[0].confirmed_ms), (Hold::Person, 24_998));
    let mut tracker = Tracker::restore(Some(saved.clone()));
    assert_eq!(tracker.save(std::time::Duration::ZERO), Some(saved), "read back and saved, nothing is lost");
    let list = same::<TrashList>("trash/orphan-gone.r1.332d0a6b.json");
    assert_eq!(list.moves.len(), 1);
}

#[test]
fn golden_presence_and_inventory_are_read() {
    let bytes = std::fs::read(golden().join("registry/live.json")).unwrap();
    let Read::Found(presence) = atomic::parse_json::<Presence>(&bytes, "live", 1) else {
        panic!("it is read")
    };
    assert_eq!(serde_json::to_vec(&presence).unwrap(), bytes);
    assert!(features::READ.iter().all(|feature| !presence.reads(feature)), "from before features");
    let bytes = std::fs::read(golden().join("registry/inventory/node-a/full.0")).unwrap();
    let document = holdfast_proto::inventory::decode(&bytes).unwrap();
    assert!(matches!(document.body, Some(Body::Full(full)) if full.entries.len() > 4));
}

#[test]
fn orphans_keep_what_this_build_does_not_know() {
    let mut json = serde_json::to_value(same::<Saved>("orphans.json")).unwrap();
    json["later"] = 1.into();
    json["orphans"][0]["later"] = 2.into();
    let saved: Saved = serde_json::from_value(json.clone()).unwrap();
    let again = Tracker::restore(Some(saved)).save(std::time::Duration::ZERO).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), json);
}
