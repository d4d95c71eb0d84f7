//! Samples, their summary in tables for people, and all of it in JSON for programs.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::case::{Case, Direction, Unit};
use crate::fio::Outcome;
use crate::leg::Leg;
use crate::plot::{Axis, Panel, Scale, Series, time_text};
use crate::stats::{median, paired_ratio, range, spread};

/// Processor time of one process in one sample.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessCpu {
    /// `engine`, `replica`, `agent`.
    pub role: String,
    /// Its id.
    pub pid: i32,
    /// Microseconds per operation.
    pub us_per_io: f64,
}

/// One run of one case on one leg.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The case's name.
    pub case: &'static str,
    /// On what.
    pub leg: Leg,
    /// From 0.
    pub round: usize,
    /// Operations a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_sec: f64,
    /// Median time.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// All that fio tells, as in its JSON: percent and microseconds.
    #[serde(skip)]
    pub percentiles: Vec<(f64, f64)>,
    /// fio's own time per operation.
    pub fio_cpu_us_per_io: f64,
    /// The serving processes' time.
    pub cpu: Vec<ProcessCpu>,
    /// The share of the machine's processors that its hypervisor gave to others meanwhile, 0 to 1.
    pub stolen: f64,
    /// All that fio said.
    pub fio: Value,
}

impl Sample {
    /// A sample from what fio and the accounting gave.
    #[must_use]
    pub fn new(
        case: &Case,
        leg: Leg,
        round: usize,
        outcome: &Outcome,
        cpu: Vec<ProcessCpu>,
        stolen: f64,
        fio: Value,
    ) -> Self {
        Self {
            case: case.name,
            leg,
            round,
            iops: outcome.iops,
            bytes_per_sec: outcome.bytes_per_sec,
            p50_us: outcome.p50_us,
            p99_us: outcome.p99_us,
            p999_us: outcome.p999_us,
            percentiles: outcome.percentiles.clone(),
            fio_cpu_us_per_io: outcome.fio_cpu_us_per_io,
            cpu,
            stolen,
            fio,
        }
    }

    fn rate(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Iops => self.iops,
            Unit::Bandwidth => self.bytes_per_sec,
        }
    }
}

/// How much of the machine others had, in one line.
#[must_use]
pub fn stolen_text(samples: &[Sample]) -> String {
    let shares: Vec<f64> = samples.iter().map(|sample| sample.stolen * 100.0).collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    let middle = median(&shares).unwrap_or_default();
    format!(
        "Taken by the hypervisor for others: {middle:.0} % of the processors, {most:.0} % in the worst run."
    )
}

/// System calls of the processes of one leg under one case.
#[derive(Debug, Clone, Serialize)]
pub struct Syscalls {
    /// The case's name.
    pub case: &'static str,
    /// On what.
    pub leg: Leg,
    /// Role and calls per operation of each process.
    pub per_io: Vec<(String, f64)>,
}

/// The samples of one case on one leg, in the order of the rounds.
fn of<'a>(samples: &'a [Sample], case: &Case, leg: Leg) -> Vec<&'a Sample> {
    samples.iter().filter(|sample| sample.case == case.name && sample.leg == leg).collect()
}

fn rates(samples: &[Sample], case: &Case, leg: Leg) -> Vec<f64> {
    of(samples, case, leg).iter().map(|sample| sample.rate(case.unit)).collect()
}

fn rate_text(rate: f64, unit: Unit) -> String {
    match unit {
        Unit::Iops if rate >= 10_000.0 => format!("{:.1}k", rate / 1e3),
        Unit::Iops => format!("{rate:.0}"),
        Unit::Bandwidth => format!("{:.0} MiB/s", rate / f64::from(1 << 20)),
    }
}

fn us_text(us: f64) -> String {
    if us < 10.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

/// `engine 9.1, replica 3.0 3.1 3.0`, and the sum.
fn processes_text(each: &[(&str, f64)]) -> (String, String) {
    let mut text = String::new();
    let mut last_role = "";
    for (role, value) in each {
        if *role != last_role {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator}{role}");
            last_role = role;
        }
        let _ = write!(text, " {value:.1}");
    }
    (text, format!("{:.1}", each.iter().map(|(_, value)| value).sum::<f64>()))
}

/// Each process with the median of its processor time.
fn cpu_of<'a>(samples: &[&'a Sample]) -> Vec<(&'a str, f64)> {
    let Some(first) = samples.first() else { return Vec::new() };
    let value = |index: usize| {
        let each: Vec<f64> = samples.iter().filter_map(|s| s.cpu.get(index)).map(|p| p.us_per_io).collect();
        median(&each).unwrap_or_default()
    };
    first.cpu.iter().enumerate().map(|(index, process)| (process.role.as_str(), value(index))).collect()
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// One row a leg: rate, its spread over the rounds, how the first leg compares with it, latencies.
#[must_use]
pub fn case_table(samples: &[Sample], case: &Case, legs: &[Leg]) -> Table {
    let first = legs.first().copied();
    let over = first.map_or_else(String::new, |leg| format!("{} over it", leg.name()));
    let mut table =
        new_table(&[case.name, "median", "min - max", "spread", &over, "p50 µs", "p99 µs", "p99.9 µs"]);
    for leg in legs {
        let of_leg = of(samples, case, *leg);
        let rates_of_leg = rates(samples, case, *leg);
        let (Some(middle), Some((low, high)), Some(share)) =
            (median(&rates_of_leg), range(&rates_of_leg), spread(&rates_of_leg))
        else {
            continue;
        };
        let middle_of = |field: fn(&Sample) -> f64| {
            median(&of_leg.iter().map(|sample| field(sample)).collect::<Vec<_>>()).unwrap_or_default()
        };
        let ratio = first
            .filter(|first| first != leg)
            .and_then(|first| paired_ratio(&rates(samples, case, first), &rates_of_leg));
        table.add_row([
            Cell::new(leg.name()),
            right(rate_text(middle, case.unit)),
            right(format!("{} - {}", rate_text(low, case.unit), rate_text(high, case.unit))),
            right(format!("{:.0} %", share * 100.0)),
            right(ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))),
            right(us_text(middle_of(|sample| sample.p50_us))),
            right(us_text(middle_of(|sample| sample.p99_us))),
            right(us_text(middle_of(|sample| sample.p999_us))),
        ]);
    }
    table
}

/// What an operation costs: processor time of each serving process, and fio's own.
#[must_use]
pub fn cpu_table(samples: &[Sample], cases: &[Case], legs: &[Leg]) -> Table {
    let mut table = new_table(&["CPU µs per I/O", "leg", "servers", "sum", "fio"]);
    for case in cases {
        for leg in legs {
            let of_leg = of(samples, case, *leg);
            let each = cpu_of(&of_leg);
            let fio: Vec<f64> = of_leg.iter().map(|sample| sample.fio_cpu_us_per_io).collect();
            let Some(fio) = median(&fio) else { continue };
            let (text, sum) = processes_text(&each);
            let sum = if each.is_empty() { String::new() } else { sum };
            table.add_row([
                Cell::new(case.name),
                Cell::new(leg.name()),
                Cell::new(text),
                right(sum),
                right(format!("{fio:.1}")),
            ]);
        }
    }
    table
}

/// System calls of each serving process.
#[must_use]
pub fn syscalls_table(counted: &[Syscalls]) -> Table {
    let mut table = new_table(&["system calls per I/O", "leg", "servers", "sum"]);
    for one in counted {
        let each: Vec<(&str, f64)> = one.per_io.iter().map(|(role, calls)| (role.as_str(), *calls)).collect();
        let (text, sum) = processes_text(&each);
        table.add_row([Cell::new(one.case), Cell::new(one.leg.name()), Cell::new(text), right(sum)]);
    }
    table
}

/// One panel a case, one line a leg: the median over the rounds at each percentile that fio tells.
#[must_use]
pub fn latency_panels(samples: &[Sample], cases: &[Case], legs: &[Leg]) -> Vec<Panel> {
    let percents = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99];
    let ticks = percents.map(|percent| (rarity(percent), format!("{percent} %"))).to_vec();
    let x = Axis {
        title: "share of the operations that took no longer".to_owned(),
        scale: Scale::Log,
        range: (1.0, rarity(99.99)),
        ticks,
    };
    let panel = |case: &Case| {
        let line = |leg: &Leg| {
            let of_leg = of(samples, case, *leg);
            let known = &of_leg.first()?.percentiles;
            let at = |index: usize, percent: f64| {
                let each: Vec<f64> =
                    of_leg.iter().filter_map(|s| s.percentiles.get(index)).map(|(_, us)| *us).collect();
                (rarity(percent), median(&each).unwrap_or(f64::NAN))
            };
            let points = known.iter().enumerate().filter(|(_, (percent, _))| *percent < 99.995);
            let points = points.map(|(index, (percent, _))| at(index, *percent)).collect();
            Some(Series { name: leg.name().to_owned(), points })
        };
        let series: Vec<Series> = legs.iter().filter_map(line).collect();
        let values = series.iter().flat_map(|series| &series.points).map(|(_, us)| us.max(0.1));
        let what = match case.direction {
            Direction::WriteFlush => "time of a flush",
            Direction::Read | Direction::Write | Direction::Mixed => "time of an operation",
        };
        let y = Axis::powers_of_ten(what, values, time_text);
        Panel { title: case.name.to_owned(), x: x.clone(), y, series, marks: Vec::new() }
    };
    cases.iter().map(panel).collect()
}

/// One in how many operations is slower: what makes 90, 99 and 99.9 percent equally far apart.
fn rarity(percent: f64) -> f64 {
    100.0 / (100.0 - percent)
}

/// What a case came to on a leg.
#[derive(Debug, Serialize)]
pub struct Summary {
    case: &'static str,
    leg: Leg,
    iops: Option<f64>,
    bytes_per_sec: Option<f64>,
    spread: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    p999_us: Option<f64>,
    servers_cpu_us_per_io: Option<f64>,
    fio_cpu_us_per_io: Option<f64>,
    /// This leg's rate over that of each other leg.
    rate_over: Vec<(Leg, Option<f64>)>,
}

/// The medians of every case and leg.
#[must_use]
pub fn summaries(samples: &[Sample], cases: &[Case], legs: &[Leg]) -> Vec<Summary> {
    let one = |case: &Case, leg: Leg| {
        let of_leg = of(samples, case, leg);
        let own = rates(samples, case, leg);
        let middle = |field: fn(&Sample) -> f64| median(&of_leg.iter().map(|s| field(s)).collect::<Vec<_>>());
        Summary {
            case: case.name,
            leg,
            iops: middle(|sample| sample.iops),
            bytes_per_sec: middle(|sample| sample.bytes_per_sec),
            spread: spread(&own),
            p50_us: middle(|sample| sample.p50_us),
            p99_us: middle(|sample| sample.p99_us),
            p999_us: middle(|sample| sample.p999_us),
            servers_cpu_us_per_io: middle(|sample| sample.cpu.iter().map(|process| process.us_per_io).sum()),
            fio_cpu_us_per_io: middle(|sample| sample.fio_cpu_us_per_io),
            rate_over: legs
                .iter()
                .filter(|other| **other != leg)
                .map(|other| (*other, paired_ratio(&own, &rates(samples, case, *other))))
                .collect(),
        }
    };
    cases.iter().flat_map(|case| legs.iter().map(move |leg| one(case, *leg))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::CASES;

    pub(crate) fn sample(case: &Case, leg: Leg, round: usize, iops: f64, cpu: &[(&str, f64)]) -> Sample {
        let cpu = cpu.iter().zip(100..).map(|((role, us), pid)| ProcessCpu {
            role: (*role).to_owned(),
            pid,
            us_per_io: *us,
        });
        let outcome = Outcome {
            ios: 1.0,
            iops,
            bytes_per_sec: 0.0,
            p50_us: 50.0,
            p99_us: 99.0,
            p999_us: 999.0,
            percentiles: vec![(50.0, 50.0), (99.0, 99.0), (99.9, 999.0)],
            fio_cpu_us_per_io: 6.0,
        };
        Sample::new(case, leg, round, &outcome, cpu.collect(), 0.04, Value::Null)
    }

    #[test]
    fn tables_hold_medians_and_paired_ratios() {
        let three = |engine| [("engine", engine), ("replica", 3.0), ("replica", 4.0)];
        let mut samples = Vec::new();
        for (round, (ours, theirs)) in
            [(40_000.0, 10_000.0), (30_000.0, 15_000.0), (50_000.0, 10_000.0)].into_iter().enumerate()
        {
            samples.push(sample(&CASES[0], Leg::Holdfast3, round, ours, &three(9.0)));
            samples.push(sample(&CASES[0], Leg::FileDirect, round, theirs, &[]));
        }
        let legs = [Leg::Holdfast3, Leg::FileDirect];
        let text = case_table(&samples, &CASES[0], &legs).to_string();
        for expected in ["40.0k", "30.0k - 50.0k", "50 %", "holdfast-3 over it", "4.00", "999"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        let text = cpu_table(&samples, &CASES[..1], &legs).to_string();
        for expected in ["engine 9.0, replica 3.0 4.0", "16.0", "6.0"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        let summary = serde_json::to_value(summaries(&samples, &CASES[..1], &legs)).unwrap();
        assert_eq!(summary.pointer("/0/rate_over/0/1"), Some(&Value::from(4.0)));
        assert_eq!(summary.pointer("/0/servers_cpu_us_per_io"), Some(&Value::from(16.0)));
        let panels = latency_panels(&samples, &CASES[..1], &legs);
        assert_eq!(panels[0].series[1].points[1], (rarity(99.0), 99.0));
        assert_eq!(panels[0].series[1].name, "file-direct");
    }

    #[test]
    fn what_others_had_of_the_machine_is_said() {
        let mut two = vec![sample(&CASES[0], Leg::Holdfast3, 0, 1.0, &[]); 3];
        two[2].stolen = 0.3;
        let text = stolen_text(&two);
        assert!(text.contains(": 4 % of the processors, 30 % in the worst run"), "{text}");
    }

    #[test]
    fn a_leg_without_samples_has_no_row() {
        assert_eq!(case_table(&[], &CASES[0], &[Leg::Holdfast3]).row_count(), 0);
        assert!(latency_panels(&[], &CASES[..1], &[Leg::Holdfast3])[0].series.is_empty());
    }

    #[test]
    fn system_calls_are_told_by_process() {
        let per_io = vec![("engine".to_owned(), 0.5), ("replica".to_owned(), 1.25)];
        let one = Syscalls { case: CASES[0].name, leg: Leg::Holdfast3, per_io };
        let text = syscalls_table(&[one]).to_string();
        assert!(text.contains("engine 0.5, replica 1.2") && text.contains("1.8"), "{text}");
    }
}
