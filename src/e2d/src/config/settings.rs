//! The table of settings. Adding a row here adds the flag, the environment variable, the TOML key, the line in
//! `--help`, the manual page and docs/configuration.md; `resolve` then has to put the value into [`super::Config`].

use std::time::Duration;

use super::value::Kind;

/// The two command lines that start a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `e2d run`.
    Run,
    /// `e2d etcd`, or a binary called `etcd`.
    Etcd,
}

/// One row of the table.
#[derive(Debug)]
pub struct Setting {
    /// Its handle in code.
    pub id: Id,
    /// The TOML table that holds it.
    pub section: &'static str,
    /// The name: the flag without dashes, the TOML key, and in upper snake case after `E2D_` the variable.
    /// Empty where only etcd's command line has the setting.
    pub name: &'static str,
    /// The flag in one letter.
    pub short: Option<char>,
    /// The flag on etcd's command line, which `e2d run` takes as an alias. Empty where etcd has none.
    pub etcd: &'static str,
    /// Flags that older versions of etcd had for the same thing.
    pub etcd_old: &'static [&'static str],
    /// What a value looks like.
    pub kind: Kind,
    /// What holds when nothing is written.
    pub default: Fallback,
    /// One or two sentences for people.
    pub help: &'static str,
}

/// What holds when nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This value, written as a user would.
    Text(&'static str),
    /// It depends; the text says on what.
    Derived(&'static str),
}

impl Setting {
    /// The environment variable, or nothing where only etcd's command line has the setting.
    pub fn env(&self) -> Option<String> {
        (!self.name.is_empty()).then(|| format!("E2D_{}", upper_snake(self.name)))
    }

    /// The TOML key with its table, or nothing where only etcd's command line has the setting.
    pub fn key(&self) -> Option<String> {
        (!self.name.is_empty()).then(|| format!("{}.{}", self.section, self.name))
    }

    /// The flags of `e2d run` without dashes, the main one first.
    pub fn run_flags(&self) -> impl Iterator<Item = &'static str> {
        let alias = (self.etcd != self.name && !self.name.is_empty()).then_some(self.etcd);
        [Some(self.name), alias].into_iter().flatten().filter(|flag| !flag.is_empty())
    }

    /// The flags of etcd's command line without dashes, the current one first.
    pub fn etcd_flags(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.etcd).chain(self.etcd_old.iter().copied()).filter(|flag| !flag.is_empty())
    }

    /// The name in messages about a value that nobody wrote.
    pub fn label(&self, mode: Mode) -> String {
        match mode {
            Mode::Run if !self.name.is_empty() => format!("--{}", self.name),
            _ if self.etcd.is_empty() => format!("--{}", self.name),
            _ => format!("--{}", self.etcd),
        }
    }
}

/// `data-dir` as `DATA_DIR`.
pub(super) fn upper_snake(flag: &str) -> String {
    flag.replace('-', "_").to_ascii_uppercase()
}

/// The row of a setting.
pub fn setting(id: Id) -> &'static Setting {
    &SETTINGS[id as usize]
}

macro_rules! settings {
    ($($id:ident: $section:literal {
        name: $name:literal, $(short: $short:literal,)? etcd: $etcd:literal, $(etcd_old: $old:expr,)?
        kind: $kind:expr, default: $default:expr, help: $help:expr $(,)?
    })*) => {
        /// The handle of a setting.
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Id { $($id),* }

        /// Every setting, in the order of the documentation.
        pub static SETTINGS: &[Setting] = &[$(
            #[allow(unused_mut, unused_assignments)]
            Setting {
                id: Id::$id,
                section: $section,
                name: $name,
                short: { let mut short = None; $(short = Some($short);)? short },
                etcd: $etcd,
                etcd_old: { let mut old: &[&str] = &[]; $(old = $old;)? old },
                kind: $kind,
                default: $default,
                help: $help,
            }
        ),*];
    };
}

use Fallback::{Derived, Text};

const ANY: Kind = Kind::Duration { min: Duration::ZERO };
const POSITIVE: Kind = Kind::Duration { min: Duration::from_millis(1) };

settings! {
    Name: "node" {
        name: "name", etcd: "name",
        kind: Kind::Name, default: Derived("the machine's host name; `default` in `e2d etcd`"),
        help: "Name of this node in member lists.",
    }
    Host: "node" {
        name: "host", etcd: "",
        kind: Kind::Ip, default: Derived("none: only this machine is served"),
        help: "Address of this machine for others. Clients and peers are served on it, and clients on the loopback \
               address as well, unless --client-addr and --peer-addr say otherwise.",
    }
    ClientAddr: "listen" {
        name: "client-addr", etcd: "listen-client-urls",
        kind: Kind::Listen { port: 2379 }, default: Derived("the loopback address and --host, port 2379"),
        help: "Addresses to serve clients on, gRPC and HTTP alike.",
    }
    ClientHttpAddr: "listen" {
        name: "", etcd: "listen-client-http-urls",
        kind: Kind::Listen { port: 2379 }, default: Text(""),
        help: "More addresses to serve clients on.",
    }
    AdvertiseClient: "listen" {
        name: "advertise-client-urls", etcd: "advertise-client-urls",
        kind: Kind::Advertise { port: 2379 }, default: Derived("follows --client-addr and --host"),
        help: "Addresses that clients are told to connect to.",
    }
    PeerAddr: "listen" {
        name: "peer-addr", etcd: "listen-peer-urls",
        kind: Kind::Listen { port: 2380 }, default: Derived("--host or the loopback address, port 2380"),
        help: "Addresses to serve other nodes on.",
    }
    AdvertisePeer: "listen" {
        name: "initial-advertise-peer-urls", etcd: "initial-advertise-peer-urls",
        kind: Kind::Advertise { port: 2380 }, default: Derived("follows --peer-addr and --host"),
        help: "Addresses that other nodes are told to connect to.",
    }
    ClusterSize: "cluster" {
        name: "required-cluster-size", short: 'n', etcd: "",
        kind: Kind::Count { min: 1, max: 5 }, default: Text("1"),
        help: "Voting members wanted: 1, 3 or 5. Only 1 is in this version.",
    }
    InitialCluster: "cluster" {
        name: "", etcd: "initial-cluster",
        kind: Kind::Members, default: Derived("this node alone"),
        help: "Members of a new cluster. Only this node itself is in this version.",
    }
    InitialState: "cluster" {
        name: "", etcd: "initial-cluster-state",
        kind: Kind::Choice(&["new", "existing"]), default: Text("new"),
        help: "Whether the first start forms a cluster or expects one.",
    }
    InitialToken: "cluster" {
        name: "", etcd: "initial-cluster-token",
        kind: Kind::Text, default: Text("etcd-cluster"),
        help: "Text that tells clusters with equal addresses apart.",
    }
    DataDir: "storage" {
        name: "data-dir", etcd: "data-dir",
        kind: Kind::Path,
        default: Derived("`$STATE_DIRECTORY` (/var/lib/e2d as a service), otherwise `e2d-data` in the working \
                          directory; `NAME.etcd` in `e2d etcd`"),
        help: "Directory of everything that this node keeps.",
    }
    WalDir: "storage" {
        name: "wal-dir", etcd: "wal-dir",
        kind: Kind::Path, default: Derived("`wal` in the data directory"),
        help: "Directory of the write-ahead log, for a disk of its own.",
    }
    Quota: "storage" {
        name: "quota-backend-bytes", etcd: "quota-backend-bytes",
        kind: Kind::Quota, default: Text("2GiB"),
        help: "Size at which writes are refused until space is freed. 0 is the default, -1 is no limit.",
    }
    HeartbeatInterval: "raft" {
        name: "heartbeat-interval", etcd: "heartbeat-interval",
        kind: Kind::Millis { max: Duration::from_secs(50) }, default: Text("100ms"),
        help: "Time between two heartbeats of a leader.",
    }
    ElectionTimeout: "raft" {
        name: "election-timeout", etcd: "election-timeout",
        kind: Kind::Millis { max: Duration::from_secs(50) }, default: Text("1s"),
        help: "Silence of the leader after which another is elected, at least five heartbeats.",
    }
    SnapshotCount: "raft" {
        name: "snapshot-count", etcd: "snapshot-count",
        kind: Kind::Count { min: 1, max: u64::MAX }, default: Text("10000"),
        help: "Applied entries between two cuts of the write-ahead log.",
    }
    AutoCompactionMode: "compaction" {
        name: "auto-compaction-mode", etcd: "auto-compaction-mode",
        kind: Kind::Choice(&["periodic", "revision"]), default: Text("periodic"),
        help: "Whether --auto-compaction-retention is a time or a number of revisions.",
    }
    AutoCompactionRetention: "compaction" {
        name: "auto-compaction-retention", etcd: "auto-compaction-retention",
        kind: Kind::Retention, default: Text("0"),
        help: "History that is kept: a duration, where a bare integer means hours, or in revision mode a number of \
               revisions. 0 keeps everything until a client compacts.",
    }
    CompactionBatchLimit: "compaction" {
        name: "compaction-batch-limit", etcd: "compaction-batch-limit",
        etcd_old: &["experimental-compaction-batch-limit"],
        kind: Kind::Count { min: 1, max: 1_000_000 }, default: Text("1000"),
        help: "Revisions that a compaction removes in one go.",
    }
    CompactionSleepInterval: "compaction" {
        name: "compaction-sleep-interval", etcd: "compaction-sleep-interval",
        etcd_old: &["experimental-compaction-sleep-interval"],
        kind: ANY, default: Text("10ms"),
        help: "Pause of a compaction between two batches.",
    }
    MaxTxnOps: "limits" {
        name: "max-txn-ops", etcd: "max-txn-ops",
        kind: Kind::Count { min: 1, max: u64::MAX }, default: Text("128"),
        help: "Operations permitted in one transaction.",
    }
    MaxRequestBytes: "limits" {
        name: "max-request-bytes", etcd: "max-request-bytes",
        // Above this a request does not fit the length that a protobuf message may have.
        kind: Kind::Bytes { min: 1, max: i32::MAX as u64 - (1 << 20) }, default: Text("1572864"),
        help: "Size of the largest request.",
    }
    MaxConcurrentStreams: "limits" {
        name: "max-concurrent-streams", etcd: "max-concurrent-streams",
        kind: Kind::Count { min: 1, max: u32::MAX as u64 }, default: Text("4294967295"),
        help: "Streams that a client may have open on one connection.",
    }
    KeepaliveInterval: "limits" {
        name: "grpc-keepalive-interval", etcd: "grpc-keepalive-interval",
        kind: ANY, default: Text("2h"),
        help: "Idle time after which the server pings a client. 0 sends no pings.",
    }
    KeepaliveTimeout: "limits" {
        name: "grpc-keepalive-timeout", etcd: "grpc-keepalive-timeout",
        kind: ANY, default: Text("20s"),
        help: "Time for the answer to such a ping, after which the connection is closed. 0 sends no pings.",
    }
    WatchProgressNotifyInterval: "limits" {
        name: "watch-progress-notify-interval", etcd: "watch-progress-notify-interval",
        etcd_old: &["experimental-watch-progress-notify-interval"],
        kind: POSITIVE, default: Text("10m"),
        help: "Time between two progress notifications to a watcher without events.",
    }
    LogLevel: "log" {
        name: "log-level", etcd: "log-level",
        kind: Kind::Level, default: Text("info"),
        help: "error, warn, info, debug or trace, and optionally parts of the program as in \
               info,e2d::store=debug. Libraries stay at info unless they are named. -v is debug, -vv is trace.",
    }
    LogFormat: "log" {
        name: "log-format", etcd: "log-format",
        kind: Kind::Choice(&["auto", "text", "console", "json", "journald"]), default: Text("auto"),
        help: "auto is journald where standard error is the journal, text on a terminal, and json otherwise. \
               console is etcd's word for text.",
    }
    LogOutput: "log" {
        name: "log-output", etcd: "log-outputs",
        kind: Kind::Choice(&["default", "stderr", "stdout"]), default: Text("default"),
        help: "default is the journal where standard error is the journal, and stderr otherwise.",
    }
    WarningApplyDuration: "log" {
        name: "warning-apply-duration", etcd: "warning-apply-duration",
        etcd_old: &["experimental-warning-apply-duration"],
        kind: ANY, default: Text("100ms"),
        help: "An apply that takes longer is warned about.",
    }
    WarningUnaryRequestDuration: "log" {
        name: "warning-unary-request-duration", etcd: "warning-unary-request-duration",
        etcd_old: &["experimental-warning-unary-request-duration"],
        kind: ANY, default: Text("300ms"),
        help: "A request that takes longer is warned about.",
    }
    Metrics: "metrics" {
        name: "metrics", etcd: "metrics",
        kind: Kind::Choice(&["basic", "extensive"]), default: Text("basic"),
        help: "extensive adds histograms of every RPC's duration.",
    }
    MetricsAddr: "metrics" {
        name: "metrics-addr", etcd: "listen-metrics-urls",
        kind: Kind::Listen { port: 2381 }, default: Text(""),
        help: "More addresses that serve /metrics, /health, /livez and /readyz.",
    }
}

/// A setting that people may know from elsewhere and that this version refuses.
#[derive(Debug)]
pub struct Absent {
    /// The flag without dashes.
    pub name: &'static str,
    /// Why it is refused, to follow "is refused: " or stand alone.
    pub why: &'static str,
}

const TLS: &str = "TLS is not in this version, and nothing is served in plain text that was asked to be encrypted";
const BACKUP: &str = "snapshot backups are not in this version";
const FORMING: &str = "clusters of more than one node are not in this version";

/// Settings of `e2d run` that exist in the original or in etcd, and are refused with a reason.
pub static ABSENT: &[Absent] = &[
    Absent { name: "unsafe-no-fsync", why: "a write is never acknowledged before it is on disk" },
    Absent { name: "ca-cert", why: TLS },
    Absent { name: "ca-key", why: TLS },
    Absent { name: "peer-cert", why: TLS },
    Absent { name: "peer-key", why: TLS },
    Absent { name: "server-cert", why: TLS },
    Absent { name: "server-key", why: TLS },
    Absent { name: "gossip-addr", why: FORMING },
    Absent { name: "bootstrap-addrs", why: FORMING },
    Absent { name: "peer-discovery", why: FORMING },
    Absent { name: "health-check-interval", why: FORMING },
    Absent { name: "health-check-timeout", why: FORMING },
    Absent { name: "aws-access-key", why: BACKUP },
    Absent { name: "aws-secret-key", why: BACKUP },
    Absent { name: "aws-role-session-name", why: BACKUP },
    Absent { name: "do-access-token", why: FORMING },
    Absent { name: "do-spaces-key", why: BACKUP },
    Absent { name: "do-spaces-secret", why: BACKUP },
    Absent { name: "snapshot-backup-url", why: BACKUP },
    Absent { name: "snapshot-interval", why: BACKUP },
    Absent { name: "snapshot-compression", why: BACKUP },
    Absent { name: "snapshot-encryption", why: BACKUP },
    Absent { name: "cert-file", why: TLS },
    Absent { name: "key-file", why: TLS },
    Absent { name: "client-cert-auth", why: TLS },
    Absent { name: "trusted-ca-file", why: TLS },
    Absent { name: "auto-tls", why: TLS },
    Absent { name: "peer-cert-file", why: TLS },
    Absent { name: "peer-key-file", why: TLS },
    Absent { name: "peer-client-cert-auth", why: TLS },
    Absent { name: "peer-trusted-ca-file", why: TLS },
    Absent { name: "peer-auto-tls", why: TLS },
    Absent { name: "initial-cluster", why: FORMING },
    Absent { name: "force-new-cluster", why: FORMING },
];
