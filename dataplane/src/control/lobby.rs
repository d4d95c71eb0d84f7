//! The seats of a listener ([`Seats`]) and the tasks that hold them: the shell around the rule.
//!
//! Each accepted connection asks for a [`Ticket`]. Its task gives up when the ticket says so, and the seat is free once
//! the ticket is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::core::seats::{Arrival, SeatId, Seats, Source};

/// A listener's seats. Clones are the same lobby.
#[derive(Debug, Clone)]
pub struct Lobby(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    seats: Seats,
    /// Tells a connection's task that its seat was given to another.
    tell: BTreeMap<SeatId, oneshot::Sender<()>>,
}

/// One connection's seat, free again when this is dropped.
#[derive(Debug)]
pub struct Ticket {
    lobby: Lobby,
    seat: SeatId,
    gone: oneshot::Receiver<()>,
}

impl Lobby {
    /// A lobby without peers.
    #[must_use]
    pub fn new(seats: Seats) -> Self {
        Self(Arc::new(Mutex::new(Inner { seats, tell: BTreeMap::new() })))
    }

    /// A peer has connected. None: there is no seat for it, and its connection is to be closed.
    #[must_use]
    pub fn arrive(&self, source: Source) -> Option<Ticket> {
        let mut inner = self.0.lock();
        let seat = match inner.seats.arrive(source) {
            Arrival::Seated(seat) => seat,
            Arrival::InsteadOf { seat, gone } => {
                if let Some(tell) = inner.tell.remove(&gone) {
                    // A task that has just ended needs no telling.
                    let _ = tell.send(());
                }
                seat
            }
            Arrival::TurnedAway => return None,
        };
        let (tell, gone) = oneshot::channel();
        inner.tell.insert(seat, tell);
        Some(Ticket { lobby: self.clone(), seat, gone })
    }
}

impl Ticket {
    /// The peer has proven itself, and keeps its seat.
    pub fn proved(&self) {
        self.lobby.0.lock().seats.proved(self.seat);
    }

    /// Returns when the seat was given to another: the connection is to be closed. Cancel safe.
    pub async fn given_away(&mut self) {
        if (&mut self.gone).await.is_err() {
            // The sender goes with the ticket alone.
            std::future::pending().await
        }
    }

    /// As [`Ticket::given_away`], for a poll.
    pub(super) fn poll_given_away(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        std::pin::Pin::new(&mut self.gone).poll(cx).map(|_| ())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.lobby.0.lock();
        inner.seats.leave(self.seat);
        inner.tell.remove(&self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ticket_given_away_tells_its_task() {
        let lobby = Lobby::new(Seats::new(1));
        let mut first = lobby.arrive(Source::User(1)).unwrap();
        let second = lobby.arrive(Source::User(1)).unwrap();
        first.given_away().await;
        drop(first);
        second.proved();
        assert!(lobby.arrive(Source::User(1)).is_none(), "the seat is a proven peer's");
        drop(second);
        assert!(lobby.arrive(Source::User(1)).is_some());
    }
}
