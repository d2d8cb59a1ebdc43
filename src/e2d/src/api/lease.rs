//! The Lease service.

use super::{Api, status};
use e2d_api::errors;
use e2d_api::etcdserverpb as pb;
use e2d_api::etcdserverpb::lease_server::Lease;
use e2d_core::ids::LeaseId;
use e2d_core::lease::{LookupError, RenewError, ttl_to_grant};
use e2d_core::mvcc::request::{LeaseRemaining, Request as Change, Response as Changed};
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Lease for Api {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let request = request.into_inner();
        let ttl_seconds =
            ttl_to_grant(request.ttl, self.election_timeout_millis).map_err(|_| errors::LEASE_TTL_TOO_LARGE)?;
        self.check_quota(0).await?;
        let id = match request.id {
            0 => self.lessor().pick_id(rand::random()),
            id => LeaseId(id),
        };
        match self.propose(Change::LeaseGrant { id, ttl_seconds }).await? {
            (Changed::LeaseGrant { id, ttl_seconds }, revision) => Ok(Response::new(pb::LeaseGrantResponse {
                header: self.header(revision),
                id: id.0,
                ttl: ttl_seconds as i64,
                error: String::new(),
            })),
            (other, _) => unreachable!("a grant was answered with {other:?}"),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let id = LeaseId(request.into_inner().id);
        let (_, revision) = self.propose(Change::LeaseRevoke(id)).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.header(revision) }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        let api = self.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                // A client that went away ends its own stream; there is nobody to tell.
                let Ok(request) = request else { break };
                let answer = api.keep_alive(LeaseId(request.id)).await;
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let id = LeaseId(request.id);
        self.consensus.linearize().await.map_err(|_| Status::from(errors::NO_LEADER))?;
        let revision = self.store.published().revision;
        let lessor = self.lessor();
        let answer = match lessor.time_to_live(id, self.now()) {
            Ok(time) => pb::LeaseTimeToLiveResponse {
                header: self.header(revision),
                id: id.0,
                ttl: time.remaining_seconds as i64,
                granted_ttl: time.granted_seconds as i64,
                keys: if request.keys {
                    lessor.keys(id).map(bytes::Bytes::copy_from_slice).collect()
                } else {
                    Vec::new()
                },
            },
            Err(LookupError::NotFound(_)) => pb::LeaseTimeToLiveResponse {
                header: self.header(revision),
                id: id.0,
                ttl: -1,
                ..pb::LeaseTimeToLiveResponse::default()
            },
            Err(LookupError::NotPrimary) => return Err(errors::NO_LEADER.into()),
        };
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        _request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let leases = self.lessor().by_expiry().into_iter().map(|id| pb::LeaseStatus { id: id.0 }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.header(self.store.published().revision), leases }))
    }
}

impl Api {
    async fn keep_alive(&self, id: LeaseId) -> Result<pb::LeaseKeepAliveResponse, Status> {
        // etcd fills the revision in before it renews.
        let header = self.header(self.store.published().revision);
        self.consensus.linearize().await.map_err(|_| Status::from(errors::NO_LEADER))?;
        loop {
            let renewed = self.lessor().renew(id, self.now());
            let ttl = match renewed {
                Ok(seconds) => seconds as i64,
                // A lease that is gone is told by a TTL of 0, and the stream goes on.
                Err(RenewError::NotFound(_)) => 0,
                Err(RenewError::NotPrimary) => return Err(errors::NO_LEADER.into()),
                Err(RenewError::Expired(_)) => {
                    // Its end is on the way through the log: no answer may say that it lives.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(RenewError::Checkpointed(life)) => {
                    let clear = Change::LeaseCheckpoint {
                        leases: vec![LeaseRemaining { life, seconds: 0 }],
                        decided_in: self.consensus.state().term(),
                    };
                    self.consensus.propose(clear).await.map_err(status::not_written)?;
                    continue;
                }
            };
            return Ok(pb::LeaseKeepAliveResponse { header, id: id.0, ttl });
        }
    }
}
