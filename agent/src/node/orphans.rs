//! Orphans and the trash, as the callers of the handle see them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::pb::agent as pb;

use super::shared::{Command, OrphanWish, Shared, blocking};
use crate::core::Moment;
use crate::core::orphan::{Hold, Orphan};
use crate::error::Error;
use crate::store::trash::{Trash, Waiting};

/// What no record claims, as it was seen last.
pub(super) fn list(shared: &Shared) -> Vec<pb::Orphan> {
    let seen = shared.orphans.lock();
    let since = shared.now().saturating_sub(seen.at);
    seen.list.iter().map(|orphan| message(orphan, since)).collect()
}

/// An orphan as it was seen so long ago.
pub(super) fn message(orphan: &Orphan, since: Duration) -> pb::Orphan {
    pb::Orphan {
        class: orphan.subject.class.as_str().to_owned(),
        name: orphan.subject.name.clone(),
        uuid: orphan.subject.uuid.to_string(),
        state: orphan.state.to_owned(),
        reason: orphan.reason.clone(),
        remaining_s: seconds_up(orphan.remaining),
        confirmed_s: orphan.confirmed.as_secs(),
        last_confirmed_s: orphan.last_confirmed_ago.map(|ago| (ago + since).as_secs()),
        held: matches!(orphan.hold, Hold::Person | Hold::Breaker),
        auto_cleanup: orphan.auto_cleanup,
    }
}

/// What is left is never told as nothing while there is something.
pub(super) fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

pub(super) async fn wish(
    shared: &Shared,
    wish: OrphanWish,
    name: &str,
    uuid: &str,
) -> Result<pb::Orphan, Error> {
    let (name, uuid) = (name.to_owned(), uuid.to_owned());
    shared.command(|reply| Command::Orphan { wish, name, uuid, reply }).await?
}

/// Does something with the trash, and tells what it was done to.
pub(super) async fn trash(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Trash, Moment) -> Result<Vec<Waiting>, Error> + Send + 'static,
) -> Result<Vec<pb::TrashItem>, Error> {
    let (trash, ttl, now) = (shared.trash.clone(), shared.config.trash_ttl, shared.now());
    let waiting = blocking(move || work(&trash, now)).await?;
    let item = |waiting: Waiting| pb::TrashItem {
        name: waiting.name,
        volume_id: waiting.volume_id.to_string(),
        from: waiting.step.from.to_string_lossy().into_owned(),
        path: waiting.step.to.to_string_lossy().into_owned(),
        at_unix_s: waiting.at_unix_s,
        remaining_s: seconds_up(ttl.saturating_sub(waiting.waited)),
        problem: waiting.problem,
    };
    Ok(waiting.into_iter().map(item).collect())
}
