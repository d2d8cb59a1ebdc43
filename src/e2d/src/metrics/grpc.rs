//! One layer around all gRPC services: it counts the calls, their messages, bytes and outcomes, and refuses a message
//! that is too large before any of it is gathered.
//!
//! ```text
//!   request  ── Layer::call ── Received body (messages, bytes, the limit) ──► service
//!   response ◄─ Sent body (messages, bytes, grpc-status in the trailers) ◄─── future ◄── service
//! ```
//!
//! The calls are counted where they pass, not in the handlers, so that no handler can be forgotten. A call costs one
//! look-up of its path in a perfect hash and a handful of atomic additions; nothing is allocated.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{Histogram, HistogramVec, IntCounterVec};
use tonic::{Code, Status};

use super::Make;
use super::methods::{self, Kind, METHODS, UNKNOWN};
use super::observed::{family, metric, pair};

/// The counts of all methods.
pub struct Grpc {
    methods: [MethodStats; METHODS.len()],
    clients: [[AtomicU64; 2]; ClientVersion::COUNT],
    handling: Option<Handling>,
    stream_failures: IntCounterVec,
}

/// Methods are counted by different workers, so each has cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct MethodStats {
    started: AtomicU64,
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// How long the calls take.
struct Handling {
    all: HistogramVec,
    resolved: [OnceLock<Histogram>; METHODS.len()],
}

/// The names that the `grpc_code` label has, by the code's number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Which end of a stream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Reading what the client sent.
    Receive,
    /// Sending to the client.
    Send,
}

impl Grpc {
    pub(super) fn new(make: &Make<'_>, extensive: bool) -> Grpc {
        let handling = extensive.then(|| Handling {
            all: make.histograms(
                "grpc_server_handling_seconds",
                "Seconds from the start of a call until its status was sent.",
                prometheus::DEFAULT_BUCKETS.to_vec(),
                &["grpc_type", "grpc_service", "grpc_method"],
            ),
            resolved: [const { OnceLock::new() }; METHODS.len()],
        });
        if let Some(handling) = &handling {
            for (at, _) in METHODS.iter().enumerate().filter(|(_, method)| method.listed) {
                handling.of(at);
            }
        }
        Grpc {
            methods: std::array::from_fn(|_| MethodStats::default()),
            clients: Default::default(),
            handling,
            stream_failures: make.counters(
                "etcd_network_server_stream_failures_total",
                "Streams of clients that broke.",
                &["Type", "API"],
            ),
        }
    }

    /// A stream of `api` (`watch`, `lease-keepalive`) broke.
    pub fn stream_failed(&self, direction: Direction, api: &'static str) {
        let kind = match direction {
            Direction::Receive => "receive",
            Direction::Send => "send",
        };
        self.stream_failures.with_label_values(&[kind, api]).inc();
    }

    pub(super) fn families(&self, out: &mut Vec<MetricFamily>) {
        let counter = MetricType::COUNTER;
        let shown = || {
            METHODS.iter().zip(&self.methods).filter(|(method, stats)| method.listed || stats.started.load(Relaxed) > 0)
        };
        let labels = |method: &methods::Method| {
            vec![
                pair("grpc_method", method.name),
                pair("grpc_service", method.service),
                pair("grpc_type", method.kind.label()),
            ]
        };
        let mut by_method = |name, help, read: fn(&MethodStats) -> &AtomicU64| {
            let metrics =
                shown().map(|(method, stats)| metric(counter, labels(method), read(stats).load(Relaxed) as f64));
            out.push(family(counter, name, help, metrics.collect()));
        };
        by_method("grpc_server_started_total", "Calls that were begun.", |stats| &stats.started);
        by_method("grpc_server_msg_received_total", "Messages received.", |stats| &stats.messages_in);
        by_method("grpc_server_msg_sent_total", "Messages sent.", |stats| &stats.messages_out);

        let handled = shown().flat_map(|(method, stats)| {
            CODES.iter().zip(&stats.handled).map(move |(code, count)| {
                let mut labels = labels(method);
                labels.insert(0, pair("grpc_code", code));
                metric(counter, labels, count.load(Relaxed) as f64)
            })
        });
        let help = "Calls that were answered, by the status they got.";
        out.push(family(counter, "grpc_server_handled_total", help, handled.collect()));

        let sum = |read: fn(&MethodStats) -> &AtomicU64| {
            let total: u64 = self.methods.iter().map(|stats| read(stats).load(Relaxed)).sum();
            vec![metric(counter, vec![], total as f64)]
        };
        let (name, help) = ("etcd_network_client_grpc_received_bytes_total", "Bytes of the messages of clients.");
        out.push(family(counter, name, help, sum(|stats| &stats.bytes_in)));
        let (name, help) = ("etcd_network_client_grpc_sent_bytes_total", "Bytes of the messages to clients.");
        out.push(family(counter, name, help, sum(|stats| &stats.bytes_out)));

        let clients: Vec<_> = self
            .clients
            .iter()
            .enumerate()
            .flat_map(|(version, counts)| ["unary", "stream"].into_iter().zip(counts).map(move |c| (version, c)))
            .filter(|(_, (_, count))| count.load(Relaxed) > 0)
            .map(|(version, (kind, count))| {
                let version = ClientVersion(version).to_string();
                let labels = vec![pair("client_api_version", &version), pair("type", kind)];
                metric(counter, labels, count.load(Relaxed) as f64)
            })
            .collect();
        if !clients.is_empty() {
            let help = "Calls by the version that the client says it speaks.";
            out.push(family(counter, "etcd_server_client_requests_total", help, clients));
        }
    }
}

impl fmt::Debug for Grpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grpc").field("extensive", &self.handling.is_some()).finish_non_exhaustive()
    }
}

impl Handling {
    fn of(&self, at: usize) -> &Histogram {
        self.resolved[at].get_or_init(|| {
            let method = &METHODS[at];
            self.all.with_label_values(&[method.kind.label(), method.service, method.name])
        })
    }
}

/// The version that a client says it speaks: the minor number of its 3, or that it says nothing of the kind. The client
/// may say anything, so anything else has one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClientVersion(usize);

impl ClientVersion {
    const COUNT: usize = 17;
    const UNKNOWN: ClientVersion = ClientVersion(16);

    fn of(headers: &HeaderMap) -> ClientVersion {
        let minor = match headers.get("client-api-version").map(HeaderValue::as_bytes) {
            Some([b'3', b'.', ones @ b'0'..=b'9']) => usize::from(ones - b'0'),
            Some([b'3', b'.', b'1', ones @ b'0'..=b'5']) => usize::from(ones - b'0') + 10,
            _ => return ClientVersion::UNKNOWN,
        };
        ClientVersion(minor)
    }
}

impl fmt::Display for ClientVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == ClientVersion::UNKNOWN { f.write_str("unknown") } else { write!(f, "3.{}", self.0) }
    }
}

/// Wraps the gRPC services.
#[derive(Debug, Clone)]
pub struct Layer {
    grpc: Arc<Grpc>,
    max_message_bytes: usize,
}

impl Layer {
    /// Counts into `grpc`, and answers a message of more than `max_message_bytes` as etcd does. The services' own limit
    /// must not be lower, or theirs is the answer.
    pub fn new(grpc: Arc<Grpc>, max_message_bytes: usize) -> Layer {
        Layer { grpc, max_message_bytes }
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { layer: self.clone(), inner }
    }
}

/// A gRPC service whose calls are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    layer: Layer,
    inner: S,
}

impl<S, B, R> tower::Service<Request<B>> for Counted<S>
where
    S: tower::Service<Request<Received<B>>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    type Response = Response<Sent<R>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let grpc = &self.layer.grpc;
        let at = methods::find(request.uri().path());
        let client = &grpc.clients[ClientVersion::of(request.headers()).0];
        client[usize::from(METHODS[at].kind != Kind::Unary)].fetch_add(1, Relaxed);
        grpc.methods[at].started.fetch_add(1, Relaxed);
        // Only what no table knows has to be remembered by name, for the answer.
        let path = (at == UNKNOWN).then(|| request.uri().path().into());
        let call =
            Call { grpc: Arc::clone(grpc), at, began: grpc.handling.as_ref().map(|_| Instant::now()), open: true };
        let max = self.layer.max_message_bytes;
        let request = request.map(|body| Received { body, grpc: Arc::clone(grpc), at, max, frames: Frames::default() });
        Answer { future: self.inner.call(request), call: Some(call), path }
    }
}

/// One call, until its status is known. If it is dropped before, the client has gone.
struct Call {
    grpc: Arc<Grpc>,
    at: usize,
    began: Option<Instant>,
    open: bool,
}

impl Call {
    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        self.grpc.methods[self.at].handled[code as usize].fetch_add(1, Relaxed);
        if let (Some(began), Some(handling)) = (self.began, &self.grpc.handling) {
            handling.of(self.at).observe(began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

pin_project! {
    /// The answer of a [`Counted`] service.
    pub struct Answer<F> {
        #[pin]
        future: F,
        call: Option<Call>,
        path: Option<Box<str>>,
    }
}

impl<F, R, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<Sent<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        let mut call = this.call.take().expect("a future is not polled after its end");
        let mut response = match answer {
            Ok(response) => response,
            Err(error) => {
                call.end(Code::Unknown);
                return Poll::Ready(Err(error));
            }
        };
        // An answer without messages has its status in the headers and nothing else.
        if let Some(code) = status(response.headers()) {
            call.end(code);
            if let Some(path) = this.path.take().filter(|_| code == Code::Unimplemented) {
                explain_unknown(&path, response.headers_mut());
            }
        }
        Poll::Ready(Ok(response.map(|body| Sent { body, call, frames: Frames::default() })))
    }
}

fn status(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Says which part of a path is unknown, in the words that clients know from etcd.
fn explain_unknown(path: &str, headers: &mut HeaderMap) {
    if headers.contains_key(Status::GRPC_MESSAGE) {
        return;
    }
    let text = match path.trim_start_matches('/').rsplit_once('/') {
        Some((service, name)) if METHODS[..UNKNOWN].iter().any(|method| method.service == service) => {
            format!("unknown method {name} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: \"{path}\""),
    };
    // The path of a URI has no character that a header refuses; `%` is the one that means something in this header, and
    // it escapes the same way there.
    if let Ok(text) = HeaderValue::try_from(text) {
        headers.insert(Status::GRPC_MESSAGE, text);
    }
}

/// Where in a stream of length-prefixed messages we are. Data comes cut at any place.
#[derive(Debug, Default, Clone, Copy)]
struct Frames {
    /// Bytes of the prefix that have come, 0 to 5.
    prefix: u8,
    /// The message's length, as far as it is known; then what is missing of it.
    bytes: u32,
}

/// What a piece of data held.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Messages that began: whose prefix is complete.
    messages: u64,
    /// Bytes of messages, prefixes not counted.
    bytes: u64,
    /// The length of the longest message that began.
    longest: u32,
}

impl Frames {
    const PREFIX: u8 = 5;

    #[inline]
    fn read(&mut self, mut data: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while !data.is_empty() {
            if self.prefix < Frames::PREFIX {
                // The first byte says whether the message is compressed.
                if self.prefix > 0 {
                    self.bytes = self.bytes << 8 | u32::from(data[0]);
                }
                self.prefix += 1;
                data = &data[1..];
                if self.prefix == Frames::PREFIX {
                    seen.messages += 1;
                    seen.longest = seen.longest.max(self.bytes);
                }
            } else {
                let some = data.len().min(self.bytes as usize);
                seen.bytes += some as u64;
                self.bytes -= some as u32;
                data = &data[some..];
            }
            if self.prefix == Frames::PREFIX && self.bytes == 0 {
                *self = Frames::default();
            }
        }
        seen
    }
}

pin_project! {
    /// The body of a request.
    pub struct Received<B> {
        #[pin]
        body: B,
        grpc: Arc<Grpc>,
        at: usize,
        max: usize,
        frames: Frames,
    }
}

impl<B> Body for Received<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.project();
        let Some(frame) = ready!(this.body.poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = frame.map_err(Into::into)?;
        if let Some(data) = frame.data_ref() {
            let seen = this.frames.read(data.chunk());
            let stats = &this.grpc.methods[*this.at];
            if seen.longest as usize > *this.max {
                // The services have such a limit as well, but with another code and text than clients know.
                let text = format!("grpc: received message larger than max ({} vs. {})", seen.longest, this.max);
                return Poll::Ready(Some(Err(Status::resource_exhausted(text).into())));
            }
            stats.messages_in.fetch_add(seen.messages, Relaxed);
            stats.bytes_in.fetch_add(seen.bytes, Relaxed);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The body of a response.
    pub struct Sent<B> {
        #[pin]
        body: B,
        call: Call,
        frames: Frames,
    }
}

impl<B: Body<Data = Bytes>> Body for Sent<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let seen = this.frames.read(data.chunk());
                    let stats = &this.call.grpc.methods[this.call.at];
                    stats.messages_out.fetch_add(seen.messages, Relaxed);
                    stats.bytes_out.fetch_add(seen.bytes, Relaxed);
                } else if let Some(code) = frame.trailers_ref().and_then(status) {
                    this.call.end(code);
                }
            }
            // Neither is an end that gRPC knows; the client will make `Unknown` of it.
            Some(Err(_)) | None => this.call.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
pub(super) mod tests;
