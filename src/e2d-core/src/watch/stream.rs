//! Streams and their queues: which may take more, and what waits to be handed to their senders.

use super::response::{Response, WatchId};
use super::{Limits, StreamId};
use crate::ids::{Revision, Tick};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Drain;

/// All streams, and what their queues hold together.
#[derive(Debug)]
pub(super) struct Streams {
    slots: Slab<Stream>,
    opened: u64,
    /// Streams whose outbox is not empty, in the order in which that began.
    unsent: Vec<usize>,
    /// Streams that were blocked and not asked about since.
    newly_blocked: Vec<usize>,
    queued_bytes: usize,
    max_responses: usize,
    max_bytes: usize,
    max_total_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) watchers: BTreeMap<WatchId, usize>,
    /// Ids of watches that a compaction ended. They stay taken until the client cancels them.
    pub(super) compacted: BTreeSet<WatchId>,
    /// Watchers that have to be caught up.
    pub(super) behind: BTreeSet<usize>,
    /// Explicit start revisions that were not reached when last looked at.
    pub(super) starts: BTreeSet<(Revision, usize)>,
    /// Watchers that asked for progress from time to time.
    pub(super) periodic: BTreeSet<usize>,
    /// The client asked for progress, when the store was at this revision.
    pub(super) asked: Option<Revision>,
    /// When periodic progress is due.
    pub(super) deadline: Option<Tick>,
    pub(super) next_id: i64,
    /// The queue was full when something was to be added. Ends when half of it was sent, not at the first free
    /// place, so that a slow stream reads history in pieces worth their cost.
    pub(super) blocked: bool,
    outbox: Vec<Response>,
    queued_responses: usize,
    queued_bytes: usize,
}

impl Streams {
    pub(super) fn new(limits: &Limits) -> Streams {
        Streams {
            slots: Slab::new(),
            opened: 0,
            unsent: vec![],
            newly_blocked: vec![],
            queued_bytes: 0,
            max_responses: limits.stream_responses,
            max_bytes: limits.stream_bytes,
            max_total_bytes: limits.total_bytes,
        }
    }

    pub(super) fn open(&mut self) -> StreamId {
        self.opened += 1;
        let entry = self.slots.vacant_entry();
        let id = StreamId { slot: entry.key(), serial: self.opened };
        entry.insert(Stream {
            id,
            watchers: BTreeMap::new(),
            compacted: BTreeSet::new(),
            behind: BTreeSet::new(),
            starts: BTreeSet::new(),
            periodic: BTreeSet::new(),
            asked: None,
            deadline: None,
            next_id: 0,
            blocked: false,
            outbox: vec![],
            queued_responses: 0,
            queued_bytes: 0,
        });
        id
    }

    pub(super) fn close(&mut self, slot: usize) {
        let stream = self.slots.remove(slot);
        self.queued_bytes -= stream.queued_bytes;
        if !stream.outbox.is_empty() {
            self.unsent.retain(|unsent| *unsent != slot);
        }
        self.newly_blocked.retain(|blocked| *blocked != slot);
    }

    /// The slot of a stream, unless it was closed.
    pub(super) fn slot(&self, id: StreamId) -> Option<usize> {
        self.slots.get(id.slot).filter(|stream| stream.id == id).map(|_| id.slot)
    }

    pub(super) fn get(&self, slot: usize) -> &Stream {
        &self.slots[slot]
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> &mut Stream {
        &mut self.slots[slot]
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether events and progress may be added; notes when not. An empty queue takes anything, else an event larger
    /// than the bound would never be sent. A full one does take what [`Streams::push`] is given: only events can be
    /// had again from history, so only they wait.
    pub(super) fn accepts(&mut self, slot: usize) -> bool {
        let stream = &mut self.slots[slot];
        if stream.blocked {
            return false;
        }
        let room = stream.queued_responses < self.max_responses
            && stream.queued_bytes < self.max_bytes
            && self.queued_bytes < self.max_total_bytes;
        if !room && stream.queued_responses > 0 {
            stream.blocked = true;
            self.newly_blocked.push(slot);
        }
        !stream.blocked
    }

    /// A stream that [`Streams::accepts`] found full since the last call.
    pub(super) fn pop_newly_blocked(&mut self) -> Option<usize> {
        self.newly_blocked.pop()
    }

    pub(super) fn push(&mut self, slot: usize, response: Response) {
        let stream = &mut self.slots[slot];
        let size = response.size();
        stream.queued_responses += 1;
        stream.queued_bytes += size;
        self.queued_bytes += size;
        if stream.outbox.is_empty() {
            self.unsent.push(slot);
        }
        stream.outbox.push(response);
    }

    /// Notes that messages have left the queue. True when that unblocks the stream.
    pub(super) fn taken(&mut self, slot: usize, responses: usize, bytes: usize) -> bool {
        let stream = &mut self.slots[slot];
        assert!(
            responses <= stream.queued_responses && bytes <= stream.queued_bytes,
            "a stream sent {responses} messages of {bytes} bytes, more than its queue held"
        );
        stream.queued_responses -= responses;
        stream.queued_bytes -= bytes;
        self.queued_bytes -= bytes;
        let half_empty = stream.queued_responses <= self.max_responses / 2
            && stream.queued_bytes <= self.max_bytes / 2
            && self.queued_bytes < self.max_total_bytes;
        let unblocks = stream.blocked && (half_empty || stream.queued_responses == 0);
        if unblocks {
            stream.blocked = false;
        }
        unblocks
    }

    pub(super) fn deliver(&mut self, mut to: impl FnMut(StreamId, Drain<'_, Response>)) {
        for slot in self.unsent.drain(..) {
            let stream = &mut self.slots[slot];
            to(stream.id, stream.outbox.drain(..));
            // A burst's memory is not kept for ever, once for each of thousands of streams.
            stream.outbox.shrink_to(16);
        }
    }
}
