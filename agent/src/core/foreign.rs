//! Claims of others: a controller that is not Holdfast says that an instance is its own, and whether it is to run.
//!
//! A claim counts while its lease does; a lease begins when this agent first sees the claim's version, so that renewing
//! is writing it again, no two clocks are compared, and an agent that begins anew errs towards holding on. What nobody
//! can read leaves the instance of its name unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::ids::{InstanceUuid, VolumeId, VolumeName};
use holdfast_proto::record::{ClaimRecord, Desired};

use super::Moment;
use super::claims::Claim;
use super::instance::InstanceName;

/// One claim, as its home keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// It can be relied on.
    Readable(Box<ClaimRecord>),
    /// It is there; why nothing in it can be relied on.
    Unreadable(String),
}

/// All claims of others on this node, by the name that each is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreign {
    /// A complete answer; whose lease is over is not in it.
    Known(BTreeMap<InstanceName, Stored>),
    /// No answer, and why.
    Unavailable(String),
}

impl Foreign {
    /// A complete answer with no claim in it.
    #[must_use]
    pub fn none() -> Self {
        Self::Known(BTreeMap::new())
    }

    /// Whether another owns exactly this creation.
    #[must_use]
    pub fn of(&self, name: &InstanceName, uuid: InstanceUuid, volume: VolumeId) -> Claim {
        match self {
            Self::Unavailable(_) => Claim::Unknown,
            Self::Known(claims) => match claims.get(name) {
                None => Claim::Unclaimed,
                Some(Stored::Unreadable(_)) => Claim::Unknown,
                Some(Stored::Readable(claim)) => {
                    let this = claim.uuid.is_none_or(|wanted| wanted == uuid) && claim.volume_id == volume;
                    // A claim that says "stopped" owns nothing that runs.
                    if this && claim.desired != Desired::Stopped { Claim::Claimed } else { Claim::Unclaimed }
                }
            },
        }
    }

    /// Whether another owns the data of this replica, whichever process of it there is or was.
    #[must_use]
    pub fn of_data(&self, replica: &InstanceName, volume: VolumeId) -> Claim {
        match self {
            Self::Unavailable(_) => Claim::Unknown,
            Self::Known(claims) => match claims.get(replica) {
                Some(Stored::Readable(claim)) if claim.volume_id == volume => Claim::Claimed,
                Some(Stored::Readable(_)) | None => Claim::Unclaimed,
                Some(Stored::Unreadable(_)) => Claim::Unknown,
            },
        }
    }

    /// Why nobody can tell whether another claims `name`; none: that is known.
    #[must_use]
    pub fn doubt(&self, name: &InstanceName) -> Option<&str> {
        match self {
            Self::Unavailable(why) => Some(why),
            Self::Known(claims) => match claims.get(name) {
                Some(Stored::Unreadable(why)) => Some(why),
                Some(Stored::Readable(_)) | None => None,
            },
        }
    }

    /// The claim that wants `name` of this volume to run; `creation`: the only one of it that can, where that is known.
    #[must_use]
    pub fn wants(
        &self,
        name: &InstanceName,
        volume: VolumeId,
        creation: Option<InstanceUuid>,
    ) -> Option<&ClaimRecord> {
        let Self::Known(claims) = self else { return None };
        let Some(Stored::Readable(claim)) = claims.get(name) else { return None };
        let this = claim.uuid.is_none_or(|wanted| creation.is_none_or(|is| is == wanted));
        let wants = claim.desired == Desired::Running && claim.volume_id == volume && this;
        wants.then_some(&**claim)
    }

    /// What keeps a volume from being deleted: an instance of it that another holds on to, or a claim that nobody can read.
    #[must_use]
    pub fn holds(&self, volume: &VolumeName, id: VolumeId) -> Option<String> {
        let claims = match self {
            Self::Unavailable(why) => return Some(format!("the claims of others cannot be read: {why}")),
            Self::Known(claims) => claims,
        };
        claims.iter().find_map(|(name, stored)| match stored {
            Stored::Readable(claim) if claim.volume_id == id && claim.desired != Desired::Stopped => {
                Some(format!("{} claims {name}; it has to release it (`holdfast claim delete`)", claim.owner))
            }
            Stored::Unreadable(why) if name.volume() == volume => {
                Some(format!("a claim of {name} cannot be read: {why}"))
            }
            Stored::Readable(_) | Stored::Unreadable(_) => None,
        })
    }

    /// The claims that say this.
    pub fn with(&self, desired: Desired) -> impl Iterator<Item = (&InstanceName, &ClaimRecord)> {
        let known = match self {
            Self::Known(claims) => Some(claims),
            Self::Unavailable(_) => None,
        };
        known.into_iter().flatten().filter_map(move |(name, stored)| match stored {
            Stored::Readable(claim) if claim.desired == desired => Some((name, &**claim)),
            Stored::Readable(_) | Stored::Unreadable(_) => None,
        })
    }
}

/// Who wrote which claim when, as this agent saw it.
#[derive(Debug, Default)]
pub struct Leases {
    seen: BTreeMap<InstanceName, (u64, Moment)>,
}

impl Leases {
    /// Takes in a complete listing, and says which of it counts.
    pub fn observe(&mut self, found: BTreeMap<InstanceName, Stored>, now: Moment) -> Foreign {
        self.seen.retain(|name, _| matches!(found.get(name), Some(Stored::Readable(_))));
        let counts = found.into_iter().filter(|(name, stored)| match stored {
            Stored::Unreadable(_) => true,
            Stored::Readable(claim) => {
                let seen = self.seen.entry(name.clone()).or_insert((claim.version, now));
                if seen.0 != claim.version {
                    *seen = (claim.version, now);
                }
                self.left(name, claim, now) != Some(Duration::ZERO)
            }
        });
        Foreign::Known(counts.collect())
    }

    /// The claims could not be read: nobody could renew one either, so each counts for a whole lease again.
    pub fn lost(&mut self) {
        self.seen.clear();
    }

    /// How long a claim counts unless it is renewed; none: for good. Zero: it counts no more.
    #[must_use]
    pub fn left(&self, name: &InstanceName, claim: &ClaimRecord, now: Moment) -> Option<Duration> {
        let lease = Some(Duration::from_secs(claim.lease_s.into())).filter(|lease| !lease.is_zero())?;
        let seen = self.seen.get(name).filter(|(version, _)| *version == claim.version);
        Some(seen.map_or(lease, |(_, since)| lease.saturating_sub(now.saturating_sub(*since))))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn claim(name: &str, volume: VolumeId, desired: Desired) -> (InstanceName, Stored) {
        let claim = ClaimRecord {
            schema: holdfast_proto::record::CLAIM_SCHEMA,
            instance: name.to_owned(),
            uuid: None,
            node: "node-a".parse().unwrap(),
            volume_id: volume,
            owner: "controller".into(),
            desired,
            lease_s: 60,
            version: 1,
            unknown: Default::default(),
        };
        (name.parse().unwrap(), Stored::Readable(Box::new(claim)))
    }

    const fn secs(s: u64) -> Moment {
        Duration::from_secs(s)
    }

    #[test]
    fn a_claim_counts_while_its_lease_does_and_writing_it_again_renews_it() {
        let (id, uuid) = (VolumeId::random(), InstanceUuid::random());
        let (name, stored) = claim("demo.r1", id, Desired::Keep);
        let at = |leases: &mut Leases, version: u64, seconds| {
            let Stored::Readable(mut claim) = stored.clone() else { unreachable!() };
            claim.version = version;
            let found = BTreeMap::from([(name.clone(), Stored::Readable(claim))]);
            leases.observe(found, secs(seconds)).of(&name, uuid, id)
        };
        let mut leases = Leases::default();
        assert_eq!(at(&mut leases, 1, 1000), Claim::Claimed);
        assert_eq!(at(&mut leases, 1, 1059), Claim::Claimed);
        assert_eq!(at(&mut leases, 1, 1060), Claim::Unclaimed);
        assert_eq!(at(&mut leases, 2, 1061), Claim::Claimed, "renewed");
        assert_eq!(at(&mut leases, 2, 1120), Claim::Claimed);
        leases.lost();
        assert_eq!(at(&mut leases, 2, 1130), Claim::Claimed, "its owner could not renew it either");
        assert_eq!(at(&mut leases, 2, 1190), Claim::Unclaimed);
        // A new agent does not know since when: it holds on for a whole lease.
        assert_eq!(at(&mut Leases::default(), 2, 1200), Claim::Claimed);
    }

    #[test]
    fn a_claim_owns_its_own_creation_and_volume_and_nothing_that_is_to_stop() {
        let (id, uuid) = (VolumeId::random(), InstanceUuid::random());
        let (name, stored) = claim("demo.r1", id, Desired::Running);
        let Stored::Readable(mut claim) = stored else { unreachable!() };
        claim.uuid = Some(uuid);
        let known = |claim: &ClaimRecord| {
            Foreign::Known(BTreeMap::from([(name.clone(), Stored::Readable(Box::new(claim.clone())))]))
        };
        let foreign = known(&claim);
        assert_eq!(foreign.of(&name, uuid, id), Claim::Claimed);
        assert_eq!(foreign.of(&name, InstanceUuid::random(), id), Claim::Unclaimed);
        assert_eq!(foreign.of(&name, uuid, VolumeId::random()), Claim::Unclaimed);
        assert_eq!(foreign.of(&"demo.r2".parse().unwrap(), uuid, id), Claim::Unclaimed);
        assert!(foreign.wants(&name, id, Some(uuid)).is_some());
        assert!(foreign.wants(&name, VolumeId::random(), None).is_none());
        assert!(foreign.wants(&name, id, Some(InstanceUuid::random())).is_none(), "another creation");
        claim.desired = Desired::Stopped;
        assert_eq!(known(&claim).of(&name, uuid, id), Claim::Unclaimed);
    }

    #[test]
    fn o4_claims_that_cannot_be_read_leave_ownership_unknown() {
        let (name, uuid, id): (InstanceName, _, _) =
            ("demo.r1".parse().unwrap(), InstanceUuid::random(), VolumeId::random());
        let away = Foreign::Unavailable("no answer".into());
        assert_eq!(away.of(&name, uuid, id), Claim::Unknown);
        let damaged = BTreeMap::from([(name.clone(), Stored::Unreadable("damaged".into()))]);
        let foreign = Leases::default().observe(damaged, secs(5));
        assert_eq!(foreign.of(&name, uuid, id), Claim::Unknown);
        assert_eq!(foreign.of(&"demo.r2".parse().unwrap(), uuid, id), Claim::Unclaimed);
    }
}
