//! A node's published inventory, as a reader puts it together: complete at one revision, or not known.
//!
//! Calling order: [`Follower::list`] with everything below the node's prefix, then [`Follower::put`] and
//! [`Follower::delete`] as the registry tells them; [`Follower::lost`] when it can no longer tell. After each batch,
//! [`Follower::wants_list`] says whether a listing would help. What is held is exactly what the node had at that
//! revision, whatever was lost, repeated, or came late; where something newer exists that cannot be put together, it
//! is unknown, and nothing in it is gone.

use std::collections::BTreeMap;

use holdfast_proto::ids::NodeName;
use holdfast_proto::inventory::{self, Key, Kind, key_named};
use holdfast_proto::pb::inventory as pb;
use pb::document::Body;
use pb::entry::Entry as Of;

/// Deltas that wait for what they build on. More than a publisher leaves between two full lists is of no use.
const WAITING_MAX: usize = 2 * super::publish::DELTAS_MAX;

/// Session and revision: which of two documents is newer.
type At = (u64, u64);

/// Everything that a node said of itself at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// Which run of the node's agent said it.
    pub session: u64,
    /// Within the session.
    pub revision: u64,
    /// All entries.
    pub entries: BTreeMap<Key, pb::Entry>,
    parts: u32,
}

impl Inventory {
    fn at(&self) -> At {
        (self.session, self.revision)
    }
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Knowledge<'a> {
    /// Complete, and the newest that the registry has told of. Whether the node lives is for its lease to say.
    Known(&'a Inventory),
    /// Not that.
    Unknown {
        /// Why.
        reason: &'a str,
        /// What it was when it was last known. Nothing may be ended or deleted because it is not in there.
        last: Option<&'a Inventory>,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Follower {
    node: NodeName,
    current: Option<Inventory>,
    /// The newest that any document told of.
    newest: At,
    assembling: Option<Assembling>,
    /// By base.
    waiting: BTreeMap<At, Waiting>,
    /// Why `current` is not the whole truth; none: it is.
    doubt: Option<String>,
    /// A document could not be read, or one that is needed was deleted: only a full list that comes later is certain.
    damaged: bool,
    asked: bool,
}

#[derive(Debug)]
struct Assembling {
    at: At,
    parts: u32,
    got: BTreeMap<u32, Vec<pb::Entry>>,
}

#[derive(Debug)]
struct Waiting {
    revision: u64,
    delta: pb::Delta,
}

impl Follower {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            current: None,
            newest: (0, 0),
            assembling: None,
            waiting: BTreeMap::new(),
            doubt: Some("not read yet".to_owned()),
            damaged: false,
            asked: false,
        }
    }

    /// A complete listing of what is below the node's prefix. What was held before counts no more: the registry may have
    /// been restored.
    pub fn list(&mut self, found: &[(String, Vec<u8>)]) {
        let last = self.current.take();
        (self.newest, self.assembling, self.damaged, self.doubt) = ((0, 0), None, false, None);
        self.waiting.clear();
        self.asked = true;
        // The full list first: what cannot be read after it is something newer that is missing.
        let (full, rest): (Vec<_>, Vec<_>) = found.iter().partition(|(key, _)| key.starts_with("full/"));
        for (key, bytes) in full.into_iter().chain(rest) {
            self.take(key, bytes);
        }
        self.settle();
        if self.current.is_none() {
            // Kept for people to look at; the doubt says that it counts no more.
            self.current = last;
            self.damaged = true;
        }
    }

    /// A key has this value now, or had it.
    pub fn put(&mut self, key: &str, bytes: &[u8]) {
        self.take(key, bytes);
        self.settle();
    }

    /// A key is gone.
    pub fn delete(&mut self, key: &str) {
        let Some(part) = key.strip_prefix("full/").and_then(|part| part.parse::<u32>().ok()) else { return };
        if let Some(assembling) = &mut self.assembling {
            assembling.got.remove(&part);
        }
        if self.current.as_ref().is_some_and(|current| part < current.parts) {
            self.damaged = true;
            self.doubt = Some(format!("part {part} of the full list was deleted"));
        }
    }

    /// Changes may be missed from now on, until the next listing.
    pub fn lost(&mut self, reason: &str) {
        self.damaged = true;
        self.doubt = Some(reason.to_owned());
        self.asked = false;
    }

    /// Whether to list the prefix: something is missing, and it was not listed since. Where a listing does not help, the
    /// node's next full list does.
    #[must_use]
    pub fn wants_list(&self) -> bool {
        self.doubt.is_some() && !self.asked
    }

    /// What is known.
    #[must_use]
    pub fn inventory(&self) -> Knowledge<'_> {
        match (&self.doubt, &self.current) {
            (None, Some(current)) => Knowledge::Known(current),
            (doubt, last) => {
                Knowledge::Unknown { reason: doubt.as_deref().unwrap_or("not read yet"), last: last.as_ref() }
            }
        }
    }

    fn take(&mut self, key: &str, bytes: &[u8]) {
        let document = match inventory::decode(bytes) {
            Ok(document) => document,
            Err(error) => {
                self.damaged = true;
                self.doubt = Some(format!("{key} cannot be read: {error}"));
                return;
            }
        };
        let at = (document.session, document.revision);
        self.newest = self.newest.max(at);
        match document.body {
            Some(Body::Full(full)) => self.take_part(at, full),
            Some(Body::Delta(delta)) => self.take_delta(at, delta),
            None => {}
        }
    }

    fn take_part(&mut self, at: At, full: pb::Full) {
        let held = self.assembling.as_ref().map(|assembling| assembling.at);
        if held.is_some_and(|held| held > at) {
            return;
        }
        if held != Some(at) {
            self.assembling = Some(Assembling { at, parts: full.parts, got: BTreeMap::new() });
        }
        let Some(assembling) = &mut self.assembling else { return };
        assembling.parts = full.parts;
        assembling.got.insert(full.part, full.entries);
        if (0..assembling.parts).all(|part| assembling.got.contains_key(&part)) {
            self.complete();
        }
    }

    fn complete(&mut self) {
        let Some(Assembling { at, parts, got }) = self.assembling.take() else { return };
        // One that comes late is nothing new; but it may be what was damaged.
        if self.current.as_ref().is_some_and(|current| current.at() > at) && !self.damaged {
            return;
        }
        let entries = got.into_values().flatten().filter_map(|e| Key::of(&e).map(|key| (key, e)));
        let entries: BTreeMap<Key, pb::Entry> = entries.collect();
        let whose = entries.get(&Key { kind: Kind::Node, name: String::new() });
        match whose.and_then(|entry| entry.entry.as_ref()) {
            Some(Of::Node(node)) if node.name == self.node.as_str() => {
                (self.damaged, self.doubt) = (false, None);
                self.current = Some(Inventory { session: at.0, revision: at.1, entries, parts });
            }
            _ => {
                self.damaged = true;
                self.doubt = Some(format!("the full list does not say that it is of node {}", self.node));
            }
        }
    }

    fn take_delta(&mut self, at: At, delta: pb::Delta) {
        let (session, revision) = at;
        let base = (session, delta.base);
        if self.waiting.get(&base).is_some_and(|held| held.revision >= revision) {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.clear();
        }
        self.waiting.insert(base, Waiting { revision, delta });
    }

    /// Applies what can be applied, and finds out whether that is all.
    fn settle(&mut self) {
        if let Some(current) = &mut self.current {
            while let Some(next) = applicable(&self.waiting, current) {
                if let Some(Waiting { revision, delta }) = self.waiting.remove(&next) {
                    apply(current, revision, delta);
                }
            }
            let at = current.at();
            self.waiting.retain(|base, waiting| (base.0, waiting.revision) > at);
        }
        if self.damaged {
            return;
        }
        self.doubt = match (&self.current, self.newest) {
            (None, (0, 0)) => Some("nothing is published".to_owned()),
            (None, _) => Some("the full list is not complete".to_owned()),
            (Some(current), newest) if newest > current.at() => {
                let (session, revision) = newest;
                Some(format!("what leads to revision {revision} of session {session} is missing"))
            }
            (Some(_), _) => None,
        };
        if self.doubt.is_none() {
            self.asked = false;
        }
    }
}

/// A delta that goes on from what is held: everything it builds on is there, and it is newer.
fn applicable(waiting: &BTreeMap<At, Waiting>, current: &Inventory) -> Option<At> {
    let (session, revision) = current.at();
    let from = waiting.range((session, 0)..=(session, revision));
    from.filter(|(_, waiting)| waiting.revision > revision).map(|(base, _)| *base).next()
}

fn apply(current: &mut Inventory, revision: u64, delta: pb::Delta) {
    for key in delta.removed.iter().filter_map(key_named) {
        current.entries.remove(&key);
    }
    for entry in delta.changed {
        if let Some(key) = Key::of(&entry) {
            current.entries.insert(key, entry);
        }
    }
    current.revision = revision;
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
