//! A replica that waits for its turn gets nothing, says so, and does not wait for ever.

use super::directed_tests::Rig;
use super::*;
use crate::core::start::tests as start_tests;
use crate::units::REGION_BYTES;
use crate::wire::handshake::Welcome;
use crate::wire::header::{Kind, Status};

const AT_MOST: Duration = Duration::from_secs(30);

fn waits() -> Option<Pace> {
    let reason = "others first".to_owned();
    Some(Pace { bytes_per_second: 0, wait: Some(Wait { at_most: AT_MOST, reason }) })
}

impl Rig {
    /// The second of two replicas was away while the first was written, and is back; others go first.
    fn waiting() -> Self {
        let mut rig = Self::serving(2, 4 * REGION_BYTES, true);
        rig.disconnect(2);
        rig.gone(2);
        rig.answer_all(&[1]);
        rig.store();
        rig.write(0);
        rig.answer_all(&[1]);
        rig.pace(waits());
        // Nothing is known of what it lacks.
        let welcome = start_tests::welcome(rig.engine.registry.status.view);
        rig.connect_as(2, Welcome { basis: None, ..welcome });
        rig
    }

    fn pace(&mut self, pace: Option<Pace>) {
        self.engine.pace_fill(pace, self.now);
        self.collect();
    }

    /// All is answered, second after second. Returns after how many the replica is proposed to be a member.
    fn seconds_to_member(&mut self, most: u64) -> Option<u64> {
        let begun = self.now;
        while self.now < begun + Duration::from_secs(most) {
            while let Some((id, _, header)) = self.frames.first().copied() {
                self.answer(id, header.kind, Status::Ok);
            }
            if self.engine.proposal.is_some() {
                return Some((self.now - begun).as_secs());
            }
            self.after(1);
        }
        None
    }
}

#[test]
fn a_replica_waits_for_its_turn_and_not_longer_than_was_said() {
    let mut rig = Rig::waiting();
    let added = rig.seconds_to_member(AT_MOST.as_secs() - 5);
    assert_eq!(added, None, "nothing is copied meanwhile");
    let report = rig.engine.report(rig.now);
    assert_eq!(
        (report.replicas[1].mode, &*report.replicas[1].reason),
        (ReplicaMode::Rebuilding, "others first")
    );
    assert_eq!((report.state, report.replicas[1].done_bytes), (EngineState::Degraded, 0));
    assert!(rig.seconds_to_member(10).is_some(), "whoever gives turns may be away");
    assert_ne!(rig.engine.report(rig.now).replicas[1].reason, "others first");
}

#[test]
fn a_wait_that_is_said_again_goes_on_and_a_turn_ends_it_at_once() {
    let mut rig = Rig::waiting();
    for _ in 0..4 {
        assert_eq!(rig.seconds_to_member(AT_MOST.as_secs() - 5), None);
        rig.pace(waits());
    }
    rig.pace(Some(Pace { bytes_per_second: 0, wait: None }));
    assert_eq!(rig.seconds_to_member(2), Some(0));
    let mut rig = Rig::waiting();
    assert_eq!(rig.seconds_to_member(5), None);
    rig.pace(None);
    assert_eq!(rig.seconds_to_member(2), Some(0), "an agent that knows of no turns");
}

#[test]
fn clients_write_while_a_replica_waits_and_it_wakes_when_the_wait_is_over() {
    let mut rig = Rig::waiting();
    assert_eq!(rig.seconds_to_member(5), None);
    rig.write(REGION_BYTES);
    rig.answer_all(&[1, 2]);
    assert!(matches!(rig.completed.last(), Some((_, Outcome::Done))), "{:?}", rig.completed);
    assert_eq!(rig.sent(1, Kind::Read), 0);
    let asked = rig.engine.fill.next_at().unwrap();
    assert!(asked > rig.now && asked <= rig.now + AT_MOST, "a tick is asked for");
}
