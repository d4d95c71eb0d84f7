//! Which creation of an instance is meant: of what an earlier agent left, and of what is about to be started.
//!
//! A creation is named by its UUID. It is durable before its process exists and is kept across restarts of process and
//! agent, so that nothing is ever taken for something else that has its name.

use holdfast_proto::ids::{BootId, InstanceUuid, VolumeId};

use super::Moment;
use super::instance::{Instance, State};

/// A creation as it is remembered on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creation {
    /// Minted once.
    pub uuid: InstanceUuid,
    /// The volume it belongs to.
    pub volume_id: VolumeId,
    /// How often its process was started again.
    pub restarts: u32,
    /// In which boot it was started last.
    pub boot_id: BootId,
    /// A process was started, and its end was not seen to be asked for.
    pub ran: bool,
}

/// What is remembered under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembered {
    /// This creation.
    Creation(Creation),
    /// Nothing.
    Nothing,
    /// Something that cannot be read, and why.
    Unreadable(String),
}

/// What the lock of an instance says, which alone proves life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// A process holds it.
    Held,
    /// No process exists.
    Free,
    /// It cannot be looked at, and why.
    Unknown(String),
}

/// What a new agent knows of an instance that an earlier one left; none when there is nothing to know.
#[must_use]
pub fn left_behind(remembered: &Remembered, lock: Lock, boot_id: BootId) -> Option<Instance> {
    let now = Moment::ZERO;
    let down = |error| State::Down { error, retry_at: now };
    let nobody = |state| Instance::new(InstanceUuid::nil(), VolumeId::nil(), 0, state, now);
    let of = |it: &Creation, state| Instance::new(it.uuid, it.volume_id, it.restarts, state, now);
    Some(match (remembered, lock) {
        (Remembered::Creation(creation), Lock::Held) => of(creation, State::Pending),
        (Remembered::Creation(creation), Lock::Free) => {
            // A process that was not asked to end, and is gone.
            let how =
                if creation.boot_id == boot_id { "while no agent ran" } else { "with the node's restart" };
            of(creation, down(creation.ran.then(|| format!("it ended {how}"))))
        }
        (Remembered::Creation(creation), Lock::Unknown(why)) => of(creation, State::Unknown(why)),
        (Remembered::Unreadable(reason), Lock::Free) => nobody(down(Some(reason.clone()))),
        (Remembered::Unreadable(reason), Lock::Held) => {
            nobody(State::Unknown(format!("it lives, and its spawn record cannot be read: {reason}")))
        }
        (Remembered::Unreadable(reason), Lock::Unknown(why)) => {
            nobody(State::Unknown(format!("{reason}; {why}")))
        }
        (Remembered::Nothing, Lock::Free) => return None,
        (Remembered::Nothing, Lock::Held) => {
            nobody(State::Unknown("it lives, and its spawn record is missing".to_owned()))
        }
        (Remembered::Nothing, Lock::Unknown(why)) => nobody(State::Unknown(why)),
    })
}

/// The creation that is started: the one that the plan names; without one, the one that is remembered for this volume;
/// without that, a new one.
#[must_use]
pub fn to_start(
    planned: Option<InstanceUuid>,
    remembered: Option<InstanceUuid>,
    mint: impl FnOnce() -> InstanceUuid,
) -> InstanceUuid {
    planned.or(remembered).unwrap_or_else(mint)
}

/// What is known of `uuid` when it is started: `known` has the name, and is kept only where it is the same creation.
#[must_use]
pub fn known_as(known: Option<Instance>, uuid: InstanceUuid, volume_id: VolumeId, now: Moment) -> Instance {
    known
        .filter(|instance| instance.uuid() == uuid && instance.volume_id() == volume_id)
        .unwrap_or_else(|| Instance::new(uuid, volume_id, 0, State::Down { error: None, retry_at: now }, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::instance::Event;

    fn creation() -> Creation {
        Creation {
            uuid: InstanceUuid::random(),
            volume_id: VolumeId::random(),
            restarts: 3,
            boot_id: BootId::random(),
            ran: true,
        }
    }

    #[test]
    fn the_lock_decides_and_a_doubt_is_neither_life_nor_death() {
        let found = || Remembered::Creation(creation());
        let unreadable = || Remembered::Unreadable("damaged".to_owned());
        let doubt = || Lock::Unknown("the lock cannot be read".to_owned());
        let judged = |remembered, lock| left_behind(&remembered, lock, BootId::random());
        let is_down = |remembered, lock| judged(remembered, lock).unwrap().is_down();
        assert!(is_down(found(), Lock::Free));
        assert!(!is_down(found(), Lock::Held));
        assert!(!is_down(found(), doubt()));
        assert!(is_down(unreadable(), Lock::Free));
        assert!(!is_down(unreadable(), Lock::Held));
        assert!(!is_down(unreadable(), doubt()));
        assert!(!is_down(Remembered::Nothing, Lock::Held));
        assert!(judged(Remembered::Nothing, Lock::Free).is_none(), "an empty directory is nothing");
    }

    #[test]
    fn an_end_that_nobody_saw_is_told_apart_from_one_that_was_asked_for() {
        let reason = |creation: Creation, boot_id| {
            left_behind(&Remembered::Creation(creation), Lock::Free, boot_id).unwrap().reason()
        };
        let ran = creation();
        assert!(reason(ran, ran.boot_id).unwrap().contains("while no agent ran"));
        assert!(reason(ran, BootId::random()).unwrap().contains("restart"));
        let stopped = Creation { ran: false, ..ran };
        assert_eq!(reason(stopped, BootId::random()), None);
    }

    #[test]
    fn a_creation_is_kept_across_restarts_and_minted_only_once() {
        let (planned, remembered, new) =
            (InstanceUuid::random(), InstanceUuid::random(), InstanceUuid::random());
        assert_eq!(to_start(Some(planned), Some(remembered), || new), planned);
        assert_eq!(to_start(None, Some(remembered), || new), remembered);
        assert_eq!(to_start(None, None, || new), new);
    }

    #[test]
    fn what_was_known_of_another_creation_is_not_said_of_this_one() {
        let mut known = left_behind(&Remembered::Creation(creation()), Lock::Held, BootId::random()).unwrap();
        known.handle(Event::Ended("killed".into()), Moment::ZERO);
        let (uuid, volume) = (known.uuid(), known.volume_id());
        let same = known_as(Some(known.clone()), uuid, volume, Moment::ZERO);
        assert_eq!((same.restarts(), same.reason().as_deref()), (3, Some("killed")));
        let other = known_as(Some(known.clone()), InstanceUuid::random(), volume, Moment::ZERO);
        assert_eq!((other.restarts(), other.reason()), (0, None));
        assert_eq!(known_as(Some(known), uuid, VolumeId::random(), Moment::ZERO).restarts(), 0);
        assert!(known_as(None, uuid, volume, Moment::ZERO).is_down());
    }
}
