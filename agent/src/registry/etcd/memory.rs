//! What this node remembers of the etcd that it uses, in a file of its own: an etcd that knows less than it did before
//! was restored from a backup, and its answers are not believed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_proto::ids::Incarnation;
use holdfast_proto::pb::etcd as pb;
use holdfast_proto::unknown::Unknown;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

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
}

#[derive(Debug)]
struct State {
    stored: Stored,
    saved: (i64, Instant),
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
    #[serde(flatten)]
    unknown: Unknown,
}

impl Stored {
    /// After the first answer of an etcd that nothing was known of.
    pub(super) fn first(incarnation: Incarnation, header: &pb::ResponseHeader) -> Self {
        Self {
            schema: SCHEMA,
            home: Uuid::new_v4(),
            incarnation,
            cluster_id: header.cluster_id,
            revision: header.revision,
            unknown: Unknown::default(),
        }
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
                let remedy = format!("restore that file. If it is lost: {}", remedy(&path, "PREFIX"));
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
        let saved = (stored.revision, Instant::now());
        Self { path, state: Mutex::new(State { stored, saved }) }
    }

    pub(super) fn stored(&self) -> Stored {
        self.state.lock().stored.clone()
    }

    /// The newest revision known. An answer to whatever is asked from now on is at least as new.
    pub(super) fn revision(&self) -> i64 {
        self.state.lock().stored.revision
    }

    /// Takes in the header of an answer to a question that was asked when `asked_at` was the newest revision known.
    ///
    /// # Errors
    /// When the answer comes from another etcd, or from a past of this one.
    pub(super) fn check(
        &self,
        header: Option<&pb::ResponseHeader>,
        asked_at: i64,
        prefix: &str,
    ) -> Result<(), String> {
        let header = header.ok_or("the answer has no header")?;
        let mut state = self.state.lock();
        let known = state.stored.cluster_id;
        if header.cluster_id != known {
            return Err(format!(
                "it is another cluster: expected id {known:x}, found {:x}; use the servers of the one that this node \
                 belongs to. If etcd was restored or moved on purpose: {}",
                header.cluster_id,
                remedy(&self.path, prefix)
            ));
        }
        if header.revision < asked_at {
            return Err(format!(
                "it went back in time: expected revision {asked_at} or later, found {}; it was restored from a backup, \
                 or lost data. Restore the newest state there is; then {}",
                header.revision,
                remedy(&self.path, prefix)
            ));
        }
        state.stored.revision = state.stored.revision.max(header.revision);
        Ok(())
    }

    /// Writes the newest revision down if it is time, or `now`. Blocking.
    pub(super) fn save(&self, now: bool) -> Result<(), Error> {
        let stored = {
            let mut state = self.state.lock();
            let (revision, at) = state.saved;
            let due = now || at.elapsed() >= SAVE_EVERY;
            if !due || revision == state.stored.revision {
                return Ok(());
            }
            state.saved = (state.stored.revision, Instant::now());
            state.stored.clone()
        };
        atomic::replace_json(&self.path, &stored)
    }

    pub(super) fn remedy(&self, prefix: &str) -> String {
        remedy(&self.path, prefix)
    }
}

fn remedy(path: &Path, prefix: &str) -> String {
    format!(
        "stop all agents, `etcdctl del {prefix}/incarnation`, remove {} on every node, and start the agents: a new \
         incarnation begins (every replica of a volume must then be present at its next attach)",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_id: u64, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader { cluster_id, revision, ..Default::default() }
    }

    #[test]
    fn an_answer_from_the_past_or_from_elsewhere_is_not_believed() {
        let tmp = tempfile::tempdir().unwrap();
        let first = Stored::first(Incarnation::random(), &header(7, 10));
        let memory = Memory::begin(tmp.path(), first.clone()).unwrap();
        let check = |cluster, revision, asked_at| {
            memory.check(Some(&header(cluster, revision)), asked_at, "/p").map_err(|said| {
                assert!(said.contains("etcdctl del /p/incarnation") && said.contains("etcd.json"), "{said}");
            })
        };
        assert_eq!(check(7, 12, 10), Ok(()));
        assert_eq!(check(7, 11, 10), Ok(()), "it was asked before the answer that overtook it");
        assert_eq!(check(7, 11, 12), Err(()));
        assert_eq!(check(8, 99, 12), Err(()));
        assert_eq!(memory.revision(), 12);
        assert!(memory.check(None, 0, "/p").is_err());
        memory.save(true).unwrap();
        let again = Memory::load(tmp.path()).unwrap().unwrap().stored();
        assert_eq!(again, Stored { revision: 12, ..first });
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
        memory.check(Some(&header(id, 43)), 42, "/p").unwrap();
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
