//! etcdctl against etcd and against the server under test: the same commands print the same text.
//!
//! Every variable `E2D_ETCDCTL_<anything>` names one etcdctl to try. Ids, times and sizes are masked.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::client::PATIENCE;
use crate::server::{Server, skip};

const FORMATS: [&str; 4] = ["simple", "json", "fields", "table"];
/// A lease that every run grants by itself, because etcdctl cannot choose the id. The second is how etcdctl writes it.
const LEASE: i64 = 0x7000_0000_0000_0001;
const LEASE_HEX: &str = "7000000000000001";

/// One command line. An input is what a transaction is written in.
struct Line {
    args: Vec<&'static str>,
    input: &'static str,
}

fn line(args: &'static str) -> Line {
    Line { args: args.split(' ').map(|arg| if arg == "''" { "" } else { arg }).collect(), input: "" }
}

/// What is run in every format, in this order.
fn script() -> Vec<Line> {
    let transaction = |input| Line { args: vec!["txn"], input };
    let mut lines: Vec<Line> = [
        "put a 1",
        "put a 2 --prev-kv",
        "put ab x",
        "put b 3 --lease=7000000000000001",
        "put b --ignore-value",
        "put b 4 --ignore-lease",
        "put new --ignore-value",
        "put c 5 --lease=1",
        "get a",
        "get a --hex",
        "get nothing",
        "get ''",
        "get a b",
        "get b a",
        "get a --prefix",
        "get a --from-key",
        "get a --prefix --keys-only",
        "get a --prefix --print-value-only",
        "get a --prefix --limit=1",
        "get a --prefix --order=DESCEND --sort-by=MODIFY",
        "get a --prefix --order=ASCEND --sort-by=VERSION",
        "get a --rev=99999",
        "get a --rev=2",
        "get a --consistency=s",
    ]
    .map(line)
    .into();
    lines.push(transaction("value(\"a\") = \"2\"\nversion(\"b\") > \"0\"\n\nput x 1\nget x\ndel ab\n\nget a\n\n"));
    lines.push(transaction("mod(\"a\") = \"0\"\n\nput never 1\n\nget a\nput y 1\n\n"));
    lines.push(transaction("\nput twice 1\nput twice 2\n\n\n"));
    lines.extend(
        [
            "del nothing",
            "del y --prev-kv",
            "put d/1 1",
            "put d/2 2",
            "del d/ --prefix --prev-kv",
            "del x",
            "lease timetolive 7000000000000001",
            "lease timetolive 7000000000000001 --keys",
            "lease timetolive 123",
            "lease list",
            "lease keep-alive --once 7000000000000001",
            "lease keep-alive --once 123",
            "lease revoke 123",
            "compaction 99999",
            "compaction 4",
            "compaction 4",
            "compaction 5 --physical",
            "get a --rev=2",
            "alarm list",
            "alarm disarm",
            "member list",
            "endpoint health",
            "endpoint status",
            "endpoint hashkv",
            "defrag",
            "lease revoke 7000000000000001",
            "get b",
        ]
        .map(line),
    );
    lines
}

/// One server and the place where etcdctl runs.
struct Place {
    server: Server,
    dir: TempDir,
}

impl Place {
    fn new(server: Server) -> Place {
        Place { server, dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn command(&self, etcdctl: &Path, args: &[&str], format: &str) -> Command {
        let mut command = Command::new(etcdctl);
        command
            .args(["--endpoints", &self.server.address(), "-w", format])
            .args(args)
            .env_clear()
            .env("ETCDCTL_API", "3")
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, etcdctl: &Path, args: &[&str], input: &str, format: &str) -> Output {
        let mut child = self.command(etcdctl, args, format).spawn().expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input.as_bytes()).await.expect("etcdctl reads its input");
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output()).await;
        output.unwrap_or_else(|_| panic!("etcdctl {args:?} did not end")).expect("etcdctl runs")
    }

    /// What was printed, masked, and whether it went well.
    async fn told(&self, etcdctl: &Path, line: &Line, format: &str) -> Told {
        let output = self.run(etcdctl, &line.args, line.input, format).await;
        Told {
            success: output.status.success(),
            stdout: mask(&self.without_addresses(&output.stdout), format, line.args[0]),
            stderr: errors(&self.without_addresses(&output.stderr)),
        }
    }

    fn without_addresses(&self, output: &[u8]) -> String {
        let text = String::from_utf8_lossy(output);
        text.replace(&self.server.address(), "ADDRESS").replace(&self.server.peer_address(), "PEER")
    }

    /// What a watch from the first revision on tells, up to and with the event of the key `end`.
    async fn watched(&self, etcdctl: &Path, format: &str, flags: &[&str]) -> Vec<String> {
        let args = [&["watch", "", "--prefix", "--rev=6"][..], flags].concat();
        let mut child = self.command(etcdctl, &args, format).spawn().expect("etcdctl starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut told = Vec::new();
        loop {
            let next = timeout(PATIENCE, lines.next_line()).await;
            let line = next.unwrap_or_else(|_| panic!("etcdctl watch told only {told:?}")).expect("text");
            let line = line.unwrap_or_else(|| panic!("etcdctl watch ended after {told:?}"));
            // As text, and as the base64 of JSON.
            let end = line.contains("the-end") || line.contains("dGhlLWVuZA==");
            told.push(line);
            if end {
                break;
            }
        }
        child.kill().await.expect("etcdctl is ours");
        // Events are grouped into responses by chance while a watch catches up, so only JSON is flattened.
        let text = self.without_addresses(told.join("\n").as_bytes());
        if format == "json" { json_events(&text) } else { mask(&text, format, "watch") }
    }
}

#[derive(Debug, PartialEq)]
struct Told {
    success: bool,
    stdout: Vec<String>,
    stderr: Vec<String>,
}

/// The events of a stream of JSON responses, one a line.
fn json_events(text: &str) -> Vec<String> {
    let responses =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    responses
        .flat_map(|response| response["Events"].as_array().cloned().unwrap_or_default())
        .map(|event| event.to_string())
        .collect()
}

/// The lines of standard error without the log of the client library, which tells times and internals, and without the
/// stack of an etcdctl that panics.
fn errors(text: &str) -> Vec<String> {
    let text = text.split_once("\ngoroutine ").map_or(text, |(before, _)| before);
    let lines = text.lines().filter(|line| !line.starts_with("{\"level\"") && !line.trim().is_empty());
    lines.map(|line| mask_words(line, false)).collect()
}

/// The lines of an output, with everything replaced that two servers cannot have in common.
fn mask(text: &str, format: &str, command: &str) -> Vec<String> {
    // What `endpoint` tells without names is about sizes and indexes.
    let numbers = command == "endpoint";
    match format {
        "json" => text
            .lines()
            .map(|line| match serde_json::from_str::<Value>(line) {
                Ok(mut value) => {
                    mask_json(&mut value);
                    value.to_string()
                }
                Err(_) => mask_words(line, false),
            })
            .collect(),
        "fields" => text.lines().map(mask_field).collect(),
        "table" => mask_table(text),
        _ => text.lines().map(|line| mask_words(line, numbers)).collect(),
    }
}

/// Names in JSON, of fields, and heads of tables without spaces, in lower case.
fn is_masked(name: &str) -> bool {
    let name: String = name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    matches!(
        name.as_str(),
        "clusterid"
            | "memberid"
            | "id"
            | "raftterm"
            | "raftindex"
            | "raftappliedindex"
            | "dbsize"
            | "dbsizeinuse"
            | "inuse"
            | "percentagenotinuse"
            | "leader"
            | "hash"
            | "hashrevision"
            | "compactrevision"
            | "took"
            | "ttl"
            | "endpoint"
            | "clientaddrs"
            | "peeraddrs"
            | "peerurls"
            | "clienturls"
            | "peerurl"
            | "clienturl"
            | "compactedrevision"
            | "compactrev"
            | "compactedrev"
    )
}

fn mask_json(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                // `leases` and members hold their ids deeper inside.
                if is_masked(name) && !value.is_object() {
                    *value = Value::from("MASKED");
                } else {
                    mask_json(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(mask_json),
        Value::String(text) => *text = mask_words(text, false),
        _ => {}
    }
}

/// `"Name" : value`
fn mask_field(line: &str) -> String {
    match line.split_once(" :") {
        Some((name, _)) if is_masked(name) => format!("{name} : MASKED"),
        _ => mask_words(line, false),
    }
}

/// The cells of a table, without borders, whose width follows the widest id.
fn mask_table(text: &str) -> Vec<String> {
    let mut heads: Option<Vec<String>> = None;
    let mut lines = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('+')) {
        let Some(row) = line.strip_prefix('|') else {
            lines.push(mask_words(line, false));
            continue;
        };
        let cells: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        let Some(heads) = &heads else {
            lines.push(cells.join("|"));
            heads = Some(cells);
            continue;
        };
        let masked = cells.iter().zip(heads).map(|(cell, head)| {
            if is_masked(head) && !cell.is_empty() { "MASKED".to_owned() } else { mask_words(cell, false) }
        });
        lines.push(masked.collect::<Vec<_>>().join("|"));
    }
    lines
}

/// Masks ids, durations and sizes wherever they stand, and all numbers if asked to.
fn mask_words(text: &str, numbers: bool) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_alphanumeric() || c == '.' || c == 'µ' {
            word.push(c);
            continue;
        }
        masked.push_str(mask_word(&word, numbers));
        word.clear();
        masked.push(c);
    }
    masked.pop();
    // A size is a number and a unit.
    masked.replace("NUMBER kB", "SIZE").replace("NUMBER MB", "SIZE").replace("NUMBER B", "SIZE")
}

fn mask_word(word: &str, numbers: bool) -> &str {
    let digits = word.trim_end_matches(char::is_alphabetic);
    let unit = &word[digits.len()..];
    let is_number = !digits.is_empty() && digits.parse::<f64>().is_ok();
    if word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit()) {
        return "ID";
    }
    if is_number && matches!(unit, "ns" | "µs" | "ms" | "s" | "m") {
        return "TIME";
    }
    if word.starts_with("3.6.") && is_number_of_version(word) {
        return "3.6.PATCH";
    }
    if numbers && is_number { "NUMBER" } else { word }
}

fn is_number_of_version(word: &str) -> bool {
    word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Every etcdctl that the environment names.
fn etcdctls() -> BTreeMap<String, PathBuf> {
    let named = env::vars_os().filter_map(|(name, path)| Some((name.into_string().ok()?, PathBuf::from(path))));
    named.filter(|(name, path)| name.starts_with("E2D_ETCDCTL_") && !path.as_os_str().is_empty()).collect()
}

#[tokio::test]
async fn etcdctl_prints_what_it_prints_with_etcd() {
    let etcdctls = etcdctls();
    if etcdctls.is_empty() {
        return skip("no variable E2D_ETCDCTL_<version> names an etcdctl");
    }
    let mut differences = Vec::new();
    for (name, etcdctl) in &etcdctls {
        let Some(reference) = Server::reference(&[]).await else {
            return;
        };
        let Some(subject) = Server::target(&[]).await else {
            return;
        };
        let (reference, subject) = (Place::new(reference), Place::new(subject));
        let mut compared = 0;
        for format in FORMATS {
            for place in [&reference, &subject] {
                let granted = place.server.client().await.grant(LEASE, 600).await.expect("granted");
                assert_eq!(format!("{:x}", granted.id), LEASE_HEX);
            }
            for line in script() {
                let (expected, found) =
                    tokio::join!(reference.told(etcdctl, &line, format), subject.told(etcdctl, &line, format));
                compared += 1;
                if expected != found {
                    differences
                        .push(format!("{name} -w {format} {:?}\n  etcd: {expected:?}\n  here: {found:?}", line.args));
                }
            }
        }
        // Lease ids are random, so granting stands apart.
        for format in FORMATS {
            let grant = line("lease grant 600");
            let (expected, found) =
                tokio::join!(reference.told(etcdctl, &grant, format), subject.told(etcdctl, &grant, format));
            compared += 1;
            if expected != found || (!expected.success && format != "table") {
                differences.push(format!("{name} -w {format} lease grant\n  etcd: {expected:?}\n  here: {found:?}"));
            }
        }
        for place in [&reference, &subject] {
            place.server.client().await.put_ok("the-end", "the-end").await;
        }
        for (format, flags) in FORMATS.iter().flat_map(|format| [(format, &[][..]), (format, &["--prev-kv"][..])]) {
            if *format == "table" {
                continue; // No etcdctl prints a watch as a table.
            }
            let (expected, found) =
                tokio::join!(reference.watched(etcdctl, format, flags), subject.watched(etcdctl, format, flags));
            compared += 1;
            if expected != found {
                differences
                    .push(format!("{name} -w {format} watch {flags:?}\n  etcd: {expected:?}\n  here: {found:?}"));
            }
        }
        println!("{name}: {compared} outputs compared");
    }
    assert!(differences.is_empty(), "{} outputs differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn masking_keeps_what_matters() {
    assert_eq!(mask_words("lease 694d9b9e2a5d1c06 granted with TTL(600s)", false), "lease ID granted with TTL(TIME)");
    assert_eq!(
        mask_words("took = 1.234567ms, 20 kB, 3.6.14, rev 12", true),
        "took = TIME, SIZE, 3.6.PATCH, rev NUMBER"
    );
    assert_eq!(mask_words("key the-end abc 12", false), "key the-end abc 12");
    assert_eq!(mask_field(r#""MemberID" : 99"#), r#""MemberID" : MASKED"#);
    assert_eq!(mask_field(r#""Revision" : 99"#), r#""Revision" : 99"#);
    let table = "+----+---+\n| ID | A |\n+----+---+\n| 12 | 3 |\n+----+---+";
    assert_eq!(mask_table(table), ["ID|A|", "MASKED|3|"]);
}
