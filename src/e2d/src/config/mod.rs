//! What a node is told: read at the edge, decided once, and handed on as plain values.
//!
//! ```text
//! process ──► fragments ──────► resolve ─────────► Config
//! (argv,      (as written,      (pure: defaults,    (no Option that
//!  env)        with source)      cross-checks)       means "default")
//! ```
//!
//! A setting exists in one place, the table in [`settings`]: its flag, environment variable, TOML key, manual page
//! and documentation all come from there. Nothing outside this folder reads the environment or the command line.

mod document;
mod duration;
mod endpoint;
pub mod etcd;
mod fragments;
mod process;
mod resolve;
pub mod settings;
mod source;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use document::{effective_toml, markdown};
pub use endpoint::{Endpoint, Host};
pub use fragments::{CONFIG_ENV, Fragments, Layer, ROOTS, VERBOSE};
pub use process::{Machine, Process, Standard};
pub use resolve::{Effective, Resolved};
pub use settings::Mode;
pub use source::{Invalid, Problem, Source};
pub use value::Kind;

/// Everything that a node is told. Each component takes its own slice by value.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// Where it listens and what it tells others.
    pub listen: Listen,
    /// The cluster that it belongs to.
    pub cluster: Cluster,
    /// Where its data lives and how much of it there may be.
    pub storage: Storage,
    /// The pace of consensus.
    pub raft: Raft,
    /// When old revisions are removed.
    pub compaction: Compaction,
    /// What a client may ask for at once, and how connections are kept.
    pub limits: Limits,
    /// What is logged and how.
    pub log: Log,
    /// What is measured and where it is served.
    pub metrics: Metrics,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The name in member lists. For people: identity is the node id in the data directory.
    pub name: String,
}

/// Where the node listens and what it tells others. No two addresses here, nor those of [`Metrics`], collide.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// Where clients are served, gRPC and HTTP on every one. Never empty. Port 0 leaves the choice to the kernel.
    pub client: Vec<SocketAddr>,
    /// Where other nodes are served. Never empty.
    pub peer: Vec<SocketAddr>,
    /// What clients are told to connect to. Port 0 stands for the port that was bound.
    pub advertise_client: Vec<Endpoint>,
    /// What other nodes are told to connect to.
    pub advertise_peer: Vec<Endpoint>,
}

/// The cluster that the node belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Voting members wanted. One in this version.
    pub size: usize,
    /// The members named at first start, of which this node is one.
    pub initial: Vec<InitialMember>,
    /// Whether the first start forms a cluster or expects one.
    pub initial_state: InitialState,
    /// Text that goes into the cluster's id, so that two clusters made of equal addresses differ.
    pub token: String,
}

/// A member named at first start.
#[derive(Debug, Clone, PartialEq)]
pub struct InitialMember {
    /// Its name, see [`Node::name`].
    pub name: String,
    /// Its peer addresses, never empty.
    pub peer: Vec<Endpoint>,
}

/// What the first start is to do. Ignored when the data directory holds a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialState {
    /// Form a new cluster.
    New,
    /// Join one that exists.
    Existing,
}

/// Where data lives and how much of it there may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// The directory of everything that this node keeps.
    pub data_dir: PathBuf,
    /// The directory of the write-ahead log, inside `data_dir` unless told otherwise.
    pub wal_dir: PathBuf,
    /// Bytes that the store may take before writes are refused. `None` is without limit.
    pub quota_bytes: Option<u64>,
}

/// The pace of consensus.
#[derive(Debug, Clone, PartialEq)]
pub struct Raft {
    /// Time between two heartbeats of a leader.
    pub heartbeat_interval: Duration,
    /// Silence of the leader after which another is elected, at least five heartbeats.
    pub election_timeout: Duration,
    /// Applied entries between two cuts of the write-ahead log.
    pub snapshot_count: u64,
}

/// When old revisions are removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Compaction {
    /// Without a client asking.
    pub auto: AutoCompaction,
    /// Revisions removed in one go.
    pub batch_limit: u64,
    /// Pause between two batches.
    pub sleep_interval: Duration,
}

/// What is removed without a client asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Nothing.
    Off,
    /// Everything older than this time, which is not zero.
    Periodic(Duration),
    /// Everything but this many newest revisions, which is not zero.
    Revision(u64),
}

/// What a client may ask for at once, and how connections are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Operations in one transaction.
    pub max_txn_ops: u64,
    /// Bytes of one request.
    pub max_request_bytes: u64,
    /// HTTP/2 streams on one connection.
    pub max_concurrent_streams: u32,
    /// Pings from the server on idle connections. `None` sends none.
    pub keepalive: Option<Keepalive>,
    /// Time between two progress notifications to a watcher without events.
    pub watch_progress_notify_interval: Duration,
}

/// Pings from the server, which find clients that went away without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before a ping.
    pub interval: Duration,
    /// Time for the answer, after which the connection is closed.
    pub timeout: Duration,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// How much.
    pub filter: LogFilter,
    /// In which form.
    pub format: LogFormat,
    /// To which stream. Without meaning for [`LogFormat::Journald`].
    pub output: LogOutput,
    /// An apply that takes longer is warned about.
    pub warning_apply_duration: Duration,
    /// A unary request that takes longer is warned about.
    pub warning_unary_request_duration: Duration,
}

/// The form of a log message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people, in colour where the terminal has it.
    Text {
        /// Whether the output shows colours.
        color: bool,
    },
    /// One JSON object a line.
    Json,
    /// The journal's own protocol, which keeps fields apart.
    Journald,
}

/// The stream that receives log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
}

/// How much is logged: a level, and other levels for parts of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter {
    /// The level of everything not named in `parts`.
    pub level: tracing::Level,
    /// Module paths such as `e2d::store` with levels of their own.
    pub parts: Vec<(String, tracing::Level)>,
}

impl LogFilter {
    /// Reads `info` or `info,e2d::store=debug`. etcd's `panic`, `dpanic` and `fatal` are `error`, the least that is
    /// ever logged.
    pub fn parse(text: &str) -> Option<Self> {
        let level = |word: &str| {
            Some(match word {
                "error" | "panic" | "dpanic" | "fatal" => tracing::Level::ERROR,
                "warn" => tracing::Level::WARN,
                "info" => tracing::Level::INFO,
                "debug" => tracing::Level::DEBUG,
                "trace" => tracing::Level::TRACE,
                _ => return None,
            })
        };
        let mut words = text.split(',');
        let first = level(words.next()?)?;
        let parts = words
            .map(|word| {
                let (part, of) = word.split_once('=')?;
                let path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                (!part.is_empty() && part.chars().all(path)).then_some(())?;
                Some((part.to_string(), level(of)?))
            })
            .collect::<Option<Vec<_>>>()?;
        Some(LogFilter { level: first, parts })
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level.as_str().to_ascii_lowercase())?;
        for (part, level) in &self.parts {
            write!(f, ",{part}={}", level.as_str().to_ascii_lowercase())?;
        }
        Ok(())
    }
}

/// What is measured and where it is served.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Addresses for `/metrics`, `/health`, `/livez` and `/readyz` beside those of clients. Often empty.
    pub listen: Vec<SocketAddr>,
    /// How much is measured.
    pub level: MetricsLevel,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsLevel {
    /// Counters and gauges.
    Basic,
    /// Histograms of every RPC's duration as well.
    Extensive,
}
