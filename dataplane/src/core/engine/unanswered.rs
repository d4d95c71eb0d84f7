//! Which frames of a connection have no answer yet: an answer is to one of them, and each is answered once. An honest
//! replica sends no other answer on this connection.

use std::collections::VecDeque;

use crate::units::to_u64;

const WORD_BITS: u64 = 64;

/// One bit for each frame from the oldest without an answer on.
#[derive(Debug, Clone, Default)]
pub(super) struct Unanswered {
    last: u64,
    /// The word of the last frame: the bit of a frame is its sequence modulo 64.
    newest: u64,
    /// The words before that one, the oldest first; the first has a bit set.
    older: VecDeque<u64>,
}

impl Unanswered {
    /// A frame is sent: its sequence, 1 for the first one of a connection.
    pub(super) fn sent(&mut self) -> u64 {
        self.last += 1;
        if self.last.is_multiple_of(WORD_BITS) {
            self.begin_word();
        }
        self.newest |= 1 << (self.last % WORD_BITS);
        self.last
    }

    fn begin_word(&mut self) {
        let full = std::mem::take(&mut self.newest);
        if full != 0 || !self.older.is_empty() {
            self.older.push_back(full);
        }
    }

    /// An answer has come. False: not to a frame that was sent on this connection and not answered.
    pub(super) fn answered(&mut self, sequence: u64) -> bool {
        let bit = 1 << (sequence % WORD_BITS);
        if sequence / WORD_BITS == self.last / WORD_BITS {
            let asked = self.newest & bit != 0;
            self.newest &= !bit;
            return asked;
        }
        self.answered_before(sequence, bit)
    }

    #[inline(never)]
    fn answered_before(&mut self, sequence: u64, bit: u64) -> bool {
        let back = (self.last / WORD_BITS).checked_sub(sequence / WORD_BITS);
        let at = back.and_then(|back| self.older.len().checked_sub(usize::try_from(back).ok()?));
        let Some(word) = at.and_then(|at| self.older.get_mut(at)) else { return false };
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        while self.older.front() == Some(&0) {
            self.older.pop_front();
        }
        true
    }

    /// The last sequence.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// At least how many frames lie between the oldest one without an answer and the newest, and at most 64 more.
    pub(super) fn span(&self) -> u64 {
        self.last % WORD_BITS + to_u64(self.older.len()) * WORD_BITS
    }

    /// A connection begins.
    pub(super) fn begin(&mut self) {
        self.older.clear();
        (self.last, self.newest) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unanswered_frames_are_answered_once() {
        let mut frames = Unanswered::default();
        assert!(!frames.answered(0) && !frames.answered(1), "nothing was sent");
        for sequence in 1..=200 {
            assert_eq!(frames.sent(), sequence);
        }
        for foreign in [0, 201, 256, u64::MAX] {
            assert!(!frames.answered(foreign), "{foreign}");
        }
        for sequence in (2..=200).rev() {
            assert!(frames.answered(sequence), "{sequence}");
            assert!(!frames.answered(sequence), "{sequence} again");
        }
        assert_eq!(frames.span(), 200, "the first one has none");
        assert!(frames.answered(1));
        assert!(frames.span() < 64);
        frames.begin();
        assert!(!frames.answered(1));
        assert_eq!(frames.sent(), 1);
    }

    proptest! {
        #[test]
        fn unanswered_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u64..400), 0..600)) {
            let (mut frames, mut set, mut last) = (Unanswered::default(), BTreeSet::new(), 0);
            for (send, sequence) in steps {
                if send {
                    last += 1;
                    set.insert(last);
                    prop_assert_eq!(frames.sent(), last);
                } else {
                    prop_assert_eq!(frames.answered(sequence), set.remove(&sequence));
                }
            }
        }
    }
}
