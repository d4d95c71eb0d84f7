//! An operator's word that an etcd counts as it is, though it went back in time, was emptied, or is another one: a new
//! incarnation begins. The agents of the other nodes take it up by themselves, because the word says which ones it
//! follows.

use std::sync::Arc;

use holdfast_proto::ids::{Incarnation, NodeName};
use holdfast_proto::pb::etcd as pb;

use super::memory::Stored;
use super::{Inner, found, modified, put, range, range_below, unchanged};
use crate::blocking::blocking;
use crate::core::history::{ACCEPTANCE_SCHEMA, Acceptance, Known, Shown};
use crate::error::Error;
use crate::registry::{Read, Review};
use crate::store::atomic;

impl Inner {
    /// Takes up the incarnation that a failed transaction has found, where an operator has accepted it in the place of
    /// the one that this node knows.
    ///
    /// # Errors
    /// When another incarnation than the known one is there, taken up or not: what was asked is to be asked again.
    pub(super) async fn follow(
        &self,
        operation: &str,
        asked: &Stored,
        failed: &pb::TxnResponse,
    ) -> Result<(), Error> {
        let there = parse_incarnation(failed, 0);
        if there == Some(asked.incarnation) {
            return Ok(());
        }
        let accepted = self.acceptance(failed, 1);
        let leads = |there: &Incarnation| {
            accepted.as_ref().is_some_and(|accepted| accepted.leads(asked.incarnation, *there))
        };
        let Some(there) = there.filter(leads) else { return Err(self.foreign(operation, asked, failed)) };
        let header = failed.header.unwrap_or_default();
        let known = Known {
            cluster_id: header.cluster_id,
            revision: header.revision,
            high: modified(failed, 2),
            own: modified(failed, 3),
        };
        let by = accepted.map(|accepted| accepted.node).unwrap_or_default();
        self.begin_anew(there, known, &by).await?;
        Err(Error::failed(format!(
            "{operation} in etcd ({}): an operator accepted it as it is, and incarnation {there} began; ask again",
            self.client.servers()
        )))
    }

    async fn begin_anew(&self, incarnation: Incarnation, known: Known, by: &str) -> Result<(), Error> {
        let memory = Arc::clone(&self.memory);
        blocking(move || memory.begin_anew(incarnation, known)).await?;
        tracing::warn!(
            %incarnation,
            accepted_on = by,
            "a new incarnation of the registry: every replica of a volume must be present at its next attach"
        );
        self.tick();
        Ok(())
    }

    fn acceptance(&self, answer: &pb::TxnResponse, index: usize) -> Option<Acceptance> {
        let kv = found(answer, index).first()?;
        match atomic::parse_json::<Acceptance>(&kv.value, &self.accepted(), ACCEPTANCE_SCHEMA) {
            Read::Found(accepted) => Some(accepted),
            Read::Absent => None,
            Read::Unreadable(reason) => {
                tracing::warn!(reason, "which incarnations the registry follows cannot be read");
                None
            }
        }
    }

    /// Looks at what there is without relying on it.
    pub(super) async fn review(&self) -> Result<Review, Error> {
        const OPERATION: &str = "look at the registry";
        let asked = self.memory.stored();
        let (answer, _) = self.look(OPERATION, &asked).await?;
        let header = answer.header.unwrap_or_default();
        let there = parse_incarnation(&answer, 0);
        let doubt = if let Some(refused) = asked.refused.clone() {
            Some(refused)
        } else if there != Some(asked.incarnation) {
            Some(match found(&answer, 0).first() {
                Some(kv) => format!("it has another incarnation, {}", String::from_utf8_lossy(&kv.value)),
                None => "it has no incarnation: it was emptied, or is another one".to_owned(),
            })
        } else {
            let (high, own) = (Some(modified(&answer, 2)), Some(modified(&answer, 3)));
            let shown = Shown { cluster_id: header.cluster_id, revision: header.revision, high, own };
            let checked = self.memory.check(&asked, &shown);
            self.save(false).await?;
            checked.err()
        };
        let records = found(&answer, 4).iter().map(|kv| self.entry(kv)).collect();
        Ok(Review {
            place: format!("etcd://{}{}", self.client.servers().replace(", ", ","), self.prefix),
            incarnation: asked.incarnation,
            found: there,
            revision: asked.known().revision,
            found_revision: header.revision,
            doubt,
            records,
        })
    }

    async fn look(&self, operation: &str, asked: &Stored) -> Result<(pb::TxnResponse, String), Error> {
        let key = format!("{}/incarnation", self.prefix);
        let keys = [key.clone(), self.accepted(), self.high(), self.own_high(asked)];
        let mut success: Vec<_> = keys.iter().map(|key| range(key)).collect();
        success.push(range_below(&self.key(super::records::VOLUMES, "")));
        let request = pb::TxnRequest { compare: Vec::new(), success, failure: Vec::new() };
        Ok((self.client.ask(operation, &request).await?, key))
    }

    /// Begins a new incarnation in an etcd whose incarnation is still `shown`.
    pub(super) async fn accept(
        &self,
        node: &NodeName,
        shown: Option<Incarnation>,
    ) -> Result<Incarnation, Error> {
        const OPERATION: &str = "accept the registry";
        let asked = self.memory.stored();
        let (answer, key) = self.look(OPERATION, &asked).await?;
        let there = parse_incarnation(&answer, 0);
        let changed = || {
            Error::conflict(format!(
                "{OPERATION}: its incarnation changed after it was shown: expected {shown:?}; look again: `holdfast \
                 registry show`"
            ))
        };
        if there != shown {
            return Err(changed());
        }
        let new = Incarnation::random();
        let before = self.acceptance(&answer, 1);
        let accepted = Acceptance::new(new, asked.incarnation, there, before.as_ref(), node.to_string());
        let bytes = serde_json::to_vec(&accepted).map_err(|e| Error::failed(format!("{OPERATION}: {e}")))?;
        let own = self.own_high(&asked);
        let mut change = vec![put(&key, new.to_string().into_bytes(), 0), put(&self.accepted(), bytes, 0)];
        change.extend([&self.high(), &own].map(|key| put(key, super::HIGH_VALUE.to_vec(), 0)));
        let request = pb::TxnRequest {
            compare: vec![unchanged(&key, modified(&answer, 0))],
            success: change,
            failure: Vec::new(),
        };
        // An answer that is lost is made up for: this node takes the new incarnation up like the others.
        let answer = self.client.change(OPERATION, &request).await?;
        if !answer.succeeded {
            return Err(changed());
        }
        let header = answer.header.unwrap_or_default();
        let (cluster_id, revision) = (header.cluster_id, header.revision);
        let known = Known { cluster_id, revision, high: revision, own: revision };
        self.begin_anew(new, known, node.as_str()).await?;
        Ok(new)
    }
}

fn parse_incarnation(answer: &pb::TxnResponse, index: usize) -> Option<Incarnation> {
    std::str::from_utf8(&found(answer, index).first()?.value).ok()?.parse().ok()
}
