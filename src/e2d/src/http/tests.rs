use std::sync::Mutex;

use super::*;
use crate::metrics::Observation;
use e2d_core::ids::MemberId;

/// A node in the state that a test gives it.
#[derive(Default)]
struct Fake {
    alarms: Vec<AlarmKind>,
    no_leader: bool,
    learner: bool,
    hangs: bool,
    cluster: Option<&'static str>,
    serializable: Option<&'static str>,
    linearizable: Option<&'static str>,
    reads: Mutex<Vec<&'static str>>,
}

impl Observed for Fake {
    fn observe(&self) -> Observation {
        Observation { has_leader: !self.no_leader, ..Observation::default() }
    }
}

impl Node for Fake {
    fn versions(&self) -> Versions {
        let version = self.cluster.map(str::to_owned);
        Versions { server: "3.6.14".into(), cluster: version.clone(), storage: version }
    }

    fn alarms(&self) -> Vec<Alarm> {
        self.alarms.iter().map(|kind| Alarm { kind: *kind, member: MemberId(5) }).collect()
    }

    fn has_leader(&self) -> bool {
        !self.no_leader
    }

    fn is_learner(&self) -> bool {
        self.learner
    }

    async fn linearizable_read(&self) -> Result<(), String> {
        self.reads.lock().unwrap().push("linearizable");
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.linearizable.map_or(Ok(()), |error| Err(error.to_owned()))
    }

    async fn serializable_read(&self) -> Result<(), String> {
        self.reads.lock().unwrap().push("serializable");
        self.serializable.map_or(Ok(()), |error| Err(error.to_owned()))
    }
}

fn settings() -> Settings {
    Settings { read_timeout: Duration::from_millis(1), origins: BTreeSet::new(), hosts: BTreeSet::new() }
}

fn endpoints(node: Fake) -> Endpoints<Fake> {
    let metrics = Metrics::new(&metrics::Settings { version: "", revision: "", extensive: false });
    Endpoints::new(Arc::new(node), Arc::new(metrics), settings())
}

fn ask(endpoints: &Endpoints<Fake>, request: Request<()>) -> (u16, HeaderMap, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (head, body) = runtime.block_on(endpoints.answer(request, false)).into_parts();
    let body = runtime.block_on(http_body_util::BodyExt::collect(body)).unwrap().to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn get(endpoints: &Endpoints<Fake>, path: &str) -> (u16, String) {
    let (status, _, body) = ask(endpoints, Request::get(path).body(()).unwrap());
    (status, body)
}

fn fake(change: impl FnOnce(&mut Fake)) -> Endpoints<Fake> {
    let mut node = Fake { cluster: Some("3.6.0"), ..Fake::default() };
    change(&mut node);
    endpoints(node)
}

const TIMED_OUT: Option<&str> = Some("etcdserver: request timed out");
use AlarmKind::{Corrupt, NoSpace};

/// What etcd 3.6.14 answers.
#[test]
fn health_is_said_in_etcds_words() {
    let yes = (200, "{\"health\":\"true\",\"reason\":\"\"}");
    #[rustfmt::skip]
    let cases: Vec<(&str, Endpoints<Fake>, (u16, &str))> = vec![
        ("/health", fake(|_| ()), yes),
        ("/health?serializable=bogus", fake(|_| ()), yes),
        ("/health", fake(|n| n.alarms = vec![NoSpace]), (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n")),
        ("/health?exclude=NOSPACE", fake(|n| n.alarms = vec![NoSpace]), yes),
        ("/health?exclude=CORRUPT", fake(|n| n.alarms = vec![NoSpace]), (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n")),
        ("/health?exclude=NOSPACE", fake(|n| n.alarms = vec![NoSpace, Corrupt]), (503, "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n")),
        ("/health?exclude=NOSPACE&exclude=CORRUPT", fake(|n| n.alarms = vec![NoSpace, Corrupt]), yes),
        ("/health", fake(|n| n.no_leader = true), (503, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n")),
        ("/health?serializable=true", fake(|n| n.no_leader = true), yes),
        ("/health?serializable=true", fake(|n| n.hangs = true), yes),
        ("/health", fake(|n| n.linearizable = TIMED_OUT), (503, "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n")),
        ("/health", fake(|n| n.hangs = true), (503, "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n")),
        ("/health?serializable=true", fake(|n| n.serializable = Some("a \"b\"\n")), (503, "{\"health\":\"false\",\"reason\":\"RANGE ERROR:a \\\"b\\\"\\n\"}\n")),
    ];
    for (path, node, (status, body)) in cases {
        assert_eq!(get(&node, path), (status, body.to_owned()), "{path}");
        let failures = u64::from(status != 200);
        let health = &node.metrics.health;
        assert_eq!((health.success.get(), health.failures.get()), (1 - failures, failures), "{path}");
    }
}

#[test]
fn a_check_says_which_part_fails() {
    #[rustfmt::skip]
    let cases: Vec<(&str, Endpoints<Fake>, (u16, &str))> = vec![
        ("/livez", fake(|_| ()), (200, "ok\n")),
        ("/livez?verbose", fake(|_| ()), (200, "[+]serializable_read ok\nok\n")),
        ("/livez/serializable_read", fake(|_| ()), (200, "ok\n")),
        ("/livez/serializable_read?verbose", fake(|_| ()), (200, "[+]serializable_read ok\nok\n")),
        // Being alive needs no leader and no room.
        ("/livez", fake(|n| (n.no_leader, n.hangs, n.alarms) = (true, true, vec![NoSpace, Corrupt])), (200, "ok\n")),
        ("/livez", fake(|n| n.serializable = Some("gone")), (503, "[-]serializable_read failed: gone\n\n")),
        ("/livez?exclude=serializable_read", fake(|n| n.serializable = Some("gone")), (200, "ok\n")),
        ("/readyz", fake(|_| ()), (200, "ok\n")),
        ("/readyz?verbose=false", fake(|_| ()), (200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n")),
        ("/readyz?verbose&exclude=linearizable_read&exclude=nope", fake(|_| ()), (200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]non_learner ok\nok\n")),
        ("/readyz", fake(|n| n.alarms = vec![NoSpace]), (200, "ok\n")),
        ("/readyz", fake(|n| n.alarms = vec![Corrupt]), (503, "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\n\n")),
        ("/readyz", fake(|n| n.hangs = true), (503, "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n")),
        ("/readyz/linearizable_read", fake(|n| n.linearizable = TIMED_OUT), (503, "[-]linearizable_read failed: etcdserver: request timed out\n\n")),
        ("/readyz/data_corruption?verbose", fake(|n| n.linearizable = TIMED_OUT), (200, "[+]data_corruption ok\nok\n")),
        // A single check is not left out.
        ("/readyz/linearizable_read?exclude=linearizable_read", fake(|n| n.linearizable = TIMED_OUT), (503, "[-]linearizable_read failed: etcdserver: request timed out\n\n")),
        ("/readyz", fake(|n| n.learner = true), (503, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[-]non_learner failed: not supported for learner\n\n")),
        ("/readyz?exclude=non%5Flearner", fake(|n| n.learner = true), (200, "ok\n")),
    ];
    for (path, node, (status, body)) in cases {
        assert_eq!(get(&node, path), (status, body.to_owned()), "{path}");
    }
}

#[test]
fn a_probe_reads_only_what_it_asks_for() {
    for (path, reads) in [
        ("/livez", &["serializable"][..]),
        ("/readyz", &["serializable", "linearizable"]),
        ("/readyz?exclude=linearizable_read", &["serializable"]),
        ("/readyz/non_learner", &[]),
        ("/health", &["linearizable"]),
        ("/health?serializable=true", &["serializable"]),
        ("/version", &[]),
        ("/metrics", &[]),
    ] {
        let node = fake(|_| ());
        assert_eq!(get(&node, path).0, 200, "{path}");
        assert_eq!(*node.node.reads.lock().unwrap(), reads, "{path}");
    }
}

#[test]
fn checks_are_counted_by_endpoint_and_name() {
    let node = fake(|n| n.linearizable = TIMED_OUT);
    get(&node, "/readyz");
    get(&node, "/livez");
    get(&node, "/readyz/nope");
    let (_, text) = get(&node, "/metrics");
    for series in [
        "etcd_server_healthcheck{name=\"linearizable_read\",type=\"readyz\"} 0",
        "etcd_server_healthcheck{name=\"serializable_read\",type=\"livez\"} 1",
        "etcd_server_healthchecks_total{name=\"linearizable_read\",status=\"error\",type=\"readyz\"} 1",
        "etcd_server_healthchecks_total{name=\"non_learner\",status=\"success\",type=\"readyz\"} 1",
        "etcd_server_has_leader 1",
    ] {
        assert!(text.lines().any(|line| line == series), "{series}");
    }
    assert!(!text.contains("nope"));
}

#[test]
fn versions_are_said_as_far_as_they_are_known() {
    let known = "{\"etcdserver\":\"3.6.14\",\"etcdcluster\":\"3.6.0\",\"storage\":\"3.6.0\"}";
    assert_eq!(get(&fake(|_| ()), "/version"), (200, known.to_owned()));
    let unknown = "{\"etcdserver\":\"3.6.14\",\"etcdcluster\":\"not_decided\",\"storage\":\"unknown\"}";
    assert_eq!(get(&fake(|n| n.cluster = None), "/version"), (200, unknown.to_owned()));
}

#[test]
fn statuses_and_headers_are_etcds() {
    let node = fake(|_| ());
    let text = Some("text/plain; charset=utf-8");
    let (json, scrape) = (Some("application/json"), Some(metrics::CONTENT_TYPE));
    // Method, path, status, type, whether the type must not be guessed, body unless it is said elsewhere.
    let (post, head) = ("POST", "HEAD");
    let (none, not_allowed) = (Some("404 page not found\n"), Some("Method Not Allowed\n"));
    #[rustfmt::skip]
    let cases = [
        ("GET", "/health", 200, text, false, None),
        (post, "/health", 405, text, true, not_allowed),
        (head, "/health", 405, text, true, None),
        ("PUT", "/version", 405, text, true, not_allowed),
        (post, "/livez", 405, text, true, not_allowed),
        (post, "/readyz/non_learner", 405, text, true, not_allowed),
        (post, "/readyz/nope", 404, text, true, none),
        ("GET", "/livez", 200, text, true, None),
        ("GET", "/livez/nope", 404, text, true, none),
        ("GET", "/livez/", 404, text, true, none),
        ("GET", "/livez/linearizable_read", 404, text, true, none),
        ("GET", "/livez/serializable_read/x", 404, text, true, none),
        ("GET", "/livezz", 404, text, true, none),
        ("GET", "/readyz/", 404, text, true, none),
        ("GET", "/health/", 404, text, true, none),
        ("GET", "/health/x", 404, text, true, none),
        ("GET", "/version", 200, json, false, None),
        ("GET", "/version/", 404, text, true, none),
        ("GET", "/metrics", 200, scrape, false, None),
        (post, "/metrics", 200, scrape, false, None),
        ("GET", "/metrics/", 404, text, true, none),
        ("GET", "/", 404, text, true, none),
        (post, "/nope", 404, text, true, none),
        ("GET", "/v2/keys", 404, text, true, none),
        ("OPTIONS", "/health", 200, None, false, Some("")),
        ("OPTIONS", "/nope", 200, None, false, Some("")),
        ("OPTIONS", "*", 200, None, false, Some("")),
        ("GET", "*", 404, text, true, none),
    ];
    for (method, path, status, content_type, no_sniff, body) in cases {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let (got, headers, text) = ask(&node, request);
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!((got, header("content-type")), (status, content_type), "{method} {path}");
        assert_eq!(header("x-content-type-options"), no_sniff.then_some("nosniff"), "{method} {path}");
        assert_eq!(header("allow"), (status == 405).then_some("GET"), "{method} {path}");
        assert_eq!(header("access-control-allow-origin"), Some("*"), "{method} {path}");
        assert_eq!(header("access-control-allow-methods"), Some("POST, GET, OPTIONS, PUT, DELETE"));
        assert_eq!(header("access-control-allow-headers"), Some("accept, content-type, authorization"));
        if let Some(body) = body {
            assert_eq!(text, body, "{method} {path}");
        }
    }
}

#[test]
fn only_listed_origins_and_hosts_may_ask() {
    let mut node = fake(|_| ());
    node.settings.origins = BTreeSet::from(["http://a.example".to_owned()]);
    node.settings.hosts = BTreeSet::from(["good.example".to_owned(), "::1".to_owned()]);
    for (host, origin, status, allowed) in [
        ("good.example", Some("http://a.example"), 200, Some("http://a.example")),
        ("good.example:2379", Some("http://b.example"), 200, None),
        ("good.example", None, 200, None),
        ("[::1]:2379", None, 200, None),
        ("evil.example", Some("http://a.example"), 421, None),
        ("", None, 421, None),
    ] {
        let mut request = Request::get("/version").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let (got, headers, _) = ask(&node, request.body(()).unwrap());
        let origin = headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!((got, origin), (status, allowed), "{host}");
    }
    // HTTP/2 has the host in the URI.
    let (status, ..) = ask(&node, Request::get("http://evil.example/version").body(()).unwrap());
    assert_eq!(status, 421);
    // Over TLS the certificate has settled it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let request = Request::get("http://evil.example/version").body(()).unwrap();
    assert_eq!(runtime.block_on(node.answer(request, true)).status(), 200);
}

#[test]
fn queries_are_decoded() {
    for (query, value) in [
        ("k=a", Some("a")),
        ("x&k=a%20b+c", Some("a b c")),
        ("%6B=%zz%4", Some("%zz%4")),
        ("k", Some("")),
        ("kk=1", None),
        ("", None),
        ("k=%e4", Some("\u{fffd}")),
    ] {
        assert_eq!(first(query, "k").as_deref(), value, "{query}");
    }
    let several = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
    assert_eq!(values("k=a&k=b&k=&k&k=a", "k"), several);
}
