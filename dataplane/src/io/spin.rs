//! When to look for completions for a while before sleeping: busy-polling that adapts itself.
//!
//! A thread that sleeps is woken in 2 µs where its processor is busy with something else, and in 20 to 60 µs where it
//! has gone idle, which on a virtual machine is an exit to the hypervisor. One that looks again and again instead keeps
//! the processor awake, for itself and for whoever else is woken there. It gives the processor away between two looks,
//! so that it costs others no more than the switch; where they keep it for long, processors are short, and it sleeps
//! like everybody else for a while.
//!
//! This file decides and knows no clock; [`super::Driver::turn_looking`] does as it says.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How long to look for what is expected, in automatic mode. Twice what a round trip takes that nobody sleeps in.
const LOOK: Duration = Duration::from_micros(100);
/// What came within this time would, without the sleep, have come while looking.
const SOON: Duration = Duration::from_micros(200);
/// So many short waits in a row are no accident: the answers to a heartbeat come together, too, and then nothing does.
const STREAK: u8 = 8;
/// With more in flight than this there is always something to do: who looks then takes the processor from those it waits
/// for, and gets little at a time.
const SHALLOW: usize = 2;
/// For so many waits after that: in a deep queue there is little in flight at times, too, and who reacts at once to the
/// first of a batch takes the batch apart.
const DEEP_FOR: u16 = 256;
/// Another thread that has had the processor for so long is no short turn of the same I/O.
const CROWDED_AFTER: Duration = Duration::from_micros(500);
/// For how long there is no looking after that, first and at most: four times as long each time that it happens again
/// soon.
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_secs(10);
/// No longer soon: so many looks have met what they looked for since. Where nobody else needs the processor thousands do
/// between two accidents, and where somebody does a few.
const FREE_AFTER: u32 = 2048;

/// How a data thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpinMode {
    /// Looks where that has paid lately.
    #[default]
    Auto,
    /// Sleeps at once.
    Off,
    /// Always looks for so long, whatever it costs.
    For(Duration),
}

/// The longest time to look for that can be asked for: beyond it, it is a busy loop.
const FIXED_MAX_US: u64 = 10_000;

impl FromStr for SpinMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("off", _) => Ok(Self::Off),
            (_, Ok(us)) if (1..=FIXED_MAX_US).contains(&us) => Ok(Self::For(Duration::from_micros(us))),
            _ => Err(format!("expected auto, off, or 1 to {FIXED_MAX_US} microseconds, found {text:?}")),
        }
    }
}

impl fmt::Display for SpinMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::For(time) => write!(f, "{}", time.as_micros()),
        }
    }
}

/// What a thread waits for: how soon it comes differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The next request.
    Request,
    /// The end of something that is in flight.
    Answer,
}

/// Remembers what looking has brought.
#[derive(Debug)]
pub struct Spinner {
    mode: SpinMode,
    /// How many of the last waits in a row were short, up to [`STREAK`], for each of [`Awaited`].
    soon: [u8; 2],
    /// Whether it has looked in this wait.
    looked: bool,
    /// For how many waits more the queue counts as deep.
    deep_for: u16,
    /// No looking before this time.
    rest_until: Duration,
    rest: Duration,
    /// How many looks have met what they looked for since somebody last kept the processor.
    met: u32,
}

impl Spinner {
    /// Has not looked yet.
    #[must_use]
    pub fn new(mode: SpinMode) -> Self {
        Self {
            mode,
            soon: [0; 2],
            looked: false,
            deep_for: 0,
            rest_until: Duration::ZERO,
            rest: REST_MIN,
            met: FREE_AFTER,
        }
    }

    /// Whether it never looks, so that nobody need tell it anything.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.mode == SpinMode::Off
    }

    /// How long to look before sleeping, with `depth` operations in flight. `now`, here and below: of any clock that only
    /// goes forward.
    #[must_use]
    pub fn look(&mut self, awaited: Awaited, depth: usize, now: Duration) -> Duration {
        self.deep_for = if depth > SHALLOW { DEEP_FOR } else { self.deep_for.saturating_sub(1) };
        let pays = self.deep_for == 0 && self.soon[place(awaited)] >= STREAK && now >= self.rest_until;
        let look = match self.mode {
            SpinMode::Off => Duration::ZERO,
            SpinMode::For(time) => time,
            SpinMode::Auto if pays => LOOK,
            SpinMode::Auto => Duration::ZERO,
        };
        self.looked = look > Duration::ZERO;
        look
    }

    /// It was there before the first look. A request that is, is no answer to what was sent just now: others are in flight,
    /// though this thread may never see more than one at a time.
    pub fn was_there(&mut self, awaited: Awaited) {
        if awaited == Awaited::Request {
            self.deep_for = DEEP_FOR;
        }
    }

    /// It came after `waited`, looking and sleeping.
    pub fn came(&mut self, awaited: Awaited, waited: Duration) {
        // Looking in vain has cost its time already; only who slept would have met it sooner by looking.
        let short = waited <= if self.looked { LOOK } else { SOON };
        self.met = self.met.saturating_add(u32::from(short && self.looked));
        let soon = &mut self.soon[place(awaited)];
        *soon = if short { (*soon + 1).min(STREAK) } else { 0 };
    }

    /// Between two looks somebody else had the processor for `gone`. True: sleep now.
    pub fn gave_way(&mut self, gone: Duration, now: Duration) -> bool {
        if self.mode != SpinMode::Auto || gone < CROWDED_AFTER {
            return false;
        }
        let again = std::mem::take(&mut self.met) < FREE_AFTER;
        self.rest = if again { (4 * self.rest).min(REST_MAX) } else { REST_MIN };
        self.rest_until = now + self.rest;
        true
    }
}

fn place(awaited: Awaited) -> usize {
    match awaited {
        Awaited::Request => 0,
        Awaited::Answer => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// Has seen what makes it look.
    fn eager(awaited: Awaited) -> Spinner {
        let mut spinner = Spinner::new(SpinMode::Auto);
        for _ in 0..STREAK {
            assert_eq!(spinner.look(awaited, 1, us(0)), us(0), "too little is known yet");
            spinner.came(awaited, us(150));
        }
        spinner
    }

    #[test]
    fn looks_only_for_what_came_soon_many_times_in_a_row() {
        let mut spinner = eager(Awaited::Answer);
        assert_eq!(spinner.look(Awaited::Answer, 1, us(0)), LOOK);
        assert_eq!(spinner.look(Awaited::Request, 1, us(0)), us(0), "each by itself");
        spinner.came(Awaited::Answer, us(201));
        assert_eq!(spinner.look(Awaited::Answer, 1, us(0)), us(0));
        spinner.came(Awaited::Answer, us(10));
        assert_eq!(spinner.look(Awaited::Answer, 1, us(0)), us(0), "one does not make up for it");
    }

    #[test]
    fn what_was_looked_for_in_vain_did_not_come_soon() {
        let mut spinner = eager(Awaited::Answer);
        assert_eq!(spinner.look(Awaited::Answer, 1, us(0)), LOOK);
        spinner.came(Awaited::Answer, us(100));
        assert_eq!(spinner.look(Awaited::Answer, 1, us(0)), LOOK);
        spinner.came(Awaited::Answer, us(150));
        assert_eq!(spinner.look(Awaited::Answer, 1, us(0)), us(0), "that one would have come while asleep");
    }

    #[test]
    fn deep_queues_are_not_looked_for_until_they_have_been_shallow_for_long() {
        let mut spinner = eager(Awaited::Request);
        assert_eq!(spinner.look(Awaited::Request, SHALLOW, us(0)), LOOK);
        for _ in 0..2 {
            assert_eq!(spinner.look(Awaited::Request, SHALLOW + 1, us(0)), us(0));
            for _ in 1..DEEP_FOR {
                assert_eq!(spinner.look(Awaited::Request, 0, us(0)), us(0));
            }
        }
        assert_eq!(spinner.look(Awaited::Request, 0, us(0)), LOOK);
    }

    #[test]
    fn a_request_that_was_there_already_tells_of_a_deep_queue_and_an_answer_does_not() {
        let mut spinner = eager(Awaited::Request);
        spinner.was_there(Awaited::Answer);
        assert_eq!(spinner.look(Awaited::Request, 1, us(0)), LOOK);
        spinner.was_there(Awaited::Request);
        assert_eq!(spinner.look(Awaited::Request, 1, us(0)), us(0));
    }

    #[test]
    fn an_idle_thread_never_looks() {
        let mut spinner = Spinner::new(SpinMode::Auto);
        for second in 1..10 {
            // Each second three heartbeats are answered, one shortly after the other.
            for waited in [1_000_000, 90, 20, 20] {
                spinner.came(Awaited::Request, us(waited));
                assert_eq!(spinner.look(Awaited::Request, 1, us(second * 1_000_000)), us(0));
            }
        }
    }

    #[test]
    fn rests_longer_and_longer_while_processors_are_short() {
        let mut spinner = eager(Awaited::Request);
        let mut now = us(0);
        assert!(!spinner.gave_way(us(499), now));
        let mut rest_after = |spinner: &mut Spinner, met: u32| {
            for _ in 0..met {
                assert_eq!(spinner.look(Awaited::Request, 1, now), LOOK, "tried again");
                spinner.came(Awaited::Request, us(5));
            }
            assert!(spinner.gave_way(us(3000), now));
            assert_eq!(spinner.look(Awaited::Request, 1, now), us(0));
            // However long ago the rest before it is.
            let rest = spinner.rest_until - now;
            now += 7 * rest;
            rest.as_millis()
        };
        let rests: Vec<_> = (0..8).map(|n| rest_after(&mut spinner, 10 * n)).collect();
        assert_eq!(rests, [10, 40, 160, 640, 2560, 10_000, 10_000, 10_000]);
        assert_eq!(rest_after(&mut spinner, FREE_AFTER), 10, "looking pays again");
        assert_eq!(rest_after(&mut spinner, FREE_AFTER - 1), 40);
    }

    #[test]
    fn what_comes_to_one_who_sleeps_says_nothing_of_looking() {
        let mut spinner = eager(Awaited::Request);
        assert!(spinner.gave_way(us(3000), us(0)));
        for _ in 0..FREE_AFTER {
            assert_eq!(spinner.look(Awaited::Request, 1, us(0)), us(0));
            spinner.came(Awaited::Request, us(5));
        }
        assert!(spinner.gave_way(us(3000), us(0)));
        assert_eq!(spinner.rest_until.as_millis(), 40);
    }

    #[test]
    fn modes_are_read_as_they_are_written() {
        for text in ["auto", "off", "1", "50", "10000"] {
            assert_eq!(text.parse::<SpinMode>().unwrap().to_string(), text);
        }
        for text in ["", "on", "0", "10001", "-1", "50us"] {
            assert!(text.parse::<SpinMode>().unwrap_err().contains("auto, off, or 1 to 10000"), "{text}");
        }
    }

    #[test]
    fn fixed_times_are_kept_and_off_is_off() {
        let mut always = Spinner::new(SpinMode::For(us(30)));
        always.came(Awaited::Request, us(5000));
        assert!(!always.gave_way(us(3000), us(0)));
        assert_eq!(always.look(Awaited::Request, 1, us(0)), us(30));
        let mut off = Spinner::new(SpinMode::Off);
        off.came(Awaited::Request, us(5));
        assert!(off.is_off() && off.look(Awaited::Request, 1, us(0)) == us(0));
    }
}
