//! Line charts as SVG: panels with labelled axes, one legend, vertical marks. What is drawn is small enough to be written
//! by hand, and a plotting crate would measure text by fonts that a server does not have.

use std::fmt::Write as _;

/// One line of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// As in the legend; the same name has the same colour in every panel.
    pub name: String,
    /// In the axes' units. A point that is not finite breaks the line.
    pub points: Vec<(f64, f64)>,
}

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal distances for equal differences.
    Linear,
    /// Equal distances for equal ratios.
    Log,
}

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What and in which unit.
    pub title: String,
    /// See there.
    pub scale: Scale,
    /// First and last value; above zero where the scale is logarithmic.
    pub range: (f64, f64),
    /// Values with a line and what stands beside it.
    pub ticks: Vec<(f64, String)>,
}

/// A moment with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// On the horizontal axis.
    pub at: f64,
    /// What happened.
    pub text: String,
}

/// One chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// Its lines.
    pub series: Vec<Series>,
    /// Vertical lines.
    pub marks: Vec<Mark>,
}

/// Colours that people with the usual colour blindnesses tell apart (Okabe and Ito), and dashes once they are used up.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const DASHES: [&str; 3] = ["", "7 3", "2 3"];

const MARGIN: f64 = 16.0;
const TITLE_HEIGHT: f64 = 52.0;
const LEGEND_ROW: f64 = 22.0;
/// Of the axes' texts around a panel's frame.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 50.0;
/// A guess at the width of a character of the text size, wide enough for any usual font.
const CHARACTER: f64 = 7.2;
/// Names of marks stand on so many lines, so that neighbours do not overlap.
const MARK_LINES: usize = 8;
const MARK_LINE: f64 = 15.0;

impl Axis {
    /// A logarithmic axis with a line for each power of ten around `values`.
    #[must_use]
    pub fn powers_of_ten(title: &str, values: impl Iterator<Item = f64>, name: fn(f64) -> String) -> Self {
        let known = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) =
            known.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let from = low.log10().floor();
        let to = high.log10().ceil().max(from + 1.0);
        let decades = (0..).map(|step| from + f64::from(step)).take_while(|power| *power <= to);
        let ticks: Vec<(f64, String)> =
            decades.map(|power| 10f64.powf(power)).map(|value| (value, name(value))).collect();
        Self { title: title.to_owned(), scale: Scale::Log, range: (10f64.powf(from), 10f64.powf(to)), ticks }
    }

    /// A linear axis from 0 to `to`, with a line at each round step.
    #[must_use]
    pub fn from_zero(title: &str, to: f64) -> Self {
        let to = if to > 0.0 { to } else { 1.0 };
        let steps = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
        let step = steps.into_iter().find(|step| to / step <= 12.0).unwrap_or(to / 10.0);
        let values = (0..).map(|number| f64::from(number) * step).take_while(|value| *value <= to);
        let ticks = values.map(|value| (value, format!("{}", (value * 10.0).round() / 10.0))).collect();
        Self { title: title.to_owned(), scale: Scale::Linear, range: (0.0, to), ticks }
    }

    /// Where in 0..1 a value lies; what is outside goes to the edge.
    fn place(&self, value: f64) -> f64 {
        let (from, to) = self.range;
        let share = match self.scale {
            Scale::Linear => (value - from) / (to - from),
            Scale::Log => (value / from).ln() / (to / from).ln(),
        };
        share.clamp(0.0, 1.0)
    }
}

/// Microseconds for people.
#[must_use]
pub fn time_text(us: f64) -> String {
    let short = |value: f64| format!("{}", (value * 100.0).round() / 100.0);
    if us < 1e3 {
        format!("{} µs", short(us))
    } else if us < 1e6 {
        format!("{} ms", short(us / 1e3))
    } else {
        format!("{} s", short(us / 1e6))
    }
}

/// A whole picture: `panels` of `width` by `height`, so many in a row.
#[must_use]
pub fn svg(
    title: &str,
    subtitle: &str,
    panels: &[Panel],
    columns: usize,
    (width, height): (f64, f64),
) -> String {
    let mut names: Vec<&str> = Vec::new();
    for series in panels.iter().flat_map(|panel| &panel.series) {
        if !names.contains(&series.name.as_str()) {
            names.push(&series.name);
        }
    }
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns);
    let whole_width = 2.0 * MARGIN + count(columns) * width;
    let (legend, legend_height) = legend(&names, whole_width - 2.0 * MARGIN);
    let above = MARGIN + TITLE_HEIGHT + legend_height;
    let whole_height = above + count(rows) * height + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole_width:.0} {whole_height:.0}\" \
         width=\"{whole_width:.0}\" height=\"{whole_height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"34\" font-size=\"20\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{MARGIN}\" y=\"54\" fill=\"#555555\">{}</text>\n\
         <g transform=\"translate({MARGIN} {})\">{legend}</g>\n",
        escaped(title),
        escaped(subtitle),
        MARGIN + TITLE_HEIGHT,
    );
    for (index, panel) in panels.iter().enumerate() {
        let x = MARGIN + count(index % columns) * width;
        let y = above + count(index / columns) * height;
        // Writing to a string does not fail.
        let _ = write!(out, "<g transform=\"translate({x:.0} {y:.0})\">");
        out.push_str(&drawn(panel, &names, (width, height)));
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// Panels and lines are few.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

fn length(text: &str) -> f64 {
    count(text.chars().count()) * CHARACTER
}

fn style(names: &[&str], name: &str) -> String {
    let at = names.iter().position(|known| *known == name).unwrap_or_default();
    let colour = COLOURS.get(at % COLOURS.len()).copied().unwrap_or_default();
    let dash = DASHES.get(at / COLOURS.len() % DASHES.len()).copied().unwrap_or_default();
    format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"")
}

/// In as many rows as it needs; and their height.
fn legend(names: &[&str], width: f64) -> (String, f64) {
    let (mut x, mut y, mut out) = (0.0, LEGEND_ROW / 2.0, String::new());
    for name in names {
        let needs = 44.0 + length(name);
        if x > 0.0 && x + needs > width {
            (x, y) = (0.0, y + LEGEND_ROW);
        }
        let _ = write!(
            out,
            "<path d=\"M{x:.1} {y:.1} h26\" {}/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            style(names, name),
            x + 32.0,
            y + 4.0,
            escaped(name)
        );
        x += needs;
    }
    (out, y + LEGEND_ROW)
}

fn drawn(panel: &Panel, names: &[&str], (width, height): (f64, f64)) -> String {
    let above = TOP + if panel.marks.is_empty() { 0.0 } else { MARK_LINE * count(MARK_LINES) };
    let (inner_width, inner_height) = (width - LEFT - RIGHT, height - above - BOTTOM);
    let x_of = |value: f64| LEFT + panel.x.place(value) * inner_width;
    let y_of = |value: f64| above + (1.0 - panel.y.place(value)) * inner_height;
    let (right, bottom) = (LEFT + inner_width, above + inner_height);
    let mut out = format!(
        "<text x=\"{LEFT}\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
        escaped(&panel.title)
    );
    for (value, text) in &panel.x.ticks {
        let x = x_of(*value);
        let _ = write!(
            out,
            "<path d=\"M{x:.1} {above:.1} V{bottom:.1}\" stroke=\"#e3e3e3\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 17.0,
            escaped(text)
        );
    }
    for (value, text) in &panel.y.ticks {
        let y = y_of(*value);
        let _ = write!(
            out,
            "<path d=\"M{LEFT:.1} {y:.1} H{right:.1}\" stroke=\"#e3e3e3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            escaped(text)
        );
    }
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{above:.1}\" width=\"{inner_width:.1}\" height=\"{inner_height:.1}\" fill=\"none\" \
         stroke=\"#888888\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333333\">{}</text>\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#333333\">{}</text>",
        LEFT + inner_width / 2.0,
        bottom + 38.0,
        escaped(&panel.x.title),
        above + inner_height / 2.0,
        escaped(&panel.y.title),
    );
    out.push_str(&marks(panel, (right, above, bottom), x_of));
    for series in &panel.series {
        let _ = writeln!(
            out,
            "<path d=\"{}\" {}/>",
            path(&series.points, x_of, y_of),
            style(names, &series.name)
        );
    }
    out
}

/// Vertical lines with their names above the frame, each on the first line that has room for it.
fn marks(panel: &Panel, (right, above, bottom): (f64, f64, f64), x_of: impl Fn(f64) -> f64) -> String {
    let mut out = String::new();
    let mut ends = [f64::MIN; MARK_LINES];
    for mark in &panel.marks {
        let (x, width) = (x_of(mark.at), length(&mark.text));
        // What would leave the picture on the right stands on the left of its line.
        let to_the_left = x + 4.0 + width > right;
        let (from, to) = if to_the_left { (x - 4.0 - width, x) } else { (x, x + 4.0 + width) };
        let with_room = ends.iter().position(|end| *end < from);
        let line = with_room.unwrap_or(MARK_LINES - 1);
        if let Some(end) = ends.get_mut(line) {
            *end = to;
        }
        let y = above - 6.0 - MARK_LINE * count(MARK_LINES - 1 - line);
        let (at, anchor) = if to_the_left { (x - 4.0, "end") } else { (x + 4.0, "start") };
        let _ = write!(
            out,
            "<path d=\"M{x:.1} {:.1} V{bottom:.1}\" stroke=\"#777777\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{at:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#333333\">{}</text>",
            y - 9.0,
            escaped(&mark.text)
        );
    }
    out.push('\n');
    out
}

fn path(points: &[(f64, f64)], x_of: impl Fn(f64) -> f64, y_of: impl Fn(f64) -> f64) -> String {
    let mut out = String::new();
    let mut pen_is_down = false;
    for (x, y) in points {
        if !x.is_finite() || !y.is_finite() {
            pen_is_down = false;
            continue;
        }
        let _ = write!(out, "{}{:.1} {:.1} ", if pen_is_down { 'L' } else { 'M' }, x_of(*x), y_of(*y));
        if !pen_is_down {
            // A point with no neighbour is seen too.
            out.push_str("h0.1 ");
        }
        pen_is_down = true;
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>) -> Panel {
        let y = Axis::powers_of_ten("latency", points.iter().map(|(_, y)| *y), time_text);
        Panel {
            title: "a & b".to_owned(),
            x: Axis::from_zero("seconds", 10.0),
            y,
            series: vec![Series { name: "ours".to_owned(), points }],
            marks: vec![Mark { at: 9.9, text: "killed".to_owned() }],
        }
    }

    #[test]
    fn axes_hold_what_is_drawn() {
        let y = Axis::powers_of_ten("t", [0.0, f64::NAN, 42.0, 1500.0].into_iter(), time_text);
        assert_eq!(y.range, (10.0, 10_000.0));
        let names: Vec<&str> = y.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["10 µs", "100 µs", "1 ms", "10 ms"]);
        assert_eq!(y.place(10.0), 0.0);
        assert!((y.place(316.227_766) - 0.5).abs() < 1e-6);
        assert_eq!(y.place(1e9), 1.0);
        assert_eq!(Axis::powers_of_ten("t", std::iter::empty(), time_text).range, (1.0, 10.0));
        assert_eq!(Axis::from_zero("s", 10.0).ticks.len(), 11);
    }

    #[test]
    fn a_picture_names_what_it_shows() {
        let drawn =
            svg("t", "s", &[panel(vec![(0.0, 50.0), (1.0, f64::NAN), (2.0, 70.0)])], 2, (500.0, 300.0));
        for expected in [
            "a &amp; b",
            ">ours<",
            ">seconds<",
            ">latency<",
            ">killed<",
            "100 µs",
            "text-anchor=\"end\" fill",
        ] {
            assert!(drawn.contains(expected), "{expected} is not in\n{drawn}");
        }
        // Two pieces: what is not known is not drawn.
        let line = drawn
            .lines()
            .find(|line| line.contains("stroke-width=\"2\"") && line.starts_with("<path"))
            .unwrap();
        assert_eq!(line.matches('M').count(), 2, "{line}");
        assert!(!drawn.contains("NaN"));
    }
}
