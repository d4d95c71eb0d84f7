//! A replica's files as version 0.1.0 wrote them, which every later one reads: `tests/tests/golden/data-0.1.0`.

use std::path::Path;

use holdfast_proto::ids::ReplicaId;

use super::bitmap::{Label, PAGE_BYTES, check_label, decode_page, encode_label};
use super::meta::Meta;

fn golden(file: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/golden/data-0.1.0/replicas/demo.r1");
    std::fs::read(dir.join(file)).unwrap()
}

#[test]
fn golden_meta_of_both_versions_is_read() {
    let (first, second) = (golden("meta-v1"), golden("meta-v2"));
    assert_eq!((first[8], second[8]), (1, 2), "the versions");
    let (first, second) = (Meta::decode(&first).unwrap(), Meta::decode(&second).unwrap());
    assert_eq!((first.view, first.promised, first.lineage), (second.view, second.promised, second.lineage));
    assert_eq!(
        (first.volume_name.as_str(), first.replica, first.size_bytes),
        ("demo", ReplicaId(1), 4 << 20)
    );
    assert_eq!(first.basis, Some(first.view.stamp(0)), "a member without maps has all of its view");
    assert_eq!((second.basis.map(|basis| basis.epoch.0), second.view.epoch.0), (Some(4), 4));
    let dirty: Vec<_> = second.dirty.iter().map(|map| (map.replica.0, map.base.epoch.0)).collect();
    assert_eq!((first.dirty.len(), dirty), (0, vec![(3, 3)]));
}

#[test]
fn golden_bitmaps_are_read() {
    let volume = Meta::decode(&golden("meta-v2")).unwrap().volume;
    // The dirty map was on its way to the disk: until then the intent stands for it.
    let files = [("intent.bm", None, 1, vec![(0, 1)]), ("dirty-r3.bm", Some(ReplicaId(3)), 16, vec![])];
    for (file, of, bits, expected) in files {
        let bytes = golden(file);
        let label = Label { volume, replica: ReplicaId(1), of, bits };
        check_label(&bytes, &label).unwrap();
        assert_eq!(encode_label(&label), bytes[..PAGE_BYTES], "{file}");
        let mut words = Vec::new();
        assert!(decode_page(&bytes[PAGE_BYTES..], 0, |at, word| words.push((at, word))), "{file}");
        words.retain(|(_, word)| *word != 0);
        assert_eq!(words, expected, "{file}: the first block was written");
    }
}
