//! The bounded queue between those who log and the one thread that writes.
//!
//! tracing-appender has such a queue. It is bounded in lines but not in bytes, does not say when lines are missing,
//! and at its end prints to standard output, which hangs when that is the pipe nobody reads.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::journald;

/// Messages that may wait.
pub(super) const MAX_MESSAGES: usize = 8192;

/// Bytes of messages that may wait.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// Messages on their way to the writer.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something is waiting.
    filled: Condvar,
    /// Nothing is waiting, nor being written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    /// Of the messages in `waiting` and of the one being written.
    bytes: usize,
    writing: bool,
    dropped: u64,
}

impl Queue {
    /// Starts the thread that writes to `sink`. It ends with the process.
    pub(super) fn start(sink: Sink) -> io::Result<Arc<Queue>> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let reader = queue.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || reader.write_to(sink))?;
        Ok(queue)
    }

    /// Adds a message, or drops it when too much is waiting. Never waits for the writer.
    pub(super) fn send(&self, message: Vec<u8>) {
        let mut state = self.lock();
        let bytes = state.bytes + message.len();
        if state.waiting.len() >= MAX_MESSAGES || bytes > MAX_BYTES {
            state.dropped += 1;
            return;
        }
        state.bytes = bytes;
        state.waiting.push_back(message);
        self.filled.notify_one();
    }

    /// Messages lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Waits until everything is written, or until `patience` ends.
    pub(super) fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .emptied
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every point where a thread could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut sink: Sink) {
        let mut told = 0;
        loop {
            let mut state = self.lock();
            let message = loop {
                match state.waiting.pop_front() {
                    Some(message) => break message,
                    None => {
                        state = self
                            .filled
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            state.writing = true;
            drop(state);

            let written = sink.write(&message);

            let mut state = self.lock();
            state.bytes -= message.len();
            state.dropped += u64::from(written.is_err());
            let missing = state.dropped - told;
            // What could not be written says nothing about whether the next can; a full queue does not flow yet.
            if written.is_ok() && missing > 0 {
                told = state.dropped;
                drop(state);
                let notice = sink.notice(missing);
                let written = sink.write(&notice);
                state = self.lock();
                if written.is_err() {
                    told -= missing;
                }
            }
            state.writing = false;
            if state.waiting.is_empty() {
                self.emptied.notify_all();
            }
        }
    }
}

/// One message being formatted, for `tracing_subscriber::fmt`, which writes each of them by one call.
pub(super) struct Line {
    queue: Arc<Queue>,
}

impl Line {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Line { queue }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.queue.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where messages end up. Only the writer's thread touches it, so it may block.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file descriptor that takes lines.
    Stream {
        /// The descriptor.
        file: File,
        /// Whether lines are JSON.
        json: bool,
    },
    /// The journal's socket, one datagram a message.
    Journal {
        /// Not connected, since a connection does not survive a restart of journald.
        socket: UnixDatagram,
        /// The socket's path.
        path: PathBuf,
    },
}

impl Sink {
    pub(super) fn stream(fd: OwnedFd, json: bool) -> Sink {
        Sink::Stream {
            file: fd.into(),
            json,
        }
    }

    /// Fails when there is no journal.
    pub(super) fn journal(path: &Path) -> io::Result<Sink> {
        let socket = UnixDatagram::unbound()?;
        // An empty datagram is ignored by journald and answers whether it is there.
        socket.send_to(&[], path)?;
        Ok(Sink::Journal {
            socket,
            path: path.to_path_buf(),
        })
    }

    fn write(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stream { file, .. } => write_all(file, message),
            Sink::Journal { socket, path } => socket.send_to(message, path).map(|_| ()),
        }
    }

    /// The message that `count` messages are missing.
    fn notice(&self, count: u64) -> Vec<u8> {
        let text = "log messages were dropped because they were not read in time";
        let target = "e2d::logging";
        let mut time = String::new();
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        match self {
            Sink::Journal { .. } => journald::Entry::new(tracing::Level::WARN, target)
                .field("message", &format!("{count} {text}"))
                .field("dropped", &count.to_string())
                .into_bytes(),
            Sink::Stream { json: true, .. } => {
                let line = json!({
                    "timestamp": time, "level": "WARN", "message": format!("{count} {text}"),
                    "dropped": count, "target": target,
                });
                format!("{line}\n").into_bytes()
            }
            Sink::Stream { json: false, .. } => {
                format!("{time}  WARN {target}: {count} {text} dropped={count}\n").into_bytes()
            }
        }
    }
}

/// Writes everything also to a descriptor that somebody made non-blocking: that is a property of the open file, and
/// a terminal's is shared with every other process on it.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
