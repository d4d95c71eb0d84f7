//! The claims of others: `claims/NODE/INSTANCE`, which controllers may also write by themselves.

use std::collections::BTreeMap;

use holdfast_proto::ids::NodeName;
use holdfast_proto::record::{CLAIM_SCHEMA, ClaimRecord};

use super::{Inner, delete, found, put, range, range_below, unchanged};
use crate::core::foreign::Stored;
use crate::core::instance::InstanceName;
use crate::error::Error;
use crate::registry::{Read, check_claim, claimed};
use crate::store::atomic;

const CLAIMS: &str = "claims";

impl Inner {
    pub(super) async fn claims(&self, node: &NodeName) -> Result<BTreeMap<InstanceName, Stored>, Error> {
        let prefix = self.key(CLAIMS, format_args!("{node}/"));
        let answer = self.read("read the claims of others", vec![range_below(&prefix)]).await?;
        let claims = found(&answer, 0).iter().filter_map(|kv| {
            let key = String::from_utf8_lossy(&kv.key);
            // What has no instance's name claims none.
            let name: InstanceName = key.strip_prefix(&prefix)?.parse().ok()?;
            let stored = match self.parse_claim(node, &name, &kv.value) {
                Read::Found(claim) => Stored::Readable(Box::new(claim)),
                Read::Unreadable(reason) => Stored::Unreadable(reason),
                Read::Absent => Stored::Unreadable("it is empty".to_owned()),
            };
            Some((name, stored))
        });
        Ok(claims.collect())
    }

    fn parse_claim(&self, node: &NodeName, name: &InstanceName, bytes: &[u8]) -> Read<ClaimRecord> {
        let place = format!("{} in etcd", self.claim_key(node, name));
        atomic::parse_json(bytes, &place, CLAIM_SCHEMA).check(|claim| check_claim(claim, node, name, &place))
    }

    fn claim_key(&self, node: &NodeName, name: &InstanceName) -> String {
        self.key(CLAIMS, format_args!("{node}/{name}"))
    }

    /// A claim as it is, and the revision that a change of it compares.
    async fn claim(&self, node: &NodeName, name: &InstanceName) -> Result<(Read<ClaimRecord>, i64), Error> {
        let operation = format!("look at the claim of {name}");
        let answer = self.read(&operation, vec![range(&self.claim_key(node, name))]).await?;
        Ok(match found(&answer, 0).first() {
            Some(kv) => (self.parse_claim(node, name, &kv.value), kv.mod_revision),
            None => (Read::Absent, 0),
        })
    }

    pub(super) async fn put_claim(&self, mut claim: ClaimRecord) -> Result<bool, Error> {
        let name = claimed(&claim)?;
        let operation = format!("claim {name}");
        let (current, revision) = self.claim(&claim.node, &name).await?;
        let version = match current {
            Read::Found(current) => current.version,
            Read::Absent => 0,
            Read::Unreadable(reason) => return Err(Error::failed(format!("{operation}: {reason}"))),
        };
        if version != claim.version {
            return Ok(false);
        }
        claim.version += 1;
        let key = self.claim_key(&claim.node, &name);
        let bytes = serde_json::to_vec(&claim).map_err(|e| Error::failed(format!("{operation}: {e}")))?;
        match self.change(&operation, vec![unchanged(&key, revision)], vec![put(&key, bytes, 0)]).await {
            // The answer is lost: what stands there now may tell.
            Err(error) => match self.claim(&claim.node, &name).await {
                Ok((Read::Found(stored), _)) if stored == claim => Ok(true),
                _ => Err(error),
            },
            done => done,
        }
    }

    pub(super) async fn delete_claim(
        &self,
        node: &NodeName,
        name: &InstanceName,
        version: u64,
    ) -> Result<bool, Error> {
        let (current, revision) = self.claim(node, name).await?;
        match current {
            Read::Found(claim) if claim.version == version => {}
            Read::Unreadable(_) if version == 0 => {}
            Read::Found(_) | Read::Unreadable(_) | Read::Absent => return Ok(false),
        }
        let key = self.claim_key(node, name);
        let operation = format!("release {name}");
        match self.change(&operation, vec![unchanged(&key, revision)], vec![delete(&key)]).await {
            Err(error) => match self.claim(node, name).await {
                Ok((Read::Absent, _)) => Ok(true),
                _ => Err(error),
            },
            done => done,
        }
    }
}
