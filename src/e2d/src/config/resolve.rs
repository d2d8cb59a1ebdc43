//! From what was written to what holds. Pure: the same text on the same machine gives the same answer, and every
//! mistake is named at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::{Endpoint, Host};
use super::fragments::Fragments;
use super::process::{Machine, Standard};
use super::settings::{Fallback, Id, Mode, SETTINGS, Setting, setting};
use super::source::{Invalid, Problem, Source};
use super::value::Value;
use super::{
    AutoCompaction, Cluster, Compaction, Config, InitialMember, InitialState, Keepalive, Limits, Listen, Log,
    LogFilter, LogFormat, LogOutput, Metrics, MetricsLevel, Node, Raft, Storage, duration,
};

/// The answer: what a node starts with.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the components get.
    pub config: Config,
    /// Every setting with its value as text and where it comes from, in the order of the table.
    pub effective: Vec<Effective>,
    /// Sentences for the log: settings that were accepted and have no effect.
    pub notices: Vec<String>,
}

/// One setting, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// Which.
    pub setting: Id,
    /// Its value as one would write it.
    pub text: String,
    /// Where it comes from.
    pub source: Source,
}

impl Config {
    /// Decides what holds.
    ///
    /// # Errors
    /// Everything that is wrong with what was written.
    pub fn resolve(fragments: Fragments, machine: &Machine) -> Result<Resolved, Invalid> {
        let mut r = Resolver {
            mode: fragments.mode,
            machine,
            problems: fragments.problems.clone(),
            fragments,
            effective: BTreeMap::new(),
            bad: BTreeSet::new(),
        };
        let node = r.node();
        let host = r.host();
        let listen = r.listen(host);
        let cluster = r.cluster(&node, &listen);
        let storage = r.storage(&node);
        let raft = r.raft();
        let compaction = r.compaction();
        let limits = r.limits();
        let log = r.log();
        let metrics = r.metrics(&listen);
        if !r.problems.is_empty() {
            return Err(Invalid(r.problems));
        }
        Ok(Resolved {
            config: Config { node, listen, cluster, storage, raft, compaction, limits, log, metrics },
            effective: r.effective.into_values().collect(),
            notices: r.fragments.notices,
        })
    }
}

struct Resolver<'a> {
    mode: Mode,
    machine: &'a Machine,
    fragments: Fragments,
    problems: Vec<Problem>,
    effective: BTreeMap<Id, Effective>,
    /// Settings whose value could not be read. A check that involves one would report a mistake nobody made.
    bad: BTreeSet<Id>,
}

impl Resolver<'_> {
    // ----- one setting -----

    /// The value that wins, or the table's default. Every written value is read, also one that is overridden: it
    /// would be the one that counts when the override goes away. `None` when nothing is written and the default
    /// depends on other things, or when what is written is wrong.
    fn value(&mut self, id: Id) -> Option<Value> {
        let row = setting(id);
        let mut winner: Option<(Value, String, Source)> = None;
        for layer in &self.fragments.layers {
            let Some(written) = layer.get(id) else {
                continue;
            };
            match read(row, &written.text) {
                Ok(value) => winner = Some((value, written.text.clone(), written.source.clone())),
                Err(message) => {
                    self.problems.push(Problem::new(&written.source, message));
                    self.bad.insert(id);
                }
            }
        }
        if self.bad.contains(&id) {
            return None;
        }
        if winner.is_none()
            && let Fallback::Text(text) = row.default
        {
            let value = read(row, text);
            debug_assert!(value.is_ok(), "the default of {id:?} is not one: {value:?}");
            winner = value.ok().map(|value| (value, text.into(), Source::Default));
        }
        let (value, text, source) = winner?;
        self.note(id, text, source);
        Some(value)
    }

    fn note(&mut self, setting: Id, text: String, source: Source) {
        let known = match self.mode {
            Mode::Run => !SETTINGS[setting as usize].name.is_empty(),
            Mode::Etcd => !SETTINGS[setting as usize].etcd.is_empty(),
        };
        if known {
            self.effective.insert(setting, Effective { setting, text, source });
        }
    }

    /// Notes a value that nobody wrote.
    fn derive(&mut self, id: Id, text: impl Into<String>) {
        if !self.bad.contains(&id) {
            self.note(id, text.into(), Source::Derived);
        }
    }

    /// The place to name in a message about a setting.
    fn place(&self, id: Id) -> String {
        match self.effective.get(&id).map(|e| &e.source) {
            None | Some(Source::Default | Source::Derived) => {
                format!("{} (default)", setting(id).label(self.mode))
            }
            Some(source) => source.to_string(),
        }
    }

    fn is_written(&self, id: Id) -> bool {
        self.fragments.layers.iter().any(|l| l.get(id).is_some())
    }

    fn refuse(&mut self, id: Id, message: impl Into<String>) {
        let place = self.place(id);
        self.problems.push(Problem::new(place, message));
    }

    fn text(&mut self, id: Id) -> Option<String> {
        match self.value(id)? {
            Value::Text(text) => Some(text),
            other => unreachable!("{id:?} is declared as text but is {other:?}"),
        }
    }

    fn path(&mut self, id: Id) -> Option<PathBuf> {
        match self.value(id)? {
            Value::Path(path) => Some(path),
            other => unreachable!("{id:?} is declared as a path but is {other:?}"),
        }
    }

    /// Zero for a value that could not be read; the mistake is noted by then.
    fn count(&mut self, id: Id) -> u64 {
        match self.value(id) {
            None => 0,
            Some(Value::Count(count)) => count,
            Some(other) => unreachable!("{id:?} is declared as a count but is {other:?}"),
        }
    }

    /// Zero for a value that could not be read; the mistake is noted by then.
    fn duration(&mut self, id: Id) -> Duration {
        match self.value(id) {
            None => Duration::ZERO,
            Some(Value::Duration(duration)) => duration,
            Some(other) => unreachable!("{id:?} is declared as a duration but is {other:?}"),
        }
    }

    /// The empty word for a value that could not be read; the mistake is noted by then.
    fn choice(&mut self, id: Id) -> &'static str {
        match self.value(id) {
            None => "",
            Some(Value::Choice(word)) => word,
            Some(other) => unreachable!("{id:?} is declared as a choice but is {other:?}"),
        }
    }

    fn endpoints(&mut self, id: Id) -> Option<Vec<Endpoint>> {
        match self.value(id)? {
            Value::Endpoints(endpoints) => Some(endpoints),
            other => unreachable!("{id:?} is declared as addresses but is {other:?}"),
        }
    }

    fn addresses(&mut self, id: Id) -> Option<Vec<SocketAddr>> {
        let found = self.endpoints(id)?;
        Some(found.iter().filter_map(Endpoint::bind_address).collect())
    }

    // ----- the slices -----

    fn node(&mut self) -> Node {
        let name = self.text(Id::Name).unwrap_or_else(|| {
            let hostname = self.machine.hostname.as_str();
            let name = match self.mode {
                Mode::Run if read(setting(Id::Name), hostname).is_ok() => hostname,
                _ => "default",
            };
            self.derive(Id::Name, name);
            name.to_string()
        });
        Node { name }
    }

    fn host(&mut self) -> Option<IpAddr> {
        match self.value(Id::Host)? {
            Value::Ip(ip) => Some(ip),
            other => unreachable!("the host is declared as an address but is {other:?}"),
        }
    }

    fn listen(&mut self, host: Option<IpAddr>) -> Listen {
        let mut client = match self.addresses(Id::ClientAddr) {
            Some(addresses) => addresses,
            None => {
                // Without --host only this machine is served: whoever wants more says so.
                let mut ips: Vec<IpAddr> = host.into_iter().collect();
                if !ips.iter().any(IpAddr::is_loopback) {
                    ips.push(Ipv4Addr::LOCALHOST.into());
                }
                let addresses: Vec<SocketAddr> = ips.into_iter().map(|ip| SocketAddr::new(ip, 2379)).collect();
                self.derive(Id::ClientAddr, joined(&addresses));
                addresses
            }
        };
        client.extend(self.addresses(Id::ClientHttpAddr).unwrap_or_default());
        let peer = match self.addresses(Id::PeerAddr) {
            Some(addresses) => addresses,
            None => {
                let ip = host.unwrap_or(Ipv4Addr::LOCALHOST.into());
                let addresses = vec![SocketAddr::new(ip, 2380)];
                self.derive(Id::PeerAddr, joined(&addresses));
                addresses
            }
        };
        self.distinct(Id::ClientAddr, &client);
        self.distinct(Id::PeerAddr, &peer);
        self.apart((Id::PeerAddr, &peer), (Id::ClientAddr, &client));
        Listen {
            advertise_client: self.advertise(Id::AdvertiseClient, Id::ClientAddr, &client, host),
            advertise_peer: self.advertise(Id::AdvertisePeer, Id::PeerAddr, &peer, host),
            client,
            peer,
        }
    }

    fn advertise(&mut self, id: Id, listen: Id, addresses: &[SocketAddr], host: Option<IpAddr>) -> Vec<Endpoint> {
        if let Some(written) = self.endpoints(id) {
            // etcd takes them, and the world is full of containers that are started this way.
            let useless = |e: &&Endpoint| matches!(e.host, Host::Ip(ip) if ip.is_unspecified());
            if self.mode == Mode::Run
                && let Some(useless) = written.iter().find(useless)
            {
                self.refuse(id, format!("expected an address that others can connect to, found {useless}"));
            }
            return written;
        }
        if self.mode == Mode::Etcd {
            if id == Id::AdvertiseClient && self.is_written(listen) {
                let place = setting(id).label(self.mode);
                self.problems
                    .push(Problem::new(place, format!("is required when {} is set", setting(listen).label(self.mode))));
            }
            let port = if id == Id::AdvertiseClient { 2379 } else { 2380 };
            let endpoint = Endpoint { host: Host::Name("localhost".into()), port };
            self.derive(id, endpoint.url());
            return vec![endpoint];
        }
        let endpoints = advertised(addresses, host, self.machine.address);
        self.derive(id, joined(&endpoints));
        endpoints
    }

    fn cluster(&mut self, node: &Node, listen: &Listen) -> Cluster {
        let size = self.count(Id::ClusterSize);
        match size {
            0 | 1 => {}
            3 | 5 => self.refuse(
                Id::ClusterSize,
                format!("expected 1, found {size}: clusters of more than one node are not in this version"),
            ),
            _ => self.refuse(Id::ClusterSize, format!("expected 1, 3 or 5, found {size}")),
        }
        let initial = match self.value(Id::InitialCluster) {
            Some(Value::Members(members)) => self.initial(node, listen, members),
            Some(other) => unreachable!("initial-cluster is declared as members but is {other:?}"),
            None => {
                let alone = InitialMember { name: node.name.clone(), peer: listen.advertise_peer.clone() };
                let text: Vec<String> = alone.peer.iter().map(|e| format!("{}={}", alone.name, e.url())).collect();
                self.derive(Id::InitialCluster, text.join(","));
                vec![alone]
            }
        };
        Cluster {
            size: size as usize,
            initial,
            initial_state: match self.choice(Id::InitialState) {
                "existing" => InitialState::Existing,
                _ => InitialState::New,
            },
            token: self.text(Id::InitialToken).unwrap_or_default(),
        }
    }

    fn initial(&mut self, node: &Node, listen: &Listen, written: Vec<(String, Endpoint)>) -> Vec<InitialMember> {
        let mut members: Vec<InitialMember> = Vec::new();
        for (name, at) in written {
            match members.iter_mut().find(|member| member.name == name) {
                Some(member) => member.peer.push(at),
                None => members.push(InitialMember { name, peer: vec![at] }),
            }
        }
        if let [member] = members.as_slice() {
            if self.bad.contains(&Id::Name) || self.bad.contains(&Id::AdvertisePeer) {
                return members;
            }
            if member.name != node.name {
                self.refuse(
                    Id::InitialCluster,
                    format!("expected this node's name {:?} among the members, found {:?}", node.name, member.name),
                );
            } else if !same(&member.peer, &listen.advertise_peer) {
                self.refuse(
                    Id::InitialCluster,
                    format!(
                        "expected {}={} as {} says, found {}",
                        node.name,
                        urls(&listen.advertise_peer),
                        self.place(Id::AdvertisePeer),
                        urls(&member.peer),
                    ),
                );
            }
        } else {
            let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
            self.refuse(
                Id::InitialCluster,
                format!(
                    "expected one member, found {} ({}): clusters of more than one node are not in this version",
                    names.len(),
                    names.join(", ")
                ),
            );
        }
        members
    }

    fn storage(&mut self, node: &Node) -> Storage {
        let data_dir = self.path(Id::DataDir).unwrap_or_else(|| {
            let dir = match (self.mode, &self.machine.state_directory) {
                (Mode::Etcd, _) => PathBuf::from(format!("{}.etcd", node.name)),
                (Mode::Run, Some(dir)) => dir.clone(),
                (Mode::Run, None) => PathBuf::from("e2d-data"),
            };
            self.derive(Id::DataDir, dir.display().to_string());
            dir
        });
        let wal_dir = self.path(Id::WalDir).unwrap_or_else(|| {
            let dir = data_dir.join("wal");
            self.derive(Id::WalDir, dir.display().to_string());
            dir
        });
        if data_dir == wal_dir {
            self.refuse(Id::WalDir, format!("expected another directory than {}", data_dir.display()));
        }
        let quota_bytes = match self.value(Id::Quota) {
            None => None,
            Some(Value::Quota(quota)) => quota,
            Some(other) => unreachable!("the quota is declared as such but is {other:?}"),
        };
        Storage { data_dir, wal_dir, quota_bytes }
    }

    fn raft(&mut self) -> Raft {
        let heartbeat_interval = self.duration(Id::HeartbeatInterval);
        let election_timeout = self.duration(Id::ElectionTimeout);
        let readable = !self.bad.contains(&Id::HeartbeatInterval) && !self.bad.contains(&Id::ElectionTimeout);
        if readable && election_timeout < heartbeat_interval * 5 {
            self.refuse(
                Id::ElectionTimeout,
                format!(
                    "expected at least five times the heartbeat interval, which is {} by {}, found {}",
                    duration::format(heartbeat_interval),
                    self.place(Id::HeartbeatInterval),
                    duration::format(election_timeout),
                ),
            );
        }
        Raft { heartbeat_interval, election_timeout, snapshot_count: self.count(Id::SnapshotCount) }
    }

    fn compaction(&mut self) -> Compaction {
        let mode = self.choice(Id::AutoCompactionMode);
        let retention = self.text(Id::AutoCompactionRetention).unwrap_or_default();
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let auto = match mode {
            "" => Some(AutoCompaction::Off),
            // Revisions are counted in 63 bits.
            "revision" => number(&retention).filter(|count| *count <= i64::MAX as u64).map(AutoCompaction::Revision),
            _ => number(&retention)
                .map(|hours| {
                    let seconds = hours.checked_mul(3600)?;
                    (seconds <= i64::MAX as u64 / 1_000_000_000).then(|| Duration::from_secs(seconds))
                })
                .unwrap_or_else(|| duration::parse(&retention))
                .map(AutoCompaction::Periodic),
        };
        let auto = match auto {
            Some(AutoCompaction::Periodic(Duration::ZERO) | AutoCompaction::Revision(0)) => AutoCompaction::Off,
            Some(auto) => auto,
            None => {
                let shape = match mode {
                    "revision" => "a number of revisions",
                    _ => "a number of hours or a duration such as 5m",
                };
                self.refuse(
                    Id::AutoCompactionRetention,
                    format!(
                        "expected {shape} in mode {mode}, set by {}, found {retention:?}",
                        self.place(Id::AutoCompactionMode)
                    ),
                );
                AutoCompaction::Off
            }
        };
        Compaction {
            auto,
            batch_limit: self.count(Id::CompactionBatchLimit),
            sleep_interval: self.duration(Id::CompactionSleepInterval),
        }
    }

    fn limits(&mut self) -> Limits {
        let keepalive =
            Keepalive { interval: self.duration(Id::KeepaliveInterval), timeout: self.duration(Id::KeepaliveTimeout) };
        let off = keepalive.interval.is_zero() || keepalive.timeout.is_zero();
        Limits {
            max_txn_ops: self.count(Id::MaxTxnOps),
            max_request_bytes: self.count(Id::MaxRequestBytes),
            // The table keeps it within 32 bits.
            max_concurrent_streams: u32::try_from(self.count(Id::MaxConcurrentStreams)).unwrap_or(u32::MAX),
            keepalive: (!off).then_some(keepalive),
            watch_progress_notify_interval: self.duration(Id::WatchProgressNotifyInterval),
        }
    }

    fn log(&mut self) -> Log {
        let filter = match self.value(Id::LogLevel) {
            None => LogFilter { level: tracing::Level::INFO, parts: Vec::new() },
            Some(Value::Level(filter)) => filter,
            Some(other) => unreachable!("the log level is declared as such but is {other:?}"),
        };
        let format = self.choice(Id::LogFormat);
        let output = self.choice(Id::LogOutput);
        if format == "journald" && matches!(output, "stderr" | "stdout") {
            self.refuse(
                Id::LogFormat,
                format!(
                    "expected text or json for the output {output}, set by {}, found \"journald\"",
                    self.place(Id::LogOutput)
                ),
            );
        }
        let stream = match output {
            "stdout" => self.machine.stdout,
            _ => self.machine.stderr,
        };
        let terminal = stream == Standard::Terminal;
        let text = LogFormat::Text { color: terminal && self.machine.color };
        Log {
            filter,
            format: match format {
                "journald" => LogFormat::Journald,
                "json" => LogFormat::Json,
                "text" | "console" => text,
                _ if output == "default" && stream == Standard::Journal => LogFormat::Journald,
                _ if terminal => text,
                _ => LogFormat::Json,
            },
            output: match output {
                "stdout" => LogOutput::Stdout,
                _ => LogOutput::Stderr,
            },
            warning_apply_duration: self.duration(Id::WarningApplyDuration),
            warning_unary_request_duration: self.duration(Id::WarningUnaryRequestDuration),
        }
    }

    fn metrics(&mut self, listen: &Listen) -> Metrics {
        let addresses = self.addresses(Id::MetricsAddr).unwrap_or_default();
        self.distinct(Id::MetricsAddr, &addresses);
        self.apart((Id::MetricsAddr, &addresses), (Id::ClientAddr, &listen.client));
        self.apart((Id::MetricsAddr, &addresses), (Id::PeerAddr, &listen.peer));
        Metrics {
            listen: addresses,
            level: match self.choice(Id::Metrics) {
                "extensive" => MetricsLevel::Extensive,
                _ => MetricsLevel::Basic,
            },
        }
    }

    // ----- addresses -----

    /// The second bind of an address fails with "address in use", which would not say by whom.
    fn distinct(&mut self, id: Id, addresses: &[SocketAddr]) {
        for (i, one) in addresses.iter().enumerate() {
            if let Some(other) = addresses[..i].iter().find(|other| collide(one, other)) {
                self.refuse(id, format!("expected distinct addresses, found {other} and {one}"));
                return;
            }
        }
    }

    fn apart(&mut self, (id, mine): (Id, &[SocketAddr]), (other, theirs): (Id, &[SocketAddr])) {
        for one in mine {
            if let Some(taken) = theirs.iter().find(|taken| collide(one, taken)) {
                let place = self.place(other);
                self.refuse(id, format!("expected an address of its own, found {one}, but {place} has {taken}"));
                return;
            }
        }
    }
}

/// Reads a value, where empty text means none if that is the default.
fn read(row: &Setting, text: &str) -> Result<Value, String> {
    if text.is_empty() && row.default == Fallback::Text("") {
        return Ok(Value::Endpoints(Vec::new()));
    }
    row.kind.parse(text)
}

/// Whether the second of two binds would fail.
fn collide(a: &SocketAddr, b: &SocketAddr) -> bool {
    let family = a.is_ipv4() == b.is_ipv4();
    let address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && family && address
}

/// What others are told when nobody says: the addresses that are listened on, except that "every address" becomes
/// this machine's, and that loopback addresses are left out when there is another.
fn advertised(addresses: &[SocketAddr], host: Option<IpAddr>, outgoing: Option<IpAddr>) -> Vec<Endpoint> {
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        let fits = |ip: &IpAddr| ip.is_ipv4() == address.is_ipv4();
        let loopback: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let ip = match address.ip() {
            ip if !ip.is_unspecified() => ip,
            _ => host.filter(fits).or(outgoing.filter(fits)).unwrap_or(loopback),
        };
        let told = SocketAddr::new(ip, address.port());
        if !endpoints.contains(&told) {
            endpoints.push(told);
        }
    }
    if endpoints.iter().any(|told| !told.ip().is_loopback()) {
        endpoints.retain(|told| !told.ip().is_loopback());
    }
    endpoints.into_iter().map(Endpoint::from).collect()
}

fn joined<T: std::fmt::Display>(list: &[T]) -> String {
    let texts: Vec<String> = list.iter().map(T::to_string).collect();
    texts.join(",")
}

fn urls(list: &[Endpoint]) -> String {
    let texts: Vec<String> = list.iter().map(Endpoint::url).collect();
    texts.join(",")
}

/// Whether two lists hold the same addresses in any order, where localhost is 127.0.0.1.
fn same(a: &[Endpoint], b: &[Endpoint]) -> bool {
    let equal = |a: &Endpoint, b: &Endpoint| match (a.bind_address(), b.bind_address()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    a.len() == b.len() && a.iter().all(|a| b.iter().any(|b| equal(a, b)))
}
