//! Starting a volume from one replica against the rules: what must be so, and what a person is told before.

use std::sync::Arc;

use holdfast_dataplane::layout::{Meta, read_label};
use holdfast_proto::ids::{Lineage, ReplicaId, VolumeName};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::record::{ForceFrom, ReplicaSet, View, VolumeRecord};
use holdfast_proto::unknown::Unknown;

use super::replicas::no_such;
use super::roles;
use super::shared::{Shared, blocking};
use super::volumes::read;
use crate::error::Error;
use crate::store::replica_dirs;

/// What `request` says about it, checked; none: the volume starts by the rules.
pub(super) async fn wanted(
    shared: &Arc<Shared>,
    name: &VolumeName,
    request: &pb::AttachVolumeRequest,
) -> Result<Option<ForceFrom>, Error> {
    if request.force_from.is_empty() {
        return Ok(None);
    }
    let told = |why: String| format!("attach volume {name} by force: {why}");
    let id: ReplicaId = request.force_from.parse().map_err(|e| Error::invalid(told(format!("{e}"))))?;
    let record = read(shared, "attach", name).await?;
    if !record.status.configured.contains(id) {
        let there = record.status.configured;
        return Err(Error::not_found(told(no_such(&record, id, there))));
    }
    let serves = |state: &str| matches!(state, "healthy" | "degraded" | "suspended" | "detaching");
    if let Some(volume) = shared.volume(name.as_str()).filter(|volume| serves(&volume.state)) {
        let why = format!("it is {}: detach it first, then attach it by force", volume.state);
        return Err(Error::refused(told(why)));
    }
    let (label, newest) = look(shared, &record, id).await.map_err(|why| Error::refused(told(why)))?;
    let before = record.spec.attach.as_ref().and_then(|attach| attach.force_from.clone());
    // The same word again, of a start that is still on its way.
    let before = before.filter(|before| before.replica == id && before.lineage != record.status.lineage);
    let of_it = |lineage| label.lineage == lineage;
    if !of_it(record.status.lineage) && !before.as_ref().is_some_and(|before| of_it(before.lineage)) {
        let why =
            format!("the data of {id} is of another history (lineage {}): it was left behind", label.lineage);
        return Err(Error::refused(told(why)));
    }
    if label.syncing && !request.even_if_syncing {
        let why = format!(
            "{id} was being filled, so that its blocks may be of different times; with --even-if-syncing it is \
             started from all the same"
        );
        return Err(Error::refused(told(why)));
    }
    let explained = explain(&record, id, &label, &newest);
    if !request.lose_writes {
        return Err(Error::refused(told(format!("{explained}\nTo do it, add --yes-lose-writes"))));
    }
    tracing::error!(volume = %name, "a person starts it by force from {id}: {explained}");
    let lineage = before.map_or_else(Lineage::random, |before| before.lineage);
    let (generation, epoch) = record.status.view.order();
    Ok(Some(ForceFrom {
        replica: id,
        even_if_syncing: request.even_if_syncing,
        lineage,
        generation,
        epoch,
        unknown: Unknown::default(),
    }))
}

/// The replica's label, and the newest view that anything on this node knows of.
async fn look(shared: &Arc<Shared>, record: &VolumeRecord, id: ReplicaId) -> Result<(Meta, View), String> {
    let (shared, record) = (Arc::clone(shared), record.clone());
    let looked = blocking(move || {
        let path = roles::data_dir(&shared, &record, id);
        let usable = replica_dirs::check(&path, id, record.id)
            .and_then(|()| read_label(&path).map_err(|e| e.to_string()));
        let labels = record.placed().filter_map(|spec| {
            let path = roles::data_dir(&shared, &record, spec.id);
            read_label(&path).ok().filter(|label| label.volume == record.id)
        });
        let views = labels.map(|label| label.view).chain([record.status.view]);
        let newest = views.max_by_key(View::order).unwrap_or(record.status.view);
        Ok(usable.map(|label| (label, newest)))
    });
    looked.await.map_err(|e| e.to_string())?.map_err(|why| format!("the data of {id} cannot be used: {why}"))
}

/// What a person must know before.
fn explain(record: &VolumeRecord, id: ReplicaId, label: &Meta, newest: &View) -> String {
    let others: ReplicaSet = record.status.configured.without(id);
    let lost = if newest.members.contains(id) && label.view == *newest {
        format!(
            "{id} was a member of the newest view known, {newest}; if a newer one exists on replicas that are not \
             here, what was acknowledged under it is lost"
        )
    } else if newest.members.contains(id) {
        format!(
            "the newest view known is {newest}, the newest that {id} heard of is {}; acknowledged writes may be lost",
            label.view
        )
    } else {
        format!(
            "the newest view known is {newest}, and {id} is no member of it (the newest that it heard of is {}): what \
             was acknowledged since it left is lost",
            label.view
        )
    };
    format!(
        "{lost}. A new history begins with {id} alone. The others, {others}, are never read or written again; their \
         data stays on disk. Replace them afterwards: `holdfast replica replace {} rN`",
        record.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::record;
    use holdfast_proto::ids::{Epoch, Generation};

    #[test]
    fn what_may_be_lost_names_both_views_and_the_others() {
        let tmp = tempfile::tempdir().unwrap();
        let record = record("demo", "node-a", 3);
        let path = tmp.path().join("r1");
        replica_dirs::create(&path, &"node-a".parse().unwrap(), ReplicaId(1), &record).unwrap();
        let label = read_label(&path).unwrap();
        let members = [2, 3].into_iter().map(ReplicaId).collect();
        let newest = View { generation: Generation(4), epoch: Epoch(9), members, needs_registry: false };
        let said = explain(&record, ReplicaId(1), &label, &newest);
        for words in ["4.9 {r2,r3}", "0.0 {r1,r2,r3}", "is lost", "replica replace demo"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let said = explain(&record, ReplicaId(1), &label, &label.view);
        assert!(said.contains("member of the newest view known"), "{said}");
    }
}
