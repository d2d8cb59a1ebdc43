//! HTTP on the client port: what health checks, scrapers and browsers ask, beside gRPC.
//!
//! [`serve`] takes connections and tells the two apart; here is what is not gRPC. Paths, bodies, statuses and headers
//! are etcd's: probes and load balancers were written against them.

pub mod serve;
pub mod services;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use e2d_core::alarm::{Alarm, AlarmKind};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use crate::metrics::{self, Metrics, Observed};

/// What the endpoints ask of the node.
pub trait Node: Observed + 'static {
    /// The versions it answers as.
    fn versions(&self) -> Versions;
    /// The alarms that are raised, of all members.
    fn alarms(&self) -> Vec<Alarm>;
    /// Whether it knows a leader.
    fn has_leader(&self) -> bool;
    /// Whether it has no vote.
    fn is_learner(&self) -> bool;
    /// Reads one key through the cluster. The error is the text that a client would get.
    fn linearizable_read(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Reads one key from this member's own store. The error is the text that a client would get.
    fn serializable_read(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// What `/version` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    /// The version of etcd that this member answers as, `3.6.14`.
    pub server: String,
    /// What the cluster has agreed on, `3.6.0`, once it has.
    pub cluster: Option<String>,
    /// What the store is written as, `3.6.0`, once it is known.
    pub storage: Option<String>,
}

/// Who may ask, and how long an answer may take.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long the reads of a health check may take. etcd: 5 s and twice the election time-out.
    pub read_timeout: Duration,
    /// The origins whose scripts a browser lets ask (`--cors`); empty or `*` for all.
    pub origins: BTreeSet<String>,
    /// The names under which a client may ask without TLS (`--host-whitelist`); empty or `*` for all. A page that has
    /// its own name resolve to this machine's address cannot have it ask.
    pub hosts: BTreeSet<String>,
}

/// The endpoints.
pub struct Endpoints<N> {
    node: Arc<N>,
    metrics: Arc<Metrics>,
    settings: Settings,
}

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// One of the checks that `/livez` and `/readyz` are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

const TIMED_OUT: &str = "etcdserver: request timed out";
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl<N: Node> Endpoints<N> {
    /// Endpoints of this node.
    pub fn new(node: Arc<N>, metrics: Arc<Metrics>, settings: Settings) -> Endpoints<N> {
        Endpoints { node, metrics, settings }
    }

    /// Answers a request. `secure` says that it came over TLS. The body is of no interest to any endpoint.
    pub async fn answer<B>(&self, request: Request<B>, secure: bool) -> Answer {
        let (head, _) = request.into_parts();
        if !secure {
            let host = host(&head.uri, &head.headers);
            if !allows(&self.settings.hosts, host) {
                warn!(host, "refusing an HTTP request: the host is not on the list");
                return failure(StatusCode::MISDIRECTED_REQUEST, "this host name is not on the host whitelist");
            }
        }
        let mut answer = if head.method == Method::OPTIONS {
            Response::new(Full::default())
        } else {
            self.route(&head.method, head.uri.path(), head.uri.query().unwrap_or("")).await
        };
        self.allow_origin(&head.headers, answer.headers_mut());
        answer
    }

    async fn route(&self, method: &Method, path: &str, query: &str) -> Answer {
        // Scrapers may ask with any method: etcd does not look at it there.
        if path == "/metrics" {
            return self.metrics();
        }
        // `*` and the authority of a CONNECT are no paths.
        let Some(path) = path.strip_prefix('/') else { return not_found() };
        let (endpoint, check) = match path.split_once('/') {
            Some((endpoint, check)) => (endpoint, Some(check)),
            None => (path, None),
        };
        let checks = match (endpoint, check) {
            ("health" | "version", None) => &[],
            ("livez", _) => LIVE,
            ("readyz", _) => READY,
            _ => return not_found(),
        };
        let single = match check.map(|name| checks.iter().position(|check| check.name() == name)) {
            Some(None) => return not_found(),
            Some(Some(at)) => Some(&checks[at..=at]),
            None => None,
        };
        if method != Method::GET {
            return not_allowed();
        }
        let verbose = has(query, "verbose");
        match (endpoint, single) {
            ("health", _) => self.health(query).await,
            ("version", _) => self.version(),
            // Nothing is excluded from a single check.
            (endpoint, Some(single)) => self.checks(endpoint, single, BTreeSet::new(), verbose).await,
            (endpoint, None) => self.checks(endpoint, checks, values(query, "exclude"), verbose).await,
        }
    }

    fn metrics(&self) -> Answer {
        let text = self.metrics.encode(Some(&*self.node));
        with_type(StatusCode::OK, HeaderValue::from_static(metrics::CONTENT_TYPE), text)
    }

    fn version(&self) -> Answer {
        let versions = self.node.versions();
        let body = format!(
            "{{\"etcdserver\":{},\"etcdcluster\":{},\"storage\":{}}}",
            json(&versions.server),
            json(versions.cluster.as_deref().unwrap_or("not_decided")),
            json(versions.storage.as_deref().unwrap_or("unknown")),
        );
        with_type(StatusCode::OK, JSON, body)
    }

    async fn health(&self, query: &str) -> Answer {
        let excluded = values(query, "exclude");
        let serializable = first(query, "serializable").is_some_and(|value| value == "true");
        let sick = self.sickness(&excluded, serializable).await;
        let body = |healthy: bool, reason: &str| format!("{{\"health\":\"{healthy}\",\"reason\":{}}}", json(reason));
        match sick {
            None => {
                self.metrics.health.success.inc();
                with_type(StatusCode::OK, TEXT, body(true, ""))
            }
            Some(reason) => {
                self.metrics.health.failures.inc();
                warn!(reason = &*reason, "/health says no");
                failure(StatusCode::SERVICE_UNAVAILABLE, &body(false, &reason))
            }
        }
    }

    /// Why `/health` has to say no, if it has to.
    async fn sickness(&self, excluded: &BTreeSet<String>, serializable: bool) -> Option<Cow<'static, str>> {
        let alarm = self.node.alarms().into_iter().find(|alarm| !excluded.contains(&alarm.kind.to_string()));
        if let Some(alarm) = alarm {
            return Some(format!("ALARM {}", alarm.kind).into());
        }
        if !serializable && !self.node.has_leader() {
            return Some("RAFT NO LEADER".into());
        }
        let check = if serializable { Check::SerializableRead } else { Check::LinearizableRead };
        self.check(check).await.err().map(|error| format!("RANGE ERROR:{error}").into())
    }

    async fn checks(&self, endpoint: &str, checks: &[Check], mut exclude: BTreeSet<String>, verbose: bool) -> Answer {
        let (mut report, mut healthy) = (String::new(), true);
        for check in checks {
            if exclude.remove(check.name()) {
                continue;
            }
            let result = self.check(*check).await;
            self.metrics.health.record(endpoint, check.name(), result.is_ok());
            // Writing to a string does not fail.
            let _ = match &result {
                Ok(()) => writeln!(report, "[+]{} ok", check.name()),
                Err(reason) => writeln!(report, "[-]{} failed: {reason}", check.name()),
            };
            healthy &= result.is_ok();
        }
        if !exclude.is_empty() {
            warn!(endpoint, unknown = ?exclude, "a health check was to leave out checks that do not exist");
        }
        if !healthy {
            error!(endpoint, report, "a health check says no");
            return failure(StatusCode::SERVICE_UNAVAILABLE, &report);
        }
        debug!(endpoint, report, "a health check says yes");
        let body = if verbose { format!("{report}ok\n") } else { "ok\n".to_owned() };
        no_sniff(with_type(StatusCode::OK, TEXT, body))
    }

    async fn check(&self, check: Check) -> Result<(), String> {
        let limit = self.settings.read_timeout;
        let timed_out = |_| Err(TIMED_OUT.to_owned());
        match check {
            Check::DataCorruption => {
                let corrupt = self.node.alarms().iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
                if corrupt { Err(format!("alarm activated: {}", AlarmKind::Corrupt)) } else { Ok(()) }
            }
            Check::NonLearner if self.node.is_learner() => Err("not supported for learner".to_owned()),
            Check::NonLearner => Ok(()),
            Check::SerializableRead => timeout(limit, self.node.serializable_read()).await.unwrap_or_else(timed_out),
            Check::LinearizableRead => timeout(limit, self.node.linearizable_read()).await.unwrap_or_else(timed_out),
        }
    }

    fn allow_origin(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        let origin = if allows(&self.settings.origins, "*") {
            HeaderValue::from_static("*")
        } else {
            match asked.get(header::ORIGIN) {
                Some(origin) if origin.to_str().is_ok_and(|name| self.settings.origins.contains(name)) => {
                    origin.clone()
                }
                _ => return,
            }
        };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        const METHODS: HeaderValue = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        const HEADERS: HeaderValue = HeaderValue::from_static("accept, content-type, authorization");
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    }
}

/// Whether a list that may be empty or hold `*` has this name.
fn allows(list: &BTreeSet<String>, name: &str) -> bool {
    list.is_empty() || list.contains("*") || list.contains(name)
}

/// The name under which the client asks, without the port.
fn host<'a>(uri: &'a http::Uri, headers: &'a HeaderMap) -> &'a str {
    if let Some(host) = uri.host() {
        return host.trim_start_matches('[').trim_end_matches(']');
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    if let Some((host, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host;
    }
    host.rsplit_once(':').map_or(host, |(host, _)| host)
}

fn with_type(status: StatusCode, content_type: HeaderValue, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
    answer
}

fn no_sniff(mut answer: Answer) -> Answer {
    const NAME: HeaderName = header::X_CONTENT_TYPE_OPTIONS;
    answer.headers_mut().insert(NAME, HeaderValue::from_static("nosniff"));
    answer
}

/// An error, whose text gets an end of line whether it has one already or not.
fn failure(status: StatusCode, text: &str) -> Answer {
    no_sniff(with_type(status, TEXT, format!("{text}\n")))
}

fn not_found() -> Answer {
    failure(StatusCode::NOT_FOUND, "404 page not found")
}

fn not_allowed() -> Answer {
    let mut answer = failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    answer
}

/// A string as JSON has it.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The pairs of a query, decoded.
fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

fn first<'a>(query: &'a str, key: &str) -> Option<Cow<'a, str>> {
    pairs(query).find(|(name, _)| name == key).map(|(_, value)| value)
}

fn has(query: &str, key: &str) -> bool {
    first(query, key).is_some()
}

/// All values of a key that are not empty.
fn values(query: &str, key: &str) -> BTreeSet<String> {
    let values = pairs(query).filter(|(name, value)| name == key && !value.is_empty());
    values.map(|(_, value)| value.into_owned()).collect()
}

/// `+` is a space and `%` followed by two digits a byte; what is not, stays as it is.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digit = |at: usize| behind.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        rest = behind;
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &behind[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests;
