//! Instruction counts of the block path's pure parts, against counts that are committed: a guard that no noise of the
//! machine disturbs, where times on a shared machine would.
//!
//! [`counted`] is what is counted, [`callgrind`] counts it, this file compares. Times are not what is guarded: fewer
//! instructions may be slower ones. `docs/testing.md` says how to use it.

pub mod callgrind;
pub mod counted;
mod engine;
mod nbd;

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One more than this above the committed count fails; so much below is worth a new count. A compiler's patch release and
/// another C library stay within 1 % here.
const TOLERANCE_PERCENT: u64 = 10;

/// Counts by the name of what is counted: instructions per operation.
pub type Counts = BTreeMap<String, u64>;

/// What is committed: counts, and what they were made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// As `rustc --version` says it.
    pub compiler: String,
    /// The processor's architecture.
    pub arch: String,
    /// See there.
    pub counts: Counts,
}

/// How a count compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Within the tolerance.
    Same,
    /// Above it.
    More,
    /// Below it.
    Less,
    /// Counted and not committed.
    New,
    /// Committed and not counted.
    Gone,
}

/// One line of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What is counted.
    pub name: String,
    /// The committed count.
    pub before: Option<u64>,
    /// The count now.
    pub now: Option<u64>,
    /// See there.
    pub change: Change,
}

impl Committed {
    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "# Instructions per operation, by callgrind. Written by `benches/counts --update`; docs/testing.md says \
             when.\ncompiler {}\narch {}\n",
            self.compiler, self.arch
        );
        for (name, count) in &self.counts {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} {count}");
        }
        text
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// With the line that is none of a comment, the compiler, the architecture, and a name with a count.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut read = Self { compiler: String::new(), arch: String::new(), counts: Counts::new() };
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let wrong = || format!("expected a name and a count, found {line:?}");
            let (name, value) = line.split_once(' ').ok_or_else(wrong)?;
            match name {
                "compiler" => value.clone_into(&mut read.compiler),
                "arch" => value.clone_into(&mut read.arch),
                name => {
                    let count = value.trim().parse().map_err(|_| wrong())?;
                    read.counts.insert(name.to_owned(), count);
                }
            }
        }
        Ok(read)
    }

    /// Every name that either knows, in order.
    #[must_use]
    pub fn compare(&self, now: &Counts) -> Vec<Line> {
        let mut names: Vec<&String> = self.counts.keys().chain(now.keys()).collect();
        names.sort();
        names.dedup();
        let line = |name: &String| {
            let (before, now) = (self.counts.get(name).copied(), now.get(name).copied());
            let change = match (before, now) {
                (Some(before), Some(now)) => change(before, now),
                (None, _) => Change::New,
                (Some(_), None) => Change::Gone,
            };
            Line { name: name.clone(), before, now, change }
        };
        names.into_iter().map(line).collect()
    }
}

fn change(before: u64, now: u64) -> Change {
    if now * 100 > before * (100 + TOLERANCE_PERCENT) {
        Change::More
    } else if now * 100 < before * (100 - TOLERANCE_PERCENT) {
        Change::Less
    } else {
        Change::Same
    }
}

impl Line {
    /// Whether this fails the guard.
    #[must_use]
    pub fn fails(&self) -> bool {
        match self.change {
            Change::More | Change::New | Change::Gone => true,
            Change::Same | Change::Less => false,
        }
    }

    /// What a person should know of it.
    #[must_use]
    pub fn verdict(&self) -> String {
        let (before, now) = (self.before.unwrap_or_default(), self.now.unwrap_or_default());
        match self.change {
            Change::Same => String::new(),
            Change::More => format!(
                "{} takes {now} instructions per operation, {} % more than the {before} that are committed (at most \
                 {TOLERANCE_PERCENT} % may be)",
                self.name,
                (now - before) * 100 / before.max(1)
            ),
            Change::Less => format!(
                "{} takes {now} instructions per operation, {} % fewer than the {before} that are committed: keep it \
                 so with `benches/counts --update`",
                self.name,
                (before - now) * 100 / before.max(1)
            ),
            Change::New => format!("{} is counted and not committed", self.name),
            Change::Gone => format!("{} is committed and not counted any more", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(counts: &[(&str, u64)]) -> Committed {
        let counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Committed { compiler: "rustc 1.95.0".to_owned(), arch: "x86_64".to_owned(), counts }
    }

    #[test]
    fn more_than_ten_percent_above_fails_and_below_only_hints() {
        let before = committed(&[("a", 1000), ("b", 1000), ("c", 1000), ("d", 1000), ("gone", 5)]);
        let now = committed(&[("a", 1100), ("b", 1101), ("c", 900), ("d", 899), ("new", 5)]).counts;
        let lines = before.compare(&now);
        let found: Vec<(&str, Change, bool)> =
            lines.iter().map(|line| (line.name.as_str(), line.change, line.fails())).collect();
        assert_eq!(
            found,
            [
                ("a", Change::Same, false),
                ("b", Change::More, true),
                ("c", Change::Same, false),
                ("d", Change::Less, false),
                ("gone", Change::Gone, true),
                ("new", Change::New, true),
            ]
        );
        let said = lines[1].verdict();
        assert!(said.contains("b takes 1101") && said.contains("1000"), "{said}");
        assert!(lines[3].verdict().contains("--update"));
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let written = committed(&[("nbd/write_4k", 700), ("wire/encode_request", 12)]);
        assert_eq!(Committed::parse(&written.text()), Ok(written));
        for wrong in ["name", "name x", "name -1"] {
            assert!(Committed::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// The committed file names just what is counted.
    #[test]
    fn what_is_committed_is_what_is_counted() {
        let committed = Committed::parse(include_str!("../../counts.txt")).unwrap();
        let names: Vec<&str> = committed.counts.keys().map(String::as_str).collect();
        let mut counted: Vec<&str> = counted::ALL.iter().map(|case| case.name).collect();
        counted.sort_unstable();
        assert_eq!(names, counted);
    }
}
