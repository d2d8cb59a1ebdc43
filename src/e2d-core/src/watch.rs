//! Watches: who gets which events, in which order, and who has to wait.
//!
//! ```text
//!  publish(revision, changes) ──► synced watchers, by key and by range ──► queue of each stream ──► its sender
//!                                   │ queue full, revisions missed   ▲
//!                                   ▼                                │ caught up
//!  History ──── slices ─────────► watchers that are behind: a cursor each
//! ```
//!
//! A watcher is *synced* when it was given everything up to the revision that was published last. It needs no cursor
//! then, so publishing costs nothing for watchers that the changes do not concern. Every other watcher is *behind*
//! and is a cursor into history and nothing else: what a slow client has not taken is not held in memory for it. The
//! cursor moves only when events were queued, so an event is never lost, sent twice or out of order, however often
//! a watcher falls behind and is caught up.
//!
//! The hub has no clock and no thread. Whoever drives it calls [`Hub::publish`] for every applied revision,
//! [`Hub::catch_up`] while that has work, [`Hub::tick`] at [`Hub::next_deadline`], [`Hub::deliver`] after these, and
//! [`Hub::taken`] when senders have taken messages out of their queues, which [`Hub::pop_blocked`] says is urgent.

mod index;
mod interval;
mod response;
mod stream;

pub use response::{Content, Events, Refusal, Response, WatchId};

use crate::ids::{Revision, Tick};
use crate::mvcc::change::Change;
use crate::mvcc::range::KeyRange;
use index::Index;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet};
use stream::Streams;

/// What lies in the store, for watchers that are behind.
pub trait History {
    /// Why history cannot be read.
    type Error;

    /// The newest revision that can be read, and the one that history is compacted at, 0 if it never was. Everything
    /// at or after the compacted revision can be read.
    fn bounds(&self) -> (Revision, Revision);

    /// Appends the changes from revision `from` on, in order: whole revisions, at least one, and more while they have
    /// less than about `max_bytes` together. Gives the revision to go on from, which is greater than `from`, and
    /// greater than the newest one once there is no more. `with_previous` asks for [`Change::previous`], which stays
    /// `None` where it is compacted.
    fn changes(
        &self,
        from: Revision,
        max_bytes: usize,
        with_previous: bool,
        out: &mut Vec<Change>,
    ) -> Result<Revision, Self::Error>;
}

/// The bounds of a [`Hub`].
#[derive(Clone, Debug)]
pub struct Limits {
    /// A stream whose queue has this many messages takes no more events.
    pub stream_responses: usize,
    /// A stream whose queue has this many bytes takes no more events. One message may exceed it.
    pub stream_bytes: usize,
    /// When all queues together have this many bytes, only streams with an empty queue take events. Events that
    /// several streams share count for each of them, so memory stays below this rather than reaching it.
    pub total_bytes: usize,
    /// How much history is read at once.
    pub slice_bytes: usize,
    /// How many watchers are caught up at once.
    pub slice_watchers: usize,
    /// How many revisions one message holds at most.
    pub response_revisions: usize,
    /// A message for a watcher that takes fragments is cut when it is not smaller than this: what a client request
    /// may have, and the half MiB that etcd adds to it.
    pub fragment_bytes: usize,
    /// How often an idle watch that wants it hears of progress, in milliseconds. Each time is up to a tenth longer,
    /// so that streams that were opened together do not stay together. 0 turns it off.
    pub progress_millis: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            stream_responses: 1024,
            stream_bytes: 2 << 20,
            total_bytes: 256 << 20,
            slice_bytes: 512 << 10,
            slice_watchers: 4096,
            response_revisions: 1000,
            fragment_bytes: Limits::fragment_bytes_for(3 << 19),
            progress_millis: 600_000,
        }
    }
}

impl Limits {
    /// [`Limits::fragment_bytes`] for a server that takes requests of `max_request_bytes`.
    pub const fn fragment_bytes_for(max_request_bytes: usize) -> usize {
        max_request_bytes + (512 << 10)
    }
}

/// A stream of watches. Never used again after the stream was closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId {
    slot: usize,
    serial: u64,
}

impl StreamId {
    /// A small number that no other open stream has.
    pub fn slot(self) -> usize {
        self.slot
    }
}

/// What a client asks for when it creates a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewWatch {
    /// The keys.
    pub range: KeyRange,
    /// The first revision to send events of; `None` for those after now.
    pub start: Option<Revision>,
    /// The id that the client chose.
    pub id: Option<WatchId>,
    /// Events carry what they replaced.
    pub with_previous: bool,
    /// Puts are left out.
    pub without_puts: bool,
    /// Deletions are left out.
    pub without_deletes: bool,
    /// Long messages may come in pieces.
    pub fragment: bool,
    /// While idle, the watch hears of progress from time to time.
    pub progress: bool,
}

impl NewWatch {
    /// All events of a range after now, with nothing chosen.
    pub fn of(range: KeyRange) -> NewWatch {
        NewWatch {
            range,
            start: None,
            id: None,
            with_previous: false,
            without_puts: false,
            without_deletes: false,
            fragment: false,
            progress: false,
        }
    }
}

/// How many of what a hub has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open streams.
    pub streams: usize,
    /// Watches.
    pub watchers: usize,
    /// Watches that are behind.
    pub behind: usize,
    /// Bytes in all queues, shared ones counted for each queue.
    pub queued_bytes: usize,
}

/// Tells watchers what changed.
#[derive(Debug)]
pub struct Hub {
    limits: Limits,
    /// What was published last.
    current: Revision,
    streams: Streams,
    watchers: Slab<Watcher>,
    synced: Index,
    ready: Ready,
    /// How many watchers are behind, ready or not.
    behind: usize,
    /// Streams that [`Hub::pop_blocked`] has to tell of.
    blocked: Vec<StreamId>,
    /// Streams that wait for an answer about progress.
    asked: BTreeSet<usize>,
    /// When streams with watches that hear of progress are due.
    deadlines: BTreeSet<(Tick, usize)>,
    now: Tick,
    jitter: u64,
}

#[derive(Debug)]
struct Watcher {
    stream: usize,
    id: WatchId,
    range: KeyRange,
    start: Option<Revision>,
    /// Events before this revision are not for this watcher: it has them, or asked to start later. While it is
    /// behind this is exactly where it goes on.
    next: Revision,
    state: State,
    kind: Kind,
    fragment: bool,
    /// No events were sent since progress was last looked at.
    idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Synced,
    /// Waits for its turn to be caught up, or for its stream to be unblocked.
    Behind {
        turn: Option<u64>,
    },
}

/// What watchers of the same keys may differ in that changes the events they get. Three bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    const COUNT: usize = 8;
    const PREVIOUS: u8 = 1;
    const NO_PUTS: u8 = 2;
    const NO_DELETES: u8 = 4;

    fn of(new: &NewWatch) -> Kind {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        Kind(
            bit(new.with_previous, Kind::PREVIOUS)
                | bit(new.without_puts, Kind::NO_PUTS)
                | bit(new.without_deletes, Kind::NO_DELETES),
        )
    }

    fn with_previous(self) -> bool {
        self.0 & Kind::PREVIOUS != 0
    }

    fn wants(self, delete: bool) -> bool {
        self.0 & (if delete { Kind::NO_DELETES } else { Kind::NO_PUTS }) == 0
    }
}

/// Watchers that are behind and whose stream is not blocked, in two orders: who has waited longest leads the next
/// slice, and everybody whose cursor is within that slice comes along.
#[derive(Debug, Default)]
struct Ready {
    turns: BTreeSet<(u64, usize)>,
    cursors: BTreeSet<(Revision, usize)>,
    last_turn: u64,
}

impl Ready {
    fn insert(&mut self, key: usize, watcher: &mut Watcher) {
        self.remove(key, watcher);
        self.last_turn += 1;
        watcher.state = State::Behind { turn: Some(self.last_turn) };
        self.turns.insert((self.last_turn, key));
        self.cursors.insert((watcher.next, key));
    }

    /// Leaves the watcher behind, without a turn.
    fn remove(&mut self, key: usize, watcher: &mut Watcher) {
        if let State::Behind { turn: Some(turn) } = watcher.state {
            self.turns.remove(&(turn, key));
            self.cursors.remove(&(watcher.next, key));
            watcher.state = State::Behind { turn: None };
        }
    }
}

/// Changes that are being told, and what of them was encoded so far.
struct Batch<'a> {
    changes: &'a [Change],
    /// Revision of each, and whether it deletes.
    facts: Vec<(Revision, bool)>,
    /// Each encoded without and with what it replaced.
    single: Vec<[Option<Events>; 2]>,
    several: BTreeMap<(bool, Vec<u32>), Events>,
}

impl<'a> Batch<'a> {
    fn new(changes: &'a [Change]) -> Batch<'a> {
        let facts = changes.iter().map(|change| {
            let record = change.record.as_ref();
            (record.at.main, record.is_tombstone())
        });
        Batch {
            changes,
            facts: facts.collect(),
            single: changes.iter().map(|_| [None, None]).collect(),
            several: BTreeMap::new(),
        }
    }

    /// The chosen changes, in order. The same choice gives the same memory.
    fn events(&mut self, chosen: &[u32], with_previous: bool) -> Events {
        if let [only] = chosen {
            return self.event(*only, with_previous);
        }
        let key = (with_previous, chosen.to_vec());
        if let Some(events) = self.several.get(&key) {
            return events.clone();
        }
        let parts: Vec<Events> = chosen.iter().map(|change| self.event(*change, with_previous)).collect();
        let events = Events::concat(&parts);
        self.several.insert(key, events.clone());
        events
    }

    fn event(&mut self, change: u32, with_previous: bool) -> Events {
        let change = change as usize;
        // Where nothing was replaced both forms are the same bytes.
        let with_previous = with_previous && self.changes[change].previous.is_some();
        self.single[change][usize::from(with_previous)]
            .get_or_insert_with(|| Events::encode(&self.changes[change], with_previous))
            .clone()
    }
}

impl Hub {
    /// A hub without streams, over a store whose newest revision is `current`.
    pub fn new(limits: Limits, current: Revision) -> Hub {
        Hub {
            streams: Streams::new(&limits),
            limits,
            current,
            watchers: Slab::new(),
            synced: Index::default(),
            ready: Ready::default(),
            behind: 0,
            blocked: vec![],
            asked: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            now: Tick(0),
            jitter: 0,
        }
    }

    /// The revision that was published last.
    pub fn current(&self) -> Revision {
        self.current
    }

    /// How many of what there is.
    pub fn counts(&self) -> Counts {
        Counts {
            streams: self.streams.len(),
            watchers: self.watchers.len(),
            behind: self.behind,
            queued_bytes: self.streams.queued_bytes(),
        }
    }

    /// Opens a stream.
    pub fn open(&mut self, now: Tick) -> StreamId {
        self.now = self.now.max(now);
        let id = self.streams.open();
        self.schedule(id.slot);
        id
    }

    /// Closes a stream and ends its watches. What is in its queue is not delivered.
    pub fn close(&mut self, stream: StreamId) {
        let Some(slot) = self.streams.slot(stream) else { return };
        for (_, key) in std::mem::take(&mut self.streams.get_mut(slot).watchers) {
            self.forget(key);
        }
        self.asked.remove(&slot);
        if let Some(due) = self.streams.get(slot).deadline {
            self.deadlines.remove(&(due, slot));
        }
        self.streams.close(slot);
    }

    /// Creates a watch, or refuses it. `bounds` are those of the store at this moment: a watch without a start
    /// begins after everything that clients could have been told by now, published here already or not.
    pub fn create(&mut self, stream: StreamId, new: NewWatch, bounds: (Revision, Revision)) {
        let Some(slot) = self.streams.slot(stream) else { return };
        let (newest, compacted) = (bounds.0.max(self.current), bounds.1);
        let id = match self.choose_id(slot, &new) {
            Ok(id) => id,
            Err(refusal) => return self.refuse(stream, refusal, newest),
        };
        self.streams.push(slot, Response { watch: id, revision: Some(newest), content: Content::Created });
        if new.start.is_some_and(|start| start < compacted) {
            return self.end_compacted(slot, id, compacted);
        }

        let key = self.watchers.insert(Watcher {
            stream: slot,
            id,
            start: new.start,
            next: new.start.unwrap_or(newest.next()),
            state: State::Behind { turn: None },
            kind: Kind::of(&new),
            fragment: new.fragment,
            idle: true,
            range: new.range,
        });
        let stream = self.streams.get_mut(slot);
        stream.watchers.insert(id, key);
        if new.progress {
            stream.periodic.insert(key);
        }
        if let Some(start) = new.start.filter(|start| *start > self.current) {
            stream.starts.insert((start, key));
        }
        self.place(key);
    }

    /// Answers that a watch will not be created.
    pub fn refuse(&mut self, stream: StreamId, refusal: Refusal, newest: Revision) {
        let Some(slot) = self.streams.slot(stream) else { return };
        let revision = Some(newest.max(self.current));
        self.streams.push(slot, Response { watch: WatchId::NONE, revision, content: Content::Refused(refusal) });
    }

    /// Ends a watch. An id that the stream does not have gets no answer.
    pub fn cancel(&mut self, stream: StreamId, id: WatchId, newest: Revision) {
        let Some(slot) = self.streams.slot(stream) else { return };
        let stream = self.streams.get_mut(slot);
        match stream.watchers.remove(&id) {
            Some(key) => self.forget(key),
            None if stream.compacted.remove(&id) => {}
            None => return,
        }
        let revision = Some(newest.max(self.current));
        self.streams.push(slot, Response { watch: id, revision, content: Content::Canceled });
        self.answer_progress(slot);
    }

    /// Asks for progress of the whole stream: one answer, once every watch of it was given everything up to `newest`.
    /// Requests that arrive before that share it. There is none for a stream without watches, or while one of its
    /// watches starts in the future.
    pub fn ask_progress(&mut self, stream: StreamId, newest: Revision) {
        let Some(slot) = self.streams.slot(stream) else { return };
        self.streams.get_mut(slot).asked = Some(newest.max(self.current));
        self.asked.insert(slot);
        self.answer_progress(slot);
    }

    /// Tells synced watchers of a revision. Revisions come in order; the ones left out between two calls are read
    /// from history, and one that came before is not told again.
    pub fn publish(&mut self, revision: Revision, changes: &[Change]) {
        if revision <= self.current {
            return;
        }
        if revision > self.current.next() {
            self.missed(Revision(revision.0 - 1));
        }
        self.current = revision;

        let mut batch = Batch::new(changes);
        let mut groups = Vec::new();
        let mut late = Vec::new();
        if let [change] = changes {
            self.synced.stab(change.record.as_ref().key(), &mut groups);
            for group in groups {
                self.tell(&mut batch, group, &[0], &mut late);
            }
        } else {
            let mut told: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
            for (number, change) in (0..).zip(changes) {
                groups.clear();
                self.synced.stab(change.record.as_ref().key(), &mut groups);
                for group in &groups {
                    told.entry(*group).or_default().push(number);
                }
            }
            for (group, chosen) in told {
                self.tell(&mut batch, group, &chosen, &mut late);
            }
        }
        for key in late {
            self.fall_behind(key, revision);
        }
        self.pause_blocked();
        self.answer_all_progress();
    }

    /// Every revision up to `newest` that was not published was applied all the same: watchers that lack it are
    /// behind.
    pub fn missed(&mut self, newest: Revision) {
        if newest <= self.current {
            return;
        }
        let from = self.current.next();
        self.current = newest;
        let keys: Vec<usize> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| watcher.state == State::Synced && watcher.next <= newest)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            self.fall_behind(key, from);
        }
    }

    /// Reads one slice of history and gives it to all watchers that wait for a part of it. True when there is more to
    /// do.
    ///
    /// # Errors
    /// What reading history fails with. Nothing has changed then.
    pub fn catch_up<H: History>(&mut self, history: &H) -> Result<bool, H::Error> {
        self.end_compacted_watches(history.bounds().1);
        let Some((_, leader)) = self.ready.turns.first() else { return Ok(false) };
        let from = self.watchers[*leader].next;
        let mut keys: Vec<usize> = self
            .ready
            .cursors
            .range((from, 0)..)
            .take(self.limits.slice_watchers.max(1))
            .map(|(_, key)| *key)
            .collect();
        if !keys.contains(leader) {
            keys.push(*leader);
        }

        let mut changes = Vec::new();
        let with_previous = keys.iter().any(|key| self.watchers[*key].kind.with_previous());
        let until = history.changes(from, self.limits.slice_bytes, with_previous, &mut changes)?;
        assert!(until > from, "history from revision {from} goes on at {until}, which is no progress");
        if history.bounds().1 > from {
            // History was compacted while it was read, so the slice may have holes.
            return Ok(true);
        }
        // What lies after the last published revision comes by way of `publish`.
        let until = until.min(self.current.next());
        changes.truncate(changes.partition_point(|change| change.record.as_ref().at.main < until));
        keys.retain(|key| self.watchers[*key].next < until);

        self.give_slice(&changes, &keys, until);
        self.answer_all_progress();
        Ok(self.has_work())
    }

    /// Whether [`Hub::catch_up`] has something to do.
    pub fn has_work(&self) -> bool {
        !self.ready.turns.is_empty()
    }

    /// When [`Hub::tick`] has something to do. Being early or late is harmless.
    pub fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// Tells idle watches that want it how far they are, if it is time.
    pub fn tick(&mut self, now: Tick) {
        self.now = self.now.max(now);
        while let Some((due, slot)) = self.deadlines.first().copied().filter(|(due, _)| *due <= self.now) {
            self.deadlines.remove(&(due, slot));
            self.schedule(slot);
            let keys: Vec<usize> = self.streams.get(slot).periodic.iter().copied().collect();
            for key in keys {
                let watcher = &mut self.watchers[key];
                let told = watcher.state == State::Synced && watcher.next <= self.current.next();
                let started = watcher.start.is_none_or(|start| start <= self.current);
                if watcher.idle && told && started && self.streams.accepts(slot) {
                    let response =
                        Response { watch: watcher.id, revision: Some(self.current), content: Content::Progress };
                    self.streams.push(slot, response);
                }
                watcher.idle = true;
            }
        }
        self.pause_blocked();
    }

    /// Moves all new messages to the queues of their streams, at most one call for each stream. They count as queued
    /// until [`Hub::taken`].
    pub fn deliver(&mut self, to: impl FnMut(StreamId, std::vec::Drain<'_, Response>)) {
        self.streams.deliver(to);
    }

    /// Messages have left the queue of a stream, `bytes` being the sum of [`Response::size`].
    pub fn taken(&mut self, stream: StreamId, responses: usize, bytes: usize) {
        let Some(slot) = self.streams.slot(stream) else { return };
        if self.streams.taken(slot, responses, bytes) {
            for key in self.streams.get(slot).behind.clone() {
                self.ready.insert(key, &mut self.watchers[key]);
            }
            self.answer_progress(slot);
        }
    }

    /// A stream whose queue was found full since the last call. [`Hub::taken`] has to be called for it at the latest
    /// when half of its queue was sent, and again when all of it was: until then it gets no events.
    pub fn pop_blocked(&mut self) -> Option<StreamId> {
        self.pause_blocked();
        self.blocked.pop()
    }

    /// Whether a stream gets no events until enough of its queue is sent.
    pub fn is_blocked(&self, stream: StreamId) -> bool {
        self.streams.slot(stream).is_some_and(|slot| self.streams.get(slot).blocked)
    }

    fn choose_id(&mut self, slot: usize, new: &NewWatch) -> Result<WatchId, Refusal> {
        if new.range.is_empty() {
            return Err(Refusal::EmptyRange);
        }
        let stream = self.streams.get_mut(slot);
        let used = |id: &WatchId| stream.watchers.contains_key(id) || stream.compacted.contains(id);
        match new.id {
            Some(id) if used(&id) => Err(Refusal::DuplicateId),
            Some(id) => Ok(id),
            None => {
                let mut id = WatchId(stream.next_id);
                while used(&id) {
                    id.0 += 1;
                }
                stream.next_id = id.0 + 1;
                Ok(id)
            }
        }
    }

    /// Gives one group of synced watchers the changes that are within its range. Adds those whose stream cannot take
    /// them to `late`.
    fn tell(&mut self, batch: &mut Batch<'_>, group: usize, chosen: &[u32], late: &mut Vec<usize>) {
        let mut kinds: [Option<Option<Events>>; Kind::COUNT] = Default::default();
        for key in self.synced.members(group) {
            let watcher = &mut self.watchers[*key];
            if watcher.next > self.current {
                continue;
            }
            let events = kinds[usize::from(watcher.kind.0)].get_or_insert_with(|| {
                let wanted = |change: &u32| watcher.kind.wants(batch.facts[*change as usize].1);
                if chosen.iter().all(wanted) {
                    return Some(batch.events(chosen, watcher.kind.with_previous()));
                }
                let chosen: Vec<u32> = chosen.iter().copied().filter(wanted).collect();
                (!chosen.is_empty()).then(|| batch.events(&chosen, watcher.kind.with_previous()))
            });
            let Some(events) = events else { continue };
            if self.streams.accepts(watcher.stream) {
                send(&mut self.streams, watcher, events.clone(), self.current, self.limits.fragment_bytes);
            } else {
                late.push(*key);
            }
        }
    }

    /// Gives a slice of history that reaches to before `until` to watchers whose cursors are within it.
    fn give_slice(&mut self, changes: &[Change], keys: &[usize], until: Revision) {
        let mut batch = Batch::new(changes);
        let mut index = Index::default();
        let groups: Vec<usize> = keys.iter().map(|key| index.insert(&self.watchers[*key].range, *key)).collect();
        let mut told: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut hit = Vec::new();
        for (number, change) in (0..).zip(changes) {
            hit.clear();
            index.stab(change.record.as_ref().key(), &mut hit);
            for group in &hit {
                told.entry(*group).or_default().push(number);
            }
        }

        for (key, group) in keys.iter().zip(groups) {
            let watcher = &mut self.watchers[*key];
            self.ready.remove(*key, watcher);
            let chosen: Vec<u32> = told
                .get(&group)
                .map_or(&[][..], |chosen| chosen)
                .iter()
                .copied()
                .filter(|change| {
                    let (revision, delete) = batch.facts[*change as usize];
                    revision >= watcher.next && watcher.kind.wants(delete)
                })
                .collect();
            let mut rest = &chosen[..];
            let mut next = until;
            while let Some(first) = rest.first() {
                if !self.streams.accepts(watcher.stream) {
                    next = batch.facts[*first as usize].0;
                    break;
                }
                let (now, later) = rest.split_at(revisions(rest, &batch.facts, self.limits.response_revisions));
                // The header promises what was sent: up to now for a watcher that this brings up to date, and
                // otherwise up to the last of these events.
                let reached = match now.last() {
                    Some(last) if !later.is_empty() || until <= self.current => batch.facts[*last as usize].0,
                    _ => self.current,
                };
                let events = batch.events(now, watcher.kind.with_previous());
                send(&mut self.streams, watcher, events, reached, self.limits.fragment_bytes);
                rest = later;
            }
            watcher.next = next;
        }
        for key in keys {
            self.place(*key);
        }
        self.pause_blocked();
    }

    /// Puts a watcher where its cursor says that it belongs.
    fn place(&mut self, key: usize) {
        let watcher = &mut self.watchers[key];
        self.ready.remove(key, watcher);
        let stream = self.streams.get_mut(watcher.stream);
        if watcher.next > self.current {
            watcher.state = State::Synced;
            self.behind -= usize::from(stream.behind.remove(&key));
            self.synced.insert(&watcher.range, key);
        } else {
            self.behind += usize::from(stream.behind.insert(key));
            if !stream.blocked {
                self.ready.insert(key, watcher);
            }
        }
    }

    /// A synced watcher has everything before `from`, and lacks what is there from then on.
    fn fall_behind(&mut self, key: usize, from: Revision) {
        let watcher = &mut self.watchers[key];
        self.synced.remove(&watcher.range, key);
        watcher.next = watcher.next.max(from);
        watcher.state = State::Behind { turn: None };
        self.place(key);
    }

    /// Watchers of a blocked stream do not lead slices that they could not take.
    fn pause_blocked(&mut self) {
        while let Some(slot) = self.streams.pop_newly_blocked() {
            let stream = self.streams.get(slot);
            if !stream.blocked {
                // Enough was sent since. Whoever had to wait was made ready then.
                continue;
            }
            for key in &stream.behind {
                self.ready.remove(*key, &mut self.watchers[*key]);
            }
            self.blocked.push(stream.id);
        }
    }

    fn end_compacted_watches(&mut self, compacted: Revision) {
        while let Some((_, key)) = self.ready.cursors.first().copied().filter(|(next, _)| *next < compacted) {
            let Watcher { stream: slot, id, .. } = self.watchers[key];
            self.streams.get_mut(slot).watchers.remove(&id);
            self.forget(key);
            self.end_compacted(slot, id, compacted);
            self.answer_progress(slot);
        }
    }

    /// Ends a watch of which nothing is left but its id. This goes to a full queue, too: there is nowhere to keep it,
    /// and it happens once to each watch.
    fn end_compacted(&mut self, slot: usize, id: WatchId, compacted: Revision) {
        self.streams.get_mut(slot).compacted.insert(id);
        self.streams.push(slot, Response { watch: id, revision: None, content: Content::Compacted(compacted) });
    }

    /// Removes every trace of a watcher but its id in the stream.
    fn forget(&mut self, key: usize) {
        let mut watcher = self.watchers.remove(key);
        match watcher.state {
            State::Synced => self.synced.remove(&watcher.range, key),
            State::Behind { .. } => self.ready.remove(key, &mut watcher),
        }
        let stream = self.streams.get_mut(watcher.stream);
        self.behind -= usize::from(stream.behind.remove(&key));
        stream.periodic.remove(&key);
        if let Some(start) = watcher.start {
            stream.starts.remove(&(start, key));
        }
    }

    fn answer_all_progress(&mut self) {
        if !self.asked.is_empty() {
            for slot in self.asked.clone() {
                self.answer_progress(slot);
            }
        }
    }

    /// Answers about progress what can be answered by now. The answer joins the queue behind all events before it.
    fn answer_progress(&mut self, slot: usize) {
        let stream = self.streams.get_mut(slot);
        let Some(asked) = stream.asked else { return };
        if self.current < asked {
            return;
        }
        while stream.starts.first().is_some_and(|(start, _)| *start <= self.current) {
            stream.starts.pop_first();
        }
        let withheld = stream.watchers.is_empty() || !stream.starts.is_empty();
        if !withheld {
            if !stream.behind.is_empty() {
                return;
            }
            if !self.streams.accepts(slot) {
                // Nothing of this stream is behind, so there is nothing to pause.
                return;
            }
            let response = Response { watch: WatchId::NONE, revision: Some(self.current), content: Content::Progress };
            self.streams.push(slot, response);
        }
        self.streams.get_mut(slot).asked = None;
        self.asked.remove(&slot);
    }

    fn schedule(&mut self, slot: usize) {
        let millis = self.limits.progress_millis;
        if millis > 0 {
            self.jitter = self.jitter.wrapping_add(1);
            let jitter = interval::mix(self.jitter) % (millis / 10).max(1);
            let due = self.now.plus_millis(millis.saturating_add(jitter));
            self.deadlines.insert((due, slot));
            self.streams.get_mut(slot).deadline = Some(due);
        }
    }
}

/// Queues events, in pieces if the watcher takes them and they are long.
fn send(streams: &mut Streams, watcher: &mut Watcher, events: Events, revision: Revision, fragment_bytes: usize) {
    /// What a message has besides its events, at most.
    const HEADER: usize = 64;
    watcher.idle = false;
    let mut push = |events, fragment| {
        let content = Content::Events { events, fragment };
        streams.push(watcher.stream, Response { watch: watcher.id, revision: Some(revision), content });
    };
    let limit = fragment_bytes.saturating_sub(HEADER);
    if !watcher.fragment || events.bytes().len() <= limit {
        return push(events, false);
    }
    let pieces = events.split(limit);
    let last = pieces.len() - 1;
    for (number, piece) in pieces.into_iter().enumerate() {
        push(piece, number < last);
    }
}

/// How many of `changes` belong to the first `max` revisions.
fn revisions(changes: &[u32], facts: &[(Revision, bool)], max: usize) -> usize {
    let (mut count, mut last) = (0, None);
    for (place, change) in changes.iter().enumerate() {
        let revision = facts[*change as usize].0;
        if last != Some(revision) {
            if count == max.max(1) {
                return place;
            }
            (count, last) = (count + 1, Some(revision));
        }
    }
    changes.len()
}

#[cfg(test)]
mod tests;
