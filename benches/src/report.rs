//! Samples, their summary in tables for people, and all of it in JSON for programs.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::case::{Case, Unit};
use crate::fio::Outcome;
use crate::leg::Leg;
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
    /// fio's own time per operation.
    pub fio_cpu_us_per_io: f64,
    /// The serving processes' time.
    pub cpu: Vec<ProcessCpu>,
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
            fio_cpu_us_per_io: outcome.fio_cpu_us_per_io,
            cpu,
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

/// `engine 9.1, replica 3.0 3.1 3.0`: the median of each process; then their sum.
fn cpu_text(samples: &[&Sample]) -> (String, String) {
    let Some(first) = samples.first() else { return (String::new(), String::new()) };
    let mut text = String::new();
    let mut sum = 0.0;
    let mut last_role = "";
    for (index, process) in first.cpu.iter().enumerate() {
        let each: Vec<f64> = samples.iter().filter_map(|s| s.cpu.get(index)).map(|p| p.us_per_io).collect();
        let value = median(&each).unwrap_or_default();
        sum += value;
        if process.role != last_role {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator}{}", process.role);
            last_role = &process.role;
        }
        let _ = write!(text, " {value:.1}");
    }
    (text, if first.cpu.is_empty() { String::new() } else { format!("{sum:.1}") })
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// One row a leg: rate, its spread over the rounds, latencies, processor time.
#[must_use]
pub fn case_table(samples: &[Sample], case: &Case, legs: &[Leg]) -> Table {
    let mut table = new_table(&[
        case.name,
        "median",
        "min - max",
        "spread",
        "p50 µs",
        "p99 µs",
        "servers' CPU µs/IO",
        "sum",
        "fio's CPU",
    ]);
    for leg in legs {
        let of_leg = of(samples, case, *leg);
        let rates = rates(samples, case, *leg);
        let (Some(middle), Some((low, high)), Some(share)) = (median(&rates), range(&rates), spread(&rates))
        else {
            continue;
        };
        let middle_of = |field: fn(&Sample) -> f64| {
            median(&of_leg.iter().map(|sample| field(sample)).collect::<Vec<_>>()).unwrap_or_default()
        };
        let (cpu, sum) = cpu_text(&of_leg);
        table.add_row([
            Cell::new(leg.name()),
            right(rate_text(middle, case.unit)),
            right(format!("{} - {}", rate_text(low, case.unit), rate_text(high, case.unit))),
            right(format!("{:.0} %", share * 100.0)),
            right(us_text(middle_of(|sample| sample.p50_us))),
            right(us_text(middle_of(|sample| sample.p99_us))),
            Cell::new(cpu),
            right(sum),
            right(format!("{:.1}", middle_of(|sample| sample.fio_cpu_us_per_io))),
        ]);
    }
    table
}

/// Each leg's rate over each other leg's: the median of the ratios round by round.
#[must_use]
pub fn ratio_table(samples: &[Sample], cases: &[Case], legs: &[Leg]) -> Table {
    let mut header = vec!["rate of / over"];
    let pairs = pairs(legs);
    let names: Vec<String> = pairs.iter().map(|(a, b)| format!("{} / {}", a.name(), b.name())).collect();
    header.extend(names.iter().map(String::as_str));
    let mut table = new_table(&header);
    for case in cases {
        let mut row = vec![Cell::new(case.name)];
        for (a, b) in &pairs {
            let ratio = paired_ratio(&rates(samples, case, *a), &rates(samples, case, *b));
            row.push(right(ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))));
        }
        table.add_row(row);
    }
    table
}

fn pairs(legs: &[Leg]) -> Vec<(Leg, Leg)> {
    let all = legs.iter().enumerate();
    all.flat_map(|(at, a)| legs.iter().skip(at + 1).map(move |b| (*a, *b))).collect()
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
mod tests {
    use super::*;
    use crate::case::CASES;

    fn sample(leg: Leg, round: usize, iops: f64, cpu: &[(&str, f64)]) -> Sample {
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
            fio_cpu_us_per_io: 6.0,
        };
        Sample::new(&CASES[0], leg, round, &outcome, cpu.collect(), Value::Null)
    }

    #[test]
    fn tables_hold_medians_and_paired_ratios() {
        let three = |engine| [("engine", engine), ("replica", 3.0), ("replica", 4.0)];
        let mut samples = Vec::new();
        for (round, (ours, theirs)) in
            [(40_000.0, 10_000.0), (30_000.0, 15_000.0), (50_000.0, 10_000.0)].into_iter().enumerate()
        {
            samples.push(sample(Leg::Holdfast3, round, ours, &three(9.0)));
            samples.push(sample(Leg::FileDirect, round, theirs, &[]));
        }
        let legs = [Leg::Holdfast3, Leg::FileDirect];
        let text = case_table(&samples, &CASES[0], &legs).to_string();
        for expected in ["40.0k", "30.0k - 50.0k", "50 %", "engine 9.0, replica 3.0 4.0", "16.0"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        let ratios = ratio_table(&samples, &CASES[..1], &legs).to_string();
        assert!(ratios.contains("holdfast-3 / file-direct") && ratios.contains("4.00"), "{ratios}");
        let summary = serde_json::to_value(summaries(&samples, &CASES[..1], &legs)).unwrap();
        assert_eq!(summary.pointer("/0/rate_over/0/1"), Some(&Value::from(4.0)));
        assert_eq!(summary.pointer("/0/servers_cpu_us_per_io"), Some(&Value::from(16.0)));
    }

    #[test]
    fn a_leg_without_samples_has_no_row() {
        assert_eq!(case_table(&[], &CASES[0], &[Leg::Holdfast3]).row_count(), 0);
        assert_eq!(pairs(&[Leg::Holdfast3, Leg::Holdfast1, Leg::FileDirect]).len(), 3);
    }
}
