//! Trims and zeroing let others through, and leave no member out.

use super::directed_tests::Rig;
use super::*;
use crate::core::zero_steps::{STEP_BYTES_MAX, STEP_BYTES_MIN};
use crate::units::REGION_BYTES;
use crate::wire::header::{Kind, Status};

const GIB: u64 = 1 << 30;

impl Rig {
    fn zero(&mut self, request: Request, offset: u64, len: u64) -> OpId {
        let op = self.engine.submit(request, offset, len, self.now).unwrap();
        self.collect();
        op
    }

    /// The steps on their way to a replica.
    fn steps(&self, to: u32) -> Vec<(u64, u64)> {
        let steps = self
            .frames
            .iter()
            .filter(|(id, _, header)| *id == to && matches!(header.kind, Kind::Trim | Kind::WriteZeroes));
        steps.map(|(_, _, header)| (header.offset, header.extent)).collect()
    }

    /// The step on its way, which all answer after so long.
    fn step(&mut self, kind: Kind, replicas: u32, takes: Duration) -> (u64, u64) {
        let steps = self.steps(1);
        assert_eq!(steps.len(), 1, "one at a time");
        self.now += takes;
        for id in 1..=replicas {
            assert_eq!(self.steps(id), steps);
        }
        for id in 1..=replicas {
            self.answer(id, kind, Status::Ok);
        }
        steps[0]
    }

    fn is_done(&self, op: OpId) -> bool {
        self.completed.contains(&(op, Outcome::Done))
    }
}

#[test]
fn trims_and_zeroing_go_a_step_at_a_time_and_once_over_all() {
    for (request, kind) in [
        (Request::Trim, Kind::Trim),
        (Request::WriteZeroes { may_punch: true, fua: false }, Kind::WriteZeroes),
    ] {
        let mut rig = Rig::serving(3, GIB, true);
        let op = rig.zero(request, 4096, GIB / 2);
        let (mut at, mut largest) = (4096, 0);
        while !rig.is_done(op) {
            let (offset, len) = rig.step(kind, 3, Duration::from_micros(100));
            assert_eq!(offset, at);
            (at, largest) = (at + len, largest.max(len));
        }
        assert_eq!((at, largest), (4096 + GIB / 2, STEP_BYTES_MAX), "quick steps grow");
        assert!(rig.steps(1).is_empty());
    }
}

#[test]
fn slow_steps_stay_small_and_others_go_first() {
    let mut rig = Rig::serving(3, GIB, true);
    rig.zero(Request::Trim, 0, GIB / 2);
    assert_eq!(rig.step(Kind::Trim, 3, Duration::from_micros(300)), (0, STEP_BYTES_MIN));
    for _ in 0..10 {
        let (offset, len) = rig.steps(1)[0];
        assert!(len <= 2 * STEP_BYTES_MIN, "{len}");
        // Behind the step and in front of it, within the same request.
        for place in [offset + len, 0] {
            let before = rig.sent(1, Kind::Write);
            rig.write(place);
            let waits = offset == 0 && place == 0;
            assert_eq!(rig.sent(1, Kind::Write), before + usize::from(!waits), "{place} beside {offset}");
        }
        for id in 1..=3 {
            while rig.sent(id, Kind::Write) > 0 {
                rig.answer(id, Kind::Write, Status::Ok);
            }
        }
        rig.step(Kind::Trim, 3, Duration::from_millis(40));
    }
}

#[test]
fn the_trims_of_clients_take_turns() {
    let mut rig = Rig::serving(2, GIB, true);
    let long = rig.zero(Request::Trim, 0, GIB / 2);
    let short = rig.zero(Request::Trim, GIB / 2, 2 * STEP_BYTES_MIN);
    for _ in 0..4 {
        rig.step(Kind::Trim, 2, Duration::from_micros(100));
    }
    assert!(rig.is_done(short) && !rig.is_done(long));
}

#[test]
fn after_a_slow_step_the_next_waits_as_long() {
    let mut rig = Rig::serving(2, GIB, true);
    rig.zero(Request::Trim, 0, GIB / 2);
    rig.step(Kind::Trim, 2, Duration::from_secs(2));
    let next = rig.engine.zeroing.next_at().unwrap();
    assert_eq!(next, rig.now + Duration::from_secs(2));
    assert!(rig.steps(1).is_empty() && rig.engine.poll_timeout().unwrap() <= next);
    rig.after(1);
    assert!(rig.steps(1).is_empty());
    rig.after(1);
    assert_eq!(rig.steps(1).len(), 1);
}

#[test]
fn a_member_that_is_slow_at_trims_alone_stays() {
    let mut rig = Rig::serving(3, GIB, true);
    rig.zero(Request::Trim, 0, GIB / 2);
    for second in 0..60 {
        rig.write(GIB - 4096);
        rig.answer_all(&[1, 2]);
        // What came behind the step of r3 waits for it.
        if rig.steps(3).is_empty() || second % 5 == 4 {
            rig.answer_all(&[3]);
        } else if rig.sent(3, Kind::Ping) > 0 {
            rig.answer(3, Kind::Ping, Status::Ok);
        }
        rig.after(1);
    }
    assert_eq!(rig.engine.members, 0b111);
    let r3 = &rig.engine.report(rig.now).replicas[2];
    assert!(!r3.reason.contains("slow"), "{r3:?}");
}

#[test]
fn a_member_whose_step_never_ends_is_left_behind() {
    let mut rig = Rig::serving(3, GIB, true);
    rig.zero(Request::Trim, 0, GIB / 2);
    let mut seconds = 0;
    while rig.engine.members == 0b111 && seconds < 100 {
        rig.write(GIB - 4096);
        rig.answer_all(&[1, 2]);
        for kind in [Kind::Write, Kind::Ping] {
            while rig.sent(3, kind) > 0 {
                rig.answer(3, kind, Status::Ok);
            }
        }
        rig.after(1);
        rig.answer_all(&[1, 2]);
        seconds += 1;
    }
    assert!((60..70).contains(&seconds), "{seconds}");
}

#[test]
fn trims_that_wait_fail_with_the_others() {
    let mut rig = Rig::serving(2, 64 * REGION_BYTES, true);
    let ops = [0, 16, 32].map(|region| rig.zero(Request::Trim, region * REGION_BYTES, 16 * REGION_BYTES));
    let write = rig.write(63 * REGION_BYTES);
    rig.disconnect(1);
    rig.disconnect(2);
    rig.gone(1);
    rig.gone(2);
    for _ in 0..310 {
        rig.after(1);
    }
    for op in ops.into_iter().chain([write]) {
        assert!(rig.completed.contains(&(op, Outcome::Failed(Failure::Unavailable))), "{op:?}");
    }
    assert_eq!((rig.engine.ops.clients, rig.engine.zeroing.waiting.len()), (0, 0));
}
