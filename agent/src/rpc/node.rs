//! `holdfast.agent.v1.Node`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::node_server::Node;
use holdfast_proto::{INSTANCE_PROTOCOL_MAX, INSTANCE_PROTOCOL_MIN};
use tonic::{Request, Response, Status};

use super::Service;
use super::status::status;

#[tonic::async_trait]
impl Node for Service {
    async fn show(&self, _request: Request<pb::ShowNodeRequest>) -> Result<Response<pb::NodeInfo>, Status> {
        Ok(Response::new(self.node.node_info().await))
    }
    async fn list(
        &self,
        _request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesReply>, Status> {
        Ok(Response::new(pb::ListNodesReply { nodes: self.node.nodes().await }))
    }
    async fn list_replicas(
        &self,
        _request: Request<pb::ListReplicasRequest>,
    ) -> Result<Response<pb::ListReplicasReply>, Status> {
        // The revision is read first: a change meanwhile is then reported again, not missed.
        let revision = self.node.snapshot().revision;
        let replicas = self.node.replica_dirs().await;
        Ok(Response::new(pb::ListReplicasReply { revision, replicas }))
    }
    async fn allow_uninstall(
        &self,
        request: Request<pb::AllowUninstallRequest>,
    ) -> Result<Response<pb::AllowUninstallReply>, Status> {
        let allowed = self.node.allow_uninstall(request.into_inner().allowed).await.map_err(status)?;
        Ok(Response::new(pb::AllowUninstallReply { allowed }))
    }
    async fn drain(&self, request: Request<pb::NodeRequest>) -> Result<Response<pb::NodeParts>, Status> {
        let parts = self.node.drain_node(request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(parts))
    }
    async fn undrain(&self, request: Request<pb::NodeRequest>) -> Result<Response<pb::NodeSummary>, Status> {
        let node = self.node.undrain_node(request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(node))
    }
    async fn left(&self, request: Request<pb::NodeRequest>) -> Result<Response<pb::NodeParts>, Status> {
        let parts = self.node.left_on_node(&request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(parts))
    }
    async fn safe_to_reboot(
        &self,
        request: Request<pb::NodeRequest>,
    ) -> Result<Response<pb::NodeParts>, Status> {
        let parts = self.node.safe_to_reboot(&request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(parts))
    }
    async fn forget(&self, request: Request<pb::NodeRequest>) -> Result<Response<pb::NodeSummary>, Status> {
        let node = self.node.forget_node(request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(node))
    }
    async fn version(
        &self,
        _request: Request<pb::VersionRequest>,
    ) -> Result<Response<pb::VersionReply>, Status> {
        Ok(Response::new(pb::VersionReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance_protocol_min: INSTANCE_PROTOCOL_MIN,
            instance_protocol_max: INSTANCE_PROTOCOL_MAX,
        }))
    }
}
