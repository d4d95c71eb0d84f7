//! What readers may see. Each unit of the volume is a register: a read returns the value of a write that may be the
//! newest at some moment between the read's beginning and its end.
//!
//! Every write is a candidate from its beginning. One that has ended (answered, failed, or cut off with its engine) is
//! gone once a write that began later was answered, or a read that began later saw something else. Gone is not dead: after
//! a loss of all caches it may come back, unless a flush that began after it was gone was answered.

/// A moment in the history of clients: one more with each beginning and end.
pub type Moment = u64;

/// A write that may be seen in a unit.
#[derive(Debug, Clone)]
struct Candidate {
    write: u64,
    stamp: u64,
    began: Moment,
    /// Decided: whatever becomes of it has become of it by then.
    decided: Option<Moment>,
    gone: Option<Moment>,
    /// Gone because a read saw something else: an answer that it was done brings it back.
    by_read: bool,
    dead: bool,
}

/// All units.
#[derive(Debug)]
pub struct Registers {
    units: Vec<Vec<Candidate>>,
    now: Moment,
    /// When all caches were lost the last time.
    lost_at: Moment,
}

impl Registers {
    /// All zeros.
    #[must_use]
    pub fn new(units: usize) -> Self {
        let zero = Candidate {
            write: 0,
            stamp: 0,
            began: 0,
            decided: Some(0),
            gone: None,
            by_read: false,
            dead: false,
        };
        Self { units: vec![vec![zero]; units], now: 0, lost_at: 0 }
    }

    /// The next moment.
    pub fn moment(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A write of `stamp` begins. `oldest_read`: no read in flight began before.
    pub fn write_begins(
        &mut self,
        write: u64,
        units: std::ops::Range<usize>,
        stamp: u64,
        oldest_read: Moment,
    ) {
        let began = self.moment();
        for unit in &mut self.units[units] {
            if unit.len() > 4 {
                unit.retain(|c| !c.dead || c.gone.is_none_or(|gone| gone >= oldest_read));
            }
            unit.push(Candidate {
                write,
                stamp,
                began,
                decided: None,
                gone: None,
                by_read: false,
                dead: false,
            });
        }
    }

    /// Nothing more becomes of this write: its engine can have no more of it carried out.
    pub fn write_decided(&mut self, write: u64, units: std::ops::Range<usize>) {
        let now = self.moment();
        for unit in &mut self.units[units] {
            for candidate in unit.iter_mut().filter(|c| c.write == write) {
                candidate.decided.get_or_insert(now);
            }
        }
    }

    /// It was answered: done. `durable`: with a flush of its own.
    pub fn write_done(&mut self, write: u64, units: std::ops::Range<usize>, durable: bool) {
        let now = self.moment();
        for unit in &mut self.units[units] {
            let Some(mine) = unit.iter_mut().find(|c| c.write == write) else { continue };
            mine.decided.get_or_insert(now);
            if mine.by_read {
                mine.gone = None;
                mine.by_read = false;
            }
            let began = mine.began;
            for other in unit.iter_mut().filter(|c| c.decided.is_some_and(|at| at < began)) {
                other.gone.get_or_insert(now);
                other.by_read = false;
                other.dead |= durable;
            }
        }
    }

    /// A read that began at `began` saw this in a unit.
    ///
    /// # Errors
    /// When no register could have said so.
    pub fn read(&mut self, at: usize, began: Moment, value: u64) -> Result<(), String> {
        let now = self.moment();
        let unit = &mut self.units[at];
        let legal = |c: &Candidate| c.stamp == value && c.gone.is_none_or(|gone| gone > began);
        if !unit.iter().any(legal) {
            let possible: Vec<_> =
                unit.iter().filter(|c| c.gone.is_none_or(|gone| gone > began)).map(|c| c.stamp).collect();
            return Err(format!("unit {at}: read {value}, possible {possible:?}"));
        }
        if began < self.lost_at {
            // It may have been read before all caches were lost: what it did not see may have come back since.
            return Ok(());
        }
        for other in unit.iter_mut().filter(|c| c.stamp != value && c.gone.is_none()) {
            if other.decided.is_some_and(|at| at < began) {
                other.gone = Some(now);
                other.by_read = true;
            }
        }
        Ok(())
    }

    /// A flush that began at `began` was answered: what was gone by then never comes back.
    pub fn flushed(&mut self, began: Moment) {
        for unit in self.units.iter_mut().filter(|unit| unit.len() > 1) {
            for candidate in unit.iter_mut().filter(|c| c.gone.is_some_and(|gone| gone < began)) {
                candidate.dead = true;
            }
        }
    }

    /// Every member lost its cache: what no flush covers may be undone.
    pub fn caches_lost(&mut self) {
        self.lost_at = self.moment();
        for candidate in self.units.iter_mut().flatten().filter(|c| !c.dead) {
            candidate.gone = None;
            candidate.by_read = false;
        }
    }

    /// Which values a unit may have, for people.
    #[must_use]
    pub fn describe(&self, at: usize) -> String {
        format!("{:?}", self.units[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_sees_the_last_answered_write_or_one_under_way() {
        let mut r = Registers::new(1);
        r.write_begins(1, 0..1, 11, 0);
        let began = r.moment();
        r.read(0, began, 0).unwrap();
        r.read(0, began, 11).unwrap();
        r.write_done(1, 0..1, false);
        let later = r.moment();
        assert!(r.read(0, later, 0).is_err(), "the old value after the answer");
        r.read(0, later, 11).unwrap();
    }

    #[test]
    fn a_read_under_way_may_see_what_was_overwritten_meanwhile() {
        let mut r = Registers::new(1);
        let began = r.moment();
        r.write_begins(1, 0..1, 11, began);
        r.write_done(1, 0..1, false);
        r.read(0, began, 0).unwrap();
        let later = r.moment();
        assert!(r.read(0, later, 0).is_err());
    }

    #[test]
    fn a_read_from_before_all_caches_were_lost_says_nothing_of_what_came_back() {
        let mut r = Registers::new(1);
        r.write_begins(1, 0..1, 11, 0);
        r.write_done(1, 0..1, false);
        let before = r.moment();
        r.caches_lost();
        r.read(0, before, 11).unwrap();
        let later = r.moment();
        r.read(0, later, 0).unwrap();
    }

    #[test]
    fn an_unknown_write_is_seen_or_not_but_not_once_each() {
        let mut r = Registers::new(1);
        r.write_begins(1, 0..1, 11, 0);
        r.write_decided(1, 0..1);
        let began = r.moment();
        r.read(0, began, 0).unwrap();
        let later = r.moment();
        assert!(r.read(0, later, 11).is_err(), "it was not there, and nobody could bring it");
    }

    #[test]
    fn a_write_that_is_answered_after_all_is_there_from_then_on() {
        let mut r = Registers::new(1);
        r.write_begins(1, 0..1, 11, 0);
        r.write_decided(1, 0..1);
        let began = r.moment();
        r.read(0, began, 0).unwrap();
        r.write_done(1, 0..1, false);
        let later = r.moment();
        assert!(r.read(0, later, 0).is_err(), "answered and lost");
        r.read(0, later, 11).unwrap();
    }

    #[test]
    fn lost_caches_bring_back_what_no_flush_covered_and_nothing_else() {
        let mut r = Registers::new(2);
        for (write, units) in [(1, 0..1), (2, 1..2)] {
            r.write_begins(write, units.clone(), 10 + write, 0);
            r.write_done(write, units, false);
        }
        let flush = r.moment();
        r.write_begins(3, 1..2, 13, 0);
        r.write_done(3, 1..2, false);
        r.flushed(flush);
        r.caches_lost();
        let began = r.moment();
        assert!(r.read(0, began, 0).is_err(), "flushed");
        r.read(0, began, 11).unwrap();
        r.read(1, began, 12).unwrap();
        let later = r.moment();
        assert!(r.read(1, later, 13).is_err(), "it was seen to be undone");
    }
}
