//! `holdfast.agent.v1.Orphans`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::orphans_server::Orphans;
use tonic::{Request, Response, Status};

use super::Service;
use super::status::status;

#[tonic::async_trait]
impl Orphans for Service {
    async fn list(
        &self,
        _request: Request<pb::ListOrphansRequest>,
    ) -> Result<Response<pb::ListOrphansReply>, Status> {
        Ok(Response::new(pb::ListOrphansReply { orphans: self.node.orphans() }))
    }
    async fn hold(&self, request: Request<pb::OrphanRequest>) -> Result<Response<pb::Orphan>, Status> {
        let pb::OrphanRequest { name, uuid } = request.into_inner();
        self.node.hold_orphan(&name, &uuid).await.map(Response::new).map_err(status)
    }
    async fn release(&self, request: Request<pb::OrphanRequest>) -> Result<Response<pb::Orphan>, Status> {
        let pb::OrphanRequest { name, uuid } = request.into_inner();
        self.node.release_orphan(&name, &uuid).await.map(Response::new).map_err(status)
    }
    async fn delete(&self, request: Request<pb::OrphanRequest>) -> Result<Response<pb::Orphan>, Status> {
        let pb::OrphanRequest { name, uuid } = request.into_inner();
        self.node.delete_orphan(&name, &uuid).await.map(Response::new).map_err(status)
    }
}
