//! The conversation with a living instance: hello, confirm, configure, watch, and what it asks for; again and again
//! for as long as its process exists.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_proto::pb::instance as pb;
use holdfast_proto::pb::instance::ask::Ask;
use holdfast_proto::pb::instance::configure_request::Role;
use holdfast_proto::pb::instance::registry_result_request::{Outcome, Unavailable};
use holdfast_proto::pb::instance::watch_item::Item;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{DRAIN_WITHIN, StopWish, Task, port_of};
use crate::core::features::STAMPS;
use crate::core::instance::Event;
use crate::process::link::{self, Client};
use crate::registry::features::Features;
use crate::registry::{Registry, engine_cas};
use crate::store::instances::SpawnRecord;

const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// A process that lives and has not answered for so long is reported as one that cannot be asked.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// The first configuration opens data, which may mean reading maps from a slow disk.
const CONFIGURE_WITHIN: Duration = Duration::from_secs(60);
/// A registry that has not answered an ask for so long is told to be away. Engines hold I/O meanwhile.
const REGISTRY_WITHIN: Duration = Duration::from_secs(3);
/// What failed for a reason outside is not tried more often than this.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What a part of the conversation came to.
enum Done {
    Configured(Result<Box<Role>, String>),
    Answered(u64),
    Ended,
    Checking,
}

impl Task {
    /// Talks to the process `pid` until this future is dropped.
    pub(super) async fn talk(&mut self, pid: i32) {
        let mut delay = RECONNECT_MIN;
        let mut heard = Instant::now();
        let mut reported = false;
        let mut serves = None;
        loop {
            let begun = Instant::now();
            let problem = self.session(pid, &mut serves).await;
            let hung = match problem.heard {
                Heard::Yes => {
                    (heard, delay, reported) = (Instant::now(), RECONNECT_MIN, false);
                    false
                }
                // Its socket takes connections and nothing answers on them.
                Heard::No => begun.elapsed() >= link::ANSWER_WITHIN,
            };
            if !reported && (hung || heard.elapsed() >= SILENT_AFTER) {
                reported = true;
                tracing::warn!(instance = %self.record.name, why = problem.why, "it does not answer");
                let why = format!("it lives and does not answer: {}", problem.why);
                // A socket that another answers on says nothing of whom we would end.
                self.report(if hung { Event::Silent(why) } else { Event::Lost(why) }).await;
            }
            tracing::debug!(instance = %self.record.name, why = problem.why, after = ?begun.elapsed(), "again");
            sleep(delay).await;
            delay = (delay * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection. `serves` is what the instance was last told to serve.
    async fn session(&mut self, pid: i32, serves: &mut Option<Role>) -> Parted {
        let begun = match self.greet(pid).await {
            Ok(client) => client,
            Err(why) => return Parted { heard: Heard::No, why },
        };
        let why = match self.converse(begun, serves).await {
            Ok(()) => "it closed the connection".to_owned(),
            Err(status) => status.message().to_owned(),
        };
        Parted { heard: Heard::Yes, why }
    }

    async fn greet(&mut self, pid: i32) -> Result<Client, String> {
        let (mut client, _) = link::connect(&self.record.control_socket, Some(pid)).await?;
        link::hello(&mut client, &self.expected(Some(pid))).await?;
        let uuid = self.record.uuid.to_string();
        link::within(client.confirm(pb::ConfirmRequest { uuid }))
            .await
            .map_err(|e| format!("confirm: {e}"))?;
        self.report(Event::Confirmed).await;
        Ok(client)
    }

    async fn converse(&mut self, mut client: Client, serves: &mut Option<Role>) -> Result<(), tonic::Status> {
        let mut items = client.watch(pb::WatchRequest {}).await?.into_inner();
        // Ends with the session: what is unanswered then is asked again in the next.
        let mut work = JoinSet::new();
        let (mut configuring, mut ending) = (false, false);
        // Tried, and said to the limiter of logs, for as long as it fails.
        let mut asked = BTreeSet::new();
        loop {
            let wish = *self.stop.borrow_and_update();
            if let Some(wish) = wish.filter(|_| !ending) {
                ending = true;
                work.spawn(end(client.clone(), wish, self.record.name.to_string()));
            }
            if !configuring
                && wish.is_none()
                && let Some(role) = self.unserved(serves.as_ref())
            {
                configuring = true;
                work.spawn(configure(client.clone(), self.record.uuid.to_string(), role));
            }
            tokio::select! {
                item = items.message() => match item? {
                    None => return Ok(()),
                    Some(pb::WatchItem { item: Some(Item::Status(status)) }) => self.heard(status).await,
                    Some(pb::WatchItem { item: Some(Item::Ask(ask)) }) => {
                        self.asked(ask, &client, &mut asked, &mut work);
                    }
                    // Of a later protocol.
                    Some(pb::WatchItem { item: None }) => {}
                },
                Some(done) = work.join_next() => match done {
                    Ok(Done::Configured(result)) => {
                        configuring = false;
                        if let Err(why) = &result {
                            tracing::warn!(instance = %self.record.name, why, "not configured");
                        }
                        let why = result.as_ref().err().cloned();
                        self.configured(why).await;
                        if let Ok(role) = result {
                            *serves = Some(*role);
                        }
                    }
                    Ok(Done::Answered(ask_id)) => {
                        asked.remove(&ask_id);
                    }
                    Ok(Done::Ended | Done::Checking) => {}
                    Err(error) => tracing::error!(instance = %self.record.name, %error, "a task failed"),
                },
                Ok(()) = self.role.changed() => {}
                Ok(()) = self.stop.changed() => {}
                Ok(()) = self.check.changed() => {
                    work.spawn(check_clients(client.clone(), self.record.name.to_string()));
                }
            }
        }
    }

    /// What the instance should serve, if it does not yet.
    fn unserved(&mut self, serves: Option<&Role>) -> Option<Role> {
        let mut role = self.role.borrow_and_update().clone()?;
        if let Role::Replica(replica) = &mut role {
            replica.port_preferred = self.record.preferred_port.map_or(0, u32::from);
        }
        let known = serves.is_some_and(|serves| same_but_for_the_port(serves, &role));
        (!known).then_some(role)
    }

    /// Reports whether it serves what it was told to, where that is another answer than the last.
    async fn configured(&mut self, why_not: Option<String>) {
        if self.refused != why_not {
            self.refused.clone_from(&why_not);
            self.report(Event::Configured(why_not.map_or(Ok(()), Err))).await;
        }
    }

    async fn heard(&mut self, status: pb::InstanceStatus) {
        let port = status.replica.as_ref().and_then(|replica| port_of(&replica.address));
        if port.is_some() && port != self.record.preferred_port {
            self.record.preferred_port = port;
            self.write_record().await;
        }
        self.report(Event::Status(Box::new(status))).await;
    }

    fn asked(&self, ask: pb::Ask, client: &Client, asked: &mut BTreeSet<u64>, work: &mut JoinSet<Done>) {
        match ask.ask {
            // A new watcher is told again what is unanswered; one answer is enough.
            Some(Ask::RegistryCas(cas)) if asked.insert(ask.ask_id) => {
                let context = std::sync::Arc::clone(&self.context);
                let record = self.record.clone();
                let client = client.clone();
                work.spawn(async move {
                    let outcome = ask_registry(&*context.registry, &context.features, &record, &cas).await;
                    answer(client, record.uuid.to_string(), ask.ask_id, outcome).await;
                    Done::Answered(ask.ask_id)
                });
            }
            Some(Ask::RegistryCas(_)) => {}
            // Every configuration carries the newest address that is known; a newer one brings a new configuration.
            Some(Ask::ReplicaAddress(ask)) => {
                let (replica, reason) = (ask.replica_id, ask.reason);
                tracing::debug!(instance = %self.record.name, replica, reason, "it looks for a replica");
            }
            None => tracing::debug!(instance = %self.record.name, "an ask of a later protocol"),
        }
    }
}

/// Why a connection is over.
struct Parted {
    heard: Heard,
    why: String,
}

/// Whether the right instance answered.
enum Heard {
    Yes,
    No,
}

fn same_but_for_the_port(a: &Role, b: &Role) -> bool {
    match (a, b) {
        (Role::Replica(a), Role::Replica(b)) => {
            let mut a = a.clone();
            a.port_preferred = b.port_preferred;
            a == *b
        }
        (a, b) => super::same_settings(a, b),
    }
}

async fn configure(mut client: Client, uuid: String, role: Role) -> Done {
    let request = pb::ConfigureRequest { uuid, role: Some(role.clone()) };
    let told = link::within_time(CONFIGURE_WITHIN, client.configure(request)).await;
    if told.is_err() {
        sleep(TRY_AGAIN).await;
    }
    Done::Configured(told.map(|_| Box::new(role)))
}

/// Executes an ask; when the registry cannot tell for a while, that is the answer, and the engine knows what it may
/// do without one. What it then asks again is compared with what it expected at first.
async fn ask_registry(
    registry: &dyn Registry,
    features: &Features,
    record: &SpawnRecord,
    cas: &pb::RegistryCas,
) -> Outcome {
    let begun = Instant::now();
    loop {
        match engine_cas::execute(
            registry,
            record.name.volume(),
            record.volume_id,
            cas,
            features.may_write(STAMPS),
        )
        .await
        {
            Ok(outcome) => return outcome,
            Err(error) if begun.elapsed() >= REGISTRY_WITHIN => {
                tracing::warn!(instance = %record.name, %error, "the registry does not answer its ask");
                return Outcome::Unavailable(Unavailable { reason: error.to_string() });
            }
            Err(_) => sleep(TRY_AGAIN).await,
        }
    }
}

async fn answer(mut client: Client, uuid: String, ask_id: u64, outcome: Outcome) {
    let request = pb::RegistryResultRequest { uuid, ask_id, outcome: Some(outcome) };
    if let Err(why) = link::within(client.registry_result(request)).await {
        // It asks again, and the answer is the same.
        tracing::debug!(why, ask_id, "an answer was not taken");
    }
}

/// Lets an engine find out which clients are still there; its status says what came of it.
async fn check_clients(mut client: Client, name: String) -> Done {
    if let Err(why) = link::within(client.check_clients(pb::CheckClientsRequest {})).await {
        // One of an older build cannot.
        tracing::debug!(instance = name, why, "it does not check its clients");
    }
    Done::Checking
}

/// Ends the instance the gentle way; what does not follow is left to the signals.
async fn end(mut client: Client, wish: StopWish, name: String) -> Done {
    if wish.drain {
        let deadline_ms = u32::try_from(DRAIN_WITHIN.as_millis()).unwrap_or(u32::MAX);
        match link::within_time(DRAIN_WITHIN, client.drain(pb::DrainRequest { deadline_ms })).await {
            Ok(reply) if reply.clean => tracing::info!(instance = name, "drained"),
            Ok(reply) => tracing::warn!(instance = name, why = reply.reason, "drained, and not clean"),
            Err(why) => tracing::warn!(instance = name, why, "not drained"),
        }
    }
    if let Err(why) = link::within(client.stop(pb::StopRequest {})).await {
        tracing::debug!(instance = name, why, "it does not answer to a stop");
    }
    Done::Ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;
    use crate::registry::file::FileRegistry;
    use crate::store::instances::tests::sample;

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_cannot_tell_is_said_to_be_away_and_may_be_asked_again() {
        let tmp = tempfile::tempdir().unwrap();
        let registry = FileRegistry::open(&tmp.path().join("registry")).unwrap();
        let mut volume = record("demo", "node-a", 1);
        volume.status.incarnation = registry.incarnation();
        let volume = registry.create(volume).await.unwrap();
        let spawned = SpawnRecord { volume_id: volume.id, ..sample("demo.engine") };
        let mut status = volume.status.clone();
        status.generation = status.generation.next().unwrap();
        let cas = pb::RegistryCas {
            volume_id: volume.id.to_string(),
            expected_version: 1,
            status: Some((&status).into()),
        };
        let (path, away) = (tmp.path().join("registry/volumes"), tmp.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        let outcome = ask_registry(&registry, &Features::alone(), &spawned, &cas).await;
        assert!(
            matches!(&outcome, Outcome::Unavailable(told) if told.reason.contains("mounted")),
            "{outcome:?}"
        );
        std::fs::rename(&away, &path).unwrap();
        let outcome = ask_registry(&registry, &Features::alone(), &spawned, &cas).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
    }
}
