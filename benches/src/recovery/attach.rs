//! A volume is attached: how long until its first write is answered. And its record goes away: how long until what runs of
//! it is shown as unclaimed.

use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::nbd::{Client, Kind};
use super::node::{Node, WITHIN};
use super::{Figures, Plan, Unit, ms};

const CASE: &str = "attach";
const NAME: &str = "demo";

pub(super) fn run(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let node = plan.node("attach")?;
    let volume = node.create(NAME, plan.sized(1024, 64), 3)?;
    let uri = volume.uri()?.to_owned();
    for _ in 0..plan.rounds * plan.sized(5, 1) {
        node.cli(&["volume", "detach", NAME])?;
        node.cli(&["volume", "wait", NAME, "--for", "detached"])?;
        let asked = Instant::now();
        node.cli(&["volume", "attach", NAME])?;
        let said = Instant::now();
        let mut client = Client::connect(&uri).context("failed to connect to what was attached")?;
        client.call(Kind::Write, 0, &mut [0x3c; 4096])?;
        figures.note(CASE, "the command to its answer", Unit::Ms, ms(said - asked));
        figures.note(CASE, "the command to the first write answered", Unit::Ms, ms(asked.elapsed()));
        drop(client);
        node.healthy(NAME)?;
    }
    for _ in 0..plan.rounds {
        let aside = node.take_record_away(NAME)?;
        let gone = Instant::now();
        wait_claims(&node, "unclaimed")?;
        figures.note(CASE, "a record gone to unclaimed shown", Unit::Ms, ms(gone.elapsed()));
        aside.put_back()?;
        wait_claims(&node, "claimed")?;
    }
    Ok(())
}

/// Waits until every instance is shown with this claim.
fn wait_claims(node: &Node, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let said: Value = serde_json::from_str(&node.cli(&["instance", "ls", "-o", "json"])?)?;
        let instances = said["instances"].as_array().context("no list of instances")?;
        if instances.iter().all(|instance| instance["claim"] == wanted) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "not {wanted} in time: {said}");
    }
}
