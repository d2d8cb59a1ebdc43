mod model;
mod store;

use super::*;
use bytes::Bytes;
use store::Store;

/// A hub over a store, with one queue for each stream.
struct World {
    hub: Hub,
    store: Store,
    queues: BTreeMap<StreamId, Vec<Response>>,
}

impl World {
    fn new(limits: Limits) -> World {
        World { hub: Hub::new(limits, Revision::INITIAL), store: Store::default(), queues: BTreeMap::new() }
    }

    fn open(&mut self) -> StreamId {
        self.hub.open(Tick(0))
    }

    /// Writes and publishes one request.
    fn write(&mut self, writes: &[(&str, Option<&str>)]) {
        let (revision, changes) = self.store.write(writes).expect("the write changes something");
        self.hub.publish(revision, &changes);
    }

    fn put(&mut self, key: &str, value: &str) {
        self.write(&[(key, Some(value))]);
    }

    fn create(&mut self, stream: StreamId, new: NewWatch) {
        self.hub.create(stream, new, self.store.bounds());
    }

    fn ask(&mut self, stream: StreamId) {
        self.hub.ask_progress(stream, self.store.revision());
    }

    fn catch_up(&mut self) {
        while self.hub.catch_up(&self.store).expect("the store in memory does not fail") {}
    }

    fn deliver(&mut self) {
        self.hub.deliver(|stream, responses| self.queues.entry(stream).or_default().extend(responses));
    }

    /// Sends everything that is queued for a stream, and what that gives room for.
    fn read(&mut self, stream: StreamId) -> Vec<String> {
        let mut all = vec![];
        loop {
            self.catch_up();
            self.deliver();
            let responses = self.queues.remove(&stream).unwrap_or_default();
            if responses.is_empty() {
                return all;
            }
            self.hub.taken(stream, responses.len(), responses.iter().map(Response::size).sum());
            all.extend(responses.iter().map(shown));
        }
    }
}

/// A response as a line: header revision, watch, and what it says.
fn shown(response: &Response) -> String {
    let revision = response.revision.map_or(0, |revision| revision.0);
    let content = match &response.content {
        Content::Events { events, fragment } => {
            let events: Vec<String> = decode(events).iter().map(Event::shown).collect();
            format!("{}{}", events.join(" "), if *fragment { " ..." } else { "" })
        }
        Content::Compacted(at) => format!("compacted at {at}"),
        Content::Refused(why) => format!("refused: {why}"),
        other => format!("{other:?}").to_lowercase(),
    };
    format!("r{revision} w{}: {content}", response.watch.0)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyValue {
    key: String,
    value: String,
    created: u64,
    modified: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    delete: bool,
    kv: KeyValue,
    previous: Option<KeyValue>,
}

impl Event {
    fn shown(&self) -> String {
        let KeyValue { key, value, modified, .. } = &self.kv;
        let what = if self.delete { format!("-{key}@{modified}") } else { format!("{key}={value}@{modified}") };
        match &self.previous {
            Some(previous) => format!("{what}<{}@{}", previous.value, previous.modified),
            None => what,
        }
    }
}

/// Reads events back with a reader that shares nothing with the writer.
fn decode(events: &Events) -> Vec<Event> {
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let (first, rest) = bytes.split_first().unwrap();
                *bytes = rest;
                value |= u64::from(first & 0x7f) << shift;
                if first & 0x80 == 0 {
                    break;
                }
            }
            value
        }
        let mut all = vec![];
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let number = varint(&mut bytes);
            let content = if tag & 7 == 2 { bytes.split_off(..number as usize).unwrap() } else { &[] };
            all.push((tag >> 3, number, content));
        }
        all
    }
    fn key_value(bytes: &[u8]) -> KeyValue {
        let mut kv = KeyValue { key: String::new(), value: String::new(), created: 0, modified: 0 };
        for (field, number, content) in fields(bytes) {
            let text = || String::from_utf8(content.to_vec()).unwrap();
            match field {
                1 => kv.key = text(),
                2 => kv.created = number,
                3 => kv.modified = number,
                5 => kv.value = text(),
                _ => {}
            }
        }
        kv
    }
    let mut all = vec![];
    for (field, _, event) in fields(events.bytes()) {
        assert_eq!(field, 11);
        let (mut delete, mut kv, mut previous) = (false, None, None);
        for (field, number, content) in fields(event) {
            match field {
                1 => delete = number == 1,
                2 => kv = Some(key_value(content)),
                3 => previous = Some(key_value(content)),
                other => panic!("an event has no field {other}"),
            }
        }
        all.push(Event { delete, kv: kv.expect("every event has a key-value"), previous });
    }
    all
}

fn range(key: &str, end: &str) -> KeyRange {
    KeyRange::from_wire(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(end.as_bytes()))
}

fn on(key: &str, end: &str) -> NewWatch {
    NewWatch::of(range(key, end))
}

fn from(start: u64, new: NewWatch) -> NewWatch {
    NewWatch { start: Some(Revision(start)), ..new }
}

fn with_id(id: i64, new: NewWatch) -> NewWatch {
    NewWatch { id: Some(WatchId(id)), ..new }
}

#[test]
fn ids_count_from_zero_and_skip_the_ones_in_use() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.put("a", "1");
    for new in [
        on("a", ""),
        with_id(2, on("a", "")),
        on("a", ""),
        on("a", ""),
        with_id(-7, on("a", "")),
        with_id(2, on("b", "")),
        with_id(-7, on("b", "")),
        on("b", "a"),
        on("b", "b"),
        with_id(2, on("b", "a")),
    ] {
        world.create(stream, new);
    }
    let refused = |why| format!("r2 w-1: refused: {why}");
    let (duplicate, empty) = ("another watch of this stream has the same id", "the range holds no key");
    assert_eq!(
        world.read(stream),
        [
            "r2 w0: created",
            "r2 w2: created",
            "r2 w1: created",
            "r2 w3: created",
            "r2 w-7: created",
            &refused(duplicate),
            &refused(duplicate),
            &refused(empty),
            &refused(empty),
            &refused(empty),
        ]
    );
    let other = world.open();
    world.create(other, on("a", ""));
    assert_eq!(world.read(other), ["r2 w0: created"]);
}

#[test]
fn created_comes_first_and_then_what_was_missed() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    world.put("b", "1");
    world.create(stream, from(3, on("a", "")));
    world.put("a", "4");
    // The watch was behind when revision 6 was published, and the header says how far the answer reaches.
    assert_eq!(world.read(stream), ["r5 w0: created", "r6 w0: a=2@3 a=3@4 a=4@6"]);
    world.put("c", "1");
    world.put("a", "5");
    assert_eq!(world.read(stream), ["r8 w0: a=5@8"]);
}

#[test]
fn a_watch_without_start_begins_after_what_clients_know() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    // Applied and acknowledged, on its way to the hub.
    let late = world.store.write(&[("a", Some("1"))]).unwrap();
    world.create(stream, on("a", ""));
    world.hub.publish(late.0, &late.1);
    world.put("a", "2");
    assert_eq!(world.read(stream), ["r2 w0: created", "r3 w0: a=2@3"]);
}

#[test]
fn a_start_below_the_compaction_cancels_with_its_revision() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    for value in ["1", "2", "3", "4"] {
        world.put("a", value);
    }
    world.store.compact(Revision(4));
    world.create(stream, from(3, on("a", "")));
    world.create(stream, from(4, on("a", "")));
    assert_eq!(world.read(stream), ["r5 w0: created", "r0 w0: compacted at 4", "r5 w1: created", "r5 w1: a=3@4 a=4@5"]);
    // The id stays taken until the client cancels it, as clients do when they hear of the compaction.
    world.create(stream, with_id(0, on("a", "")));
    world.hub.cancel(stream, WatchId(0), Revision(5));
    world.hub.cancel(stream, WatchId(0), Revision(5));
    world.create(stream, with_id(0, on("a", "")));
    assert_eq!(
        world.read(stream),
        ["r5 w-1: refused: another watch of this stream has the same id", "r5 w0: canceled", "r5 w0: created"]
    );
}

#[test]
fn cancel_answers_once_and_ends_the_events() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.create(stream, on("a", ""));
    world.create(stream, from(1, on("a", "")));
    world.hub.cancel(stream, WatchId(0), Revision(1));
    world.hub.cancel(stream, WatchId(0), Revision(1));
    world.hub.cancel(stream, WatchId(9), Revision(1));
    world.put("a", "1");
    assert_eq!(world.read(stream), ["r1 w0: created", "r1 w1: created", "r1 w0: canceled", "r2 w1: a=1@2"]);
}

#[test]
fn events_carry_what_etcd_puts_into_them() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.create(stream, NewWatch { with_previous: true, ..on("a", "c") });
    world.create(stream, on("a", "c"));
    world.put("a", "1");
    world.put("a", "2");
    world.write(&[("a", None)]);
    world.write(&[("a", Some("3"))]);
    assert_eq!(
        world.read(stream)[2..],
        [
            "r2 w0: a=1@2",
            "r2 w1: a=1@2",
            "r3 w0: a=2@3<1@2",
            "r3 w1: a=2@3",
            "r4 w0: -a@4<2@3",
            "r4 w1: -a@4",
            "r5 w0: a=3@5",
            "r5 w1: a=3@5",
        ]
    );
    // The same from history, where what revision 3 replaced is compacted.
    world.store.compact(Revision(3));
    world.create(stream, from(3, NewWatch { with_previous: true, ..on("a", "c") }));
    assert_eq!(world.read(stream)[1..], ["r5 w2: a=2@3 -a@4<2@3 a=3@5"]);
}

#[test]
fn filters_drop_events_without_a_trace() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    let filtered = |without_puts, without_deletes| NewWatch { without_puts, without_deletes, ..on("a", "z") };
    for new in [filtered(true, false), filtered(false, true), filtered(true, true)] {
        world.create(stream, new.clone());
        world.create(stream, from(2, new));
    }
    world.put("a", "1");
    world.write(&[("a", None), ("b", Some("2"))]);
    let expected = ["r2 w2: a=1@2", "r2 w3: a=1@2", "r3 w0: -a@3", "r3 w1: -a@3", "r3 w2: b=2@3", "r3 w3: b=2@3"];
    assert_eq!(world.read(stream)[6..], expected);
    world.create(stream, from(2, filtered(true, false)));
    world.create(stream, from(2, filtered(true, true)));
    assert_eq!(world.read(stream), ["r3 w6: created", "r3 w7: created", "r3 w6: -a@3"]);
    assert_eq!(world.hub.counts().behind, 0);
}

#[test]
fn one_revision_is_one_response() {
    let mut world = World::new(Limits { response_revisions: 2, ..Limits::default() });
    let stream = world.open();
    world.create(stream, on("", "\0"));
    world.write(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
    world.write(&[("b", None), ("x", Some("1"))]);
    world.put("a", "2");
    let live = ["r2 w0: a=1@2 b=1@2 c=1@2", "r3 w0: -b@3 x=1@3", "r4 w0: a=2@4"];
    assert_eq!(world.read(stream)[1..], live);
    // From history two revisions may come together, and the first header promises no more than they are.
    world.create(stream, from(2, on("", "\0")));
    assert_eq!(world.read(stream)[1..], ["r3 w1: a=1@2 b=1@2 c=1@2 -b@3 x=1@3", "r4 w1: a=2@4"]);
    world.create(stream, from(1, on("b", "")));
    assert_eq!(world.read(stream)[1..], ["r4 w2: b=1@2 -b@3"]);
}

#[test]
fn ranges_from_a_key_on_and_of_all_keys() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.create(stream, on("b", "\0"));
    world.create(stream, on("\0", "\0"));
    world.create(stream, on("b", "c"));
    for key in ["a", "b", "bb", "c"] {
        world.put(key, "");
    }
    assert_eq!(
        world.read(stream)[3..],
        [
            "r2 w1: a=@2",
            "r3 w1: b=@3",
            "r3 w2: b=@3",
            "r3 w0: b=@3",
            "r4 w1: bb=@4",
            "r4 w2: bb=@4",
            "r4 w0: bb=@4",
            "r5 w1: c=@5",
            "r5 w0: c=@5"
        ]
    );
}

#[test]
fn long_responses_come_in_fragments_for_those_who_ask() {
    let mut world = World::new(Limits { fragment_bytes: 300, ..Limits::default() });
    let stream = world.open();
    world.create(stream, NewWatch { fragment: true, ..on("", "\0") });
    world.create(stream, on("", "\0"));
    let value = "v".repeat(80);
    let writes: Vec<(&str, Option<&str>)> = ["a", "b", "c", "d", "e"].map(|key| (key, Some(&value[..]))).to_vec();
    world.write(&writes);
    world.put("f", &"v".repeat(1000));
    let lines: Vec<String> = world.read(stream)[2..].iter().map(|line| line.replace(&value, "")).collect();
    assert_eq!(lines[0], "r2 w0: a=@2 b=@2 ...");
    assert_eq!(lines[1], "r2 w0: c=@2 d=@2 ...");
    assert_eq!(lines[2], "r2 w0: e=@2");
    assert_eq!(lines[3], "r2 w1: a=@2 b=@2 c=@2 d=@2 e=@2");
    assert!(lines[4].starts_with("r3 w0: f=") && !lines[4].ends_with("..."), "one event is never cut");
}

#[test]
fn periodic_progress_goes_to_idle_watches_that_asked() {
    let mut world = World::new(Limits { progress_millis: 1000, ..Limits::default() });
    let stream = world.open();
    let asking = |new| NewWatch { progress: true, ..new };
    world.create(stream, asking(on("a", "")));
    world.create(stream, on("b", ""));
    world.create(stream, asking(from(9, on("c", ""))));
    world.put("a", "1");
    world.put("x", "1");
    assert_eq!(world.read(stream)[3..], ["r2 w0: a=1@2"]);

    let due = world.hub.next_deadline().unwrap();
    assert!((1000..=1100).contains(&due.0));
    world.hub.tick(Tick(due.0 - 1));
    world.hub.tick(due);
    assert!(world.read(stream).is_empty(), "a watch that had events is not idle");
    for _ in 0..2 {
        world.hub.tick(world.hub.next_deadline().unwrap());
        assert_eq!(world.read(stream), ["r3 w0: progress"]);
    }
    world.hub.close(stream);
    assert_eq!(world.hub.next_deadline(), None);
}

#[test]
fn etcd_15220_progress_never_overtakes_events() {
    let mut world = World::new(Limits { slice_bytes: 1, stream_responses: 3, ..Limits::default() });
    let stream = world.open();
    world.ask(stream);
    assert!(world.read(stream).is_empty(), "a stream without watches has no progress");

    world.create(stream, on("a", ""));
    for value in ["1", "2", "3", "4", "5", "6"] {
        world.put("a", value);
    }
    world.create(stream, from(2, on("a", "")));
    // One watch fell behind because the queue was full, the other is new: whatever is asked now waits for both.
    world.ask(stream);
    world.ask(stream);
    let lines = world.read(stream);
    assert_eq!(lines.last().unwrap(), "r7 w-1: progress");
    assert_eq!(lines.iter().filter(|line| line.contains("progress")).count(), 1);
    for watch in ["w0", "w1"] {
        let events: String = lines.iter().filter(|line| line.contains(watch)).map(|line| &line[7..]).collect();
        assert_eq!(events.matches("a=").count(), 6, "{lines:?}");
    }

    // The revision that the client could know of is on its way to the hub.
    let late = world.store.write(&[("a", Some("7"))]).unwrap();
    world.ask(stream);
    assert!(world.read(stream).is_empty());
    world.hub.publish(late.0, &late.1);
    assert_eq!(world.read(stream), ["r8 w0: a=7@8", "r8 w1: a=7@8", "r8 w-1: progress"]);
}

#[test]
fn etcd_20221_a_future_start_hears_nothing_early() {
    let mut world = World::new(Limits { progress_millis: 1000, ..Limits::default() });
    let stream = world.open();
    world.put("a", "1");
    world.create(stream, on("a", ""));
    world.create(stream, NewWatch { progress: true, ..from(5, on("a", "")) });
    world.ask(stream);
    world.put("a", "2");
    world.hub.tick(Tick(5000));
    assert_eq!(world.read(stream), ["r2 w0: created", "r2 w1: created", "r3 w0: a=2@3"]);
    // Revisions that did not come by way of `publish` change nothing about that.
    world.store.write(&[("a", Some("3"))]);
    world.hub.missed(world.store.revision());
    world.ask(stream);
    world.hub.tick(Tick(10_000));
    assert_eq!(world.read(stream), ["r4 w0: a=3@4"]);
    world.put("a", "4");
    world.ask(stream);
    assert_eq!(world.read(stream), ["r5 w0: a=4@5", "r5 w1: a=4@5", "r5 w-1: progress"]);
    // Nor is the start passed over when it lies within what was missed.
    world.create(stream, from(7, on("a", "")));
    for value in ["5", "6", "7"] {
        world.store.write(&[("a", Some(value))]);
    }
    world.hub.missed(world.store.revision());
    let lines = world.read(stream);
    assert!(lines.contains(&"r8 w2: a=6@7 a=7@8".to_string()), "{lines:?}");
}

#[test]
fn etcd_18089_a_deletion_at_the_compacted_revision_is_seen() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.put("a", "1");
    world.create(stream, from(2, on("a", "")));
    world.write(&[("a", None)]);
    world.store.compact(Revision(2));
    assert_eq!(world.read(stream), ["r2 w0: created", "r3 w0: a=1@2 -a@3"]);
    world.put("a", "2");
    world.write(&[("a", None)]);
    world.store.compact(Revision(5));
    assert_eq!(world.read(stream), ["r4 w0: a=2@4", "r5 w0: -a@5"], "a synced watch needs no history");
}

#[test]
fn etcd_19179_a_watch_from_the_compacted_revision_gets_its_deletion() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.put("a", "1");
    world.write(&[("a", None), ("b", Some("1"))]);
    world.put("b", "2");
    world.store.compact(Revision(3));
    world.create(stream, from(3, on("a", "z")));
    assert_eq!(world.read(stream)[1..], ["r4 w0: -a@3 b=1@3 b=2@4"]);
}

#[test]
fn etcd_17529_a_starved_stream_loses_nothing_and_hears_of_compaction() {
    let limits = Limits { stream_responses: 2, slice_bytes: 1, ..Limits::default() };
    let mut world = World::new(limits);
    let (stream, fast) = (world.open(), world.open());
    world.create(stream, on("a", ""));
    world.create(stream, on("b", ""));
    world.create(fast, on("a", "z"));
    for round in 0..50 {
        world.put(if round % 2 == 0 { "a" } else { "b" }, "x");
        world.catch_up();
        let expected = if round == 0 { 2 } else { 1 };
        assert_eq!(world.read(fast).len(), expected, "another stream does not wait");
    }
    // It takes one message at a time.
    let mut events = vec![];
    for _ in 0..200 {
        world.catch_up();
        world.deliver();
        let queue = world.queues.entry(stream).or_default();
        assert!(queue.len() <= 3);
        if let Some(response) = (!queue.is_empty()).then(|| queue.remove(0)) {
            if let Content::Events { events: some, .. } = &response.content {
                events.extend(decode(some).into_iter().map(|event| event.kv.modified));
            }
            world.hub.taken(stream, 1, response.size());
        }
    }
    events.sort();
    assert_eq!(events, (2..52).collect::<Vec<u64>>());

    // Both are starved again, and history that they need goes away meanwhile.
    for _ in 0..10 {
        world.write(&[("a", Some("x")), ("b", Some("x"))]);
    }
    world.catch_up();
    world.store.compact(world.store.revision());
    let lines = world.read(stream);
    assert_eq!(lines.iter().filter(|line| line.ends_with("compacted at 61")).count(), 2, "{lines:?}");
    assert!(lines.iter().position(|line| line.contains("compacted")).unwrap() >= 2, "after what was queued before");
    assert_eq!(world.hub.counts().watchers, 1);
}

#[test]
fn etcd_15271_a_watch_never_goes_back_when_the_store_jumps_ahead() {
    let mut world = World::new(Limits::default());
    let stream = world.open();
    world.create(stream, from(2, on("a", "")));
    world.put("a", "1");
    assert_eq!(world.read(stream)[1..], ["r2 w0: a=1@2"]);
    // The store was replaced by a newer one; the log then repeats what it covers.
    let mut replayed = vec![];
    for value in ["2", "3", "4"] {
        replayed.extend(world.store.write(&[("a", Some(value))]));
    }
    world.hub.missed(Revision(4));
    for (revision, changes) in &replayed {
        world.hub.publish(*revision, changes);
    }
    // Revision 5 was published while the watch was behind: history has it.
    assert_eq!(world.read(stream), ["r5 w0: a=2@3 a=3@4 a=4@5"]);
    world.hub.missed(Revision(3));
    for (revision, changes) in &replayed {
        world.hub.publish(*revision, changes);
    }
    assert!(world.read(stream).is_empty());
}

#[test]
fn a_stream_that_was_blocked_for_a_moment_is_not_held_up_later() {
    let mut world = World::new(Limits { stream_responses: 1, ..Limits::default() });
    let stream = world.open();
    world.create(stream, on("a", ""));
    world.read(stream);
    world.put("a", "1");
    // Only the answer finds no room, and finds it as soon as the event is sent.
    world.ask(stream);
    world.deliver();
    let queue = world.queues.remove(&stream).unwrap();
    world.hub.taken(stream, queue.len(), queue.iter().map(Response::size).sum());
    world.create(stream, from(2, on("a", "")));
    world.put("b", "1");
    assert_eq!(world.read(stream), ["r2 w-1: progress", "r2 w1: created", "r3 w1: a=1@2"]);
}

#[test]
fn one_scan_of_history_serves_all_who_wait() {
    let mut world = World::new(Limits::default());
    for number in 0..100 {
        world.put(&format!("key-{number:03}"), "x");
    }
    let streams: Vec<StreamId> = (0..100).map(|_| world.open()).collect();
    for (number, stream) in streams.iter().enumerate() {
        world.create(*stream, from(2, on(&format!("key-{number:03}"), "")));
        world.create(*stream, from(2 + number as u64, on("", "\0")));
    }
    world.catch_up();
    assert_eq!(world.store.reads.get(), 1);
    for (number, stream) in streams.iter().enumerate() {
        let lines = world.read(*stream);
        assert_eq!(lines[2], format!("r101 w0: key-{number:03}=x@{}", number + 2));
        assert_eq!(lines[3].matches('@').count(), 100 - number);
    }
}

#[test]
fn a_slice_that_was_compacted_while_it_was_read_is_not_sent() {
    /// Reading loses what a compaction removes meanwhile.
    struct Racing<'a>(&'a Store, std::cell::Cell<Revision>);
    impl History for Racing<'_> {
        type Error = std::convert::Infallible;

        fn bounds(&self) -> (Revision, Revision) {
            (self.0.revision(), self.1.get())
        }

        fn changes(
            &self,
            from: Revision,
            max_bytes: usize,
            with_previous: bool,
            out: &mut Vec<Change>,
        ) -> Result<Revision, Self::Error> {
            self.1.set(Revision(4));
            let next = self.0.changes(from, max_bytes, with_previous, out)?;
            out.retain(|change| change.record.as_ref().at.main >= Revision(4));
            Ok(next)
        }
    }
    let mut world = World::new(Limits::default());
    let stream = world.open();
    for _ in 0..4 {
        world.put("a", "x");
    }
    world.create(stream, from(3, on("a", "")));
    world.create(stream, from(4, on("a", "")));
    let history = Racing(&world.store, std::cell::Cell::default());
    while world.hub.catch_up(&history).unwrap() {}
    world.store.compact(Revision(4));
    assert_eq!(world.read(stream)[2..], ["r0 w0: compacted at 4", "r5 w1: a=x@4 a=x@5"]);
}

#[test]
fn a_long_catch_up_does_not_hold_up_a_short_one() {
    let mut world = World::new(Limits { slice_bytes: 1, ..Limits::default() });
    for _ in 0..1000 {
        world.put("a", "x");
    }
    let (long, short) = (world.open(), world.open());
    world.create(long, from(2, on("a", "")));
    world.create(short, from(1000, on("a", "")));
    for _ in 0..4 {
        world.hub.catch_up(&world.store).unwrap();
    }
    world.deliver();
    assert_eq!(world.queues[&short].last().map(shown).unwrap(), "r1001 w0: a=x@1001");
    assert_eq!(world.hub.counts().behind, 1);
}

#[test]
fn identical_responses_share_memory() {
    let mut world = World::new(Limits::default());
    let streams = [world.open(), world.open()];
    for (stream, end) in streams.iter().zip(["", "b"]) {
        world.create(*stream, on("a", end));
        world.create(*stream, NewWatch { with_previous: true, ..on("a", end) });
    }
    world.write(&[("a", Some("1"))]);
    world.write(&[("a", Some("2")), ("a2", Some("2"))]);
    world.deliver();
    let events = |stream: StreamId, revision: u64, watch: i64| {
        let found = world.queues[&stream].iter().find_map(|response| match &response.content {
            Content::Events { events, .. }
                if response.watch.0 == watch && response.revision == Some(Revision(revision)) =>
            {
                Some(events.bytes().as_ptr())
            }
            _ => None,
        });
        found.unwrap()
    };
    let [key, range] = streams;
    // A first put replaces nothing, so even the ones who want that share it.
    assert!([events(key, 2, 1), events(range, 2, 0), events(range, 2, 1)].iter().all(|at| *at == events(key, 2, 0)));
    assert_ne!(events(key, 3, 0), events(key, 3, 1));
    assert_ne!(events(key, 3, 0), events(range, 3, 0), "these get different events");
}

#[test]
fn a_closed_stream_leaves_nothing_behind() {
    let mut world = World::new(Limits { stream_responses: 2, ..Limits::default() });
    let stream = world.open();
    for start in [None, Some(Revision(1)), Some(Revision(100))] {
        world.create(stream, NewWatch { start, progress: true, ..on("a", "b") });
    }
    for _ in 0..10 {
        world.put("a", "x");
    }
    world.ask(stream);
    assert!(world.hub.is_blocked(stream) && world.hub.counts().queued_bytes > 0);
    world.hub.close(stream);
    assert_eq!(world.hub.counts(), Counts::default());
    world.put("a", "x");
    world.hub.tick(Tick(1 << 40));
    world.catch_up();
    world.deliver();
    assert!(world.queues.is_empty());
    // Whoever comes next in its place is somebody else.
    let next = world.open();
    assert_eq!(next.slot(), stream.slot());
    world.hub.cancel(stream, WatchId(0), Revision(1));
    world.hub.taken(stream, 1000, 1000);
    world.create(next, on("a", ""));
    assert_eq!(world.read(next), ["r12 w0: created"]);
}

/// The cost of one event to many watchers, without the network. Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
#[allow(clippy::disallowed_methods)]
fn cost_of_telling_a_thousand_watchers() {
    for (name, watchers, keys) in [("one range", 1000, 1), ("a key each", 100_000, 100_000)] {
        let mut world = World::new(Limits::default());
        for number in 0..watchers {
            let stream = world.open();
            let new = if keys == 1 { on("k", "l") } else { on(&format!("k{number:06}"), "") };
            world.create(stream, new);
        }
        let changes: Vec<_> =
            (0..2000).map(|number| world.store.write(&[(&format!("k{number:06}"), Some("value"))]).unwrap()).collect();
        let mut sent = 0;
        let started = std::time::Instant::now();
        for (revision, changes) in &changes {
            world.hub.publish(*revision, changes);
            let mut taken = vec![];
            world.hub.deliver(|stream, responses| {
                let sizes: Vec<usize> = responses.map(|response| response.size()).collect();
                taken.push((stream, sizes.len(), sizes.iter().sum()));
            });
            for (stream, responses, bytes) in taken {
                sent += responses;
                world.hub.taken(stream, responses, bytes);
            }
        }
        let nanos = started.elapsed().as_nanos();
        println!(
            "{name}: {} ns for each of {sent} responses, {} ns for each revision",
            nanos / sent as u128,
            nanos / 2000
        );
    }
}
