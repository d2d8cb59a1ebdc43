//! Figures that follow from the state: asked for when somebody scrapes, kept nowhere.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Whoever knows the state.
pub trait Observed: Send + Sync {
    /// The state as of now. Called for each scrape: reads what is at hand and waits for nothing.
    fn observe(&self) -> Observation;
}

/// The state as a scrape sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// This member's id; the label is its hexadecimal form.
    pub member_id: u64,
    /// The version of etcd that this member answers as, `3.6.14`.
    pub server_version: String,
    /// The version that the cluster has agreed on, `3.6`; empty while there is none.
    pub cluster_version: String,
    /// The features that can be switched.
    pub features: Vec<Feature>,

    /// Whether a leader is known.
    pub has_leader: bool,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// How often the leader changed since the start.
    pub leader_changes: u64,
    /// The index of the last entry that is committed.
    pub proposals_committed: u64,
    /// The index of the last entry that is applied.
    pub proposals_applied: u64,
    /// Proposals that await their commit.
    pub proposals_pending: u64,

    /// Bytes of the store on disk.
    pub db_bytes: u64,
    /// Bytes of the store on disk that are in use.
    pub db_in_use_bytes: u64,
    /// Bytes that the store may have.
    pub quota_bytes: u64,
    /// Read transactions that are open.
    pub open_read_transactions: u64,
    /// Bytes of the memtables in front of the store.
    pub memtable_bytes: u64,
    /// Segments of the write-ahead log.
    pub wal_segments: u64,

    /// The latest revision.
    pub current_revision: i64,
    /// The revision of the last compaction; -1 if there was none.
    pub compact_revision: i64,
    /// Keys that exist.
    pub keys: u64,
    /// The revision of users and roles.
    pub auth_revision: u64,
    /// Leases that exist.
    pub leases: u64,

    /// Streams of watches.
    pub watch_streams: u64,
    /// Watchers, all streams together.
    pub watchers: u64,
    /// Watchers that catch up from history.
    pub slow_watchers: u64,
    /// Events that wait to be sent.
    pub pending_events: u64,

    /// Lines of the log that were dropped because nobody took them.
    pub log_dropped: u64,
}

/// A feature that can be switched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub stage: Stage,
    /// Whether it is on.
    pub enabled: bool,
}

/// How far a feature has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for, and may go away.
    Alpha,
    /// Likely to stay.
    Beta,
    /// Stays.
    Ga,
}

impl Stage {
    fn label(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
            // The label is empty in etcd too.
            Stage::Ga => "",
        }
    }
}

type Row = (MetricType, &'static str, &'static str, fn(&Observation) -> f64);

const C: MetricType = MetricType::COUNTER;
const G: MetricType = MetricType::GAUGE;

/// Every figure without labels. Some are gauges whose name says otherwise: etcd has them so.
#[rustfmt::skip]
const FIGURES: &[Row] = &[
    (G, "etcd_server_has_leader", "1 if a leader is known, 0 if not.", |o| flag(o.has_leader)),
    (G, "etcd_server_is_leader", "1 if this member is the leader, 0 if not.", |o| flag(o.is_leader)),
    (G, "etcd_server_is_learner", "1 if this member has no vote, 0 if it has.", |o| flag(o.is_learner)),
    (C, "etcd_server_leader_changes_seen_total", "Changes of the leader that this member saw.", |o| o.leader_changes as f64),
    (G, "etcd_server_proposals_committed_total", "The index of the last committed entry.", |o| o.proposals_committed as f64),
    (G, "etcd_server_proposals_applied_total", "The index of the last applied entry.", |o| o.proposals_applied as f64),
    (G, "etcd_server_proposals_pending", "Proposals that await their commit.", |o| o.proposals_pending as f64),
    (G, "etcd_mvcc_db_total_size_in_bytes", "Bytes of the store on disk.", |o| o.db_bytes as f64),
    (G, "etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the store on disk that are in use.", |o| o.db_in_use_bytes as f64),
    (G, "etcd_mvcc_db_open_read_transactions", "Read transactions of the store that are open.", |o| o.open_read_transactions as f64),
    (G, "etcd_server_quota_backend_bytes", "Bytes that the store may have.", |o| o.quota_bytes as f64),
    (G, "etcd_debugging_mvcc_current_revision", "The latest revision.", |o| o.current_revision as f64),
    (G, "etcd_debugging_mvcc_compact_revision", "The revision of the last compaction.", |o| o.compact_revision as f64),
    (G, "etcd_debugging_mvcc_keys_total", "Keys that exist.", |o| o.keys as f64),
    (G, "etcd_debugging_mvcc_watch_stream_total", "Streams of watches that are open.", |o| o.watch_streams as f64),
    (G, "etcd_debugging_mvcc_watcher_total", "Watchers that exist.", |o| o.watchers as f64),
    (G, "etcd_debugging_mvcc_slow_watcher_total", "Watchers that catch up from history.", |o| o.slow_watchers as f64),
    (G, "etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.", |o| o.pending_events as f64),
    (G, "etcd_debugging_auth_revision", "The revision of users and roles.", |o| o.auth_revision as f64),
    (G, "e2d_leases", "Leases that exist.", |o| o.leases as f64),
    (G, "e2d_store_memtable_bytes", "Bytes of the memtables in front of the store.", |o| o.memtable_bytes as f64),
    (G, "e2d_wal_segments", "Segments of the write-ahead log.", |o| o.wal_segments as f64),
    (C, "e2d_log_dropped_total", "Lines of the log that were dropped because nobody took them.", |o| o.log_dropped as f64),
];

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

impl Observation {
    /// As the encoder takes it.
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let mut families: Vec<MetricFamily> = FIGURES
            .iter()
            .map(|(kind, name, help, read)| family(*kind, name, help, vec![metric(*kind, vec![], read(self))]))
            .collect();
        let id = format!("{:x}", self.member_id);
        let named = |name, help, label: &str, value: &str| {
            family(G, name, help, vec![metric(G, vec![pair(label, value)], 1.0)])
        };
        families.push(named("etcd_server_id", "Always 1; the label is this member's id.", "server_id", &id));
        families.push(named(
            "etcd_server_version",
            "Always 1; the label is the version of etcd that this member answers as.",
            "server_version",
            &self.server_version,
        ));
        if !self.cluster_version.is_empty() {
            families.push(named(
                "etcd_cluster_version",
                "Always 1; the label is the version that the cluster has agreed on.",
                "cluster_version",
                &self.cluster_version,
            ));
        }
        if !self.features.is_empty() {
            let features = self.features.iter().map(|feature| {
                let labels = vec![pair("name", &feature.name), pair("stage", feature.stage.label())];
                metric(G, labels, flag(feature.enabled))
            });
            let help = "1 if the feature is on, 0 if not.";
            families.push(family(G, "etcd_server_feature_enabled", help, features.collect()));
        }
        families
    }
}

pub(super) fn family(kind: MetricType, name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// A counter or a gauge.
pub(super) fn metric(kind: MetricType, labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

pub(super) fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
