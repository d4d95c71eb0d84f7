//! What this node remembers of the etcd that it uses, in a file of its own: an etcd that knows less than it did before
//! was restored from a backup, and its answers are not believed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::ids::Incarnation;
use holdfast_proto::unknown::Unknown;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::core::history::{Doubt, Known, Shown};
use crate::error::Error;
use crate::store::{Read, atomic};

const SCHEMA: u32 = 1;
/// What others write is noted no more often than this; it is a lower bound all the same.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    state: Mutex<State>,
    /// Held while the file is replaced: an earlier state never replaces a later one.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    stored: Stored,
    saved: Stored,
    saved_at: Instant,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    schema: u32,
    /// Of this data directory.
    pub(super) home: Uuid,
    pub(super) incarnation: Incarnation,
    cluster_id: u64,
    revision: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    high: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    own: i64,
    /// It went back in time, and no operator has accepted that; how it was noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Stored {
    /// After the first answer of an etcd that nothing was known of.
    pub(super) fn first(incarnation: Incarnation, known: Known) -> Self {
        let Known { cluster_id, revision, high, own } = known;
        Self {
            schema: SCHEMA,
            home: Uuid::new_v4(),
            incarnation,
            cluster_id,
            revision,
            high,
            own,
            refused: None,
            unknown: Unknown::default(),
        }
    }

    /// What answers are compared with.
    pub(super) const fn known(&self) -> Known {
        Known { cluster_id: self.cluster_id, revision: self.revision, high: self.high, own: self.own }
    }

    fn know(&mut self, known: Known) {
        (self.cluster_id, self.revision) = (known.cluster_id, known.revision);
        (self.high, self.own) = (known.high, known.own);
    }
}

/// The file in a registry's directory.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("etcd.json")
}

impl Memory {
    /// What an earlier agent left. Blocking.
    ///
    /// # Errors
    /// When the file is damaged: then nothing is known that answers could be compared with.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = path_in(dir);
        match atomic::read_json::<Stored>(&path, SCHEMA) {
            Read::Found(stored) => Ok(Some(Self::of(path, stored))),
            Read::Absent => Ok(None),
            Read::Unreadable(reason) => {
                let remedy = format!(
                    "restore that file. If it is lost, remove {} on this node: the registry is then met as if for the \
                     first time, and what it has lost since would go unnoticed here",
                    path.display()
                );
                let why = atomic::with_remedy(&path, SCHEMA, reason, &remedy);
                Err(Error::failed(format!("open the registry: {why}")))
            }
        }
    }

    /// Keeps `stored` from now on. Blocking.
    pub(super) fn begin(dir: &Path, stored: Stored) -> Result<Self, Error> {
        atomic::make_dir(dir)?;
        let path = path_in(dir);
        atomic::replace_json(&path, &stored)?;
        Ok(Self::of(path, stored))
    }

    fn of(path: PathBuf, stored: Stored) -> Self {
        let state = State { saved: stored.clone(), stored, saved_at: Instant::now() };
        Self { path, state: Mutex::new(state), writing: Mutex::default() }
    }

    /// What is known now. An answer to whatever is asked from now on is at least as new.
    pub(super) fn stored(&self) -> Stored {
        self.state.lock().stored.clone()
    }

    /// Takes in an answer to something that was asked when `asked` was known.
    ///
    /// # Errors
    /// Why it is not believed. That it went back in time is kept, and stays so whatever later answers show.
    pub(super) fn check(&self, asked: &Stored, shown: &Shown) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.stored.incarnation != asked.incarnation {
            return Err("another incarnation of the registry began meanwhile; ask again".to_owned());
        }
        if let Err(doubt) = asked.known().judge(shown) {
            if matches!(doubt, Doubt::WentBack { .. }) && state.stored.refused.is_none() {
                tracing::warn!(
                    %doubt,
                    "the registry went back in time: it is refused until `holdfast registry accept`"
                );
                state.stored.refused = Some(doubt.to_string());
            }
            return Err(doubt.to_string());
        }
        let mut known = state.stored.known();
        known.learn(shown);
        state.stored.know(known);
        Ok(())
    }

    /// Another incarnation begins, in a registry of which this is known. Blocking.
    ///
    /// # Errors
    /// When it cannot be kept: the earlier one still counts.
    pub(super) fn begin_anew(&self, incarnation: Incarnation, known: Known) -> Result<(), Error> {
        let _writing = self.writing.lock();
        let mut stored = Stored { incarnation, refused: None, ..self.stored() };
        stored.know(known);
        atomic::replace_json(&self.path, &stored)?;
        *self.state.lock() = State { saved: stored.clone(), stored, saved_at: Instant::now() };
        Ok(())
    }

    /// This node's own changes do not prove anything any more: it is about to remove what proves them. Blocking.
    pub(super) fn forget_own(&self) -> Result<(), Error> {
        self.state.lock().stored.own = 0;
        self.save(true)
    }

    /// Writes down what is known if it is time, or `now`. Blocking.
    pub(super) fn save(&self, now: bool) -> Result<(), Error> {
        let _writing = self.writing.lock();
        let stored = {
            let state = self.state.lock();
            let due =
                now || state.saved_at.elapsed() >= SAVE_EVERY || state.saved.refused != state.stored.refused;
            if !due || state.saved == state.stored {
                return Ok(());
            }
            state.stored.clone()
        };
        atomic::replace_json(&self.path, &stored)?;
        let mut state = self.state.lock();
        (state.saved, state.saved_at) = (stored, Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known { cluster_id: 7, revision: 10, high: 9, own: 8 };

    fn shown(cluster_id: u64, revision: i64) -> Shown {
        Shown { cluster_id, revision, high: None, own: None }
    }

    fn begun(dir: &Path) -> Memory {
        Memory::begin(dir, Stored::first(Incarnation::random(), KNOWN)).unwrap()
    }

    #[test]
    fn an_answer_overtaken_by_a_newer_one_is_believed() {
        let tmp = tempfile::tempdir().unwrap();
        let memory = begun(tmp.path());
        let early = memory.stored();
        assert_eq!(memory.check(&early, &shown(7, 12)), Ok(()));
        assert_eq!(memory.check(&early, &shown(7, 11)), Ok(()), "asked before the one that overtook it");
        assert!(memory.check(&memory.stored(), &shown(8, 99)).is_err());
        assert_eq!(memory.stored().refused, None, "another server's answer: its address may be wrong");
        memory.save(true).unwrap();
        let again = Memory::load(tmp.path()).unwrap().unwrap().stored();
        assert_eq!(again, Stored { revision: 12, ..early });
    }

    #[test]
    fn a_registry_that_went_back_stays_refused_over_restarts() {
        let tmp = tempfile::tempdir().unwrap();
        let memory = begun(tmp.path());
        assert!(memory.check(&memory.stored(), &shown(7, 5)).unwrap_err().contains("back in time"));
        memory.save(false).unwrap();
        drop(memory);
        let memory = Memory::load(tmp.path()).unwrap().unwrap();
        assert!(memory.stored().refused.unwrap().contains("expected revision 10"));
        // An answer that looks well does not take that back.
        memory.check(&memory.stored(), &shown(7, 5000)).unwrap();
        memory.save(true).unwrap();
        let memory = Memory::load(tmp.path()).unwrap().unwrap();
        assert!(memory.stored().refused.is_some());
        let (early, life) = (memory.stored(), Incarnation::random());
        memory.begin_anew(life, Known { revision: 6, high: 6, own: 6, ..KNOWN }).unwrap();
        assert!(memory.check(&early, &shown(7, 5)).is_err(), "asked in the life before");
        let stored = Memory::load(tmp.path()).unwrap().unwrap().stored();
        assert_eq!((stored.refused.as_ref(), stored.incarnation, stored.revision), (None, life, 6));
        assert_eq!(stored.home, early.home);
    }

    #[test]
    fn a_memory_of_an_earlier_version_is_read() {
        let tmp = tempfile::tempdir().unwrap();
        let text = r#"{"schema":1,"home":"00000000-0000-0000-0000-000000000001",
            "incarnation":"00000000-0000-0000-0000-000000000002","cluster_id":7,"revision":42}"#;
        std::fs::write(path_in(tmp.path()), text).unwrap();
        let stored = Memory::load(tmp.path()).unwrap().unwrap().stored();
        assert_eq!(stored.known(), Known { cluster_id: 7, revision: 42, high: 0, own: 0 });
    }

    #[test]
    fn golden_memory_of_0_1_0_is_read_and_grows() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/golden/data-0.1.0/registry");
        let text = std::fs::read_to_string(path_in(&golden)).unwrap();
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(path_in(tmp.path()), &text).unwrap();
        let stored = Memory::load(tmp.path()).unwrap().unwrap().stored();
        assert_eq!((stored.cluster_id, stored.revision), (14_841_639_068_965_178_418, 42));
        drop(Memory::begin(tmp.path(), stored).unwrap());
        assert_eq!(std::fs::read_to_string(path_in(tmp.path())).unwrap(), text);
        std::fs::write(path_in(tmp.path()), text.replacen('{', "{\"later\": 1,", 1)).unwrap();
        let memory = Memory::load(tmp.path()).unwrap().unwrap();
        let id = memory.stored().cluster_id;
        memory.check(&memory.stored(), &shown(id, 43)).unwrap();
        memory.save(true).unwrap();
        let text = std::fs::read_to_string(path_in(tmp.path())).unwrap();
        assert!(text.contains("\"later\": 1") && text.contains("\"revision\": 43"), "{text}");
        std::fs::write(path_in(tmp.path()), text.replacen('{', "{\"requires\": [\"tomorrow\"],", 1)).unwrap();
        let said = Memory::load(tmp.path()).unwrap_err().to_string();
        assert!(said.contains("upgrade this node's agent") && !said.contains("restore"), "{said}");
    }

    #[test]
    fn a_damaged_memory_is_refused_and_a_missing_one_is_a_first_time() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(Memory::load(tmp.path()).unwrap().is_none());
        std::fs::write(path_in(tmp.path()), "{}").unwrap();
        let said = Memory::load(tmp.path()).unwrap_err().to_string();
        assert!(said.contains("etcd.json") && said.contains("restore"), "{said}");
    }
}
