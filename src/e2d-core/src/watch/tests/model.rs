//! Random histories, watches and slow clients against the plainest description of a watch: the events of the log
//! from its start on that are in its range and pass its filters, each revision whole, in order, once.

use super::*;
use crate::watch::interval::mix;
use std::collections::VecDeque;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a client knows about one of its streams.
#[derive(Default)]
struct Client {
    queue: VecDeque<Response>,
    /// Watches that were asked for, and how far the store was then.
    asked: VecDeque<(NewWatch, Revision)>,
    watches: BTreeMap<WatchId, Seen>,
    /// Ids that a compaction ended.
    compacted: BTreeSet<WatchId>,
    slow: bool,
}

struct Seen {
    new: NewWatch,
    /// Everything before was received, or is before the start.
    next: Revision,
    /// Fragments of a response that is not complete.
    pieces: Vec<Event>,
}

#[derive(Default, Debug)]
struct Tally {
    events: usize,
    fragments: usize,
    progress: usize,
    compacted: usize,
    several_revisions: usize,
    blocked: usize,
}

struct Model {
    random: Random,
    store: Store,
    hub: Hub,
    limits: Limits,
    clients: BTreeMap<StreamId, Client>,
    /// Applied and not published.
    ring: VecDeque<(Revision, Vec<Change>)>,
    now: Tick,
    tally: Tally,
}

const KEYS: [&str; 6] = ["a", "ab", "b", "ba", "c", "d"];

impl Model {
    fn new(seed: u64) -> Model {
        let mut random = Random(seed);
        let limits = Limits {
            stream_responses: 1 + random.below(6) as usize,
            stream_bytes: 300 + random.below(3000) as usize,
            total_bytes: 1000 + random.below(20_000) as usize,
            slice_bytes: 1 + random.below(800) as usize,
            slice_watchers: 1 + random.below(5) as usize,
            response_revisions: 1 + random.below(4) as usize,
            fragment_bytes: 100 + random.below(200) as usize,
            progress_millis: 1000,
        };
        Model {
            random,
            store: Store::default(),
            hub: Hub::new(limits.clone(), Revision::INITIAL),
            limits,
            clients: BTreeMap::new(),
            ring: VecDeque::new(),
            now: Tick(0),
            tally: Tally::default(),
        }
    }

    fn stream(&mut self) -> Option<StreamId> {
        let count = self.clients.len() as u64;
        (count > 0).then(|| *self.clients.keys().nth(self.random.below(count) as usize).unwrap())
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.write(),
            30..55 => self.publish(),
            55..65 => {
                self.hub.catch_up(&self.store).unwrap();
            }
            65..85 => {
                if let Some(stream) = self.stream() {
                    let client = &self.clients[&stream];
                    let most = if client.slow { 2 } else { 1 + client.queue.len() as u64 };
                    let count = self.random.below(most) as usize;
                    self.take(stream, count);
                }
            }
            85..91 => {
                if let Some(stream) = self.stream() {
                    self.create(stream);
                }
            }
            91..93 => {
                if let Some(stream) = self.stream() {
                    let id = WatchId(self.random.below(4) as i64);
                    self.hub.cancel(stream, id, self.store.revision());
                }
            }
            93..96 => {
                if let Some(stream) = self.stream() {
                    self.hub.ask_progress(stream, self.store.revision());
                }
            }
            96 => {
                let (newest, compacted) = self.store.bounds();
                if self.random.chance(20) {
                    let at = compacted.0 + self.random.below(newest.0 - compacted.0 + 1);
                    self.store.compact(Revision(at));
                }
            }
            97 => {
                self.now = self.now.plus_millis(self.random.below(1500));
                self.hub.tick(self.now);
            }
            98 => {
                if self.clients.len() < 5 {
                    let stream = self.hub.open(self.now);
                    let slow = self.random.chance(50);
                    self.clients.insert(stream, Client { slow, ..Client::default() });
                }
            }
            _ => {
                if let Some(stream) = self.stream().filter(|_| self.clients.len() > 2) {
                    self.hub.close(stream);
                    self.clients.remove(&stream);
                }
            }
        }
        self.deliver();
    }

    fn write(&mut self) {
        let mut keys: Vec<&str> = KEYS.to_vec();
        let value = "v".repeat(self.random.below(60) as usize);
        let writes: Vec<(&str, Option<&str>)> = (0..=self.random.below(3))
            .map(|_| {
                let key = keys.swap_remove(self.random.below(keys.len() as u64) as usize);
                (key, (!self.random.chance(30)).then_some(&value[..]))
            })
            .collect();
        self.ring.extend(self.store.write(&writes));
    }

    fn publish(&mut self) {
        if self.random.chance(5) {
            // The ring overflowed. Half the time nobody says so until the next revision shows it.
            self.ring.clear();
            if self.random.chance(50) {
                self.hub.missed(self.store.revision());
            }
        }
        for _ in 0..self.random.below(4) {
            if let Some((revision, changes)) = self.ring.pop_front() {
                self.hub.publish(revision, &changes);
            }
        }
    }

    fn create(&mut self, stream: StreamId) {
        let (newest, compacted) = self.store.bounds();
        let range = match self.random.below(4) {
            0 => range(KEYS[self.random.below(6) as usize], ""),
            1 => range("\0", "\0"),
            _ => range(KEYS[self.random.below(6) as usize], KEYS[self.random.below(6) as usize]),
        };
        let start = match self.random.below(4) {
            0 => Some(newest.0 + self.random.below(5)),
            1 | 2 => Some(compacted.0.saturating_sub(1) + self.random.below(newest.0 - compacted.0 + 2)),
            _ => None,
        };
        let new = NewWatch {
            range,
            start: start.filter(|start| *start > 0).map(Revision),
            id: self.random.chance(30).then(|| WatchId(self.random.below(8) as i64)),
            with_previous: self.random.chance(50),
            without_puts: self.random.chance(15),
            without_deletes: self.random.chance(15),
            fragment: self.random.chance(40),
            progress: self.random.chance(40),
        };
        self.hub.create(stream, new.clone(), self.store.bounds());
        self.clients.get_mut(&stream).unwrap().asked.push_back((new, newest));
    }

    fn deliver(&mut self) {
        let clients = &mut self.clients;
        self.hub.deliver(|stream, responses| {
            clients.get_mut(&stream).expect("a closed stream is sent nothing").queue.extend(responses);
        });
        let mut bytes = 0;
        for (stream, client) in &self.clients {
            bytes += client.queue.iter().map(Response::size).sum::<usize>();
            let bounded = client.queue.iter().filter(|response| {
                matches!(response.content, Content::Events { fragment: false, .. } | Content::Progress)
            });
            assert!(bounded.count() <= self.limits.stream_responses);
            self.tally.blocked += usize::from(self.hub.is_blocked(*stream));
        }
        assert_eq!(self.hub.counts().queued_bytes, bytes);
    }

    fn take(&mut self, stream: StreamId, count: usize) {
        let client = self.clients.get_mut(&stream).unwrap();
        let taken: Vec<Response> = client.queue.drain(..count.min(client.queue.len())).collect();
        let bytes = taken.iter().map(Response::size).sum();
        for response in &taken {
            client.check(response, &self.store, &mut self.tally);
        }
        self.hub.taken(stream, taken.len(), bytes);
        self.deliver();
    }

    /// Lets everything run until nothing is left to do, and checks that nobody waits for anything.
    fn finish(&mut self) {
        while let Some((revision, changes)) = self.ring.pop_front() {
            self.hub.publish(revision, &changes);
        }
        self.hub.missed(self.store.revision());
        loop {
            while self.hub.catch_up(&self.store).unwrap() {}
            self.deliver();
            if self.clients.values().all(|client| client.queue.is_empty()) {
                break;
            }
            for stream in self.clients.keys().copied().collect::<Vec<_>>() {
                self.take(stream, usize::MAX);
            }
        }
        assert_eq!(self.hub.counts().behind, 0);
        assert_eq!(self.hub.counts().queued_bytes, 0);
        for client in self.clients.values() {
            assert!(client.asked.is_empty(), "every request for a watch is answered");
            for (id, seen) in &client.watches {
                let missing = seen.expected(&self.store).next();
                assert!(missing.is_none(), "{id:?} {:?} lacks {missing:?}", seen.new);
            }
        }
    }
}

impl Seen {
    /// What is still to come: revisions with the events that this watch wants.
    fn expected<'a>(&'a self, store: &'a Store) -> impl Iterator<Item = (Revision, Vec<&'a Change>)> {
        let wanted = |change: &&Change| {
            let record = change.record.as_ref();
            let filtered = if record.is_tombstone() { self.new.without_deletes } else { self.new.without_puts };
            self.new.range.contains(record.key()) && !filtered
        };
        store
            .log
            .iter()
            .filter(|(revision, _)| *revision >= self.next)
            .map(move |(revision, changes)| (*revision, changes.iter().filter(wanted).collect::<Vec<_>>()))
            .filter(|(_, changes)| !changes.is_empty())
    }

    fn receive(&mut self, events: Vec<Event>, header: Revision, store: &Store, tally: &mut Tally) {
        let mut rest = &events[..];
        let mut revisions = 0;
        while let Some(first) = rest.first() {
            let count = rest.iter().take_while(|event| event.kv.modified == first.kv.modified).count();
            let (now, later) = rest.split_at(count);
            let (revision, changes) = self.expected(store).next().expect("more events than there are");
            let shown: Vec<_> =
                now.iter().map(|event| (event.delete, &event.kv.key[..], &event.kv.value[..])).collect();
            let expected: Vec<_> = changes
                .iter()
                .map(|change| {
                    let record = change.record.as_ref();
                    let text = |bytes| std::str::from_utf8(bytes).unwrap();
                    (record.is_tombstone(), text(record.key()), text(record.value()))
                })
                .collect();
            assert_eq!((first.kv.modified, shown), (revision.0, expected));
            for (event, change) in now.iter().zip(changes) {
                self.check_previous(event, change, store);
            }
            self.next = revision.next();
            revisions += 1;
            rest = later;
        }
        tally.several_revisions += usize::from(revisions > 1);
        assert!(header.next() >= self.next, "the header is behind the events");
        self.check_reached(header, store);
    }

    fn check_previous(&self, event: &Event, change: &Change, store: &Store) {
        let replaced = change.previous.as_ref().map(|previous| previous.as_ref().at.main);
        match &event.previous {
            Some(previous) => {
                assert!(self.new.with_previous);
                assert_eq!(Some(Revision(previous.modified)), replaced);
                assert_eq!(previous.key, event.kv.key);
            }
            None => assert!(
                !self.new.with_previous || replaced.is_none_or(|replaced| replaced < store.compacted),
                "what was replaced is left out only when it is compacted"
            ),
        }
    }

    fn check_reached(&self, revision: Revision, store: &Store) {
        if let Some((missing, _)) = self.expected(store).next() {
            assert!(missing > revision, "{revision} was promised, and events of {missing} were not sent");
        }
    }
}

impl Client {
    fn check(&mut self, response: &Response, store: &Store, tally: &mut Tally) {
        let Response { watch: id, revision, content } = response;
        let revision = revision.unwrap_or_default();
        match content {
            Content::Created => {
                let (new, newest) = self.asked.pop_front().unwrap();
                let next = new.start.unwrap_or(newest.next());
                assert_eq!(revision, newest);
                assert!(new.id.is_none_or(|chosen| chosen == *id) && !new.range.is_empty());
                assert!(!self.compacted.contains(id));
                let taken = self.watches.insert(*id, Seen { new, next, pieces: vec![] });
                assert!(taken.is_none(), "{id:?} was in use");
            }
            Content::Refused(why) => {
                let (new, _) = self.asked.pop_front().unwrap();
                assert_eq!(*why == Refusal::EmptyRange, new.range.is_empty());
                if *why == Refusal::DuplicateId {
                    assert!(self.watches.contains_key(&new.id.unwrap()) || self.compacted.contains(&new.id.unwrap()));
                }
            }
            Content::Canceled => {
                let seen = self.watches.remove(id);
                assert!(seen.is_some() || self.compacted.remove(id));
            }
            Content::Compacted(at) => {
                let seen = self.watches.remove(id).unwrap();
                assert!(*at <= store.compacted && seen.next < *at && seen.pieces.is_empty());
                self.compacted.insert(*id);
                tally.compacted += 1;
            }
            Content::Progress => {
                tally.progress += 1;
                assert!(!self.watches.is_empty());
                for (other, seen) in &self.watches {
                    if *id == WatchId::NONE || id == other {
                        assert!(seen.pieces.is_empty());
                        assert!(seen.new.start.is_none_or(|start| start <= revision), "progress before the start");
                        seen.check_reached(revision, store);
                    }
                }
            }
            Content::Events { events, fragment } => {
                let seen = self.watches.get_mut(id).expect("events of a watch that does not exist");
                let some = decode(events);
                tally.events += some.len();
                seen.pieces.extend(some);
                if *fragment {
                    assert!(seen.new.fragment);
                    tally.fragments += 1;
                } else {
                    let events = std::mem::take(&mut seen.pieces);
                    seen.receive(events, revision, store, tally);
                }
            }
        }
    }
}

fn run(seeds: std::ops::Range<u64>) -> Tally {
    let mut total = Tally::default();
    for seed in seeds {
        let mut model = Model::new(seed);
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..400 {
                model.step();
            }
            model.finish();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
        let tally = model.tally;
        total.events += tally.events;
        total.fragments += tally.fragments;
        total.progress += tally.progress;
        total.compacted += tally.compacted;
        total.several_revisions += tally.several_revisions;
        total.blocked += tally.blocked;
    }
    total
}

#[test]
fn every_watch_gets_exactly_its_history_whatever_happens() {
    let tally = run(0..600);
    // A run in which none of this happens checks nothing.
    for (what, count, least) in [
        ("events", tally.events, 50_000),
        ("fragments", tally.fragments, 1000),
        ("progress", tally.progress, 1000),
        ("compactions", tally.compacted, 300),
        ("responses of several revisions", tally.several_revisions, 1000),
        ("blocked streams", tally.blocked, 1000),
    ] {
        assert!(count >= least, "only {count} {what}: {tally:?}");
    }
}

/// Run with `--release -- --ignored` after a change here.
#[test]
#[ignore = "the same for far longer"]
fn every_watch_gets_exactly_its_history_for_many_seeds() {
    run(1000..100_000);
}
