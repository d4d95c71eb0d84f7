//! `holdfast.agent.v1.Instances`.

use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::agent::instances_server::Instances;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Service, logs, watch};
use crate::error::Error;

#[tonic::async_trait]
impl Instances for Service {
    type WatchStream = ReceiverStream<Result<pb::WatchEvent, Status>>;
    type LogsStream = ReceiverStream<Result<pb::LogsChunk, Status>>;

    async fn list(
        &self,
        _request: Request<pb::ListInstancesRequest>,
    ) -> Result<Response<pb::ListInstancesReply>, Status> {
        let snapshot = self.node.snapshot();
        Ok(Response::new(pb::ListInstancesReply {
            revision: snapshot.revision,
            instances: snapshot.instances,
        }))
    }

    async fn get(
        &self,
        request: Request<pb::GetInstanceRequest>,
    ) -> Result<Response<pb::InstanceInfo>, Status> {
        let name = &request.get_ref().name;
        let found = self.node.snapshot().instances.into_iter().find(|instance| instance.name == *name);
        found.map(Response::new).ok_or_else(|| status(no_instance(name)))
    }

    async fn watch(
        &self,
        _request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (snapshot, changes) = self.node.subscribe();
        let node = self.node.clone();
        let look = move || node.snapshot();
        Ok(Response::new(watch::stream(snapshot, changes, look, self.stopped.clone())))
    }

    async fn logs(&self, request: Request<pb::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let path = self.node.log_path(&request.name).map_err(status)?;
        Ok(Response::new(logs::stream(path, request.tail_lines, request.follow, self.stopped.clone())))
    }

    async fn stop(
        &self,
        request: Request<pb::StopInstanceRequest>,
    ) -> Result<Response<pb::InstanceInfo>, Status> {
        let request = request.into_inner();
        self.node.stop_instance(&request.name, &request.uuid).await.map(Response::new).map_err(status)
    }
}

fn no_instance(name: &str) -> Error {
    let shown: String = name.chars().take(80).collect();
    Error::not_found(format!("show instance {shown}: there is none; `holdfast instance ls` lists all"))
}
