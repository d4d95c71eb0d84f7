//! Visits every state that can be reached, once.
//!
//! A state that differs from one already visited only in that less may still happen is not visited: whatever can come of
//! it can come of the other, since every step that the lesser budget allows the greater one allows too, with the same
//! effect. So that the greater ones come first, [`Order::Richest`] visits by what is left.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::{Left, Step, World};

/// In which order states are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// A first violation is one with the fewest steps. Keeps a whole level of states in memory.
    Shortest,
    /// Those to which most can still happen. Keeps few states in memory.
    Richest,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) states: usize,
    pub(super) steps: u64,
    pub(super) depth: usize,
    /// Every state within the bounds was visited.
    pub(super) exhaustive: bool,
    pub(super) violation: Option<(String, Vec<Step>)>,
}

/// Fingerprints are as good as hashes already.
#[derive(Default)]
struct Same(u64);
impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are kept")
    }
    fn write_u128(&mut self, print: u128) {
        self.0 = (print >> 64) as u64;
    }
}

/// How a state was first reached: from which one, by what.
struct Trail(Vec<(u32, Step)>);
impl Trail {
    fn path(&self, mut at: u32) -> Vec<Step> {
        let mut path = Vec::new();
        while at != 0 {
            let (from, step) = self.0[at as usize];
            path.push(step);
            at = from;
        }
        path.reverse();
        path
    }
}

/// What the code itself asserts is a violation too.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// One step, and whether all still holds.
pub(super) fn advance(world: &World, step: Step) -> Result<World, String> {
    advance_to_new(world, step, |_| true).map(|(next, _)| next)
}

/// One step, and whether all still holds, if it leads to what `is_new`: of what was checked once that is known.
fn advance_to_new(
    world: &World,
    step: Step,
    is_new: impl FnOnce(&World) -> bool,
) -> Result<(World, bool), String> {
    caught(|| {
        let mut next = world.clone();
        next.apply(step)?;
        let new = is_new(&next);
        if new {
            next.check()?;
        }
        Ok((next, new))
    })
}

/// The states visited, by what they are but for their budget; of each what was left to it.
#[derive(Default)]
struct Seen {
    /// What was left at the first visit.
    first: HashMap<u128, Left, BuildHasherDefault<Same>>,
    /// And at later ones, which had something left that no earlier one had.
    more: HashMap<u128, Vec<Left>, BuildHasherDefault<Same>>,
}

impl Seen {
    /// Whether this one has to be visited.
    fn insert(&mut self, print: u128, left: Left) -> bool {
        match self.first.entry(print) {
            Entry::Vacant(vacant) => {
                vacant.insert(left);
                return true;
            }
            Entry::Occupied(first) if first.get().covers(left) => return false,
            Entry::Occupied(_) => {}
        }
        let more = self.more.entry(print).or_default();
        let news = !more.iter().any(|visited| visited.covers(left));
        if news {
            more.push(left);
        }
        news
    }
}

/// Visits at most `limit` states, and shows each to `visit`.
pub(super) fn explore_with(
    first: World,
    order: Order,
    limit: usize,
    mut visit: impl FnMut(&World),
) -> Report {
    let mut seen = Seen::default();
    let mut trail = Trail(vec![(0, Step::Start)]);
    let mut report = Report { states: 1, steps: 0, depth: 0, exhaustive: true, violation: None };
    // By how much may still happen.
    let mut queues = vec![VecDeque::new(); usize::from(first.left().rank()) + 1];
    let place = |world: &World| match order {
        Order::Shortest => 0,
        Order::Richest => usize::from(world.left().rank()),
    };
    seen.insert(first.fingerprint(), first.left());
    queues[place(&first)].push_back((first, 0u32, 0usize));
    let (mut possible, mut shared) = (Vec::new(), HashMap::new());
    while let Some((world, at, depth)) = match order {
        Order::Shortest => queues[0].pop_front(),
        Order::Richest => queues.iter_mut().rev().find_map(VecDeque::pop_back),
    } {
        let woken = caught(|| {
            let mut world = world;
            world.wake().map(|()| world)
        });
        let world = match woken {
            Ok(world) => world,
            Err(what) => {
                report.violation = Some((what, trail.path(at)));
                report.exhaustive = false;
                return report;
            }
        };
        visit(&world);
        report.depth = report.depth.max(depth);
        possible.clear();
        world.steps(&mut possible);
        for step in &possible {
            report.steps += 1;
            let is_new = |next: &World| seen.insert(next.fingerprint(), next.left());
            let (mut next, new) = match advance_to_new(&world, *step, is_new) {
                Ok(next) => next,
                Err(what) => {
                    let mut path = trail.path(at);
                    path.push(*step);
                    report.violation = Some((what, path));
                    report.exhaustive = false;
                    return report;
                }
            };
            if new {
                report.states += 1;
                next.share(&mut shared);
                let index = u32::try_from(trail.0.len()).expect("fewer states than that");
                trail.0.push((at, *step));
                queues[place(&next)].push_back((next, index, depth + 1));
            }
        }
        if report.states >= limit {
            report.exhaustive = queues.iter().all(VecDeque::is_empty);
            break;
        }
    }
    report
}

/// Visits at most `limit` states.
pub(super) fn explore(first: World, order: Order, limit: usize) -> Report {
    explore_with(first, order, limit, |_| {})
}
