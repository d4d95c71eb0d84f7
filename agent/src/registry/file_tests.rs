use std::os::unix::fs::PermissionsExt as _;

use holdfast_proto::status::ErrorKind;

use super::*;
use crate::core::testing::record;

fn open() -> (tempfile::TempDir, FileRegistry) {
    let tmp = tempfile::tempdir().unwrap();
    let registry = FileRegistry::open(&tmp.path().join("registry")).unwrap();
    (tmp, registry)
}

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

#[tokio::test]
async fn files_are_a_home_like_any_other() {
    let (_tmp, registry) = open();
    crate::registry::conformance::all(std::sync::Arc::new(registry)).await;
}

#[tokio::test]
async fn a_record_is_created_once_and_found_by_the_next_agent() {
    let (tmp, registry) = open();
    let made = registry.create(record("demo", "node-a", 3)).await.unwrap();
    assert_eq!(made.version, 1);
    let again = registry.create(record("demo", "node-a", 3)).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    let reopened = FileRegistry::open(&tmp.path().join("registry")).unwrap();
    assert_eq!(reopened.incarnation(), registry.incarnation());
    assert_eq!(reopened.get(&name("demo")).await.unwrap(), Read::Found(made));
    assert_eq!(reopened.get(&name("other")).await.unwrap(), Read::Absent);
}

#[tokio::test]
async fn one_damaged_record_is_unreadable_and_the_others_are_listed() {
    let (tmp, registry) = open();
    let good = registry.create(record("good", "node-a", 1)).await.unwrap();
    let volumes = tmp.path().join("registry/volumes");
    let text = std::fs::read_to_string(volumes.join("good.json")).unwrap();
    let cases = [
        ("damaged", "{\"schema\": 1,".to_owned()),
        ("empty", String::new()),
        ("foreign", text.replace("\"schema\": 1", "\"schema\": 9").replace("\"good\"", "\"foreign\"")),
        ("partial", text.replace("\"size_bytes\"", "\"size\"").replace("\"good\"", "\"partial\"")),
        ("newer", text.replacen('{', "{\"requires\": [\"tomorrow\"],", 1).replace("\"good\"", "\"newer\"")),
        ("renamed", text.clone()),
        ("absurd", text.replace("\"good\"", "\"absurd\"").replace("\"buffered\"", "\"psychic\"")),
        ("Not A Name", text.clone()),
    ];
    for (file, bytes) in &cases {
        std::fs::write(volumes.join(format!("{file}.json")), bytes).unwrap();
    }
    std::fs::create_dir(volumes.join("directory.json")).unwrap();
    std::fs::write(volumes.join("README"), "not a record").unwrap();

    let list = registry.list().await.unwrap();
    let (readable, unreadable): (Vec<_>, Vec<_>) =
        list.into_iter().partition(|entry| matches!(entry, Entry::Readable(_)));
    assert_eq!(readable, [Entry::Readable(Box::new(good))]);
    assert_eq!(unreadable.len(), cases.len() + 1, "{unreadable:?}");
    let said = |file: &str| match unreadable.iter().find(|e| e.name() == file) {
        Some(Entry::Unreadable { reason, .. }) => reason.clone(),
        other => panic!("{file}: {other:?}"),
    };
    assert!(said("foreign").contains("expected schema 1, found 9"));
    assert!(said("newer").contains("\"tomorrow\"") && said("newer").contains("upgrade this node's agent"));
    assert!(said("renamed").contains("expected renamed, found good"));
    assert!(said("absurd").contains("psychic"));

    let Read::Unreadable(_) = registry.get(&name("damaged")).await.unwrap() else {
        panic!("a damaged record is not absent")
    };
    let taken = registry.create(record("damaged", "node-a", 1)).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "its name is taken");
    assert!(registry.compare_and_swap(1, record("damaged", "node-a", 1)).await.is_err());
    assert_eq!(std::fs::read_to_string(volumes.join("damaged.json")).unwrap(), cases[0].1, "left as it was");
}

#[tokio::test]
async fn a_look_parses_what_has_changed_and_a_list_everything() {
    let (tmp, registry) = open();
    let volumes = tmp.path().join("registry/volumes");
    for name in ["a", "b", "c"] {
        registry.create(record(name, "node-a", 1)).await.unwrap();
    }
    let seen = &registry.inner.seen;
    seen.let_settle();
    for _ in 0..3 {
        assert_eq!(registry.look().await.unwrap(), registry.list().await.unwrap());
    }
    assert_eq!(seen.reads(), 3, "each once, and a list is none of its business");
    let Read::Found(mut b) = registry.get(&name("b")).await.unwrap() else { panic!("it is there") };
    b.spec.io_mode = "direct".to_owned();
    registry.compare_and_swap(b.version, b).await.unwrap();
    let Read::Found(c) = registry.get(&name("c")).await.unwrap() else { panic!("it is there") };
    registry.delete(&c.name, c.id, c.version).await.unwrap();
    std::fs::write(volumes.join("d.json"), "{").unwrap();
    for reads in [5, 6] {
        let looked = registry.look().await.unwrap();
        assert_eq!(looked, registry.list().await.unwrap());
        let names: Vec<_> = looked.iter().map(Entry::name).collect();
        assert_eq!(names, ["a", "b", "d"]);
        assert_eq!(seen.reads(), reads, "b as it is now; what cannot be read is tried each time");
    }
    std::fs::rename(&volumes, tmp.path().join("away")).unwrap();
    assert!(registry.look().await.is_err(), "what is remembered is no answer where nothing can be read");
}

#[tokio::test]
async fn a_home_that_vanished_is_an_error_and_not_an_empty_list() {
    let (tmp, registry) = open();
    registry.create(record("demo", "node-a", 1)).await.unwrap();
    let (volumes, away) = (tmp.path().join("registry/volumes"), tmp.path().join("away"));
    std::fs::rename(&volumes, &away).unwrap();
    assert!(registry.list().await.is_err());
    assert!(registry.get(&name("demo")).await.is_err());
    let reopened = FileRegistry::open(&tmp.path().join("registry")).unwrap();
    assert!(reopened.list().await.is_err(), "it is not made again");
    std::fs::rename(&away, &volumes).unwrap();
    assert_eq!(registry.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_damaged_home_is_refused_and_a_lost_one_is_a_new_incarnation() {
    let (tmp, registry) = open();
    let home = tmp.path().join("registry/registry.json");
    std::fs::write(&home, "{}").unwrap();
    let said = FileRegistry::open(&tmp.path().join("registry")).unwrap_err().to_string();
    assert!(said.contains("registry.json") && said.contains("restore"), "{said}");
    std::fs::remove_file(&home).unwrap();
    let next = FileRegistry::open(&tmp.path().join("registry")).unwrap();
    assert_ne!(next.incarnation(), registry.incarnation());
}

#[tokio::test]
async fn keys_are_private_and_a_damaged_one_is_not_quoted() {
    let (tmp, registry) = open();
    let id = VolumeId::random();
    assert_eq!(registry.key(id).await.unwrap(), Read::Absent);
    let key = VolumeKey { key_id: 1, key: [0x5A; 32] };
    registry.put_key(id, key.clone()).await.unwrap();
    assert_eq!(registry.key(id).await.unwrap(), Read::Found(key));
    let path = tmp.path().join(format!("registry/keys/{id}.key"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    for damaged in
        [text.replace("5a5a5a", "5a5a"), text.replace("\"5a", "[\"5a"), text.replace("5a\"", "5g\"")]
    {
        std::fs::write(&path, damaged).unwrap();
        let Read::Unreadable(said) = registry.key(id).await.unwrap() else { panic!("damaged") };
        assert!(!said.contains("5a5a"), "{said}");
    }
    registry.delete_key(id).await.unwrap();
    registry.delete_key(id).await.unwrap();
    assert_eq!(registry.key(id).await.unwrap(), Read::Absent);
}
