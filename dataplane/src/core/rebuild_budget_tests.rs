//! The limits hold, clients are spared, and a rebuild always goes on.

use proptest::prelude::*;

use super::*;

const REGION: u64 = 256 * 1024;

fn at(ms: u64) -> Now {
    Duration::from_millis(ms)
}

fn budget(inflight_max: usize, bytes_per_second: u64) -> RebuildBudget {
    RebuildBudget::new(Limits { inflight_max, bytes_per_second }, at(0))
}

/// A disk that takes `alone` for a client's operation, and `each` more for every copy beside it.
struct Disk {
    budget: RebuildBudget,
    alone: Duration,
    each: Duration,
    now: Now,
}

impl Disk {
    /// For so long: copies start whenever they may and take 5 ms, clients do one operation a millisecond.
    fn run(&mut self, ms: u64, clients: bool) -> (u64, usize) {
        let (mut ends, mut copied, mut most) = (Vec::new(), 0, 0);
        for _ in 0..ms {
            self.now += at(1);
            let now = self.now;
            ends.retain(|end: &Now| {
                let ended = *end <= now;
                if ended {
                    self.budget.finished(REGION, now);
                }
                !ended
            });
            while self.budget.may_start(now) {
                self.budget.started(REGION, now);
                ends.push(now + at(5));
                copied += REGION;
            }
            most = most.max(ends.len());
            if clients {
                let others = u32::try_from(ends.len()).unwrap();
                self.budget.foreground(self.alone + self.each * others, now);
            }
        }
        for _ in ends {
            self.budget.finished(REGION, self.now);
        }
        (copied, most)
    }
}

fn disk(inflight_max: usize, bytes_per_second: u64, alone: Duration, each: Duration) -> Disk {
    Disk { budget: budget(inflight_max, bytes_per_second), alone, each, now: at(0) }
}

#[test]
fn without_clients_it_grows_to_the_limit() {
    let mut disk = disk(8, 0, at(1), at(1));
    disk.run(2000, false);
    assert_eq!(disk.budget.allowed(), 8);
}

#[test]
fn clients_that_do_not_suffer_let_it_grow() {
    let mut disk = disk(8, 0, at(4), at(0));
    disk.run(3000, true);
    assert_eq!(disk.budget.allowed(), 8);
}

#[test]
fn clients_that_suffer_make_it_shrink_and_it_never_stops() {
    let mut disk = disk(16, 0, at(2), at(3));
    disk.run(2000, false);
    assert_eq!(disk.budget.allowed(), 16);
    disk.run(3000, true);
    // With one copy they see 5 ms, so up to 10 ms: two copies.
    let (copied, _) = disk.run(3000, true);
    assert!(disk.budget.allowed() <= 4, "{}", disk.budget.allowed());
    assert!(copied >= 3000 / 5 * REGION / 2, "{copied}");
}

#[test]
fn where_one_copy_at_a_time_is_too_much_clients_have_the_machine_in_between() {
    // With one they see 21 ms, and without 1 ms.
    let mut disk = disk(8, 0, at(1), at(20));
    disk.run(2000, true);
    let (copied, most) = disk.run(6000, true);
    let all = 6000 / 5 * REGION;
    assert_eq!(most, 1);
    assert!(copied >= all / 4 && copied <= all * 3 / 4, "{copied} of {all}");
    let (copied, _) = disk.run(2000, false);
    assert!(copied > 2000 / 5 * REGION, "no rest without them: {copied}");
}

#[test]
fn a_rest_lasts_as_long_as_its_copy_a_few_times_and_says_when_it_is_over() {
    let mut budget = budget(8, 0);
    for ms in 0..=200 {
        budget.foreground(at(3), at(ms));
        // The least is what others are compared with.
        let _ = budget.may_start(at(ms));
    }
    assert_eq!(budget.rest, REST_MAX / 2);
    budget.started(REGION, at(200));
    budget.finished(REGION, at(220));
    let until = at(220) + (REST_MAX / 2) * at(20);
    assert_eq!(budget.held_by(at(221)), Some(Hold::Rest { until }));
    assert_eq!((budget.next_at(), budget.may_start(until)), (Some(until), true));
    assert_eq!(budget.next_at(), None, "it is over");
}

#[test]
fn a_slow_disk_alone_is_no_reason_to_shrink() {
    let mut disk = disk(8, 0, at(100), at(1));
    disk.run(4000, true);
    assert_eq!(disk.budget.allowed(), 8);
}

#[test]
fn noise_of_scheduling_does_not_count() {
    let mut disk = disk(8, 0, Duration::from_micros(20), Duration::from_micros(25));
    disk.run(4000, true);
    assert_eq!(disk.budget.allowed(), 8);
}

#[test]
fn clients_of_a_quick_disk_are_heard_too() {
    let mut disk = disk(8, 0, Duration::from_micros(100), Duration::from_micros(100));
    disk.run(4000, true);
    assert!(disk.budget.allowed() <= 4, "{}", disk.budget.allowed());
}

#[test]
fn the_bandwidth_limit_holds_over_time_and_says_when_to_go_on() {
    let limit = 10 * 1024 * 1024;
    let mut disk = disk(8, limit, at(1), at(0));
    let (copied, _) = disk.run(10_000, false);
    let allowed = limit * 10;
    assert!(copied <= allowed + limit / 10 + 8 * REGION, "{copied}");
    assert!(copied >= allowed * 9 / 10, "{copied}");
    let mut budget = budget(8, limit);
    budget.started(REGION, at(0));
    let Some(Hold::InFlight) = budget.held_by(at(0)) else { panic!("one in flight at first") };
    budget.finished(REGION, at(1));
    let Some(Hold::Bandwidth { until }) = budget.held_by(at(1)) else { panic!("a debt") };
    assert!(until > at(20) && until < at(30), "{until:?}");
    assert!(budget.may_start(until));
}

#[test]
fn a_region_larger_than_the_limit_is_copied_all_the_same() {
    let mut budget = budget(4, 1000);
    assert!(budget.may_start(at(0)));
    budget.started(REGION, at(0));
    budget.finished(REGION, at(10));
    let until = budget.next_at().unwrap();
    assert!(until > Duration::from_secs(260) && until < Duration::from_secs(264), "{until:?}");
    assert!(budget.may_start(until));
}

#[test]
fn progress_has_a_rate_and_a_time_that_is_left() {
    let mut budget = budget(4, 0);
    assert_eq!(budget.progress(REGION, at(0)), Progress::default());
    for tick in 1..=50 {
        budget.started(REGION, at(tick * 100));
        budget.finished(REGION, at(tick * 100));
    }
    let progress = budget.progress(10 * REGION * 10, at(5000));
    assert!((9 * REGION..=11 * REGION).contains(&progress.bytes_per_second), "{progress:?}");
    let remaining = progress.remaining.unwrap().as_secs_f64();
    assert!((9.0..11.5).contains(&remaining), "{progress:?}");
    // Nothing for a long time: the old rate is not believed in any more.
    assert!(budget.progress(REGION, at(15_000)).bytes_per_second < REGION);
    assert_eq!(budget.progress(0, at(5000)).remaining, Some(Duration::ZERO));
}

#[test]
fn a_stall_is_told_once_and_names_what_is_waited_for() {
    let mut budget = budget(4, 0);
    budget.started(REGION, at(1000));
    assert_eq!(budget.stalled("r1", "r2", at(30_000)), None);
    let told = budget.stalled("r1", "r2", at(31_000)).unwrap();
    assert!(told.contains("30 s") && told.contains("r1 and r2 to answer (copies in flight: 1)"), "{told}");
    assert_eq!(budget.stalled("r1", "r2", at(32_000)), None, "once");
    budget.finished(REGION, at(33_000));
    let told = budget.stalled("r1", "r2", at(64_000)).unwrap();
    assert!(told.contains("go first"), "{told}");
    let mut slow = self::budget(4, 1000);
    slow.started(REGION, at(0));
    slow.finished(REGION, at(10));
    let told = slow.stalled("r1", "r2", at(40_000)).unwrap();
    assert!(told.contains("bandwidth limit of 1000 bytes/s"), "{told}");
}

#[test]
fn other_limits_are_taken_at_once() {
    let mut disk = disk(8, 0, at(1), at(0));
    disk.run(1000, false);
    let now = disk.now;
    disk.budget.set_limits(Limits { inflight_max: 0, bytes_per_second: 1000 }, now);
    assert_eq!(disk.budget.allowed(), 1, "never none");
    disk.budget.started(REGION, now);
    disk.budget.finished(REGION, now);
    assert!(!disk.budget.may_start(now));
    disk.budget.set_limits(Limits { inflight_max: 4, bytes_per_second: 0 }, now);
    assert!(disk.budget.may_start(now));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Start(u64),
    Finish,
    Client(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..2000).prop_map(Step::Wait),
        (0u64..2 * REGION).prop_map(Step::Start),
        Just(Step::Finish),
        (0u64..500).prop_map(Step::Client),
    ]
}

proptest! {
    /// Whatever happens: never more in flight than allowed, never none allowed; the limit of bandwidth holds but for
    /// one copy and the burst; and once nothing is in flight, a copy may start after a time that is known.
    #[test]
    fn it_holds_its_limits_and_never_forbids_for_ever(
        inflight_max in 0usize..20,
        rate in prop_oneof![Just(0u64), 1u64..50_000_000],
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let mut budget = budget(inflight_max, rate);
        let (mut now, mut flying, mut taken, mut largest) = (at(0), 0usize, 0u64, 0u64);
        for step in steps {
            match step {
                Step::Wait(ms) => now += at(ms),
                Step::Start(bytes) => if budget.may_start(now) {
                    budget.started(bytes, now);
                    (flying, taken, largest) = (flying + 1, taken + bytes, largest.max(bytes));
                },
                Step::Finish => if flying > 0 {
                    budget.finished(1, now);
                    flying -= 1;
                },
                Step::Client(ms) => budget.foreground(at(ms), now),
            }
            prop_assert!((1..=inflight_max.max(1)).contains(&budget.allowed()));
            prop_assert_eq!(budget.in_flight(), flying);
            if rate > 0 {
                let most = to_f64(rate) * (now.as_secs_f64() + BURST.as_secs_f64() + 0.001) + to_f64(largest) + 1.0;
                prop_assert!(to_f64(taken) <= most, "{taken} in {now:?} at {rate}");
            }
        }
        for _ in 0..flying {
            budget.finished(0, now);
        }
        if let Some(until) = budget.next_at() {
            now = now.max(until);
        }
        prop_assert!(budget.may_start(now), "{:?}", budget.held_by(now));
    }
}
