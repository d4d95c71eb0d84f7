//! Which frames of a connection have no answer yet: an answer is to one of them, and each is answered once. What else
//! comes is not of an honest replica, or not of this connection.

use std::collections::VecDeque;

const WORD_BITS: u64 = 64;

/// One bit for each frame from the oldest without an answer on.
#[derive(Debug, Clone, Default)]
pub(super) struct Unanswered {
    /// How many words have gone from the front: the first bit is of frame `gone * 64`.
    gone: u64,
    words: VecDeque<u64>,
    last: u64,
}

impl Unanswered {
    /// A frame is sent: its sequence, 1 for the first one of a connection.
    pub(super) fn sent(&mut self) -> u64 {
        self.last += 1;
        let bit = self.last % WORD_BITS;
        if self.words.is_empty() || bit == 0 {
            self.words.push_back(0);
        }
        if let Some(newest) = self.words.back_mut() {
            *newest |= 1 << bit;
        }
        self.last
    }

    /// An answer has come. False: not to a frame that was sent on this connection and not answered.
    pub(super) fn answered(&mut self, sequence: u64) -> bool {
        let place = (sequence / WORD_BITS).checked_sub(self.gone).and_then(|at| usize::try_from(at).ok());
        let Some(word) = place.and_then(|at| self.words.get_mut(at)) else { return false };
        let bit = 1 << (sequence % WORD_BITS);
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        // The newest word stays: frames are still added to it.
        while self.words.len() > 1 && self.words.front() == Some(&0) {
            self.words.pop_front();
            self.gone += 1;
        }
        true
    }

    /// The last sequence.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// How many frames lie between the oldest one without an answer and the newest.
    pub(super) fn span(&self) -> u64 {
        self.last - (self.gone * WORD_BITS).min(self.last)
    }

    /// A connection begins.
    pub(super) fn begin(&mut self) {
        self.words.clear();
        (self.gone, self.last) = (0, 0);
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
