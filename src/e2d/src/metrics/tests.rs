use std::collections::{BTreeMap, BTreeSet};

use e2d_core::ids::MemberId;

use super::*;

struct Fixed(Observation);

impl Observed for Fixed {
    fn observe(&self) -> Observation {
        self.0.clone()
    }
}

fn metrics() -> Metrics {
    Metrics::new(&Settings { version: "1.2.3", revision: "abc", extensive: true })
}

fn observation() -> Observation {
    Observation {
        member_id: 0x8211_f1d0_f64f_3269,
        server_version: "3.6.14".into(),
        cluster_version: "3.6".into(),
        features: vec![Feature { name: "CompactHashCheck".into(), stage: Stage::Alpha, enabled: true }],
        has_leader: true,
        leader_changes: 7,
        current_revision: 42,
        compact_revision: -1,
        db_bytes: 1 << 40,
        log_dropped: 3,
        ..Observation::default()
    }
}

/// What a family looks like: its type, the names of its labels, its buckets.
#[derive(Debug, Default, PartialEq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
    buckets: Vec<String>,
}

/// Reads the text format as strictly as a scraper does: a family is announced once and its series follow at once.
fn shapes(text: &str) -> BTreeMap<String, Shape> {
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    let (mut family, mut series) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = name.to_owned();
            let shape = Shape { kind: kind.to_owned(), ..Shape::default() };
            assert!(shapes.insert(family.clone(), shape).is_none(), "{family} comes twice");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.split_once(' ').is_some_and(|(_, help)| help.ends_with('.')), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap_or_else(|_| panic!("not a number: {line}"));
        assert!(series.insert(name.to_owned()), "{name} comes twice");
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        let own = name == family || ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{family}{end}"));
        assert!(own, "{name} is not of {family}");
        let shape = shapes.get_mut(&family).unwrap();
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once("=\"").unwrap();
            let value = value.trim_end_matches('"');
            if key != "le" {
                shape.labels.insert(key.to_owned());
            } else if value != "+Inf" && !shape.buckets.iter().any(|bucket| bucket == value) {
                shape.buckets.push(value.to_owned());
            }
        }
    }
    shapes
}

/// All that etcd shows, without what has no meaning here.
#[test]
fn etcds_figures_have_etcds_types_labels_and_buckets() {
    let metrics = metrics();
    // What exists from the first event on.
    metrics.server.apply_seconds(ApplyOp::Put, true).observe(0.01);
    metrics.health.record("livez", "serializable_read", true);
    metrics.network.peer(MemberId(1), MemberId(2));
    metrics.network.know(MemberId(1), MemberId(2));
    grpc::tests::one_call(&metrics);
    let ours = shapes(&metrics.encode(Some(&Fixed(observation()))));

    let mut compared = 0;
    for line in include_str!("testdata/etcd-3.6.txt").lines() {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (series, buckets) = rest.split_once("} ").unwrap_or((rest.trim_end_matches('}'), ""));
        let (name, labels) = series.split_once('{').unwrap();
        let theirs = Shape {
            kind: kind.to_owned(),
            labels: labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect(),
            buckets: buckets.split(' ').filter(|bucket| !bucket.is_empty()).map(str::to_owned).collect(),
        };
        let mine = ours.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        // Sums of powers of two times 0.1 differ in the last digit.
        let numbers = |shape: &Shape| -> Vec<f64> { shape.buckets.iter().map(|b| b.parse().unwrap()).collect() };
        let (mine_at, theirs_at) = (numbers(mine), numbers(&theirs));
        assert_eq!(
            (&mine.kind, &mine.labels, mine_at.len()),
            (&theirs.kind, &theirs.labels, theirs_at.len()),
            "{name}"
        );
        for (a, b) in mine_at.iter().zip(&theirs_at) {
            assert!((a - b).abs() <= b * 1e-12, "{name}: {a} {b}");
        }
        compared += 1;
    }
    assert!(compared > 70, "{compared}");
}

#[test]
fn the_alerts_have_their_series_from_the_start() {
    let text = metrics().encode(Some(&Fixed(observation())));
    for series in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 0",
        "etcd_server_leader_changes_seen_total 7",
        "etcd_server_proposals_failed_total 0",
        "etcd_mvcc_db_total_size_in_bytes 1099511627776",
        "etcd_debugging_mvcc_current_revision 42",
        "etcd_debugging_mvcc_compact_revision -1",
        "etcd_server_id{server_id=\"8211f1d0f64f3269\"} 1",
        "etcd_server_version{server_version=\"3.6.14\"} 1",
        "etcd_cluster_version{cluster_version=\"3.6\"} 1",
        "etcd_server_feature_enabled{name=\"CompactHashCheck\",stage=\"ALPHA\"} 1",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 0",
        "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"8.192\"} 0",
        "etcd_disk_backend_commit_duration_seconds_bucket{le=\"+Inf\"} 0",
        "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 0",
        "grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0",
        "grpc_server_handling_seconds_bucket{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\",le=\"0.005\"} 0",
        "e2d_build_info{revision=\"abc\",version=\"1.2.3\"} 1",
        "e2d_log_dropped_total 3",
        "# TYPE e2d_log_dropped_total counter",
        "# TYPE etcd_server_proposals_committed_total gauge",
    ] {
        assert!(text.lines().any(|line| line == series), "{series}");
    }
    // etcd has 44 methods and 17 codes from the start.
    assert_eq!(text.lines().filter(|line| line.starts_with("grpc_server_handled_total{")).count(), 44 * 17);
    assert!(!text.contains("v3lockpb") && !text.contains("\"unknown\""));
    assert!(!text.contains("\ngo_"));
}

#[test]
fn without_a_node_to_ask_the_rest_is_there_and_the_state_is_not() {
    let shapes = shapes(&metrics().encode(None));
    assert!(shapes.contains_key("etcd_disk_wal_fsync_duration_seconds"));
    assert!(shapes.contains_key("process_cpu_seconds_total"));
    assert!(!shapes.contains_key("etcd_server_has_leader"));
}

#[test]
fn how_long_calls_take_is_kept_on_request_only() {
    let basic = Metrics::new(&Settings { version: "", revision: "", extensive: false });
    assert!(!basic.encode(None).contains("grpc_server_handling_seconds"));
    assert!(metrics().encode(None).contains("# TYPE grpc_server_handling_seconds histogram"));
}

#[test]
fn a_handle_moves_the_figure_that_it_stands_for() {
    let metrics = metrics();
    metrics.wal.write_bytes.add(4096);
    metrics.mvcc.puts.inc();
    metrics.server.apply_seconds(ApplyOp::DeleteRange, false).observe(0.0003);
    metrics.server.apply_seconds(ApplyOp::DeleteRange, false).observe(0.0003);
    metrics.health.record("readyz", "non_learner", true);
    metrics.health.record("readyz", "non_learner", false);
    let text = metrics.encode(None);
    for series in [
        "etcd_disk_wal_write_bytes_total 4096",
        "etcd_mvcc_put_total 1",
        "etcd_server_apply_duration_seconds_bucket{op=\"DeleteRange\",success=\"false\",version=\"v3\",le=\"0.0002\"} 0",
        "etcd_server_apply_duration_seconds_bucket{op=\"DeleteRange\",success=\"false\",version=\"v3\",le=\"0.0004\"} 2",
        "etcd_server_healthcheck{name=\"non_learner\",type=\"readyz\"} 0",
        "etcd_server_healthchecks_total{name=\"non_learner\",status=\"success\",type=\"readyz\"} 1",
        "etcd_server_healthchecks_total{name=\"non_learner\",status=\"error\",type=\"readyz\"} 1",
    ] {
        assert!(text.lines().any(|line| line == series), "{series}");
    }
}

#[test]
fn a_member_that_was_removed_leaves_no_series() {
    let metrics = metrics();
    let (me, other) = (MemberId(1), MemberId(0xdead));
    metrics.network.know(me, me);
    metrics.network.know(me, other);
    metrics.network.peer(me, other).sent_bytes.inc_by(10);
    let text = metrics.encode(None);
    assert!(text.contains("etcd_network_peer_sent_bytes_total{To=\"dead\"} 10"));
    assert!(text.contains("etcd_network_active_peers{Local=\"1\",Remote=\"dead\"} 0"));
    metrics.network.forget(me, other);
    // Once more changes nothing.
    metrics.network.forget(me, other);
    let text = metrics.encode(None);
    assert!(!text.contains("dead"));
    assert!(text.contains("etcd_network_known_peers{Local=\"1\",Remote=\"1\"} 1"));
}
