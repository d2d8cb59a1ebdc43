//! Events in the journal's own protocol, which keeps fields apart.
//!
//! tracing-journald sends from the thread that logs, through a socket that blocks when journald is stuck and that it
//! gives no access to. Here the datagram is made where the event happens and sent by the log's thread.

use std::fmt::{self, Write};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::queue::Queue;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Bytes of one field. A datagram that exceeds the socket's buffer, some 200 KiB, is refused as a whole.
const MAX_FIELD: usize = 32 << 10;

/// Makes a journal entry of every event. Fields of the spans around it come first.
#[derive(Debug)]
pub(super) struct JournalLayer {
    queue: Arc<Queue>,
}

impl JournalLayer {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        JournalLayer { queue }
    }
}

/// The encoded fields of a span.
struct SpanFields(Entry);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JournalLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Entry(Vec::new());
            attributes.record(&mut fields);
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<SpanFields>()
        {
            values.record(&mut fields.0);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = Entry::new(*metadata.level(), metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            entry = entry
                .field("code_file", file)
                .field("code_line", &line.to_string());
        }
        for span in context
            .event_scope(event)
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            if let Some(fields) = span.extensions().get::<SpanFields>() {
                entry.0.extend_from_slice(&fields.0.0);
            }
        }
        event.record(&mut entry);
        self.queue.send(entry.into_bytes());
    }
}

/// A journal entry under construction.
pub(super) struct Entry(Vec<u8>);

impl Entry {
    pub(super) fn new(level: Level, target: &str) -> Self {
        // syslog's numbers.
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        Entry(Vec::with_capacity(256))
            .field("priority", priority)
            .field("syslog_identifier", "e2d")
            .field("target", target)
    }

    pub(super) fn field(mut self, name: &str, value: &str) -> Self {
        self.put(name, value);
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn put(&mut self, name: &str, value: &str) {
        let end = value.floor_char_boundary(MAX_FIELD);
        let value = &value[..end];
        // The journal takes A-Z, 0-9 and underscores, keeps a leading underscore for itself, and 64 bytes.
        let name: Vec<u8> = name
            .trim_start_matches(['_', '.'])
            .bytes()
            .take(64)
            .map(|byte| match byte.to_ascii_uppercase() {
                byte if byte.is_ascii_uppercase() || byte.is_ascii_digit() => byte,
                _ => b'_',
            })
            .collect();
        if name.first().is_none_or(u8::is_ascii_digit) {
            return;
        }
        self.0.extend_from_slice(&name);
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // A value that cannot format itself leaves what it wrote until then.
        let _ = write!(text, "{value:?}");
        self.put(field.name(), &text);
    }
}
