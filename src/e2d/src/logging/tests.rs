use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tracing_subscriber::util::SubscriberInitExt;

use super::*;
use crate::config::LogOutput;

const LONG: Duration = Duration::from_secs(60);

fn log(format: LogFormat, level: &str) -> Log {
    Log {
        filter: LogFilter::parse(level).unwrap(),
        format,
        output: LogOutput::Stderr,
        warning_apply_duration: Duration::ZERO,
        warning_unary_request_duration: Duration::ZERO,
    }
}

/// Runs `body` with a log to a pipe and returns what the pipe got.
fn logged(format: LogFormat, level: &str, body: impl FnOnce(&Control)) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let queue = Queue::start(Sink::stream(
        OwnedFd::from(writer),
        format == LogFormat::Json,
    ))
    .unwrap();
    let (subscriber, control) = subscriber(&log(format, level), queue.clone());
    let default = subscriber.set_default();
    body(&control);
    drop(default);
    queue.flush(LONG);
    assert_eq!(queue.dropped(), 0);
    let mut text = vec![0; 1 << 16];
    let length = reader.read(&mut text).unwrap();
    text.truncate(length);
    String::from_utf8(text).unwrap()
}

#[test]
fn a_pipe_that_nobody_reads_costs_messages_and_no_time() {
    const SENT: u64 = 100_000;
    for format in [LogFormat::Json, LogFormat::Text { color: false }] {
        let (reader, writer) = std::io::pipe().unwrap();
        let queue = Queue::start(Sink::stream(
            OwnedFd::from(writer),
            format == LogFormat::Json,
        ))
        .unwrap();
        let (subscriber, _control) = subscriber(&log(format, "info"), queue.clone());
        let default = subscriber.set_default();
        // Were there a wait in it, it would be for ever.
        for number in 0..SENT {
            tracing::info!(number, "nobody reads this");
        }
        drop(default);
        queue.flush(Duration::from_millis(1));
        let dropped = queue.dropped();
        assert!(dropped > 0);

        // The reader comes back: what waited arrives, and a line says how much is missing.
        let mut arrived = 0;
        let mut lines = BufReader::new(reader).lines();
        let notice = loop {
            let line = lines.next().unwrap().unwrap();
            if line.contains("were dropped") {
                break line;
            }
            assert!(line.contains("nobody reads this"), "{line}");
            arrived += 1;
        };
        assert!(notice.contains("WARN"), "{notice}");
        assert!(
            notice.contains(&format!("{dropped} log messages were dropped")),
            "{notice}"
        );
        while arrived + dropped < SENT {
            assert!(lines.next().unwrap().unwrap().contains("nobody reads this"));
            arrived += 1;
        }
        queue.flush(LONG);
        assert_eq!(queue.dropped(), dropped);
    }
}

#[test]
fn few_large_messages_are_bounded_too() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let queue = Queue::start(Sink::stream(OwnedFd::from(writer), false)).unwrap();
    for _ in 0..100 {
        queue.send(vec![b'x'; queue::MAX_BYTES / 10]);
    }
    assert!(queue.dropped() >= 89, "{}", queue.dropped());
}

#[test]
fn a_closed_pipe_is_counted() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let queue = Queue::start(Sink::stream(OwnedFd::from(writer), false)).unwrap();
    for _ in 0..3 {
        queue.send(b"line\n".to_vec());
    }
    queue.flush(LONG);
    assert_eq!(queue.dropped(), 3);
}

#[test]
fn json_lines_hold_fields_and_an_rfc_3339_time() {
    let text = logged(LogFormat::Json, "info", |_| {
        tracing::info!(member = 7, "removing");
    });
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(line["message"], "removing");
    assert_eq!(line["member"], 7);
    assert_eq!(line["level"], "INFO");
    let time = line["timestamp"].as_str().unwrap();
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
}

#[test]
fn the_level_changes_while_running_and_leaves_libraries_alone() {
    let text = logged(LogFormat::Text { color: false }, "info", |control| {
        tracing::debug!("early");
        control.set_filter(&LogFilter::parse("debug,h2::frame=trace").unwrap());
        tracing::debug!("late");
        tracing::debug!(target: "hyper", "of a library");
        tracing::trace!(target: "h2::frame", "of a named library");
        control.set_filter(&LogFilter::parse("error").unwrap());
        tracing::warn!(target: "hyper", "too little");
    });
    assert!(!text.contains("early"), "{text}");
    assert!(text.contains("late"), "{text}");
    assert!(!text.contains("of a library"), "{text}");
    assert!(text.contains("of a named library"), "{text}");
    assert!(!text.contains("too little"), "{text}");
}

#[test]
fn text_for_a_file_has_no_escape_codes() {
    let text = logged(LogFormat::Text { color: false }, "info", |_| {
        tracing::info!(name = "\x1b[31mred", "started");
    });
    assert!(text.contains("started"), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[test]
fn raft_speaks_through_the_same_log() {
    let text = logged(LogFormat::Text { color: false }, "info,raft=warn", |_| {
        let logger = raft_logger().new(slog::o!("raft_id" => 5));
        slog::info!(logger, "quiet");
        slog::warn!(logger, "became {}", "leader"; "term" => 3);
        slog::crit!(logger, "the log has a hole");
    });
    assert!(!text.contains("quiet"), "{text}");
    assert!(
        text.contains("WARN raft: became leader term=3 raft_id=5"),
        "{text}"
    );
    assert!(
        text.contains("ERROR raft: the log has a hole raft_id=5"),
        "{text}"
    );
}

/// Takes a journal entry apart.
fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    while !entry.is_empty() {
        let end = entry
            .iter()
            .position(|byte| matches!(byte, b'=' | b'\n'))
            .unwrap();
        let name = String::from_utf8(entry[..end].to_vec()).unwrap();
        let (value, rest) = if entry[end] == b'=' {
            let length = entry[end + 1..].iter().position(|b| *b == b'\n').unwrap();
            entry[end + 1..].split_at(length)
        } else {
            let (length, rest) = entry[end + 1..].split_at(8);
            rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize)
        };
        fields.push((name, String::from_utf8(value.to_vec()).unwrap()));
        entry = rest.strip_prefix(b"\n").unwrap();
    }
    fields
}

#[test]
fn the_journal_gets_fields_of_the_event_and_its_spans() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = UnixDatagram::bind(&path).unwrap();
    let queue = Queue::start(Sink::journal(&path).unwrap()).unwrap();
    let (subscriber, _control) = subscriber(&log(LogFormat::Journald, "info"), queue.clone());
    let default = subscriber.set_default();
    let span = tracing::info_span!(
        "node",
        member = "a",
        _hidden = 1,
        late = tracing::field::Empty
    );
    span.record("late", 9);
    span.in_scope(|| {
        tracing::warn!(
            message_id = "0123456789abcdef0123456789abcdef",
            reason = "two\nlines",
            long = "x".repeat(100_000),
            "removing {}",
            7
        );
    });
    drop(default);
    let mut buffer = vec![0; 1 << 18];
    // The first datagram asks whether there is a journal.
    assert_eq!(journal.recv(&mut buffer).unwrap(), 0);
    let length = journal.recv(&mut buffer).unwrap();
    let fields = fields(&buffer[..length]);
    let field = |name: &str| {
        let mut found = fields.iter().filter(|(key, _)| key == name);
        let (_, value) = found
            .next()
            .unwrap_or_else(|| panic!("{name} in {fields:?}"));
        assert_eq!(found.next(), None);
        value.as_str()
    };
    assert_eq!(field("PRIORITY"), "4");
    assert_eq!(field("SYSLOG_IDENTIFIER"), "e2d");
    assert_eq!(field("MESSAGE"), "removing 7");
    assert_eq!(field("MESSAGE_ID"), "0123456789abcdef0123456789abcdef");
    assert_eq!(field("MEMBER"), "a");
    assert_eq!(field("HIDDEN"), "1");
    assert_eq!(field("LATE"), "9");
    assert_eq!(field("REASON"), "two\nlines");
    assert_eq!(field("LONG").len(), 32 << 10);
    assert_eq!(field("TARGET"), "e2d::logging::tests");
}

#[test]
fn a_journal_that_is_stuck_costs_messages_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let _journal = UnixDatagram::bind(&path).unwrap();
    let queue = Queue::start(Sink::journal(&path).unwrap()).unwrap();
    for _ in 0..3 * queue::MAX_MESSAGES {
        queue.send(b"MESSAGE=nobody reads this\n".to_vec());
    }
    assert!(queue.dropped() > 0);
}

#[test]
fn without_a_journal_there_is_no_journal_log() {
    assert!(Sink::journal("/nonexistent/journal".as_ref()).is_err());
}
