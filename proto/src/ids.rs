//! The names and numbers that identify things, each a type of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is not valid: expected {expected}")]
pub struct InvalidId {
    what: &'static str,
    found: String,
    expected: &'static str,
}

const NAME_RULE: &str = "1 to 40 characters of a-z, 0-9, '-', starting and ending with a letter or digit";

fn is_name(text: &str, max: usize, extra: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes.iter().all(|b| plain(b) || *b == b'-' || extra.contains(b))
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
}

/// A volume's name: unique in its registry, part of file names and NBD export names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// A node's name: the host name unless configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

macro_rules! text_id {
    ($type:ident, $what:literal, $rule:expr, $check:expr) => {
        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { what: $what, found: text.chars().take(80).collect(), expected: $rule })
                }
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_id!(VolumeName, "volume name", NAME_RULE, |t| is_name(t, 40, b""));
text_id!(
    NodeName,
    "node name",
    "1 to 63 characters of a-z, 0-9, '-', '.', starting and ending with a letter or digit",
    |t| is_name(t, 63, b".")
);

/// A replica's number within its volume; never reused. Written `r1`, `r2`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicaId(pub u32);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}
impl FromStr for ReplicaId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.strip_prefix('r')
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0'))
            .and_then(|digits| digits.parse().ok())
            .map(ReplicaId)
            .ok_or_else(|| InvalidId {
                what: "replica id",
                found: text.chars().take(80).collect(),
                expected: "r1, r2, ...",
            })
    }
}
impl TryFrom<String> for ReplicaId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}
impl From<ReplicaId> for String {
    fn from(id: ReplicaId) -> Self {
        id.to_string()
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub Uuid);

        impl $type {
            /// A new random one.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
            /// All zeros: "none yet".
            #[must_use]
            pub const fn nil() -> Self {
                Self(Uuid::nil())
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $type {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId {
                    what: stringify!($type),
                    found: text.chars().take(80).collect(),
                    expected: "a UUID",
                })
            }
        }
    };
}
uuid_id!(
    /// A volume's identity for ever; its name may be given again to another volume.
    VolumeId
);
uuid_id!(
    /// One creation of an instance: minted once, persisted before the spawn, kept across restarts.
    InstanceUuid
);
uuid_id!(
    /// One run of a process: minted at start, so that a peer can tell a restart from a reset connection.
    ProcessUuid
);
uuid_id!(
    /// One history of a volume's data; a forced start begins a new one.
    Lineage
);
uuid_id!(
    /// One life of a registry; a registry restored from a backup gets a new one.
    Incarnation
);
uuid_id!(
    /// One boot of a node, from `/proc/sys/kernel/random/boot_id`.
    BootId
);

/// A number that only grows and that comes from outside too: it is checked before it is stored, and never wraps.
macro_rules! counter_id {
    ($type:ident) => {
        impl $type {
            /// No honest history gets so far. The tag of a frame has as many bits for an epoch.
            pub const MAX: Self = Self((1 << 60) - 1);
            /// No honest peer is so far ahead of what is known.
            pub const JUMP_MAX: u64 = 1 << 32;

            /// From outside; none: no history gets so far.
            #[must_use]
            pub fn checked(number: u64) -> Option<Self> {
                Some(Self(number)).filter(|number| *number <= Self::MAX)
            }
            /// The one after this; none: there is no higher one.
            #[must_use]
            pub fn next(self) -> Option<Self> {
                (self < Self::MAX).then(|| Self(self.0 + 1))
            }
            /// Whether this cannot have come about while `known` was the newest.
            #[must_use]
            pub fn jumps_from(self, known: Self) -> bool {
                self > Self::MAX || self.0.saturating_sub(known.0) > Self::JUMP_MAX
            }
        }
    };
}

/// Grows each time an engine takes a volume over; older ones are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

counter_id!(Generation);
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One period with a fixed set of members; grows at each change of that set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

counter_id!(Epoch);
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_are_strict() {
        for good in ["a", "demo", "db-01", &"x".repeat(40)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "é", &"x".repeat(41)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn counters_never_wrap_and_jumps_are_seen() {
        assert_eq!(Generation(7).next(), Some(Generation(8)));
        for last in [Generation::MAX, Generation(u64::MAX - 1), Generation(u64::MAX)] {
            assert_eq!(last.next(), None);
        }
        let far = Generation::JUMP_MAX;
        for (number, known, jumps) in [
            (0, 0, false),
            (5, 9, false),
            (far, 0, false),
            (far + 1, 0, true),
            (far + 1, 1, false),
            (Generation::MAX.0, Generation::MAX.0 - 1, false),
            (Generation::MAX.0 + 1, Generation::MAX.0, true),
            (u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(Generation(number).jumps_from(Generation(known)), jumps, "{number} after {known}");
        }
    }

    #[test]
    fn replica_ids_round_trip() {
        assert_eq!("r12".parse::<ReplicaId>().unwrap().to_string(), "r12");
        for bad in ["", "r", "r0", "r01", "1", "r-1", "r99999999999"] {
            assert!(bad.parse::<ReplicaId>().is_err(), "{bad}");
        }
    }
}
