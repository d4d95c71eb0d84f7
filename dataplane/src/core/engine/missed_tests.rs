//! What is compared with a replica that returns, and what is copied without a look.

use std::collections::BTreeSet;

use super::directed_tests::{Rig, config};
use super::*;
use crate::core::start::tests as start_tests;
use crate::units::REGION_BYTES;
use crate::wire::header::{Kind, Status};

const NOTHING: [u64; 0] = [];

/// What may happen to the second of two replicas besides being away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Plain,
    /// It left with this unanswered, or refused.
    Owing(Request, Option<Status>),
    /// It says that a flush failed.
    Failed,
    /// Its filling was broken off once.
    Interrupted,
    /// No map of the members reaches back to it.
    Unknown,
    /// The engine that sees it return is another one.
    OtherEngine,
}

impl Rig {
    /// The second of two replicas of four regions leaves, the first region is written without it, and it returns: which
    /// regions it is asked to compare. Their maps say everywhere, and they differ everywhere.
    fn compared_on_return(away: Away) -> Vec<u64> {
        let mut rig = Self::serving(2, 4 * REGION_BYTES, true);
        rig.write(REGION_BYTES);
        rig.answer_all(&[1, 2]);
        if let Away::Owing(request, status) = away {
            rig.engine.submit(request, 0, 4096, rig.now).unwrap();
            rig.collect();
            let kind = if request == Request::Flush { Kind::Flush } else { Kind::Write };
            rig.answer(1, kind, Status::Ok);
            if let Some(status) = status {
                rig.answer(2, kind, status);
            }
        }
        if rig.engine.proposal.is_none() {
            rig.disconnect(2);
            rig.gone(2);
        }
        rig.answer_all(&[1]);
        rig.store();
        assert_eq!(rig.engine.members, 0b01);
        rig.write(0);
        rig.answer_all(&[1]);
        if away == Away::OtherEngine {
            let record = rig.engine.registry.status.clone();
            rig = Self::fencing(config(4 * REGION_BYTES), record);
            rig.connect(1);
            rig.after(10);
            rig.answer_all(&[1]);
            rig.store();
            assert_eq!(rig.engine.members, 0b01);
        }
        let mut welcome = start_tests::welcome(rig.engine.registry.status.view);
        welcome.basis = (away != Away::Unknown).then_some(holdfast_proto::record::Stamp::default());
        if away == Away::Failed {
            "a flush failed".clone_into(&mut welcome.failed);
        }
        let mut interrupt = away == Away::Interrupted;
        let mut compared = BTreeSet::new();
        rig.connect_as(2, welcome.clone());
        for _ in 0..200 {
            if rig.engine.proposal.is_some() {
                return compared.into_iter().collect();
            }
            if interrupt && rig.sent(2, Kind::Digest) > 0 {
                // Only what is compared from here on counts.
                interrupt = false;
                rig.disconnect(2);
                rig.connect_as(2, welcome.clone());
                continue;
            }
            match rig.frames.first().copied() {
                Some((id, _, header)) => {
                    if id == 2 && header.kind == Kind::Digest {
                        compared.insert(header.offset / REGION_BYTES);
                    }
                    rig.answer(id, header.kind, Status::Ok);
                }
                None => rig.after(1),
            }
        }
        panic!("it is never proposed to be added: {:?}", rig.frames);
    }
}

#[test]
fn what_was_written_before_a_replica_left_is_compared_and_what_came_after_is_copied() {
    assert_eq!(Rig::compared_on_return(Away::Plain), [1, 2, 3]);
}

#[test]
fn what_a_replica_has_is_not_trusted_where_its_disk_may_have_refused_it() {
    let fua = Request::Write { fua: true };
    for away in [
        Away::Owing(Request::Flush, None),
        Away::Owing(Request::Flush, Some(Status::Failed)),
        Away::Owing(fua, None),
        Away::Owing(fua, Some(Status::Failed)),
        Away::Failed,
    ] {
        assert_eq!(Rig::compared_on_return(away), NOTHING, "{away:?}");
    }
    let plain = Request::Write { fua: false };
    for away in [
        Away::Owing(Request::Flush, Some(Status::Ok)),
        Away::Owing(fua, Some(Status::Ok)),
        Away::Owing(plain, None),
    ] {
        assert_eq!(Rig::compared_on_return(away), [1, 2, 3], "{away:?}");
    }
}

#[test]
fn where_nothing_is_known_of_what_a_replica_had_all_that_it_may_lack_is_copied() {
    for away in [Away::Unknown, Away::OtherEngine, Away::Interrupted] {
        assert_eq!(Rig::compared_on_return(away), NOTHING, "{away:?}");
    }
}
