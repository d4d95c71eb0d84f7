//! What an engine asks of the registry, executed for it: change the status if the record is still as it was read.
//!
//! The rules are those of `replication-rules`: the comparison is with exactly the version that the engine expected
//! when it asked, never with a newer one; a conflict answers with the record as it is; that there is no record, or only
//! one that means another engine, is an answer of its own. What cannot be read or stored is an error, and the engine is told no more than that.

use holdfast_proto::ids::{Generation, VolumeId, VolumeName};
use holdfast_proto::pb::instance as pb;
use holdfast_proto::pb::instance::registry_result_request::{Conflict, Missing, Outcome, Stored};
use holdfast_proto::record::{VolumeRecord, VolumeStatus};

use super::{Read, Registry, Swap};
use crate::core::instance::InstanceName;
use crate::error::Error;

/// Executes `ask` for an engine of the volume `name`, `id`. `stamps`: every reader of the record knows `status.round`.
///
/// # Errors
/// When the registry cannot tell; nothing was decided, and the same ask may be executed again.
pub async fn execute(
    registry: &dyn Registry,
    name: &VolumeName,
    id: VolumeId,
    ask: &pb::RegistryCas,
    stamps: bool,
) -> Result<Outcome, Error> {
    if ask.volume_id != id.to_string() {
        return Err(Error::invalid(format!("ask for volume {}: this engine serves {id}", ask.volume_id)));
    }
    let record = match registry.get(name).await? {
        Read::Found(record) if record.id == id => record,
        Read::Found(_) | Read::Absent => return Ok(Outcome::Missing(Missing {})),
        Read::Unreadable(reason) => return Err(Error::failed(format!("read volume {name}: {reason}"))),
    };
    let Some(mut status) = wished(ask, &record, registry) else { return Ok(conflict(&record, registry)) };
    if let Some(jump) = jump(&record.status, &status) {
        return Err(Error::invalid(format!("volume {name}: {jump}")));
    }
    // Engines are not told of what this build does not know, and so cannot mean to take it away.
    status.unknown.clone_from(&record.status.unknown);
    if !stamps {
        let same = status.view.order() == record.status.view.order();
        status.round = if same { record.status.round } else { 0 };
    }
    if takes_over_from_another(&record, &status) {
        return Ok(Outcome::Missing(Missing {}));
    }
    if record.version != ask.expected_version {
        // The same ask, repeated because its answer was lost: it was done, and is not done twice.
        let done = record.version > ask.expected_version && record.status == status;
        return Ok(if done { stored(record.version) } else { conflict(&record, registry) });
    }
    let wanted = VolumeRecord { status, ..record };
    Ok(match registry.compare_and_swap(ask.expected_version, wanted).await? {
        Swap::Stored(record) => stored(record.version),
        Swap::Conflict(record) => conflict(&record, registry),
        Swap::Missing => Outcome::Missing(Missing {}),
    })
}

/// The status that the engine wants, if it is one that may ever follow the record's.
fn wished(ask: &pb::RegistryCas, record: &VolumeRecord, registry: &dyn Registry) -> Option<VolumeStatus> {
    let status = VolumeStatus::try_from(ask.status.as_ref()?)
        .inspect_err(|error| tracing::error!(volume = %record.name, %error, "an engine's status"))
        .ok()?;
    let goes_back = status.generation < record.status.generation
        || status.view.order() < record.status.view.order()
        || status.generation == Generation(0);
    // A history ends only because a person said so, and for the one that was named then.
    let force = record.spec.attach.as_ref().and_then(|attach| attach.force_from.as_ref());
    let history = status.lineage == record.status.lineage
        || force.is_some_and(|force| {
            force.counts(&record.status)
                && force.lineage == status.lineage
                && status.view.members.iter().eq([force.replica])
        });
    // An engine that read the registry in another life knows nothing about this one.
    (!goes_back && history && status.incarnation == registry.incarnation()).then_some(status)
}

/// What is stored here every later engine has to exceed: what cannot have come about is not stored, whoever asks.
fn jump(before: &VolumeStatus, wish: &VolumeStatus) -> Option<String> {
    let told = |what: &str, wish: u64, before: u64| {
        Some(format!("an engine wants {what} {wish}, expected at most 2^32 above the record's {before}"))
    };
    if wish.generation.jumps_from(before.generation) || wish.view.generation > wish.generation {
        return told("generation", wish.generation.max(wish.view.generation).0, before.generation.0);
    }
    let (epoch, known) = (wish.view.epoch, before.view.epoch);
    if epoch.jumps_from(known) { told("epoch", epoch.0, known.0) } else { None }
}

/// Whether an engine wants to take the volume over while the record means another creation: the volume was attached anew
/// since this one was started, and it would fence the one that is wanted.
#[must_use]
pub fn takes_over_from_another(record: &VolumeRecord, wish: &VolumeStatus) -> bool {
    let name = InstanceName::engine(&record.name).to_string();
    let meant = record.status.instance_uuids.get(&name);
    wish.generation > record.status.generation && meant.is_some_and(|meant| *meant != wish.engine_instance)
}

/// The record's status as engines are told it: in this life of the registry, whatever the record was written in.
#[must_use]
pub fn status_for_engine(record: &VolumeRecord, registry: &dyn Registry) -> pb::VolumeStatus {
    let mut status = pb::VolumeStatus::from(&record.status);
    status.incarnation = registry.incarnation().to_string();
    status
}

fn stored(version: u64) -> Outcome {
    Outcome::Stored(Stored { version })
}

fn conflict(record: &VolumeRecord, registry: &dyn Registry) -> Outcome {
    Outcome::Conflict(Conflict { version: record.version, status: Some(status_for_engine(record, registry)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;
    use crate::registry::file::FileRegistry;
    use holdfast_proto::ids::InstanceUuid;
    use holdfast_proto::record::{AttachSpec, ForceFrom};
    use holdfast_proto::unknown::Unknown;

    struct Fixture {
        _tmp: tempfile::TempDir,
        registry: FileRegistry,
        record: VolumeRecord,
    }

    async fn fixture() -> Fixture {
        let tmp = tempfile::tempdir().unwrap();
        let registry = FileRegistry::open(&tmp.path().join("registry")).unwrap();
        let mut record = record("demo", "node-a", 3);
        record.status.incarnation = registry.incarnation();
        let record = registry.create(record).await.unwrap();
        Fixture { _tmp: tmp, registry, record }
    }

    impl Fixture {
        fn attach(&self, expected_version: u64, generation: u64) -> pb::RegistryCas {
            let mut status = self.record.status.clone();
            status.generation = Generation(generation);
            status.engine_uuid = InstanceUuid::random();
            pb::RegistryCas {
                volume_id: self.record.id.to_string(),
                expected_version,
                status: Some((&status).into()),
            }
        }
        async fn execute(&self, ask: &pb::RegistryCas) -> Outcome {
            execute(&self.registry, &self.record.name, self.record.id, ask, true).await.unwrap()
        }
        async fn now(&self) -> VolumeRecord {
            match self.registry.get(&self.record.name).await.unwrap() {
                Read::Found(record) => record,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn an_attach_replaces_the_status_and_only_the_status() {
        let f = fixture().await;
        let ask = f.attach(1, 1);
        assert_eq!(f.execute(&ask).await, stored(2));
        let now = f.now().await;
        assert_eq!(now.status.generation, Generation(1));
        assert_eq!(now.spec, f.record.spec);
    }

    #[tokio::test]
    async fn the_same_ask_again_is_done_once() {
        let f = fixture().await;
        let ask = f.attach(1, 1);
        assert_eq!(f.execute(&ask).await, stored(2));
        assert_eq!(f.execute(&ask).await, stored(2));
        // An operator's wish in between changes the version, not what the engine did.
        let mut wish = f.now().await;
        wish.spec.attach = Some(AttachSpec {
            node: "node-a".parse().unwrap(),
            nbd_tcp: None,
            force_from: None,
            unknown: Unknown::default(),
        });
        f.registry.compare_and_swap(2, wish).await.unwrap();
        assert_eq!(f.execute(&ask).await, stored(3));
        assert_eq!(f.now().await.version, 3);
    }

    #[tokio::test]
    async fn cas_round_is_written_once_all_readers_know_it() {
        let f = fixture().await;
        let ask = |version, round| {
            let mut ask = f.attach(version, 1);
            ask.status.as_mut().unwrap().round = round;
            ask
        };
        let execute = async |ask: &pb::RegistryCas, stamps| {
            execute(&f.registry, &f.record.name, f.record.id, ask, stamps).await.unwrap()
        };
        assert_eq!(execute(&ask(1, 7), false).await, stored(2));
        assert_eq!(f.now().await.status.round, 0);
        assert_eq!(execute(&ask(2, 8), true).await, stored(3));
        assert_eq!(f.now().await.status.round, 8);
        // A reader that does not know it has come: what is there stays.
        assert_eq!(execute(&ask(3, 9), false).await, stored(4));
        assert_eq!(f.now().await.status.round, 8);
    }

    #[tokio::test]
    async fn a_delayed_ask_of_an_older_engine_conflicts_and_tells_the_record() {
        let f = fixture().await;
        let (old, new) = (f.attach(1, 1), f.attach(1, 2));
        assert_eq!(f.execute(&new).await, stored(2));
        let Outcome::Conflict(told) = f.execute(&old).await else { panic!("counterexample 7") };
        assert_eq!(told.version, 2);
        assert_eq!(told.status, new.status);
        // Not even with the version guessed right does a generation go back.
        assert!(matches!(f.execute(&f.attach(2, 1)).await, Outcome::Conflict(_)));
        assert_eq!(f.now().await.status.generation, Generation(2));
    }

    #[tokio::test]
    async fn an_engine_that_the_record_does_not_mean_any_more_takes_nothing_over() {
        let f = fixture().await;
        let (old, new) = (InstanceUuid::random(), InstanceUuid::random());
        let by = async |expected_version, generation, engine: InstanceUuid| {
            let mut status = f.now().await.status;
            (status.generation, status.engine_instance) = (Generation(generation), engine);
            f.execute(&pb::RegistryCas { status: Some((&status).into()), ..f.attach(expected_version, 0) })
                .await
        };
        let means = async |expected: u64, engine: InstanceUuid| {
            let mut record = f.now().await;
            record.status.instance_uuids.insert("demo.engine".into(), engine);
            f.registry.compare_and_swap(expected, record).await.unwrap();
        };
        means(1, old).await;
        assert_eq!(by(2, 1, old).await, stored(3));
        // What it has, it goes on with until a newer one has taken over.
        means(3, new).await;
        assert_eq!(by(4, 1, old).await, stored(5));
        assert_eq!(by(5, 2, old).await, Outcome::Missing(Missing {}));
        assert_eq!(by(5, 2, new).await, stored(6));
    }

    #[tokio::test]
    async fn an_engine_of_another_life_of_the_registry_conflicts() {
        let f = fixture().await;
        let mut ask = f.attach(1, 1);
        ask.status.as_mut().unwrap().incarnation = holdfast_proto::ids::Incarnation::random().to_string();
        let Outcome::Conflict(told) = f.execute(&ask).await else { panic!("another incarnation") };
        assert_eq!(told.status.unwrap().incarnation, f.registry.incarnation().to_string());
    }

    #[tokio::test]
    async fn a_history_ends_only_by_the_word_in_the_record() {
        let f = fixture().await;
        let lineage = holdfast_proto::ids::Lineage::random();
        let mut ask = f.attach(1, 1);
        ask.status.as_mut().unwrap().lineage = lineage.to_string();
        ask.status.as_mut().unwrap().view.as_mut().unwrap().members = vec![2];
        assert!(matches!(f.execute(&ask).await, Outcome::Conflict(_)), "nobody asked for it");
        let replica = holdfast_proto::ids::ReplicaId(2);
        let epoch = holdfast_proto::ids::Epoch(0);
        let word = |generation| {
            let force = ForceFrom {
                replica,
                even_if_syncing: false,
                lineage,
                generation: Generation(generation),
                epoch,
                unknown: Unknown::default(),
            };
            AttachSpec {
                node: "node-a".parse().unwrap(),
                nbd_tcp: None,
                force_from: Some(force),
                unknown: Unknown::default(),
            }
        };
        let mut wish = f.now().await;
        wish.spec.attach = Some(word(7));
        f.registry.compare_and_swap(1, wish.clone()).await.unwrap();
        ask.expected_version = 2;
        assert!(matches!(f.execute(&ask).await, Outcome::Conflict(_)), "it was served since");
        wish.spec.attach = Some(word(0));
        f.registry.compare_and_swap(2, wish).await.unwrap();
        ask.expected_version = 3;
        let mut wider = ask.clone();
        wider.status.as_mut().unwrap().view.as_mut().unwrap().members = vec![1, 2];
        assert!(matches!(f.execute(&wider).await, Outcome::Conflict(_)), "of one replica alone");
        assert_eq!(f.execute(&ask).await, stored(4));
        assert_eq!(f.now().await.status.lineage, lineage);
    }

    #[tokio::test]
    async fn a_generation_or_epoch_that_jumps_is_refused() {
        let f = fixture().await;
        let asked = async |generation: u64, view: (u64, u64)| {
            let mut ask = f.attach(1, generation);
            let wish = ask.status.as_mut().unwrap().view.as_mut().unwrap();
            (wish.generation, wish.epoch) = view;
            execute(&f.registry, &f.record.name, f.record.id, &ask, true).await
        };
        let far = Generation::JUMP_MAX;
        for (generation, view) in [
            (far + 1, (0, 1)),
            (u64::MAX, (0, 1)),
            (u64::MAX - 1, (0, 1)),
            (1, (0, far + 1)),
            (1, (1, u64::MAX)),
            (1, (2, 1)),
        ] {
            // An engine's number past the last one is no status at all.
            match asked(generation, view).await {
                Err(refused) => assert!(refused.to_string().contains("2^32"), "{refused}"),
                Ok(outcome) => assert!(matches!(outcome, Outcome::Conflict(_)), "{outcome:?}"),
            }
            assert_eq!(f.now().await.status, f.record.status);
        }
        assert_eq!(asked(far, (0, 1)).await.unwrap(), stored(2));
    }

    #[tokio::test]
    async fn missing_is_said_and_unreadable_is_no_answer() {
        let f = fixture().await;
        let ask = f.attach(1, 1);
        let foreign = execute(&f.registry, &f.record.name, VolumeId::random(), &ask, true).await;
        assert!(foreign.is_err(), "an engine asks for its own volume only");
        let path = f._tmp.path().join("registry/volumes/demo.json");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(execute(&f.registry, &f.record.name, f.record.id, &ask, true).await.is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(f.execute(&ask).await, Outcome::Missing(Missing {}));
    }

    #[tokio::test]
    async fn fields_that_engines_are_not_told_of_outlive_their_changes() {
        let f = fixture().await;
        let mut grown = serde_json::to_value(&f.record).unwrap();
        for level in ["", "/spec", "/status", "/spec/replicas/1"] {
            grown.pointer_mut(level).unwrap()["later"] = level.into();
        }
        let grown = serde_json::from_value(grown).unwrap();
        f.registry.compare_and_swap(1, grown).await.unwrap();
        let ask = f.attach(2, 1);
        assert_eq!(f.execute(&ask).await, stored(3));
        assert_eq!(f.execute(&ask).await, stored(3), "a repeat is known by what engines are told");
        let now = serde_json::to_string(&f.now().await).unwrap();
        assert_eq!(now.matches("\"later\":").count(), 4, "{now}");
    }

    #[tokio::test]
    async fn what_needs_an_unknown_feature_is_no_answer_for_an_engine() {
        let f = fixture().await;
        let path = f._tmp.path().join("registry/volumes/demo.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let newer = text.replacen('{', "{\"requires\": [\"tomorrow\"],", 1);
        std::fs::write(&path, &newer).unwrap();
        let said =
            execute(&f.registry, &f.record.name, f.record.id, &f.attach(1, 1), true).await.unwrap_err();
        assert!(said.to_string().contains("upgrade this node's agent"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    }

    #[tokio::test]
    async fn a_status_that_says_nothing_changes_nothing() {
        let f = fixture().await;
        let mut ask = f.attach(1, 1);
        ask.status.as_mut().unwrap().view = None;
        assert!(matches!(f.execute(&ask).await, Outcome::Conflict(_)));
        assert_eq!(f.now().await, f.record);
    }
}
