//! The changes since the last commit of the durable tables.
//!
//! One thread applies; any number read at the same time. A memtable only grows: nothing in it changes once its
//! revision is published, except that the newest record of a key takes the place of an older one, which stays among
//! the events. So a reader that keeps the layers it started with sees one revision for as long as it likes, and the
//! lock is held for moments only.

use crate::ids::{At, Revision};
use crate::mvcc::range::KeyRange;
use crate::mvcc::record::Record;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A durable table that is small and read only at start. The key space has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Lease id -> its times.
    Leases,
    /// Lease id and creation place of a key -> the key.
    Attachments,
    /// Member id -> the member.
    Members,
    /// Member and kind -> nothing.
    Alarms,
    /// Where a section of the keys starts, behind a byte so that it is not empty -> how many keys it has.
    Fences,
    /// Name -> number, see [`crate::mvcc::machine`].
    Meta,
}

/// See the module.
#[derive(Default)]
pub struct Memtable {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    heads: BTreeMap<Bytes, Record>,
    events: Vec<(At, Record)>,
    rows: BTreeMap<(Table, Bytes), Option<Bytes>>,
    bytes: usize,
    record_bytes: u64,
}

/// What a key or an event costs beside its bytes: map nodes, counters, allocator overhead.
const ENTRY_OVERHEAD: usize = 160;

impl Memtable {
    /// Adds an event, which is the newest of its key and of all.
    pub fn push(&self, record: Record) {
        let (at, key) = (record.as_ref().at, record.key());
        let mut inner = self.write();
        debug_assert!(inner.events.last().is_none_or(|(last, _)| *last < at), "events come in order");
        inner.bytes += record.bytes().len() + ENTRY_OVERHEAD;
        inner.record_bytes += record.as_ref().size();
        inner.events.push((at, record.clone()));
        inner.heads.insert(key, record);
    }

    /// Sets or removes a row of a small table.
    pub fn put_row(&self, table: Table, key: impl Into<Bytes>, value: Option<Bytes>) {
        let key = key.into();
        let mut inner = self.write();
        inner.bytes += key.len() + value.as_ref().map_or(0, Bytes::len) + ENTRY_OVERHEAD;
        inner.rows.insert((table, key), value);
    }

    /// The newest record of a key.
    pub fn head(&self, key: &[u8]) -> Option<Record> {
        self.read().heads.get(key).cloned()
    }

    /// The event at a place.
    pub fn event(&self, at: At) -> Option<Record> {
        let inner = self.read();
        let index = inner.events.binary_search_by_key(&at, |(at, _)| *at).ok()?;
        Some(inner.events[index].1.clone())
    }

    /// Up to `max` events from `from` on, in order.
    pub fn events_from(&self, from: At, max: usize) -> Vec<Record> {
        let inner = self.read();
        let start = inner.events.partition_point(|(at, _)| *at < from);
        inner.events[start..].iter().take(max).map(|(_, record)| record.clone()).collect()
    }

    /// The place of the first event, if there is one.
    pub fn first_event(&self) -> Option<At> {
        self.read().events.first().map(|(at, _)| *at)
    }

    /// Up to `max` newest records of the keys of `range` that are after `after`, in order.
    pub fn heads(&self, range: &KeyRange, after: Option<&[u8]>, max: usize) -> Vec<Record> {
        let Some((start, end)) = range.bounds() else { return Vec::new() };
        let start = match after {
            Some(after) => {
                let past_end = match end {
                    Bound::Included(end) => after >= end,
                    Bound::Excluded(end) => after >= end,
                    Bound::Unbounded => false,
                };
                if past_end {
                    return Vec::new();
                }
                Bound::Excluded(after)
            }
            None => start,
        };
        self.read().heads.range::<[u8], _>((start, end)).take(max).map(|(_, record)| record.clone()).collect()
    }

    /// Bytes of memory, roughly.
    pub fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// Bytes that its events count for against the quota.
    pub fn record_bytes(&self) -> u64 {
        self.read().record_bytes
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        let inner = self.read();
        inner.events.is_empty() && inner.rows.is_empty()
    }

    /// Visits everything in the order in which tables want it: newest records by key, events by place, rows by table.
    pub fn drain_into<E>(&self, sink: &mut impl Sink<Error = E>) -> Result<(), E> {
        let inner = self.read();
        for record in inner.heads.values() {
            sink.head(record)?;
        }
        for (at, record) in &inner.events {
            sink.event(*at, record)?;
        }
        for ((table, key), value) in &inner.rows {
            sink.row(*table, key, value.as_deref())?;
        }
        Ok(())
    }

    // A panic while the lock is held ends the process: there is no state behind a poisoned lock to protect.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Where [`Memtable::drain_into`] puts things.
pub trait Sink {
    /// What can go wrong.
    type Error;
    /// The newest record of a key.
    fn head(&mut self, record: &Record) -> Result<(), Self::Error>;
    /// An event.
    fn event(&mut self, at: At, record: &Record) -> Result<(), Self::Error>;
    /// A row of a small table, or its removal.
    fn row(&mut self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), Self::Error>;
}

/// The memtables above the durable tables, newest first: the one that is written to, and the one that is being
/// committed, if there is one. A reader keeps the layers that it started with.
#[derive(Clone, Default)]
pub struct Layers {
    /// The one that is written to.
    pub active: Arc<Memtable>,
    /// The one that is being committed.
    pub frozen: Option<Arc<Memtable>>,
}

impl Layers {
    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&*self.active).chain(self.frozen.as_deref())
    }

    /// The newest record of a key in any layer.
    pub fn head(&self, key: &[u8]) -> Option<Record> {
        self.iter().find_map(|layer| layer.head(key))
    }

    /// The event at a place in any layer.
    pub fn event(&self, at: At) -> Option<Record> {
        self.iter().find_map(|layer| layer.event(at))
    }
}

/// The newest records of a range in all layers, in the order of their keys, fetched a piece at a time so that no lock
/// is held for long. Records that were written after the walk began may or may not be in it.
pub(crate) struct Walk<'a> {
    layers: &'a Layers,
    range: &'a KeyRange,
    ready: std::vec::IntoIter<Record>,
    next: Option<Record>,
    /// The key after which the next piece starts; `None` at the beginning.
    after: Option<Bytes>,
    /// All pieces were fetched.
    complete: bool,
    piece: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(layers: &'a Layers, range: &'a KeyRange) -> Walk<'a> {
        let mut walk = Walk {
            layers,
            range,
            ready: Vec::new().into_iter(),
            next: None,
            after: None,
            complete: false,
            piece: 64,
        };
        walk.advance();
        walk
    }

    pub(crate) fn peek(&self) -> Option<&Record> {
        self.next.as_ref()
    }

    pub(crate) fn advance(&mut self) -> Option<Record> {
        let taken = self.next.take();
        self.next = self.ready.next();
        if self.next.is_none() && !self.complete {
            self.fetch();
            self.next = self.ready.next();
        }
        taken
    }

    fn fetch(&mut self) {
        let pieces: Vec<Vec<Record>> =
            self.layers.iter().map(|layer| layer.heads(self.range, self.after.as_deref(), self.piece)).collect();
        // A layer that gave a full piece may have more: beyond its last key the merged order is not known yet.
        let known_to =
            pieces.iter().filter(|piece| piece.len() == self.piece).filter_map(|piece| piece.last()).map(Record::key).min();
        let mut merged: BTreeMap<Bytes, Record> = BTreeMap::new();
        for piece in pieces.into_iter().rev() {
            for record in piece {
                let key = record.key();
                if known_to.as_ref().is_none_or(|known_to| key <= *known_to) {
                    merged.insert(key, record);
                }
            }
        }
        self.complete = known_to.is_none();
        self.after = known_to;
        self.piece = (self.piece * 2).min(4096);
        self.ready = merged.into_values().collect::<Vec<_>>().into_iter();
    }
}

/// The revision up to which a reader may go, kept by whoever applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The newest revision whose request was applied as a whole.
    pub revision: Revision,
    /// What is still readable, or `None` when nothing was ever compacted.
    pub compacted: Option<Revision>,
}
