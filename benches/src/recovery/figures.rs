//! What was measured: named figures, one value a round, and the targets that they have.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::stats::{median, range, spread};

/// In what a figure is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// MiB.
    Mib,
    /// MiB a second.
    MibPerSec,
    /// Operations a second.
    Iops,
    /// Times a second.
    PerSec,
    /// Of a hundred.
    Percent,
    /// One over another.
    Ratio,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::Us => "µs",
            Self::Mib => "MiB",
            Self::MibPerSec => "MiB/s",
            Self::Iops => "IOPS",
            Self::PerSec => "/s",
            Self::Percent => "%",
            Self::Ratio => "",
        }
    }
    fn text(self, value: f64) -> String {
        match self {
            Self::Ratio | Self::Percent | Self::PerSec => format!("{value:.2}"),
            Self::Ms | Self::Us | Self::Mib | Self::MibPerSec | Self::Iops if value < 10.0 => {
                format!("{value:.1}")
            }
            Self::Ms | Self::Us | Self::Mib | Self::MibPerSec | Self::Iops => format!("{value:.0}"),
        }
    }
}

/// One figure of one case.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Of which case.
    pub case: &'static str,
    /// What it is.
    pub name: String,
    /// How it is counted.
    pub unit: Unit,
    /// What it ought to be, where somebody said so.
    pub target: Option<&'static str>,
    /// One a round.
    pub values: Vec<f64>,
}

/// All figures, in the order in which they first came.
#[derive(Debug, Default)]
pub struct Figures {
    all: Vec<Figure>,
    pictures: Vec<(&'static str, String)>,
}

impl Figures {
    /// Notes one value.
    pub fn note(&mut self, case: &'static str, name: impl Into<String>, unit: Unit, value: f64) {
        self.note_against(case, name, unit, None, value);
    }

    /// Notes one value of a figure that has a target.
    pub fn note_against(
        &mut self,
        case: &'static str,
        name: impl Into<String>,
        unit: Unit,
        target: Option<&'static str>,
        value: f64,
    ) {
        let name = name.into();
        eprintln!("{case}: {name} {} {}", unit.text(value), unit.name());
        match self.all.iter_mut().find(|figure| figure.case == case && figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.all.push(Figure { case, name, unit, target, values: vec![value] }),
        }
    }

    /// For programs.
    #[must_use]
    pub fn all(&self) -> &[Figure] {
        &self.all
    }

    /// Keeps a picture, as SVG.
    pub fn picture(&mut self, name: &'static str, svg: String) {
        self.pictures.push((name, svg));
    }

    /// The pictures by name.
    #[must_use]
    pub fn pictures(&self) -> &[(&'static str, String)] {
        &self.pictures
    }

    /// For people: one table a case.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut cases: Vec<&str> = self.all.iter().map(|figure| figure.case).collect();
        cases.dedup();
        cases.into_iter().map(|case| format!("{}\n\n", self.table(case))).collect()
    }

    fn table(&self, case: &str) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([case, "median", "min - max", "spread", "rounds", "target"]);
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        for figure in self.all.iter().filter(|figure| figure.case == case) {
            let values = &figure.values;
            let (Some(middle), Some((low, high))) = (median(values), range(values)) else { continue };
            let unit = figure.unit;
            table.add_row([
                Cell::new(&figure.name),
                right(format!("{} {}", unit.text(middle), unit.name()).trim_end().to_owned()),
                right(format!("{} - {}", unit.text(low), unit.text(high))),
                right(
                    spread(values)
                        .filter(|s| s.is_finite())
                        .map_or_else(String::new, |s| format!("{:.0} %", s * 100.0)),
                ),
                right(values.len().to_string()),
                Cell::new(figure.target.unwrap_or_default()),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_come_together_under_one_name() {
        let mut figures = Figures::default();
        for value in [10.0, 30.0, 20.0] {
            figures.note("pauses", "killed, qd1", Unit::Ms, value);
            figures.note_against("rebuild", "over cp", Unit::Ratio, Some("at least 0.70"), value / 100.0);
        }
        assert_eq!(figures.all().len(), 2);
        let text = figures.tables();
        for expected in ["20 ms", "10 - 30", "100 %", "0.20", "at least 0.70"] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
