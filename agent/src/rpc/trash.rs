//! `holdfast.agent.v1.Trash`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::trash_server::Trash;
use tonic::{Request, Response, Status};

use super::Service;
use super::status::status;

#[tonic::async_trait]
impl Trash for Service {
    async fn list(
        &self,
        _request: Request<pb::ListTrashRequest>,
    ) -> Result<Response<pb::ListTrashReply>, Status> {
        let items = self.node.trash().await.map_err(status)?;
        Ok(Response::new(pb::ListTrashReply { items }))
    }
    async fn restore(
        &self,
        request: Request<pb::RestoreTrashRequest>,
    ) -> Result<Response<pb::TrashItem>, Status> {
        self.node.restore_trash(&request.get_ref().name).await.map(Response::new).map_err(status)
    }
    async fn empty(
        &self,
        request: Request<pb::EmptyTrashRequest>,
    ) -> Result<Response<pb::ListTrashReply>, Status> {
        let items = self.node.empty_trash(&request.get_ref().name).await.map_err(status)?;
        Ok(Response::new(pb::ListTrashReply { items }))
    }
}
