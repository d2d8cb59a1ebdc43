//! etcd's v3 services.
//!
//! Only this module knows protobuf: it checks what can be checked without state, turns messages into requests, and
//! answers with etcd's codes and texts.

mod cluster;
mod convert;
mod gate;
mod health;
mod kv;
mod lease;
mod maintenance;
mod status;
pub mod watch;
pub mod wire;

pub use convert::Limits;

use crate::clock::ticks_since;
use crate::consensus::Handle;
use crate::http::serve::GrpcService;
use crate::http::services::End;
use crate::store::Store;
use e2d_api::etcdserverpb as pb;
use e2d_core::alarm::{Alarm, AlarmKind};
use e2d_core::ids::{ClusterId, Revision, Tick};
use e2d_core::lease::Lessor;
use e2d_core::mvcc::request::{Answer, Request, Response};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tonic::Status;

pub use crate::cli::ETCD_VERSION;

/// The version of etcd's cluster and storage that goes with [`ETCD_VERSION`].
pub const ETCD_MINOR_VERSION: &str = "3.6.0";

/// Services with a response that is encoded by hand, see [`wire`].
#[allow(missing_docs, clippy::all, unreachable_pub)]
mod generated {
    tonic::include_proto!("etcdserverpb");
}

/// What the services need. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

/// The parts of an [`Api`].
pub struct Inner {
    /// The cluster.
    pub cluster: ClusterId,
    /// Consensus.
    pub consensus: Handle,
    /// The store.
    pub store: Store,
    /// The leases.
    pub lessor: Arc<Mutex<Lessor>>,
    /// What a request may have.
    pub limits: Limits,
    /// The largest sum of records; `None` is without limit.
    pub quota_bytes: Option<u64>,
    /// For the shortest lease.
    pub election_timeout_millis: u64,
    /// The start of the process' time.
    pub started: Instant,
    /// A request that takes longer is warned about.
    pub warn_after: Duration,
    /// The alarms as of the last change.
    pub alarms: Arc<Mutex<Vec<Alarm>>>,
    /// The member list.
    pub members: Arc<Mutex<Vec<pb::Member>>>,
    /// Sweeps, for compactions that wait for them.
    pub swept: tokio::sync::watch::Receiver<Revision>,
    /// Rewrites the store without its free pages.
    pub compact_store: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl std::ops::Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    /// See the type.
    pub fn new(inner: Inner) -> Api {
        Api(Arc::new(inner))
    }

    /// The services. Whoever serves them bounds the size of messages.
    pub fn services<G: watch::Gate>(&self, watch: watch::WatchService<G>) -> impl GrpcService<Future: Send + 'static> {
        let services = End
            .with(e2d_api::health::health_server::HealthServer::new(self.clone()))
            .with(pb::cluster_server::ClusterServer::new(self.clone()).max_decoding_message_size(usize::MAX))
            .with(pb::maintenance_server::MaintenanceServer::new(self.clone()).max_decoding_message_size(usize::MAX))
            .with(pb::lease_server::LeaseServer::new(self.clone()).max_decoding_message_size(usize::MAX))
            .with(generated::watch_server::WatchServer::new(watch).max_decoding_message_size(usize::MAX))
            .with(generated::kv_server::KvServer::new(self.clone()).max_decoding_message_size(usize::MAX))
            .build();
        self.gate(services)
    }

    /// Reads one key, as health checks do.
    pub async fn check_read(&self, linearizable: bool) -> Result<(), Status> {
        if linearizable {
            self.consensus.linearize().await.map_err(status::not_read)?;
        }
        let read = self.store.read(|view, published| view.get(b"health", published.revision).map(drop));
        read.map_err(|error| status::damaged(&error))
    }

    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.consensus.member().0,
            revision: revision.0 as i64,
            raft_term: self.consensus.state().term().0,
        })
    }

    fn lessor(&self) -> MutexGuard<'_, Lessor> {
        self.lessor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Tick {
        ticks_since(self.started)
    }

    /// Puts a request through the log.
    async fn propose(&self, request: Request) -> Result<(Response, Revision), Status> {
        let Answer { revision, outcome } = self.consensus.propose(request).await.map_err(status::not_written)?.answer;
        match outcome {
            Ok(response) => Ok((response, revision)),
            Err(rejected) => Err(status::rejected(&rejected)),
        }
    }

    /// Refuses what would exceed the quota, and raises the alarm that keeps everybody else from trying.
    async fn check_quota(&self, bytes: usize) -> Result<(), Status> {
        let Some(quota) = self.quota_bytes else { return Ok(()) };
        if self.store.record_bytes() + bytes as u64 <= quota {
            return Ok(());
        }
        let alarm = Alarm { kind: AlarmKind::NoSpace, member: self.consensus.member() };
        if !self.alarms.lock().unwrap_or_else(PoisonError::into_inner).contains(&alarm) {
            tracing::warn!(
                quota_bytes = quota,
                used_bytes = self.store.record_bytes(),
                "the store has reached its quota: compact it, or raise --quota-backend-bytes, then disarm the alarm"
            );
            // When it cannot be raised now, the next request tries again.
            let _ = self.consensus.propose(Request::AlarmActivate(alarm)).await;
        }
        Err(e2d_api::errors::NO_SPACE.into())
    }
}
