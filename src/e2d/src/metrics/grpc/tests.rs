use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::task::Waker;

use tower::{Layer as _, Service};

use super::super::{Metrics, Settings};
use super::*;

/// A body that gives these frames, one at a time.
struct Canned(VecDeque<Frame<Bytes>>);

impl Body for Canned {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn data(bytes: &[u8]) -> Frame<Bytes> {
    Frame::data(Bytes::copy_from_slice(bytes))
}

fn trailers(code: &str) -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(Status::GRPC_STATUS.clone(), code.parse().unwrap())]))
}

fn body<const N: usize>(frames: [Frame<Bytes>; N]) -> Canned {
    Canned(VecDeque::from(frames))
}

/// One message of these bytes with its prefix.
fn message(payload: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend((payload.len() as u32).to_be_bytes());
    framed.extend(payload);
    framed
}

fn run<F: Future>(future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut cx) {
        Poll::Ready(out) => out,
        Poll::Pending => panic!("waits"),
    }
}

/// Reads a body to its end: the number of frames, or its error.
fn drain<B: Body + Unpin>(mut body: B) -> Result<usize, B::Error> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut frames = 0;
    loop {
        match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(_))) => frames += 1,
            Poll::Ready(Some(Err(error))) => return Err(error),
            Poll::Ready(None) => return Ok(frames),
            Poll::Pending => panic!("waits"),
        }
    }
}

/// A service that reads the request to its end and gives this answer.
#[derive(Clone)]
struct Answering<F>(F);

impl<F: Fn() -> Response<Canned>> Service<Request<Received<Canned>>> for Answering<F> {
    type Response = Response<Canned>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Canned>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Received<Canned>>) -> Self::Future {
        drain(request.into_body()).unwrap();
        std::future::ready(Ok((self.0)()))
    }
}

fn metrics() -> Metrics {
    Metrics::new(&Settings { version: "", revision: "", extensive: true })
}

fn request(path: &str, body: Canned) -> Request<Canned> {
    Request::post(path).header("client-api-version", "3.5").body(body).unwrap()
}

fn ok() -> Response<Canned> {
    Response::new(body([data(&message(b"answer")), trailers("0")]))
}

/// A put that succeeds.
pub(in crate::metrics) fn one_call(metrics: &Metrics) {
    let mut service = Layer::new(metrics.grpc.clone(), 1 << 20).layer(Answering(ok));
    let answer = run(service.call(request("/etcdserverpb.KV/Put", body([data(&message(b"question"))])))).unwrap();
    drain(answer.into_body()).unwrap();
}

fn has(metrics: &Metrics, series: &[&str]) {
    let text = metrics.encode(None);
    for series in series {
        assert!(text.lines().any(|line| line == *series), "{series}\n{text}");
    }
}

const PUT: &str = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";

#[test]
fn a_call_is_counted_with_its_messages_bytes_and_outcome() {
    let metrics = metrics();
    one_call(&metrics);
    has(
        &metrics,
        &[
            &format!("grpc_server_started_total{{{PUT}}} 1"),
            &format!("grpc_server_msg_received_total{{{PUT}}} 1"),
            &format!("grpc_server_msg_sent_total{{{PUT}}} 1"),
            &format!("grpc_server_handled_total{{grpc_code=\"OK\",{PUT}}} 1"),
            &format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{PUT}}} 0"),
            &format!("grpc_server_handling_seconds_count{{{PUT}}} 1"),
            // The prefixes of messages are not counted.
            "etcd_network_client_grpc_received_bytes_total 8",
            "etcd_network_client_grpc_sent_bytes_total 6",
            "etcd_server_client_requests_total{client_api_version=\"3.5\",type=\"unary\"} 1",
        ],
    );
}

#[test]
fn an_outcome_is_counted_once_wherever_it_stands() {
    let in_headers = || {
        let mut response = Response::new(body([]));
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from_static("8"));
        response
    };
    let cases: [(&str, &dyn Fn() -> Response<Canned>); 4] = [
        ("ResourceExhausted", &in_headers),
        ("DataLoss", &|| Response::new(body([data(&message(b"x")), trailers("15")]))),
        ("Unknown", &|| Response::new(body([data(&message(b"x"))]))),
        ("Unknown", &|| Response::new(body([trailers("nonsense")]))),
    ];
    for (code, answer) in cases {
        let metrics = metrics();
        let mut service = Layer::new(metrics.grpc.clone(), 1 << 20).layer(Answering(answer));
        let answer = run(service.call(request("/etcdserverpb.KV/Put", body([])))).unwrap();
        drain(answer.into_body()).unwrap();
        has(&metrics, &[&format!("grpc_server_handled_total{{grpc_code=\"{code}\",{PUT}}} 1")]);
        let all: u64 = metrics.grpc.methods.iter().flat_map(|stats| &stats.handled).map(|n| n.load(Relaxed)).sum();
        assert_eq!(all, 1, "{code}");
    }
}

#[test]
fn a_client_that_leaves_has_cancelled() {
    let metrics = metrics();
    let mut service = Layer::new(metrics.grpc.clone(), 1 << 20).layer(Answering(ok));
    // Before the answer, and in the midst of it.
    drop(service.call(request("/etcdserverpb.KV/Put", body([]))));
    let answer = run(service.call(request("/etcdserverpb.KV/Put", body([])))).unwrap();
    let mut answer = answer.into_body();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut answer).poll_frame(&mut cx).is_ready());
    drop(answer);
    has(&metrics, &[&format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{PUT}}} 2")]);
}

#[test]
fn paths_that_nobody_has_share_one_series_and_are_explained() {
    let metrics = metrics();
    let unimplemented = || {
        let mut response = Response::new(body([]));
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from_static("12"));
        response
    };
    let mut service = Layer::new(metrics.grpc.clone(), 1 << 20).layer(Answering(unimplemented));
    for (path, text) in [
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/a.B/C", "unknown service a.B"),
        ("/a%20b/C", "unknown service a%20b"),
        ("/x/y/Z", "unknown service x/y"),
    ] {
        let answer = run(service.call(request(path, body([])))).unwrap();
        assert_eq!(answer.headers()[Status::GRPC_MESSAGE], text);
    }
    let unknown = "grpc_method=\"unknown\",grpc_service=\"unknown\",grpc_type=\"unary\"";
    has(&metrics, &[&format!("grpc_server_handled_total{{grpc_code=\"Unimplemented\",{unknown}}} 4")]);
    assert!(!metrics.encode(None).contains("Nope"));
}

#[test]
fn a_message_that_is_too_large_is_refused_by_its_prefix() {
    let grpc = metrics().grpc;
    let received =
        |frames, max| Received { body: Canned(frames), grpc: grpc.clone(), at: 0, max, frames: Frames::default() };
    let prefix = || VecDeque::from([data(&[0, 0, 0x20]), data(&[0, 1])]);
    let error = drain(received(prefix(), 2_097_152)).unwrap_err();
    let status = error.downcast_ref::<Status>().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "grpc: received message larger than max (2097153 vs. 2097152)");
    assert_eq!(drain(received(prefix(), 2_097_153)).unwrap(), 2);
    assert!(drain(received(VecDeque::from([data(&[1, 0xff, 0xff, 0xff, 0xff])]), 1 << 21)).is_err());
}

#[test]
fn messages_are_found_however_the_bytes_are_cut() {
    let payloads: [&[u8]; 5] = [b"abc", b"", &[7; 300], b"", b"z"];
    let stream: Vec<u8> = payloads.iter().flat_map(|payload| message(payload)).collect();
    for cut in 1..=stream.len() {
        let (mut frames, mut messages, mut bytes, mut longest) = (Frames::default(), 0, 0, 0);
        for piece in stream.chunks(cut) {
            let seen = frames.read(piece);
            (messages, bytes, longest) = (messages + seen.messages, bytes + seen.bytes, longest.max(seen.longest));
        }
        assert_eq!((messages, bytes, longest), (5, 304, 300), "cut every {cut}");
    }
}

#[test]
fn clients_are_told_apart_by_few_versions() {
    for (header, label) in [
        (Some("3.5"), "3.5"),
        (Some("3.0"), "3.0"),
        (Some("3.15"), "3.15"),
        (Some("3.16"), "unknown"),
        (Some("3"), "unknown"),
        (Some("4.1"), "unknown"),
        (Some("3.05"), "unknown"),
        (None, "unknown"),
    ] {
        let headers = header.map(|text| ("client-api-version".parse().unwrap(), text.parse().unwrap()));
        let headers: HeaderMap = HeaderMap::from_iter(headers);
        assert_eq!(ClientVersion::of(&headers).to_string(), label, "{header:?}");
    }
}

/// `cargo test --release -p e2d --lib -- --ignored --nocapture what_a_call_costs`
#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout, reason = "the measure is the result")]
fn what_a_call_costs() {
    const CALLS: u32 = 1_000_000;
    let put = Bytes::from(message(&[7; 300]));
    let answer = Bytes::from(message(&[7; 30]));
    let end = HeaderMap::from_iter([(Status::GRPC_STATUS.clone(), HeaderValue::from_static("0"))]);
    let ok = || Response::new(body([Frame::data(answer.clone()), Frame::trailers(end.clone())]));
    // Both twice, since others use the machine too.
    for extensive in [false, true, false, true] {
        let metrics = Metrics::new(&Settings { version: "", revision: "", extensive });
        let mut counted = Layer::new(metrics.grpc.clone(), 1 << 20).layer(Answering(&ok));
        let question = || request("/etcdserverpb.KV/Put", body([Frame::data(put.clone())]));
        let began = Instant::now();
        for _ in 0..CALLS {
            drain(run(counted.call(question())).unwrap().into_body()).unwrap();
        }
        let with = began.elapsed();
        let began = Instant::now();
        for _ in 0..CALLS {
            drain(question().into_body()).unwrap();
            drain(ok().into_body()).unwrap();
        }
        let without = began.elapsed();
        let cost = with.saturating_sub(without).as_nanos() / u128::from(CALLS);
        println!("extensive={extensive}: {cost} ns a call ({with:?} and {without:?} for {CALLS})");
    }
}
