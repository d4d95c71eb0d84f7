//! That this node's agent lives: a key with a lease, which goes when the agent has been silent for a while. It belongs
//! to a data directory: a new agent of the same one takes it over, one of another finds that the name is taken.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::status::ErrorKind;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{Inner, found, put, range, unchanged};
use crate::core::features;
use crate::core::presence::{PRESENCE_SCHEMA, Presence};
use crate::error::Error;
use crate::registry::Read;
use crate::store::atomic;

pub(super) const LIVE: &str = "live";
/// An agent that is silent for so long does not live, as far as others know: longer than an election of etcd's or an
/// agent's restart takes.
const LEASE_S: i64 = 15;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What runs on the node is not looked after meanwhile.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);

/// Whether this is the presence of an agent of this data directory.
pub(super) fn is_of(bytes: &[u8], home: Uuid) -> bool {
    let read = atomic::parse_json::<Presence>(bytes, LIVE, PRESENCE_SCHEMA);
    matches!(read, Read::Found(presence) if presence.home == home)
}

#[derive(Debug)]
struct Announcement {
    inner: Arc<Inner>,
    node: NodeName,
    mine: Presence,
    /// What was said last about why it cannot be said.
    complaint: String,
}

/// Says that the node lives, now or as soon as etcd can be asked, until the task that is returned is aborted.
pub(super) async fn announce(
    inner: &Arc<Inner>,
    node: &NodeName,
    address: IpAddr,
) -> Result<AbortHandle, Error> {
    let mine = Presence {
        schema: PRESENCE_SCHEMA,
        home: inner.memory.stored().home,
        run: Uuid::new_v4(),
        address: address.to_string(),
        features: features::READ.map(str::to_owned).into(),
    };
    let mut this =
        Announcement { inner: Arc::clone(inner), node: node.clone(), mine, complaint: String::new() };
    let lease = match timeout(BEGIN_WITHIN, this.begin()).await {
        Ok(Err(error)) if error.kind() == ErrorKind::Conflict => return Err(error),
        Ok(Err(error)) => {
            this.complain(&error);
            None
        }
        Ok(Ok(lease)) => Some(lease),
        // Said later: one that was half done finds its own key.
        Err(_) => None,
    };
    Ok(tokio::spawn(this.keep(lease)).abort_handle())
}

impl Announcement {
    async fn keep(mut self, mut lease: Option<i64>) {
        loop {
            let undisturbed = lease.is_some() && self.complaint.is_empty();
            sleep(if undisturbed { KEEP_ALIVE_EVERY } else { AGAIN_AFTER }).await;
            let held = match lease {
                // One that has run out is followed by another.
                Some(lease) => self.keep_alive(lease).await.map(|alive| alive.then_some(lease)),
                None => self.begin().await.map(Some),
            };
            match held {
                Ok(held) => {
                    lease = held;
                    if lease.is_some() && !std::mem::take(&mut self.complaint).is_empty() {
                        tracing::info!(node = %self.node, "the registry knows again that this node lives");
                    }
                }
                // Whether the lease has run out is for etcd to say.
                Err(error) => self.complain(&error),
            }
        }
    }

    async fn keep_alive(&self, lease: i64) -> Result<bool, Error> {
        let kept = self.inner.client.keep_alive(lease).await;
        kept.map_err(|failure| self.inner.client.error("keep the lease of this node", &[failure]))
    }

    /// Takes a new lease and writes the key with it, unless another agent lives under this name.
    async fn begin(&self) -> Result<i64, Error> {
        let operation = format!("say that node {} lives", self.node);
        let key = self.inner.key(LIVE, &self.node);
        let bytes = serde_json::to_vec(&self.mine).map_err(|e| Error::failed(format!("{operation}: {e}")))?;
        // What changes in between is the lease of an earlier run that ends, or another agent: the second look tells.
        for _ in 0..3 {
            let answer = self.inner.read(&operation, vec![range(&key)]).await?;
            let before = found(&answer, 0).first();
            if let Some(kv) = before {
                self.check(&operation, &key, &kv.value)?;
            }
            let lease = self.inner.client.grant(LEASE_S).await;
            let lease = lease.map_err(|failure| self.inner.client.error(&operation, &[failure]))?;
            let same = unchanged(&key, before.map_or(0, |kv| kv.mod_revision));
            if self.inner.tell(&operation, vec![same], vec![put(&key, bytes.clone(), lease)]).await? {
                return Ok(lease);
            }
        }
        Err(Error::failed(format!("{operation}: {key} keeps changing")))
    }

    /// Whose key this is.
    fn check(&self, operation: &str, key: &str, bytes: &[u8]) -> Result<(), Error> {
        match atomic::parse_json::<Presence>(bytes, key, PRESENCE_SCHEMA) {
            Read::Found(other) if other.home != self.mine.home => Err(Error::conflict(format!(
                "{operation}: an agent of that name lives already, with another data directory (its replicas are \
                 reached at {}); give one of them another --node, or, where that agent has ended, wait {LEASE_S} s",
                other.address
            ))),
            Read::Unreadable(reason) => Err(Error::conflict(format!(
                "{operation}: an agent that this one does not understand lives under that name: {reason}; give one of \
                 them another --node, or, where that agent has ended, wait {LEASE_S} s and, if it stays, delete {key}"
            ))),
            Read::Found(_) | Read::Absent => Ok(()),
        }
    }

    fn complain(&mut self, error: &Error) {
        let (said, conflict) = (error.to_string(), error.kind() == ErrorKind::Conflict);
        if self.complaint == said {
            return;
        }
        if conflict {
            tracing::error!(error = said, "another agent has this node's name");
        } else {
            tracing::warn!(error = said, "the registry does not know that this node lives; tried again");
        }
        self.complaint = said;
    }
}
