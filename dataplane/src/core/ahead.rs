//! Which groups a sequential writer comes to next: their bits of the write-intent map are set before it does, so that it
//! does not wait at the border of each group for a page of the map to be durable. Pure.
//!
//! A bit too many costs a comparison after a crash, so they are few, and those that were not needed are taken back: when
//! the writer goes elsewhere, and when the group that it wrote last has been settled.

use std::ops::Range;

/// So many steps from a group to the next, one after the other, are no accident.
const ROW: u64 = 2;
/// At most so many groups are set ahead: 256 MiB. They are filled up again when half of them has been reached: a writer of
/// 1 GiB/s then still has 125 ms to go, and a page was seen to wait for 100 behind the write-back of what was written.
const AHEAD_MAX: u64 = 64;

/// What to do with the bits of some groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bits {
    /// Set them.
    Set(Range<u64>),
    /// Take those back that no change has come to.
    TakeBack(Range<u64>),
}

/// Follows the changes of one replica. Of several writers at once, none is sequential to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ahead {
    /// The last group that a change reached.
    last: u64,
    /// How many steps to the next group in a row, up to [`AHEAD_MAX`].
    row: u64,
    /// Set ahead.
    set: Range<u64>,
}

impl Ahead {
    /// A change of these groups, of `all` that there are, is about to be made.
    pub fn reached(&mut self, groups: &Range<u64>, all: u64) -> Option<Bits> {
        let last = groups.end.saturating_sub(1);
        // Requests may come to the border in any order.
        if last == self.last || last + 1 == self.last {
            return None;
        }
        let goes_on = groups.start <= self.last + 1 && self.last < last;
        self.last = last;
        if !goes_on {
            return self.take_back();
        }
        self.row = (self.row + 1).min(AHEAD_MAX);
        // Twice as many as it has shown.
        let ahead = (2 * self.row).min(AHEAD_MAX);
        if self.row < ROW || self.set.end > last + 1 + ahead / 2 {
            return None;
        }
        let from = self.set.end.max(last + 1);
        let end = (last + 1 + ahead).min(all);
        self.set = last + 1..end;
        (from < end).then_some(Bits::Set(from..end))
    }

    /// These groups were settled.
    pub fn settled(&mut self, is_settled: impl Fn(u64) -> bool) -> Option<Bits> {
        if is_settled(self.last) { self.take_back() } else { None }
    }

    fn take_back(&mut self) -> Option<Bits> {
        self.row = 0;
        let set = std::mem::take(&mut self.set);
        (!set.is_empty()).then_some(Bits::TakeBack(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 1000;

    fn reached(ahead: &mut Ahead, group: u64) -> Option<Bits> {
        ahead.reached(&(group..group + 1), ALL)
    }

    /// Has come from group 10 to 12.
    fn sequential() -> Ahead {
        let mut ahead = Ahead::default();
        assert_eq!(reached(&mut ahead, 10), None);
        assert_eq!(reached(&mut ahead, 11), None, "too little is known yet");
        assert_eq!(reached(&mut ahead, 12), Some(Bits::Set(13..17)));
        ahead
    }

    #[test]
    fn who_goes_on_finds_the_next_groups_set() {
        let mut ahead = sequential();
        for _ in 0..2 {
            assert_eq!(reached(&mut ahead, 12), None);
            assert_eq!(reached(&mut ahead, 11), None, "a straggler");
        }
        assert_eq!(reached(&mut ahead, 13), Some(Bits::Set(17..20)), "half of what it has shown by now");
        assert_eq!(reached(&mut ahead, 14), None);
        assert_eq!(ahead.reached(&(14..30), ALL), Some(Bits::Set(30..40)), "a long one");
    }

    #[test]
    fn the_more_it_has_shown_the_more_are_set() {
        let mut ahead = sequential();
        let mut end = 17;
        for group in 13..200 {
            match reached(&mut ahead, group) {
                Some(Bits::Set(groups)) => {
                    assert_eq!(groups.start, end);
                    end = groups.end;
                }
                other => assert_eq!(other, None),
            }
            let left = end - (group + 1);
            let shown = group - 10;
            assert!(
                (shown.min(AHEAD_MAX / 2)..=(2 * shown).min(AHEAD_MAX)).contains(&left),
                "{group}: {left}"
            );
        }
    }

    #[test]
    fn who_goes_elsewhere_needs_them_no_more() {
        for elsewhere in [0, 10, 14, 500] {
            let mut ahead = sequential();
            assert_eq!(reached(&mut ahead, elsewhere), Some(Bits::TakeBack(13..17)), "to {elsewhere}");
            assert_eq!(reached(&mut ahead, elsewhere + 1), None, "learned anew");
        }
    }

    #[test]
    fn who_has_settled_needs_them_no_more() {
        let mut ahead = sequential();
        assert_eq!(ahead.settled(|group| group == 11), None);
        assert_eq!(ahead.settled(|group| group == 12), Some(Bits::TakeBack(13..17)));
        assert_eq!(ahead.settled(|group| group == 12), None);
    }

    #[test]
    fn there_are_no_more_groups_than_there_are() {
        let mut ahead = Ahead::default();
        for group in ALL - 5..ALL {
            let bits = reached(&mut ahead, group);
            assert_eq!(bits, (group == ALL - 3).then_some(Bits::Set(ALL - 2..ALL)), "{group}");
        }
        assert_eq!(reached(&mut ahead, 0), None, "all of them were reached");
    }
}
