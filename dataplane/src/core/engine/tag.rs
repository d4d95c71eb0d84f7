//! What a frame's tag says: which operation, which attempt and which part of it a reply belongs to.

/// Identifies an operation; one that has ended is never mistaken for its successor in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpId {
    /// Its place in the table: what a shell indexes its own tables by.
    pub slot: u32,
    /// Which of the operations that had this place.
    pub serial: u32,
}

/// Which part of an operation a frame does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
#[repr(u8)]
pub(super) enum Part {
    Main = 0,
    Head = 1,
    Tail = 2,
}

const SERIAL_BITS: u32 = 24;
/// Serials wrap here; by then the replies to the first are long gone.
pub(super) const SERIAL_MASK: u32 = (1 << SERIAL_BITS) - 1;
/// A table this large is far beyond what frontends admit.
pub(super) const SLOTS_MAX: usize = 1 << 20;

/// A decoded tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Op {
        op: OpId,
        attempt: u8,
        part: Part,
    },
    Ping,
    View {
        epoch: u64,
    },
    /// A view that says of a replica that it lacks everything.
    Refill,
    /// The committed view again, with a settling round.
    Round {
        round: u64,
    },
    /// The committed view again, with the stamp of a replica that is being filled.
    Progress,
}

const PING: u64 = 1 << 63;
const VIEW: u64 = 1 << 62;
const REFILL: u64 = VIEW | (1 << 61);
const PROGRESS: u64 = REFILL | 1;
const ROUND: u64 = VIEW | (1 << 60);
const ROUND_MASK: u64 = (1 << 60) - 1;

impl Tag {
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Ping => PING,
            Self::Refill => REFILL,
            Self::Progress => PROGRESS,
            Self::Round { round } => ROUND | (round & ROUND_MASK),
            Self::View { epoch } => VIEW | (epoch & (VIEW - 1)),
            Self::Op { op, attempt, part } => {
                (u64::from(op.serial & SERIAL_MASK) << 38)
                    | (u64::from(op.slot) << 16)
                    | (u64::from(attempt) << 8)
                    | u64::from(part as u8)
            }
        }
    }

    pub(super) fn decode(tag: u64) -> Option<Self> {
        // Below these bits there are only operations, which nearly all frames belong to.
        if tag < VIEW {
            return Self::decode_op(tag);
        }
        if tag & PING != 0 {
            return Some(Self::Ping);
        }
        if tag == REFILL {
            return Some(Self::Refill);
        }
        if tag == PROGRESS {
            return Some(Self::Progress);
        }
        if tag & !ROUND_MASK == ROUND {
            return Some(Self::Round { round: tag & ROUND_MASK });
        }
        Some(Self::View { epoch: tag & (VIEW - 1) })
    }

    fn decode_op(tag: u64) -> Option<Self> {
        let [part, attempt, ..] = tag.to_le_bytes();
        let part = match part {
            0 => Part::Main,
            1 => Part::Head,
            2 => Part::Tail,
            _ => return None,
        };
        let serial = u32::try_from(tag >> 38).ok()?;
        let slot = u32::try_from((tag >> 16) & 0x3f_ffff).ok()?;
        Some(Self::Op { op: OpId { slot, serial }, attempt, part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_round_trip() {
        for tag in [
            Tag::Ping,
            Tag::View { epoch: 77 },
            Tag::Refill,
            Tag::Progress,
            Tag::Round { round: 0 },
            Tag::Round { round: 9 },
            Tag::Op { op: OpId { slot: 0xf_ffff, serial: SERIAL_MASK }, attempt: 255, part: Part::Tail },
            Tag::Op { op: OpId { slot: 0, serial: 0 }, attempt: 0, part: Part::Main },
        ] {
            assert_eq!(Tag::decode(tag.encode()), Some(tag));
        }
        assert_eq!(Tag::decode(9), None);
    }
}
