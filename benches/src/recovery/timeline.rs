//! One load through a replica's whole misfortune: it dies, returns and catches up; then another is put in its place and
//! filled. What clients notice in each phase, and a picture of it over time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::load::{Load, Seen, Shape};
use super::node::{Node, Volume, send};
use super::watch::Watch;
use super::{Figures, Plan, Unit, let_pass, ms, prefill};
use crate::plot::{self, Axis, Mark, Panel, Series, time_text};

const CASE: &str = "pauses";
const NAME: &str = "timeline";
/// Of the picture: short enough to show a pause, long enough for a percentile.
const BIN: Duration = Duration::from_millis(100);
const PANEL: (f64, f64) = (1200.0, 500.0);

/// A stretch of time with a name.
struct Phase {
    what: &'static str,
    from: Instant,
    to: Instant,
}

pub(super) fn run(plan: &Plan, node: &Node, figures: &mut Figures) -> Result<()> {
    let size = plan.sized(1024, 256);
    prefill(node, &node.create(NAME, size, 3)?, size)?;
    let mut panels = Vec::new();
    for round in 0..plan.rounds {
        for depth in [1, 8] {
            let shape = Shape { depth, read_percent: 50, range: size << 20 };
            let panel = one(plan, node, figures, shape)?;
            // One round is enough to look at; the figures are of all.
            if round == 0 {
                panels.push(panel);
            }
        }
    }
    let subtitle = "4 KiB, half of them reads, at random places of a volume with three replicas; each point is 100 ms; a \
                    line that ends: nothing was answered";
    let title = "Latency while a replica dies, returns, and is replaced";
    figures.picture("timeline", plot::svg(title, subtitle, &panels, 1, PANEL));
    node.delete(NAME)
}

fn one(plan: &Plan, node: &Node, figures: &mut Figures, shape: Shape) -> Result<Panel> {
    let volume = node.healthy(NAME)?;
    // The first in the list is the one longest there: each has its turn, since a new one comes last.
    let victim = volume.replicas.first().context("a volume without replicas")?.clone();
    let watch = Watch::start(node, NAME)?;
    watch.until("healthy", |volume| volume.state == "healthy")?;
    let mut modes = Modes::of(&volume);
    let load = Load::start(volume.uri()?, shape)?;
    let_pass(Duration::from_secs(1));
    let quiet = Instant::now();
    let_pass(Duration::from_secs(plan.sized(5, 2)));

    let kill = Instant::now();
    modes.happened(kill, format!("{} killed", victim.id));
    send(victim.pid.context("the replica has no process")?, Signal::SIGKILL)?;
    let (degraded, _) = watch.until("degraded", |volume| modes.look(volume) && volume.state == "degraded")?;
    let (back, _) = watch.until("healthy again", |volume| modes.look(volume) && volume.state == "healthy")?;
    let_pass(Duration::from_secs(2));

    let replace = Instant::now();
    modes.happened(replace, format!("{} to be replaced", victim.id));
    node.cli(&["replica", "replace", NAME, &victim.id])?;
    let is_replaced = |volume: &Volume| {
        volume.state == "healthy" && volume.replicas.len() == 3 && volume.replica(&victim.id).is_err()
    };
    let (filled, _) = watch.until("replaced", |volume| modes.look(volume) && is_replaced(volume))?;
    let_pass(Duration::from_secs(2));
    let end = Instant::now();
    let seen = load.end()?;

    // It may catch up so fast that no report tells of it.
    let returns = modes.filling_since(&victim.id).unwrap_or(degraded);
    let phases = [
        Phase { what: "nothing happens", from: quiet, to: kill },
        Phase { what: "a replica dies", from: kill, to: returns },
        Phase { what: "it catches up", from: returns, to: back },
        Phase { what: "another is filled in its place", from: replace, to: filled },
        Phase { what: "afterwards", from: filled, to: end },
    ];
    for phase in phases {
        let (_, p99, rate) = seen.percentiles(phase.from, phase.to);
        let mut note = |what: &str, unit, value| {
            figures.note(CASE, format!("qd{}, {}: {what}", shape.depth, phase.what), unit, value);
        };
        note("longest pause", Unit::Ms, ms(seen.longest_pause(phase.from, phase.to)));
        note("p99", Unit::Us, p99);
        note("rate", Unit::Iops, rate);
        note("took", Unit::Ms, ms(phase.to - phase.from));
    }
    Ok(panel(&seen, shape, quiet, end, &modes))
}

fn panel(seen: &Seen, shape: Shape, from: Instant, to: Instant, modes: &Modes) -> Panel {
    let bins = seen.bins(from, to, BIN);
    let line = |name: &str, value: fn(&super::load::Bin) -> f64| Series {
        name: name.to_owned(),
        points: bins.iter().map(|bin| (bin.at.as_secs_f64(), value(bin))).collect(),
    };
    let series = vec![
        line("median", |bin| bin.p50_us),
        line("p99", |bin| bin.p99_us),
        line("longest", |bin| bin.max_us),
    ];
    let values = series.iter().flat_map(|series| &series.points).map(|(_, us)| *us);
    let since = |at: Instant| at.saturating_duration_since(from).as_secs_f64();
    let marks = modes.events.iter().map(|(at, text)| Mark { at: since(*at), text: text.clone() });
    Panel {
        title: format!("{} in flight", shape.depth),
        x: Axis::from_zero("seconds", (to - from).as_secs_f64()),
        y: Axis::powers_of_ten("time of an operation", values, time_text),
        marks: marks.collect(),
        series,
    }
}

/// What became of each replica, with when it was seen.
struct Modes {
    known: BTreeMap<String, String>,
    events: Vec<(Instant, String)>,
}

impl Modes {
    fn of(volume: &Volume) -> Self {
        Self { known: modes(volume), events: Vec::new() }
    }

    fn happened(&mut self, at: Instant, what: String) {
        self.events.push((at, what));
    }

    /// When a replica was first seen to be filled.
    fn filling_since(&self, id: &str) -> Option<Instant> {
        let filling = [format!("{id} catching up"), format!("{id} rebuilding")];
        self.events.iter().find(|(_, what)| filling.contains(what)).map(|(at, _)| *at)
    }

    /// Notes what is new. True, so that it fits into a condition.
    fn look(&mut self, volume: &Volume) -> bool {
        let now = modes(volume);
        let at = Instant::now();
        for (id, mode) in now.iter().filter(|(id, mode)| self.known.get(*id) != Some(mode)) {
            self.events.push((at, format!("{id} {}", mode.replace('_', " "))));
        }
        for id in self.known.keys().filter(|id| !now.contains_key(*id)) {
            self.events.push((at, format!("{id} removed")));
        }
        self.known = now;
        true
    }
}

fn modes(volume: &Volume) -> BTreeMap<String, String> {
    volume.replicas.iter().map(|replica| (replica.id.clone(), replica.mode.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(modes: &[(&str, &str)]) -> Volume {
        let replicas = modes
            .iter()
            .map(|(id, mode)| serde_json::json!({"id": id, "mode": mode, "pid": 1, "data_dir": "/d"}));
        serde_json::from_value(serde_json::json!({"name": "v", "state": "healthy", "endpoint": null,
            "engine": null, "replicas": replicas.collect::<Vec<_>>()}))
        .unwrap()
    }

    #[test]
    fn changes_are_noted_once() {
        let mut modes = Modes::of(&volume(&[("r1", "member"), ("r2", "member")]));
        for now in [[("r1", "catching_up"), ("r2", "member")], [("r1", "catching_up"), ("r3", "member")]] {
            assert!(modes.look(&volume(&now)));
        }
        let said: Vec<&str> = modes.events.iter().map(|(_, what)| what.as_str()).collect();
        assert_eq!(said, ["r1 catching up", "r3 member", "r2 removed"]);
        assert_eq!(modes.filling_since("r1"), Some(modes.events[0].0));
        assert_eq!(modes.filling_since("r3"), None);
    }
}
