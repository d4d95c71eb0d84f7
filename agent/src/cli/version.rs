//! `holdfast version`: works without an agent, and says more with one.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::{INSTANCE_PROTOCOL_MAX, INSTANCE_PROTOCOL_MIN};

use super::client::{Client, ask};
use super::output::Out;
use super::{Global, json};
use crate::complaint::Complaint;

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast version
  holdfast version -o json | jq -r .agent.version";

pub(super) async fn run(global: &Global, out: &Out) -> Result<(), Complaint> {
    let version = json::Version {
        version: env!("CARGO_PKG_VERSION"),
        instance_protocol_min: INSTANCE_PROTOCOL_MIN,
        instance_protocol_max: INSTANCE_PROTOCOL_MAX,
        agent: agent(global).await,
    };
    out.show(&version, || describe(&version))
}

/// No agent is no failure here.
async fn agent(global: &Global) -> Option<json::AgentVersion> {
    let client = Client::connect(global).await.ok()?;
    let reply = ask("ask for the version", client.node().version(pb::VersionRequest {})).await.ok()?;
    Some(json::AgentVersion {
        version: reply.version,
        instance_protocol_min: reply.instance_protocol_min,
        instance_protocol_max: reply.instance_protocol_max,
        socket: format!("unix:{}", client.socket.display()),
    })
}

fn describe(version: &json::Version<'_>) -> String {
    let own = format!(
        "holdfast {} (instance protocol {} to {})",
        version.version, version.instance_protocol_min, version.instance_protocol_max
    );
    match &version.agent {
        Some(agent) => format!(
            "{own}\nagent    {} (instance protocol {} to {}) on {}",
            agent.version, agent.instance_protocol_min, agent.instance_protocol_max, agent.socket
        ),
        None => format!("{own}\nagent    none reached"),
    }
}
