//! May an engine start, and with which members? Pure, from what it fenced and what the registry says.
//! The rules and why each is needed: `docs/replication.md`.

use holdfast_proto::ids::{Epoch, Generation, ReplicaId};
use holdfast_proto::record::{ReplicaSet, Stamp, View, VolumeStatus};

use super::rules::{Rule, kept};
use crate::wire::handshake::Welcome;

/// More than half of `configured` replicas.
#[must_use]
pub fn majority(configured: usize) -> usize {
    configured / 2 + 1
}

/// What the registry has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryState {
    /// Our generation is in the record: nobody else takes one without our seeing it.
    Attached,
    /// It cannot be reached.
    Unreachable,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Propose a view with these members, its epoch being one above `newest`'s.
    Start {
        /// The newest view known.
        newest: View,
        /// The configured set from here on.
        configured: ReplicaSet,
        /// Those of its members that are here and can serve.
        members: ReplicaSet,
        /// The record went back (or is of another registry): it must take this view, whatever its size.
        reseed: bool,
    },
    /// Not yet.
    Wait {
        /// Those that would decide it.
        missing: ReplicaSet,
        /// For people.
        why: String,
    },
}

/// Decides. `record` is the status as it was read at attach, `version` the record's version; `fenced` are the replicas
/// of the record's lineage that promised to this engine.
///
/// Which configured set counts: every change of it counts only once the record has it, so a record that was attached to
/// and did not go back has the last one, and a replica that knows another heard of one that never counted. Where the
/// record may be old, the set that belongs to the newest view decides; since a change is persisted on a replica of the
/// set before it, whoever has met all of one set knows whether there is a later one.
#[must_use]
pub fn decide(
    record: &VolumeStatus,
    version: u64,
    registry: RegistryState,
    fenced: &[(ReplicaId, &Welcome)],
) -> Decision {
    let (newest, its_configured) = newest(record, fenced.iter().map(|(_, welcome)| *welcome));
    let older = older_copies(record, fenced);
    // What an older copy has forgotten it cannot tell: it counts as away.
    let here: ReplicaSet = fenced.iter().map(|(id, _)| *id).filter(|id| !older.contains(*id)).collect();
    let heard_more = |w: &Welcome| w.incarnation != record.incarnation || w.revision > version;
    let gone_back = kept(Rule::WentBackNeedsAll) && fenced.iter().any(|(_, w)| heard_more(w));
    let record_counts = registry == RegistryState::Attached && !gone_back;
    let configured = if record_counts { record.configured } else { its_configured };
    let (count, maj) = (configured.len(), majority(configured.len()));
    let away = configured.difference(&here);
    let present = newest.members.intersection(&here).intersection(&configured);
    if present.is_empty() {
        let mut why = format!("the newest view known is {newest}, and none of its members is here");
        if !older.is_empty() {
            why.push_str(&format!(
                " with its newest data: {older} holds an older copy of itself (a restored snapshot, backup or clone); \
                 bring the newest data back, or start from the older copy by force"
            ));
        }
        return wait(newest.members.difference(&here), why);
    }
    let all_here = away.is_empty();
    let allowed = match registry {
        RegistryState::Unreachable => {
            if !all_here && kept(Rule::AwayNeedsAll) {
                return wait(away, "the registry cannot be reached, so every replica is needed".to_owned());
            }
            if newest.needs_registry && kept(Rule::Flag) {
                return wait(
                    ReplicaSet::new(),
                    format!("view {newest} can only be followed with the registry"),
                );
            }
            true
        }
        RegistryState::Attached if gone_back => {
            if !all_here {
                return wait(
                    away,
                    "the registry is older than what replicas heard of it, so every replica is needed"
                        .to_owned(),
                );
            }
            true
        }
        RegistryState::Attached => {
            let minority =
                record.view.members.len() < maj && !record.view.members.intersection(&here).is_empty();
            configured.intersection(&here).len() > count - maj || minority || !kept(Rule::StartQuorum)
        }
    };
    if !allowed {
        return wait(
            away,
            format!("a start needs {} of {count} replicas, {} are here", count - maj + 1, count - away.len()),
        );
    }
    Decision::Start { newest, configured, members: usable(present, fenced), reseed: gone_back }
}

/// Members of the newest view whose directory is an older copy of itself: a restored snapshot or backup, or a clone.
/// The record, or another replica, knows of a stamp that every member had persisted and that it has not. (A record
/// takes a view only once each of its members has persisted it.)
#[must_use]
pub fn older_copies(record: &VolumeStatus, fenced: &[(ReplicaId, &Welcome)]) -> ReplicaSet {
    if !kept(Rule::OlderCopyLeftOut) {
        return ReplicaSet::new();
    }
    let (newest, _) = newest(record, fenced.iter().map(|(_, welcome)| *welcome));
    let settled = fenced.iter().filter_map(|(_, welcome)| welcome.settled).max();
    let is_older = |id: ReplicaId, welcome: &Welcome| {
        let by_record = record.view.members.contains(id).then(|| record.view.stamp(record.round));
        // One that was about to be added may have persisted less than the members before it.
        let known = by_record.max(settled.filter(|_| !welcome.syncing)).map(|stamp| match welcome.stamps {
            true => stamp,
            false => Stamp { round: 0, ..stamp },
        });
        let judged = welcome.stamps || welcome.basis.is_some();
        newest.members.contains(id) && judged && welcome.basis < known
    };
    fenced.iter().filter(|(id, welcome)| is_older(*id, welcome)).map(|(id, _)| *id).collect()
}

/// The newest view that is known, and the configured set that belongs to it.
pub(crate) fn newest<'a>(
    record: &VolumeStatus,
    fenced: impl Iterator<Item = &'a Welcome>,
) -> (View, ReplicaSet) {
    // Of equal views the record's: a replica that was made later was told the same.
    fenced.fold((record.view, record.configured), |best, welcome| {
        if order(&welcome.view) > order(&best.0) { (welcome.view, welcome.configured) } else { best }
    })
}

/// What tells which of two views is the newer one.
fn order(view: &View) -> (Generation, Epoch) {
    if kept(Rule::GenerationOrders) { view.order() } else { (Generation(0), view.epoch) }
}

fn wait(missing: ReplicaSet, why: String) -> Decision {
    Decision::Wait { missing, why }
}

/// Members that may serve. In this order of preference: those that hold all they acknowledged; those whose node lost
/// its cache with writes that no flush covered (where all did, that is a power loss: one is as good as another); those
/// whose disk failed a flush (consumers were told), again first those whose node kept its cache: what was acknowledged
/// since is nowhere else; last, those that are still being filled. A member that is left out is filled again: a flush
/// must not be acknowledged by one that lacks what was written before it.
fn usable(present: ReplicaSet, fenced: &[(ReplicaId, &Welcome)]) -> ReplicaSet {
    let pick = |wanted: &dyn Fn(&Welcome) -> bool| -> ReplicaSet {
        fenced.iter().filter(|(id, w)| present.contains(*id) && wanted(w)).map(|(id, _)| *id).collect()
    };
    let sound = |w: &Welcome| w.failed.is_empty() && !w.syncing;
    let filled = |w: &Welcome| !w.syncing;
    let first = |w: &Welcome| sound(w) && (!w.cache_lost || !kept(Rule::LostLeftOut));
    [pick(&first), pick(&sound), pick(&|w| filled(w) && !w.cache_lost), pick(&filled)]
        .into_iter()
        .find(|set| !set.is_empty())
        .unwrap_or(present)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_proto::ids::{Incarnation, InstanceUuid, Lineage};

    pub(crate) fn set(ids: &[u32]) -> ReplicaSet {
        ids.iter().map(|id| ReplicaId(*id)).collect()
    }
    pub(crate) fn view(generation: u64, epoch: u64, members: &[u32], needs_registry: bool) -> View {
        View {
            generation: Generation(generation),
            epoch: Epoch(epoch),
            members: set(members),
            needs_registry,
        }
    }
    pub(crate) fn status(configured: &[u32], view: View) -> VolumeStatus {
        VolumeStatus {
            incarnation: Incarnation::nil(),
            lineage: Lineage::nil(),
            generation: view.generation,
            engine_uuid: InstanceUuid::nil(),
            engine_instance: InstanceUuid::nil(),
            round: 0,
            view,
            configured: set(configured),
            clean: false,
            instance_uuids: std::collections::BTreeMap::new(),
            unknown: Default::default(),
        }
    }
    pub(crate) fn welcome(view: View) -> Welcome {
        Welcome {
            size_bytes: 1 << 30,
            lineage: Lineage::nil(),
            view,
            configured: view.members,
            incarnation: Incarnation::nil(),
            revision: 0,
            basis: None,
            stamps: false,
            settled: None,
            syncing: false,
            cache_lost: false,
            failed: String::new(),
            flush_sequence: 0,
        }
    }
    fn run(record: &VolumeStatus, registry: RegistryState, fenced: &[(u32, Welcome)]) -> Decision {
        let fenced: Vec<_> = fenced.iter().map(|(id, w)| (ReplicaId(*id), w)).collect();
        decide(record, 10, registry, &fenced)
    }
    fn members(decision: &Decision) -> Option<ReplicaSet> {
        match decision {
            Decision::Start { members, .. } => Some(*members),
            Decision::Wait { .. } => None,
        }
    }
    use RegistryState::{Attached, Unreachable};

    #[test]
    fn three_replicas_need_two_one_a_member() {
        let v = view(1, 1, &[1, 2, 3], false);
        let record = status(&[1, 2, 3], v);
        assert_eq!(members(&run(&record, Attached, &[(1, welcome(v))])), None);
        let two = [(1, welcome(v)), (2, welcome(v))];
        assert_eq!(members(&run(&record, Attached, &two)), Some(set(&[1, 2])));
    }

    #[test]
    fn counterexample_1_one_of_three_with_the_registry_is_not_enough() {
        // r1 and r2 went on without the registry; r3 alone must not start.
        let record = status(&[1, 2, 3], view(1, 1, &[1, 2, 3], false));
        let decision = run(&record, Attached, &[(3, welcome(view(1, 1, &[1, 2, 3], false)))]);
        assert!(matches!(decision, Decision::Wait { missing, .. } if missing == set(&[1, 2])));
    }

    #[test]
    fn counterexample_2_a_view_of_a_newer_generation_outranks_a_higher_epoch() {
        let record = status(&[1, 2, 3], view(1, 1, &[1, 2, 3], false));
        let fenced = [(1, welcome(view(1, 3, &[1], true))), (2, welcome(view(2, 2, &[2, 3], false)))];
        assert_eq!(members(&run(&record, Attached, &fenced)), Some(set(&[2])));
    }

    #[test]
    fn a_minority_in_the_record_may_start_alone_and_nobody_else() {
        let record = status(&[1, 2, 3], view(2, 5, &[2], true));
        let stale = view(1, 1, &[1, 2, 3], false);
        assert_eq!(members(&run(&record, Attached, &[(2, welcome(record.view))])), Some(set(&[2])));
        let others = [(1, welcome(stale)), (3, welcome(stale))];
        assert_eq!(members(&run(&record, Attached, &others)), None);
    }

    #[test]
    fn counterexample_8_without_the_registry_all_are_needed_and_no_flag() {
        let record = status(&[1, 2], view(1, 1, &[1, 2], false));
        let v = record.view;
        assert_eq!(members(&run(&record, Unreachable, &[(1, welcome(v))])), None);
        let both = [(1, welcome(v)), (2, welcome(v))];
        assert_eq!(members(&run(&record, Unreachable, &both)), Some(set(&[1, 2])));
        let flagged = [(1, welcome(view(1, 2, &[1], true))), (2, welcome(v))];
        assert_eq!(members(&run(&record, Unreachable, &flagged)), None);
    }

    #[test]
    fn counterexample_9_a_registry_that_went_back_needs_all() {
        let record = status(&[1, 2], view(1, 1, &[1, 2], false));
        let ahead = Welcome { revision: 11, ..welcome(record.view) };
        assert_eq!(members(&run(&record, Attached, &[(2, ahead.clone())])), None);
        let decision = run(&record, Attached, &[(2, ahead), (1, welcome(view(1, 2, &[1], true)))]);
        assert!(matches!(decision, Decision::Start { reseed: true, members, .. } if members == set(&[1])));
    }

    #[test]
    fn a_configured_set_that_never_counted_decides_nothing() {
        // An engine proposed to add r4, told r3 of it, and died. The next one, with r1 and r2, acknowledged writes by
        // majority alone. r3 and r4 are two of the four that r3 knows of; they are not two of the three that count.
        let record = status(&[1, 2, 3], view(1, 1, &[1, 2, 3], false));
        let heard = Welcome { configured: set(&[1, 2, 3, 4]), ..welcome(view(1, 2, &[1, 2, 3], true)) };
        let made = Welcome { configured: record.configured, syncing: true, ..welcome(record.view) };
        assert_eq!(members(&run(&record, Attached, &[(3, heard.clone()), (4, made.clone())])), None);
        let with = Welcome { configured: record.configured, ..welcome(view(2, 2, &[1, 2], false)) };
        let decision = run(&record, Attached, &[(3, heard), (4, made), (1, with)]);
        let Decision::Start { configured, members, .. } = decision else { panic!("{decision:?}") };
        assert_eq!((configured, members), (set(&[1, 2, 3]), set(&[1])));
    }

    #[test]
    fn where_the_record_may_be_old_the_set_of_the_newest_view_decides() {
        let record = status(&[1, 2], view(1, 1, &[1, 2], false));
        let later = Welcome { configured: set(&[2, 3]), revision: 11, ..welcome(view(1, 5, &[2, 3], false)) };
        let old = welcome(record.view);
        for registry in [Attached, Unreachable] {
            let all_of_the_record = run(&record, registry, &[(1, old.clone()), (2, later.clone())]);
            assert!(
                matches!(&all_of_the_record, Decision::Wait { missing, .. } if *missing == set(&[3])),
                "{all_of_the_record:?}"
            );
            let decision = run(&record, registry, &[(2, later.clone()), (3, later.clone())]);
            let Decision::Start { configured, members, .. } = decision else { panic!("{decision:?}") };
            assert_eq!((configured, members), (set(&[2, 3]), set(&[2, 3])));
        }
    }

    #[test]
    fn a_member_that_failed_a_flush_serves_only_where_there_is_no_other() {
        let v = view(1, 1, &[1, 2], false);
        let record = status(&[1, 2], v);
        let bad = Welcome { failed: "fsync".to_owned(), ..welcome(v) };
        assert_eq!(members(&run(&record, Attached, &[(1, bad.clone()), (2, welcome(v))])), Some(set(&[2])));
        assert_eq!(members(&run(&record, Attached, &[(1, bad.clone()), (2, bad)])), Some(set(&[1, 2])));
    }

    #[test]
    fn a_member_whose_node_lost_its_cache_is_filled_again() {
        let v = view(1, 1, &[1, 2], false);
        let record = status(&[1, 2], v);
        let lost = Welcome { cache_lost: true, ..welcome(v) };
        assert_eq!(members(&run(&record, Attached, &[(1, lost.clone()), (2, welcome(v))])), Some(set(&[2])));
        assert_eq!(members(&run(&record, Attached, &[(1, lost.clone()), (2, lost)])), Some(set(&[1, 2])));
    }

    #[test]
    fn where_all_failed_a_flush_one_whose_node_lost_its_cache_is_left_out() {
        // What both acknowledged since is in the other's cache only; a repair could take either for its source.
        let v = view(1, 3, &[1, 2], true);
        let record = status(&[1, 2], v);
        let bad = Welcome { failed: "fsync".to_owned(), ..welcome(v) };
        let lost = Welcome { cache_lost: true, ..bad.clone() };
        assert_eq!(members(&run(&record, Attached, &[(1, lost.clone()), (2, bad)])), Some(set(&[2])));
        assert_eq!(members(&run(&record, Attached, &[(1, lost.clone()), (2, lost)])), Some(set(&[1, 2])));
    }

    #[test]
    fn one_that_is_being_filled_is_left_out_also_where_the_other_failed_a_flush() {
        let v = view(1, 2, &[1, 2], false);
        let record = status(&[1, 2], v);
        let bad = Welcome { failed: "fsync".to_owned(), ..welcome(v) };
        let filled = Welcome { syncing: true, ..welcome(view(1, 1, &[1], true)) };
        assert_eq!(members(&run(&record, Attached, &[(1, bad), (2, filled)])), Some(set(&[1])));
    }

    #[test]
    fn older_copies_are_left_out_and_count_as_away() {
        let v = view(2, 3, &[1, 2, 3], false);
        let mut record = status(&[1, 2, 3], v);
        let of = |round| Welcome { stamps: true, basis: Some(v.stamp(round)), ..welcome(v) };
        // By the record's view, and by its round.
        let before = Welcome { basis: Some(view(2, 2, &[1], false).stamp(9)), ..of(0) };
        let decision = run(&record, Attached, &[(1, before.clone()), (2, of(0)), (3, of(0))]);
        assert_eq!(members(&decision), Some(set(&[2, 3])));
        record.round = 4;
        assert_eq!(members(&run(&record, Attached, &[(1, of(3)), (2, of(4))])), None, "one is away");
        // By what another knows that all had.
        record.round = 0;
        let knows = Welcome { settled: Some(v.stamp(5)), ..of(6) };
        let decision = run(&record, Attached, &[(1, of(4)), (2, knows.clone()), (3, of(5))]);
        assert_eq!(members(&decision), Some(set(&[2, 3])));
        // One that is about to be added is no older copy for having less.
        let added = Welcome { syncing: true, ..of(4) };
        assert_eq!(members(&run(&record, Attached, &[(1, added), (2, knows)])), Some(set(&[2])));
        let Decision::Wait { why, .. } = run(&record, Attached, &[(1, before)]) else { panic!("it starts") };
        assert!(why.contains("older copy of itself") && why.contains("by force"), "{why}");
    }

    #[test]
    fn one_replica_starts_with_it_alone() {
        let v = view(0, 0, &[1], true);
        let record = status(&[1], v);
        assert_eq!(members(&run(&record, Attached, &[(1, welcome(v))])), Some(set(&[1])));
        assert_eq!(members(&run(&record, Attached, &[])), None);
    }
}
