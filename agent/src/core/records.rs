//! What the registry said, as the core needs it: by name, and with "not known" told apart from "not there".

use std::collections::BTreeMap;

use holdfast_proto::ids::VolumeId;
use holdfast_proto::record::VolumeRecord;

/// One volume record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordState {
    /// It can be relied on.
    Readable(Box<VolumeRecord>),
    /// It is there; why nothing in it can be relied on.
    Unreadable(String),
}

/// All volume records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    /// A complete answer.
    Known(BTreeMap<String, RecordState>),
    /// No answer, and why.
    Unavailable(String),
}

/// What is known of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// Its record.
    Found(&'a VolumeRecord),
    /// A complete answer has no such record.
    Absent,
    /// Nothing, and why.
    Unknown(&'a str),
}

impl Records {
    /// The record under `name`.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Lookup<'_> {
        match self {
            Self::Unavailable(reason) => Lookup::Unknown(reason),
            Self::Known(records) => match records.get(name) {
                Some(RecordState::Readable(record)) => Lookup::Found(record),
                Some(RecordState::Unreadable(reason)) => Lookup::Unknown(reason),
                None => Lookup::Absent,
            },
        }
    }

    /// The readable records, by name.
    pub fn readable(&self) -> impl Iterator<Item = &VolumeRecord> {
        let known = match self {
            Self::Known(records) => Some(records),
            Self::Unavailable(_) => None,
        };
        known.into_iter().flat_map(BTreeMap::values).filter_map(|state| match state {
            RecordState::Readable(record) => Some(&**record),
            RecordState::Unreadable(_) => None,
        })
    }

    /// The records that cannot be relied on, by name, with the reason.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        let known = match self {
            Self::Known(records) => Some(records),
            Self::Unavailable(_) => None,
        };
        known.into_iter().flat_map(BTreeMap::iter).filter_map(|(name, state)| match state {
            RecordState::Readable(_) => None,
            RecordState::Unreadable(reason) => Some((name.as_str(), reason.as_str())),
        })
    }

    /// The readable record of this volume, whatever its name.
    #[must_use]
    pub fn by_id(&self, id: VolumeId) -> Option<&VolumeRecord> {
        self.readable().find(|record| record.id == id)
    }
}
