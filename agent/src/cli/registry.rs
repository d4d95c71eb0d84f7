//! `holdfast registry`.

use std::io::{self, Write as _};

use holdfast_proto::pb::agent as pb;
use serde::Serialize;

use super::Global;
use super::client::{Client, ask};
use super::confirm::{Elsewhere, confirm};
use super::output::{Out, fields, table};
use crate::complaint::Complaint;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast registry show
  holdfast registry accept";

const ACCEPT_EXAMPLES: &str = "\
A registry that went back in time, was emptied, or is another one is refused: volumes that run go on, and nothing is \
started, stopped or deleted. Restore the newest state there is first. Then this shows what would be lost as far as this \
node knows, and begins a new incarnation: from then on the registry counts as it is. The agents of the other nodes take \
it up by themselves. Every replica of a volume must be present at the volume's next attach. What has no record any more \
goes on running, unclaimed, and its data stays.

Off a terminal it wants --yes, and exits with 8 without it.

Examples:
  holdfast registry show -o json | jq '.losses'
  holdfast registry accept --yes";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show where the records live, whether the registry is believed, and what it would lose if it counted
    #[command(
        after_help = "Examples:\n  holdfast registry show\n  holdfast registry show -o json | jq '.doubt'"
    )]
    Show,
    /// Let a registry that is refused count as it is: a new incarnation begins
    #[command(after_help = ACCEPT_EXAMPLES)]
    Accept {
        /// It is really meant
        #[arg(long)]
        yes: bool,
    },
}

/// `registry show`.
#[derive(Debug, Serialize)]
struct Registry<'a> {
    place: &'a str,
    incarnation: &'a str,
    found_incarnation: Option<&'a str>,
    revision: i64,
    found_revision: i64,
    believed: bool,
    doubt: Option<&'a str>,
    records: u32,
    unreadable: u32,
    losses: Vec<Loss<'a>>,
}

#[derive(Debug, Serialize)]
struct Loss<'a> {
    volume: Option<&'a str>,
    volume_id: &'a str,
    what: &'a str,
    known_by: &'a [String],
}

impl<'a> From<&'a pb::RegistryInfo> for Registry<'a> {
    fn from(info: &'a pb::RegistryInfo) -> Self {
        let losses = info.losses.iter().map(|loss| Loss {
            volume: some(&loss.volume),
            volume_id: &loss.volume_id,
            what: &loss.what,
            known_by: &loss.known_by,
        });
        Self {
            place: &info.place,
            incarnation: &info.incarnation,
            found_incarnation: some(&info.found_incarnation),
            revision: info.revision,
            found_revision: info.found_revision,
            believed: info.doubt.is_none(),
            doubt: info.doubt.as_deref(),
            records: info.records,
            unreadable: info.unreadable,
            losses: losses.collect(),
        }
    }
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(super) async fn run(command: &Command, global: &Global, out: &Out) -> Result<(), Complaint> {
    let client = Client::connect(global).await?;
    let request = pb::ShowRegistryRequest {};
    let info = ask("look at the registry", client.registry().show(request)).await?;
    let yes = match command {
        Command::Show => return out.show(&Registry::from(&info), || describe(&info)),
        Command::Accept { yes } => *yes,
    };
    if info.doubt.is_none() {
        return out.show(&Registry::from(&info), || {
            format!("the registry is believed: there is nothing to accept\n{}", describe(&info))
        });
    }
    if !yes {
        // Whether anybody reads it is not known here: the question below is what must be asked.
        let _ = writeln!(io::stderr(), "{}", describe(&info));
    }
    confirm(&would_lose(&info), yes, Elsewhere::WantsYes)?;
    let request = pb::AcceptRegistryRequest { shown_incarnation: info.found_incarnation };
    let info = ask("accept the registry", client.registry().accept(request)).await?;
    out.show(&Registry::from(&info), || {
        format!("incarnation {} has begun; the other nodes take it up by themselves", info.incarnation)
    })
}

/// What accepting it does, after it was shown to whom is asked.
fn would_lose(info: &pb::RegistryInfo) -> String {
    format!(
        "the registry would count as it is; as far as this node knows it has lost something of {} volumes",
        info.losses.len()
    )
}

fn describe(info: &pb::RegistryInfo) -> String {
    let believed = match &info.doubt {
        None => "yes".to_owned(),
        Some(doubt) => format!("no: {doubt}"),
    };
    let mut text = fields([
        ("registry", info.place.clone()),
        ("believed", believed),
        ("incarnation", info.incarnation.clone()),
        ("records", info.records.to_string()),
    ]);
    if info.doubt.is_none() {
        return text;
    }
    let found = some(&info.found_incarnation).unwrap_or("none");
    text.push_str(&fields([
        ("found there", format!("incarnation {found}, revision {}", info.found_revision)),
        ("known here", format!("revision {}", info.revision)),
    ]));
    if info.losses.is_empty() {
        text.push_str("As far as this node knows, nothing of a volume is lost.\n");
        return text;
    }
    text.push_str("If it counts as it is, this is lost as far as this node knows:\n");
    let rows = info.losses.iter().map(|loss| {
        let name = some(&loss.volume).unwrap_or(&loss.volume_id).to_owned();
        [name, loss.what.clone(), loss.known_by.join(", ")]
    });
    text.push_str(&table(["VOLUME", "LOST", "KNOWN BY"], rows));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_shown_before_it_is_accepted() {
        let mut info = pb::RegistryInfo {
            place: "etcd://10.0.0.1:2379/hf".into(),
            incarnation: "one".into(),
            found_incarnation: "one".into(),
            revision: 90,
            found_revision: 40,
            doubt: Some("it went back in time".into()),
            records: 1,
            unreadable: 0,
            losses: vec![pb::RegistryLoss {
                volume: "db".into(),
                volume_id: "id".into(),
                what: "it has no record".into(),
                known_by: vec!["db.engine on this node".into()],
            }],
        };
        let said = describe(&info);
        for part in
            ["no: it went back in time", "revision 40", "db", "it has no record", "db.engine on this node"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(would_lose(&info).contains("1 volumes"));
        let json = serde_json::to_value(Registry::from(&info)).unwrap();
        assert_eq!((&json["believed"], &json["losses"][0]["volume"]), (&false.into(), &"db".into()));
        info.doubt = None;
        assert!(!describe(&info).contains("lost"));
    }
}
