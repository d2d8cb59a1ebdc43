//! The HTTP endpoints beside gRPC on the client port: health checks, version, metrics.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use e2d_api::etcdserverpb::AlarmType;

use crate::client::{AlarmAction, PATIENCE};
use crate::server::{Server, free_port};

/// Status and body of an HTTP/1.1 answer.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

async fn get(server: &Server, path: &str) -> Answer {
    request(server, "GET", path).await
}

async fn request(server: &Server, method: &str, path: &str) -> Answer {
    request_to(&server.address(), method, path).await
}

async fn request_to(address: &str, method: &str, path: &str) -> Answer {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("an answer in time")
        .expect("an answer");
    parse(&answer)
        .unwrap_or_else(|| panic!("{method} {path}: {:?}", String::from_utf8_lossy(&answer)))
}

/// `None` if these bytes are no HTTP/1.1 answer.
fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut rest = &answer[end + 4..];
    let mut body = Vec::new();
    if head
        .to_ascii_lowercase()
        .contains("\r\ntransfer-encoding: chunked")
    {
        loop {
            let line = rest.windows(2).position(|window| window == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
            rest = rest.get(line + 4 + size..)?;
        }
    } else {
        body.extend_from_slice(rest);
    }
    Some(Answer {
        status,
        body: String::from_utf8(body).ok()?,
    })
}

fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
}

/// The lines of a verbose check. Their order means nothing.
fn lines(answer: &Answer) -> Vec<&str> {
    let mut lines: Vec<_> = answer.body.lines().collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn version_names_server_cluster_and_storage() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let answer = get(&server, "/version").await;
    let version = server.client().await.status().await.version;
    assert_eq!(answer.status, 200);
    assert_eq!(
        json(&answer),
        json!({"etcdserver": version, "etcdcluster": "3.6.0", "storage": "3.6.0"})
    );
    assert_eq!(request(&server, "POST", "/version").await.status, 405);
}

#[tokio::test]
async fn health_is_json() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    for path in ["/health", "/health?serializable=true"] {
        let answer = get(&server, path).await;
        assert_eq!(
            (answer.status, json(&answer)),
            (200, json!({"health": "true", "reason": ""})),
            "{path}"
        );
    }
    assert_eq!(request(&server, "POST", "/health").await.status, 405);
}

#[tokio::test]
async fn health_names_the_alarm() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client
        .alarm(AlarmAction::Activate, AlarmType::Nospace, 1)
        .await
        .expect("raised");
    let answer = get(&server, "/health").await;
    assert_eq!(
        (answer.status, json(&answer)),
        (503, json!({"health": "false", "reason": "ALARM NOSPACE"}))
    );
    assert_eq!(get(&server, "/health?exclude=NOSPACE").await.status, 200);
    assert_eq!(get(&server, "/health?exclude=CORRUPT").await.status, 503);
}

#[tokio::test]
async fn livez_and_readyz_say_ok() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    for path in [
        "/livez",
        "/readyz",
        "/livez/serializable_read",
        "/readyz/linearizable_read",
        "/readyz/data_corruption",
    ] {
        let answer = get(&server, path).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "ok\n"),
            "{path}"
        );
    }
    assert_eq!(get(&server, "/livez/no_such_check").await.status, 404);
    assert_eq!(
        get(&server, "/readyz?exclude=no_such_check").await.status,
        200
    );
}

#[tokio::test]
async fn livez_and_readyz_list_their_checks() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let live = get(&server, "/livez?verbose").await;
    assert_eq!(
        (live.status, lines(&live)),
        (200, vec!["[+]serializable_read ok", "ok"])
    );
    let ready = get(&server, "/readyz?verbose").await;
    let checks = [
        "[+]data_corruption ok",
        "[+]linearizable_read ok",
        "[+]non_learner ok",
        "[+]serializable_read ok",
        "ok",
    ];
    assert_eq!((ready.status, lines(&ready)), (200, checks.to_vec()));
    let some = get(
        &server,
        "/readyz?verbose&exclude=data_corruption&exclude=non_learner",
    )
    .await;
    assert_eq!(
        (some.status, lines(&some)),
        (
            200,
            vec!["[+]linearizable_read ok", "[+]serializable_read ok", "ok"]
        )
    );
}

#[tokio::test]
async fn readyz_fails_on_corruption() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client
        .alarm(AlarmAction::Activate, AlarmType::Corrupt, 1)
        .await
        .expect("raised");
    let ready = get(&server, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(
        lines(&ready).contains(&"[-]data_corruption failed: alarm activated: CORRUPT"),
        "{}",
        ready.body
    );
    assert_eq!(
        get(&server, "/livez").await.status,
        200,
        "a restart would not help"
    );
    assert_eq!(
        get(&server, "/readyz?exclude=data_corruption").await.status,
        200
    );
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_read() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    server.client().await.put_ok("a", "").await;
    let answer = get(&server, "/metrics").await;
    assert_eq!(answer.status, 200);
    let series = |name: &str| {
        let mut found = answer
            .body
            .lines()
            .filter_map(|line| line.strip_prefix(name));
        found
            .find(|rest| rest.starts_with(' ') || rest.starts_with('{'))
            .map(str::to_owned)
    };
    for name in [
        "etcd_server_has_leader",
        "etcd_server_is_leader",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_proposals_failed_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_pending",
        "etcd_server_quota_backend_bytes",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "etcd_disk_backend_commit_duration_seconds_bucket",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_network_client_grpc_received_bytes_total",
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "process_resident_memory_bytes",
        "etcd_cluster_version",
        "etcd_server_version",
        "etcd_server_id",
    ] {
        assert!(series(name).is_some(), "{name} is missing");
    }
    assert_eq!(series("etcd_server_has_leader").as_deref(), Some(" 1"));
    let put =
        r#"{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
    let handled = format!("grpc_server_handled_total{put}");
    assert_eq!(series(&handled).as_deref(), Some(" 1"), "{handled}");
    for bound in ["0.001", "0.002", "8.192"] {
        let bucket = format!("etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"{bound}\"}}");
        assert!(series(&bucket).is_some(), "{bucket} is missing");
    }
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    for path in ["/", "/nothing", "/v2/keys", "/debug/pprof/"] {
        assert_eq!(get(&server, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn metrics_may_have_a_port_of_their_own() {
    let port = free_port();
    let url = format!("--listen-metrics-urls=http://127.0.0.1:{port}");
    let Some(_server) = Server::target(&[&url]).await else {
        return;
    };
    for path in ["/metrics", "/health", "/livez", "/readyz"] {
        let answer = request_to(&format!("127.0.0.1:{port}"), "GET", path).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}
