//! The Cluster service.

use super::{Api, status};
use e2d_api::errors;
use e2d_api::etcdserverpb as pb;
use e2d_api::etcdserverpb::cluster_server::Cluster;
use e2d_core::ids::Revision;
use std::sync::PoisonError;
use tonic::{Request, Response, Status};

/// What would change the membership is refused: there is no way to reach another member.
fn single_member() -> Status {
    Status::unimplemented("e2d: this version runs a single member; membership cannot be changed")
}

/// Whether etcd takes these for peer URLs: at least one, each with scheme, host and port, and nothing behind.
fn are_peer_urls(urls: &[String]) -> bool {
    let is_one = |url: &String| {
        let Some((scheme, rest)) = url.split_once("://") else { return false };
        let port = rest.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        matches!(scheme, "http" | "https") && port.is_some()
    };
    !urls.is_empty() && urls.iter().all(is_one)
}

impl Api {
    fn members(&self) -> Vec<pb::Member> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn member(&self, id: u64) -> Result<pb::Member, Status> {
        let found = self.members().into_iter().find(|member| member.id == id);
        found.ok_or_else(|| errors::MEMBER_NOT_FOUND.into())
    }

    fn check_peer_urls(&self, urls: &[String], of: Option<u64>) -> Result<(), Status> {
        if !are_peer_urls(urls) {
            return Err(errors::BAD_MEMBER_URLS.into());
        }
        let others = self.members().into_iter().filter(|member| Some(member.id) != of);
        if others.flat_map(|member| member.peer_ur_ls).any(|url| urls.contains(&url)) {
            return Err(errors::PEER_URLS_EXIST.into());
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.check_peer_urls(&request.into_inner().peer_ur_ls, None)?;
        Err(single_member())
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.member(request.into_inner().id)?;
        Err(single_member())
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        self.check_peer_urls(&request.peer_ur_ls, Some(request.id))?;
        self.member(request.id)?;
        Err(single_member())
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.consensus.linearize().await.map_err(status::not_read)?;
        }
        // Answers about the cluster have no revision.
        Ok(Response::new(pb::MemberListResponse { header: self.header(Revision(0)), members: self.members() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        // There are no learners to promote.
        self.member(request.into_inner().id)?;
        Err(errors::NOT_A_LEARNER.into())
    }
}
