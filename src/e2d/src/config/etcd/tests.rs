use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::settings::Id;
use crate::config::tests::machine;
use crate::config::{AutoCompaction, Config, Endpoint, InitialState, Invalid, Machine, Resolved};

fn process(env: &[(&str, &str)]) -> Process {
    Process {
        argv: vec![],
        env: env
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
    }
}

fn asked(line: &str, env: &[(&str, &str)]) -> Asked {
    let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    read(&process(env), &arguments)
}

fn resolved(line: &str, env: &[(&str, &str)]) -> Result<Resolved, Vec<String>> {
    let fragments = match asked(line, env) {
        Asked::Run(fragments) => fragments,
        other => panic!("{line}: {other:?}"),
    };
    // A directory of e2d's own service is not for a command line of etcd.
    let machine = Machine {
        state_directory: Some("/var/lib/e2d".into()),
        ..machine()
    };
    Config::resolve(fragments, &machine)
        .map_err(|Invalid(problems)| problems.iter().map(ToString::to_string).collect())
}

fn config(line: &str) -> Config {
    resolved(line, &[]).unwrap().config
}

fn problems(line: &str) -> Vec<String> {
    resolved(line, &[]).unwrap_err()
}

fn refusal(line: &str) -> String {
    match asked(line, &[]) {
        Asked::Refused(message) => message,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_bare_etcd_is_the_default_member_in_the_working_directory() {
    let config = config("");
    assert_eq!(config.node.name, "default");
    assert_eq!(config.storage.data_dir, Path::new("default.etcd"));
    assert_eq!(config.listen.client, ["127.0.0.1:2379".parse().unwrap()]);
    assert_eq!(config.listen.peer, ["127.0.0.1:2380".parse().unwrap()]);
    let url = |list: &[Endpoint]| list.iter().map(Endpoint::url).collect::<Vec<_>>();
    assert_eq!(
        url(&config.listen.advertise_client),
        ["http://localhost:2379"]
    );
    assert_eq!(
        url(&config.listen.advertise_peer),
        ["http://localhost:2380"]
    );
    assert_eq!(config.cluster.initial.len(), 1);
    assert_eq!(config.cluster.initial[0].name, "default");
    assert_eq!(config.cluster.token, "etcd-cluster");
    assert_eq!(
        self::config("-name=b").storage.data_dir,
        Path::new("b.etcd")
    );
}

#[test]
fn flags_are_read_in_go_notation() {
    for line in [
        "-name x -pre-vote",
        "--name x --pre-vote",
        "-name=x -pre-vote=true",
        "--name=x --pre-vote=T",
        "--name y --name x",
        "--name x --",
    ] {
        let resolved = resolved(line, &[]).unwrap();
        assert_eq!(resolved.config.node.name, "x", "{line}");
        assert_eq!(resolved.notices, [""; 0], "{line}");
    }
    for (line, message) in [
        ("-foo", "flag provided but not defined: -foo"),
        ("--foo=1", "flag provided but not defined: -foo"),
        ("--data-dir", "flag needs an argument: -data-dir"),
        ("---name x", "bad flag syntax: ---name"),
        ("--=x", "bad flag syntax: --=x"),
        ("--name x extra", "\"extra\" is not a valid flag"),
        // A switch does not take the word behind it.
        ("--pre-vote false", "\"false\" is not a valid flag"),
        ("- --name x", "\"-\" is not a valid flag"),
        (
            "--version=maybe",
            "invalid boolean value \"maybe\" for -version: parse error",
        ),
        (
            "gateway start",
            "gateway is not in e2d: clients connect to the nodes themselves",
        ),
        (
            "grpc-proxy start",
            "grpc-proxy is not in e2d: clients connect to the nodes themselves",
        ),
    ] {
        assert_eq!(refusal(line), message, "{line}");
    }
    assert!(matches!(asked("-version", &[]), Asked::Version));
    assert!(matches!(asked("--name x --version", &[]), Asked::Version));
    assert!(matches!(asked("-h", &[]), Asked::Help));
    assert!(matches!(asked("--help --nonsense", &[]), Asked::Help));
}

/// Every flag that etcd 3.4.23, 3.5.30, 3.6.14 or 3.7.1 prints in its help, those of 3.6 that are deprecated included.
const ETCD_FLAGS: &str = "
    name data-dir wal-dir snapshot-count heartbeat-interval election-timeout initial-election-tick-advance
    listen-peer-urls listen-client-urls listen-client-http-urls max-snapshots max-wals memory-mlock
    quota-backend-bytes backend-bbolt-freelist-type backend-batch-interval backend-batch-limit max-txn-ops
    max-request-bytes max-concurrent-streams grpc-keepalive-min-time grpc-keepalive-interval grpc-keepalive-timeout
    socket-reuse-port socket-reuse-address enable-grpc-gateway raft-read-timeout raft-write-timeout feature-gates
    initial-advertise-peer-urls initial-cluster initial-cluster-state initial-cluster-token advertise-client-urls
    discovery discovery-token discovery-endpoints discovery-dial-timeout discovery-request-timeout
    discovery-keepalive-time discovery-keepalive-timeout discovery-insecure-transport
    discovery-insecure-skip-tls-verify discovery-cert discovery-key discovery-cacert discovery-user
    discovery-password discovery-fallback discovery-proxy discovery-srv discovery-srv-name strict-reconfig-check
    pre-vote auto-compaction-retention auto-compaction-mode v2-deprecation cert-file key-file client-cert-auth
    client-cert-file client-key-file client-crl-file client-cert-allowed-hostname trusted-ca-file auto-tls
    peer-cert-file peer-key-file peer-client-cert-auth peer-client-cert-file peer-client-key-file
    peer-trusted-ca-file peer-cert-allowed-cn peer-cert-allowed-hostname peer-auto-tls self-signed-cert-validity
    peer-crl-file cipher-suites cors host-whitelist tls-min-version tls-max-version auth-token bcrypt-cost
    auth-token-ttl enable-pprof metrics listen-metrics-urls logger log-outputs log-level log-format
    enable-log-rotation log-rotation-config-json warning-unary-request-duration
    experimental-enable-distributed-tracing enable-distributed-tracing experimental-distributed-tracing-address
    distributed-tracing-address experimental-distributed-tracing-service-name distributed-tracing-service-name
    experimental-distributed-tracing-instance-id distributed-tracing-instance-id
    experimental-distributed-tracing-sampling-rate distributed-tracing-sampling-rate
    experimental-initial-corrupt-check experimental-corrupt-check-time corrupt-check-time
    experimental-compact-hash-check-enabled experimental-compact-hash-check-time compact-hash-check-time
    experimental-enable-lease-checkpoint experimental-compaction-batch-limit compaction-batch-limit
    experimental-peer-skip-client-san-verification peer-skip-client-san-verification
    experimental-watch-progress-notify-interval watch-progress-notify-interval
    experimental-warning-apply-duration warning-apply-duration experimental-txn-mode-write-with-shared-buffer
    experimental-bootstrap-defrag-threshold-megabytes bootstrap-defrag-threshold-megabytes
    experimental-warning-unary-request-duration max-learners experimental-compaction-sleep-interval
    compaction-sleep-interval experimental-downgrade-check-time downgrade-check-time
    experimental-enable-lease-checkpoint-persist experimental-memory-mlock experimental-snapshot-catchup-entries
    snapshot-catchup-entries experimental-stop-grpc-service-on-defrag force-new-cluster unsafe-no-fsync
    enable-v2 experimental-enable-v2v3 experimental-backend-bbolt-freelist-type proxy proxy-failure-wait
    proxy-refresh-interval proxy-dial-timeout proxy-write-timeout proxy-read-timeout debug log-package-levels
    config-file version help
";

#[test]
fn every_flag_of_etcd_is_known_once_and_no_other() {
    let mut known: Vec<&str> = names().chain(["config-file", "version", "help"]).collect();
    let mut etcd: Vec<&str> = ETCD_FLAGS.split_whitespace().collect();
    known.sort_unstable();
    etcd.sort_unstable();
    assert_eq!(known, etcd);
    for name in known {
        assert!(Flag::named(name).is_some(), "{name}");
    }
}

#[test]
fn etcds_own_defaults_ask_for_nothing() {
    for row in FOREIGN {
        if !row.default.is_empty() {
            assert_eq!(row.asks_for_something(row.default), Ok(false), "{row:?}");
        }
    }
    let resolved = resolved(
        "--cert-file= --client-cert-auth=false --tls-min-version=TLS1.2 --cors=* --strict-reconfig-check \
         --auth-token=simple --log-outputs=default --listen-metrics-urls= --name= --proxy=off",
        &[],
    )
    .unwrap();
    assert_eq!(resolved.notices, [""; 0]);
    assert_eq!(resolved.config, config(""));
}

#[test]
fn a_flag_without_effect_says_so_once() {
    let resolved = resolved(
        "--max-wals 7 --enable-pprof --experimental-compact-hash-check-enabled=true --unsafe-no-fsync \
         --feature-gates=InitialCorruptCheck=true,TxnModeWriteWithSharedBuffer=true --discovery-password=secret",
        &[("ETCD_PRE_VOTE", "false"), ("ETCD_NONSENSE", "secret"), ("ETCD_VERSION", "3")],
    )
    .unwrap();
    assert_eq!(
        resolved.notices,
        [
            "unrecognized environment variable ETCD_NONSENSE",
            "environment variable ETCD_PRE_VOTE: accepted, no effect here: pre-vote is always on",
            "flag --discovery-password: accepted, no effect here: discovery of other nodes is not in this version",
            "flag --enable-pprof: accepted, no effect here: there is no Go runtime",
            "flag --experimental-compact-hash-check-enabled: accepted, no effect here: there is one node in this version",
            "flag --feature-gates: accepted, no effect here: nothing here hides behind a feature gate",
            "flag --max-wals: accepted, no effect here: the write-ahead log is cut by the store's own progress",
            "flag --unsafe-no-fsync: accepted, no effect here: a write is never acknowledged before it is on disk",
        ]
    );
    assert_eq!(resolved.config, config(""));
}

#[test]
fn old_names_set_what_the_new_ones_set() {
    for row in SETTINGS {
        for old in row.etcd_old {
            let value = if row.id == Id::CompactionBatchLimit {
                "77"
            } else {
                "77ms"
            };
            assert_eq!(
                config(&format!("--{old}={value}")),
                config(&format!("--{}={value}", row.etcd)),
                "{old}"
            );
            assert_ne!(config(&format!("--{old}={value}")), config(""), "{old}");
        }
    }
    assert_eq!(
        problems("--warning-apply-duration=1s --experimental-warning-apply-duration=1s"),
        [
            "flag --warning-apply-duration: says again what flag --experimental-warning-apply-duration says, \
          expected one of them"
        ]
    );
}

#[test]
fn each_mistake_is_named_as_etcd_would() {
    let t = |line: &str, want: &[&str]| assert_eq!(problems(line), want, "{line}");
    t(
        "--listen-client-urls=http://127.0.0.1:1",
        &["--advertise-client-urls: is required when --listen-client-urls is set"],
    );
    t(
        "--election-timeout=100 --pre-vote=maybe --corrupt-check-time=5 --max-wals=many",
        &[
            "flag --corrupt-check-time: expected a duration such as 500ms, 1m30s or 1h, found \"5\"",
            "flag --max-wals: expected a whole number, found \"many\"",
            "flag --pre-vote: expected true or false, found \"maybe\"",
            "flag --election-timeout: expected at least five times the heartbeat interval, which is 100ms by \
             --heartbeat-interval (default), found 100ms",
        ],
    );
    t(
        "--feature-gates=InitialCorruptChekc=true",
        &[
            "flag --feature-gates: unrecognized feature gate: InitialCorruptChekc, did you mean InitialCorruptCheck?",
        ],
    );
    t(
        "--feature-gates=AllAlpha=maybe",
        &[
            "flag --feature-gates: expected AllAlpha=true or AllAlpha=false, found \"AllAlpha=maybe\"",
        ],
    );
    t(
        "--initial-cluster-state=fresh",
        &["flag --initial-cluster-state: expected one of new, existing, found \"fresh\""],
    );
    t(
        "--name a --initial-cluster a=http://localhost:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380",
        &[
            "flag --initial-cluster: expected one member, found 3 (a, b, c): clusters of more than one node are not \
           in this version",
        ],
    );
    t(
        "--name a --initial-cluster b=http://localhost:2380",
        &["flag --initial-cluster: expected this node's name \"a\" among the members, found \"b\""],
    );
    t(
        "--initial-cluster default=http://10.0.0.1:2380",
        &[
            "flag --initial-cluster: expected default=http://localhost:2380 as --initial-advertise-peer-urls \
           (default) says, found http://10.0.0.1:2380",
        ],
    );
    t(
        "--initial-cluster default",
        &[
            "flag --initial-cluster: expected name=http://host:2380, found \"default\": there is no equals sign",
        ],
    );
    t(
        "--auth-token=jwt,sign-method=RS256 --host-whitelist=a.example --force-new-cluster --discovery=https://d/x \
         --proxy=on",
        &[
            "flag --auth-token: is refused: only simple tokens are in this version",
            "flag --discovery: is refused: discovery of other nodes is not in this version",
            "flag --force-new-cluster: is refused: turning a member into a cluster of its own is not in this version",
            "flag --host-whitelist: is refused: this restriction is not in this version, and nobody is let in who \
             was asked to be kept out",
            "flag --proxy: is refused: the v2 proxy is gone from etcd as well",
        ],
    );
    assert_eq!(
        resolved("--name a", &[("ETCD_NAME", "a")]).unwrap_err(),
        [
            "environment variable ETCD_NAME: conflicts with flag --name, expected one of them: unset the variable or \
          drop the flag"
        ]
    );
    assert_eq!(
        resolved(
            "",
            &[("ETCD_SNAPSHOT_COUNT", "x"), ("ETCD_AUTO_TLS", "true")]
        )
        .unwrap_err(),
        [
            "environment variable ETCD_AUTO_TLS: is refused: TLS is not in this version, and nothing is served in \
             plain text that was asked to be encrypted",
            "environment variable ETCD_SNAPSHOT_COUNT: expected a whole number from 1 to 18446744073709551615, \
             found \"x\"",
        ]
    );
}

#[test]
fn one_member_may_have_several_addresses() {
    let config = config(
        "--name a --initial-advertise-peer-urls http://127.0.0.1:2380,http://10.0.0.1:2380 \
         --initial-cluster a=http://10.0.0.1:2380,a=http://localhost:2380 --initial-cluster-state existing",
    );
    assert_eq!(config.cluster.initial[0].peer.len(), 2);
    assert_eq!(config.cluster.initial_state, InitialState::Existing);
}

#[test]
fn http_of_its_own_address_is_one_more_address() {
    let config = config(
        "--listen-client-urls http://127.0.0.1:1 --advertise-client-urls http://127.0.0.1:1 \
         --listen-client-http-urls http://127.0.0.1:2",
    );
    let ports: Vec<u16> = config.listen.client.iter().map(|a| a.port()).collect();
    assert_eq!(ports, [1, 2]);
}

// ----- command lines of the world, without and with what is not in this version -----

const KUBEADM_TLS: &str = " --cert-file=/etc/kubernetes/pki/etcd/server.crt --client-cert-auth=true \
     --key-file=/etc/kubernetes/pki/etcd/server.key --peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt \
     --peer-client-cert-auth=true --peer-key-file=/etc/kubernetes/pki/etcd/peer.key \
     --peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt --trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt";

const KUBEADM: &str = "--advertise-client-urls=http://10.0.0.4:2379 --data-dir=/var/lib/etcd \
     --initial-advertise-peer-urls=http://10.0.0.4:2380 --initial-cluster=cp=http://10.0.0.4:2380 \
     --listen-client-urls=http://127.0.0.1:2379,http://10.0.0.4:2379 \
     --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=http://10.0.0.4:2380 --name=cp \
     --snapshot-count=10000";

#[test]
fn kubeadm_old_and_new_start_without_tls() {
    let new = format!(
        "{KUBEADM} --feature-gates=InitialCorruptCheck=true --watch-progress-notify-interval=5s"
    );
    let old = format!(
        "{KUBEADM} --experimental-initial-corrupt-check=true \
         --experimental-watch-progress-notify-interval=5s"
    );
    for line in [new, old] {
        let config = config(&line);
        assert_eq!(config.node.name, "cp");
        assert_eq!(config.storage.data_dir, Path::new("/var/lib/etcd"));
        assert_eq!(config.listen.client.len(), 2);
        assert_eq!(config.metrics.listen, ["127.0.0.1:2381".parse().unwrap()]);
        assert_eq!(
            config.limits.watch_progress_notify_interval,
            Duration::from_secs(5)
        );
        assert_eq!(config.cluster.initial.len(), 1);
    }
}

#[test]
fn kubeadm_with_tls_is_refused_flag_by_flag_and_never_served_in_plain_text() {
    let line = format!("{KUBEADM}{KUBEADM_TLS}").replace("http://10", "https://10");
    let problems = problems(&line);
    let tls: Vec<&str> = problems
        .iter()
        .filter(|problem| problem.contains("TLS is not in this version"))
        .map(|problem| problem.split(':').next().unwrap())
        .collect();
    assert_eq!(
        tls,
        [
            "flag --cert-file",
            "flag --client-cert-auth",
            "flag --key-file",
            "flag --peer-cert-file",
            "flag --peer-client-cert-auth",
            "flag --peer-key-file",
            "flag --peer-trusted-ca-file",
            "flag --trusted-ca-file",
            "flag --listen-client-urls",
            "flag --listen-peer-urls",
            "flag --advertise-client-urls",
            "flag --initial-advertise-peer-urls",
            "flag --initial-cluster",
        ]
    );
}

#[test]
fn the_unit_of_ondat_starts_without_tls() {
    let line = "--name a --data-dir /var/lib/etcd --snapshot-count 5000 --heartbeat-interval 500 \
                --election-timeout 5000 --listen-peer-urls http://10.0.0.1:2380 \
                --listen-client-urls http://10.0.0.1:2379,http://127.0.0.1:2379 --max-snapshots 10 --max-wals 10 \
                --quota-backend-bytes 8589934592 --initial-advertise-peer-urls http://10.0.0.1:2380 \
                --initial-cluster a=http://10.0.0.1:2380 --initial-cluster-state new \
                --initial-cluster-token etcd-cluster-storageos --advertise-client-urls http://10.0.0.1:2379 \
                --auto-compaction-mode revision --auto-compaction-retention 20000 --client-cert-auth=false \
                --peer-auto-tls=false";
    let resolved = resolved(line, &[]).unwrap();
    let config = resolved.config;
    assert_eq!(config.compaction.auto, AutoCompaction::Revision(20_000));
    assert_eq!(config.storage.quota_bytes, Some(8 << 30));
    assert_eq!(config.raft.election_timeout, Duration::from_secs(5));
    assert_eq!(config.raft.snapshot_count, 5000);
    assert_eq!(config.cluster.token, "etcd-cluster-storageos");
    assert_eq!(resolved.notices.len(), 2, "{:?}", resolved.notices);
}

#[test]
fn test_rigs_of_jetcd_and_patroni_start() {
    let jetcd = config(
        "--name etcd0 --advertise-client-urls http://0.0.0.0:2379 --listen-client-urls http://0.0.0.0:2379 \
         --initial-advertise-peer-urls http://etcd0:2380 --listen-peer-urls http://0.0.0.0:2380 \
         --initial-cluster etcd0=http://etcd0:2380 --initial-cluster-state new --initial-cluster-token etcd-cluster \
         --data-dir /data.etcd --enable-v2",
    );
    assert_eq!(jetcd.cluster.initial[0].peer[0].url(), "http://etcd0:2380");
    let patroni = config("--data-dir data/etcd --enable-v2=true");
    assert_eq!(patroni.storage.data_dir, Path::new("data/etcd"));
    let environment = resolved(
        "",
        &[
            ("ETCD_NAME", "n"),
            ("ETCD_DATA_DIR", "/data"),
            ("ETCD_LISTEN_CLIENT_URLS", "http://0.0.0.0:2379"),
            ("ETCD_ADVERTISE_CLIENT_URLS", "http://127.0.0.1:2379"),
            ("ETCD_UNSUPPORTED_ARCH", "arm64"),
            ("ETCD_INITIAL_CLUSTER", ""),
        ],
    )
    .unwrap();
    assert_eq!(environment.config.node.name, "n");
    assert_eq!(environment.config.storage.data_dir, Path::new("/data"));
}

// ----- the YAML file -----

fn from_file(yaml: &str) -> Result<Resolved, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.yml");
    std::fs::write(&path, yaml).unwrap();
    let prefix = format!("{}/", dir.path().display());
    let line = format!("--config-file={}", path.display());
    match resolved(&line, &[]) {
        Ok(mut resolved) => {
            for notice in &mut resolved.notices {
                *notice = notice.replace(&prefix, "");
            }
            Ok(resolved)
        }
        Err(problems) => Err(problems.iter().map(|p| p.replace(&prefix, "")).collect()),
    }
}

#[test]
fn a_file_of_etcd_is_read() {
    let resolved = from_file(
        "# This is the configuration file for the etcd server.
name: 'a'
data-dir: /var/lib/etcd
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379,http://10.0.0.1:2379
max-snapshots: 5
cors:
advertise-client-urls: \"http://localhost:2379\"
discovery:
initial-cluster: null
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
client-transport-security:
  cert-file:
  client-cert-auth: false
  auto-tls: false
peer-transport-security:
  allowed-cn:
  auto-tls: false
log-level: debug
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: \"1\"
watch-progress-notify-interval: 5000000000
grpc-keepalive-min-time: 5s
cipher-suites: []
socket-options: {reuse-port: true}
made-up: 1
",
    )
    .unwrap();
    let config = &resolved.config;
    assert_eq!(config.node.name, "a");
    assert_eq!(config.storage.data_dir, Path::new("/var/lib/etcd"));
    assert_eq!(config.storage.wal_dir, Path::new("/var/lib/etcd/wal"));
    assert_eq!(config.listen.client.len(), 2);
    assert_eq!(
        config.limits.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
    assert_eq!(
        config.compaction.auto,
        AutoCompaction::Periodic(Duration::from_secs(3600))
    );
    assert_eq!(
        resolved.notices,
        [
            "etcd.yml:18 strict-reconfig-check: accepted, no effect here: a change of members that would lose the \
             quorum is always refused",
            "etcd.yml:19 enable-pprof: accepted, no effect here: there is no Go runtime",
            "etcd.yml:36 socket-options.reuse-port: accepted, no effect here: a port is never shared with another \
             process",
            "etcd.yml:37 made-up: unknown key is ignored, as in etcd",
        ]
    );
    let source = &resolved
        .effective
        .iter()
        .find(|one| one.setting == Id::LogLevel)
        .unwrap()
        .source;
    assert!(source.to_string().ends_with("etcd.yml:28 log-level"));
}

#[test]
fn each_mistake_in_a_file_of_etcd_is_named_with_its_line() {
    let t = |yaml: &str, want: &[&str]| {
        assert_eq!(from_file(yaml).unwrap_err(), want, "{yaml}");
    };
    t(
        "name: a\nclient-transport-security:\n  cert-file: x\npeer-transport-security:\n  auto-tls: true\n  \
         client-cert-auth: yes\n",
        &[
            "etcd.yml:3 client-transport-security.cert-file: is refused: TLS is not in this version, and nothing is \
             served in plain text that was asked to be encrypted",
            "etcd.yml:5 peer-transport-security.auto-tls: is refused: TLS is not in this version, and nothing is \
             served in plain text that was asked to be encrypted",
            "etcd.yml:6 peer-transport-security.client-cert-auth: expected true or false, found \"yes\"",
        ],
    );
    t(
        "snapshot-count: many\n",
        &[
            "etcd.yml:1 snapshot-count: expected a whole number from 1 to 18446744073709551615, found \"many\"",
        ],
    );
    t(
        "name: a\nname: b\n",
        &["etcd.yml:2 name: says again what etcd.yml:1 name says, expected one of them"],
    );
    t(
        "[a]\n",
        &[
            "etcd.yml:1: is not a configuration file of etcd: expected keys and values, found a list",
        ],
    );
    t(
        "a\n",
        &[
            "etcd.yml:1: is not a configuration file of etcd: expected keys and values, found a scalar",
        ],
    );
    t(
        "a: {b: {c: d}}\n",
        &["etcd.yml:1: is not a configuration file of etcd: a table is nested too deep"],
    );
    t(
        "name: &x a\ndata-dir: *x\n",
        &["etcd.yml:2: is not a configuration file of etcd: aliases are not supported"],
    );
    t(
        "name: a\n---\nname: b\n",
        &["etcd.yml:2: is not a configuration file of etcd: there is a second document"],
    );
    let broken = from_file("name: [\n").unwrap_err();
    assert!(
        broken[0].starts_with("etcd.yml:")
            && broken[0].contains("is not a configuration file of etcd"),
        "{broken:?}"
    );
    assert_eq!(from_file("").unwrap().config, config(""));
    assert_eq!(
        problems("--config-file=/nonexistent/etcd.yml"),
        ["/nonexistent/etcd.yml: cannot be read: No such file or directory (os error 2)"]
    );
}

#[test]
fn a_file_silences_flags_and_variables_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.yml");
    std::fs::write(&path, "name: from-file\n").unwrap();
    let file = path.display().to_string();
    let resolved = resolved(
        "--name from-flag --max-wals 7",
        &[
            ("ETCD_CONFIG_FILE", &file),
            ("ETCD_DATA_DIR", "/x"),
            ("ETCD_OTHER", "x"),
        ],
    )
    .unwrap();
    assert_eq!(resolved.config.node.name, "from-file");
    assert_eq!(
        resolved.config.storage.data_dir,
        Path::new("from-file.etcd")
    );
    assert_eq!(
        resolved.notices,
        [format!(
            "ignored because the configuration file {file} is given: --max-wals, --name, ETCD_DATA_DIR"
        )]
    );
}

#[test]
fn deep_nesting_in_a_file_is_an_error_and_no_crash() {
    for text in [
        "[".repeat(100_000),
        "{".repeat(100_000),
        "a: [".repeat(50_000),
        "- ".repeat(50_000),
    ] {
        assert!(from_file(&text).is_err());
    }
}

proptest! {
    #[test]
    fn no_command_line_panics(arguments in proptest::collection::vec("-{0,3}[a-z-]{0,12}(=.{0,8})?|.*", 0..6)) {
        let arguments: Vec<OsString> = arguments
            .into_iter()
            .filter(|argument| !argument.contains("config-file"))
            .map(OsString::from)
            .collect();
        if let Asked::Run(fragments) = read(&Process::default(), &arguments) {
            let _ = Config::resolve(fragments, &machine());
        }
    }

    #[test]
    fn no_value_panics(name in proptest::sample::select(names().collect::<Vec<_>>()), value in ".*|[-0-9a-z:/,=.\\[\\]]*") {
        let argument = OsString::from(format!("--{name}={value}"));
        if let Asked::Run(fragments) = read(&Process::default(), &[argument]) {
            let _ = Config::resolve(fragments, &machine());
        }
    }

    #[test]
    fn no_yaml_panics(text in ".*|[a-z:\\[\\]{},\\-\\n '\"#&*|>!]*") {
        let mut reader = Reader { all: Fragments::new(Mode::Etcd), layer: Layer::default() };
        reader.yaml(Path::new("etcd.yml"), &text);
    }
}
