//! That this node's agent lives: a key with a lease, which goes when the agent has been silent for a while. Whose the name
//! is decides `core::presence`; here its questions and answers are read and written, in every heartbeat. A key that was
//! deleted or overwritten by mistake is written again.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::etcd as pb;
use holdfast_proto::status::ErrorKind;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::{Inner, found, modified, put, range, unchanged};
use crate::core::features;
use crate::core::presence::{
    Found, Identity, LEASE, PRESENCE_SCHEMA, Presence, QUESTION_SCHEMA, Question, Standing, Step,
};
use crate::error::Error;
use crate::registry::{Announcement, Read};
use crate::store::atomic;

pub(super) const LIVE: &str = "live";
/// Where a run asks whether another one lives.
const QUESTIONS: &str = "questions";
const BEAT_EVERY: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What runs on the node is not looked after meanwhile.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// A run that lives answers at its next heartbeat, and a busy machine needs its part.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);

/// Whether this is the presence of an agent of this data directory.
pub(super) fn is_of(bytes: &[u8], home: Uuid) -> bool {
    let read = atomic::parse_json::<Presence>(bytes, LIVE, PRESENCE_SCHEMA);
    matches!(read, Read::Found(presence) if presence.home == home)
}

/// What was found under the name, and what its change compares.
struct Seen {
    found: Found,
    mod_revision: i64,
    question: Option<Question>,
}

struct Pulse {
    inner: Arc<Inner>,
    node: NodeName,
    identity: Identity,
    lease: Option<i64>,
    standing: watch::Sender<Standing>,
    epoch: Instant,
    /// When the registry last heard of this run.
    heard_at: Instant,
    /// What was said last about why it cannot be said.
    complaint: String,
}

/// Says that the node lives, now or as soon as etcd can be asked, until the task that is returned is aborted.
pub(super) async fn announce(
    inner: &Arc<Inner>,
    announcement: Announcement,
) -> Result<(AbortHandle, watch::Receiver<Standing>), Error> {
    let Announcement { node, address, lodging } = announcement;
    let mine = Presence {
        schema: PRESENCE_SCHEMA,
        home: inner.memory.stored().home,
        run: Uuid::new_v4(),
        address: address.to_string(),
        features: features::READ.map(str::to_owned).into(),
        lodging,
        answers: None,
    };
    let unsure = Standing::Unsure("the registry has not heard of this run yet".to_owned());
    let standing = watch::Sender::new(unsure);
    let subscribed = standing.subscribe();
    let now = Instant::now();
    let mut this = Pulse {
        inner: Arc::clone(inner),
        node,
        identity: Identity::new(mine),
        lease: None,
        standing,
        epoch: now,
        heard_at: now,
        complaint: String::new(),
    };
    this.begin().await?;
    Ok((tokio::spawn(this.keep()).abort_handle(), subscribed))
}

impl Pulse {
    /// Returns once the name is this run's, or that cannot be told soon.
    async fn begin(&mut self) -> Result<(), Error> {
        let answered_by = self.epoch + ANSWERED_WITHIN;
        loop {
            // One that was half done finds its own key.
            let Ok(beaten) = timeout(BEGIN_WITHIN, self.beat()).await else { return Ok(()) };
            match beaten {
                Ok(()) if *self.standing.borrow() == Standing::Sure => return Ok(()),
                Ok(()) if Instant::now() >= answered_by => return Ok(()),
                Ok(()) => sleep(AGAIN_AFTER).await,
                Err(error) if error.kind() == ErrorKind::Conflict => return Err(error),
                Err(error) => {
                    self.complain(&error);
                    return Ok(());
                }
            }
        }
    }

    async fn keep(mut self) {
        loop {
            let undisturbed = self.complaint.is_empty() && *self.standing.borrow() == Standing::Sure;
            sleep(if undisturbed { BEAT_EVERY } else { AGAIN_AFTER }).await;
            match self.beat().await {
                Ok(()) => {
                    if !std::mem::take(&mut self.complaint).is_empty() {
                        tracing::info!(node = %self.node, "the registry knows again that this node lives");
                    }
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    self.standing.send_replace(Standing::Taken(error.to_string()));
                    return;
                }
                // Whether the lease has run out is for etcd to say.
                Err(error) => self.failed(&error),
            }
        }
    }

    fn failed(&mut self, error: &Error) {
        self.complain(error);
        self.identity.lost(self.epoch.elapsed());
        if self.heard_at.elapsed() >= LEASE {
            // Another run may have found the name free.
            self.stand(Standing::Unsure(format!(
                "the registry has not heard of this run for {} s: another may have this node's name",
                LEASE.as_secs()
            )));
        }
    }

    /// One heartbeat.
    async fn beat(&mut self) -> Result<(), Error> {
        let operation = format!("say that node {} lives", self.node);
        if let Some(lease) = self.lease {
            let kept = self.inner.client.keep_alive(lease).await;
            let kept = kept.map_err(|failure| self.inner.client.error(&operation, &[failure]))?;
            self.lease = kept.then_some(lease);
        }
        let seen = self.look(&operation).await?;
        if let Some(question) = &seen.question {
            self.answer(question);
        }
        let as_wanted = matches!(&seen.found, Found::Presence(there) if **there == self.identity.mine);
        match self.identity.look(&seen.found, self.epoch.elapsed(), Uuid::new_v4) {
            Step::Keep if self.lease.is_some() && as_wanted => self.sure(),
            Step::Keep => self.write(&operation, seen.mod_revision).await?,
            Step::Write => {
                if *self.standing.borrow() == Standing::Sure {
                    tracing::warn!(
                        node = %self.node,
                        found = if seen.mod_revision == 0 { "none" } else { "another" },
                        "the key that says that this node lives was lost; it is written again"
                    );
                }
                self.write(&operation, seen.mod_revision).await?;
            }
            Step::Ask(question) => self.ask(&operation, &question).await?,
            Step::Wait(why) => self.stand(Standing::Unsure(format!("{operation}: {why}"))),
            Step::End(why) => return Err(Error::conflict(format!("{operation}: {why}"))),
        }
        self.heard_at = Instant::now();
        Ok(())
    }

    async fn look(&self, operation: &str) -> Result<Seen, Error> {
        let (key, asks) = (self.inner.key(LIVE, &self.node), self.inner.key(QUESTIONS, &self.node));
        let answer = self.inner.read(operation, vec![range(&key), range(&asks)]).await?;
        let found_there = match found(&answer, 0).first() {
            None => Found::Nothing,
            Some(kv) if kv.lease == 0 => Found::Leftover,
            Some(kv) => match atomic::parse_json::<Presence>(&kv.value, &key, PRESENCE_SCHEMA) {
                Read::Found(presence) => Found::Presence(Box::new(presence)),
                Read::Absent => Found::NotUnderstood(format!("{key} is empty")),
                Read::Unreadable(reason) => Found::NotUnderstood(reason),
            },
        };
        let question = found(&answer, 1).first().and_then(|kv| {
            // One that is not understood gets no answer, and its run then waits for what is kept alive here.
            match atomic::parse_json::<Question>(&kv.value, &asks, QUESTION_SCHEMA) {
                Read::Found(question) => Some(question),
                Read::Absent | Read::Unreadable(_) => None,
            }
        });
        Ok(Seen { found: found_there, mod_revision: modified(&answer, 0), question })
    }

    /// The answer goes with the presence, which is written because of it.
    fn answer(&mut self, question: &Question) {
        if self.identity.hear(question) {
            let by = question.lodging.as_ref();
            tracing::warn!(
                node = %self.node,
                host = by.map(|by| by.host.as_str()),
                pid = by.map(|by| by.pid),
                data_dir = by.map(|by| by.data_dir.as_str()),
                "another agent was started under this node's name; it is told that this one lives"
            );
        }
    }

    /// Writes this run's presence, unless the key has changed since it was looked at: the next look tells.
    async fn write(&mut self, operation: &str, mod_revision: i64) -> Result<(), Error> {
        let lease = match self.lease {
            Some(lease) => lease,
            None => self.grant(operation).await?,
        };
        self.lease = Some(lease);
        let key = self.inner.key(LIVE, &self.node);
        let change = vec![put(&key, encode(operation, &self.identity.mine)?, lease)];
        if self.inner.tell(operation, vec![unchanged(&key, mod_revision)], change).await? {
            self.sure();
        }
        Ok(())
    }

    async fn ask(&mut self, operation: &str, question: &Question) -> Result<(), Error> {
        // It goes by itself, and is written again where the registry was away.
        let lease = self.grant(operation).await?;
        let key = self.inner.key(QUESTIONS, &self.node);
        let change: Vec<pb::RequestOp> = vec![put(&key, encode(operation, question)?, lease)];
        if self.inner.tell(operation, Vec::new(), change).await? {
            self.identity.asked();
        }
        self.stand(Standing::Unsure(format!(
            "{operation}: another agent has this node's name; it was asked"
        )));
        Ok(())
    }

    async fn grant(&self, operation: &str) -> Result<i64, Error> {
        let seconds = i64::try_from(LEASE.as_secs()).unwrap_or(i64::MAX);
        let lease = self.inner.client.grant(seconds).await;
        lease.map_err(|failure| self.inner.client.error(operation, &[failure]))
    }

    fn sure(&self) {
        self.stand(Standing::Sure);
    }

    fn stand(&self, standing: Standing) {
        let changed = self.standing.send_if_modified(|before| {
            let changed = *before != standing;
            before.clone_from(&standing);
            changed
        });
        if let Standing::Unsure(why) = standing
            && changed
        {
            tracing::warn!(node = %self.node, why, "this node's name may be another agent's");
        }
    }

    fn complain(&mut self, error: &Error) {
        let said = error.to_string();
        if self.complaint != said {
            tracing::warn!(error = said, "the registry does not know that this node lives; tried again");
            self.complaint = said;
        }
    }
}

fn encode(operation: &str, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::failed(format!("{operation}: {e}")))
}
