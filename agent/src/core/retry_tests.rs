use super::*;
use crate::core::testing::record;
use holdfast_proto::record::VolumeRecord;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An agent whose volumes never work, asked every so often, which says when it tried.
struct Node {
    retries: Retries,
    volumes: Vec<VolumeRecord>,
    attempts: Vec<(Moment, VolumeName)>,
    lines: usize,
}

impl Node {
    fn new(volumes: usize, started: Moment) -> Self {
        Self {
            retries: Retries::new(started),
            volumes: (0..volumes).map(|n| record(&format!("v{n}"), "node-a", 1)).collect(),
            attempts: Vec::new(),
            lines: 0,
        }
    }

    /// Something happened, and the plan wants the same as ever.
    fn event(&mut self, now: Moment) -> usize {
        let wishes = self.volumes.iter().map(|v| (&v.name, &v.spec)).collect();
        let held = self.retries.hold_back(&wishes, self.volumes.iter().map(|v| &v.name), now);
        for volume in self.volumes.iter().filter(|volume| !held.contains(&volume.name)) {
            let reason = format!("disk {}", now.as_millis());
            self.lines += usize::from(self.retries.failed(&volume.name, &volume.spec, &reason, now));
            self.attempts.push((now, volume.name.clone()));
        }
        self.volumes.len() - held.len()
    }

    fn attempts_between(&self, from: Moment, to: Moment) -> usize {
        self.attempts.iter().filter(|(at, _)| (from..to).contains(at)).count()
    }
}

#[test]
fn n2_a_thousand_reasons_to_try_are_few_attempts_and_fewer_lines() {
    let mut node = Node::new(1, ms(0));
    let begin = ms(100_000);
    for n in 0..12_000 {
        node.event(begin + ms(n * 50));
    }
    assert_eq!(node.attempts_between(begin, begin + ms(900)), 3, "the burst");
    let gaps: Vec<_> = node.attempts.windows(2).map(|two| two[1].0 - two[0].0).collect();
    assert!(gaps[2..].iter().all(|gap| *gap >= ms(1000)), "at most one a second: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= ms(72_050)), "and at least one in 72 s, for ever: {gaps:?}");
    let last: Vec<_> = gaps.iter().rev().take(4).collect();
    assert!(last.iter().all(|gap| **gap >= ms(48_000)), "a minute, more or less: {last:?}");
    assert!(last.windows(2).any(|two| two[0] != two[1]), "spread: {last:?}");
    assert!(node.lines <= 20, "two lines a minute at most, in ten minutes: {}", node.lines);
}

#[test]
fn n4_five_hundred_that_fail_together_leave_room_for_what_works() {
    let mut node = Node::new(500, ms(0));
    let begin = ms(100_000);
    let mut busiest = 0;
    for n in 0..1200 {
        let now = begin + ms(n * 100);
        let attempts = node.event(now);
        if n > 0 {
            busiest = busiest.max(attempts);
        }
        let healthy = record("healthy", "node-a", 1);
        let wishes = node.volumes.iter().chain([&healthy]).map(|v| (&v.name, &v.spec)).collect();
        let held = node.retries.clone().hold_back(&wishes, [&healthy.name], now);
        assert!(held.is_empty(), "what has not failed never waits");
    }
    assert!(busiest <= 20, "{busiest} at once");
    let after_first = node.attempts.len() - 500;
    assert!(after_first <= 20 + 1200, "ten a second for two minutes: {after_first}");
    for volume in &node.volumes {
        let of_it = node.attempts.iter().filter(|(_, name)| *name == volume.name).count();
        assert!(of_it >= 3, "{} was tried {of_it} times: those that waited longest go first", volume.name);
    }
}

#[test]
fn n5_a_restart_with_stuck_volumes_has_no_burst() {
    let mut node = Node::new(1, ms(0));
    for n in 0..300 {
        node.event(ms(n * 10));
    }
    let early = node.attempts_between(ms(0), ms(1000));
    assert_eq!(early, 1, "the one that finds out");
}

#[test]
fn a_new_wish_and_a_success_begin_again() {
    let mut node = Node::new(1, ms(0));
    for n in 0..10 {
        node.event(ms(100_000 + n));
    }
    assert_eq!(node.event(ms(100_100)), 0);
    node.volumes[0].spec.size_bytes *= 2;
    assert_eq!(node.event(ms(100_100)), 1, "somebody changed what is wanted");
    for n in 0..10 {
        node.event(ms(100_200 + n));
    }
    assert_eq!(node.event(ms(100_300)), 0);
    let name = node.volumes[0].name.clone();
    node.retries.succeeded(&name);
    assert_eq!(node.event(ms(100_300)), 1);
}

#[test]
fn time_wakes_only_for_those_that_wait_for_time() {
    let mut node = Node::new(2, ms(0));
    assert_eq!(node.retries.next_at(ms(5)), None);
    node.event(ms(5));
    let at = node.retries.next_at(ms(5)).unwrap();
    assert!(at >= ms(1005), "{at:?}");
    assert_eq!(
        node.retries.next_at(ms(50_000)),
        None,
        "due, and the plan does not want it: an event will tell"
    );
}
