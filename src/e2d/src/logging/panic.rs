//! The last words of a thread.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::sync::Arc;

use super::LAST_WORDS;
use super::queue::Queue;

/// Sends the message of a panic through the log. The standard hook writes to standard error itself: with nobody
/// reading there, a process that is to die would hang instead.
pub(super) fn log_panics(queue: Arc<Queue>) {
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(backtrace));
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            location = info.location().map(tracing::field::display),
            backtrace,
            "panicked: {message}"
        );
        queue.flush(LAST_WORDS);
    }));
}
