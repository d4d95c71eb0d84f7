//! The documents of a node's published inventory: messages to bytes and back, with everything bounded that a reader
//! relies on. What is published when, and how a reader puts it together, is the agent's.

use std::collections::BTreeSet;

use prost::Message as _;

use crate::convert::InvalidMessage;
use crate::pb::inventory as pb;
use crate::record::ReplicaSet;
use pb::document::Body;
use pb::entry::Entry as Of;

/// The format that this build writes and reads.
pub const FORMAT: u32 = 1;
/// No document is longer: etcd refuses requests above 1.5 MiB as it comes, and a value shares that with its key.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// A full list has at most this many parts: with parts of 256 KiB room for some 300,000 entries.
pub const PARTS_MAX: u32 = 256;
/// No name or path is longer: a path can have 4096 bytes.
pub const NAME_BYTES_MAX: usize = 4096;
/// Reasons are for people, who read the rest in the node's own log.
pub const REASON_BYTES_MAX: usize = 256;

/// The kinds of entry that this build knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The node itself; there is one.
    Node,
    /// A disk that replicas are on.
    Disk,
    /// An instance.
    Instance,
    /// A replica directory.
    ReplicaDir,
}

/// Names one entry of a node's inventory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Which one; empty for the node.
    pub name: String,
}

impl Key {
    /// The key of `entry`; none where it is of a kind that this build does not know.
    #[must_use]
    pub fn of(entry: &pb::Entry) -> Option<Self> {
        let (kind, name) = match entry.entry.as_ref()? {
            Of::Node(_) => (Kind::Node, ""),
            Of::Disk(disk) => (Kind::Disk, disk.path.as_str()),
            Of::Instance(instance) => (Kind::Instance, instance.name.as_str()),
            Of::ReplicaDir(dir) => (Kind::ReplicaDir, dir.dir.as_str()),
        };
        Some(Self { kind, name: name.to_owned() })
    }
}

impl From<&Key> for pb::Key {
    fn from(key: &Key) -> Self {
        let kind = match key.kind {
            Kind::Node => pb::Kind::Node,
            Kind::Disk => pb::Kind::Disk,
            Kind::Instance => pb::Kind::Instance,
            Kind::ReplicaDir => pb::Kind::ReplicaDir,
        };
        Self { kind: kind.into(), name: key.name.clone() }
    }
}

/// The key that a message names; none where it is of a kind that this build does not know.
#[must_use]
pub fn key_named(key: &pb::Key) -> Option<Key> {
    let kind = match key.kind() {
        pb::Kind::Unspecified => return None,
        pb::Kind::Node => Kind::Node,
        pb::Kind::Disk => Kind::Disk,
        pb::Kind::Instance => Kind::Instance,
        pb::Kind::ReplicaDir => Kind::ReplicaDir,
    };
    Some(Key { kind, name: key.name.clone() })
}

/// The bytes of a document.
#[must_use]
pub fn encode(document: &pb::Document) -> Vec<u8> {
    document.encode_to_vec()
}

/// What an entry adds to a document, at most: its bytes, its tag and its length.
#[must_use]
pub fn entry_bytes(entry: &pb::Entry) -> usize {
    entry.encoded_len() + 6
}

/// A document that can be relied on.
///
/// # Errors
/// What in it is not as it must be.
pub fn decode(bytes: &[u8]) -> Result<pb::Document, InvalidMessage> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(bad("length", format!("{} bytes, expected at most {DOCUMENT_BYTES_MAX}", bytes.len())));
    }
    let document = pb::Document::decode(bytes).map_err(|error| bad("encoding", error))?;
    if document.format != FORMAT {
        return Err(bad("format", format!("{}, expected {FORMAT}", document.format)));
    }
    if document.session == 0 {
        return Err(bad("session", "0"));
    }
    match &document.body {
        Some(Body::Full(full)) => check_full(full)?,
        Some(Body::Delta(delta)) => check_delta(delta, document.revision)?,
        None => return Err(bad("body", "none")),
    }
    Ok(document)
}

fn bad(field: &'static str, found: impl ToString) -> InvalidMessage {
    InvalidMessage::new("inventory.Document", field, found)
}

fn check_full(full: &pb::Full) -> Result<(), InvalidMessage> {
    if full.parts == 0 || full.parts > PARTS_MAX || full.part >= full.parts {
        return Err(bad("part", format!("{} of {}, expected at most {PARTS_MAX}", full.part, full.parts)));
    }
    check_entries(&full.entries, &mut BTreeSet::new())
}

fn check_delta(delta: &pb::Delta, revision: u64) -> Result<(), InvalidMessage> {
    if delta.base >= revision {
        return Err(bad("base", format!("{}, expected less than the revision {revision}", delta.base)));
    }
    let mut keys = BTreeSet::new();
    check_entries(&delta.changed, &mut keys)?;
    for key in delta.removed.iter().filter_map(key_named) {
        check_key(&key)?;
        once(&mut keys, key)?;
    }
    Ok(())
}

fn check_entries(entries: &[pb::Entry], keys: &mut BTreeSet<Key>) -> Result<(), InvalidMessage> {
    for entry in entries {
        // Of a newer build: nothing is known of it, and nothing needs to be.
        let Some(key) = Key::of(entry) else { continue };
        check_key(&key)?;
        check_content(entry)?;
        once(keys, key)?;
    }
    Ok(())
}

fn once(keys: &mut BTreeSet<Key>, key: Key) -> Result<(), InvalidMessage> {
    if keys.contains(&key) {
        return Err(bad("entries", format!("{:?} {} is listed twice", key.kind, key.name)));
    }
    keys.insert(key);
    Ok(())
}

fn check_key(key: &Key) -> Result<(), InvalidMessage> {
    let named = key.kind != Kind::Node;
    if named == key.name.is_empty() || key.name.len() > NAME_BYTES_MAX {
        let start: String = key.name.chars().take(80).collect();
        return Err(bad("name", format!("{:?} {start:?}", key.kind)));
    }
    Ok(())
}

fn check_content(entry: &pb::Entry) -> Result<(), InvalidMessage> {
    let uuid = |field, bytes: &[u8], optional: bool| match bytes.len() {
        16 => Ok(()),
        0 if optional => Ok(()),
        length => Err(bad(field, format!("{length} bytes, expected 16"))),
    };
    let text = |field, text: &str| match text.len() {
        length if length > REASON_BYTES_MAX => {
            Err(bad(field, format!("{length} bytes, expected at most {REASON_BYTES_MAX}")))
        }
        _ => Ok(()),
    };
    let members = |members: &[u32]| match members.len() {
        count if count > ReplicaSet::CAPACITY => {
            Err(bad("members", format!("{count}, expected at most {}", ReplicaSet::CAPACITY)))
        }
        _ => Ok(()),
    };
    match &entry.entry {
        None => Ok(()),
        Some(Of::Node(node)) => {
            text("name", &node.name)?;
            text("version", &node.version)?;
            uuid("boot_id", &node.boot_id, false)
        }
        Some(Of::Disk(disk)) => text("last_error", &disk.last_error),
        Some(Of::Instance(instance)) => {
            uuid("uuid", &instance.uuid, false)?;
            uuid("volume_id", &instance.volume_id, false)?;
            uuid("process_uuid", &instance.process_uuid, true)?;
            text("address", &instance.address)?;
            text("reason", &instance.reason)?;
            text("volume_state", &instance.volume_state)?;
            members(&instance.members)?;
            text("blocked_by", &instance.blocked_by)
        }
        // One that cannot be read says nothing of whose it is.
        Some(Of::ReplicaDir(dir)) => {
            uuid("volume_id", &dir.volume_id, true)?;
            text("volume", &dir.volume)?;
            text("reason", &dir.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str) -> pb::Entry {
        let instance = pb::Instance {
            name: name.to_owned(),
            uuid: vec![0x11; 16],
            volume_id: vec![0x22; 16],
            state: pb::State::Running.into(),
            address: "10.0.0.1:20000".to_owned(),
            generation: 3,
            epoch: 7,
            claim: pb::Claim::Claimed.into(),
            ..Default::default()
        };
        pb::Entry { entry: Some(Of::Instance(instance)) }
    }

    fn delta(base: u64, revision: u64, changed: Vec<pb::Entry>, removed: Vec<Key>) -> pb::Document {
        let removed = removed.iter().map(pb::Key::from).collect();
        let body = Some(Body::Delta(pb::Delta { base, changed, removed }));
        pb::Document { format: FORMAT, session: 5, revision, body }
    }

    fn full(part: u32, parts: u32, entries: Vec<pb::Entry>) -> pb::Document {
        let body = Some(Body::Full(pb::Full { part, parts, entries }));
        pb::Document { format: FORMAT, session: 5, revision: 9, body }
    }

    fn dir(name: &str) -> Key {
        Key { kind: Kind::ReplicaDir, name: name.to_owned() }
    }

    /// Readers of other versions depend on every one of these bytes.
    #[test]
    fn the_bytes_of_a_delta_are_as_written_down() {
        let document = delta(8, 10, vec![instance("db.r1")], vec![dir("db.r2.0000")]);
        let golden =
            "0801100518 0a2a59 0808 1245 1a43 0a0564622e7231 1210 11111111111111111111111111111111 1a10
            22222222222222222222222222222222 2003 320e31302e302e302e313a3230303030 3803 4007 5001 1a0e 0804
            120a64622e72322e30303030";
        let golden: String = golden.split_whitespace().collect();
        let found: String = encode(&document).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, golden);
        assert_eq!(decode(&encode(&document)), Ok(document));
    }

    #[test]
    fn whatever_a_reader_relies_on_is_checked() {
        let with = |change: fn(&mut pb::Document)| {
            let mut document = delta(8, 10, vec![instance("db.r1")], vec![]);
            change(&mut document);
            document
        };
        let broken = |change: fn(&mut pb::Instance)| {
            let mut entry = instance("db.r1");
            if let Some(Of::Instance(instance)) = &mut entry.entry {
                change(instance);
            }
            full(0, 1, vec![entry])
        };
        let twice = Key { kind: Kind::Instance, name: "db.r1".to_owned() };
        for (document, field) in [
            (with(|d| d.format = 2), "format"),
            (with(|d| d.session = 0), "session"),
            (with(|d| d.body = None), "body"),
            (with(|d| d.revision = 8), "base"),
            (delta(8, 10, vec![instance("db.r1")], vec![twice]), "entries"),
            (full(0, 0, vec![]), "part"),
            (full(2, 2, vec![]), "part"),
            (full(0, PARTS_MAX + 1, vec![]), "part"),
            (full(0, 1, vec![instance("a.r1"), instance("a.r1")]), "entries"),
            (full(0, 1, vec![instance("")]), "name"),
            (broken(|i| i.name = "x".repeat(NAME_BYTES_MAX + 1)), "name"),
            (broken(|i| i.uuid = vec![1; 15]), "uuid"),
            (broken(|i| i.volume_id = vec![]), "volume_id"),
            (broken(|i| i.process_uuid = vec![1; 17]), "process_uuid"),
            (broken(|i| i.members = vec![1; 9]), "members"),
            (broken(|i| i.reason = "x".repeat(REASON_BYTES_MAX + 1)), "reason"),
        ] {
            let said = decode(&encode(&document)).unwrap_err().to_string();
            assert!(said.contains(&format!("field {field} ")), "{field}: {said}");
        }
        assert!(decode(&vec![0; DOCUMENT_BYTES_MAX + 1]).unwrap_err().to_string().contains("length"));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_and_a_cut_document_is_refused() {
        let bytes = encode(&full(0, 1, vec![instance("a.r1"), instance("b.r1")]));
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{end}");
        }
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                // Whether it is refused or means something else: it does not panic.
                drop(decode(&damaged));
            }
        }
    }

    #[test]
    fn entries_of_a_newer_build_are_passed_over() {
        let unknown = pb::Entry { entry: None };
        let document = full(0, 1, vec![unknown.clone(), instance("a.r1"), unknown]);
        assert!(decode(&encode(&document)).is_ok());
        assert_eq!(key_named(&pb::Key { kind: 99, name: "x".to_owned() }), None);
    }
}
