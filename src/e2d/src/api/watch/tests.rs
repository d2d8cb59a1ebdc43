//! Real clients over TCP, and a history in memory.

mod cost;

use super::*;
use crate::api::generated::watch_server::WatchServer;
use e2d_core::ids::{At, ClusterId, MemberId, Term};
use e2d_core::mvcc::change::Change;
use e2d_core::mvcc::record::{NewEvent, Put, Record};
use e2d_core::watch::{History, Limits};
use pb::watch_client::WatchClient;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic::{Code, Request};

#[derive(Clone, Default)]
struct Store(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    changes: Vec<Change>,
    latest: BTreeMap<String, Record>,
    compacted: Revision,
    broken: bool,
}

impl Log {
    fn revision(&self) -> Revision {
        self.changes.last().map_or(Revision::INITIAL, |change| change.record.as_ref().at.main)
    }
}

impl Store {
    fn write(&self, writes: &[(&str, Option<&[u8]>)]) -> (Revision, Vec<Change>) {
        let mut log = self.0.lock().unwrap();
        let main = log.revision().next();
        let mut changes = vec![];
        for ((key, value), sub) in writes.iter().zip(0..) {
            let before = log.latest.get(*key).cloned();
            let record = Record::encode(NewEvent {
                at: At { main, sub },
                key: key.as_bytes(),
                put: value.map(|value| Put { value, lease: None }),
                before: before.as_ref().map(Record::as_ref),
            });
            log.latest.insert((*key).to_string(), record.clone());
            let previous = before.filter(|before| !before.as_ref().is_tombstone());
            changes.push(Change { record, previous });
        }
        log.changes.extend_from_slice(&changes);
        (main, changes)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Broken;

impl History for Store {
    type Error = Broken;

    fn bounds(&self) -> (Revision, Revision) {
        let log = self.0.lock().unwrap();
        (log.revision(), log.compacted)
    }

    fn changes(
        &self,
        from: Revision,
        max_bytes: usize,
        _with_previous: bool,
        out: &mut Vec<Change>,
    ) -> Result<Revision, Broken> {
        let log = self.0.lock().unwrap();
        if log.broken {
            return Err(Broken);
        }
        let start = log.changes.partition_point(|change| change.record.as_ref().at.main < from);
        let (mut bytes, mut last) = (0, from);
        for change in &log.changes[start..] {
            let revision = change.record.as_ref().at.main;
            if bytes >= max_bytes && revision != last {
                return Ok(revision);
            }
            bytes += change.record.bytes().len();
            last = revision;
            out.push(change.clone());
        }
        Ok(log.revision().next())
    }
}

/// Refuses the keys below `secret/` to clients without a token, and knows of a leader or not.
#[derive(Debug)]
struct Guard {
    leader: AtomicBool,
}

const HEADER: Header = Header { cluster: ClusterId(11), member: MemberId(12), term: Term(13) };

impl Gate for Guard {
    type Client = bool;

    fn header(&self) -> Header {
        HEADER
    }

    fn has_leader(&self) -> bool {
        self.leader.load(Ordering::SeqCst)
    }

    fn client(&self, metadata: &MetadataMap, _extensions: &Extensions) -> bool {
        metadata.contains_key("token")
    }

    fn may_watch(&self, trusted: &bool, range: &KeyRange) -> Result<(), Status> {
        let secret = KeyRange::from_wire(Bytes::from_static(b"secret/"), Bytes::from_static(b"secret0"));
        if *trusted || !range.overlaps(&secret) {
            Ok(())
        } else {
            Err(Status::permission_denied("etcdserver: permission denied"))
        }
    }
}

struct World {
    store: Store,
    handle: WatchHandle,
    thread: WatchThread<Broken>,
    guard: Arc<Guard>,
    address: String,
    failures: mpsc::Receiver<String>,
}

impl World {
    async fn new(limits: Limits, max_ring_bytes: usize) -> World {
        let store = Store::default();
        let (failed, failures) = mpsc::channel();
        let failed = move |error: &Broken| failed.send(format!("{error:?}")).unwrap();
        let (handle, thread) = start(store.clone(), limits, max_ring_bytes, failed).unwrap();
        let guard = Arc::new(Guard { leader: AtomicBool::new(true) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = WatchServer::new(WatchService::new(handle.clone(), guard.clone()));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        World { store, handle, thread, guard, address, failures }
    }

    async fn client(&self) -> WatchClient<Channel> {
        WatchClient::connect(self.address.clone()).await.unwrap().max_decoding_message_size(64 << 20)
    }

    async fn open(&self) -> Watcher {
        Watcher::open(&mut self.client().await, &[]).await.unwrap()
    }

    fn write(&self, writes: &[(&str, Option<&[u8]>)]) {
        let (revision, changes) = self.store.write(writes);
        self.handle.publish(revision, changes);
    }

    fn put(&self, key: &str, value: &str) {
        self.write(&[(key, Some(value.as_bytes()))]);
    }
}

/// A client's end of one stream.
struct Watcher {
    requests: tokio::sync::mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watcher {
    async fn open(
        client: &mut WatchClient<Channel>,
        metadata: &[(&'static str, &'static [u8])],
    ) -> Result<Watcher, Status> {
        let (requests, queue) = tokio::sync::mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(queue));
        for (key, value) in metadata {
            request.metadata_mut().insert(*key, tonic::metadata::MetadataValue::try_from(*value).unwrap());
        }
        let responses = client.watch(request).await?.into_inner();
        Ok(Watcher { requests, responses })
    }

    async fn ask(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn create(&self, create: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(create)).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.responses.message().await.unwrap().expect("the stream goes on")
    }

    async fn end(&mut self) -> Status {
        loop {
            match self.responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => return status,
            }
        }
    }

    /// Reads events until the one of revision `last`, and gives all their revisions.
    async fn revisions_until(&mut self, last: u64) -> Vec<u64> {
        let mut revisions = vec![];
        while revisions.last() != Some(&last) {
            let response = self.next().await;
            revisions.extend(response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision as u64));
        }
        revisions
    }
}

fn on(key: &str, range_end: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        ..Default::default()
    }
}

/// A response as a line.
fn shown(response: &pb::WatchResponse) -> String {
    let header = response.header.as_ref().expect("every response has a header");
    assert_eq!((header.cluster_id, header.member_id, header.raft_term), (11, 12, 13));
    let mut line = format!("r{} w{}", header.revision, response.watch_id);
    for (flag, name) in [(response.created, "created"), (response.canceled, "canceled"), (response.fragment, "...")] {
        if flag {
            line += &format!(" {name}");
        }
    }
    if response.compact_revision != 0 {
        line += &format!(" compacted={}", response.compact_revision);
    }
    if !response.cancel_reason.is_empty() {
        line += &format!(" ({})", response.cancel_reason);
    }
    for event in &response.events {
        let text = |kv: &e2d_api::mvccpb::KeyValue| {
            format!("{}={}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value))
        };
        let kv = event.kv.as_ref().unwrap();
        let sign = if event.r#type == 1 { "-" } else { "+" };
        line += &format!(" {sign}{}@{}/{}/{}", text(kv), kv.create_revision, kv.mod_revision, kv.version);
        if let Some(previous) = &event.prev_kv {
            line += &format!("<{}", text(previous));
        }
    }
    line
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_etcd_says() {
    let world = World::new(Limits::default(), 1 << 20).await;
    let mut watcher = world.open().await;
    world.put("a", "1");
    world.put("a", "2");
    world.put("b", "1");
    world.store.0.lock().unwrap().compacted = Revision(3);
    let table = [
        (on("a", ""), vec!["r4 w0 created"]),
        (
            pb::WatchCreateRequest { start_revision: 3, prev_kv: true, ..on("a", "c") },
            vec!["r4 w1 created", "r4 w1 +a=2@2/3/2<a=1 +b=1@4/4/1"],
        ),
        (
            pb::WatchCreateRequest { start_revision: 2, ..on("a", "") },
            vec!["r4 w2 created", "r0 w2 canceled compacted=3"],
        ),
        (
            pb::WatchCreateRequest { start_revision: -1, ..on("b", "a") },
            vec!["r4 w-1 created canceled (etcdserver: mvcc: required revision has been compacted)"],
        ),
        (on("b", "a"), vec!["r4 w-1 created canceled (mvcc: watcher range is empty)"]),
        (
            pb::WatchCreateRequest { watch_id: 1, ..on("a", "") },
            vec!["r4 w-1 created canceled (mvcc: duplicate watch ID provided on the WatchStream)"],
        ),
        (pb::WatchCreateRequest { watch_id: 7, ..on("", "") }, vec!["r4 w7 created"]),
        // From a key on, and not the keys between it and a key that is a single zero byte.
        (
            on("a", "\0"),
            vec!["r4 w-1 created canceled (rpc error: code = PermissionDenied desc = etcdserver: permission denied)"],
        ),
    ];
    for (create, lines) in table {
        watcher.create(create).await;
        for line in lines {
            assert_eq!(shown(&watcher.next().await), line);
        }
    }

    world.write(&[("a", None), ("\0", Some(b"zero"))]);
    let mut lines = vec![];
    for _ in 0..3 {
        lines.push(shown(&watcher.next().await));
    }
    lines.sort();
    assert_eq!(lines, ["r5 w0 -a=@0/5/0", "r5 w1 -a=@0/5/0<a=2", "r5 w7 +\0=zero@5/5/1"]);

    watcher.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 9 })).await;
    watcher.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    watcher.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    assert_eq!(shown(&watcher.next().await), "r5 w0 canceled");
    assert_eq!(shown(&watcher.next().await), "r5 w-1");

    // A client that has nothing more to ask is still told.
    let Watcher { requests, responses } = watcher;
    drop(requests);
    world.put("b", "2");
    let mut watcher = Watcher { requests: tokio::sync::mpsc::channel(1).0, responses };
    assert_eq!(shown(&watcher.next().await), "r6 w1 +b=2@4/6/2<b=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_is_heeded_as_etcd_does() {
    let world = World::new(Limits::default(), 1 << 20).await;
    let mut client = world.client().await;
    let refused = Watcher::open(&mut client, &[("client-api-version", &[0xff, 0xfe])]).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: invalid client api version"));

    let open = [("hasleader", &b"true"[..]), ("client-api-version", b"3.6"), ("token", b"x")];
    let mut strict = Watcher::open(&mut client, &open).await.unwrap();
    let mut patient = Watcher::open(&mut client, &[("hasleader", b"false")]).await.unwrap();
    strict.create(on("secret/a", "")).await;
    patient.create(on("a", "")).await;
    assert_eq!(shown(&strict.next().await), "r1 w0 created");
    assert_eq!(shown(&patient.next().await), "r1 w0 created");

    world.guard.leader.store(false, Ordering::SeqCst);
    world.handle.leader_lost();
    let ended = strict.end().await;
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: no leader"));
    let refused = Watcher::open(&mut client, &open).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
    world.put("a", "1");
    assert_eq!(shown(&patient.next().await), "r2 w0 +a=1@2/2/1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_all_streams_and_refuses_new_ones() {
    let world = World::new(Limits::default(), 1 << 20).await;
    let mut client = world.client().await;
    let mut watchers = vec![];
    for _ in 0..10 {
        let mut watcher = Watcher::open(&mut client, &[]).await.unwrap();
        watcher.create(on("a", "")).await;
        watcher.next().await;
        watchers.push(watcher);
    }
    world.handle.stop();
    for watcher in &mut watchers {
        let status = watcher.end().await;
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    }
    let status = Watcher::open(&mut client, &[]).await.err().unwrap();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    assert_eq!(world.thread.join(), Ok(()));
    assert!(world.failures.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_cannot_be_read_ends_all_streams_and_is_reported() {
    let world = World::new(Limits::default(), 1 << 20).await;
    let mut watcher = world.open().await;
    world.put("a", "1");
    world.store.0.lock().unwrap().broken = true;
    watcher.create(pb::WatchCreateRequest { start_revision: 2, ..on("a", "") }).await;
    assert_eq!(watcher.end().await.code(), Code::Unavailable);
    assert_eq!(world.thread.join(), Err(Broken));
    assert_eq!(world.failures.recv().unwrap(), "Broken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_gets_everything_in_order_even_if_the_ring_overflows() {
    for max_ring_bytes in [1 << 20, 2000, 0] {
        let world = World::new(Limits::default(), max_ring_bytes).await;
        let mut watchers = vec![];
        for _ in 0..4 {
            let mut client = world.client().await;
            for number in 0..25 {
                let mut watcher = Watcher::open(&mut client, &[]).await.unwrap();
                let new = if number == 0 { on("key", "") } else { on("k", "l") };
                watcher.create(pb::WatchCreateRequest { prev_kv: number % 2 == 0, ..new }).await;
                assert!(watcher.next().await.created);
                watchers.push(watcher);
            }
        }
        for _ in 0..500 {
            world.put("key", "value");
            world.put("other", "value");
        }
        for watcher in &mut watchers {
            assert_eq!(watcher.revisions_until(1000).await, (1..=500).map(|put| put * 2).collect::<Vec<u64>>());
        }
        while world.handle.counts().behind > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_costs_its_queue_and_nobody_waits_for_it() {
    let limits = Limits { stream_bytes: 256 << 10, ..Limits::default() };
    let world = World::new(limits.clone(), 1 << 20).await;
    let (mut slow, mut fast) = (world.open().await, world.open().await);
    for watcher in [&mut slow, &mut fast] {
        watcher.create(on("a", "b")).await;
        assert!(watcher.next().await.created);
    }
    let value = "x".repeat(10_000);
    let mut most = 0;
    for round in 0..40 {
        for _ in 0..50 {
            world.put("a", &value);
        }
        // 20 MB in all; the fast one is done with each round before the next.
        let last = 1 + (round + 1) * 50;
        let revisions = fast.revisions_until(last).await;
        assert_eq!(revisions, (last - 49..=last).collect::<Vec<u64>>());
        most = most.max(world.handle.counts().queued_bytes);
    }
    assert_eq!(world.handle.counts().behind, 1, "the slow one waits, the fast one does not");
    assert!(most > limits.stream_bytes / 2, "the slow queue was in use");
    assert!(most < 2 * limits.stream_bytes + 2 * limits.slice_bytes, "{most} bytes were queued");

    assert_eq!(slow.revisions_until(2001).await, (2..=2001).collect::<Vec<u64>>());
    world.put("a", "end");
    assert_eq!(slow.revisions_until(2002).await, [2002]);
    drop(slow);
    while world.handle.counts().streams != 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_and_does_not_read_is_not_read_either() {
    const REQUESTS: usize = 20_000;
    let limits = Limits { stream_responses: 100, ..Limits::default() };
    let world = World::new(limits, 1 << 20).await;
    let mut watcher = world.open().await;
    let requests = watcher.requests.clone();
    // Long ids, so that the answers fill the windows of the connection.
    let asking = tokio::spawn(async move {
        for number in 0..REQUESTS {
            let create = pb::WatchCreateRequest { watch_id: -2 - (number % 2) as i64, ..on("a", "") };
            let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            requests.send(request).await.unwrap();
        }
    });
    let other = &mut world.open().await;
    other.create(on("b", "")).await;
    assert!(other.next().await.created);
    let mut created = 0;
    for number in 0..REQUESTS {
        if number % 1000 == 0 {
            world.put("b", "x");
            assert_eq!(other.next().await.events.len(), 1, "another stream does not wait");
        }
        // Each response takes far less than a KiB, and no more than the hub may not have looked at are on the way.
        assert!(world.handle.counts().queued_bytes < 200 << 10);
        let response = watcher.next().await;
        assert!(response.created);
        created += usize::from(!response.canceled);
    }
    assert_eq!(created, 2);
    asking.await.unwrap();
}
