//! Visits every state that can be reached, once.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::{Step, World};

/// In which order states are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// A first violation is one with the fewest steps. Keeps a whole level of states in memory.
    Breadth,
    /// Keeps only the states beside one path in memory.
    Depth,
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

/// One step, and whether all still holds. What the code itself asserts counts too.
pub(super) fn advance(world: &World, step: Step) -> Result<World, String> {
    catch_unwind(AssertUnwindSafe(|| {
        let mut next = world.clone();
        next.apply(step)?;
        next.check()?;
        Ok(next)
    }))
    .unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Visits at most `limit` states.
pub(super) fn explore(first: World, order: Order, limit: usize) -> Report {
    let mut seen: HashSet<u128, BuildHasherDefault<Same>> = HashSet::default();
    let mut trail = Trail(vec![(0, Step::Start)]);
    let mut queue = VecDeque::from([(first.clone(), 0u32, 0usize)]);
    seen.insert(first.fingerprint());
    let mut report = Report { states: 1, steps: 0, depth: 0, exhaustive: true, violation: None };
    let mut possible = Vec::new();
    while let Some((world, at, depth)) = match order {
        Order::Breadth => queue.pop_front(),
        Order::Depth => queue.pop_back(),
    } {
        report.depth = report.depth.max(depth);
        possible.clear();
        world.steps(&mut possible);
        for step in &possible {
            report.steps += 1;
            let next = match advance(&world, *step) {
                Ok(next) => next,
                Err(what) => {
                    let mut path = trail.path(at);
                    path.push(*step);
                    report.violation = Some((what, path));
                    report.exhaustive = false;
                    report.states = seen.len();
                    return report;
                }
            };
            if seen.insert(next.fingerprint()) {
                let index = u32::try_from(trail.0.len()).expect("fewer states than that");
                trail.0.push((at, *step));
                queue.push_back((next, index, depth + 1));
            }
        }
        if seen.len() >= limit {
            report.exhaustive = queue.is_empty();
            break;
        }
    }
    report.states = seen.len();
    report
}
