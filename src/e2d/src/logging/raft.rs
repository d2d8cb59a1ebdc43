//! raft-rs logs by slog.

use std::fmt::{self, Write};

use slog::{Drain, KV, OwnedKVList, Record, Serializer};
use tracing::Level;

/// The target of raft-rs' messages, by which the log level of that part is set.
pub(super) const TARGET: &str = "raft";

/// A logger for raft-rs whose messages become events of `tracing`, with slog's pairs behind the message.
pub fn raft_logger() -> slog::Logger {
    slog::Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        // The level of an event is part of its static description.
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                if tracing::enabled!(target: TARGET, Level::ERROR) {
                    tracing::error!(target: TARGET, "{}", text(record, values));
                }
            }
            slog::Level::Warning => {
                if tracing::enabled!(target: TARGET, Level::WARN) {
                    tracing::warn!(target: TARGET, "{}", text(record, values));
                }
            }
            slog::Level::Info => {
                if tracing::enabled!(target: TARGET, Level::INFO) {
                    tracing::info!(target: TARGET, "{}", text(record, values));
                }
            }
            slog::Level::Debug => {
                if tracing::enabled!(target: TARGET, Level::DEBUG) {
                    tracing::debug!(target: TARGET, "{}", text(record, values));
                }
            }
            slog::Level::Trace => {
                if tracing::enabled!(target: TARGET, Level::TRACE) {
                    tracing::trace!(target: TARGET, "{}", text(record, values));
                }
            }
        }
        Ok(())
    }
}

/// The message and its pairs, those of the record before those of the logger.
fn text(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut pairs = Pairs(record.msg().to_string());
    // A value that cannot be formatted is missing from a log line; nothing can be done about it here.
    let _ = record.kv().serialize(record, &mut pairs);
    let _ = values.serialize(record, &mut pairs);
    pairs.0
}

struct Pairs(String);

impl Serializer for Pairs {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}
