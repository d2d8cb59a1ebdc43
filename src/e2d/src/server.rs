//! One node, from its configuration to its end.
//!
//! Everything is made here, in the order in which the parts depend on each other, and ended in the opposite one. No
//! part holds another that it does not need.

use crate::api::watch::{self, Gate, WatchHandle, WatchService};
use crate::api::{Api, Inner, Limits, wire};
use crate::apply::{Applier, ApplyQueue, Changes, FlushPolicy};
use crate::cli::{ExitCode, Failure, GIT_SHA, VERSION};
use crate::clock::ticks_since;
use crate::config::{AutoCompaction, Config, Endpoint, MetricsLevel};
use crate::consensus::{self, Handle, Inbox, Pending, State};
use crate::data_dir::{DataDir, Refused};
use crate::disk::RealDisk;
use crate::http::serve::{self, Plain, Service};
use crate::http::{self, Endpoints};
use crate::logging;
use crate::metrics::{self, Metrics, grpc};
use crate::node::View;
use crate::store::{FlushSettings, Flusher, Identity, Loaded, Store};
use crate::systemd::Notifier;
use crate::wal::{self, Wal, WalError};
use anyhow::Context;
use e2d_api::etcdserverpb as pb;
use e2d_core::alarm::Alarm;
use e2d_core::compactor::{self, Compactor, Retention};
use e2d_core::ids::{ClusterId, LogIndex, MemberId, Revision};
use e2d_core::lease::{Lessor, Settings as LessorSettings};
use e2d_core::mvcc::change::Change;
use e2d_core::mvcc::machine::Machine;
use e2d_core::mvcc::range::KeyRange;
use e2d_core::mvcc::request::Request;
use e2d_core::mvcc::view::StoreError;
use e2d_core::watch::{History, Limits as WatchLimits};
use prost::Message as _;
use raft::eraftpb::ConfState;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as tokio_watch};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};
use tower::Layer as _;

/// What a request may take beyond two election time-outs, as in etcd.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Entries that stay in the log for members that are a little behind.
const CATCHUP_ENTRIES: u64 = 5000;

/// Changes that were applied and not told to watchers: beyond this they are read from history.
const WATCH_RING_BYTES: usize = 16 << 20;

/// What a message may have beyond a request, as in etcd.
const MESSAGE_OVERHEAD: usize = 512 << 10;

/// How long calls may go on once the node is asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Leases that are expired at once.
const EXPIRIES_AT_ONCE: usize = 1000;

/// A part of the process that cannot go on; the process ends.
struct Fatal {
    code: ExitCode,
    error: anyhow::Error,
}

impl From<StoreError> for Fatal {
    fn from(error: StoreError) -> Fatal {
        let code = match &error {
            StoreError::Damaged { .. } | StoreError::Inconsistent { .. } => ExitCode::DataCorrupt,
            StoreError::DiskFull { .. } => ExitCode::DiskWrite,
            StoreError::Io { .. } => ExitCode::Runtime,
        };
        Fatal { code, error: error.into() }
    }
}

impl From<WalError> for Fatal {
    fn from(error: WalError) -> Fatal {
        let code = match &error {
            WalError::Corrupt { .. } | WalError::Foreign { .. } | WalError::Missing { .. } => ExitCode::DataCorrupt,
            error if error.is_fatal() => ExitCode::DiskWrite,
            _ => ExitCode::Runtime,
        };
        Fatal { code, error: error.into() }
    }
}

impl From<Refused> for Fatal {
    fn from(error: Refused) -> Fatal {
        let code = match &error {
            Refused::InUse { .. } => ExitCode::DataDirInUse,
            Refused::Mode { .. } | Refused::OfEtcd { .. } => ExitCode::Usage,
            Refused::Identity { .. } | Refused::Nameless { .. } => ExitCode::DataCorrupt,
            Refused::Io { .. } => ExitCode::Runtime,
        };
        Fatal { code, error: error.into() }
    }
}

impl From<consensus::Failed> for Fatal {
    fn from(error: consensus::Failed) -> Fatal {
        match error {
            consensus::Failed::Wal(error) => error.into(),
            consensus::Failed::Entry { .. } => Fatal { code: ExitCode::DataCorrupt, error: error.into() },
            consensus::Failed::Raft(_) => Fatal { code: ExitCode::Runtime, error: error.into() },
        }
    }
}

impl From<crate::apply::Failed> for Fatal {
    fn from(error: crate::apply::Failed) -> Fatal {
        match error {
            crate::apply::Failed::Store(error) => error.into(),
            crate::apply::Failed::Entry { .. } => Fatal { code: ExitCode::DataCorrupt, error: error.into() },
        }
    }
}

impl From<Fatal> for Failure {
    fn from(fatal: Fatal) -> Failure {
        Failure::new(fatal.code, fatal.error)
    }
}

/// Runs a node until it is asked to stop, or cannot go on.
pub async fn serve(config: Config, _log: logging::Control) -> Result<(), Failure> {
    let started = Instant::now();
    let notify = Notifier::from_env().context("systemd's notification socket").map_err(runtime)?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM").map_err(runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT").map_err(runtime)?;

    let (fatal, mut failures) = mpsc::unbounded_channel::<Fatal>();
    let node = tokio::task::block_in_place(|| Node::start(&config, started, &fatal))?;
    let served = serve_clients(&config, &node).await?;

    // Ready is: a client that connects now is answered. With one voter that needs nobody else.
    node.handle.linearize().await.map_err(|why| runtime(anyhow::anyhow!("waiting for a leader: {why}")))?;
    tracing::info!(
        addresses = ?served.addresses,
        member = %node.identity.member,
        cluster = %node.identity.cluster,
        revision = node.store.published().revision.0,
        milliseconds = started.elapsed().as_millis() as u64,
        "ready to serve client requests"
    );
    let _ = notify.ready("serving");
    let watchdog = tokio::spawn(feed_watchdog(notify.watchdog_interval(), node.handle.clone()));

    let ended: Result<(), Failure> = tokio::select! {
        _ = terminate.recv() => {
            tracing::info!("asked to stop by SIGTERM");
            Ok(())
        }
        _ = interrupt.recv() => {
            tracing::info!("asked to stop by SIGINT");
            Ok(())
        }
        failure = failures.recv() => match failure {
            Some(fatal) => Err(Failure::from(fatal)),
            None => unreachable!("this function has a sender"),
        },
    };
    let _ = notify.stopping();
    watchdog.abort();
    // What cannot write any more must not answer any more.
    ended?;
    // Watches never end by themselves.
    node.watch.stop();
    served.stop().await;
    tokio::task::block_in_place(|| node.stop())?;
    match failures.try_recv() {
        Ok(fatal) => Err(fatal.into()),
        Err(_) => Ok(()),
    }
}

fn runtime(error: anyhow::Error) -> Failure {
    Failure::new(ExitCode::Runtime, error)
}

/// Feeds systemd's watchdog from the consensus loop: it is alive when it answers.
async fn feed_watchdog(interval: Option<Duration>, handle: Handle) {
    let Some(interval) = interval else { return };
    let Ok(notify) = Notifier::from_env() else { return };
    loop {
        tokio::time::sleep(interval / 3).await;
        if handle.is_alive(interval / 3).await {
            let _ = notify.watchdog();
        }
    }
}

/// The running parts.
struct Node {
    identity: Identity,
    store: Store,
    handle: Handle,
    api: Api,
    metrics: Arc<Metrics>,
    view: Arc<View>,
    watch: WatchHandle,
    watch_thread: watch::WatchThread<StoreError>,
    queue: Arc<ApplyQueue>,
    flusher: Arc<Flusher>,
    consensus_thread: std::thread::JoinHandle<()>,
    apply_thread: std::thread::JoinHandle<()>,
    _data_dir: DataDir,
}

impl Node {
    fn start(config: &Config, started: Instant, fatal: &mpsc::UnboundedSender<Fatal>) -> Result<Node, Fatal> {
        let metrics = Arc::new(Metrics::new(&metrics::Settings {
            version: VERSION,
            revision: GIT_SHA,
            extensive: config.metrics.level == MetricsLevel::Extensive,
        }));
        let data_dir = DataDir::open(&config.storage.data_dir, || Identity {
            cluster: ClusterId(random_id()),
            member: MemberId(random_id()),
        })?;
        let identity = data_dir.identity;
        let lessor_settings = LessorSettings { retry_millis: 5000, checkpoint_interval_millis: None };
        let Loaded { store, mut applied, published, lessor, alarms, .. } =
            Store::open(&data_dir.store(), identity, lessor_settings)?;
        let alone = ConfState { voters: vec![identity.member.0], ..ConfState::default() };
        if applied.conf_state.is_empty() {
            applied.conf_state = alone.encode_to_vec().into();
        }
        let conf_state = ConfState::decode(applied.conf_state.clone()).map_err(|error| Fatal {
            code: ExitCode::DataCorrupt,
            error: anyhow::Error::new(error).context("reading the configuration in the store"),
        })?;
        let (wal, hard_state) = open_wal(config, identity, applied.index)?;

        let lessor = Arc::new(Mutex::new(lessor));
        let flush_settings = FlushSettings {
            compaction_batch: config.compaction.batch_limit as usize,
            compaction_pause: config.compaction.sleep_interval,
        };
        let sender = fatal.clone();
        let flusher = store
            .start_flusher(flush_settings, metrics.store.commit_seconds.clone(), move |error| {
                drop(sender.send(error.into()))
            })
            .map_err(thread_failed)?;
        let flusher = Arc::new(flusher);

        let inbox = Arc::new(Inbox::default());
        let pending = Arc::new(Pending::new(rand::random()));
        let queue = Arc::new(ApplyQueue::default());
        let state = Arc::new(State::default());
        let (announce, applied_watch) = tokio_watch::channel(applied.index);
        let election = config.raft.election_timeout;

        let watch_limits = WatchLimits {
            fragment_bytes: WatchLimits::fragment_bytes_for(config.limits.max_request_bytes as usize),
            progress_millis: config.limits.watch_progress_notify_interval.as_millis() as u64,
            ..WatchLimits::default()
        };
        let sender = fatal.clone();
        let (watch, watch_thread) =
            watch::start(StoreHistory(store.clone()), watch_limits, WATCH_RING_BYTES, move |error| {
                let _ = sender.send(error.clone().into());
            })
            .map_err(thread_failed)?;

        let shared_alarms: Arc<Mutex<Vec<Alarm>>> = Arc::new(Mutex::new(alarms.get(None).collect()));
        let applier = Applier {
            member: identity.member,
            queue: queue.clone(),
            machine: Machine::new(published, lessor.clone(), alarms),
            store: store.clone(),
            flusher: flusher.clone(),
            flush: FlushPolicy::default(),
            applied: applied.clone(),
            announce,
            pending: pending.clone(),
            inbox: inbox.clone(),
            state: state.clone(),
            lessor: lessor.clone(),
            alarms: shared_alarms.clone(),
            changes: Box::new(ToWatchers(watch.clone())),
            started,
            election_millis: election.as_millis() as u64,
            warn_after: config.log.warning_apply_duration,
            metrics: metrics.clone(),
        };
        let sender = fatal.clone();
        let apply_thread = std::thread::Builder::new()
            .name("apply".into())
            .spawn(move || {
                if let Err(error) = applier.run() {
                    let _ = sender.send(error.into());
                }
            })
            .map_err(thread_failed)?;

        let settings = consensus::Settings {
            member: identity.member,
            heartbeat: config.raft.heartbeat_interval,
            election,
            request_timeout: REQUEST_TIMEOUT + 2 * election,
            snapshot_entries: config.raft.snapshot_count,
            catchup_entries: CATCHUP_ENTRIES,
            first_round: rand::random(),
        };
        let from = consensus::From { wal, hard_state, conf_state, applied: (applied.index, applied.term) };
        let sender = fatal.clone();
        let demoted = lessor.clone();
        let consensus::Started { handle, thread } = consensus::start(
            settings,
            from,
            consensus::Parts {
                inbox,
                pending,
                state,
                apply: queue.clone(),
                applied: applied_watch,
                wal_metrics: metrics.wal.clone(),
                demoted: Box::new(move || demoted.lock().unwrap_or_else(PoisonError::into_inner).demote()),
            },
            &logging::raft_logger(),
            move |error| drop(sender.send(error.into())),
        )?;

        let api = Api::new(Inner {
            cluster: identity.cluster,
            consensus: handle.clone(),
            store: store.clone(),
            lessor: lessor.clone(),
            limits: Limits {
                max_txn_ops: config.limits.max_txn_ops as usize,
                max_request_bytes: config.limits.max_request_bytes as usize,
            },
            quota_bytes: config.storage.quota_bytes,
            election_timeout_millis: election.as_millis() as u64,
            started,
            warn_after: config.log.warning_unary_request_duration,
            alarms: shared_alarms,
            members: Arc::new(Mutex::new(vec![pb::Member {
                id: identity.member.0,
                name: config.node.name.clone(),
                peer_ur_ls: config.listen.advertise_peer.iter().map(Endpoint::url).collect(),
                client_ur_ls: config.listen.advertise_client.iter().map(Endpoint::url).collect(),
                is_learner: false,
            }])),
            swept: flusher.swept(),
            compact_store: Arc::new(|| Ok(())),
        });
        let view = Arc::new(View { api: api.clone(), watch: watch.clone() });
        tokio::spawn(forward_flushed(flusher.flushed(), handle.clone()));
        tokio::spawn(expire_leases(lessor, handle.clone(), started));
        if let Some(retention) = retention(config.compaction.auto) {
            tokio::spawn(compact_by_schedule(retention, store.clone(), handle.clone(), started));
        }
        Ok(Node {
            identity,
            view,
            metrics,
            store,
            handle,
            api,
            watch,
            watch_thread,
            queue,
            flusher,
            consensus_thread: thread,
            apply_thread,
            _data_dir: data_dir,
        })
    }

    /// Ends everything in the order in which nothing is lost, and nothing has to be done again at the next start.
    fn stop(self) -> Result<(), Failure> {
        self.handle.stop();
        let consensus = self.consensus_thread.join();
        // Everything that was committed is handed over; now it is applied and flushed.
        self.queue.close();
        let apply = self.apply_thread.join();
        let _ = self.watch_thread.join();
        drop(self.flusher);
        if consensus.is_err() || apply.is_err() {
            return Err(runtime(anyhow::anyhow!("a thread panicked, see above")));
        }
        tracing::info!(revision = self.store.published().revision.0, "stopped");
        Ok(())
    }
}

fn random_id() -> u64 {
    // 0 stands for none everywhere.
    rand::random::<u64>().max(1)
}

fn thread_failed(error: std::io::Error) -> Fatal {
    Fatal { code: ExitCode::Runtime, error: anyhow::Error::new(error).context("starting a thread") }
}

/// Opens the log, or makes it for a store that was never written to.
fn open_wal(config: &Config, identity: Identity, applied: LogIndex) -> Result<(Wal, raft::eraftpb::HardState), Fatal> {
    let disk = Arc::new(RealDisk);
    let dir = &config.storage.wal_dir;
    let whose = wal::Identity { cluster_id: identity.cluster.0, node_id: identity.member.0 };
    let options = wal::Options { recover_bytes: 0, ..wal::Options::default() };
    if !Wal::exists(&*disk, dir)? && applied.0 == 0 {
        let wal = Wal::create(disk, dir, whose, options)?;
        return Ok((wal, raft::eraftpb::HardState::default()));
    }
    let (wal, recovered) = Wal::open(disk, dir, whose, options)?;
    if let Some(torn) = &recovered.torn {
        tracing::warn!(
            segment = %torn.path.display(),
            offset = torn.offset,
            bytes = torn.bytes,
            "cut off a write that never came to its end; nothing acknowledged was in it"
        );
    }
    if wal.last_index() < applied.0 || wal.first_index() > applied.0 + 1 {
        return Err(Fatal {
            code: ExitCode::DataCorrupt,
            error: anyhow::anyhow!(
                "the log in {} has entries {} to {}, but the store has applied {}: log or store is not the newest",
                dir.display(),
                wal.first_index(),
                wal.last_index(),
                applied.0
            ),
        });
    }
    Ok((wal, recovered.hard_state))
}

/// Watchers read history from the store.
struct StoreHistory(Store);

impl History for StoreHistory {
    type Error = StoreError;

    fn bounds(&self) -> (Revision, Revision) {
        let published = self.0.published();
        (published.revision, published.compacted.unwrap_or_default())
    }

    fn changes(
        &self,
        from: Revision,
        max_bytes: usize,
        with_previous: bool,
        out: &mut Vec<Change>,
    ) -> Result<Revision, StoreError> {
        let before = out.len();
        self.0.read(|view, published| {
            out.truncate(before);
            view.changes(from, published, max_bytes, with_previous, out)
        })
    }
}

struct ToWatchers(WatchHandle);

impl Changes for ToWatchers {
    fn publish(&self, changes: Vec<Change>) {
        let mut changes = changes.into_iter().peekable();
        while let Some(first) = changes.next() {
            let revision = first.record.as_ref().at.main;
            let mut whole = vec![first];
            while let Some(next) = changes.next_if(|change| change.record.as_ref().at.main == revision) {
                whole.push(next);
            }
            self.0.publish(revision, whole);
        }
    }
}

/// What the watch service asks about this node.
struct WatchGate(Api);

impl Gate for WatchGate {
    type Client = ();

    fn header(&self) -> wire::Header {
        self.0.wire_header()
    }

    fn has_leader(&self) -> bool {
        self.0.consensus.state().leader().is_some()
    }

    fn client(&self, _metadata: &MetadataMap, _extensions: &Extensions) {}

    fn may_watch(&self, (): &(), _range: &KeyRange) -> Result<(), Status> {
        Ok(())
    }
}

async fn forward_flushed(mut flushed: tokio_watch::Receiver<LogIndex>, handle: Handle) {
    while flushed.changed().await.is_ok() {
        let index = *flushed.borrow_and_update();
        handle.flushed(index);
    }
}

/// Puts the end of every lease whose time is up into the log, while this member leads.
async fn expire_leases(lessor: Arc<Mutex<Lessor>>, handle: Handle, started: Instant) {
    /// New leases are looked for so often; the shortest lives two seconds.
    const LOOK: Duration = Duration::from_millis(200);
    loop {
        tokio::time::sleep(LOOK).await;
        let term = handle.state().term();
        let due = lessor.lock().unwrap_or_else(PoisonError::into_inner).due(ticks_since(started), EXPIRIES_AT_ONCE);
        for life in due {
            let handle = handle.clone();
            tokio::spawn(async move {
                let expire = Request::LeaseExpire { life, decided_in: term };
                if let Err(why) = handle.propose_in(expire, term).await {
                    // The lessor names it again.
                    tracing::debug!(lease = %life.id, %why, "the end of a lease was not written");
                }
            });
        }
    }
}

fn retention(auto: AutoCompaction) -> Option<Retention> {
    match auto {
        AutoCompaction::Off => None,
        AutoCompaction::Periodic(period) => NonZeroU64::new(period.as_millis() as u64).map(Retention::Period),
        AutoCompaction::Revision(count) => NonZeroU64::new(count).map(Retention::Revisions),
    }
}

async fn compact_by_schedule(retention: Retention, store: Store, handle: Handle, started: Instant) {
    let mut compactor = Compactor::new(retention, ticks_since(started), store.published().revision);
    loop {
        let wait = compactor.next_deadline().millis_since(ticks_since(started));
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let published = store.published();
        let view =
            compactor::View { current: published.revision, compacted: published.compacted, leading: handle.leads() };
        if let Some(revision) = compactor.turn(ticks_since(started), view) {
            match handle.propose(Request::Compact(Some(revision))).await {
                Ok(answered) => {
                    tracing::info!(%revision, refused = ?answered.answer.outcome.err(), "compacted by schedule")
                }
                Err(why) => {
                    tracing::warn!(%revision, %why, "compaction by schedule was not written; it is tried again")
                }
            }
        }
    }
}

/// What serves clients, and those who only look.
struct Served {
    addresses: Vec<SocketAddr>,
    stop: tokio_watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Served {
    /// Takes no more connections, lets what is under way end, but not for ever.
    async fn stop(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

async fn serve_clients(config: &Config, node: &Node) -> Result<Served, Failure> {
    let limits = &config.limits;
    let mut settings = serve::Settings {
        max_concurrent_streams: Some(limits.max_concurrent_streams).filter(|limit| *limit != u32::MAX),
        drain_timeout: DRAIN_TIMEOUT,
        ..serve::Settings::default()
    };
    if let Some(keepalive) = limits.keepalive {
        settings.keep_alive_interval = keepalive.interval;
        settings.keep_alive_timeout = keepalive.timeout;
    }
    let endpoints = Arc::new(Endpoints::new(
        node.view.clone(),
        node.metrics.clone(),
        http::Settings { read_timeout: node.handle.timeout(), origins: BTreeSet::new(), hosts: BTreeSet::new() },
    ));
    let gate = Arc::new(WatchGate(node.api.clone()));
    let services = node.api.services(WatchService::new(node.watch.clone(), gate));
    let max_message_bytes = limits.max_request_bytes as usize + MESSAGE_OVERHEAD;
    let grpc = grpc::Layer::new(node.metrics.grpc.clone(), max_message_bytes).layer(services);
    let service = Service::new(grpc, endpoints.clone());

    let (stop, stopped) = tokio_watch::channel(false);
    let (mut addresses, mut tasks) = (Vec::new(), Vec::new());
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|stopped| *stopped).await) }
    };
    for address in &config.listen.client {
        let listener = listen("clients", *address).await?;
        addresses.push(listener.local_addr().context("listening for clients").map_err(runtime)?);
        let connections = node.metrics.connections.clone();
        tasks.push(tokio::spawn(serve::serve(
            listener,
            Plain,
            service.clone(),
            settings.clone(),
            connections,
            until_stopped(),
        )));
    }
    for address in &config.metrics.listen {
        let listener = listen("scrapers", *address).await?;
        let connections = node.metrics.connections.clone();
        tasks.push(tokio::spawn(serve::serve(
            listener,
            Plain,
            Service::new(
                grpc::Layer::new(node.metrics.grpc.clone(), max_message_bytes).layer(NoGrpc),
                endpoints.clone(),
            ),
            settings.clone(),
            connections,
            until_stopped(),
        )));
    }
    Ok(Served { addresses, stop, tasks })
}

async fn listen(whom: &str, address: SocketAddr) -> Result<tokio::net::TcpListener, Failure> {
    tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("listening for {whom} on {address}"))
        .map_err(runtime)
}

/// The port for scrapers has no services.
#[derive(Clone)]
struct NoGrpc;

impl<B: Send + 'static> tower::Service<::http::Request<B>> for NoGrpc {
    type Response = ::http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: ::http::Request<B>) -> Self::Future {
        std::future::ready(Ok(Status::unimplemented("no gRPC on this port").into_http()))
    }
}
