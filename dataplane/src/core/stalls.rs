//! Which client is dropped because it takes no replies while others wait for the memory that they stand in: pure.
//!
//! The owner looks now and then while clients wait ([`Stalls::poll_timeout`]) and says how each stands. A client's time
//! runs while it has replies to take and takes none, and only while a client waits that takes what it gets: clients that
//! wait for each other, and none of them reading, harm no one. A short time without any that waits stops no clock.

use std::time::Duration;

/// Time since the owner's start.
pub type Now = Duration;

/// How long a client may take nothing.
pub const TAKES_NOTHING_MAX: Duration = Duration::from_secs(30);
/// Between two looks. A client that took something between them is one that reads.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Clients that wait are served now and then, from the reserve: only after so long without one that waits is it over.
const RELIEF: Duration = Duration::from_secs(5);

/// How a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Bytes that it has taken in all.
    pub taken_bytes: u64,
    /// There are replies that it has not taken.
    pub has_replies: bool,
    /// It holds memory that others could use.
    pub holds_memory: bool,
    /// It waits for memory.
    pub waits: bool,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    taken_bytes: u64,
    takes_nothing_since: Now,
}

/// The clients' clocks. A client is known by its place in the owner's table.
#[derive(Debug, Default)]
pub struct Stalls {
    rows: Vec<Option<Row>>,
    /// When a client that takes its replies was last seen to wait. None: no clock runs.
    waited_at: Option<Now>,
    looked_at: Now,
}

impl Stalls {
    /// A client waits for memory: from now on clocks run.
    pub fn begin(&mut self, now: Now) {
        if self.waited_at.is_none() {
            self.waited_at = Some(now);
            self.looked_at = now;
            self.rows.clear();
        }
    }

    /// When [`Stalls::look`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        self.waited_at.map(|_| self.looked_at + LOOK_EVERY)
    }

    /// How the clients stand `now`, each with its place. The one to be dropped, if there is one; the next at the next look.
    pub fn look(&mut self, clients: impl Iterator<Item = (usize, Standing)>, now: Now) -> Option<usize> {
        let waited_at = self.waited_at?;
        self.looked_at = now;
        let mut waits = false;
        let mut longest: Option<(Duration, usize)> = None;
        for (at, standing) in clients {
            if at >= self.rows.len() {
                self.rows.resize(at + 1, None);
            }
            let row = &mut self.rows[at];
            match row {
                Some(row) if standing.has_replies && row.taken_bytes == standing.taken_bytes => {
                    let idle = now.saturating_sub(row.takes_nothing_since);
                    let longer = longest.is_none_or(|(longest, _)| idle > longest);
                    if idle >= TAKES_NOTHING_MAX && standing.holds_memory && longer {
                        longest = Some((idle, at));
                    }
                }
                _ => {
                    *row = Some(Row { taken_bytes: standing.taken_bytes, takes_nothing_since: now });
                    waits |= standing.waits;
                }
            }
        }
        if waits {
            self.waited_at = Some(now);
        } else if now.saturating_sub(waited_at) >= RELIEF {
            self.waited_at = None;
            return None;
        }
        let (_, at) = longest?;
        self.forget(at);
        Some(at)
    }

    /// The client at this place has gone.
    pub fn forget(&mut self, at: usize) {
        if let Some(row) = self.rows.get_mut(at) {
            *row = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUCK: Standing = Standing { taken_bytes: 7, has_replies: true, holds_memory: true, waits: false };
    const WAITS: Standing = Standing { taken_bytes: 0, has_replies: false, holds_memory: false, waits: true };

    fn second(n: u64) -> Now {
        Duration::from_secs(n)
    }

    /// Looks every second from 1 on; when which client was dropped first.
    fn first_dropped(mut clients: impl FnMut(u64) -> Vec<Standing>, until: u64) -> Option<(u64, usize)> {
        let mut stalls = Stalls::default();
        stalls.begin(Duration::ZERO);
        (1..=until).find_map(|n| {
            if stalls.poll_timeout().is_none() && clients(n).iter().any(|client| client.waits) {
                stalls.begin(second(n));
            }
            stalls.look(clients(n).into_iter().enumerate(), second(n)).map(|at| (n, at))
        })
    }

    #[test]
    fn stall_ends_after_its_time_while_another_waits() {
        assert_eq!(first_dropped(|_| vec![WAITS, STUCK], 100), Some((31, 1)), "from the first look on");
    }

    #[test]
    fn stall_hurts_no_one_while_none_waits() {
        let idle = Standing { waits: false, ..WAITS };
        assert_eq!(first_dropped(|_| vec![idle, STUCK, STUCK], 1000), None);
        // Not even where those that take nothing wait for more.
        let greedy = Standing { waits: true, ..STUCK };
        assert_eq!(first_dropped(|_| vec![greedy, greedy], 1000), None);
    }

    #[test]
    fn stall_of_a_client_without_memory_is_left_alone() {
        let light = Standing { holds_memory: false, ..STUCK };
        assert_eq!(first_dropped(|_| vec![WAITS, light], 1000), None);
    }

    #[test]
    fn stall_clocks_begin_anew_with_every_byte_taken() {
        let slow = |n| vec![WAITS, Standing { taken_bytes: n / 20, ..STUCK }];
        assert_eq!(first_dropped(slow, 1000), None);
        let stops = |n: u64| vec![WAITS, Standing { taken_bytes: n.min(10), ..STUCK }];
        assert_eq!(first_dropped(stops, 1000), Some((40, 1)));
    }

    #[test]
    fn stall_clocks_go_on_through_a_short_relief() {
        let now_and_then = |n: u64| vec![Standing { waits: n.is_multiple_of(4), ..WAITS }, STUCK];
        assert_eq!(first_dropped(now_and_then, 100), Some((31, 1)));
        let rarely = |n: u64| vec![Standing { waits: n.is_multiple_of(20), ..WAITS }, STUCK];
        assert_eq!(first_dropped(rarely, 1000), None);
    }

    #[test]
    fn stalls_of_several_end_one_at_a_look_the_longest_first() {
        let mut stalls = Stalls::default();
        stalls.begin(Duration::ZERO);
        let mut dropped = Vec::new();
        for n in 1..=40 {
            let later = Standing { taken_bytes: n.min(3), ..STUCK };
            let all = [WAITS, later, STUCK, STUCK].into_iter().enumerate();
            let left = all.filter(|(at, _)| !dropped.iter().any(|(_, gone)| gone == at));
            if let Some(at) = stalls.look(left.collect::<Vec<_>>().into_iter(), second(n)) {
                dropped.push((n, at));
            }
        }
        assert_eq!(dropped, [(31, 2), (32, 3), (33, 1)]);
    }
}
