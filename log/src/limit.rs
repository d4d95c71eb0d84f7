//! Which lines are written: no failure more than twice a minute of one object, and twenty times in all.
//!
//! A line belongs to an object (a volume, an instance, or nothing: the process itself) and a cause: the place in the code
//! that says it. Its text does not matter, because texts of one failure differ by server, address or number. Of one
//! object and cause two lines are written in any minute. Of failures (warnings and errors), and of whatever else repeats
//! within a minute, twenty lines are written in any minute of the whole process; the first line of a cause that was not
//! written for a minute is never among what that leaves out. State changes that do not repeat are always written.
//!
//! What is left out is counted: the next line of the same object and cause says how many, and where none comes,
//! [`Limiter::overdue`] does. Pure: calls carry the time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// A time of the process: since any fixed moment.
pub(crate) type Moment = Duration;
/// Two pointers to the sources: file and line, or a name and zero.
pub(crate) type Cause = (&'static str, u32);

/// How many lines may be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// In any span of this length.
    pub(crate) window: Duration,
    /// Lines of one object and cause.
    pub(crate) of_one: usize,
    /// Failures and repetitions of all objects and causes.
    pub(crate) of_all: usize,
    /// Objects and causes that are told apart; further ones share the limit of their cause.
    pub(crate) kinds_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Behaviour N2 asks for the first two. Sixteen thousand: a node with a thousand volumes that all change at once,
        // and two megabytes.
        Self { window: Duration::from_secs(60), of_one: 2, of_all: 20, kinds_max: 16_384 }
    }
}

/// What a line is about and what says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) object: String,
    pub(crate) cause: Cause,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is written, and says that so many before it were not.
    Write { left_out: u64 },
    /// It is not.
    LeaveOut,
}

/// Lines that were left out, and after which none came that could say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) failure: bool,
    /// Empty: several, or the process itself.
    pub(crate) object: String,
    pub(crate) message: String,
    pub(crate) lines: u64,
}

#[derive(Debug, Default)]
struct Kept {
    written: VecDeque<Moment>,
    left_out: u64,
    failure: bool,
    /// Of the last line that was written.
    message: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: Limits,
    kinds: HashMap<Kind, Kept>,
    causes: HashMap<Cause, Moment>,
    /// Failures and repetitions that were written.
    counted: VecDeque<Moment>,
    forgotten_at: Moment,
}

impl Limiter {
    /// One that has heard nothing.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            kinds: HashMap::new(),
            causes: HashMap::new(),
            counted: VecDeque::new(),
            forgotten_at: Moment::ZERO,
        }
    }

    /// Whether this line is written. A failure is a warning or an error.
    pub(crate) fn line(&mut self, mut kind: Kind, failure: bool, message: &str, now: Moment) -> Verdict {
        let Limits { window, of_one, of_all, kinds_max } = self.limits;
        if now.saturating_sub(self.forgotten_at) >= window {
            self.forget(now);
        }
        if self.kinds.len() >= kinds_max && !self.kinds.contains_key(&kind) {
            kind.object.clear();
        }
        let news = self.causes.get(&kind.cause).is_none_or(|at| now.saturating_sub(*at) >= window);
        let cause = kind.cause;
        let kept = self.kinds.entry(kind).or_default();
        drop_old(&mut kept.written, window, now);
        drop_old(&mut self.counted, window, now);
        let counts = failure || !kept.written.is_empty();
        if kept.written.len() >= of_one || (counts && !news && self.counted.len() >= of_all) {
            kept.left_out += 1;
            kept.failure |= failure;
            if kept.message.is_empty() {
                message.clone_into(&mut kept.message);
            }
            return Verdict::LeaveOut;
        }
        kept.written.push_back(now);
        kept.failure = failure;
        message.clone_into(&mut kept.message);
        self.causes.insert(cause, now);
        if counts {
            self.counted.push_back(now);
        }
        Verdict::Write { left_out: std::mem::take(&mut kept.left_out) }
    }

    /// What has to be said of lines that were left out, a line for each cause. It is said: it counts as written.
    pub(crate) fn overdue(&mut self, now: Moment) -> Vec<LeftOut> {
        let Limits { window, of_one, of_all, .. } = self.limits;
        drop_old(&mut self.counted, window, now);
        let mut said: HashMap<Cause, (Moment, LeftOut)> = HashMap::new();
        for (kind, kept) in self.kinds.iter_mut().filter(|(_, kept)| kept.left_out > 0) {
            drop_old(&mut kept.written, window, now);
            let room = self.counted.len() + said.len() < of_all || said.contains_key(&kind.cause);
            if kept.written.len() >= of_one || !room {
                continue;
            }
            kept.written.push_back(now);
            let lines = std::mem::take(&mut kept.left_out);
            match said.get_mut(&kind.cause) {
                Some((_, told)) => {
                    told.lines += lines;
                    told.object.clear();
                }
                None => {
                    let (failure, message) = (kept.failure, kept.message.clone());
                    let told = LeftOut { failure, object: kind.object.clone(), message, lines };
                    said.insert(kind.cause, (now, told));
                }
            }
        }
        self.counted.extend(said.values().map(|(at, _)| *at));
        let mut said: Vec<LeftOut> = said.into_values().map(|(_, told)| told).collect();
        said.sort_by(|a, b| (&a.object, &a.message).cmp(&(&b.object, &b.message)));
        said
    }

    /// When [`Limiter::overdue`] may have something to say; none: not before another line is left out.
    pub(crate) fn overdue_at(&self) -> Option<Moment> {
        let Limits { window, of_one, of_all, .. } = self.limits;
        let free = |written: &VecDeque<Moment>, max: usize| match written.len().checked_sub(max) {
            Some(over) => written.get(over).map_or(Moment::ZERO, |at| *at + window),
            None => Moment::ZERO,
        };
        let waiting = self.kinds.values().filter(|kept| kept.left_out > 0);
        let first = waiting.map(|kept| free(&kept.written, of_one)).min()?;
        // Later than it could be: the next line of the same kind may come and say it.
        Some(first.max(free(&self.counted, of_all)).max(self.last_written() + window))
    }

    fn last_written(&self) -> Moment {
        let waiting = self.kinds.values().filter(|kept| kept.left_out > 0);
        waiting.filter_map(|kept| kept.written.back().copied()).min().unwrap_or_default()
    }

    fn forget(&mut self, now: Moment) {
        self.forgotten_at = now;
        let window = self.limits.window;
        self.kinds.retain(|_, kept| {
            drop_old(&mut kept.written, window, now);
            kept.left_out > 0 || !kept.written.is_empty()
        });
        self.causes.retain(|_, at| now.saturating_sub(*at) < window);
    }
}

/// What is as old as the window does not count any more.
fn drop_old(written: &mut VecDeque<Moment>, window: Duration, now: Moment) {
    while written.front().is_some_and(|at| now.saturating_sub(*at) >= window) {
        written.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT_OUT: Verdict = Verdict::LeaveOut;
    const WRITTEN: Verdict = Verdict::Write { left_out: 0 };

    fn ms(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }
    fn kind(object: &str, line: u32) -> Kind {
        Kind { object: object.to_owned(), cause: ("a.rs", line) }
    }
    fn limiter() -> Limiter {
        Limiter::new(Limits::default())
    }

    /// The most that was written in any span of a minute.
    fn most_in_a_minute(written: &[Moment]) -> usize {
        let within =
            |from: &Moment| written.iter().filter(|at| (*from..*from + ms(60_000)).contains(at)).count();
        written.iter().map(within).max().unwrap_or(0)
    }

    #[test]
    fn one_failure_is_written_twice_in_any_minute() {
        for every_ms in [1, 100, 999, 4000, 29_000, 61_000] {
            let mut limiter = limiter();
            let (mut written, mut counted, mut said) = (Vec::new(), 0, 0);
            for n in 0..600_000 / every_ms {
                let now = ms(n * every_ms);
                // The text differs each time, as it does where it names a server or a port.
                match limiter.line(kind("v", 1), true, &n.to_string(), now) {
                    Verdict::Write { left_out } => {
                        written.push(now);
                        said += left_out;
                    }
                    Verdict::LeaveOut => counted += 1,
                }
            }
            assert!(most_in_a_minute(&written) <= 2, "every {every_ms} ms: {written:?}");
            said += limiter.overdue(ms(700_000)).iter().map(|told| told.lines).sum::<u64>();
            assert_eq!(said, counted, "what was left out is said");
        }
    }

    #[test]
    fn many_volumes_share_twenty_lines_a_minute() {
        let mut limiter = limiter();
        let (mut written, mut left_out) = (Vec::new(), 0);
        for second in 0..300 {
            for volume in 0..100 {
                let now = ms(second * 1000 + volume);
                match limiter.line(kind(&format!("v{volume}"), 1), true, "down", now) {
                    Verdict::Write { .. } => written.push(now),
                    Verdict::LeaveOut => left_out += 1,
                }
            }
        }
        assert!(most_in_a_minute(&written) <= 20, "{}", most_in_a_minute(&written));
        assert!(left_out > 29_000);
    }

    #[test]
    fn a_new_failure_is_heard_beside_a_flood() {
        let mut limiter = limiter();
        for n in 0..1000 {
            limiter.line(kind(&format!("v{n}"), 1), true, "flood", ms(n));
        }
        assert_eq!(limiter.line(kind("v", 2), true, "fenced", ms(1001)), WRITTEN);
        assert_eq!(limiter.line(kind("w", 2), true, "fenced", ms(1002)), LEFT_OUT, "no news");
    }

    #[test]
    fn state_changes_are_written_however_many_there_are() {
        let mut limiter = limiter();
        for n in 0..1000 {
            assert_eq!(
                limiter.line(kind(&format!("v{n}.r1 starting running"), 1), false, "state", ms(n)),
                WRITTEN
            );
        }
        // But not again and again.
        let again = |n| kind(&format!("v{n}.r1 starting running"), 1);
        let repeated = (0..1000).filter(|n| limiter.line(again(*n), false, "state", ms(2000)) == WRITTEN);
        assert_eq!(repeated.count(), 20);
    }

    #[test]
    fn the_next_line_says_how_many_were_left_out() {
        let mut limiter = limiter();
        assert_eq!(limiter.line(kind("v", 1), true, "x", ms(0)), WRITTEN);
        assert_eq!(limiter.line(kind("v", 1), true, "x", ms(1)), WRITTEN);
        for n in 2..50 {
            assert_eq!(limiter.line(kind("v", 1), true, "x", ms(n)), LEFT_OUT);
        }
        assert_eq!(limiter.line(kind("w", 1), true, "x", ms(60)), WRITTEN, "another object");
        assert_eq!(limiter.line(kind("v", 1), true, "x", ms(60_000)), Verdict::Write { left_out: 48 });
    }

    #[test]
    fn what_ends_in_silence_is_said_once() {
        let mut limiter = limiter();
        assert_eq!(limiter.overdue_at(), None);
        for n in 0..10 {
            limiter.line(kind("v", 1), true, "it does not answer", ms(n));
            limiter.line(kind("w", 1), true, "it does not answer", ms(n));
            limiter.line(kind("w", 2), false, "a client has come", ms(n));
        }
        let at = limiter.overdue_at().unwrap();
        assert_eq!(at, ms(60_001));
        assert_eq!(limiter.overdue(ms(59_999)), []);
        let told = |failure, object: &str, message: &str, lines| LeftOut {
            failure,
            object: object.to_owned(),
            message: message.to_owned(),
            lines,
        };
        let expected = [told(true, "", "it does not answer", 16), told(false, "w", "a client has come", 8)];
        assert_eq!(limiter.overdue(at), expected, "a line for each cause");
        assert_eq!((limiter.overdue(ms(200_000)), limiter.overdue_at()), (Vec::new(), None));
    }

    #[test]
    fn what_has_to_be_said_keeps_the_limit_of_all() {
        let mut limiter = limiter();
        for n in 0..3 {
            for line in 0..50 {
                limiter.line(kind("v", line), true, "x", ms(n));
            }
        }
        let (mut written, mut now) = (Vec::new(), ms(2));
        while let Some(at) = limiter.overdue_at() {
            assert!(at > now, "{at:?}: it comes to an end");
            now = at;
            written.extend(limiter.overdue(now).iter().map(|_| now));
        }
        assert!(most_in_a_minute(&written) <= 20, "{written:?}");
        assert_eq!(written.len(), 50);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut limiter = Limiter::new(Limits { kinds_max: 10, ..Limits::default() });
        for n in 0..1000 {
            limiter.line(kind(&format!("v{n}"), 1), true, "x", ms(n));
        }
        assert!(limiter.kinds.len() <= 11, "{}", limiter.kinds.len());
        limiter.overdue(ms(100_000));
        limiter.line(kind("v", 1), true, "x", ms(400_000));
        assert_eq!(limiter.kinds.len(), 1, "what is over is forgotten");
    }
}
