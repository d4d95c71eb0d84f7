//! Claims of others.

use holdfast_proto::pb::agent as pb;
use serde::Serialize;

/// One of `claim ls`, and `claim put` and `delete`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Claim<'a> {
    instance: &'a str,
    /// Only this creation; null: whichever has the name.
    uuid: Option<&'a str>,
    volume_id: &'a str,
    node: &'a str,
    owner: &'a str,
    desired: &'a str,
    /// 0: until it is deleted.
    lease_s: u32,
    /// Of the lease; null: no lease.
    remaining_s: Option<u64>,
    version: u64,
    /// Why nothing else in it can be relied on.
    problem: Option<&'a str>,
}

impl<'a> From<&'a pb::Claim> for Claim<'a> {
    fn from(claim: &'a pb::Claim) -> Self {
        Self {
            instance: &claim.instance,
            uuid: Some(claim.uuid.as_str()).filter(|uuid| !uuid.is_empty()),
            volume_id: &claim.volume_id,
            node: &claim.node,
            owner: &claim.owner,
            desired: &claim.desired,
            lease_s: claim.lease_s,
            remaining_s: claim.remaining_s,
            version: claim.version,
            problem: Some(claim.problem.as_str()).filter(|problem| !problem.is_empty()),
        }
    }
}

/// `claim ls`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Claims<'a> {
    claims: Vec<Claim<'a>>,
}

impl<'a> From<&'a pb::ListClaimsReply> for Claims<'a> {
    fn from(reply: &'a pb::ListClaimsReply) -> Self {
        Self { claims: reply.claims.iter().map(Claim::from).collect() }
    }
}
