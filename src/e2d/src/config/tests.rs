use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::settings::{ABSENT, Fallback, Id, SETTINGS, Setting, setting};
use super::*;

/// A machine without surprises.
pub(super) fn machine() -> Machine {
    Machine {
        hostname: "node-a".into(),
        state_directory: None,
        address: Some(IpAddr::from([10, 1, 2, 3])),
        stderr: Standard::Other,
        stdout: Standard::Other,
        color: true,
    }
}

/// Everything that `e2d run` may be told.
#[derive(Default, Clone)]
struct Told<'a> {
    flags: Vec<(&'a str, &'a str)>,
    env: Vec<(&'a str, &'a str)>,
    toml: &'a str,
}

impl Told<'_> {
    fn resolve_on(&self, machine: &Machine) -> Result<Resolved, Invalid> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("etc");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("e2d.toml"), self.toml).unwrap();
        let process =
            Process { argv: vec![], env: self.env.iter().map(|(name, value)| (name.into(), value.into())).collect() };
        let flags: Vec<(String, OsString)> =
            self.flags.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
        let fragments = Fragments::read(&process, std::slice::from_ref(&root), None, &flags);
        Config::resolve(fragments, machine).map_err(|Invalid(problems)| {
            let strip = |text: String| text.replace(&format!("{}/", root.display()), "");
            Invalid(
                problems.into_iter().map(|p| Problem { place: strip(p.place), message: strip(p.message) }).collect(),
            )
        })
    }

    fn config(&self) -> Config {
        self.resolve_on(&machine()).unwrap().config
    }

    fn problems(&self) -> Vec<String> {
        let Err(Invalid(problems)) = self.resolve_on(&machine()) else {
            panic!("nothing is wrong");
        };
        problems.iter().map(Problem::to_string).collect()
    }
}

fn flags<'a>(flags: &[(&'a str, &'a str)]) -> Told<'a> {
    Told { flags: flags.to_vec(), ..Told::default() }
}

fn env<'a>(env: &[(&'a str, &'a str)]) -> Told<'a> {
    Told { env: env.to_vec(), ..Told::default() }
}

fn toml(toml: &str) -> Told<'_> {
    Told { toml, ..Told::default() }
}

/// A value for a setting, another one for each `n` where there are enough, and none of them the default.
fn sample(row: &Setting, n: usize) -> String {
    let port = 7000 + row.id as usize * 10 + n;
    match row.kind {
        Kind::Name => format!("name-{n}"),
        Kind::Text => format!("text {n}"),
        Kind::Path => format!("/some/where/{}/{n}", row.name),
        // The one size of this version.
        Kind::Count { max: 5, .. } => "1".into(),
        Kind::Count { .. } => format!("{}", 77 + n),
        Kind::Bytes { .. } | Kind::Quota => format!("{}KiB", 77 + n),
        Kind::Duration { .. } => format!("7{n}ms"),
        Kind::Millis { .. } if row.id == Id::HeartbeatInterval => format!("{}", 90 + n),
        Kind::Millis { .. } => format!("{}ms", 700 + n),
        Kind::Choice(words) => words[1 + n % (words.len() - 1)].into(),
        Kind::Level => ["warn", "error", "debug", "trace"][n % 4].into(),
        Kind::Ip => format!("10.9.9.{}", n + 1),
        Kind::Listen { .. } => format!("127.0.0.1:{port}"),
        Kind::Advertise { .. } => format!("http://10.9.9.9:{port}"),
        Kind::Retention => format!("{}h", n + 1),
        Kind::Members => format!("node-a=http://127.0.0.1:{port}"),
    }
}

fn of_run() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|row| !row.name.is_empty())
}

#[test]
fn every_row_of_the_table_is_sound() {
    let mut names: Vec<&str> = ABSENT.iter().map(|absent| absent.name).collect();
    for (i, row) in SETTINGS.iter().enumerate() {
        assert_eq!(row.id as usize, i);
        assert!(!row.name.is_empty() || !row.etcd.is_empty(), "{row:?}");
        assert!(row.help.ends_with('.'), "{row:?}");
        if let Fallback::Text(text) = row.default {
            assert!(text.is_empty() || row.kind.parse(text).is_ok(), "the default of {row:?}");
        }
        names.extend(row.run_flags());
    }
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "two settings share a name");
}

#[test]
fn every_setting_obeys_flag_over_environment_over_drop_ins_over_file_over_default() {
    for row in of_run() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        for root in [&etc, &run] {
            std::fs::create_dir_all(root.join("e2d.toml.d")).unwrap();
        }
        let roots = [etc.clone(), run.clone()];
        let write = |file: PathBuf, n: usize| {
            let text = sample(row, n);
            let value = match row.kind {
                Kind::Count { .. } => text,
                _ => format!("{text:?}"),
            };
            let text = format!("\n[{}]\n{} = {value}\n", row.section, row.name);
            std::fs::write(&file, text).unwrap();
            Source::File { path: file, line: 3, key: format!("{}.{}", row.section, row.name) }
        };
        let mut process = Process::default();
        let mut flags: Vec<(String, OsString)> = vec![];
        let check = |process: &Process, flags: &[(String, OsString)], n: usize, source: Source| {
            let fragments = Fragments::read(process, &roots, None, flags);
            let resolved = Config::resolve(fragments, &machine()).unwrap();
            let one = resolved.effective.iter().find(|one| one.setting == row.id).unwrap();
            assert_eq!(one.source, source, "{row:?}");
            assert_eq!(one.text, sample(row, n), "{row:?}");
        };
        let wrong = Fragments::read(&process, &roots, None, &flags);
        let resolved = Config::resolve(wrong, &machine()).unwrap();
        if let Some(one) = resolved.effective.iter().find(|one| one.setting == row.id) {
            assert!(matches!(one.source, Source::Default | Source::Derived));
        }

        let source = write(run.join("e2d.toml"), 0);
        check(&process, &flags, 0, source);
        // /etc hides /run.
        let source = write(etc.join("e2d.toml"), 1);
        check(&process, &flags, 1, source);
        let source = write(run.join("e2d.toml.d/10-a.toml"), 2);
        check(&process, &flags, 2, source);
        // Sorted by file name, wherever the files are.
        let source = write(etc.join("e2d.toml.d/20-b.toml"), 3);
        check(&process, &flags, 3, source.clone());
        write(etc.join("e2d.toml.d/05-c.toml"), 4);
        check(&process, &flags, 3, source);
        let source = write(run.join("e2d.toml.d/30-d.toml"), 4);
        check(&process, &flags, 4, source);
        let source = write(etc.join("e2d.toml.d/30-d.toml"), 5);
        check(&process, &flags, 5, source);
        // No drop-in.
        std::fs::write(etc.join("e2d.toml.d/40-note.txt"), "nonsense").unwrap();

        let name = row.env().unwrap();
        process.env.push((name.clone().into(), sample(row, 6).into()));
        check(&process, &flags, 6, Source::Env(name));
        for flag in row.run_flags() {
            flags = vec![(flag.to_string(), sample(row, 7).into())];
            check(&process, &flags, 7, Source::Flag(format!("--{flag}")));
        }
    }
}

#[test]
fn every_setting_reaches_the_configuration() {
    let default = Told::default().config();
    // All but the one whose default is the only value that is accepted; see the errors for the others.
    for row in of_run().filter(|row| row.id != Id::ClusterSize) {
        let changed = (0..4).any(|n| {
            let text = sample(row, n);
            let mut told = flags(&[(row.name, &text)]);
            if row.id == Id::AutoCompactionMode {
                told.flags.push(("auto-compaction-retention", "3"));
            }
            told.config() != default
        });
        assert!(changed, "{row:?}");
    }
}

#[test]
fn a_named_file_replaces_the_standard_ones() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let own = dir.path().join("own.toml");
    let drop_ins = dir.path().join("own.toml.d");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::create_dir_all(&drop_ins).unwrap();
    std::fs::write(etc.join("e2d.toml"), "[node]\nname = \"standard\"\n").unwrap();
    std::fs::write(&own, "[node]\nname = \"own\"\n").unwrap();
    let mut process = Process::default();
    let name = |process: &Process, config: Option<&Path>| {
        let fragments = Fragments::read(process, std::slice::from_ref(&etc), config, &[]);
        Config::resolve(fragments, &machine()).unwrap().config.node.name
    };
    assert_eq!(name(&process, None), "standard");
    assert_eq!(name(&process, Some(&own)), "own");
    process.env.push((CONFIG_ENV.into(), own.clone().into()));
    assert_eq!(name(&process, None), "own");
    std::fs::write(drop_ins.join("1.toml"), "[node]\nname = \"dropped\"\n").unwrap();
    assert_eq!(name(&process, None), "dropped");

    let missing = dir.path().join("missing.toml");
    let fragments = Fragments::read(&process, &[], Some(&missing), &[]);
    let Err(Invalid(problems)) = Config::resolve(fragments, &machine()) else {
        panic!("a named file that does not exist is taken for an empty one");
    };
    assert_eq!(
        problems[0].to_string(),
        format!("{}: cannot be read: No such file or directory (os error 2)", missing.display())
    );
}

#[test]
fn the_defaults_are_those_of_etcd_and_reach_this_machine_only() {
    let config = Told::default().config();
    let local = |port| vec![SocketAddr::from(([127, 0, 0, 1], port))];
    assert_eq!(
        config,
        Config {
            node: Node { name: "node-a".into() },
            listen: Listen {
                client: local(2379),
                peer: local(2380),
                advertise_client: vec![local(2379)[0].into()],
                advertise_peer: vec![local(2380)[0].into()],
            },
            cluster: Cluster {
                size: 1,
                initial: vec![InitialMember { name: "node-a".into(), peer: vec![local(2380)[0].into()] }],
                initial_state: InitialState::New,
                token: "etcd-cluster".into(),
            },
            storage: Storage {
                data_dir: "e2d-data".into(),
                wal_dir: "e2d-data/wal".into(),
                quota_bytes: Some(2 << 30),
            },
            raft: Raft {
                heartbeat_interval: Duration::from_millis(100),
                election_timeout: Duration::from_secs(1),
                snapshot_count: 10_000,
            },
            compaction: Compaction {
                auto: AutoCompaction::Off,
                batch_limit: 1000,
                sleep_interval: Duration::from_millis(10),
            },
            limits: Limits {
                max_txn_ops: 128,
                max_request_bytes: 1_572_864,
                max_concurrent_streams: u32::MAX,
                keepalive: Some(Keepalive { interval: Duration::from_secs(7200), timeout: Duration::from_secs(20) }),
                watch_progress_notify_interval: Duration::from_secs(600),
            },
            log: Log {
                filter: LogFilter::parse("info").unwrap(),
                format: LogFormat::Json,
                output: LogOutput::Stderr,
                warning_apply_duration: Duration::from_millis(100),
                warning_unary_request_duration: Duration::from_millis(300),
            },
            metrics: Metrics { listen: vec![], level: MetricsLevel::Basic },
        }
    );
}

#[test]
fn a_service_keeps_its_data_where_systemd_says() {
    let service = Machine { state_directory: Some("/var/lib/e2d".into()), ..machine() };
    let storage = |told: Told<'_>| told.resolve_on(&service).unwrap().config.storage;
    assert_eq!(storage(Told::default()).data_dir, Path::new("/var/lib/e2d"));
    let told = storage(flags(&[("data-dir", "/data"), ("wal-dir", "/fast")]));
    assert_eq!((told.data_dir, told.wal_dir), ("/data".into(), "/fast".into()));
}

#[test]
fn a_host_name_that_is_no_member_name_is_not_taken() {
    let nameless = Machine { hostname: String::new(), ..machine() };
    let config = Told::default().resolve_on(&nameless).unwrap().config;
    assert_eq!(config.node.name, "default");
}

#[test]
fn addresses_follow_the_host_and_are_told_as_others_reach_them() {
    let addresses = |told: &[(&str, &str)]| {
        let listen = flags(told).config().listen;
        let join = |list: Vec<String>| list.join(" ");
        [
            join(listen.client.iter().map(ToString::to_string).collect()),
            join(listen.advertise_client.iter().map(Endpoint::url).collect()),
            join(listen.peer.iter().map(ToString::to_string).collect()),
            join(listen.advertise_peer.iter().map(Endpoint::url).collect()),
        ]
    };
    let t = |told: &[(&str, &str)], want: [&str; 4]| assert_eq!(addresses(told), want, "{told:?}");
    t(
        &[("host", "10.0.0.1")],
        ["10.0.0.1:2379 127.0.0.1:2379", "http://10.0.0.1:2379", "10.0.0.1:2380", "http://10.0.0.1:2380"],
    );
    t(
        &[("host", "fd00::1")],
        ["[fd00::1]:2379 127.0.0.1:2379", "http://[fd00::1]:2379", "[fd00::1]:2380", "http://[fd00::1]:2380"],
    );
    t(
        &[("client-addr", "0.0.0.0"), ("peer-addr", "0.0.0.0:1")],
        ["0.0.0.0:2379", "http://10.1.2.3:2379", "0.0.0.0:1", "http://10.1.2.3:1"],
    );
    t(
        &[("client-addr", "0.0.0.0:0"), ("host", "10.0.0.1")],
        ["0.0.0.0:0", "http://10.0.0.1:0", "10.0.0.1:2380", "http://10.0.0.1:2380"],
    );
    t(
        &[("client-addr", "[::]:7, 127.0.0.1:8"), ("peer-addr", "localhost")],
        ["[::]:7 127.0.0.1:8", "http://[::1]:7 http://127.0.0.1:8", "127.0.0.1:2380", "http://127.0.0.1:2380"],
    );
    t(
        &[("listen-client-urls", "http://0.0.0.0:7"), ("advertise-client-urls", "http://node-a.example.com")],
        ["0.0.0.0:7", "http://node-a.example.com:2379", "127.0.0.1:2380", "http://127.0.0.1:2380"],
    );
}

#[test]
fn toml_takes_lists_numbers_and_strings() {
    let config = toml(
        r#"
            [listen]
            client-addr = ["127.0.0.1", "[::1]:2379"]
            [storage]
            quota-backend-bytes = 8_589_934_592
            [raft]
            heartbeat-interval = 0x64
            election-timeout = "1500ms"
            [compaction]
            auto-compaction-retention = 5
            [metrics]
            metrics-addr = []
        "#,
    )
    .config();
    assert_eq!(config.listen.client.len(), 2);
    assert_eq!(config.storage.quota_bytes, Some(8 << 30));
    assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(config.raft.election_timeout, Duration::from_millis(1500));
    assert_eq!(config.compaction.auto, AutoCompaction::Periodic(Duration::from_secs(5 * 3600)));
    assert_eq!(config.metrics.listen, []);
}

#[test]
fn compaction_reads_its_retention_by_its_mode() {
    let auto = |mode: &str, retention: &str| {
        flags(&[("auto-compaction-mode", mode), ("auto-compaction-retention", retention)]).config().compaction.auto
    };
    let hours = |hours: u64| AutoCompaction::Periodic(Duration::from_secs(hours * 3600));
    assert_eq!(auto("periodic", "0"), AutoCompaction::Off);
    assert_eq!(auto("periodic", "0s"), AutoCompaction::Off);
    assert_eq!(auto("periodic", "8"), hours(8));
    assert_eq!(auto("periodic", "1h"), hours(1));
    assert_eq!(auto("periodic", "5m"), AutoCompaction::Periodic(Duration::from_secs(300)));
    assert_eq!(auto("revision", "0"), AutoCompaction::Off);
    assert_eq!(auto("revision", "20000"), AutoCompaction::Revision(20_000));
}

#[test]
fn quotas_and_keepalives_can_be_off() {
    let quota = |text| flags(&[("quota-backend-bytes", text)]).config().storage.quota_bytes;
    assert_eq!(quota("0"), Some(2 << 30));
    assert_eq!(quota("-1"), None);
    assert_eq!(quota("8 GiB"), Some(8 << 30));
    assert_eq!(quota("5kb"), Some(5000));
    for off in ["grpc-keepalive-interval", "grpc-keepalive-timeout"] {
        assert_eq!(flags(&[(off, "0")]).config().limits.keepalive, None);
    }
}

#[test]
fn the_log_goes_where_it_is_read() {
    let form = |stderr, told: &[(&str, &str)]| {
        let machine = Machine { stderr, ..machine() };
        let log = flags(told).resolve_on(&machine).unwrap().config.log;
        (log.format, log.output)
    };
    use LogOutput::{Stderr, Stdout};
    let text = |color| LogFormat::Text { color };
    for (stderr, told, want) in [
        (Standard::Journal, &[][..], (LogFormat::Journald, Stderr)),
        (Standard::Terminal, &[], (text(true), Stderr)),
        (Standard::Other, &[], (LogFormat::Json, Stderr)),
        (Standard::Other, &[("log-format", "console")], (text(false), Stderr)),
        (Standard::Journal, &[("log-format", "text")], (text(false), Stderr)),
        (Standard::Journal, &[("log-output", "stderr")], (LogFormat::Json, Stderr)),
        (Standard::Terminal, &[("log-output", "stdout")], (LogFormat::Json, Stdout)),
        (Standard::Other, &[("log-format", "journald")], (LogFormat::Journald, Stderr)),
    ] {
        assert_eq!(form(stderr, told), want, "{stderr:?} {told:?}");
    }
    let level = |told: &[(&str, &str)]| flags(told).config().log.filter.to_string();
    assert_eq!(level(&[("verbose", "debug")]), "debug");
    assert_eq!(level(&[("log-level", "fatal")]), "error");
    assert_eq!(level(&[("log-level", "warn,e2d::store=trace")]), "warn,e2d::store=trace");
}

#[test]
fn each_mistake_is_named_with_its_place() {
    let f = |name: &str, value: &str, want: &str| {
        assert_eq!(flags(&[(name, value)]).problems(), [format!("flag --{name}: {want}")],);
    };
    f("name", "a b", "expected a name of 1-255 bytes without spaces, commas and equals signs, found \"a b\"");
    f("data-dir", "", "expected a path, found \"\"");
    f("wal-dir", "e2d-data", "expected another directory than e2d-data");
    f("host", "0.0.0.0", "expected an IP address of this machine such as 10.0.0.1 or fd00::1, found \"0.0.0.0\"");
    f(
        "client-addr",
        "10.0.0.1,10.0.0.300",
        "expected an address such as 10.0.0.1:2379, found \"10.0.0.300\": \"10.0.0.300\" is not an IPv4 address",
    );
    f(
        "client-addr",
        "node-a:1",
        "expected an IP address or localhost to listen on instead of the name in node-a:1, found \"node-a:1\"",
    );
    f(
        "listen-client-urls",
        "https://10.0.0.1:2379",
        "expected an address such as 10.0.0.1:2379, found \"https://10.0.0.1:2379\": TLS is not in this \
         version: only http:// addresses are served",
    );
    f("client-addr", "0.0.0.0:1,127.0.0.1:1", "expected distinct addresses, found 0.0.0.0:1 and 127.0.0.1:1");
    f(
        "peer-addr",
        "0.0.0.0:2379",
        "expected an address of its own, found 0.0.0.0:2379, but --client-addr (default) has 127.0.0.1:2379",
    );
    f(
        "listen-metrics-urls",
        "http://127.0.0.1:2380",
        "expected an address of its own, found 127.0.0.1:2380, but --peer-addr (default) has 127.0.0.1:2380",
    );
    f(
        "advertise-client-urls",
        "http://0.0.0.0:2379",
        "expected an address that others can connect to, found 0.0.0.0:2379",
    );
    f("required-cluster-size", "3", "expected 1, found 3: clusters of more than one node are not in this version");
    f("required-cluster-size", "4", "expected 1, 3 or 5, found 4");
    f("required-cluster-size", "three", "expected a whole number from 1 to 5, found \"three\"");
    f(
        "quota-backend-bytes",
        "2 gigs",
        "expected a size such as 2147483648 or 2GiB, 0 for the default, or -1 for no limit, found \"2 gigs\"",
    );
    f(
        "max-request-bytes",
        "99999999999999999999",
        "expected a size from 1 to 2146435071 bytes such as 1572864 or 2MiB, found \"99999999999999999999\"",
    );
    f("heartbeat-interval", "0", "expected milliseconds from 1 to 50000 or a duration such as 500ms, found \"0\"");
    f("election-timeout", "51s", "expected milliseconds from 1 to 50000 or a duration such as 500ms, found \"51s\"");
    f(
        "election-timeout",
        "499",
        "expected at least five times the heartbeat interval, which is 100ms by --heartbeat-interval (default), \
         found 499ms",
    );
    f("grpc-keepalive-interval", "5", "expected a duration such as 500ms, 1m30s or 1h, found \"5\"");
    f("watch-progress-notify-interval", "10us", "expected a duration of at least 1ms, found \"10us\"");
    f("auto-compaction-mode", "hourly", "expected one of periodic, revision, found \"hourly\"");
    f(
        "auto-compaction-retention",
        "-1h",
        "expected a number of hours or a duration such as 5m in mode periodic, set by --auto-compaction-mode \
         (default), found \"-1h\"",
    );
    f(
        "log-level",
        "loud",
        "expected error, warn, info, debug or trace, and optionally parts as in info,e2d::store=debug, found \
         \"loud\"",
    );
    f("unsafe-no-fsync", "true", "is refused: a write is never acknowledged before it is on disk");
    f("snapshot-backup-url", "s3://bucket", "is refused: snapshot backups are not in this version");
    f(
        "ca-cert",
        "x",
        "is refused: TLS is not in this version, and nothing is served in plain text that was asked to be encrypted",
    );

    let two = |told: &[(&str, &str)], want: &str| assert_eq!(flags(told).problems(), [want]);
    two(
        &[("auto-compaction-mode", "revision"), ("auto-compaction-retention", "1h")],
        "flag --auto-compaction-retention: expected a number of revisions in mode revision, set by flag \
         --auto-compaction-mode, found \"1h\"",
    );
    two(
        &[("client-addr", "::1"), ("listen-client-urls", "::1")],
        "flag --listen-client-urls: says again what flag --client-addr says, expected one of them",
    );
    two(
        &[("log-level", "info"), ("verbose", "debug")],
        "flag --verbose: says again what flag --log-level says, expected one of them",
    );
    two(
        &[("log-format", "journald"), ("log-output", "stdout")],
        "flag --log-format: expected text or json for the output stdout, set by flag --log-output, found \
         \"journald\"",
    );
}

#[test]
fn each_mistake_in_the_environment_is_named() {
    let e = |name: &str, value: &str, want: &str| {
        assert_eq!(env(&[(name, value)]).problems(), [format!("environment variable {name}: {want}")],);
    };
    e("E2D_REQUIRED_CLUSTER_SIZE", "abc", "expected a whole number from 1 to 5, found \"abc\"");
    e("E2D_DATADIR", "x", "there is no such setting, did you mean E2D_DATA_DIR?");
    e("E2D_LISTEN_CLIENT_URLS", "x", "there is no such setting, did you mean E2D_CLIENT_ADDR?");
    e("E2D_NONSENSE_AT_ALL", "x", "there is no such setting");
    e(
        "E2D_CA_KEY",
        "x",
        "is refused: TLS is not in this version, and nothing is served in plain text that was asked to be encrypted",
    );
    let broken =
        Process { argv: vec![], env: vec![("E2D_NAME".into(), std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]))] };
    let fragments = Fragments::read(&broken, &[], None, &[]);
    let Err(Invalid(problems)) = Config::resolve(fragments, &machine()) else {
        panic!("nothing is wrong");
    };
    assert_eq!(problems[0].to_string(), "environment variable E2D_NAME: expected UTF-8 text");
}

#[test]
fn empty_variables_and_those_of_kubernetes_are_no_settings() {
    let told = env(&[
        ("E2D_NAME", ""),
        ("E2D_SNAPSHOT_BACKUP_URL", ""),
        ("E2D_SERVICE_HOST", "10.0.0.1"),
        ("E2D_SERVICE_PORT_CLIENT", "2379"),
        ("E2D_PORT", "tcp://10.0.0.1:2379"),
        ("E2D_PORT_2379_TCP_ADDR", "10.0.0.1"),
        ("E2D_CLIENT_SERVICE_HOST", "10.0.0.1"),
        ("PATH", "/bin"),
    ]);
    let resolved = told.resolve_on(&machine()).unwrap();
    assert_eq!(resolved.config, Told::default().config());
    assert_eq!(resolved.notices.len(), 5);
    assert_eq!(
        resolved.notices[0],
        "environment variable E2D_CLIENT_SERVICE_HOST is ignored: Kubernetes sets it for a service called e2d"
    );
}

#[test]
fn each_mistake_in_a_file_is_named_with_its_line() {
    let t = |text: &str, want: &[&str]| assert_eq!(toml(text).problems(), want, "{text}");
    t("\n[node]\nnmae = \"a\"\n", &["e2d.toml:3 node.nmae: there is no such setting, did you mean name?"]);
    t("[nod]\n", &["e2d.toml:1: there is no section \"nod\", did you mean node?"]);
    t("data-dir = \"x\"\n", &["e2d.toml:1: there is no section \"data-dir\", did you mean data-dir in [storage]?"]);
    t("node = 1\n", &["e2d.toml:1: expected the section [node], found a value"]);
    t(
        "[node]\ndata-dir = \"x\"\n",
        &["e2d.toml:2 node.data-dir: there is no such setting, did you mean data-dir in [storage]?"],
    );
    t(
        "[listen]\nlisten-client-urls = \"x\"\n",
        &["e2d.toml:2 listen.listen-client-urls: there is no such setting, did you mean client-addr in [listen]?"],
    );
    t(
        "[storage]\nunsafe-no-fsync = true\n",
        &["e2d.toml:2 storage.unsafe-no-fsync: is refused: a write is never acknowledged before it is on disk"],
    );
    t("[node]\nname = 5\n", &["e2d.toml:2 node.name: expected a string, found the integer 5"]);
    t(
        "[raft]\nsnapshot-count = \"5\"\n",
        &["e2d.toml:2 raft.snapshot-count: expected an integer, found the string \"5\""],
    );
    t(
        "[raft]\nheartbeat-interval = 0.5\n",
        &["e2d.toml:2 raft.heartbeat-interval: expected a string or an integer, found the number 0.5"],
    );
    t(
        "[listen]\nclient-addr = [1]\n",
        &["e2d.toml:2 listen.client-addr: expected a string or an array of strings, found an array with the \
           integer 1"],
    );
    t(
        "[raft]\nsnapshot-count = -5\n",
        &["e2d.toml:2 raft.snapshot-count: expected a whole number from 1 to 18446744073709551615, found \"-5\""],
    );
    t("[node]\nname = \"a\"\nname = \"b\"\n", &["e2d.toml:3: is not valid TOML: duplicate key"]);
    assert!(
        toml("[node\n").problems()[0].starts_with("e2d.toml:1: is not valid TOML: "),
        "{:?}",
        toml("[node\n").problems()
    );
    // A value that the environment overrides is read all the same.
    let told = Told { env: vec![("E2D_MAX_TXN_OPS", "5")], toml: "[limits]\nmax-txn-ops = 0\n", ..Told::default() };
    assert_eq!(
        told.problems(),
        ["e2d.toml:2 limits.max-txn-ops: expected a whole number from 1 to 18446744073709551615, found \"0\""]
    );
}

#[test]
fn all_mistakes_are_named_at_once() {
    let told = Told {
        flags: vec![("metrics", "much"), ("heartbeat-interval", "1s")],
        env: vec![("E2D_HOST", "here"), ("E2D_NAM", "x")],
        toml: "[log]\nlog-levle = \"info\"\n[raft]\nsnapshot-count = true\n",
    };
    assert_eq!(
        told.problems(),
        [
            "e2d.toml:2 log.log-levle: there is no such setting, did you mean log-level?",
            "e2d.toml:4 raft.snapshot-count: expected an integer, found true",
            "environment variable E2D_NAM: there is no such setting, did you mean E2D_NAME?",
            "environment variable E2D_HOST: expected an IP address of this machine such as 10.0.0.1 or fd00::1, \
             found \"here\"",
            "--election-timeout (default): expected at least five times the heartbeat interval, which is 1s by \
             flag --heartbeat-interval, found 1s",
            "flag --metrics: expected one of basic, extensive, found \"much\"",
        ]
    );
}

#[test]
fn what_holds_is_printed_as_a_file_that_says_the_same() {
    let told = Told {
        flags: vec![("name", "quote\"d")],
        env: vec![("E2D_CLIENT_ADDR", "0.0.0.0,[::1]:7"), ("E2D_QUOTA_BACKEND_BYTES", "-1")],
        toml: "[metrics]\nmetrics = \"extensive\"\n",
    };
    let resolved = told.resolve_on(&machine()).unwrap();
    let printed = effective_toml(&resolved.effective);
    assert!(printed.contains("data-dir = \"e2d-data\" # derived\n"), "{printed}");
    assert!(
        printed.contains("client-addr = \"0.0.0.0,[::1]:7\" # environment variable E2D_CLIENT_ADDR\n"),
        "{printed}"
    );
    assert!(printed.contains("e2d.toml:2 metrics.metrics\n"), "{printed}");
    assert_eq!(toml(&printed).config(), resolved.config);
    for row in of_run().filter(|row| row.id != Id::Host) {
        assert!(printed.contains(&format!("\n{} = ", row.name)), "{} in {printed}", row.name);
    }
}

/// A checked-in file that is generated: equal to what would be generated, or rewritten with `UPDATE=1`.
#[track_caller]
pub(crate) fn is_current(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/{name} is not what would be generated; UPDATE=1 rewrites it");
}

#[test]
fn the_documentation_is_current() {
    is_current("configuration.md", &markdown());
    is_current("exit-codes.md", &crate::cli::exit_codes_markdown());
}

proptest! {
    #[test]
    fn no_file_panics(text in ".*") {
        let mut fragments = Fragments::new(Mode::Run);
        fragments.toml(Path::new("e2d.toml"), &text);
        let _ = Config::resolve(fragments, &machine());
    }

    #[test]
    fn no_value_in_a_file_panics(row in 0..SETTINGS.len(), value in r#"[\PC\[\]{}",'=0-9a-z._ \n-]*"#) {
        let row = &SETTINGS[row];
        let mut fragments = Fragments::new(Mode::Run);
        let text = format!("[{}]\n{} = {value}", row.section, row.name);
        fragments.toml(Path::new("e2d.toml"), &text);
        let _ = Config::resolve(fragments, &machine());
    }

    #[test]
    fn no_flag_panics(values in proptest::collection::vec((0..SETTINGS.len(), ".*|[-+0-9a-zA-Zµ.:/,=\\[\\]]*"), 0..4)) {
        let flags: Vec<(String, OsString)> = values
            .into_iter()
            .map(|(row, value)| (SETTINGS[row].name.to_string(), value.into()))
            .collect();
        let fragments = Fragments::read(&Process::default(), &[], None, &flags);
        let _ = Config::resolve(fragments, &machine());
    }

    #[test]
    fn no_environment_panics(name in "E2D_[A-Z_]*|\\PC*", value in proptest::collection::vec(any::<u8>(), 0..20)) {
        let value = std::os::unix::ffi::OsStringExt::from_vec(value);
        let process = Process { argv: vec![], env: vec![(name.into(), value)] };
        // The file that this one would name is nobody's to read.
        prop_assume!(process.env[0].0 != CONFIG_ENV);
        let fragments = Fragments::read(&process, &[], None, &[]);
        let _ = Config::resolve(fragments, &machine());
    }

    #[test]
    fn what_a_duration_says_is_what_it_is_read_as(nanos in 0..i64::MAX as u64) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(duration::parse(&duration::format(duration)), Some(duration));
    }

    #[test]
    fn no_duration_panics(text in "[0-9.nuµmsh]*|.*") {
        let _ = duration::parse(&text);
    }

    #[test]
    fn no_default_changes_by_being_written(row in 0..SETTINGS.len()) {
        let row = setting(SETTINGS[row].id);
        if let (Fallback::Text(text), Some(_)) = (row.default, row.env()) {
            prop_assert_eq!(flags(&[(row.name, text)]).config(), Told::default().config());
        }
    }
}
