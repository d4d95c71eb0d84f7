//! What an instance shows and asks: the status that watchers follow, and the asks that the agent answers.
//!
//! Each watcher gets the full status first, then each change. An unanswered ask is repeated to every new watcher. A
//! watcher that does not keep up is closed and comes again: nothing is queued for it without bound.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_proto::pb::instance as pb;
use parking_lot::Mutex;
use pb::registry_result_request::Outcome;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Items queued for one watcher before it is closed; a status is a few hundred bytes.
const WATCHER_QUEUE_MAX: usize = 64;
/// Watchers at once: one agent, its successor during an upgrade, and a person looking.
const WATCHERS_MAX: usize = 16;

type Watcher = mpsc::Sender<Result<pb::WatchItem, Status>>;

/// The status and the open asks. Clones are the same board; it is `Send` because tonic's handlers must be.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    status: pb::InstanceStatus,
    watchers: Vec<Watcher>,
    asks: BTreeMap<u64, OpenAsk>,
    first_ask_id: u64,
    next_ask_id: u64,
    closed: bool,
}

#[derive(Debug)]
struct OpenAsk {
    ask: pb::Ask,
    /// None: not answered, but withdrawn by the next Configure.
    answer: Option<oneshot::Sender<Outcome>>,
}

impl Default for Inner {
    fn default() -> Self {
        // Not from 1: the instance's UUID outlives the process, and an answer meant for the last process must not be
        // taken for an answer to this one. Half the range is left to count up.
        let first_ask_id = uuid::Uuid::new_v4().as_u64_pair().0 >> 1;
        Self {
            status: pb::InstanceStatus { phase: "pending".to_owned(), ..Default::default() },
            watchers: Vec::new(),
            asks: BTreeMap::new(),
            first_ask_id,
            next_ask_id: first_ask_id,
            closed: false,
        }
    }
}

fn status_item(status: &pb::InstanceStatus) -> pb::WatchItem {
    pb::WatchItem { item: Some(pb::watch_item::Item::Status(status.clone())) }
}
fn ask_item(ask: &pb::Ask) -> pb::WatchItem {
    pb::WatchItem { item: Some(pb::watch_item::Item::Ask(ask.clone())) }
}

impl Inner {
    fn tell(&mut self, item: &pb::WatchItem) {
        self.watchers.retain(|watcher| match watcher.try_send(Ok(item.clone())) {
            Ok(()) => true,
            Err(e) => {
                if matches!(e, mpsc::error::TrySendError::Full(_)) {
                    tracing::warn!("a watcher did not keep up and was closed");
                }
                false
            }
        });
    }

    fn ask(&mut self, ask: pb::ask::Ask, answer: Option<oneshot::Sender<Outcome>>) {
        let ask_id = self.next_ask_id;
        self.next_ask_id += 1;
        let ask = pb::Ask { ask_id, ask: Some(ask) };
        self.tell(&ask_item(&ask));
        self.asks.insert(ask_id, OpenAsk { ask, answer });
    }
}

impl Board {
    /// The status as it is shown now.
    #[must_use]
    pub fn status(&self) -> pb::InstanceStatus {
        self.0.lock().status.clone()
    }

    /// Changes the status; watchers hear of it where it did change.
    pub fn update(&self, change: impl FnOnce(&mut pb::InstanceStatus)) {
        let mut inner = self.0.lock();
        let mut status = inner.status.clone();
        change(&mut status);
        if status != inner.status {
            inner.tell(&status_item(&status));
            inner.status = status;
        }
    }

    /// Asks the agent to change the volume's record. The outcome comes once known, however long that takes and however
    /// often the agent restarts meanwhile; an error means only that this process is ending.
    pub fn ask_registry(&self, cas: pb::RegistryCas) -> oneshot::Receiver<Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.0.lock().ask(pb::ask::Ask::RegistryCas(cas), Some(answer));
        outcome
    }

    /// Tells the agent that a replica is not where it was said to be. Open until the next Configure; one per replica.
    pub fn ask_replica_address(&self, replica_id: u32, reason: String) {
        let mut inner = self.0.lock();
        let asked = inner.asks.values().any(|open| {
            matches!(&open.ask.ask, Some(pb::ask::Ask::ReplicaAddress(a)) if a.replica_id == replica_id)
        });
        if !asked {
            inner.ask(pb::ask::Ask::ReplicaAddress(pb::ReplicaAddress { replica_id, reason }), None);
        }
    }

    /// A Configure has come: what only it could answer is withdrawn.
    pub(super) fn configured(&self) {
        self.0.lock().asks.retain(|_, open| open.answer.is_some());
    }

    /// Takes an answer. `false`: this process never asked that. A repeated answer is taken and ignored.
    pub(super) fn answer(&self, ask_id: u64, outcome: Outcome) -> bool {
        let mut inner = self.0.lock();
        if !(inner.first_ask_id..inner.next_ask_id).contains(&ask_id) {
            return false;
        }
        if let Some(OpenAsk { answer: Some(answer), .. }) = inner.asks.remove(&ask_id) {
            // Nobody waits any more: the process is ending.
            let _ = answer.send(outcome);
        }
        true
    }

    /// A new watcher; `None` where there are too many.
    pub(super) fn watch(&self) -> Option<mpsc::Receiver<Result<pb::WatchItem, Status>>> {
        let mut inner = self.0.lock();
        inner.watchers.retain(|watcher| !watcher.is_closed());
        if inner.closed || inner.watchers.len() == WATCHERS_MAX {
            return None;
        }
        // Room for what it is told at once, so that a new watcher never begins closed.
        let (watcher, items) = mpsc::channel(WATCHER_QUEUE_MAX + inner.asks.len() + 1);
        let asks = inner.asks.values().map(|open| ask_item(&open.ask));
        for item in std::iter::once(status_item(&inner.status)).chain(asks) {
            watcher.try_send(Ok(item)).expect("the queue was made large enough");
        }
        inner.watchers.push(watcher);
        Some(items)
    }

    /// Ends every watcher's stream: the process is ending.
    pub(super) fn close(&self) {
        let mut inner = self.0.lock();
        inner.closed = true;
        inner.watchers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cas() -> pb::RegistryCas {
        pb::RegistryCas { expected_version: 3, ..Default::default() }
    }
    fn next(items: &mut mpsc::Receiver<Result<pb::WatchItem, Status>>) -> Option<pb::watch_item::Item> {
        items.try_recv().ok().and_then(|item| item.unwrap().item)
    }
    fn ask_id(item: Option<pb::watch_item::Item>) -> u64 {
        match item {
            Some(pb::watch_item::Item::Ask(ask)) => ask.ask_id,
            other => panic!("expected an ask, found {other:?}"),
        }
    }

    #[test]
    fn a_watcher_gets_status_first_then_changes_only() {
        let board = Board::default();
        let mut items = board.watch().unwrap();
        assert!(matches!(next(&mut items), Some(pb::watch_item::Item::Status(s)) if s.phase == "pending"));
        board.update(|s| s.phase = "pending".to_owned());
        assert_eq!(next(&mut items), None);
        board.update(|s| s.phase = "running".to_owned());
        assert!(matches!(next(&mut items), Some(pb::watch_item::Item::Status(s)) if s.phase == "running"));
    }

    #[test]
    fn an_ask_is_repeated_until_answered_and_answered_once() {
        let board = Board::default();
        let mut outcome = board.ask_registry(cas());
        let mut first = board.watch().unwrap();
        next(&mut first);
        let id = ask_id(next(&mut first));
        let mut second = board.watch().unwrap();
        next(&mut second);
        assert_eq!(ask_id(next(&mut second)), id);
        assert!(outcome.try_recv().is_err());
        assert!(!board.answer(id + 1, Outcome::Missing(Default::default())));
        assert!(!board.answer(id.wrapping_sub(1), Outcome::Missing(Default::default())));
        assert!(board.answer(id, Outcome::Missing(Default::default())));
        assert!(board.answer(id, Outcome::Stored(Default::default())));
        assert_eq!(outcome.try_recv(), Ok(Outcome::Missing(Default::default())));
        let mut third = board.watch().unwrap();
        next(&mut third);
        assert_eq!(next(&mut third), None);
    }

    #[test]
    fn two_processes_of_an_instance_do_not_share_ask_ids() {
        let (old, new) = (Board::default(), Board::default());
        let _outcomes = (old.ask_registry(cas()), new.ask_registry(cas()));
        let mut items = old.watch().unwrap();
        next(&mut items);
        assert!(!new.answer(ask_id(next(&mut items)), Outcome::Missing(Default::default())));
    }

    #[test]
    fn an_address_is_asked_once_and_withdrawn_by_configure() {
        let board = Board::default();
        board.ask_replica_address(1, "refused".to_owned());
        board.ask_replica_address(1, "refused again".to_owned());
        let _outcome = board.ask_registry(cas());
        assert_eq!(board.0.lock().asks.len(), 2);
        board.configured();
        assert_eq!(board.0.lock().asks.len(), 1);
    }

    #[test]
    fn a_watcher_that_lags_is_closed_and_others_are_not() {
        let board = Board::default();
        let mut slow = board.watch().unwrap();
        let mut quick = board.watch().unwrap();
        for n in 0..=WATCHER_QUEUE_MAX {
            board.update(|s| s.reason = n.to_string());
            while next(&mut quick).is_some() {}
        }
        let mut got = 0;
        while next(&mut slow).is_some() {
            got += 1;
        }
        assert_eq!(got, WATCHER_QUEUE_MAX + 1);
        assert!(slow.is_closed());
        assert!(!quick.is_closed());
    }
}
