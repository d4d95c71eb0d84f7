//! Fields of a record that this build does not know: kept, so that writing a record back loses nothing of a newer build's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The fields of one JSON object that this build does not know, flattened into it. Numbers beyond 64 bits are rounded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unknown(Map<String, Value>);

impl Unknown {
    /// Whether this build knows all fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
