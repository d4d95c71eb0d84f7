//! What `-o json` shows, by name: the names and shapes that scripts rely on.

use std::path::PathBuf;

use serde_json::Value;

/// `volume show -o json`.
#[derive(Debug, Clone)]
pub struct Volume(pub Value);

/// One of its replicas.
#[derive(Debug, Clone)]
pub struct Replica(pub Value);

/// One entry of `instance ls -o json`.
#[derive(Debug, Clone)]
pub struct Instance(pub Value);

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("expected text in {key}: {value}")).to_owned()
}
fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("expected a number in {key}: {value}"))
}
fn pid(value: &Value) -> Option<i32> {
    value["pid"].as_i64().map(|pid| i32::try_from(pid).expect("process numbers are small"))
}

impl Volume {
    /// Its UUID.
    #[must_use]
    pub fn id(&self) -> String {
        text(&self.0, "id")
    }
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        text(&self.0, "name")
    }
    /// `healthy`, `degraded`, ...
    #[must_use]
    pub fn state(&self) -> String {
        text(&self.0, "state")
    }
    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        number(&self.0, "size_bytes")
    }
    /// The engine's generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        number(&self.0, "generation")
    }
    /// The view's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        number(&self.0, "epoch")
    }
    /// The NBD URI, once I/O can start.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        self.0["endpoint"].as_str().map(str::to_owned)
    }
    /// The engine's process.
    #[must_use]
    pub fn engine_pid(&self) -> Option<i32> {
        pid(&self.0["engine"])
    }
    /// The engine's instance name.
    ///
    /// # Panics
    /// When there is no engine.
    #[must_use]
    pub fn engine_instance(&self) -> String {
        text(&self.0["engine"], "instance")
    }
    /// Its replicas.
    ///
    /// # Panics
    /// When the key is missing.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        let list = self.0["replicas"].as_array().unwrap_or_else(|| panic!("no replicas: {}", self.0));
        list.iter().cloned().map(Replica).collect()
    }
    /// The replica `r1`, ...
    ///
    /// # Panics
    /// When it has none of that id.
    #[must_use]
    pub fn replica(&self, id: &str) -> Replica {
        let found = self.replicas().into_iter().find(|r| r.id() == id);
        found.unwrap_or_else(|| panic!("no replica {id}: {}", self.0))
    }
    /// The images of all replicas.
    #[must_use]
    pub fn images(&self) -> Vec<PathBuf> {
        self.replicas().iter().map(|r| r.data_dir().join("head.img")).collect()
    }
    /// Engine and replicas that run, the engine first.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.engine_pid().into_iter().chain(self.replicas().iter().filter_map(Replica::pid)).collect()
    }
    /// How many replicas are members.
    #[must_use]
    pub fn members(&self) -> usize {
        self.replicas().iter().filter(|r| r.mode() == "member").count()
    }
}

impl Replica {
    /// `r1`, ...
    #[must_use]
    pub fn id(&self) -> String {
        text(&self.0, "id")
    }
    /// `member`, `absent`, ...; empty where it is null.
    #[must_use]
    pub fn mode(&self) -> String {
        self.0["mode"].as_str().unwrap_or_default().to_owned()
    }
    /// Why it is in this mode; empty where that is null.
    #[must_use]
    pub fn reason(&self) -> String {
        self.0["reason"].as_str().unwrap_or_default().to_owned()
    }
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        pid(&self.0)
    }
    /// `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        self.0["address"].as_str().map(str::to_owned)
    }
    /// Where its data is.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(text(&self.0, "data_dir"))
    }
    /// What fillings have sent to it since its engine began.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        number(&self.0, "copied_bytes")
    }
}

impl Instance {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        text(&self.0, "name")
    }
    /// The UUID of its creation.
    #[must_use]
    pub fn uuid(&self) -> String {
        text(&self.0, "uuid")
    }
    /// `engine` or `replica`.
    #[must_use]
    pub fn kind(&self) -> String {
        text(&self.0, "kind")
    }
    /// The volume it serves; empty where that is null.
    #[must_use]
    pub fn volume(&self) -> String {
        self.0["volume"].as_str().unwrap_or_default().to_owned()
    }
    /// `pending`, `running`, ...
    #[must_use]
    pub fn state(&self) -> String {
        text(&self.0, "state")
    }
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        pid(&self.0)
    }
    /// How often it was started again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        number(&self.0, "restarts")
    }
    /// `claimed`, `unclaimed`, `unknown`.
    #[must_use]
    pub fn claim(&self) -> String {
        text(&self.0, "claim")
    }
    /// Why, where the state needs a reason.
    #[must_use]
    pub fn reason(&self) -> String {
        self.0["reason"].as_str().unwrap_or_default().to_owned()
    }
}
