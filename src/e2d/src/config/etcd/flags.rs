//! The flags of etcd 3.4 to 3.7 that set nothing here.

use crate::config::duration;
use crate::config::settings::{Fallback, SETTINGS};

/// A flag that sets nothing here.
#[derive(Debug)]
pub(super) struct Foreign {
    /// Without dashes.
    pub(super) name: &'static str,
    /// Older names.
    pub(super) old: &'static [&'static str],
    pub(super) shape: Shape,
    /// etcd's default: who writes it asks for nothing. Empty is always nothing.
    pub(super) default: &'static str,
    pub(super) then: Then,
}

/// What etcd lets a value look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Bool,
    Int,
    Duration,
    Text,
    /// `Name=true,Other=false`.
    Gates,
}

/// What becomes of a value that asks for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The log says so, with this reason.
    NoEffect(&'static str),
    /// The node does not start, for this reason.
    Refused(&'static str),
}

impl Foreign {
    /// Whether a value differs from what etcd does without it. The error is "expected …, found …".
    pub(super) fn asks_for_something(&self, text: &str) -> Result<bool, String> {
        let expected = |what: &str| Err(format!("expected {what}, found {text:?}"));
        match self.shape {
            Shape::Text => Ok(!text.is_empty() && text != self.default),
            Shape::Bool => match go_bool(text) {
                Some(value) => Ok(Some(value) != go_bool(self.default)),
                None => expected("true or false"),
            },
            Shape::Int => match text.parse::<i64>() {
                Ok(value) => Ok(self.default.parse() != Ok(value)),
                Err(_) => expected("a whole number"),
            },
            Shape::Duration => match duration::parse(text) {
                Some(value) => Ok(duration::parse(self.default) != Some(value)),
                None => expected("a duration such as 500ms, 1m30s or 1h"),
            },
            Shape::Gates => {
                let mut asks = false;
                for gate in text.split(',').map(str::trim).filter(|gate| !gate.is_empty()) {
                    let (name, value) = gate.split_once('=').unwrap_or((gate, ""));
                    let Some((_, default)) = GATES.iter().find(|(known, _)| *known == name) else {
                        let hint = crate::config::source::did_you_mean(name, GATES.iter().map(|(name, _)| *name));
                        return Err(format!("unrecognized feature gate: {name}{hint}"));
                    };
                    match go_bool(value) {
                        Some(value) => asks |= value != *default,
                        None => return expected(&format!("{name}=true or {name}=false")),
                    }
                }
                Ok(asks)
            }
        }
    }
}

/// Reads a boolean as Go does.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The feature gates of etcd 3.6 and 3.7 with their defaults.
const GATES: &[(&str, bool)] = &[
    ("AllAlpha", false),
    ("AllBeta", false),
    ("CompactHashCheck", false),
    ("FastLeaseKeepAlive", true),
    ("InitialCorruptCheck", false),
    ("LeaseCheckpoint", false),
    ("LeaseCheckpointPersist", false),
    ("PriorityRequest", false),
    ("SetMemberLocalAddr", false),
    ("StopGRPCServiceOnDefrag", false),
    ("TxnModeWriteWithSharedBuffer", true),
];

const TLS: &str = "TLS is not in this version, and nothing is served in plain text that was asked to be encrypted";
const DISCOVERY: &str = "discovery of other nodes is not in this version";
const ONE_NODE: &str = "there is one node in this version";
const BBOLT: &str = "the store is not bbolt";
const SNAPSHOTS: &str = "the write-ahead log is cut by the store's own progress";
const V2: &str = "the v2 API is not served";
const CHECKSUMS: &str = "every record is verified whenever it is read";
const LEASES: &str = "leases start anew with a new leader in this version";
const GO: &str = "there is no Go runtime";
const TRACING: &str = "traces are not exported in this version";
const LOGS: &str = "the log goes to one stream, whose reader rotates it";
const AUTH: &str = "the authentication of users has no settings in this version";
const RESTRICTION: &str = "this restriction is not in this version, and nobody is let in who was asked to be kept out";
const V2_PROXY: &str = "the v2 proxy is gone from etcd as well";

macro_rules! foreign {
    ($($name:literal $([$($old:literal),+])? $shape:ident $default:literal $then:ident($why:expr);)*) => {
        /// Every such flag, in the order of etcd's `--help`.
        pub(super) static FOREIGN: &[Foreign] = &[$(Foreign {
            name: $name,
            old: &[$($($old),+)?],
            shape: Shape::$shape,
            default: $default,
            then: Then::$then($why),
        }),*];
    };
}

foreign! {
    // Member.
    "initial-election-tick-advance" Bool "true" NoEffect("a single node elects itself at once");
    "max-snapshots" Int "5" NoEffect(SNAPSHOTS);
    "max-wals" Int "5" NoEffect(SNAPSHOTS);
    "memory-mlock" ["experimental-memory-mlock"] Bool "false" NoEffect("pages of the store belong to the kernel's cache");
    "backend-bbolt-freelist-type" ["experimental-backend-bbolt-freelist-type"] Text "map" NoEffect(BBOLT);
    "backend-batch-interval" Duration "0s" NoEffect(BBOLT);
    "backend-batch-limit" Int "0" NoEffect(BBOLT);
    "socket-reuse-port" Bool "false" NoEffect("a port is never shared with another process");
    "socket-reuse-address" Bool "false" NoEffect("addresses are always reused after a restart");
    "enable-grpc-gateway" Bool "true" NoEffect("there are no JSON paths in this version");
    "grpc-keepalive-min-time" Duration "5s" NoEffect("clients may ping as often as they like");
    "raft-read-timeout" Duration "5s" NoEffect(ONE_NODE);
    "raft-write-timeout" Duration "5s" NoEffect(ONE_NODE);
    "feature-gates" Gates "" NoEffect("nothing here hides behind a feature gate");
    // Clustering.
    "discovery" Text "" Refused(DISCOVERY);
    "discovery-token" Text "" Refused(DISCOVERY);
    "discovery-endpoints" Text "" Refused(DISCOVERY);
    "discovery-dial-timeout" Duration "2s" NoEffect(DISCOVERY);
    "discovery-request-timeout" Duration "5s" NoEffect(DISCOVERY);
    "discovery-keepalive-time" Duration "2s" NoEffect(DISCOVERY);
    "discovery-keepalive-timeout" Duration "6s" NoEffect(DISCOVERY);
    "discovery-insecure-transport" Bool "true" NoEffect(DISCOVERY);
    "discovery-insecure-skip-tls-verify" Bool "false" NoEffect(DISCOVERY);
    "discovery-cert" Text "" NoEffect(DISCOVERY);
    "discovery-key" Text "" NoEffect(DISCOVERY);
    "discovery-cacert" Text "" NoEffect(DISCOVERY);
    "discovery-user" Text "" NoEffect(DISCOVERY);
    "discovery-password" Text "" NoEffect(DISCOVERY);
    "discovery-fallback" Text "exit" NoEffect(DISCOVERY);
    "discovery-proxy" Text "" NoEffect(DISCOVERY);
    "discovery-srv" Text "" Refused(DISCOVERY);
    "discovery-srv-name" Text "" NoEffect(DISCOVERY);
    "strict-reconfig-check" Bool "true" NoEffect("a change of members that would lose the quorum is always refused");
    "pre-vote" Bool "true" NoEffect("pre-vote is always on");
    "v2-deprecation" Text "write-only" NoEffect(V2);
    "enable-v2" Bool "false" NoEffect(V2);
    "experimental-enable-v2v3" Text "" NoEffect(V2);
    // Security.
    "cert-file" Text "" Refused(TLS);
    "key-file" Text "" Refused(TLS);
    "client-cert-auth" Bool "false" Refused(TLS);
    "client-cert-file" Text "" Refused(TLS);
    "client-key-file" Text "" Refused(TLS);
    "client-crl-file" Text "" Refused(TLS);
    "client-cert-allowed-hostname" Text "" Refused(TLS);
    "trusted-ca-file" Text "" Refused(TLS);
    "auto-tls" Bool "false" Refused(TLS);
    "peer-cert-file" Text "" Refused(TLS);
    "peer-key-file" Text "" Refused(TLS);
    "peer-client-cert-auth" Bool "false" Refused(TLS);
    "peer-client-cert-file" Text "" Refused(TLS);
    "peer-client-key-file" Text "" Refused(TLS);
    "peer-trusted-ca-file" Text "" Refused(TLS);
    "peer-cert-allowed-cn" Text "" Refused(TLS);
    "peer-cert-allowed-hostname" Text "" Refused(TLS);
    "peer-auto-tls" Bool "false" Refused(TLS);
    "peer-crl-file" Text "" Refused(TLS);
    "self-signed-cert-validity" Int "1" Refused(TLS);
    "cipher-suites" Text "" Refused(TLS);
    "tls-min-version" Text "TLS1.2" Refused(TLS);
    "tls-max-version" Text "" Refused(TLS);
    "peer-skip-client-san-verification" ["experimental-peer-skip-client-san-verification"] Bool "false" Refused(TLS);
    "cors" Text "*" Refused(RESTRICTION);
    "host-whitelist" Text "*" Refused(RESTRICTION);
    // Auth.
    "auth-token" Text "simple" Refused("only simple tokens are in this version");
    "bcrypt-cost" Int "10" NoEffect(AUTH);
    "auth-token-ttl" Int "300" NoEffect(AUTH);
    // Profiling, logging and tracing.
    "enable-pprof" Bool "false" NoEffect(GO);
    "logger" Text "zap" NoEffect("there is one logger");
    "enable-log-rotation" Bool "false" NoEffect(LOGS);
    "log-rotation-config-json" Text r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"# NoEffect(LOGS);
    "log-package-levels" Text "" NoEffect("parts of the log have levels of their own by --log-level");
    "debug" Bool "false" NoEffect("it is --log-level=debug since etcd 3.5");
    "enable-distributed-tracing" ["experimental-enable-distributed-tracing"] Bool "false" NoEffect(TRACING);
    "distributed-tracing-address" ["experimental-distributed-tracing-address"] Text "localhost:4317" NoEffect(TRACING);
    "distributed-tracing-service-name" ["experimental-distributed-tracing-service-name"] Text "etcd" NoEffect(TRACING);
    "distributed-tracing-instance-id" ["experimental-distributed-tracing-instance-id"] Text "" NoEffect(TRACING);
    "distributed-tracing-sampling-rate" ["experimental-distributed-tracing-sampling-rate"] Int "0" NoEffect(TRACING);
    // Tuning.
    "experimental-initial-corrupt-check" Bool "false" NoEffect(CHECKSUMS);
    "corrupt-check-time" ["experimental-corrupt-check-time"] Duration "0s" NoEffect(ONE_NODE);
    "experimental-compact-hash-check-enabled" Bool "false" NoEffect(ONE_NODE);
    "compact-hash-check-time" ["experimental-compact-hash-check-time"] Duration "1m" NoEffect(ONE_NODE);
    "experimental-enable-lease-checkpoint" Bool "false" NoEffect(LEASES);
    "experimental-enable-lease-checkpoint-persist" Bool "false" NoEffect(LEASES);
    "experimental-txn-mode-write-with-shared-buffer" Bool "true" NoEffect(BBOLT);
    "bootstrap-defrag-threshold-megabytes" ["experimental-bootstrap-defrag-threshold-megabytes"] Int "0" NoEffect("free pages are used again without defragmentation");
    "max-learners" Int "1" NoEffect(ONE_NODE);
    "downgrade-check-time" ["experimental-downgrade-check-time"] Duration "5s" NoEffect(ONE_NODE);
    "snapshot-catchup-entries" ["experimental-snapshot-catchup-entries"] Int "5000" NoEffect(ONE_NODE);
    "experimental-stop-grpc-service-on-defrag" Bool "false" NoEffect("a defragmentation does not stop the service");
    // Unsafe.
    "force-new-cluster" Bool "false" Refused("turning a member into a cluster of its own is not in this version");
    "unsafe-no-fsync" Bool "false" NoEffect("a write is never acknowledged before it is on disk");
    // The v2 proxy of etcd 3.4.
    "proxy" Text "off" Refused(V2_PROXY);
    "proxy-failure-wait" Int "5000" NoEffect(V2_PROXY);
    "proxy-refresh-interval" Int "30000" NoEffect(V2_PROXY);
    "proxy-dial-timeout" Int "1000" NoEffect(V2_PROXY);
    "proxy-write-timeout" Int "5000" NoEffect(V2_PROXY);
    "proxy-read-timeout" Int "0" NoEffect(V2_PROXY);
}

/// The text of `--help`.
pub(super) fn usage() -> String {
    let mut text = String::from(
        "Usage:\n\n  \
         etcd [flags]\n    Start a node.\n\n  \
         etcd --version\n    Show the versions of etcd's API and of e2d.\n\n  \
         etcd -h | --help\n    Show this text.\n\n  \
         etcd --config-file FILE\n    Read the settings from a YAML file of etcd; other flags and ETCD_* variables are ignored then.\n\n\
         Every flag has an environment variable: ETCD_ and its name in upper snake case.\n\n\
         Flags:\n",
    );
    for row in SETTINGS {
        if row.etcd.is_empty() {
            continue;
        }
        let default = match row.default {
            Fallback::Text(text) => format!("'{text}'"),
            Fallback::Derived(text) => format!("({text})"),
        };
        text.push_str(&format!("  --{} {default}\n    {}\n", row.etcd, row.help));
    }
    let group = |text: &mut String, title: &str, wanted: fn(&Then) -> bool| {
        text.push_str(&format!("\n{title}:\n"));
        for row in FOREIGN.iter().filter(|row| wanted(&row.then)) {
            let (Then::NoEffect(why) | Then::Refused(why)) = row.then;
            text.push_str(&format!("  --{}\n    {why}\n", row.name));
        }
    };
    group(&mut text, "Accepted without effect", |then| matches!(then, Then::NoEffect(_)));
    group(&mut text, "Refused unless the value is etcd's default", |then| matches!(then, Then::Refused(_)));
    text
}

/// The part of docs/configuration.md about etcd's command line.
pub fn markdown() -> String {
    let mut text = String::from(HEAD);
    text.push_str("\n| flag | older names | setting |\n|---|---|---|\n");
    for row in SETTINGS.iter().filter(|row| !row.etcd.is_empty()) {
        let setting = match row.key() {
            Some(key) => format!("`{key}`"),
            None => row.help.to_string(),
        };
        text.push_str(&format!("| `--{}` | {} | {setting} |\n", row.etcd, listed(row.etcd_old)));
    }
    let group = |text: &mut String, wanted: fn(&Then) -> bool| {
        text.push_str("\n| flag | older names | why |\n|---|---|---|\n");
        for row in FOREIGN.iter().filter(|row| wanted(&row.then)) {
            let (Then::NoEffect(why) | Then::Refused(why)) = row.then;
            text.push_str(&format!("| `--{}` | {} | {why} |\n", row.name, listed(row.old)));
        }
    };
    text.push_str("\nAccepted without effect; the log says so once for each that is given:\n");
    group(&mut text, |then| matches!(then, Then::NoEffect(_)));
    text.push_str("\nRefused unless the value is etcd's default:\n");
    group(&mut text, |then| matches!(then, Then::Refused(_)));
    text
}

fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`--{name}`")).collect();
    names.join(", ")
}

const HEAD: &str = "
## etcd's command line

`e2d etcd`, or this binary under the name `etcd`, takes the flags of etcd 3.4 to 3.7 with one dash or two, `ETCD_*`
variables, and the YAML file of `--config-file` or `ETCD_CONFIG_FILE`. As in etcd, a flag and a variable for the same
thing end the start, unknown variables and unknown YAML keys are only warned about, a configuration file makes all flags
and variables ignored (the log names them), and `--advertise-client-urls` is required where `--listen-client-urls` is
given. Wrong values end the start with exit code 2, all at once. `E2D_*` variables and TOML files are not read.

These flags set something:
";
