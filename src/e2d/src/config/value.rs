//! What a setting's text may look like, and what it becomes.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::{self, Endpoint};
use super::{LogFilter, duration};

/// The shape of a setting's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A member's name: one word without `=`, `,` or control characters, since `--initial-cluster` is made of names.
    Name,
    /// Any text without line breaks.
    Text,
    /// A file system path.
    Path,
    /// A whole number.
    Count {
        /// Smallest value accepted.
        min: u64,
        /// Largest value accepted.
        max: u64,
    },
    /// A size in bytes: `1048576` or `1MiB`.
    Bytes {
        /// Smallest value accepted, in bytes.
        min: u64,
        /// Largest value accepted, in bytes.
        max: u64,
    },
    /// A size in bytes where zero means the default and a negative number means no limit.
    Quota,
    /// A duration in Go's notation.
    Duration {
        /// Smallest value accepted.
        min: Duration,
    },
    /// A duration in Go's notation, or a bare integer of milliseconds.
    Millis {
        /// Largest value accepted.
        max: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A log level, optionally followed by levels for parts: `info,e2d::store=debug`.
    Level,
    /// A literal IP address.
    Ip,
    /// A comma list of addresses of this machine to listen on.
    Listen {
        /// The port where none is written.
        port: u16,
    },
    /// A comma list of addresses that others are told.
    Advertise {
        /// The port where none is written.
        port: u16,
    },
    /// `0`, a number of revisions, or a duration whose bare integer means hours, according to the compaction mode.
    Retention,
    /// A comma list of `name=address`.
    Members,
}

/// A setting's value after parsing. Which variant follows from the [`Kind`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Path(PathBuf),
    Count(u64),
    Quota(Option<u64>),
    Duration(Duration),
    Choice(&'static str),
    Level(LogFilter),
    Ip(IpAddr),
    Endpoints(Vec<Endpoint>),
    Members(Vec<(String, Endpoint)>),
}

/// The space that a store may take when nobody says otherwise, as in etcd.
pub(super) const DEFAULT_QUOTA: u64 = 2 << 30;

impl Kind {
    /// Reads a value. The error is "expected …, found …", ready to follow the name of its source.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let expected = |what: &dyn fmt::Display| format!("expected {what}, found {text:?}");
        match self {
            Kind::Name => {
                let bad = |c: char| c == '=' || c == ',' || c.is_whitespace() || c.is_control();
                if text.is_empty() || text.contains(bad) || text.len() > 255 {
                    return Err(expected(
                        &"a name of 1-255 bytes without spaces, commas and equals signs",
                    ));
                }
                Ok(Value::Text(text.into()))
            }
            Kind::Text => {
                if text.contains(char::is_control) {
                    return Err(expected(&"text without control characters"));
                }
                Ok(Value::Text(text.into()))
            }
            Kind::Path => {
                if text.is_empty() || text.contains('\0') {
                    return Err(expected(&"a path"));
                }
                Ok(Value::Path(text.into()))
            }
            Kind::Count { min, max } => whole(text)
                .filter(|n| (min..=max).contains(n))
                .map(Value::Count)
                .ok_or_else(|| expected(&format!("a whole number from {min} to {max}"))),
            Kind::Bytes { min, max } => bytes(text)
                .filter(|n| (min..=max).contains(n))
                .map(Value::Count)
                .ok_or_else(|| {
                    expected(&format!(
                        "a size from {min} to {max} bytes such as 1572864 or 2MiB"
                    ))
                }),
            Kind::Quota => match text.strip_prefix('-').map(whole) {
                Some(Some(below)) if below > 0 => Ok(Value::Quota(None)),
                _ => match bytes(text) {
                    Some(0) => Ok(Value::Quota(Some(DEFAULT_QUOTA))),
                    Some(size) => Ok(Value::Quota(Some(size))),
                    None => Err(expected(
                        &"a size such as 2147483648 or 2GiB, 0 for the default, or -1 for no limit",
                    )),
                },
            },
            Kind::Duration { min } => {
                let found = duration::parse(text)
                    .ok_or_else(|| expected(&"a duration such as 500ms, 1m30s or 1h"))?;
                if found < min {
                    return Err(expected(&format!(
                        "a duration of at least {}",
                        duration::format(min)
                    )));
                }
                Ok(Value::Duration(found))
            }
            Kind::Millis { max } => whole(text)
                .and_then(|ms| ms.checked_mul(1_000_000))
                .map(Duration::from_nanos)
                .or_else(|| duration::parse(text))
                .filter(|found| (Duration::from_millis(1)..=max).contains(found))
                .map(Value::Duration)
                .ok_or_else(|| {
                    expected(&format!(
                        "milliseconds from 1 to {} or a duration such as 500ms",
                        max.as_millis()
                    ))
                }),
            Kind::Choice(words) => words
                .iter()
                .find(|word| **word == text)
                .map(|word| Value::Choice(word))
                .ok_or_else(|| expected(&format!("one of {}", words.join(", ")))),
            Kind::Level => LogFilter::parse(text).map(Value::Level).ok_or_else(|| {
                expected(
                    &"error, warn, info, debug or trace, and optionally parts as in info,e2d::store=debug",
                )
            }),
            Kind::Ip => text
                .parse::<IpAddr>()
                .ok()
                .filter(|ip| !ip.is_unspecified() && !ip.is_multicast())
                .map(Value::Ip)
                .ok_or_else(|| expected(&"an IP address of this machine such as 10.0.0.1 or fd00::1")),
            Kind::Listen { port } => {
                let found = endpoints(text, port)?;
                match found.iter().find(|e| e.bind_address().is_none()) {
                    Some(name) => Err(expected(&format!(
                        "an IP address or localhost to listen on instead of the name in {name}"
                    ))),
                    None => Ok(Value::Endpoints(found)),
                }
            }
            Kind::Advertise { port } => endpoints(text, port).map(Value::Endpoints),
            // What it means depends on the mode, so resolve() reads it.
            Kind::Retention => Ok(Value::Text(text.into())),
            Kind::Members => members(text).map(Value::Members),
        }
    }

    /// The name of the shape in documentation.
    pub fn describe(self) -> String {
        match self {
            Kind::Name => "name".into(),
            Kind::Text => "text".into(),
            Kind::Path => "path".into(),
            Kind::Count { max: u64::MAX, .. } => "number".into(),
            Kind::Count { min, max } => format!("number, {min}-{max}"),
            Kind::Bytes { .. } => "size".into(),
            Kind::Quota => "size".into(),
            Kind::Duration {
                min: Duration::ZERO,
            } => "duration".into(),
            Kind::Duration { min } => format!("duration, at least {}", duration::format(min)),
            Kind::Millis { .. } => "milliseconds or duration".into(),
            Kind::Choice(words) => words.join(" \\| "),
            Kind::Level => "log level".into(),
            Kind::Ip => "IP address".into(),
            Kind::Listen { port } | Kind::Advertise { port } => {
                format!("list of addresses, port {port} where none is given")
            }
            Kind::Retention => "number or duration".into(),
            Kind::Members => "list of name=address".into(),
        }
    }

    /// The placeholder after the flag in `--help`.
    pub fn placeholder(self) -> &'static str {
        match self {
            Kind::Name => "NAME",
            Kind::Text => "TEXT",
            Kind::Path => "PATH",
            Kind::Count { .. } => "N",
            Kind::Bytes { .. } | Kind::Quota => "BYTES",
            Kind::Duration { .. } => "DURATION",
            Kind::Millis { .. } => "MS",
            Kind::Choice(_) => "WORD",
            Kind::Level => "LEVEL",
            Kind::Ip => "IP",
            Kind::Listen { .. } | Kind::Advertise { .. } => "ADDR,…",
            Kind::Retention => "N|DURATION",
            Kind::Members => "NAME=ADDR,…",
        }
    }

    /// Whether a TOML or YAML file may write the value as a list.
    pub(super) fn is_list(self) -> bool {
        matches!(
            self,
            Kind::Listen { .. } | Kind::Advertise { .. } | Kind::Members
        )
    }

    /// Whether a TOML file may write the value as a bare integer.
    pub(super) fn is_number(self) -> bool {
        matches!(
            self,
            Kind::Count { .. }
                | Kind::Bytes { .. }
                | Kind::Quota
                | Kind::Millis { .. }
                | Kind::Retention
        )
    }

    /// Whether a TOML file may write the value as a string.
    pub(super) fn is_text(self) -> bool {
        !matches!(self, Kind::Count { .. })
    }
}

/// A decimal number without sign.
fn whole(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A decimal number of bytes with an optional unit, powers of 1024 with an i as in `KiB` and of 1000 without.
fn bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start_matches(' ').to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    whole(number)?.checked_mul(unit)
}

fn endpoints(text: &str, port: u16) -> Result<Vec<Endpoint>, String> {
    text.split(',')
        .map(|one| {
            endpoint::parse(one.trim(), port).map_err(|why| {
                format!("expected an address such as 10.0.0.1:{port}, found {one:?}: {why}")
            })
        })
        .collect()
}

fn members(text: &str) -> Result<Vec<(String, Endpoint)>, String> {
    text.split(',')
        .map(|one| {
            let found = |why: &str| format!("expected name=http://host:2380, found {one:?}: {why}");
            let (name, url) = one
                .trim()
                .split_once('=')
                .ok_or_else(|| found("there is no equals sign"))?;
            if name.is_empty() {
                return Err(found("the name is empty"));
            }
            let at = endpoint::parse(url, 2380).map_err(|why| found(&why))?;
            Ok((name.to_string(), at))
        })
        .collect()
}
