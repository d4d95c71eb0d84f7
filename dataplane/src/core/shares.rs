//! How many buffers of a pool one client may hold: pure.
//!
//! What a client holds is freed when its requests end *and it takes the replies*, so that a client may keep buffers for as
//! long as it likes. Therefore no client may hold all of them:
//! - An eighth of the buffers is a reserve, for clients that hold none. Each of those may take one of it.
//! - The rest is shared evenly between the clients that hold any. Clients that hold none take nothing from the others'
//!   shares, so that one alone may hold all but the reserve.
//!
//! Shares shrink when a client begins to hold buffers. One that holds more by then takes no more until it is below.

/// The buffers of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// All of them.
    pub total: usize,
    /// Those that can be taken now.
    pub free: usize,
    /// Clients that hold one or more.
    pub holders: usize,
}

impl Stock {
    /// What only clients that hold nothing may take.
    fn reserve(self) -> usize {
        self.total / 8
    }

    /// Whether a client that holds `held` buffers may take `wanted` more, all at once.
    #[must_use]
    pub fn allows(self, held: usize, wanted: usize) -> bool {
        if held == 0 {
            return wanted <= self.free;
        }
        let reserve = self.reserve();
        wanted + reserve <= self.free && (held + wanted) * self.holders <= self.total - reserve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that take one buffer after the other, in turn, and give none back.
    fn take_all(total: usize, clients: usize) -> Vec<usize> {
        let mut held = vec![0; clients];
        loop {
            let before = held.clone();
            for at in 0..clients {
                let stock = Stock {
                    total,
                    free: total - held.iter().sum::<usize>(),
                    holders: held.iter().filter(|held| **held > 0).count(),
                };
                if stock.allows(held[at], 1) {
                    held[at] += 1;
                }
            }
            if held == before {
                return held;
            }
        }
    }

    #[test]
    fn shares_alone_are_all_but_the_reserve() {
        assert_eq!(take_all(2048, 1), [1792]);
        assert_eq!(take_all(1, 1), [1], "a pool of one");
    }

    #[test]
    fn shares_of_several_are_even() {
        assert_eq!(take_all(256, 2), [112, 112]);
        assert_eq!(take_all(256, 7), [32; 7]);
        assert_eq!(take_all(256, 200), [1; 200], "more clients than buffers to share");
    }

    #[test]
    fn shares_leave_a_newcomer_a_buffer() {
        // However the first ones came to what they hold.
        for total in [8, 64, 256, 2048] {
            for clients in 1..=total / 8 {
                let first = take_all(total, 1)[0];
                for others in 0..clients {
                    let stock = Stock { total, free: total - first - others, holders: 1 + others };
                    assert!(stock.allows(0, 1), "{clients} of {total}");
                }
            }
        }
    }

    #[test]
    fn shares_exceeded_by_a_newcomer_s_arrival_allow_no_more() {
        let stock = Stock { total: 256, free: 100, holders: 2 };
        assert!(!stock.allows(150, 1), "it has more than half");
        assert!(stock.allows(6, 60));
        assert!(!stock.allows(6, 69), "that would touch the reserve");
        assert!(stock.allows(0, 100) && !stock.allows(0, 101));
    }
}
