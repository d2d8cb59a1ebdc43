use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use e2d_api::etcdserverpb as pb;
use e2d_api::etcdserverpb::kv_client::KvClient;
use e2d_api::etcdserverpb::kv_server::{Kv, KvServer};
use e2d_core::alarm::Alarm;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::Layer as _;

use super::super::Versions;
use super::super::services::End;
use super::*;
use crate::metrics::{self, Metrics, Observation, Observed, grpc};

const MAX_MESSAGE: usize = 2_097_152;

/// Answers puts; holds ranges back until it is told to let them go.
#[derive(Default)]
struct Store {
    held: AtomicUsize,
    hold: Notify,
}

struct Services(Arc<Store>);

#[tonic::async_trait]
impl Kv for Services {
    async fn range(&self, _: tonic::Request<pb::RangeRequest>) -> Result<tonic::Response<pb::RangeResponse>, Status> {
        let let_go = self.0.hold.notified();
        self.0.held.fetch_add(1, SeqCst);
        let_go.await;
        Ok(tonic::Response::new(pb::RangeResponse { count: 7, ..Default::default() }))
    }

    async fn put(&self, request: tonic::Request<pb::PutRequest>) -> Result<tonic::Response<pb::PutResponse>, Status> {
        match request.into_inner().key.as_ref() {
            b"" => Err(Status::invalid_argument("etcdserver: key is not provided")),
            _ => Ok(tonic::Response::new(pb::PutResponse::default())),
        }
    }

    async fn delete_range(
        &self,
        _: tonic::Request<pb::DeleteRangeRequest>,
    ) -> Result<tonic::Response<pb::DeleteRangeResponse>, Status> {
        Err(Status::unavailable("no"))
    }

    async fn txn(&self, _: tonic::Request<pb::TxnRequest>) -> Result<tonic::Response<pb::TxnResponse>, Status> {
        Err(Status::unavailable("no"))
    }

    async fn compact(
        &self,
        _: tonic::Request<pb::CompactionRequest>,
    ) -> Result<tonic::Response<pb::CompactionResponse>, Status> {
        Err(Status::unavailable("no"))
    }
}

struct Healthy;

impl Observed for Healthy {
    fn observe(&self) -> Observation {
        Observation::default()
    }
}

impl Node for Healthy {
    fn versions(&self) -> Versions {
        Versions { server: "3.6.14".into(), cluster: None, storage: None }
    }

    fn alarms(&self) -> Vec<Alarm> {
        vec![]
    }

    fn has_leader(&self) -> bool {
        true
    }

    fn is_learner(&self) -> bool {
        false
    }

    async fn linearizable_read(&self) -> Result<(), String> {
        Ok(())
    }

    async fn serializable_read(&self) -> Result<(), String> {
        Ok(())
    }
}

struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    store: Arc<Store>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

fn service(metrics: &Arc<Metrics>, store: &Arc<Store>) -> Service<impl GrpcService<Future: Send> + use<>, Healthy> {
    around(End.with(kv(store)).build(), metrics)
}

fn kv(store: &Arc<Store>) -> KvServer<Services> {
    KvServer::new(Services(store.clone())).max_decoding_message_size(usize::MAX)
}

fn around<G>(grpc: G, metrics: &Arc<Metrics>) -> Service<G, Healthy> {
    let grpc = grpc::Layer::new(metrics.grpc.clone(), MAX_MESSAGE).layer(grpc);
    let settings = super::super::Settings {
        read_timeout: Duration::from_secs(7),
        origins: BTreeSet::new(),
        hosts: BTreeSet::new(),
    };
    Service::new(grpc, Arc::new(Endpoints::new(Arc::new(Healthy), metrics.clone(), settings)))
}

async fn start(settings: Settings) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new(&metrics::Settings { version: "", revision: "", extensive: false }));
    let store = Arc::new(Store::default());
    let service = service(&metrics, &store);
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move { drop(stopped.await) };
    let ended = tokio::spawn(serve(listener, Plain, service, settings, metrics.connections.clone(), shutdown));
    Server { address, metrics, store, stop, ended }
}

impl Server {
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// What a plain connection gets that sends this.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until so many connections are open.
    async fn open(&self, connections: i64) {
        while self.metrics.connections.open.get() != connections {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() }
}

fn get(path: &str) -> Request<tonic::body::Body> {
    Request::get(path).body(tonic::body::Body::empty()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_speaks_grpc_and_http_1_and_2() {
    let server = start(Settings::default()).await;
    let channel = server.channel().await;
    let mut client = KvClient::new(channel.clone());
    client.put(put("a")).await.unwrap();
    let refused = client.put(put("")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));

    // The same connection, without gRPC's content type.
    let answer = channel.oneshot(get("/health")).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "{\"health\":\"true\",\"reason\":\"\"}");

    let answer = server.raw("GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\ndate: ") && answer.contains("\r\ncontent-type: application/json\r\n"), "{answer}");
    assert!(answer.ends_with("{\"etcdserver\":\"3.6.14\",\"etcdcluster\":\"not_decided\",\"storage\":\"unknown\"}"));
    // Shorter than the preface of HTTP/2.
    assert!(server.raw("GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 404 Not Found\r\n"));
    assert!(server.raw("P / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 404 Not Found\r\n"));
    assert!(server.raw("PRI / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 404 Not Found\r\n"));
    // gRPC needs HTTP/2.
    let answer = server
        .raw("POST /etcdserverpb.KV/Put HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");

    let text = server.metrics.encode(None);
    let labels = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    for series in [
        format!("grpc_server_started_total{{{labels}}} 2"),
        format!("grpc_server_msg_received_total{{{labels}}} 2"),
        format!("grpc_server_msg_sent_total{{{labels}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{labels}}} 1"),
        // `a` with its tag and length; nothing.
        "etcd_network_client_grpc_received_bytes_total 3".to_owned(),
        "e2d_client_connections_accepted_total 6".to_owned(),
    ] {
        assert!(text.lines().any(|line| line == series), "{series}");
    }
}

#[tokio::test]
async fn what_is_too_large_or_unknown_is_refused_in_the_words_that_clients_know() {
    let server = start(Settings::default()).await;
    let channel = server.channel().await;
    let mut client = KvClient::new(channel.clone());
    let key = Bytes::from(vec![b'k'; 2 << 20]);
    let refused = client.put(pb::PutRequest { key, ..Default::default() }).await.unwrap_err();
    let text = "grpc: received message larger than max (2097157 vs. 2097152)";
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text));
    let key = Bytes::from(vec![b'k'; (2 << 20) - 5]);
    client.put(pb::PutRequest { key, ..Default::default() }).await.unwrap();

    for (path, text) in [
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/a.B/C", "unknown service a.B"),
    ] {
        let mut request = get(path);
        *request.method_mut() = http::Method::POST;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let answer = channel.clone().oneshot(request).await.unwrap();
        let header = |name| answer.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((header("grpc-status"), header("grpc-message")), (Some("12"), Some(text)), "{path}");
    }
}

#[tokio::test]
async fn a_shutdown_lets_calls_end_and_takes_no_more() {
    let server = start(Settings { drain_timeout: Duration::from_secs(3600), ..Settings::default() }).await;
    let mut client = KvClient::new(server.channel().await);
    // A connection without calls is no reason to wait.
    let idle = server.channel().await;
    let call = tokio::spawn(async move { client.range(pb::RangeRequest::default()).await });
    while server.store.held.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    server.open(2).await;
    server.stop.send(()).unwrap();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    while server.metrics.connections.open.get() != 1 {
        tokio::task::yield_now().await;
    }
    assert!(!call.is_finished() && !server.ended.is_finished());
    server.store.hold.notify_waiters();
    assert_eq!(call.await.unwrap().unwrap().into_inner().count, 7);
    server.ended.await.unwrap();
    drop(idle);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let server = start(Settings { drain_timeout: Duration::from_millis(1), ..Settings::default() }).await;
    let mut client = KvClient::new(server.channel().await);
    let call = tokio::spawn(async move { client.range(pb::RangeRequest::default()).await });
    // Said nothing yet.
    let _silent = TcpStream::connect(server.address).await.unwrap();
    while server.store.held.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    server.open(2).await;
    server.stop.send(()).unwrap();
    server.ended.await.unwrap();
    assert_eq!(server.metrics.connections.open.get(), 0);
    assert!(call.await.unwrap().is_err());
}

#[tokio::test]
async fn who_says_nothing_is_sent_away() {
    let server = start(Settings { handshake_timeout: Duration::from_millis(20), ..Settings::default() }).await;
    for said in ["", "P", "PRI * HTTP/2.0\r\n"] {
        // Reads until the server closes it.
        assert_eq!(server.raw(said).await, "", "{said}");
    }
    server.open(0).await;
    // Having spoken, one may be silent.
    let mut client = KvClient::new(server.channel().await);
    tokio::time::sleep(Duration::from_millis(60)).await;
    client.put(put("a")).await.unwrap();
    assert_eq!(server.metrics.connections.open.get(), 1);
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let server = start(Settings { header_timeout: Duration::from_millis(20), ..Settings::default() }).await;
    let answer = server.raw("GET /version HTTP/1.1\r\nHost: x\r\nX: ").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    server.open(0).await;
}

#[tokio::test]
async fn only_so_many_may_be_silent_at_a_time() {
    let server = start(Settings { max_handshakes: 2, ..Settings::default() }).await;
    let mut client = KvClient::new(server.channel().await);
    client.put(put("a")).await.unwrap();
    let silent = [TcpStream::connect(server.address).await.unwrap(), TcpStream::connect(server.address).await.unwrap()];
    server.open(3).await;
    assert_eq!(server.raw("").await, "");
    assert_eq!(server.metrics.connections.refused.get(), 1);
    // Those who speak are not touched by it, and a place that is given back can be taken.
    client.put(put("a")).await.unwrap();
    drop(silent);
    server.open(1).await;
    assert!(server.raw("GET /livez HTTP/1.0\r\n\r\n").await.ends_with("\r\n\r\nok\n"));
}

/// Fails as often as it is told to, then gives connections.
struct Failing {
    errors: Vec<i32>,
    listener: TcpListener,
}

impl Listener for Failing {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, String)> {
        match self.errors.pop() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Listener::accept(&mut self.listener).await,
        }
    }
}

#[tokio::test]
async fn failures_to_accept_are_survived() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new(&metrics::Settings { version: "", revision: "", extensive: false }));
    let service = service(&metrics, &Arc::default());
    let failing = Failing { errors: vec![libc_errno::EMFILE, libc_errno::ECONNABORTED, libc_errno::ENFILE], listener };
    let server =
        serve(failing, Plain, service, Settings::default(), metrics.connections.clone(), std::future::pending());
    let server = tokio::spawn(server);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
    assert_eq!((metrics.connections.accept_errors.get(), metrics.connections.accepted.get()), (3, 1));
    server.abort();
}

mod libc_errno {
    pub(super) const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();
    pub(super) const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
    pub(super) const ECONNABORTED: i32 = rustix::io::Errno::CONNABORTED.raw_os_error();
}

#[test]
fn the_pause_after_a_failure_grows_to_a_second() {
    let full = io::Error::from_raw_os_error(libc_errno::EMFILE);
    let gone = io::Error::from_raw_os_error(libc_errno::ECONNABORTED);
    let mut backoff = Backoff::default();
    let pauses: Vec<u128> = (0..10).map(|_| backoff.after(&full).unwrap().as_millis()).collect();
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    assert_eq!(backoff.after(&gone), None);
}

/// The processor time of the threads of this name, in nanoseconds.
fn thread_nanos(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut total = 0;
    for task in tasks.map(|task| task.unwrap().path()) {
        if std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let stat = std::fs::read_to_string(task.join("schedstat")).unwrap();
            total += stat.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    total
}

/// `cargo test --release -p e2d --lib -- --ignored --nocapture what_serving_costs`
#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout, reason = "the measure is the result")]
fn what_serving_costs() {
    const ROUNDS: usize = 7;
    let runtime = |name: &str, threads| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).thread_name(name).enable_all().build().unwrap()
    };
    let metrics = Arc::new(Metrics::new(&metrics::Settings { version: "", revision: "", extensive: false }));
    let store = Arc::new(Store::default());
    let bind = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    };
    let mut servers = Vec::new();
    // What is served here, on two workers and on one; behind tonic's router; and what tonic's server serves.
    async fn here<G>(listener: std::net::TcpListener, service: Service<G, Healthy>, connections: Connections)
    where
        G: GrpcService,
        G::Future: Send + 'static,
    {
        let listener = TcpListener::from_std(listener).unwrap();
        serve(listener, Plain, service, Settings::default(), connections, std::future::pending()).await;
    }
    for (name, threads) in [("here", 2), ("here-1-worker", 1)] {
        let (listener, address) = bind();
        let runtime = runtime(name, threads);
        runtime.spawn(here(listener, service(&metrics, &store), metrics.connections.clone()));
        servers.push((name, address, runtime));
    }
    let (listener, address) = bind();
    let routed = runtime("here-router", 2);
    let routes = around(Routes::new(kv(&store)).prepare(), &metrics);
    routed.spawn(here(listener, routes, metrics.connections.clone()));
    servers.push(("here-router", address, routed));
    let (listener, address) = bind();
    let theirs = runtime("tonic", 2);
    let kv = kv(&store);
    theirs.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        tonic::transport::Server::builder().add_service(kv).serve_with_incoming(incoming).await.unwrap();
    });
    servers.push(("tonic", address, theirs));

    let clients = runtime("client", 2);
    for (connections, each, count) in [(1, 1, 2_000), (8, 8, 16_000), (32, 32, 16_384)] {
        let mut costs = vec![Vec::new(); servers.len()];
        // In turns, since others use the machine too.
        for _ in 0..ROUNDS {
            for ((name, address, _), costs) in servers.iter().zip(&mut costs) {
                let before = thread_nanos(name);
                clients.block_on(calls(*address, connections, each, count));
                costs.push((thread_nanos(name) - before) as f64 / 1e3 / count as f64);
            }
        }
        for ((name, ..), mut costs) in servers.iter().zip(costs) {
            costs.sort_by(f64::total_cmp);
            let (least, median) = (costs[0], costs[ROUNDS / 2]);
            println!(
                "{connections} connections of {each}: {name}: {least:.2} us of the server a call, median {median:.2}"
            );
        }
    }
}

/// Puts, by `each` callers on each of the connections.
async fn calls(address: SocketAddr, connections: usize, each: usize, calls: usize) {
    let value = Bytes::from(vec![7; 256]);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.tcp_nodelay(true).connect().await.unwrap();
        for _ in 0..each {
            let (mut client, value) = (KvClient::new(channel.clone()), value.clone());
            tasks.spawn(async move {
                for _ in 0..calls / connections / each {
                    let key = Bytes::from_static(&[b'k'; 32]);
                    let request = pb::PutRequest { key, value: value.clone(), ..Default::default() };
                    client.put(request).await.unwrap();
                }
            });
        }
    }
    tasks.join_all().await;
}
