//! Histories by hand: every kind of wrong one is found, and every odd but right one is let pass.

use std::collections::BTreeMap;

use super::{End, Entry, Kind, Value, Violation, check};

/// A history of one cell; `w`, `r`, ... are whole operations, `begin` and `end` parts of overlapping ones.
#[derive(Debug, Default)]
struct Story {
    entries: Vec<Entry>,
    next: u64,
}

const AT: u64 = 4096;

impl Story {
    fn begin(&mut self, kind: Kind) -> u64 {
        self.next += 1;
        let cells = if kind == Kind::Flush { vec![] } else { vec![AT] };
        self.entries.push(Entry::Invoke { op: self.next, kind, cells });
        self.next
    }
    fn end(&mut self, op: u64, end: End) -> &mut Self {
        self.entries.push(Entry::Return { op, end });
        self
    }
    fn write(&mut self, tag: u64) -> u64 {
        self.begin(Kind::Write { tag, fua: false })
    }
    fn done(&mut self, op: u64) -> &mut Self {
        self.end(op, End::Done(vec![]))
    }
    fn lost(&mut self, op: u64) -> &mut Self {
        self.end(op, End::Unknown)
    }
    fn w(&mut self, tag: u64) -> &mut Self {
        let op = self.write(tag);
        self.done(op)
    }
    fn fua(&mut self, tag: u64) -> &mut Self {
        let op = self.begin(Kind::Write { tag, fua: true });
        self.done(op)
    }
    /// A write without an answer.
    fn maybe(&mut self, tag: u64) -> &mut Self {
        let op = self.write(tag);
        self.lost(op)
    }
    fn zero(&mut self) -> &mut Self {
        let op = self.begin(Kind::Zero);
        self.done(op)
    }
    fn maybe_zero(&mut self) -> &mut Self {
        let op = self.begin(Kind::Zero);
        self.lost(op)
    }
    fn flush(&mut self) -> &mut Self {
        let op = self.begin(Kind::Flush);
        self.done(op)
    }
    fn r(&mut self, value: Value) -> &mut Self {
        let op = self.begin(Kind::Read);
        self.end(op, End::Done(vec![value]))
    }
    fn rt(&mut self, tag: u64) -> &mut Self {
        self.r(Value::Tag(tag))
    }
    fn rz(&mut self) -> &mut Self {
        self.r(Value::Zero)
    }
    fn cut(&mut self) -> &mut Self {
        self.entries.push(Entry::PowerCut);
        self
    }
    fn verdict(&self) -> Result<(), Vec<Violation>> {
        check(&BTreeMap::new(), &self.entries)
    }
}

#[track_caller]
fn good(tell: impl FnOnce(&mut Story)) {
    let mut story = Story::default();
    tell(&mut story);
    if let Err(wrong) = story.verdict() {
        panic!("a possible history was called wrong: {}", wrong[0]);
    }
}
#[track_caller]
fn bad(tell: impl FnOnce(&mut Story)) {
    let mut story = Story::default();
    tell(&mut story);
    let wrong = story.verdict().expect_err("an impossible history was let pass");
    assert_eq!((wrong.len(), wrong[0].cell), (1, AT));
    assert!(wrong[0].text.contains("no explanation"), "{}", wrong[0]);
}

#[test]
fn a_sequential_history_reads_what_was_written_last() {
    good(|s| {
        s.rz().w(1).rt(1).w(2).rt(2).zero().rz().w(3).rt(3).rt(3);
    });
    good(|s| {
        s.w(1).maybe(2).flush().rt(1);
    });
}

#[test]
fn a_stale_read_is_found() {
    bad(|s| {
        s.w(1).w(2).rt(1);
    });
    bad(|s| {
        s.w(1).rz();
    });
}

#[test]
fn a_read_of_what_was_never_written_is_found() {
    bad(|s| {
        s.w(1).rt(7);
    });
    bad(|s| {
        s.w(1).r(Value::Torn(5));
    });
}

#[test]
fn a_read_of_the_future_is_found() {
    bad(|s| {
        s.rt(1).w(1);
    });
}

#[test]
fn a_lost_acknowledged_write_is_found_whatever_overlaps() {
    bad(|s| {
        let slow = s.write(1);
        s.w(2).w(3).done(slow).rt(2);
    });
    good(|s| {
        let slow = s.write(1);
        s.w(2).rt(2).done(slow).rt(1);
    });
}

#[test]
fn a_value_that_was_seen_does_not_go_back() {
    // Both orders of the two writes are possible, but only one of them.
    bad(|s| {
        let (a, b) = (s.write(1), s.write(2));
        s.rt(1).rt(2).rt(1).done(a).done(b);
    });
    bad(|s| {
        let a = s.write(1);
        s.rt(1).rz().done(a);
    });
    good(|s| {
        let (a, b) = (s.write(1), s.write(2));
        s.rz().rt(1).rt(2).done(a).done(b).rt(2);
    });
}

#[test]
fn two_readers_see_one_order() {
    bad(|s| {
        let (a, b) = (s.write(1), s.write(2));
        let (x, y) = (s.begin(Kind::Read), s.begin(Kind::Read));
        s.end(x, End::Done(vec![Value::Tag(1)])).end(y, End::Done(vec![Value::Tag(2)]));
        let (x, y) = (s.begin(Kind::Read), s.begin(Kind::Read));
        s.end(x, End::Done(vec![Value::Tag(2)])).end(y, End::Done(vec![Value::Tag(1)])).rt(1).rt(2);
        s.done(a).done(b);
    });
}

#[test]
fn a_write_without_an_answer_may_be_there_later_or_never() {
    good(|s| {
        s.w(1).maybe(2).rt(1).rt(1);
    });
    good(|s| {
        s.w(1).maybe(2).rt(2).rt(2);
    });
    good(|s| {
        s.w(1).maybe(2).rt(1).rt(2).rt(2);
    });
    good(|s| {
        s.w(1).maybe(2).maybe(3).rt(2).rt(3).rt(3);
    });
}

#[test]
fn a_write_without_an_answer_stays_once_it_was_read() {
    bad(|s| {
        s.w(1).maybe(2).rt(2).rt(1);
    });
    bad(|s| {
        s.w(1).maybe_zero().rz().rt(1);
    });
}

#[test]
fn a_write_without_an_answer_does_not_land_on_a_later_one() {
    bad(|s| {
        s.w(1).maybe(2).w(3).rt(2);
    });
    bad(|s| {
        s.w(1).maybe(2).w(3).rt(3).rt(2);
    });
    bad(|s| {
        s.w(1).maybe_zero().w(3).rz();
    });
    bad(|s| {
        s.w(1).maybe(2).maybe(3).rt(3).rt(2);
    });
    // One that was sent before the loss was noticed overlaps with it.
    good(|s| {
        let lost = s.write(2);
        let later = s.write(3);
        s.lost(lost).done(later).rt(2);
    });
}

#[test]
fn trimmed_data_does_not_come_back() {
    bad(|s| {
        s.w(1).zero().rt(1);
    });
    bad(|s| {
        s.w(1).zero().rz().rt(1);
    });
    good(|s| {
        s.w(1);
        let trim = s.begin(Kind::Zero);
        s.rt(1).rz().done(trim).rz();
    });
}

#[test]
fn a_torn_cell_is_found_without_a_power_cut() {
    bad(|s| {
        s.w(1).maybe(2).r(Value::Torn(9));
    });
}

#[test]
fn flushed_writes_survive_a_power_cut() {
    bad(|s| {
        s.w(1).flush().cut().rz();
    });
    bad(|s| {
        s.fua(1).cut().rz();
    });
    bad(|s| {
        s.w(1).w(2).flush().cut().rt(1);
    });
    bad(|s| {
        s.w(1).flush().cut().r(Value::Torn(1));
    });
    bad(|s| {
        s.w(1).flush().w(2).cut().rz();
    });
    good(|s| {
        s.w(1).flush().cut().rt(1);
    });
}

#[test]
fn what_was_not_flushed_may_be_lost_torn_or_kept_but_one_of_them() {
    for left in [Value::Tag(1), Value::Tag(2), Value::Tag(3), Value::Torn(7)] {
        good(|s| {
            s.w(1).flush().w(2).w(3).cut().r(left).r(left);
        });
    }
    bad(|s| {
        s.w(1).flush().w(2).cut().rt(1).rt(2);
    });
    bad(|s| {
        s.w(1).flush().w(2).cut().r(Value::Torn(7)).r(Value::Torn(8));
    });
    bad(|s| {
        s.w(1).flush().w(2).cut().r(Value::Torn(7)).rt(2);
    });
    // Nothing was flushed since: the first cut's outcome may be undone by the next, but nothing older than a flush.
    good(|s| {
        s.w(1).cut().rt(1).cut().rz();
    });
    // A torn cell stays as it was read, over a cut that took nothing.
    good(|s| {
        s.w(1).cut().r(Value::Torn(7)).cut().r(Value::Torn(7));
    });
    bad(|s| {
        s.w(1).cut().r(Value::Torn(7)).fua(2).cut().r(Value::Torn(7));
    });
    bad(|s| {
        s.w(1).cut().w(2).flush().cut().rt(1);
    });
}

#[test]
fn a_flush_covers_what_was_answered_before_it_was_sent() {
    good(|s| {
        let flush = s.begin(Kind::Flush);
        s.w(1).done(flush).cut().rz();
    });
    good(|s| {
        s.w(1);
        let flush = s.begin(Kind::Flush);
        s.lost(flush).cut().rz();
    });
}

#[test]
fn cells_are_told_apart() {
    let entries = vec![
        Entry::Invoke { op: 1, kind: Kind::Write { tag: 1, fua: false }, cells: vec![0, 4096] },
        Entry::Return { op: 1, end: End::Done(vec![]) },
        Entry::Invoke { op: 2, kind: Kind::Read, cells: vec![0, 4096, 8192] },
        Entry::Return { op: 2, end: End::Done(vec![Value::Tag(1), Value::Zero, Value::Tag(1)]) },
    ];
    let wrong = check(&BTreeMap::new(), &entries).unwrap_err();
    assert_eq!(wrong.iter().map(|v| v.cell).collect::<Vec<_>>(), [4096, 8192]);
}

#[test]
fn a_later_part_of_a_history_begins_with_what_the_earlier_left() {
    let mut story = Story::default();
    story.rt(5).w(6).rt(6);
    check(&BTreeMap::from([(AT, Value::Tag(5))]), &story.entries).unwrap();
    check(&BTreeMap::new(), &story.entries).unwrap_err();
}
