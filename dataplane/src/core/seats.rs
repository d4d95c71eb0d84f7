//! Who is turned away at a listener: pure, for every listener that takes peers before it knows them.
//!
//! A *seat* is one connection that a listener has accepted. It is *silent* until the caller says that the peer has proven
//! itself (finished its handshake, shown its key). Seats are bounded, and silent peers never keep others out:
//! - A newcomer that finds all seats taken gets that of the oldest silent peer of the source with the most silent seats,
//!   the newcomer counted with its own. A source that crowds a listener thus turns its own peers away.
//! - A source may be given a bound of its own below that of all. Beyond it only its own silent peers give way.
//! - A peer that has proven itself is never turned away. Where all seats are held by such peers, the newcomer is.
//!
//! An honest peer speaks at once, so that what is lost to it is at most a try. The caller bounds the time that a silent
//! peer may take; nothing here knows a clock. The order of calls: [`Seats::arrive`], at most once [`Seats::proved`],
//! [`Seats::leave`]. A seat that was given to a newcomer has left already; calls with its id change nothing.

use core::net::IpAddr;

/// Where a peer comes from, as far as a listener can tell before it knows the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A process of this node's user, at a unix socket.
    User(u32),
    /// An IPv4 address, or the /64 of an IPv6 address: one host has as many addresses of those as it wants.
    Network([u8; 8]),
}

impl Source {
    /// The source of a TCP peer.
    #[must_use]
    pub fn of_address(ip: IpAddr) -> Self {
        let mut network = [0; 8];
        match ip.to_canonical() {
            // No global address of IPv6 begins with zeros, so the two cannot be mistaken for each other.
            IpAddr::V4(v4) => network[4..].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) if v6.is_loopback() => network[4..].copy_from_slice(&[127, 0, 0, 1]),
            IpAddr::V6(v6) => network.copy_from_slice(&v6.octets()[..8]),
        }
        Self::Network(network)
    }
}

/// Names one seat; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeatId(u64);

/// What becomes of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It has a seat.
    Seated(SeatId),
    /// It has the seat of a silent peer, whose connection the caller closes.
    InsteadOf {
        /// The newcomer's.
        seat: SeatId,
        /// Whose connection ends.
        gone: SeatId,
    },
    /// There is no seat for it: the caller closes its connection.
    TurnedAway,
}

#[derive(Debug, Clone, Copy)]
struct Seat {
    id: SeatId,
    source: Source,
    silent: bool,
}

/// The seats of one listener, in the order of arrival. Everything takes time linear in their number, which is at most a
/// few hundred.
#[derive(Debug)]
pub struct Seats {
    seats: Vec<Seat>,
    seats_max: usize,
    source_max: usize,
    next: u64,
}

impl Seats {
    /// No peers yet; at most `seats_max` at a time, of which one source may have all.
    ///
    /// # Panics
    /// When `seats_max` is 0.
    #[must_use]
    pub fn new(seats_max: usize) -> Self {
        Self::with_source_max(seats_max, seats_max)
    }

    /// As [`Seats::new`], with at most `source_max` seats for one source.
    ///
    /// # Panics
    /// When one of them is 0.
    #[must_use]
    pub fn with_source_max(seats_max: usize, source_max: usize) -> Self {
        assert!(seats_max > 0 && source_max > 0, "a listener has at least one seat");
        Self { seats: Vec::with_capacity(seats_max), seats_max, source_max, next: 0 }
    }

    /// Seats that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.seats.len()
    }

    /// Whether the seat is still its peer's.
    #[must_use]
    pub fn holds(&self, id: SeatId) -> bool {
        self.seats.iter().any(|seat| seat.id == id)
    }

    /// A peer has connected.
    pub fn arrive(&mut self, source: Source) -> Arrival {
        let gone = if self.of_source(source) >= self.source_max {
            self.oldest_silent_of(source)
        } else if self.seats.len() >= self.seats_max {
            self.most_crowded(source).and_then(|crowded| self.oldest_silent_of(crowded))
        } else {
            return Arrival::Seated(self.seat(source));
        };
        let Some(gone) = gone else { return Arrival::TurnedAway };
        self.leave(gone);
        Arrival::InsteadOf { seat: self.seat(source), gone }
    }

    /// The peer has proven itself, and keeps its seat until it leaves.
    pub fn proved(&mut self, id: SeatId) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.id == id) {
            seat.silent = false;
        }
    }

    /// The peer's connection has ended, or is of no concern to this listener any more.
    pub fn leave(&mut self, id: SeatId) {
        self.seats.retain(|seat| seat.id != id);
    }

    fn seat(&mut self, source: Source) -> SeatId {
        let id = SeatId(self.next);
        self.next += 1;
        self.seats.push(Seat { id, source, silent: true });
        id
    }

    fn of_source(&self, source: Source) -> usize {
        self.seats.iter().filter(|seat| seat.source == source).count()
    }

    fn silent(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.silent)
    }

    fn oldest_silent_of(&self, source: Source) -> Option<SeatId> {
        self.silent().find(|seat| seat.source == source).map(|seat| seat.id)
    }

    /// The source with the most silent seats, a newcomer's counted with it; of several, that of the oldest.
    fn most_crowded(&self, newcomer: Source) -> Option<Source> {
        let crowd = |source| {
            self.silent().filter(|seat| seat.source == source).count() + usize::from(source == newcomer)
        };
        // The last of equal ones is taken, hence backwards.
        self.seats.iter().rev().filter(|seat| seat.silent).map(|seat| seat.source).max_by_key(|s| crowd(*s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Source = Source::User(1);
    const TWO: Source = Source::User(2);

    fn seated(seats: &mut Seats, source: Source) -> SeatId {
        match seats.arrive(source) {
            Arrival::Seated(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn gone(seats: &mut Seats, source: Source) -> SeatId {
        match seats.arrive(source) {
            Arrival::InsteadOf { seat, gone } => {
                assert!(seats.holds(seat) && !seats.holds(gone));
                gone
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn seats_full_of_silence_the_oldest_gives_way() {
        let mut seats = Seats::new(3);
        let first: Vec<_> = (0..3).map(|_| seated(&mut seats, ONE)).collect();
        assert_eq!([gone(&mut seats, ONE), gone(&mut seats, ONE)], [first[0], first[1]]);
        assert_eq!(seats.taken(), 3);
    }

    #[test]
    fn seats_of_the_proven_are_never_given_away() {
        let mut seats = Seats::new(2);
        let (proven, silent) = (seated(&mut seats, ONE), seated(&mut seats, ONE));
        seats.proved(proven);
        assert_eq!(gone(&mut seats, TWO), silent);
        let Arrival::InsteadOf { seat, .. } = seats.arrive(TWO) else { panic!("a silent one was there") };
        seats.proved(seat);
        assert_eq!([seats.arrive(ONE), seats.arrive(TWO)], [Arrival::TurnedAway; 2]);
        seats.leave(proven);
        seated(&mut seats, TWO);
    }

    #[test]
    fn seats_crowded_by_a_source_cost_that_source() {
        let mut seats = Seats::new(4);
        let quiet = seated(&mut seats, TWO);
        let crowd: Vec<_> = (0..3).map(|_| seated(&mut seats, ONE)).collect();
        // The oldest of all is the other's, and stays.
        assert_eq!(gone(&mut seats, ONE), crowd[0]);
        assert_eq!(gone(&mut seats, Source::User(3)), crowd[1]);
        assert!(seats.holds(quiet));
        // However many come.
        for _ in 0..100 {
            seats.arrive(ONE);
            assert!(seats.holds(quiet) && seats.taken() == 4);
        }
    }

    #[test]
    fn seats_held_one_by_each_source_go_by_age() {
        let mut seats = Seats::new(3);
        let first: Vec<_> = (0..3).map(|user| seated(&mut seats, Source::User(user))).collect();
        assert_eq!(gone(&mut seats, Source::User(9)), first[0]);
        // The newcomer counts with its source, which now is the one with two.
        assert_eq!(gone(&mut seats, Source::User(2)), first[2]);
    }

    #[test]
    fn seats_beyond_a_source_s_bound_are_its_own() {
        let mut seats = Seats::with_source_max(4, 2);
        let (first, second) = (seated(&mut seats, ONE), seated(&mut seats, ONE));
        assert_eq!(gone(&mut seats, ONE), first, "though two are free");
        seats.proved(second);
        let Arrival::InsteadOf { seat, .. } = seats.arrive(ONE) else { panic!("one is silent") };
        seats.proved(seat);
        assert_eq!(seats.arrive(ONE), Arrival::TurnedAway);
        seated(&mut seats, TWO);
    }

    #[test]
    fn seats_know_ids_of_the_gone_and_do_nothing() {
        let mut seats = Seats::new(1);
        let old = seated(&mut seats, ONE);
        assert_eq!(gone(&mut seats, ONE), old);
        seats.proved(old);
        seats.leave(old);
        assert_eq!(seats.taken(), 1);
        gone(&mut seats, ONE);
    }

    #[test]
    fn sources_are_hosts_not_addresses() {
        let of = |ip: &str| Source::of_address(ip.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"), "one /64");
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("127.0.0.1"), of("::1"), "this node, either way");
    }
}
