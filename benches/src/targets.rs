//! The product's own goals, as data, and how what was measured compares. They were set for one machine with two cores and
//! one disk, three replicas on it; elsewhere they are a yardstick, not a promise.
//!
//! The *target* is what must be met; the *reach* is what the arithmetic of the parts allows.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::case::{CASES, Case};
use crate::leg::Leg;
use crate::recovery::Figure;
use crate::report::Sample;
use crate::stats::{median, spread};

/// How a goal is measured, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    /// Median time of an operation, in microseconds.
    P50(&'static str, Leg),
    /// Operations a second.
    Iops(&'static str, Leg),
    /// GiB a second.
    GibPerSec(&'static str, Leg),
    /// Microseconds of processor per operation, of the engine and all replicas.
    Cpu(&'static str, Leg),
    /// A leg's rate, times its copies, over that of another round by round, in percent.
    PercentOf(&'static str, Leg, f64, Leg),
    /// A figure of the recovery runner: its case and name, and in which unit it is told.
    Recovery(&'static str, &'static str, &'static str),
}

/// On which side of a figure the goal lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Smaller is better.
    AtMost,
    /// Larger is better.
    AtLeast,
}

impl Side {
    fn sign(self) -> char {
        match self {
            AtMost => '≤',
            AtLeast => '≥',
        }
    }
}

/// One goal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// What is measured.
    pub what: &'static str,
    /// How.
    pub measure: Measure,
    /// See there.
    pub side: Side,
    /// What must be met.
    pub target: f64,
    /// What ought to be possible.
    pub reach: f64,
}

const fn goal(what: &'static str, measure: Measure, side: Side, target: f64, reach: f64) -> Goal {
    Goal { what, measure, side, target, reach }
}

/// The disk's flush rate is what the reach of the flushing cases is; it is no number of ours.
const NO_NUMBER: f64 = f64::NAN;

use Leg::{FileDirect, Holdfast1, Holdfast3, Holdfast3Direct};
use Measure::{Cpu, GibPerSec, Iops, P50, PercentOf, Recovery};
use Side::{AtLeast, AtMost};

/// All goals.
pub const GOALS: [Goal; 17] = [
    goal("4 KiB randwrite QD1", P50("randwrite-4k-qd1", Holdfast3), AtMost, 105.0, 75.0),
    goal("4 KiB randwrite QD32", Iops("randwrite-4k-qd32", Holdfast3), AtLeast, 60e3, 90e3),
    goal("4 KiB randwrite QD128", Iops("randwrite-4k-qd128", Holdfast3), AtLeast, 80e3, 105e3),
    goal("4 KiB randread QD1", Iops("randread-4k-qd1", Holdfast3), AtLeast, 14e3, 20e3),
    goal("4 KiB randread QD32", Iops("randread-4k-qd32", Holdfast3), AtLeast, 90e3, 130e3),
    goal("128 KiB write QD16", GibPerSec("seqwrite-128k-qd16", Holdfast3), AtLeast, 1.0, 1.3),
    goal("128 KiB read QD16", GibPerSec("seqread-128k-qd16", Holdfast3), AtLeast, 2.2, 3.0),
    goal("CPU per 4 KiB write, QD32", Cpu("randwrite-4k-qd32", Holdfast3), AtMost, 20.0, 13.0),
    goal("one replica, spare cores, QD1", P50("randwrite-4k-qd1", Holdfast1), AtMost, 30.0, 20.0),
    goal("write + flush QD1", Iops("writeflush-4k-qd1", Holdfast3), AtLeast, 3e3, NO_NUMBER),
    goal("a flush every 32, QD32", Iops("writeflush-4k-qd32", Holdfast3), AtLeast, 25e3, NO_NUMBER),
    goal(
        "O_DIRECT QD32, of bare disk / 3",
        PercentOf("randwrite-4k-qd32", Holdfast3Direct, 3.0, FileDirect),
        AtLeast,
        85.0,
        95.0,
    ),
    // One heartbeat a second to each of three replicas: one wake-up to send them, one at most for each answer. A tenth more
    // is what the edges of the time that is looked at can make of it.
    goal("idle engine, wake-ups", Recovery("many", "an idle engine's wake-ups", "/s"), AtMost, 4.1, 4.1),
    goal("idle replica, wake-ups", Recovery("many", "an idle replica's wake-ups", "/s"), AtMost, 1.1, 1.1),
    goal("idle engine, RSS", Recovery("many", "an engine's memory", "MiB"), AtMost, 8.0, 4.0),
    goal("idle replica, RSS", Recovery("many", "a replica's memory", "MiB"), AtMost, 8.0, 4.0),
    goal("rebuild of 4 GiB, of cp --sparse", Recovery("rebuild", "rebuild / cp", ""), AtLeast, 0.70, 0.90),
];

/// Whether a goal is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Even what ought to be possible.
    ReachMet,
    /// What must be.
    TargetMet,
    /// Neither.
    NotMet,
    /// Not in this run.
    NotMeasured,
}

/// A goal beside what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// What is measured.
    pub what: &'static str,
    /// On which side the goal lies.
    pub side: Side,
    /// What must be met.
    pub target: f64,
    /// What ought to be possible; none: it has no number.
    pub reach: Option<f64>,
    /// Of the figures.
    pub unit: &'static str,
    /// The median over the rounds.
    pub measured: Option<f64>,
    /// Between smallest and largest, of the median.
    pub spread: Option<f64>,
    /// See there.
    pub verdict: Verdict,
    /// How to measure just this.
    pub command: String,
}

impl Measure {
    fn unit(self) -> &'static str {
        match self {
            P50(..) | Cpu(..) => "µs",
            Iops(..) => "IOPS",
            GibPerSec(..) => "GiB/s",
            PercentOf(..) => "%",
            Recovery(_, _, unit) => unit,
        }
    }

    fn command(self) -> String {
        match self {
            P50(case, leg) | Iops(case, leg) | GibPerSec(case, leg) | Cpu(case, leg) => {
                format!("-- --only {case} --legs {}", leg.name())
            }
            PercentOf(case, leg, _, other) => {
                format!("-- --only {case} --legs {},{}", leg.name(), other.name())
            }
            Recovery(case, ..) => format!("--bin recovery -- --case {case}"),
        }
    }

    fn is_recovery(self) -> bool {
        matches!(self, Recovery(..))
    }

    /// One value a round.
    fn values(self, samples: &[Sample], figures: &[Figure]) -> Vec<f64> {
        let of = |case: &str, leg: Leg, value: &dyn Fn(&Sample) -> f64| {
            let found = samples.iter().filter(|sample| sample.case == case && sample.leg == leg);
            found.map(value).collect::<Vec<f64>>()
        };
        match self {
            P50(case, leg) => of(case, leg, &|sample| sample.p50_us),
            Iops(case, leg) => of(case, leg, &|sample| sample.iops),
            GibPerSec(case, leg) => of(case, leg, &|sample| sample.bytes_per_sec / f64::from(1 << 30)),
            Cpu(case, leg) => of(case, leg, &|sample| {
                let data_path = sample.cpu.iter().filter(|one| one.role == "engine" || one.role == "replica");
                data_path.map(|process| process.us_per_io).sum()
            }),
            PercentOf(case, leg, copies, other) => {
                let (ours, bare) =
                    (of(case, leg, &|sample| sample.iops), of(case, other, &|sample| sample.iops));
                ours.iter().zip(&bare).map(|(ours, bare)| ours * copies / bare * 100.0).collect()
            }
            Recovery(case, name, _) => {
                // Figures of several sizes begin with the size: the first is the smallest.
                let found = figures.iter().find(|figure| figure.case == case && figure.name.ends_with(name));
                found.map(|figure| figure.values.clone()).unwrap_or_default()
            }
        }
    }
}

impl Goal {
    fn judge(&self, samples: &[Sample], figures: &[Figure]) -> Judged {
        let values = self.measure.values(samples, figures);
        let measured = median(&values);
        let met = |bound: f64| {
            measured.is_some_and(|value| match self.side {
                AtMost => value <= bound,
                AtLeast => value >= bound,
            })
        };
        let verdict = match measured {
            None => Verdict::NotMeasured,
            Some(_) if met(self.reach) => Verdict::ReachMet,
            Some(_) if met(self.target) => Verdict::TargetMet,
            Some(_) => Verdict::NotMet,
        };
        Judged {
            what: self.what,
            side: self.side,
            target: self.target,
            reach: Some(self.reach).filter(|reach| reach.is_finite()),
            unit: self.measure.unit(),
            measured,
            spread: spread(&values).filter(|share| share.is_finite()),
            verdict,
            command: self.measure.command(),
        }
    }
}

/// Every goal beside the samples of a macro run.
#[must_use]
pub fn of_samples(samples: &[Sample]) -> Vec<Judged> {
    GOALS.iter().map(|goal| goal.judge(samples, &[])).collect()
}

/// The goals that the recovery runner measures, beside its figures.
#[must_use]
pub fn of_figures(figures: &[Figure]) -> Vec<Judged> {
    GOALS.iter().filter(|goal| goal.measure.is_recovery()).map(|goal| goal.judge(&[], figures)).collect()
}

fn number(value: f64, unit: &str) -> String {
    let text = match value {
        value if unit == "IOPS" => format!("{:.1}k", value / 1e3),
        value if value >= 10.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    };
    if unit == "IOPS" { text } else { format!("{text} {unit}").trim_end().to_owned() }
}

/// For people. The commands are what stands behind `cargo run --release -p holdfast-benches`.
#[must_use]
pub fn table(judged: &[Judged]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["what", "target", "reach", "measured", "spread", "", "command"]);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let dash = || "-".to_owned();
    for goal in judged {
        table.add_row([
            Cell::new(goal.what),
            right(format!("{} {}", goal.side.sign(), number(goal.target, goal.unit))),
            // In the target's unit.
            right(
                goal.reach.map_or_else(dash, |reach| {
                    number(reach, if goal.unit == "IOPS" { goal.unit } else { "" })
                }),
            ),
            right(goal.measured.map_or_else(dash, |value| number(value, goal.unit))),
            right(goal.spread.map_or_else(dash, |share| format!("{:.0} %", share * 100.0))),
            Cell::new(match goal.verdict {
                Verdict::ReachMet => "reach met",
                Verdict::TargetMet => "met",
                Verdict::NotMet => "NOT MET",
                Verdict::NotMeasured => "not measured",
            }),
            Cell::new(&goal.command),
        ]);
    }
    table
}

/// The case with this name.
#[must_use]
pub fn case_named(name: &str) -> Option<Case> {
    CASES.into_iter().find(|case| case.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::{Figures, Unit};
    use crate::report::tests::sample;

    #[test]
    fn every_goal_names_a_case_and_the_reach_is_beyond_the_target() {
        for goal in GOALS {
            match goal.measure {
                P50(case, _) | Iops(case, _) | GibPerSec(case, _) | Cpu(case, _) | PercentOf(case, ..) => {
                    assert!(case_named(case).is_some(), "{case}");
                }
                Recovery(..) => {}
            }
            let beyond = match goal.side {
                AtMost => goal.reach <= goal.target,
                AtLeast => goal.reach >= goal.target,
            };
            assert!(beyond || goal.reach.is_nan(), "{}", goal.what);
        }
    }

    #[test]
    fn what_was_measured_is_judged_by_its_median() {
        let case = case_named("randwrite-4k-qd32").unwrap();
        let cpu = [("engine", 9.0), ("replica", 3.0), ("replica", 3.5), ("replica", 3.0), ("agent", 80.0)];
        let mut samples = Vec::new();
        for (round, iops) in [59e3, 61e3, 95e3].into_iter().enumerate() {
            samples.push(sample(&case, Holdfast3, round, iops, &cpu));
            samples.push(sample(&case, Holdfast3Direct, round, 20e3, &cpu));
            samples.push(sample(&case, FileDirect, round, 80e3, &[]));
        }
        let judged = of_samples(&samples);
        let found = |what: &str| judged.iter().find(|goal| goal.what == what).unwrap();
        assert_eq!(found("4 KiB randwrite QD32").verdict, Verdict::TargetMet);
        assert_eq!(found("CPU per 4 KiB write, QD32").measured, Some(18.5));
        let direct = found("O_DIRECT QD32, of bare disk / 3");
        assert_eq!((direct.measured, direct.verdict), (Some(75.0), Verdict::NotMet));
        assert_eq!(found("4 KiB randread QD1").verdict, Verdict::NotMeasured);
        let text = table(&judged).to_string();
        assert!(text.contains("NOT MET") && text.contains("--bin recovery -- --case rebuild"), "{text}");
    }

    #[test]
    fn the_recovery_runner_judges_its_own() {
        let mut figures = Figures::default();
        figures.note("rebuild", "rebuild / cp", Unit::Ratio, 0.95);
        figures.note("many", "12 instances: a replica's memory", Unit::Mib, 5.0);
        figures.note("many", "100 instances: a replica's memory", Unit::Mib, 9.0);
        let judged = of_figures(figures.all());
        let verdict = |what: &str| judged.iter().find(|goal| goal.what == what).unwrap().verdict;
        assert_eq!(verdict("rebuild of 4 GiB, of cp --sparse"), Verdict::ReachMet);
        assert_eq!(verdict("idle replica, RSS"), Verdict::TargetMet);
        assert_eq!(verdict("idle engine, RSS"), Verdict::NotMeasured);
    }
}
