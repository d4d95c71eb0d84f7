//! Claims of controllers that are not Holdfast, as they are made and released over this agent.

use std::sync::Arc;

use holdfast_proto::ids::{InstanceUuid, VolumeId};
use holdfast_proto::pb::agent as pb;
use holdfast_proto::record::{CLAIM_SCHEMA, ClaimRecord, Desired};
use holdfast_proto::unknown::Unknown;

use super::shared::Shared;
use crate::core::foreign::Stored;
use crate::core::instance::{InstanceName, Kind};
use crate::core::records::Lookup;
use crate::error::Error;

const OWNER_BYTES_MAX: usize = 64;
/// A claim that changes under us so often is being fought over.
const WRITES_MAX: usize = 16;

/// Every claim on this node, whether it counts or not.
pub(super) async fn list(shared: &Shared) -> Result<Vec<pb::Claim>, Error> {
    let found = shared.registry.claims(&shared.config.node).await?;
    Ok(found.iter().map(|(name, stored)| message(shared, name, stored)).collect())
}

fn message(shared: &Shared, name: &InstanceName, stored: &Stored) -> pb::Claim {
    match stored {
        Stored::Readable(claim) => pb::Claim {
            remaining_s: shared.lease_left(name, claim).map(super::orphans::seconds_up),
            ..told(claim)
        },
        Stored::Unreadable(problem) => pb::Claim {
            instance: name.to_string(),
            node: shared.config.node.to_string(),
            problem: problem.clone(),
            ..Default::default()
        },
    }
}

fn told(claim: &ClaimRecord) -> pb::Claim {
    pb::Claim {
        instance: claim.instance.clone(),
        uuid: claim.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        volume_id: claim.volume_id.to_string(),
        node: claim.node.to_string(),
        owner: claim.owner.clone(),
        desired: desired_as_str(claim.desired).to_owned(),
        lease_s: claim.lease_s,
        version: claim.version,
        remaining_s: None,
        problem: String::new(),
    }
}

fn desired_as_str(desired: Desired) -> &'static str {
    match desired {
        Desired::Keep => "keep",
        Desired::Running => "running",
        Desired::Stopped => "stopped",
    }
}

/// Claims an instance of this node, or renews a claim.
pub(super) async fn put(shared: &Arc<Shared>, request: &pb::PutClaimRequest) -> Result<pb::Claim, Error> {
    let name = name_of("claim", &request.instance)?;
    let mut wanted = wanted(shared, &name, request)?;
    for _ in 0..WRITES_MAX {
        wanted.version = match current(shared, &name).await? {
            Some(Stored::Readable(found)) => {
                let counts = shared.lease_left(&name, &found).is_none_or(|left| !left.is_zero());
                if found.owner != wanted.owner && counts {
                    return Err(Error::conflict(format!(
                        "claim {name}: {} has it; it has to release it, or let its lease run out",
                        found.owner
                    )));
                }
                wanted.unknown = found.unknown;
                found.version
            }
            Some(Stored::Unreadable(why)) => return Err(Error::failed(format!("claim {name}: {why}"))),
            None => {
                wanted.unknown = Unknown::default();
                0
            }
        };
        if shared.registry.put_claim(wanted.clone()).await? {
            shared.reconcile().await?;
            wanted.version += 1;
            return Ok(message(shared, &name, &Stored::Readable(Box::new(wanted))));
        }
    }
    Err(Error::conflict(format!("claim {name}: the claim keeps changing; try again")))
}

/// Releases an instance.
pub(super) async fn delete(
    shared: &Arc<Shared>,
    request: &pb::DeleteClaimRequest,
) -> Result<pb::Claim, Error> {
    let name = name_of("release", &request.instance)?;
    for _ in 0..WRITES_MAX {
        let Some(found) = current(shared, &name).await? else {
            return Err(Error::not_found(format!("release {name}: nobody claims it")));
        };
        let version = match &found {
            Stored::Readable(claim) if request.owner.is_empty() || request.owner == claim.owner => {
                claim.version
            }
            Stored::Readable(claim) => {
                let why = format!("release {name}: {} has it, not {}", claim.owner, request.owner);
                return Err(Error::conflict(why));
            }
            Stored::Unreadable(_) if request.owner.is_empty() => 0,
            Stored::Unreadable(why) => {
                let why = format!("release {name}: {why}; leave out the owner to remove it");
                return Err(Error::failed(why));
            }
        };
        if shared.registry.delete_claim(&shared.config.node, &name, version).await? {
            shared.reconcile().await?;
            return Ok(message(shared, &name, &found));
        }
    }
    Err(Error::conflict(format!("release {name}: the claim keeps changing; try again")))
}

fn name_of(operation: &str, text: &str) -> Result<InstanceName, Error> {
    text.parse().map_err(|e| Error::invalid(format!("{operation} {text}: {e}")))
}

async fn current(shared: &Shared, name: &InstanceName) -> Result<Option<Stored>, Error> {
    Ok(shared.registry.claims(&shared.config.node).await?.remove(name))
}

fn wanted(shared: &Shared, name: &InstanceName, request: &pb::PutClaimRequest) -> Result<ClaimRecord, Error> {
    let invalid = |why: String| Error::invalid(format!("claim {name}: {why}"));
    let desired = match request.desired.as_str() {
        "" | "keep" => Desired::Keep,
        "running" => Desired::Running,
        "stopped" => Desired::Stopped,
        other => {
            return Err(invalid(format!("desired: expected keep, running or stopped, found {other:?}")));
        }
    };
    if desired == Desired::Running && name.kind() == Kind::Engine {
        return Err(invalid("an engine runs where its volume is attached; attach it instead".to_owned()));
    }
    let owner = &request.owner;
    if owner.is_empty() || owner.len() > OWNER_BYTES_MAX || owner.chars().any(char::is_control) {
        return Err(invalid(format!(
            "owner: expected 1 to {OWNER_BYTES_MAX} printable bytes, found {owner:?}"
        )));
    }
    let uuid = match request.uuid.as_str() {
        "" => None,
        text => Some(text.parse::<InstanceUuid>().map_err(|e| invalid(format!("uuid: {e}")))?),
    };
    let volume_id = match request.volume_id.as_str() {
        "" => volume_of(shared, name).ok_or_else(|| {
            Error::not_found(format!(
                "claim {name}: there is no volume {} and nothing runs under that name; give the volume's id",
                name.volume()
            ))
        })?,
        text => text.parse().map_err(|e| invalid(format!("volume id: {e}")))?,
    };
    Ok(ClaimRecord {
        schema: CLAIM_SCHEMA,
        instance: name.to_string(),
        uuid,
        node: shared.config.node.clone(),
        volume_id,
        owner: owner.clone(),
        desired,
        lease_s: request.lease_s,
        version: 0,
        unknown: Unknown::default(),
    })
}

/// The volume that a name means now.
fn volume_of(shared: &Shared, name: &InstanceName) -> Option<VolumeId> {
    let records = Arc::clone(&shared.records.lock());
    if let Lookup::Found(record) = records.lookup(name.volume().as_str()) {
        return Some(record.id);
    }
    let name = name.to_string();
    let runs = shared.snapshot().instances.into_iter().find(|instance| instance.name == name)?;
    runs.volume_id.parse().ok()
}

impl Shared {
    /// How long a claim counts unless it is renewed; none: for good. Zero: it counts no more.
    fn lease_left(&self, name: &InstanceName, claim: &ClaimRecord) -> Option<std::time::Duration> {
        self.leases.lock().left(name, claim, self.now())
    }
}
