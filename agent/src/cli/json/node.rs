//! What is left on a node, and what speaks against restarting it.

use holdfast_proto::pb::agent as pb;
use serde::Serialize;

/// Something of a volume that is on a node.
#[derive(Debug, Serialize)]
struct Part<'a> {
    /// `*`: any.
    volume: &'a str,
    /// Null: its engine, or that cannot be told.
    replica: Option<&'a str>,
    reason: &'a str,
}

fn parts(reply: &pb::NodeParts) -> Vec<Part<'_>> {
    reply.parts.iter().map(Part::from).collect()
}

impl<'a> From<&'a pb::NodePart> for Part<'a> {
    fn from(part: &'a pb::NodePart) -> Self {
        Self { volume: &part.volume, replica: super::filled(&part.replica), reason: &part.reason }
    }
}

/// `node drain`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct NodeParts<'a> {
    node: &'a str,
    draining: bool,
    left: Vec<Part<'a>>,
}

impl<'a> From<&'a pb::NodeParts> for NodeParts<'a> {
    fn from(reply: &'a pb::NodeParts) -> Self {
        Self { node: &reply.node, draining: reply.draining, left: parts(reply) }
    }
}

/// `node safe-to-reboot`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SafeToReboot<'a> {
    node: &'a str,
    safe: bool,
    against: Vec<Part<'a>>,
}

impl<'a> From<&'a pb::NodeParts> for SafeToReboot<'a> {
    fn from(reply: &'a pb::NodeParts) -> Self {
        Self { node: &reply.node, safe: reply.parts.is_empty(), against: parts(reply) }
    }
}
