//! `holdfast.agent.v1.Volumes`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::volumes_server::Volumes;
use tonic::{Request, Response, Status};

use super::Service;
use super::status::status;

#[tonic::async_trait]
impl Volumes for Service {
    async fn create(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.create_volume(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn attach(
        &self,
        request: Request<pb::AttachVolumeRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.attach_volume(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn detach(
        &self,
        request: Request<pb::DetachVolumeRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.detach_volume(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn delete(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeReply>, Status> {
        self.node.delete_volume(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn undelete(
        &self,
        request: Request<pb::UndeleteVolumeRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.undelete_volume(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn add_replica(
        &self,
        request: Request<pb::AddReplicaRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.add_replica(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn remove_replica(
        &self,
        request: Request<pb::RemoveReplicaRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.remove_replica(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn replace_replica(
        &self,
        request: Request<pb::ReplaceReplicaRequest>,
    ) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.replace_replica(request.into_inner()).await.map(Response::new).map_err(status)
    }
    async fn get(&self, request: Request<pb::GetVolumeRequest>) -> Result<Response<pb::VolumeInfo>, Status> {
        self.node.volume(&request.get_ref().name).await.map(Response::new).map_err(status)
    }
    async fn list(
        &self,
        _request: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesReply>, Status> {
        let snapshot = self.node.snapshot();
        Ok(Response::new(pb::ListVolumesReply { revision: snapshot.revision, volumes: snapshot.volumes }))
    }
}
