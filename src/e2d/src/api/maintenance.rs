//! The Maintenance service.

use super::{Api, ETCD_MINOR_VERSION, ETCD_VERSION, status};
use e2d_api::errors;
use e2d_api::etcdserverpb as pb;
use e2d_api::etcdserverpb::alarm_request::AlarmAction;
use e2d_api::etcdserverpb::downgrade_request::DowngradeAction;
use e2d_api::etcdserverpb::maintenance_server::Maintenance;
use e2d_core::alarm::{Alarm, AlarmKind};
use e2d_core::ids::{MemberId, Revision};
use e2d_core::mvcc::hash::Hash;
use e2d_core::mvcc::request::{Rejected, Request as Change, Response as Changed};
use std::pin::Pin;
use std::sync::PoisonError;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Maintenance for Api {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let request = request.into_inner();
        let kind = match pb::AlarmType::try_from(request.alarm) {
            Ok(pb::AlarmType::None) => None,
            Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
            Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
            Err(_) => return Err(Status::invalid_argument(format!("e2d: unknown alarm type {}", request.alarm))),
        };
        let member = MemberId(request.member_id);
        let change = match (AlarmAction::try_from(request.action), kind) {
            (Ok(AlarmAction::Get), kind) => Change::AlarmGet(kind),
            (Ok(AlarmAction::Activate), Some(kind)) => Change::AlarmActivate(Alarm { kind, member }),
            (Ok(AlarmAction::Deactivate), Some(kind)) => Change::AlarmDeactivate(Alarm { kind, member }),
            // To raise or end no alarm is to do nothing.
            (Ok(AlarmAction::Activate | AlarmAction::Deactivate), None) => {
                let header = self.header(self.store.published().revision);
                return Ok(Response::new(pb::AlarmResponse { header, alarms: Vec::new() }));
            }
            (Err(_), _) => {
                return Err(Status::invalid_argument(format!("e2d: unknown alarm action {}", request.action)));
            }
        };
        match self.propose(change).await? {
            (Changed::Alarms(alarms), revision) => Ok(Response::new(pb::AlarmResponse {
                header: self.header(revision),
                alarms: alarms.into_iter().map(alarm_member).collect(),
            })),
            (other, _) => unreachable!("a request about alarms was answered with {other:?}"),
        }
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let state = self.consensus.state();
        let (used, file) = self.store.file_bytes().map_err(|error| status::damaged(&error))?;
        let leader = state.leader();
        let alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut errors: Vec<_> = alarms.iter().map(alarm_text).collect();
        if leader.is_none() {
            errors.push(errors::NO_LEADER.text.to_owned());
        }
        Ok(Response::new(pb::StatusResponse {
            header: self.header(self.store.published().revision),
            version: ETCD_VERSION.to_owned(),
            db_size: file as i64,
            leader: leader.map_or(0, |leader| leader.0),
            raft_index: state.committed().0,
            raft_term: state.term().0,
            raft_applied_index: self.consensus.applied().0,
            errors,
            db_size_in_use: used as i64,
            is_learner: false,
            storage_version: ETCD_MINOR_VERSION.to_owned(),
            db_size_quota: self.quota_bytes.map_or(0, |quota| quota as i64),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        _request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let compact = self.compact_store.clone();
        tokio::task::spawn_blocking(move || compact())
            .await
            .map_err(|_| Status::from(errors::STOPPED))?
            .map_err(Status::unknown)?;
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let (hash, revision) = self.hash_at(None).await?;
        Ok(Response::new(pb::HashResponse { header: self.header(revision), hash: hash.value }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let wanted = match request.into_inner().revision {
            0 => None,
            revision => Some(Revision(u64::try_from(revision).unwrap_or(0))),
        };
        let (hash, current) = self.hash_at(wanted).await?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.header(current),
            hash: hash.value,
            compact_revision: hash.compacted.map_or(-1, |compacted| compacted.0 as i64),
            hash_revision: hash.revision.0 as i64,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("e2d: this version does not stream snapshots in etcd's format"))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        if !self.consensus.leads() {
            return Err(errors::NOT_LEADER.into());
        }
        if MemberId(request.into_inner().target_id) != self.consensus.member() {
            return Err(errors::BAD_LEADER_TRANSFEREE.into());
        }
        // It leads already.
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        let request = request.into_inner();
        let done = || {
            let (header, version) = (self.header(Revision(0)), ETCD_MINOR_VERSION.to_owned());
            Ok(Response::new(pb::DowngradeResponse { header, version }))
        };
        match DowngradeAction::try_from(request.action) {
            // Nothing is under way, and to cancel nothing is no error.
            Ok(DowngradeAction::Cancel) => done(),
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
                if !is_version(&request.version) {
                    return Err(errors::DOWNGRADE_FORMAT.into());
                }
                // There is no older version of e2d whose files differ.
                Err(errors::DOWNGRADE_TARGET.into())
            }
            Err(_) => Err(Status::unknown("etcdserver: unknown method")),
        }
    }
}

/// Whether a text is three numbers with dots, perhaps with a suffix, as semantic versions are.
fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let mut parts = core.split('.');
    let number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u64>().is_ok());
    number(parts.next()) && number(parts.next()) && number(parts.next()) && parts.next().is_none()
}

fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member.0, alarm: kind.into() }
}

/// As etcd 3.6 prints it, the space at its end included.
fn alarm_text(alarm: &Alarm) -> String {
    format!("memberID:{} alarm:{} ", alarm.member.0, alarm.kind)
}

impl Api {
    /// The hash at a revision, or at the newest one; and the newest one.
    async fn hash_at(&self, wanted: Option<Revision>) -> Result<(Hash, Revision), Status> {
        let store = self.store.clone();
        let (outcome, current) = tokio::task::spawn_blocking(move || {
            store.read(|view, published| {
                let outcome: Result<Hash, Rejected> = match published.check(wanted) {
                    Ok(()) => Ok(Hash::of(view, published, store.swept(), wanted.unwrap_or(published.revision))?),
                    Err(rejected) => Err(rejected),
                };
                Ok((outcome, published.revision))
            })
        })
        .await
        .map_err(|_| Status::from(errors::STOPPED))?
        .map_err(|error| status::damaged(&error))?;
        Ok((outcome.map_err(|rejected| status::rejected(&rejected))?, current))
    }
}
