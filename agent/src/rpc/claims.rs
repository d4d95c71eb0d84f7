//! `holdfast.agent.v1.Claims`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::claims_server::Claims;
use tonic::{Request, Response, Status};

use super::Service;
use super::status::status;

#[tonic::async_trait]
impl Claims for Service {
    async fn list(
        &self,
        _request: Request<pb::ListClaimsRequest>,
    ) -> Result<Response<pb::ListClaimsReply>, Status> {
        let claims = self.node.claims().await.map_err(status)?;
        Ok(Response::new(pb::ListClaimsReply { claims }))
    }
    async fn put(&self, request: Request<pb::PutClaimRequest>) -> Result<Response<pb::Claim>, Status> {
        self.node.claim(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn delete(&self, request: Request<pb::DeleteClaimRequest>) -> Result<Response<pb::Claim>, Status> {
        self.node.release_claim(request.into_inner()).await.map(Response::new).map_err(status)
    }
}
