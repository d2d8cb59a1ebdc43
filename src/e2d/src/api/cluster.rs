//! The Cluster service.

use super::{Api, status};
use e2d_api::etcdserverpb as pb;
use e2d_api::etcdserverpb::cluster_server::Cluster;
use e2d_core::ids::Revision;
use std::sync::PoisonError;
use tonic::{Request, Response, Status};

/// Changes of membership are refused while there is no way to reach another member.
fn single_member() -> Status {
    Status::unimplemented("e2d: this version runs a single member; membership cannot be changed")
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_add(
        &self,
        _request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(single_member())
    }

    async fn member_remove(
        &self,
        _request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(single_member())
    }

    async fn member_update(
        &self,
        _request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(single_member())
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.consensus.linearize().await.map_err(status::not_read)?;
        }
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Answers about the cluster have no revision.
        Ok(Response::new(pb::MemberListResponse { header: self.header(Revision(0)), members }))
    }

    async fn member_promote(
        &self,
        _request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(single_member())
    }
}
