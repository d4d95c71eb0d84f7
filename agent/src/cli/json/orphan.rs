//! Orphans and the trash.

use holdfast_proto::pb::agent as pb;
use serde::Serialize;

/// One of `orphan ls`, and `orphan show`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct OrphanDetail<'a> {
    class: &'a str,
    name: &'a str,
    uuid: &'a str,
    state: &'a str,
    reason: &'a str,
    /// Of the grace period.
    remaining_s: u64,
    /// For so long it is confirmed that nobody claims it.
    confirmed_s: u64,
    /// So long ago that was confirmed last; null: not since the agent started.
    last_confirmed_s: Option<u64>,
    held: bool,
    /// Whether its class is cleaned at all.
    auto_cleanup: bool,
}

impl<'a> From<&'a pb::Orphan> for OrphanDetail<'a> {
    fn from(orphan: &'a pb::Orphan) -> Self {
        Self {
            class: &orphan.class,
            name: &orphan.name,
            uuid: &orphan.uuid,
            state: &orphan.state,
            reason: &orphan.reason,
            remaining_s: orphan.remaining_s,
            confirmed_s: orphan.confirmed_s,
            last_confirmed_s: orphan.last_confirmed_s,
            held: orphan.held,
            auto_cleanup: orphan.auto_cleanup,
        }
    }
}

/// `orphan ls`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Orphans<'a> {
    orphans: Vec<OrphanDetail<'a>>,
}

impl<'a> From<&'a pb::ListOrphansReply> for Orphans<'a> {
    fn from(reply: &'a pb::ListOrphansReply) -> Self {
        Self { orphans: reply.orphans.iter().map(OrphanDetail::from).collect() }
    }
}

/// One of `trash ls`, and `trash restore`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct TrashItem<'a> {
    name: &'a str,
    volume_id: &'a str,
    /// Where it was.
    from: &'a str,
    /// Where it waits.
    path: &'a str,
    at_unix_s: u64,
    /// Until it is unlinked.
    remaining_s: u64,
    /// Why it is still there though its time is over.
    problem: Option<&'a str>,
}

impl<'a> From<&'a pb::TrashItem> for TrashItem<'a> {
    fn from(item: &'a pb::TrashItem) -> Self {
        Self {
            name: &item.name,
            volume_id: &item.volume_id,
            from: &item.from,
            path: &item.path,
            at_unix_s: item.at_unix_s,
            remaining_s: item.remaining_s,
            problem: Some(item.problem.as_str()).filter(|problem| !problem.is_empty()),
        }
    }
}

/// `trash ls`, and what `trash empty` has unlinked.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Trash<'a> {
    items: Vec<TrashItem<'a>>,
}

impl<'a> From<&'a pb::ListTrashReply> for Trash<'a> {
    fn from(reply: &'a pb::ListTrashReply) -> Self {
        Self { items: reply.items.iter().map(TrashItem::from).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn every_field_of_an_orphan_is_there_and_what_is_not_known_is_null() {
        let reply = pb::ListOrphansReply {
            orphans: vec![pb::Orphan {
                class: "instance".into(),
                name: "demo.r1".into(),
                uuid: "u".into(),
                state: "orphaned".into(),
                reason: "there is no record of volume demo".into(),
                remaining_s: 299,
                confirmed_s: 1,
                last_confirmed_s: None,
                held: false,
                auto_cleanup: true,
            }],
        };
        let expected = json!({"orphans": [{
            "class": "instance", "name": "demo.r1", "uuid": "u", "state": "orphaned",
            "reason": "there is no record of volume demo", "remaining_s": 299, "confirmed_s": 1,
            "last_confirmed_s": null, "held": false, "auto_cleanup": true,
        }]});
        assert_eq!(to_value(Orphans::from(&reply)).unwrap(), expected);
    }

    #[test]
    fn what_waits_in_the_trash_says_where_it_was_and_how_long_it_waits() {
        let reply = pb::ListTrashReply {
            items: vec![pb::TrashItem {
                name: "5-demo.r1".into(),
                volume_id: "v".into(),
                from: "/d/replicas/demo.r1".into(),
                path: "/d/trash/5-demo.r1".into(),
                at_unix_s: 5,
                remaining_s: 60,
                problem: String::new(),
            }],
        };
        let expected = json!({"items": [{
            "name": "5-demo.r1", "volume_id": "v", "from": "/d/replicas/demo.r1",
            "path": "/d/trash/5-demo.r1", "at_unix_s": 5, "remaining_s": 60,
            "problem": null,
        }]});
        assert_eq!(to_value(Trash::from(&reply)).unwrap(), expected);
    }
}
