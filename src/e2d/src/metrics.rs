//! What e2d counts and measures, and the text that a scrape of `/metrics` gets.
//!
//! The names, types, labels and buckets are etcd's wherever etcd has a figure that means something here, because
//! dashboards and alerts were written against them. What e2d alone has begins with `e2d_`. Figures of the Go runtime,
//! of bbolt's inner steps and of etcd's v2 store have no meaning here and are absent: a constant in their place would
//! be a lie.
//!
//! There are three kinds:
//! - counters and histograms that somebody moves. [`Metrics`] holds them resolved, one field each, so that counting
//!   costs an atomic addition and no look-up by label;
//! - figures that follow from the state. [`Observed`] is asked for them at each scrape ([`observed`]);
//! - the counts of gRPC calls, which one layer around the services keeps ([`grpc`]).

pub mod grpc;
pub mod methods;
pub mod network;
pub mod observed;
mod process;

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, exponential_buckets,
};

use self::grpc::Grpc;
use self::network::Network;
pub use self::observed::{Feature, Observation, Observed, Stage};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What is known before anything runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The version of e2d.
    pub version: &'a str,
    /// The commit it was built from; empty when unknown.
    pub revision: &'a str,
    /// Whether the time that each gRPC call takes is kept too: `--metrics=extensive`.
    pub extensive: bool,
}

/// Everything that is counted in this process. Made once; those who count clone the handles that they need.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The write-ahead log.
    pub wal: Wal,
    /// The store on disk.
    pub store: Store,
    /// The key space.
    pub mvcc: Mvcc,
    /// Leases.
    pub lease: Lease,
    /// Consensus and apply.
    pub server: Server,
    /// Snapshots that came from another member.
    pub snapshot: Snapshot,
    /// Talk among members.
    pub network: Network,
    /// Calls of clients.
    pub grpc: Arc<Grpc>,
    /// Connections of clients.
    pub connections: Connections,
    /// Health checks over HTTP.
    pub health: Health,
}

/// The write-ahead log.
#[derive(Debug, Clone)]
pub struct Wal {
    /// How long a flush took, in seconds.
    pub fsync_seconds: Histogram,
    /// How long a write took, without its flush, in seconds.
    pub write_seconds: Histogram,
    /// Bytes written. Only grows, though etcd calls it a gauge.
    pub write_bytes: IntGauge,
    /// Entries that became durable with one flush.
    pub batch_entries: Histogram,
    /// Bytes that became durable with one flush.
    pub batch_bytes: Histogram,
}

/// The store on disk.
#[derive(Debug, Clone)]
pub struct Store {
    /// How long one commit took, in seconds.
    pub commit_seconds: Histogram,
    /// How long it took to bring a memtable to disk, all its commits together, in seconds.
    pub flush_seconds: Histogram,
    /// How long a defragmentation took, in seconds.
    pub defrag_seconds: Histogram,
    /// 1 while a defragmentation runs.
    pub defrag_inflight: IntGauge,
    /// How long a snapshot for a client took, in seconds.
    pub snapshot_seconds: Histogram,
    /// Rows that the scrub has read.
    pub scrub_rows: IntCounter,
    /// Rows in which the scrub found damage.
    pub scrub_errors: IntCounter,
}

/// The key space.
#[derive(Debug, Clone)]
pub struct Mvcc {
    /// Ranges, those within transactions included.
    pub ranges: IntCounter,
    /// Puts, those within transactions included.
    pub puts: IntCounter,
    /// Deleted ranges, those within transactions included.
    pub deletes: IntCounter,
    /// Transactions that wrote more than one thing.
    pub txns: IntCounter,
    /// Bytes of the keys and values that were put. Only grows, though etcd calls it a gauge.
    pub put_bytes: IntGauge,
    /// Events sent to watchers.
    pub events: IntCounter,
    /// Keys that compactions removed.
    pub compacted_keys: IntCounter,
    /// When the last compaction ended, in seconds since 1970; 0 if there was none since the start.
    pub last_compaction: IntGauge,
    /// How long one step of a compaction held up others, in milliseconds.
    pub compaction_pause_ms: Histogram,
    /// How long a compaction took, in milliseconds.
    pub compaction_ms: Histogram,
    /// How long the hash of the whole store took, in seconds.
    pub hash_seconds: Histogram,
    /// How long the hash at a revision took, in seconds.
    pub hash_rev_seconds: Histogram,
    /// How long a range took that succeeded, in seconds.
    pub range_seconds: Histogram,
    /// How long a range took that failed, in seconds.
    pub range_failed_seconds: Histogram,
}

/// Leases.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Granted.
    pub granted: IntCounter,
    /// Revoked, those that expired included.
    pub revoked: IntCounter,
    /// Renewed, as the leader saw it.
    pub renewed: IntCounter,
    /// Expired.
    pub expired: IntCounter,
    /// The times to live that were asked for, in seconds.
    pub ttl_seconds: Histogram,
}

/// Consensus and apply.
#[derive(Debug)]
pub struct Server {
    /// Proposals that failed.
    pub proposals_failed: IntCounter,
    /// Requests whose apply took longer than the warning threshold.
    pub slow_apply: IntCounter,
    /// Read indexes that took long or timed out.
    pub slow_read_indexes: IntCounter,
    /// Read indexes that failed.
    pub read_indexes_failed: IntCounter,
    /// Heartbeats that the leader did not send in time.
    pub heartbeat_send_failures: IntCounter,
    /// 1 while a snapshot from the leader is being applied.
    pub snapshot_apply_in_progress: IntGauge,
    /// Learners promoted while this member led.
    pub learner_promote_successes: IntCounter,
    learner_promote_failures: IntCounterVec,
    apply_seconds: HistogramVec,
    apply_resolved: [[OnceLock<Histogram>; 2]; ApplyOp::COUNT],
}

/// Snapshots that came from another member.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// How long the flush took, in seconds.
    pub fsync_seconds: Histogram,
    /// How long receiving and saving took, in seconds.
    pub save_seconds: Histogram,
}

/// Connections of clients.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Open ones.
    pub open: IntGauge,
    /// Accepted since the start.
    pub accepted: IntCounter,
    /// Failures to accept one.
    pub accept_errors: IntCounter,
    /// Closed at once because too many were in their handshake.
    pub refused: IntCounter,
}

/// Health checks over HTTP.
#[derive(Debug, Clone)]
pub struct Health {
    /// `/health` said yes.
    pub success: IntCounter,
    /// `/health` said no.
    pub failures: IntCounter,
    last: IntGaugeVec,
    checks: IntCounterVec,
}

/// What an entry of the log does, under the name that etcd's `op` label has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the request of that name")]
pub enum ApplyOp {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    LeaseCheckpoint,
    Alarm,
    Authenticate,
    AuthEnable,
    AuthDisable,
    AuthUserAdd,
    AuthUserDelete,
    AuthUserChangePassword,
    AuthUserGrantRole,
    AuthUserGet,
    AuthUserRevokeRole,
    AuthRoleAdd,
    AuthRoleGrantPermission,
    AuthRoleGet,
    AuthRoleRevokePermission,
    AuthRoleDelete,
    AuthUserList,
    AuthRoleList,
    ClusterVersionSet,
    ClusterMemberAttrSet,
    DowngradeInfoSet,
}

impl ApplyOp {
    const COUNT: usize = ApplyOp::DowngradeInfoSet as usize + 1;
}

impl Metrics {
    /// Makes all of them.
    pub fn new(settings: &Settings<'_>) -> Metrics {
        let registry = Registry::new();
        let make = Make(&registry);
        let build = make.gauges("e2d_build_info", "Always 1; the labels say what was built.", &["version", "revision"]);
        build.with_label_values(&[settings.version, settings.revision]).set(1);
        Metrics {
            wal: Wal::new(&make),
            store: Store::new(&make),
            mvcc: Mvcc::new(&make),
            lease: Lease::new(&make),
            server: Server::new(&make),
            snapshot: Snapshot::new(&make),
            network: Network::new(&make),
            grpc: Arc::new(Grpc::new(&make, settings.extensive)),
            connections: Connections::new(&make),
            health: Health::new(&make),
            registry,
        }
    }

    /// All figures as text, families in the order of their names, with what `observed` says, if there is anybody to
    /// ask yet.
    pub fn encode(&self, observed: Option<&dyn Observed>) -> String {
        let mut families = self.registry.gather();
        families.extend(process::families());
        if let Some(observed) = observed {
            families.extend(observed.observe().families());
        }
        self.grpc.families(&mut families);
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = String::with_capacity(256 << 10);
        // A family without a metric is the one thing that the encoder refuses, and nothing here has one.
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            tracing::error!(%error, "encoding the metrics");
            let _ = writeln!(text, "# incomplete: {error}");
        }
        text
    }
}

impl Wal {
    fn new(make: &Make<'_>) -> Wal {
        Wal {
            fsync_seconds: make.histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "Seconds that a flush of the write-ahead log took.",
                powers(0.001, 14),
            ),
            write_seconds: make.histogram(
                "etcd_disk_wal_write_duration_seconds",
                "Seconds that a write to the write-ahead log took, without the flush.",
                powers(0.001, 14),
            ),
            write_bytes: make.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the write-ahead log."),
            batch_entries: make.histogram(
                "e2d_wal_batch_entries",
                "Entries that one flush of the write-ahead log made durable.",
                powers(1.0, 13),
            ),
            batch_bytes: make.histogram(
                "e2d_wal_batch_bytes",
                "Bytes that one flush of the write-ahead log made durable.",
                exponential(256.0, 4.0, 10),
            ),
        }
    }
}

impl Store {
    fn new(make: &Make<'_>) -> Store {
        Store {
            commit_seconds: make.histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "Seconds that a commit of the store took.",
                powers(0.001, 14),
            ),
            flush_seconds: make.histogram(
                "e2d_store_flush_seconds",
                "Seconds from taking a memtable until all of it was on disk.",
                powers(0.001, 14),
            ),
            defrag_seconds: make.histogram(
                "etcd_disk_backend_defrag_duration_seconds",
                "Seconds that a defragmentation of the store took.",
                powers(0.1, 13),
            ),
            defrag_inflight: make.gauge("etcd_disk_defrag_inflight", "1 while the store is being defragmented."),
            snapshot_seconds: make.histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "Seconds that sending a snapshot of the store took.",
                powers(0.01, 17),
            ),
            scrub_rows: make.counter("e2d_store_scrub_rows_total", "Rows that the scrub of the store has read."),
            scrub_errors: make.counter("e2d_store_scrub_errors_total", "Rows that the scrub found damaged."),
        }
    }
}

impl Mvcc {
    fn new(make: &Make<'_>) -> Mvcc {
        let range = make.histograms(
            "etcd_server_range_duration_seconds",
            "Seconds that a range took.",
            powers(0.0001, 20),
            &["success"],
        );
        Mvcc {
            ranges: make.counter("etcd_mvcc_range_total", "Ranges that this member has served."),
            puts: make.counter("etcd_mvcc_put_total", "Puts that this member has applied."),
            deletes: make.counter("etcd_mvcc_delete_total", "Deletions that this member has applied."),
            txns: make.counter("etcd_mvcc_txn_total", "Transactions of several changes that this member has applied."),
            put_bytes: make.gauge(
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "Bytes of the keys and values that this member has put.",
            ),
            events: make.counter("etcd_debugging_mvcc_events_total", "Events that this member has sent to watchers."),
            compacted_keys: make
                .counter("etcd_debugging_mvcc_db_compaction_keys_total", "Keys that compactions have removed."),
            last_compaction: make.gauge(
                "etcd_debugging_mvcc_db_compaction_last",
                "When the last compaction since the start ended, in Unix time.",
            ),
            compaction_pause_ms: make.histogram(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "Milliseconds that a step of a compaction held up others.",
                powers(1.0, 13),
            ),
            compaction_ms: make.histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "Milliseconds that a compaction took.",
                powers(100.0, 14),
            ),
            hash_seconds: make.histogram(
                "etcd_mvcc_hash_duration_seconds",
                "Seconds that hashing the whole store took.",
                powers(0.01, 15),
            ),
            hash_rev_seconds: make.histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "Seconds that hashing the key space at a revision took.",
                powers(0.01, 15),
            ),
            range_seconds: range.with_label_values(&["true"]),
            range_failed_seconds: range.with_label_values(&["false"]),
        }
    }
}

impl Lease {
    fn new(make: &Make<'_>) -> Lease {
        Lease {
            granted: make.counter("etcd_debugging_lease_granted_total", "Leases granted."),
            revoked: make.counter("etcd_debugging_lease_revoked_total", "Leases revoked."),
            renewed: make.counter("etcd_debugging_lease_renewed_total", "Renewals that this member saw as leader."),
            expired: make.counter("etcd_debugging_server_lease_expired_total", "Leases that expired."),
            ttl_seconds: make.histogram(
                "etcd_debugging_lease_ttl_total",
                "Seconds to live that leases were granted for.",
                powers(1.0, 24),
            ),
        }
    }
}

impl Server {
    fn new(make: &Make<'_>) -> Server {
        Server {
            proposals_failed: make.counter("etcd_server_proposals_failed_total", "Proposals that failed."),
            slow_apply: make
                .counter("etcd_server_slow_apply_total", "Requests whose apply was slower than the warning threshold."),
            slow_read_indexes: make
                .counter("etcd_server_slow_read_indexes_total", "Read indexes that were late or timed out."),
            read_indexes_failed: make.counter("etcd_server_read_indexes_failed_total", "Read indexes that failed."),
            heartbeat_send_failures: make.counter(
                "etcd_server_heartbeat_send_failures_total",
                "Heartbeats that this member, leading, sent too late; often the fault of a slow disk.",
            ),
            snapshot_apply_in_progress: make.gauge(
                "etcd_server_snapshot_apply_in_progress_total",
                "1 while a snapshot from the leader is being applied.",
            ),
            learner_promote_successes: make.counter(
                "etcd_server_learner_promote_successes",
                "Learners promoted while this member was the leader.",
            ),
            learner_promote_failures: make.counters(
                "etcd_server_learner_promote_failures",
                "Promotions of learners that failed while this member was the leader.",
                &["Reason"],
            ),
            apply_seconds: make.histograms(
                "etcd_server_apply_duration_seconds",
                "Seconds that applying an entry took.",
                powers(0.0001, 20),
                &["version", "op", "success"],
            ),
            apply_resolved: Default::default(),
        }
    }

    /// How long applying such a request took, in seconds. The series begins to exist when it is first asked for.
    pub fn apply_seconds(&self, op: ApplyOp, success: bool) -> &Histogram {
        self.apply_resolved[op as usize][usize::from(success)].get_or_init(|| {
            let success = if success { "true" } else { "false" };
            self.apply_seconds.with_label_values(&["v3", &format!("{op:?}"), success])
        })
    }

    /// A learner could not be promoted. `reason` is one of few fixed words.
    pub fn learner_promote_failed(&self, reason: &'static str) {
        self.learner_promote_failures.with_label_values(&[reason]).inc();
    }
}

impl Snapshot {
    fn new(make: &Make<'_>) -> Snapshot {
        Snapshot {
            fsync_seconds: make.histogram(
                "etcd_snap_db_fsync_duration_seconds",
                "Seconds that the flush of a received snapshot took.",
                powers(0.001, 14),
            ),
            save_seconds: make.histogram(
                "etcd_snap_db_save_total_duration_seconds",
                "Seconds that receiving and saving a snapshot took.",
                powers(0.1, 10),
            ),
        }
    }
}

impl Connections {
    fn new(make: &Make<'_>) -> Connections {
        Connections {
            open: make.gauge("e2d_client_connections", "Connections of clients that are open."),
            accepted: make.counter("e2d_client_connections_accepted_total", "Connections of clients accepted."),
            accept_errors: make
                .counter("e2d_client_accept_errors_total", "Failures to accept a connection, such as too many files."),
            refused: make.counter(
                "e2d_client_connections_refused_total",
                "Connections closed at once because too many had not sent anything yet.",
            ),
        }
    }
}

impl Health {
    fn new(make: &Make<'_>) -> Health {
        Health {
            success: make.counter("etcd_server_health_success", "Times that /health said yes."),
            failures: make.counter("etcd_server_health_failures", "Times that /health said no."),
            last: make.gauges(
                "etcd_server_healthcheck",
                "What each check said last: 1 for yes, 0 for no.",
                &["type", "name"],
            ),
            checks: make.counters(
                "etcd_server_healthchecks_total",
                "How often each check said yes (success) and no (error).",
                &["type", "name", "status"],
            ),
        }
    }

    /// What the check `name` of `endpoint` (`livez`, `readyz`) said. Both are of a fixed set.
    pub fn record(&self, endpoint: &str, name: &str, healthy: bool) {
        self.last.with_label_values(&[endpoint, name]).set(i64::from(healthy));
        let status = if healthy { "success" } else { "error" };
        self.checks.with_label_values(&[endpoint, name, status]).inc();
    }
}

/// Makes metrics and registers them. The names are constants of this module, so a wrong or doubled one is a mistake in
/// the code, which the first test to make a [`Metrics`] finds.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn register<M: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<M>) -> M {
        let metric = made.expect("the name and the labels of a metric are valid");
        self.0.register(Box::new(metric.clone())).expect("the name of a metric is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    fn histograms(&self, name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
}

/// `count` bounds of buckets, the first of them `start`, each twice the one before.
fn powers(start: f64, count: usize) -> Vec<f64> {
    exponential(start, 2.0, count)
}

fn exponential(start: f64, factor: f64, count: usize) -> Vec<f64> {
    exponential_buckets(start, factor, count).expect("buckets grow from a positive start")
}

#[cfg(test)]
mod tests;
