//! `holdfast.agent.v1.Registry`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::registry_server::Registry;
use tonic::{Request, Response, Status};

use super::Service;
use super::status::status;

#[tonic::async_trait]
impl Registry for Service {
    async fn show(
        &self,
        _request: Request<pb::ShowRegistryRequest>,
    ) -> Result<Response<pb::RegistryInfo>, Status> {
        self.node.show_registry().await.map(Response::new).map_err(status)
    }
    async fn accept(
        &self,
        request: Request<pb::AcceptRegistryRequest>,
    ) -> Result<Response<pb::RegistryInfo>, Status> {
        let shown = request.into_inner().shown_incarnation;
        self.node.accept_registry(shown).await.map(Response::new).map_err(status)
    }
}
