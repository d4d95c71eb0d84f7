//! What an agent says of itself while it lives, under the name of its node, and whose that name is: one identity, one
//! agent.
//!
//! A run that finds another run's presence under its name asks it, through the registry that both reach: it writes a
//! question beside the presence, and a run that lives answers in its presence within a heartbeat. An answer ends the
//! newcomer. Without one it waits until the presence has expired, and until then starts, stops and deletes nothing.
//! Only one thing makes a question needless: the presence names the lock of the very data directory that this run
//! holds, in the same boot, so that the run before it has ended.

use holdfast_proto::ids::BootId;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use uuid::Uuid;

use super::Moment;

/// Raised when a reader of the version before would be misled.
pub const PRESENCE_SCHEMA: u32 = 1;
/// See [`PRESENCE_SCHEMA`].
pub const QUESTION_SCHEMA: u32 = 1;
/// An agent that is silent for so long does not live, as far as others know: longer than an election of etcd's or an
/// agent's restart takes.
pub const LEASE: Duration = Duration::from_secs(15);
/// A presence that stands for so long after it was first seen is kept alive by a run that answers no questions, such as
/// one of an earlier version: twice what one without a run behind it can last.
const KEPT_ALIVE_AFTER: Duration = Duration::from_secs(30);

/// An agent that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// [`PRESENCE_SCHEMA`].
    pub schema: u32,
    /// Of its data directory. A copy of the directory has the same.
    pub home: Uuid,
    /// Of this run of the agent.
    pub run: Uuid,
    /// The address by which its replicas are reached; empty: not known.
    pub address: String,
    /// The features of records that it reads ([`super::features`]); an agent from before them says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Where it runs; none: its version does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lodging: Option<Lodging>,
    /// The last question that it answers with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Uuid>,
}

impl Presence {
    /// Of an agent that says of itself what this build does not understand: it lives, and reads nothing that is new.
    #[must_use]
    pub fn not_understood() -> Self {
        let (home, run) = (Uuid::nil(), Uuid::nil());
        let (address, features) = (String::new(), Vec::new());
        Self { schema: PRESENCE_SCHEMA, home, run, address, features, lodging: None, answers: None }
    }

    /// Whether it reads records with this feature.
    #[must_use]
    pub fn reads(&self, feature: &str) -> bool {
        self.features.iter().any(|read| read == feature)
    }
}

/// Where an agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lodging {
    /// Name of the host, for people.
    pub host: String,
    /// Its process there, for people.
    pub pid: u32,
    /// Its data directory, for people.
    pub data_dir: String,
    /// Which boot of which kernel.
    pub boot: BootId,
    /// The device of the lock that it holds in its data directory.
    pub lock_device: u64,
    /// The inode of that lock.
    pub lock_inode: u64,
}

/// What a run asks the one that has its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// [`QUESTION_SCHEMA`].
    pub schema: u32,
    /// What the answer repeats.
    pub nonce: Uuid,
    /// The run that asks.
    pub run: Uuid,
    /// Where that one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lodging: Option<Lodging>,
}

/// What stands under the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// This.
    Presence(Box<Presence>),
    /// Something without a lease, which no agent writes.
    Leftover,
    /// Something with a lease that cannot be read, and why.
    NotUnderstood(String),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is this run's.
    Keep,
    /// Write this run's presence there, unless it has changed meanwhile.
    Write,
    /// Write this question, then wait.
    Ask(Box<Question>),
    /// Wait; why.
    Wait(String),
    /// End: another run has the name; which one, and what to do.
    End(String),
}

/// Whether this run may act as its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The name is this run's.
    Sure,
    /// It may be another's; why.
    Unsure(String),
    /// It is another's; which one, and what to do.
    Taken(String),
}

/// Whose the name is, as far as this run knows.
#[derive(Debug)]
pub struct Identity {
    /// What this run says of itself.
    pub mine: Presence,
    doubt: Option<Doubted>,
}

/// Another run's presence.
#[derive(Debug)]
struct Doubted {
    /// None: it cannot be read.
    run: Option<Uuid>,
    nonce: Uuid,
    since: Moment,
    asked: bool,
}

impl Identity {
    /// Before anything was found.
    #[must_use]
    pub fn new(mine: Presence) -> Self {
        Self { mine, doubt: None }
    }

    /// Judges what is found under the name. `mint` makes the number of a question.
    pub fn look(&mut self, found: &Found, now: Moment, mint: impl FnOnce() -> Uuid) -> Step {
        let other = match found {
            Found::Nothing | Found::Leftover => None,
            Found::Presence(other) if other.run == self.mine.run => {
                self.doubt = None;
                return Step::Keep;
            }
            // This run holds the lock that the other one said it held, and locks do not outlive a boot.
            Found::Presence(other) if other.lodging.is_some() && self.has_lock_of(other) => None,
            Found::Presence(other) => Some((Some(other.run), describe(other))),
            Found::NotUnderstood(why) => {
                Some((None, format!("an agent that this one does not understand ({why})")))
            }
        };
        let Some((run, who)) = other else {
            self.doubt = None;
            return Step::Write;
        };
        if self.doubt.as_ref().is_none_or(|doubt| doubt.run != run) {
            self.doubt = Some(Doubted { run, nonce: mint(), since: now, asked: false });
        }
        let copy = matches!(found, Found::Presence(other) if other.home == self.mine.home);
        let Some(doubt) = &self.doubt else { return Step::Write };
        let answered = matches!(found, Found::Presence(other) if other.answers == Some(doubt.nonce));
        let waited = now.saturating_sub(doubt.since);
        if answered || waited >= KEPT_ALIVE_AFTER {
            let remedy = if copy {
                "this data directory is a copy of the one that it uses: end this one, and give a node that is to \
                 stay another --node and a --data-dir of its own"
            } else {
                "give one of them another --node, or end that one"
            };
            return Step::End(format!("{who} lives under that name already; {remedy}"));
        }
        if doubt.asked {
            return Step::Wait(format!(
                "{who} had this node's name and has not answered yet; nothing is started, stopped or deleted until \
                 its presence has expired, {} s after it ended",
                LEASE.as_secs()
            ));
        }
        let (nonce, run, lodging) = (doubt.nonce, self.mine.run, self.mine.lodging.clone());
        Step::Ask(Box::new(Question { schema: QUESTION_SCHEMA, nonce, run, lodging }))
    }

    /// The question is written.
    pub fn asked(&mut self) {
        if let Some(doubt) = &mut self.doubt {
            doubt.asked = true;
        }
    }

    /// The registry could not be asked: a presence may have been kept without a run meanwhile.
    pub fn lost(&mut self, now: Moment) {
        if let Some(doubt) = &mut self.doubt {
            (doubt.since, doubt.asked) = (now, false);
        }
    }

    /// Whether a question is another run's and is to be answered; it is, with the next presence that is written.
    pub fn hear(&mut self, question: &Question) -> bool {
        let new = question.run != self.mine.run && self.mine.answers != Some(question.nonce);
        if new {
            self.mine.answers = Some(question.nonce);
        }
        new
    }

    fn has_lock_of(&self, other: &Presence) -> bool {
        let lock = |presence: &Presence| {
            let lodging = presence.lodging.as_ref()?;
            Some((lodging.boot, lodging.lock_device, lodging.lock_inode))
        };
        lock(&self.mine) == lock(other)
    }
}

/// A run, for people.
#[must_use]
pub fn describe(presence: &Presence) -> String {
    let run = presence.run;
    match &presence.lodging {
        Some(Lodging { host, pid, data_dir, .. }) => format!(
            "an agent (run {run}, pid {pid} on host {host}, data directory {data_dir}, its replicas are reached at {})",
            presence.address
        ),
        None => format!("an agent (run {run}, its replicas are reached at {})", presence.address),
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
