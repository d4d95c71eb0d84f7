//! Moving the configured set towards what is wanted: one replica added or taken at a time, each by a view of its own.
//!
//! A change of the configured set counts only once the registry has it, and one that was proposed is never taken back:
//! whatever view follows it carries it. The members stay as they are, so what is added is no member yet (it is filled
//! afterwards like any replica that returns), and what is taken is none any more (a member leaves first, by a view
//! without it). The last healthy member is never taken. Why: `docs/replication.md`.

use holdfast_proto::ids::ReplicaId;
use holdfast_proto::record::ReplicaSet;

use super::peers::Peer;
use super::view::Reason;
use super::{Engine, Mask, Now, bit, slots};
use crate::core::start::RegistryState;

/// Whereabouts kept of replicas that are not in the table: as many as a set holds, and those that were there before.
const PLACES_MAX: usize = 2 * ReplicaSet::CAPACITY;

/// A replica that the volume is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Wanted {
    /// Which.
    pub replica: ReplicaId,
    /// Those that stay members until this one is.
    pub replaces: ReplicaSet,
}

#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Hash))]
struct Place {
    replica: ReplicaId,
    known: bool,
    local: bool,
    absent: Option<String>,
}

/// What is wanted, and what is known of replicas that are not configured yet.
#[derive(Debug, Default, Clone)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Configure {
    /// Empty: nobody said, and all stays as it is.
    wanted: Vec<Wanted>,
    places: Vec<Place>,
}

impl Configure {
    fn wants(&self, replica: ReplicaId) -> bool {
        self.wanted.iter().any(|wanted| wanted.replica == replica)
    }
    fn keep(&mut self, place: Place) {
        self.places.retain(|kept| kept.replica != place.replica);
        if self.places.len() == PLACES_MAX {
            let idle = self.places.iter().position(|kept| !self.wants(kept.replica));
            self.places.remove(idle.unwrap_or(0));
        }
        self.places.push(place);
    }
}

/// The next thing to do about the configured set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// It is as wanted.
    Settled,
    /// Not now, and why.
    Wait(String),
    /// Into the configured set, as no member.
    Add(ReplicaId),
    /// Out of the members.
    Leave(ReplicaId),
    /// Out of the configured set.
    Take(ReplicaId),
}

/// What the next step is decided from.
#[derive(Debug, Clone, Copy)]
struct Sets<'a> {
    wanted: &'a [Wanted],
    configured: ReplicaSet,
    members: ReplicaSet,
    /// Those not configured yet of which somebody said where they are.
    reachable: ReplicaSet,
    /// The members are known to be equal.
    equal: bool,
    min_in_sync: usize,
}

/// What is no member goes first, so that as few as possible are counted that hold nothing.
fn next_step(sets: Sets<'_>) -> Step {
    let wanted: ReplicaSet = sets.wanted.iter().map(|w| w.replica).collect();
    let surplus = sets.configured.difference(&wanted);
    if let Some(replica) = surplus.difference(&sets.members).iter().next() {
        return Step::Take(replica);
    }
    let missing = wanted.difference(&sets.configured);
    if !missing.is_empty() && sets.configured.len() < ReplicaSet::CAPACITY {
        if let Some(replica) = missing.intersection(&sets.reachable).iter().next() {
            return Step::Add(replica);
        }
        return Step::Wait(format!("{missing}: it does not run yet"));
    }
    match surplus.iter().next() {
        None if missing.is_empty() => Step::Settled,
        None => Step::Wait(format!("{missing}: there is no room for more replicas")),
        Some(replica) => leave(sets, replica),
    }
}

/// Whether a member that is not wanted any more can go.
fn leave(sets: Sets<'_>, replica: ReplicaId) -> Step {
    let successors = sets.wanted.iter().filter(|w| w.replaces.contains(replica));
    let coming: ReplicaSet = successors.map(|w| w.replica).filter(|id| !sets.members.contains(*id)).collect();
    let left = sets.members.without(replica);
    if !coming.is_empty() {
        Step::Wait(format!("{replica} stays until {coming} is a member"))
    } else if left.is_empty() {
        Step::Wait(format!(
            "{replica} is the last healthy copy: it is not removed before another is a member"
        ))
    } else if left.len() < sets.min_in_sync {
        Step::Wait(format!("without {replica} fewer than {} replicas would be in sync", sets.min_in_sync))
    } else if !sets.equal {
        Step::Wait(format!("{replica} stays until the members are known to be equal"))
    } else {
        Step::Leave(replica)
    }
}

impl Engine {
    /// The replicas that the volume is to have; empty: nobody says, and all stays as it is. It may be told again at any
    /// time.
    pub fn want(&mut self, wanted: Vec<Wanted>, now: Now) {
        self.configure.wanted = wanted;
        self.change_configured(now);
    }

    /// The replicas that are configured and not wanted.
    pub(super) fn unwanted(&self) -> Mask {
        if self.configure.wanted.is_empty() {
            return 0;
        }
        slots(self.occupied())
            .filter(|slot| !self.configure.wants(self.peers[*slot].id))
            .fold(0, |mask, slot| mask | bit(slot))
    }

    /// Where a replica is that has no place in the table yet.
    pub(super) fn keep_place(
        &mut self,
        replica: ReplicaId,
        known: bool,
        local: bool,
        absent: Option<String>,
        now: Now,
    ) {
        self.configure.keep(Place { replica, known, local, absent });
        self.change_configured(now);
    }

    fn next_step(&self) -> Step {
        if self.configure.wanted.is_empty() {
            return Step::Settled;
        }
        let places = self.configure.places.iter().filter(|place| self.configure.wants(place.replica));
        let reachable = places.filter(|place| place.known && place.absent.is_none());
        next_step(Sets {
            wanted: &self.configure.wanted,
            configured: self.configured,
            members: self.set_of(self.members),
            reachable: reachable.map(|place| place.replica).collect(),
            equal: self.unrepaired.is_empty(),
            min_in_sync: self.config.min_in_sync,
        })
    }

    pub(super) fn is_as_wanted(&self) -> bool {
        self.next_step() == Step::Settled
    }

    pub(super) fn change_waits_for(&self) -> String {
        match self.next_step() {
            Step::Settled => String::new(),
            Step::Wait(why) => why,
            Step::Add(_) | Step::Leave(_) | Step::Take(_)
                if self.registry.state == RegistryState::Unreachable =>
            {
                "the registry".to_owned()
            }
            Step::Add(replica) | Step::Leave(replica) | Step::Take(replica) => {
                format!("{replica} is next")
            }
        }
    }

    /// Proposes the next change, if there is one and nothing more urgent is going on. Not while the registry is away:
    /// I/O would be held until it is back.
    pub(super) fn change_configured(&mut self, now: Now) {
        if self.configure.wanted.is_empty() || !self.may_propose() {
            return;
        }
        let members = self.set_of(self.members);
        let configured = match self.next_step() {
            Step::Settled | Step::Wait(_) => return,
            Step::Leave(_) | Step::Add(_) | Step::Take(_)
                if self.registry.state == RegistryState::Unreachable =>
            {
                return self.try_registry();
            }
            Step::Leave(replica) => {
                return self.propose(members.without(replica), Reason::Remove, false, now);
            }
            Step::Add(_) if self.free_slot().is_none() => return,
            Step::Add(replica) => self.configured.with(replica),
            Step::Take(replica) => self.configured.without(replica),
        };
        self.propose_with(members, (configured, None), Reason::Configure, true, now);
    }

    /// A place that nobody has and no operation still means.
    fn free_slot(&self) -> Option<usize> {
        let unused = (self.peers.len() < ReplicaSet::CAPACITY).then_some(self.peers.len());
        unused
            .or_else(|| (0..self.peers.len()).find(|slot| self.peers[*slot].vacant && !self.is_meant(*slot)))
    }

    /// Everybody in the committed configured set has a place, and nobody else.
    pub(super) fn seat_configured(&mut self, now: Now) {
        let gone = slots(self.occupied()).filter(|slot| !self.configured.contains(self.peers[*slot].id));
        for slot in gone.collect::<Vec<_>>() {
            self.unseat(slot, now);
        }
        self.seat(self.configured, now);
    }

    /// Replicas that would decide a start and are in no record that was read: they are looked for too.
    pub(super) fn look_for(&mut self, replicas: ReplicaSet, now: Now) {
        self.seat(replicas, now);
    }

    fn seat(&mut self, replicas: ReplicaSet, now: Now) {
        let before = self.occupied();
        for replica in replicas.iter().filter(|id| self.slot_of(*id).is_none()).collect::<Vec<_>>() {
            let Some(slot) = self.free_slot() else { return };
            let mut peer = Peer::new(replica);
            if let Some(at) = self.configure.places.iter().position(|place| place.replica == replica) {
                let place = self.configure.places.remove(at);
                (peer.known, peer.local, peer.absent) = (place.known, place.local, place.absent);
            }
            self.fill.forget(slot);
            if slot == self.peers.len() {
                self.peers.push(peer);
            } else {
                self.peers[slot] = peer;
            }
        }
        if self.occupied() != before {
            self.connect_due(now);
        }
    }

    fn unseat(&mut self, slot: usize, now: Now) {
        self.give_up_target(slot, "it is not configured any more".to_owned(), now);
        self.drop_link(slot, now, now);
        self.targets &= !bit(slot);
        self.drop_pending(bit(slot), now);
        self.forget_answers(slot);
        let mut empty = Peer::new(self.peers[slot].id);
        empty.vacant = true;
        let peer = std::mem::replace(&mut self.peers[slot], empty);
        // It may be wanted again, or never have counted: what is known of it is not told twice.
        let Peer { id: replica, known, local, absent, .. } = peer;
        self.configure.keep(Place { replica, known, local, absent });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::start::tests::set;

    fn wanted(ids: &[u32]) -> Vec<Wanted> {
        ids.iter().map(|id| Wanted { replica: ReplicaId(*id), replaces: ReplicaSet::new() }).collect()
    }

    fn step(wanted: &[Wanted], configured: &[u32], members: &[u32], reachable: &[u32]) -> Step {
        let (configured, members, reachable) = (set(configured), set(members), set(reachable));
        next_step(Sets { wanted, configured, members, reachable, equal: true, min_in_sync: 1 })
    }

    #[test]
    fn one_at_a_time_and_what_is_no_member_goes_first() {
        let (add, take, leave) =
            (|id| Step::Add(ReplicaId(id)), |id| Step::Take(ReplicaId(id)), |id| Step::Leave(ReplicaId(id)));
        let all = [1, 2, 3];
        for (want, configured, members, reachable, expected) in [
            (&all[..], &all[..], &all[..], &[][..], Step::Settled),
            (&all, &all, &[1], &[], Step::Settled),
            (&[1, 2, 3, 4], &all, &all, &[4], add(4)),
            (&[1, 2, 4, 5], &[1, 2], &[1, 2], &[4, 5], add(4)),
            (&[1, 3], &all, &all, &[], leave(2)),
            (&[1, 3], &all, &[1, 3], &[], take(2)),
            (&[1, 3, 4], &all, &[1, 3], &[4], take(2)),
            (&[1, 3, 4], &[1, 3], &[1, 3], &[4], add(4)),
            (&[4], &[1, 4], &[1, 4], &[], leave(1)),
        ] {
            let found = step(&wanted(want), configured, members, reachable);
            assert_eq!(found, expected, "wanted {want:?}, configured {configured:?}, members {members:?}");
        }
    }

    #[test]
    fn one_that_does_not_run_is_not_counted_yet() {
        let found = step(&wanted(&[1, 2]), &[1], &[1], &[]);
        assert_eq!(found, Step::Wait("{r2}: it does not run yet".to_owned()));
    }

    #[test]
    fn the_last_healthy_copy_stays() {
        let Step::Wait(why) = step(&wanted(&[2, 3]), &[1, 2, 3], &[1], &[]) else { panic!("it was taken") };
        assert!(why.contains("r1 is the last healthy copy"), "{why}");
    }

    #[test]
    fn what_is_replaced_stays_until_its_successor_is_a_member() {
        let mut wanted = wanted(&[1, 3, 4]);
        wanted[2].replaces = set(&[2]);
        let Step::Wait(why) = step(&wanted, &[1, 2, 3, 4], &[1, 2, 3], &[]) else { panic!("too early") };
        assert!(why.contains("r2 stays until {r4} is a member"), "{why}");
        assert_eq!(step(&wanted, &[1, 2, 3, 4], &[1, 2, 3, 4], &[]), Step::Leave(ReplicaId(2)));
        assert_eq!(step(&wanted, &[1, 2, 3, 4], &[1, 3], &[]), Step::Take(ReplicaId(2)), "it is none");
    }

    #[test]
    fn a_member_leaves_only_from_equal_ones_and_not_below_min_in_sync() {
        let wanted = wanted(&[1]);
        let sets = Sets {
            wanted: &wanted,
            configured: set(&[1, 2]),
            members: set(&[1, 2]),
            reachable: set(&[]),
            equal: true,
            min_in_sync: 1,
        };
        assert_eq!(next_step(sets), Step::Leave(ReplicaId(2)));
        assert!(matches!(next_step(Sets { equal: false, ..sets }), Step::Wait(_)));
        assert!(matches!(next_step(Sets { min_in_sync: 2, ..sets }), Step::Wait(_)));
    }
}
