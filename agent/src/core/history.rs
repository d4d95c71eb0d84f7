//! Whether an answer of a shared registry belongs to the history that this node knows. One that does not comes from
//! another store, or from one that was restored to an earlier state; nothing it says is relied on then.
//!
//! A revision of the whole store tells that only until others have written so much that it is higher again. So two keys
//! are compared as well, in the same transaction: `high`, which every change of any node writes, and one that this node
//! alone writes with each of its changes. No write of another node makes up for a lost change in the latter, so that a
//! store that went back stays recognised for good.

use std::fmt;

use holdfast_proto::ids::Incarnation;
use serde::{Deserialize, Serialize};

/// Raised when a reader of the version before would be misled.
pub const ACCEPTANCE_SCHEMA: u32 = 1;
/// So many lives back an acceptance reaches: no operator restores a registry more often than that within the life of a
/// node that was away meanwhile (a guess).
const FOLLOWS_MAX: usize = 64;

/// What this node knows. Each number is a revision of the store, and only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Which store.
    pub cluster_id: u64,
    /// The newest revision seen.
    pub revision: i64,
    /// The newest change of any node that was seen; 0: none yet.
    pub high: i64,
    /// The newest change that this node made; 0: none yet.
    pub own: i64,
}

/// What an answer shows of the same. None: the answer says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Which store.
    pub cluster_id: u64,
    /// The store's revision when it answered.
    pub revision: i64,
    /// Of the last change of any node; 0: there is none.
    pub high: Option<i64>,
    /// Of the last change of this node; 0: there is none.
    pub own: Option<i64>,
}

/// Why an answer is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Another store answers.
    OtherStore {
        /// The id that this node knows.
        expected: u64,
        /// The id of the one that answers.
        found: u64,
    },
    /// The store has lost what it had.
    WentBack {
        /// What is missing.
        what: Lost,
        /// The revision that this node knows.
        expected: i64,
        /// The revision that there is; 0: none.
        found: i64,
    },
}

/// By what a loss was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The whole store is older.
    Revision,
    /// A change of some node is not there.
    Change,
    /// A change of this node is not there.
    OwnChange,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherStore { expected, found } => {
                write!(f, "it is another cluster: expected id {expected:x}, found {found:x}")
            }
            Self::WentBack { what, expected, found } => {
                let what = match what {
                    Lost::Revision => "revision",
                    Lost::Change => "the change of revision",
                    Lost::OwnChange => "this node's change of revision",
                };
                write!(f, "it went back in time: expected {what} {expected} or later, found {found}")
            }
        }
    }
}

impl Known {
    /// Judges an answer to something that was asked when this was known.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn judge(&self, shown: &Shown) -> Result<(), Doubt> {
        if shown.cluster_id != self.cluster_id {
            return Err(Doubt::OtherStore { expected: self.cluster_id, found: shown.cluster_id });
        }
        let compared = [
            (Lost::OwnChange, self.own, shown.own),
            (Lost::Change, self.high, shown.high),
            (Lost::Revision, self.revision, Some(shown.revision)),
        ];
        for (what, expected, found) in compared {
            if let Some(found) = found.filter(|found| *found < expected) {
                return Err(Doubt::WentBack { what, expected, found });
            }
        }
        Ok(())
    }

    /// Takes in an answer that was believed, in whatever order answers come.
    pub fn learn(&mut self, shown: &Shown) {
        self.revision = self.revision.max(shown.revision);
        self.high = self.high.max(shown.high.unwrap_or(0));
        self.own = self.own.max(shown.own.unwrap_or(0));
    }
}

/// An operator's word that a registry counts as it is, though it is not as agents know it. It stands beside the new
/// incarnation that began with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// [`ACCEPTANCE_SCHEMA`].
    pub schema: u32,
    /// What began.
    pub incarnation: Incarnation,
    /// What it follows, the newest first: agents that know one of these take the new one up.
    pub follows: Vec<Incarnation>,
    /// The node whose agent was told, for people.
    pub node: String,
}

impl Acceptance {
    /// Of a registry in which `found` stands, with the acceptance that began it, by a node that knows `mine`.
    #[must_use]
    pub fn new(
        incarnation: Incarnation,
        mine: Incarnation,
        found: Option<Incarnation>,
        before: Option<&Self>,
        node: String,
    ) -> Self {
        let mut follows = vec![mine];
        let earlier = before.filter(|before| Some(before.incarnation) == found);
        for other in found.into_iter().chain(earlier.into_iter().flat_map(|before| before.follows.clone())) {
            if !follows.contains(&other) {
                follows.push(other);
            }
        }
        follows.truncate(FOLLOWS_MAX);
        Self { schema: ACCEPTANCE_SCHEMA, incarnation, follows, node }
    }

    /// Whether a node that knows `mine` takes up `found`.
    #[must_use]
    pub fn leads(&self, mine: Incarnation, found: Incarnation) -> bool {
        self.incarnation == found && self.follows.contains(&mine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn life(number: u128) -> Incarnation {
        Incarnation(Uuid::from_u128(number))
    }

    #[test]
    fn an_acceptance_leads_the_nodes_of_what_it_follows_only() {
        // Restored to its first life, in which node-a knows the second.
        let accepted = Acceptance::new(life(3), life(2), Some(life(1)), None, "node-a".to_owned());
        assert!(accepted.leads(life(1), life(3)) && accepted.leads(life(2), life(3)));
        assert!(!accepted.leads(life(9), life(3)), "a registry that it knows nothing of");
        assert!(!accepted.leads(life(1), life(4)), "of another life than the one that stands there");
        let again = Acceptance::new(life(4), life(3), Some(life(3)), Some(&accepted), "node-b".to_owned());
        assert_eq!(again.follows, [life(3), life(2), life(1)]);
        let foreign = Acceptance::new(life(5), life(4), Some(life(8)), Some(&again), "node-b".to_owned());
        assert_eq!(
            foreign.follows,
            [life(4), life(8)],
            "what stood beside another life says nothing of this one"
        );
    }

    const KNOWN: Known = Known { cluster_id: 7, revision: 100, high: 90, own: 80 };

    fn shown(revision: i64, high: i64, own: i64) -> Shown {
        Shown { cluster_id: 7, revision, high: Some(high), own: Some(own) }
    }

    fn lost(shown: &Shown) -> Option<Lost> {
        match KNOWN.judge(shown) {
            Ok(()) => None,
            Err(Doubt::WentBack { what, .. }) => Some(what),
            Err(other @ Doubt::OtherStore { .. }) => panic!("{other}"),
        }
    }

    #[test]
    fn an_answer_of_the_known_history_is_believed() {
        assert_eq!(lost(&shown(100, 90, 80)), None);
        assert_eq!(lost(&shown(5000, 4000, 3000)), None);
        let silent = Shown { high: None, own: None, ..shown(100, 0, 0) };
        assert_eq!(lost(&silent), None, "what an answer does not say is no evidence");
    }

    #[test]
    fn an_older_store_is_doubted_whatever_was_written_since() {
        assert_eq!(lost(&shown(99, 90, 80)), Some(Lost::Revision));
        // Strangers have written a million times into the restored store.
        assert_eq!(lost(&shown(1_000_000, 89, 80)), Some(Lost::Change));
        // So have agents that knew nothing of what was lost.
        assert_eq!(lost(&shown(1_000_000, 999_999, 79)), Some(Lost::OwnChange));
        assert_eq!(lost(&shown(1_000_000, 999_999, 0)), Some(Lost::OwnChange), "it is not there at all");
    }

    #[test]
    fn another_store_is_doubted_first() {
        let other = Shown { cluster_id: 8, ..shown(1, 1, 1) };
        assert_eq!(KNOWN.judge(&other), Err(Doubt::OtherStore { expected: 7, found: 8 }));
    }

    #[test]
    fn what_is_known_only_grows() {
        let mut known = KNOWN;
        known.learn(&shown(120, 110, 80));
        known.learn(&Shown { cluster_id: 7, revision: 101, high: None, own: Some(101) });
        assert_eq!(known, Known { cluster_id: 7, revision: 120, high: 110, own: 101 });
    }

    #[test]
    fn a_doubt_says_what_was_expected_and_found() {
        let said = KNOWN.judge(&shown(100, 90, 12)).unwrap_err().to_string();
        assert!(said.contains("back in time") && said.contains("80") && said.contains("12"), "{said}");
    }
}
