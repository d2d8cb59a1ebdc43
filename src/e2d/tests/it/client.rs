//! A thin etcd client: the generated gRPC clients over one connection, and short ways to write requests down.
//!
//! It repeats nothing and hides nothing, because the tests are about the very answers.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use e2d_api::etcdserverpb::cluster_client::ClusterClient;
use e2d_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use e2d_api::etcdserverpb::kv_client::KvClient;
use e2d_api::etcdserverpb::lease_client::LeaseClient;
use e2d_api::etcdserverpb::maintenance_client::MaintenanceClient;
use e2d_api::etcdserverpb::request_op::Request as Op;
use e2d_api::etcdserverpb::response_op::Response as OpResponse;
use e2d_api::etcdserverpb::watch_client::WatchClient;
use e2d_api::etcdserverpb::watch_request::RequestUnion;
use e2d_api::etcdserverpb::*;
use e2d_api::health::health_client::HealthClient;
use e2d_api::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long an answer may take before the test fails. Longer than the 7 s after which a server gives up by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
#[derive(Debug, Clone)]
pub struct Client {
    kv: KvClient<Channel>,
    watch: WatchClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    health: HealthClient<Channel>,
}

macro_rules! unary {
    ($($method:ident, $service:ident, $rpc:ident, $request:ty => $response:ty;)*) => {$(
        pub async fn $method(&self, request: $request) -> Result<$response, Status> {
            let mut service = self.$service.clone();
            match timeout(PATIENCE, service.$rpc(request)).await {
                Ok(answer) => answer.map(tonic::Response::into_inner),
                Err(_) => panic!(concat!(stringify!($rpc), " was not answered within {:?}"), PATIENCE),
            }
        }
    )*};
}

impl Client {
    /// Calls a method that no service describes, and returns why it was refused.
    pub async fn call_unknown(url: &str, path: &'static str) -> Status {
        let channel = Endpoint::from_shared(url.to_owned())
            .expect("a URL")
            .connect()
            .await
            .expect("a connection");
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.expect("the connection is ready");
        let codec = tonic_prost::ProstCodec::<RangeRequest, RangeResponse>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let answer = timeout(
            PATIENCE,
            grpc.unary(tonic::Request::new(key("a")), path, codec),
        )
        .await;
        answer.expect("an answer").expect_err("no such method")
    }

    /// Connects to `url`.
    pub async fn connect(url: &str) -> Result<Client, tonic::transport::Error> {
        let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
        Ok(Client {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            health: HealthClient::new(channel),
        })
    }

    unary! {
        range, kv, range, RangeRequest => RangeResponse;
        put, kv, put, PutRequest => PutResponse;
        delete, kv, delete_range, DeleteRangeRequest => DeleteRangeResponse;
        txn, kv, txn, TxnRequest => TxnResponse;
        compact_request, kv, compact, CompactionRequest => CompactionResponse;
        grant_request, lease, lease_grant, LeaseGrantRequest => LeaseGrantResponse;
        revoke_request, lease, lease_revoke, LeaseRevokeRequest => LeaseRevokeResponse;
        time_to_live_request, lease, lease_time_to_live, LeaseTimeToLiveRequest => LeaseTimeToLiveResponse;
        leases_request, lease, lease_leases, LeaseLeasesRequest => LeaseLeasesResponse;
        members, cluster, member_list, MemberListRequest => MemberListResponse;
        member_add, cluster, member_add, MemberAddRequest => MemberAddResponse;
        member_remove, cluster, member_remove, MemberRemoveRequest => MemberRemoveResponse;
        member_update, cluster, member_update, MemberUpdateRequest => MemberUpdateResponse;
        member_promote, cluster, member_promote, MemberPromoteRequest => MemberPromoteResponse;
        alarm_request, maintenance, alarm, AlarmRequest => AlarmResponse;
        status_request, maintenance, status, StatusRequest => StatusResponse;
        defragment, maintenance, defragment, DefragmentRequest => DefragmentResponse;
        hash, maintenance, hash, HashRequest => HashResponse;
        hash_kv_request, maintenance, hash_kv, HashKvRequest => HashKvResponse;
        move_leader, maintenance, move_leader, MoveLeaderRequest => MoveLeaderResponse;
        downgrade, maintenance, downgrade, DowngradeRequest => DowngradeResponse;
        health_check, health, check, e2d_api::health::HealthCheckRequest => e2d_api::health::HealthCheckResponse;
    }

    /// Like [`Client::range`], with one more header.
    pub async fn range_with_metadata(
        &self,
        range: RangeRequest,
        name: &'static str,
        value: &'static [u8],
    ) -> Result<RangeResponse, Status> {
        let mut request = tonic::Request::new(range);
        request
            .metadata_mut()
            .insert(name, value.try_into().expect("a header value"));
        Ok(self.kv.clone().range(request).await?.into_inner())
    }

    pub async fn compact(&self, revision: i64) -> Result<CompactionResponse, Status> {
        self.compact_request(CompactionRequest {
            revision,
            physical: false,
        })
        .await
    }

    pub async fn grant(&self, id: i64, ttl: i64) -> Result<LeaseGrantResponse, Status> {
        self.grant_request(LeaseGrantRequest { ttl, id }).await
    }

    pub async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse, Status> {
        self.revoke_request(LeaseRevokeRequest { id }).await
    }

    pub async fn time_to_live(
        &self,
        id: i64,
        keys: bool,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        self.time_to_live_request(LeaseTimeToLiveRequest { id, keys })
            .await
    }

    /// The ids of all leases, in the order of the answer.
    pub async fn leases(&self) -> Vec<i64> {
        let answer = self
            .leases_request(LeaseLeasesRequest {})
            .await
            .expect("leases are listed");
        answer.leases.iter().map(|lease| lease.id).collect()
    }

    /// Renews one lease on a stream of its own.
    pub async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let mut stream = self.keep_alive_stream();
        stream.send(LeaseKeepAliveRequest { id });
        stream.next().await
    }

    pub fn keep_alive_stream(&self) -> Conversation<LeaseKeepAliveRequest, LeaseKeepAliveResponse> {
        let mut lease = self.lease.clone();
        Conversation::start(|requests| async move {
            Ok(lease.lease_keep_alive(requests).await?.into_inner())
        })
    }

    pub fn watch_stream(&self) -> WatchStream {
        let mut watch = self.watch.clone();
        Conversation::start(|requests| async move { Ok(watch.watch(requests).await?.into_inner()) })
    }

    /// Like [`Client::watch_stream`], with one more header.
    pub fn watch_stream_with_metadata(
        &self,
        name: &'static str,
        value: &'static [u8],
    ) -> WatchStream {
        let mut watch = self.watch.clone();
        Conversation::start(move |requests| async move {
            let mut request = tonic::Request::new(requests);
            request
                .metadata_mut()
                .insert(name, value.try_into().expect("a header value"));
            Ok(watch.watch(request).await?.into_inner())
        })
    }

    /// All messages of a snapshot.
    pub async fn snapshot(&self) -> Result<Vec<SnapshotResponse>, Status> {
        let mut stream = self
            .maintenance
            .clone()
            .snapshot(SnapshotRequest {})
            .await?
            .into_inner();
        let mut messages = Vec::new();
        while let Some(message) = timeout(PATIENCE, stream.message())
            .await
            .expect("the next piece of a snapshot")?
        {
            messages.push(message);
        }
        Ok(messages)
    }

    /// The first answer of the health service's stream.
    pub async fn health_watch(
        &self,
        service: &str,
    ) -> Result<e2d_api::health::HealthCheckResponse, Status> {
        let request = e2d_api::health::HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut stream = self.health.clone().watch(request).await?.into_inner();
        let first = timeout(PATIENCE, stream.message())
            .await
            .expect("a health stream answers at once")?;
        Ok(first.expect("a health stream does not end"))
    }

    pub async fn alarm(
        &self,
        action: AlarmAction,
        alarm: AlarmType,
        member_id: u64,
    ) -> Result<AlarmResponse, Status> {
        self.alarm_request(AlarmRequest {
            action: action.into(),
            member_id,
            alarm: alarm.into(),
        })
        .await
    }

    pub async fn status(&self) -> StatusResponse {
        self.status_request(StatusRequest {})
            .await
            .expect("the status is answered")
    }

    pub async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Status> {
        self.hash_kv_request(HashKvRequest { revision }).await
    }

    /// Puts and returns the revision of it.
    pub async fn put_ok(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> i64 {
        let answer = self
            .put(put(key, value))
            .await
            .expect("the put is accepted");
        revision(&answer.header)
    }

    /// Deletes one key and returns the revision of the store after it.
    pub async fn delete_ok(&self, key: impl AsRef<[u8]>) -> i64 {
        let answer = self
            .delete(delete(key))
            .await
            .expect("the delete is accepted");
        revision(&answer.header)
    }

    /// Grants a lease of 10 minutes with this id.
    pub async fn grant_ok(&self, id: i64) {
        self.grant(id, 600).await.expect("the lease is granted");
    }

    /// The key and its metadata, if it exists.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Option<KeyValue> {
        let answer = self
            .range(crate::client::key(key))
            .await
            .expect("the range is answered");
        answer.kvs.into_iter().next()
    }

    /// The current revision.
    pub async fn revision(&self) -> i64 {
        let answer = self
            .range(key("no such key"))
            .await
            .expect("the range is answered");
        revision(&answer.header)
    }
}

pub use e2d_api::etcdserverpb::alarm_request::AlarmAction;

/// A stream in both directions.
pub struct Conversation<Q, A> {
    requests: mpsc::UnboundedSender<Q>,
    answers: mpsc::UnboundedReceiver<Result<A, Status>>,
}

/// A stream of watches.
pub type WatchStream = Conversation<WatchRequest, WatchResponse>;

impl<Q: Send + 'static, A: Send + 'static> Conversation<Q, A> {
    /// The call runs in a task of its own: a server sends its headers with its first answer, which may need a request.
    fn start<F>(call: impl FnOnce(UnboundedReceiverStream<Q>) -> F) -> Self
    where
        F: Future<Output = Result<tonic::Streaming<A>, Status>> + Send + 'static,
    {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let (incoming, answers) = mpsc::unbounded_channel();
        let opened = call(UnboundedReceiverStream::new(outgoing));
        tokio::spawn(async move {
            let mut stream = match opened.await {
                Ok(stream) => stream,
                Err(status) => {
                    let _ = incoming.send(Err(status));
                    return;
                }
            };
            // A receiver that is gone means that the test has ended.
            while let Some(answer) = stream.message().await.transpose() {
                if incoming.send(answer).is_err() {
                    return;
                }
            }
        });
        Conversation { requests, answers }
    }

    /// Sends, or does nothing when the stream has ended: then [`Conversation::next`] tells why.
    pub fn send(&self, request: Q) {
        let _ = self.requests.send(request);
    }

    /// The next answer. Fails the test if none comes, or if the stream ends without an error.
    pub async fn next(&mut self) -> Result<A, Status> {
        match timeout(PATIENCE, self.answers.recv()).await {
            Ok(Some(answer)) => answer,
            Ok(None) => panic!("the stream ended without an error"),
            Err(_) => panic!("the stream said nothing within {PATIENCE:?}"),
        }
    }

    /// The next answer, if there is one within `patience`.
    pub async fn next_within(&mut self, patience: Duration) -> Option<Result<A, Status>> {
        timeout(patience, self.answers.recv()).await.ok().flatten()
    }
}

impl WatchStream {
    pub fn send_create(&self, create: WatchCreateRequest) {
        self.send(WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        });
    }

    pub fn send_cancel(&self, watch_id: i64) {
        self.send(WatchRequest {
            request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })),
        });
    }

    pub fn send_progress(&self) {
        self.send(WatchRequest {
            request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
        });
    }

    /// The next message, which must not be an error.
    pub async fn message(&mut self) -> WatchResponse {
        self.next().await.expect("the watch stream goes on")
    }

    /// Creates a watch and returns the answer, which must be the next message.
    pub async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.send_create(create);
        let created = self.message().await;
        assert!(
            created.created,
            "expected the answer to a create, found {created:?}"
        );
        created
    }

    /// Creates a watch that must be accepted and returns its id.
    pub async fn created(&mut self, create: WatchCreateRequest) -> i64 {
        let created = self.create(create).await;
        assert!(!created.canceled, "the watch was refused: {created:?}");
        created.watch_id
    }

    /// The next message, which must carry events of the watch.
    pub async fn events(&mut self, watch_id: i64) -> Vec<Event> {
        let message = self.message().await;
        assert!(
            message.watch_id == watch_id && !message.events.is_empty(),
            "expected events, found {message:?}"
        );
        message.events
    }

    /// Asks for progress until it is granted, and returns the revision. Anything else that arrives fails the test.
    pub async fn progress(&mut self) -> i64 {
        for _ in 0..200 {
            self.send_progress();
            if let Some(message) = self.next_within(Duration::from_millis(100)).await {
                let message = message.expect("the watch stream goes on");
                assert_eq!(message.watch_id, -1, "expected progress, found {message:?}");
                assert!(
                    message.events.is_empty() && !message.created && !message.canceled,
                    "{message:?}"
                );
                return revision(&message.header);
            }
        }
        panic!("progress was never granted");
    }
}

/// Bytes of a text or array.
pub fn b(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}

/// The revision of a header, which must be there.
#[track_caller]
pub fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().expect("the answer has a header").revision
}

/// A range over one key.
pub fn key(key: impl AsRef<[u8]>) -> RangeRequest {
    RangeRequest {
        key: b(key),
        ..Default::default()
    }
}

/// A range from `from` up to and without `to`.
pub fn keys(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> RangeRequest {
    RangeRequest {
        key: b(from),
        range_end: b(to),
        ..Default::default()
    }
}

/// A range over every key.
pub fn all_keys() -> RangeRequest {
    keys("\0", "\0")
}

pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> PutRequest {
    PutRequest {
        key: b(key),
        value: b(value),
        ..Default::default()
    }
}

pub fn delete(key: impl AsRef<[u8]>) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: b(key),
        ..Default::default()
    }
}

pub fn delete_keys(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: b(from),
        range_end: b(to),
        ..Default::default()
    }
}

/// A watch of one key from now on.
pub fn watch(key: impl AsRef<[u8]>) -> WatchCreateRequest {
    WatchCreateRequest {
        key: b(key),
        ..Default::default()
    }
}

/// A watch from `from` up to and without `to`.
pub fn watch_keys(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> WatchCreateRequest {
    WatchCreateRequest {
        key: b(from),
        range_end: b(to),
        ..Default::default()
    }
}

pub fn range_op(request: RangeRequest) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestRange(request)),
    }
}

pub fn put_op(request: PutRequest) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestPut(request)),
    }
}

pub fn delete_op(request: DeleteRangeRequest) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestDeleteRange(request)),
    }
}

pub fn txn_op(request: TxnRequest) -> RequestOp {
    RequestOp {
        request: Some(Op::RequestTxn(request)),
    }
}

/// A transaction without conditions.
pub fn txn(success: impl Into<Vec<RequestOp>>) -> TxnRequest {
    TxnRequest {
        success: success.into(),
        ..Default::default()
    }
}

/// A transaction whose `success` runs if the conditions hold, and `failure` otherwise.
pub fn txn_if(
    compare: impl Into<Vec<Compare>>,
    success: impl Into<Vec<RequestOp>>,
    failure: impl Into<Vec<RequestOp>>,
) -> TxnRequest {
    TxnRequest {
        compare: compare.into(),
        success: success.into(),
        failure: failure.into(),
    }
}

/// A condition on one key.
pub fn compare(key: impl AsRef<[u8]>, result: CompareResult, target: TargetUnion) -> Compare {
    let kind = match target {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: kind.into(),
        key: b(key),
        range_end: Bytes::new(),
        target_union: Some(target),
    }
}

/// The answer to the range at `index` of a transaction.
#[track_caller]
pub fn range_answer(answer: &TxnResponse, index: usize) -> &RangeResponse {
    match &answer.responses[index].response {
        Some(OpResponse::ResponseRange(range)) => range,
        other => panic!("expected a range response at {index}, found {other:?}"),
    }
}

/// The keys of an answer as text.
pub fn key_texts(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect()
}

/// Fails unless the answer is exactly this refusal. Clients recover the typed error from the text, so it counts.
#[track_caller]
pub fn refused<T: Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    match answer {
        Ok(answer) => panic!("expected {code:?} `{text}`, was accepted: {answer:?}"),
        Err(status) => assert_eq!((status.code(), status.message()), (code, text)),
    }
}

pub const KEY_NOT_PROVIDED: &str = "etcdserver: key is not provided";
pub const KEY_NOT_FOUND: &str = "etcdserver: key not found";
pub const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
pub const FUTURE_REVISION: &str = "etcdserver: mvcc: required revision is a future revision";
pub const DUPLICATE_KEY: &str = "etcdserver: duplicate key given in txn request";
pub const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
