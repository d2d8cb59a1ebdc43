//! The log: from `tracing` to standard error, standard output or systemd's journal.
//!
//! Logging never blocks. A message goes into a bounded queue (`queue`) that one thread empties; when nobody reads the
//! other end, messages are dropped and counted, the node goes on, and a line tells how many are missing once it flows
//! again. The same holds for the journal, whose socket blocks when journald is stuck.

mod journald;
mod panic;
mod queue;
mod raft;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFilter, LogFormat, LogOutput};
use queue::{Queue, Sink};

pub use raft::raft_logger;

/// The parts of the program that the general level is about; libraries stay at info.
const OWN: [&str; 3] = ["e2d", "e2d_core", raft::TARGET];

/// How long the end of the process waits for the reader of its log.
const LAST_WORDS: Duration = Duration::from_secs(1);

static STARTED: OnceLock<Arc<Queue>> = OnceLock::new();

/// Messages that were lost since the start because nobody read them, or because they could not be written.
pub fn dropped() -> u64 {
    STARTED.get().map_or(0, |queue| queue.dropped())
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The stream cannot be used.
    #[error("opening {0}")]
    Open(&'static str, #[source] io::Error),
    /// The thread that writes cannot be started.
    #[error("starting the log's thread")]
    Thread(#[source] io::Error),
    /// The process has a log.
    #[error("the log is started a second time")]
    Twice,
}

/// The running log.
#[derive(Debug)]
pub struct Started {
    queue: Arc<Queue>,
    control: Control,
}

impl Started {
    /// A handle for whoever changes the level.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until everything is written, at most a second.
    pub fn finish(self) {
        self.queue.flush(LAST_WORDS);
    }
}

/// Changes the log while it runs.
#[derive(Debug, Clone)]
pub struct Control {
    filter: reload::Handle<Targets, Registry>,
}

impl Control {
    /// Logs as much as `filter` says from here on.
    pub fn set_filter(&self, filter: &LogFilter) {
        // The other side lives as long as the process: there is nothing to do about its absence.
        let _ = self.filter.reload(targets(filter));
    }
}

/// Starts the log of the process, which can be done once.
///
/// # Errors
/// When the stream or the journal's socket cannot be opened, or when a log runs already.
pub fn start(log: &Log) -> Result<Started, StartError> {
    let queue = Queue::start(sink(log)?).map_err(StartError::Thread)?;
    let (subscriber, control) = subscriber(log, queue.clone());
    subscriber.try_init().map_err(|_| StartError::Twice)?;
    STARTED.set(queue.clone()).map_err(|_| StartError::Twice)?;
    panic::log_panics(queue.clone());
    Ok(Started { queue, control })
}

fn sink(log: &Log) -> Result<Sink, StartError> {
    if log.format == LogFormat::Journald {
        return Sink::journal(journald::SOCKET.as_ref())
            .map_err(|e| StartError::Open(journald::SOCKET, e));
    }
    // A descriptor of its own: std's handle of standard error has a lock, and whoever prints a panic would wait for
    // the writer that waits for the reader.
    let (name, fd) = match log.output {
        LogOutput::Stderr => ("standard error", rustix::io::dup(rustix::stdio::stderr())),
        LogOutput::Stdout => ("standard output", rustix::io::dup(rustix::stdio::stdout())),
    };
    let fd = fd.map_err(|e| StartError::Open(name, e.into()))?;
    Ok(Sink::stream(fd, log.format == LogFormat::Json))
}

/// Everything between an event and the queue.
fn subscriber(log: &Log, queue: Arc<Queue>) -> (impl SubscriberInitExt + use<>, Control) {
    let (filter, handle) = reload::Layer::new(targets(&log.filter));
    let layer: Box<dyn Layer<_> + Send + Sync> = match log.format {
        LogFormat::Journald => Box::new(journald::JournalLayer::new(queue)),
        LogFormat::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(move || queue::Line::new(queue.clone())),
        ),
        LogFormat::Text { color } => Box::new(
            tracing_subscriber::fmt::layer()
                .with_ansi(color)
                .with_writer(move || queue::Line::new(queue.clone())),
        ),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    (subscriber, Control { filter: handle })
}

fn targets(filter: &LogFilter) -> Targets {
    let level = LevelFilter::from_level;
    // At debug the HTTP/2 library alone would write more than everything here. It has its say when it is named.
    let libraries = filter.level.min(tracing::Level::INFO);
    Targets::new()
        .with_default(level(libraries))
        .with_targets(OWN.map(|part| (part, level(filter.level))))
        .with_targets(
            filter
                .parts
                .iter()
                .map(|(part, of)| (part.as_str(), level(*of))),
        )
}
