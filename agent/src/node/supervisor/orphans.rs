//! What nobody claims: read with each reconcile, remembered on disk, and cleaned only after one more look.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::pb::agent as pb;

use super::{
    Error, InstanceName, InstanceUuid, Kind, Reads, Shared, StopWish, Supervisor, VolumeId, blocking, proc,
    replica_dirs,
};
use crate::core::Moment;
use crate::core::claims::Claim;
use crate::core::orphan::{self, Class, Copy, Notice, Reading, Saved, Sighting, Standing, Subject, Tracker};
use crate::core::reconcile::World;
use crate::node::orphans::{message, seconds_up};
use crate::node::shared::{OrphanWish, SeenOrphans};
use crate::store::atomic::{self, Read};
use crate::store::replica_dirs::FoundDir;

/// Directories are looked through no more often, however often something else changes.
const DATA_EVERY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(in crate::node) struct Orphans {
    pub(super) tracker: Tracker,
    file: PathBuf,
    /// Look through the directories at the next chance, however short ago that was.
    pub(super) look_at_data: bool,
    data_at: Option<Moment>,
    /// [`Labels::changes`] before that.
    ///
    /// [`Labels::changes`]: crate::store::replica_dirs::Labels::changes
    pub(super) labels_then: u64,
    /// By class, what the last reading was made from.
    seen: BTreeMap<Class, Reading>,
}

impl Orphans {
    /// What an earlier agent remembered. Blocking.
    pub(in crate::node) fn load(file: PathBuf) -> Self {
        let tracker = match atomic::read_json::<Saved>(&file, orphan::SCHEMA) {
            Read::Found(saved) => Tracker::restore(Some(saved)),
            Read::Absent => Tracker::restore(None),
            Read::Unreadable(reason) => {
                tracing::warn!(
                    reason,
                    "what was known of orphans is lost; those that are found now are held"
                );
                Tracker::with_lost_history()
            }
        };
        Self { tracker, file, look_at_data: true, data_at: None, labels_then: 0, seen: BTreeMap::new() }
    }

    /// Whether all that was there had an owner when it was last read, and nobody wants it read again.
    pub(super) fn is_settled(&self) -> bool {
        !self.look_at_data
            && self.tracker.is_idle()
            && Class::ALL.iter().all(|class| self.seen.contains_key(class))
    }
}

impl Supervisor {
    /// Takes in what is there and who claims it, and cleans what is due.
    pub(super) async fn look_for_orphans(&mut self, shared: &Shared, asked_at: Moment, reads: Reads) {
        let settings = shared.orphan_settings.lock().clone();
        self.read_class(shared, Class::Instance, asked_at, reads, &settings).await;
        let aged = self.orphans.data_at.is_none_or(|at| asked_at.saturating_sub(at) >= DATA_EVERY);
        if std::mem::take(&mut self.orphans.look_at_data) || aged {
            self.orphans.data_at = Some(asked_at);
            self.orphans.labels_then = shared.labels.changes();
            self.read_class(shared, Class::ReplicaData, asked_at, reads, &settings).await;
        }
        if self.remember(shared).await {
            self.clean_what_is_due(shared, &settings).await;
            // An owner that the last look found ends what was confirmed before, also for a later agent.
            self.remember(shared).await;
        }
        self.show_orphans(shared, &settings);
    }

    async fn read_class(
        &mut self,
        shared: &Shared,
        class: Class,
        asked_at: Moment,
        reads: Reads,
        settings: &orphan::Settings,
    ) {
        let notices = match self.sightings(shared, class, reads).await {
            Ok(sightings) => {
                let reading = Reading { class, asked_at, sightings };
                let notices = self.orphans.tracker.observe(&reading, settings, shared.now());
                self.orphans.seen.insert(class, reading);
                notices
            }
            Err(error) => {
                self.orphans.seen.remove(&class);
                self.orphans.tracker.unread(class, &error.to_string(), settings, shared.now())
            }
        };
        notices.iter().for_each(say);
        let mut counts = shared.metrics.counts.lock();
        notices.iter().for_each(|notice| counts.orphan_is(notice));
    }

    /// Everything of a class that exists, and what the records that were read last say of it.
    async fn sightings(&self, shared: &Shared, class: Class, reads: Reads) -> Result<Vec<Sighting>, Error> {
        match class {
            Class::Instance => Ok(orphan::instances(self.world(shared, shared.now()))),
            Class::ReplicaData => {
                let copies = copies(shared, reads).await?;
                let world: World<'_> = self.world(shared, shared.now());
                Ok(orphan::data(world, &copies))
            }
        }
    }

    /// Makes durable what is to outlive this agent. False: it is not, so nothing may follow from it.
    async fn remember(&mut self, shared: &Shared) -> bool {
        let Some(saved) = self.orphans.tracker.save(shared.now()) else { return true };
        let file = self.orphans.file.clone();
        let replace = move || match atomic::newer(&file, orphan::SCHEMA) {
            Some(why) => Err(Error::refused(why)),
            None => atomic::replace_json(&file, &saved),
        };
        match blocking(replace).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "orphans are not remembered, so none is cleaned");
                self.orphans.tracker.not_saved();
                false
            }
        }
    }

    /// Asks the registry once more, and cleans what is still nobody's.
    async fn clean_what_is_due(&mut self, shared: &Shared, settings: &orphan::Settings) {
        let due = self.orphans.tracker.due(settings, shared.now());
        if due.is_empty() {
            return;
        }
        let asked_at = shared.now();
        self.read_records(shared, Reads::All).await;
        for class in Class::ALL {
            let Ok(sightings) = self.sightings(shared, class, Reads::All).await else { continue };
            for sighting in sightings.iter().filter(|sighting| due.contains(&sighting.subject)) {
                if self.orphans.tracker.confirm(sighting, asked_at, settings, shared.now()) {
                    let Sighting { subject, reason, .. } = sighting;
                    tracing::info!(class = %subject.class, name = subject.name, uuid = %subject.uuid, reason, "cleaning");
                    let cleaned = match self.clean(shared, subject).await {
                        Ok(Some(to)) => self.look_back(shared, subject, to).await.map(|()| true),
                        Ok(None) => Ok(false),
                        Err(error) => Err(error),
                    };
                    match cleaned {
                        Ok(true) => self.orphans.tracker.cleaned(subject),
                        // A process ends by itself.
                        Ok(false) => {}
                        Err(error) => {
                            tracing::warn!(name = subject.name, %error, "an orphan is not cleaned");
                            self.orphans.tracker.failed(subject, &error.to_string(), shared.now());
                        }
                    }
                }
            }
        }
    }

    /// Ends exactly this process, or moves exactly this directory: returns where it waits.
    async fn clean(&mut self, shared: &Shared, subject: &Subject) -> Result<Option<PathBuf>, Error> {
        match subject.class {
            Class::Instance => {
                let unknown = |_| Error::not_found(format!("clean {subject}: there is no such instance"));
                let name: InstanceName = subject.name.parse().map_err(unknown)?;
                let ours = self.instances.get(&name).is_some_and(|found| found.uuid().0 == subject.uuid);
                if !ours || !self.drivers.contains_key(&name) {
                    return Err(Error::conflict(format!("clean {subject}: it is not there to be told")));
                }
                let drain = name.kind() == Kind::Engine;
                self.stop(shared, &name, InstanceUuid(subject.uuid), StopWish { drain });
                self.forgetting.insert(name);
                Ok(None)
            }
            Class::ReplicaData => {
                let (trash, at) = (shared.trash.clone(), shared.when());
                let (name, volume) = (subject.name.clone(), VolumeId(subject.uuid));
                let lock = shared.data.replicas().join(&name).join("lock");
                let taken = blocking(move || match proc::probe(&lock)? {
                    proc::Life::Free => trash.take(&name, volume, at),
                    // Whoever it is: no instance of this agent, which would be known.
                    proc::Life::Held => {
                        let why = format!("a process holds {}", lock.display());
                        Err(Error::refused(format!("move {name} to the trash: {why}")))
                    }
                });
                let list = taken.await?;
                Ok(list.moves.into_iter().next().map(|step| step.to))
            }
        }
    }

    /// Puts a directory back that has just gone to the trash, where the copy that it was given up for is gone too.
    async fn look_back(&self, shared: &Shared, subject: &Subject, to: PathBuf) -> Result<(), Error> {
        let (path, from) = (to.clone(), shared.data.replicas().join(&subject.name));
        let found = blocking(move || Ok(replica_dirs::found(&path))).await.ok();
        let gone = found.and_then(|found| copy(shared, &FoundDir { path: from, ..found }, true));
        // A look that fails shows as little as one that finds no other copy.
        let why = match gone.filter(|gone| gone.volume.0 == subject.uuid) {
            Some(gone) => match copies(shared, Reads::All).await {
                Ok(copies) => match orphan::is_spared(self.world(shared, shared.now()), &copies, &gone) {
                    Ok(()) => return Ok(()),
                    Err(why) => why,
                },
                Err(error) => error.to_string(),
            },
            None => "its label cannot be read any more".to_owned(),
        };
        let (trash, name) =
            (shared.trash.clone(), to.file_name().unwrap_or_default().to_string_lossy().into_owned());
        blocking(move || trash.restore(&name)).await?;
        Err(Error::refused(format!("clean {subject}: {why}; it was put back")))
    }

    /// What a person wants, after everything was read again.
    pub(super) async fn obey_about_orphan(
        &mut self,
        shared: &Shared,
        wish: OrphanWish,
        name: &str,
        uuid: &str,
    ) -> Result<pb::Orphan, Error> {
        let what = match wish {
            OrphanWish::Hold => "hold",
            OrphanWish::Release => "release",
            OrphanWish::Delete => "delete",
        };
        let told = |why: &str| format!("{what} orphan {name}: {why}");
        let (asked_at, sighting) = self.find_orphan(name, uuid, &told)?;
        let settings = shared.orphan_settings.lock().clone();
        let subject = &sighting.subject;
        let before = self.orphans.tracker.orphan(subject, &settings, shared.now());
        match wish {
            OrphanWish::Hold => {
                self.orphans.tracker.hold(subject);
            }
            OrphanWish::Release => {
                self.orphans.tracker.release(subject);
            }
            OrphanWish::Delete => self.delete_orphan(shared, &sighting, asked_at, &told).await?,
        }
        if !self.remember(shared).await {
            return Err(Error::failed(told("it cannot be made durable; see the agent's log")));
        }
        shared.metrics.counts.lock().orphan_request(what);
        self.show_orphans(shared, &settings);
        let after = self.orphans.tracker.orphan(subject, &settings, shared.now());
        let shown = after.or(before).ok_or_else(|| Error::refused(told("it is starting or ending")))?;
        Ok(message(&shown, Duration::ZERO))
    }

    /// The one thing that nobody claims under this name.
    fn find_orphan(
        &self,
        name: &str,
        uuid: &str,
        told: &impl Fn(&str) -> String,
    ) -> Result<(Moment, Sighting), Error> {
        let named = |reading: &Reading| {
            let found = reading.sightings.iter().find(|sighting| sighting.subject.name == name);
            found.map(|sighting| (reading.asked_at, sighting.clone()))
        };
        let Some((asked_at, sighting)) = self.orphans.seen.values().find_map(named) else {
            return Err(Error::not_found(told(
                "there is nothing of that name; `holdfast orphan ls` lists all",
            )));
        };
        let found = sighting.subject.uuid.to_string();
        if !uuid.is_empty() && uuid != found {
            return Err(Error::conflict(told(&format!("expected {uuid}, found {found} under that name"))));
        }
        match sighting.claim {
            Claim::Claimed => Err(Error::refused(told(&sighting.reason))),
            Claim::Unknown => {
                let why = format!("whether it is claimed cannot be known: {}", sighting.reason);
                Err(Error::refused(told(&why)))
            }
            Claim::Unclaimed => Ok((asked_at, sighting)),
        }
    }

    async fn delete_orphan(
        &mut self,
        shared: &Shared,
        sighting: &Sighting,
        asked_at: Moment,
        told: &impl Fn(&str) -> String,
    ) -> Result<(), Error> {
        let subject = &sighting.subject;
        match (subject.class, &sighting.standing) {
            (_, Standing::Exempt) => return Err(Error::refused(told("it is starting or ending"))),
            (Class::Instance, _) => {
                self.stop_unclaimed(shared, &subject.name, &subject.uuid.to_string()).await?;
            }
            (Class::ReplicaData, Standing::Busy(why)) => return Err(Error::refused(told(why))),
            (Class::ReplicaData, _) => {}
        }
        self.orphans.tracker.delete(sighting, asked_at).map_err(|why| Error::refused(told(&why)))?;
        if subject.class == Class::ReplicaData {
            if let Err(error) = self.clean(shared, subject).await {
                self.orphans.tracker.failed(subject, &error.to_string(), shared.now());
                return Err(error);
            }
            self.orphans.tracker.cleaned(subject);
        }
        Ok(())
    }

    pub(super) fn orphan_info(&self, shared: &Shared, name: &InstanceName) -> Option<pb::OrphanInfo> {
        let uuid = self.instances.get(name)?.uuid().0;
        let subject = Subject { class: Class::Instance, name: name.to_string(), uuid };
        let settings = shared.orphan_settings.lock();
        let orphan = self.orphans.tracker.orphan(&subject, &settings, shared.now())?;
        Some(pb::OrphanInfo { state: orphan.state.to_owned(), remaining_s: seconds_up(orphan.remaining) })
    }

    fn show_orphans(&self, shared: &Shared, settings: &orphan::Settings) {
        let (now, tracker) = (shared.now(), &self.orphans.tracker);
        let list = tracker.orphans(settings, now).collect();
        *shared.orphans.lock() = SeenOrphans { at: now, list, stats: tracker.stats() };
    }
}

/// The directories of this node whose labels can be read.
async fn copies(shared: &Shared, reads: Reads) -> Result<Vec<Copy>, Error> {
    let (replicas, labels) = (shared.data.replicas(), Arc::clone(&shared.labels));
    let found = blocking(move || match reads {
        // Nothing is cleaned by this one.
        Reads::Changed => Ok(labels.scan(&replicas)?.into_iter().map(|found| (found, true)).collect()),
        Reads::All => {
            let found = replica_dirs::scan(&replicas)?.into_iter();
            Ok(found.map(|found| (found.image_fits(), found)).map(|(fits, found)| (found, fits)).collect())
        }
    });
    let found: Vec<(FoundDir, bool)> = found.await?;
    Ok(found.iter().filter_map(|(found, fits)| copy(shared, found, *fits)).collect())
}

/// A directory by its label; one whose label cannot be read is nobody's to judge.
fn copy(shared: &Shared, found: &FoundDir, image_fits: bool) -> Option<Copy> {
    let label = found.label.as_ref().ok()?;
    // The replica has not started since the machine went down, so its label cannot say yet that its cache was lost.
    let cache_lost = label.cache_lost || label.unflushed && label.boot != shared.boot_id;
    let sound = image_fits && !label.syncing && !cache_lost && label.failed.is_empty();
    Some(Copy {
        directory: found.path.file_name()?.to_str()?.to_owned(),
        volume_name: label.volume_name.clone(),
        volume: label.volume,
        replica: label.replica,
        lineage: label.lineage,
        order: label.view.order(),
        marked: found.marked,
        changing: shared.is_changing(label.volume_name.as_str()),
        whole: sound && label.view.members.contains(label.replica),
        in_place: found.is_in_place(),
    })
}

fn say(notice: &Notice) {
    let Notice { subject, from, to, reason, remaining } = notice;
    let (class, name, uuid) = (subject.class, &subject.name, subject.uuid);
    let remaining_s = remaining.as_secs();
    tracing::info!(%class, name, %uuid, from, to, remaining_s, reason, "orphan");
}
