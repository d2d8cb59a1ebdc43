//! Reading the key space at a revision: memtables above, durable tables below, merged.

use crate::ids::{At, Revision};
use crate::mvcc::change::Change;
use crate::mvcc::memtable::{Layers, Walk};
use crate::mvcc::range::KeyRange;
use crate::mvcc::record::{BadRecord, Record, RecordRef};
use crate::mvcc::request::*;
use std::ops::ControlFlow;

/// The durable tables at one moment. They may lack what the memtables hold, and hold more than the revision that is
/// read.
pub trait Tables {
    /// The newest record of a key, a deletion included. Its value may be left to the event, see
    /// [`RecordRef::is_by_reference`].
    fn head(&self, key: &[u8]) -> Result<Option<RecordRef<'_>>, StoreError>;

    /// The newest records of the keys of a range in their order, deletions included, until `visit` breaks.
    fn scan_heads(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError>;

    /// The event at a place, or `None` when it was compacted.
    fn event(&self, at: At) -> Result<Option<RecordRef<'_>>, StoreError>;

    /// All events from a place on, until `visit` breaks.
    fn scan_events(
        &self,
        from: At,
        visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError>;
}

/// The durable tables cannot be read as they should be. This ends the process: it is never a client's fault, and going
/// on would answer with wrong data.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A row fails its checksum, or is not what its place says.
    #[error("table {table}, row {row}: {cause}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong.
        cause: BadRecord,
    },
    /// A row that must be there is missing, or two rows contradict each other.
    #[error("table {table}: {what}")]
    Inconsistent {
        /// Which table.
        table: &'static str,
        /// What contradicts what.
        what: String,
    },
    /// There is no space on the disk.
    #[error(
        "{doing}: no space left on the disk of the data directory: free some, then start again; nothing acknowledged is lost"
    )]
    DiskFull {
        /// The operation.
        doing: &'static str,
    },
    /// The database says no.
    #[error("{doing}: {cause}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The database's words.
        cause: String,
    },
}

/// A record in a memtable or in mapped memory.
pub enum Found<'a> {
    /// Shared with a memtable.
    Shared(Record),
    /// In the memory of the durable tables.
    Mapped(RecordRef<'a>),
}

impl Found<'_> {
    /// The parsed record.
    pub fn as_ref(&self) -> RecordRef<'_> {
        match self {
            Found::Shared(record) => record.as_ref(),
            Found::Mapped(record) => *record,
        }
    }

    /// An owned record: shared, or copied from mapped memory.
    pub fn into_record(self) -> Record {
        match self {
            Found::Shared(record) => record,
            Found::Mapped(record) => record.to_record(),
        }
    }
}

/// The key space as it was at the moments of its layers and tables. The layers must have been taken before the tables
/// were opened: then whatever left a layer by being committed is in the tables.
pub struct View<'t, T> {
    layers: Layers,
    tables: &'t T,
}

impl<'t, T: Tables> View<'t, T> {
    /// See the type.
    pub fn new(layers: Layers, tables: &'t T) -> View<'t, T> {
        View { layers, tables }
    }

    /// The layers.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The newest record of a key, a deletion included.
    pub fn head(&self, key: &[u8]) -> Result<Option<Found<'t>>, StoreError> {
        if let Some(record) = self.layers.head(key) {
            return Ok(Some(Found::Shared(record)));
        }
        match self.tables.head(key)? {
            Some(head) => Ok(Some(self.whole(head)?)),
            None => Ok(None),
        }
    }

    /// The event at a place, or `None` when it was compacted.
    pub fn event(&self, at: At) -> Result<Option<Found<'t>>, StoreError> {
        if let Some(record) = self.layers.event(at) {
            return Ok(Some(Found::Shared(record)));
        }
        Ok(self.tables.event(at)?.map(Found::Mapped))
    }

    /// A key at a revision; `None` when it did not exist then.
    pub fn get(&self, key: &[u8], at: Revision) -> Result<Option<Found<'t>>, StoreError> {
        match self.head(key)? {
            Some(head) => self.back_to(head, at),
            None => Ok(None),
        }
    }

    /// The row of the key table with its value.
    fn whole(&self, head: RecordRef<'t>) -> Result<Found<'t>, StoreError> {
        if !head.is_by_reference() {
            return Ok(Found::Mapped(head));
        }
        let event = self.event(head.at)?;
        event.ok_or_else(|| StoreError::Inconsistent {
            table: "keys",
            what: format!("the newest record of a key refers to event {}, which the history does not have", head.at),
        })
    }

    /// Follows the history of a key back to the state at `at`.
    fn back_to<'a>(&self, newest: Found<'a>, at: Revision) -> Result<Option<Found<'a>>, StoreError>
    where
        't: 'a,
    {
        let mut found = newest;
        while found.as_ref().at.main > at {
            let Some(older) = found.as_ref().towards(at) else { return Ok(None) };
            match self.event(older)? {
                Some(event) => found = event,
                // Compacted: whatever was there ended before the oldest readable revision.
                None => return Ok(None),
            }
        }
        Ok((!found.as_ref().is_tombstone()).then_some(found))
    }

    /// Every key of a range that existed at a revision, in order, until `visit` breaks.
    pub fn scan(
        &self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if range.is_single() {
            if let Some(found) = self.get(&range.start, at)? {
                let _ = visit(found);
            }
            return Ok(());
        }
        if range.is_empty() {
            return Ok(());
        }
        let mut walk = Walk::new(&self.layers, range);
        let mut show = |found: Found<'_>| -> Result<ControlFlow<()>, StoreError> {
            Ok(match self.back_to(found, at)? {
                Some(found) => visit(found),
                None => ControlFlow::Continue(()),
            })
        };
        let mut stopped = false;
        self.tables.scan_heads(range, &mut |row| {
            while let Some(newer) = walk.peek() {
                let newer_key = newer.as_ref().key();
                if newer_key > row.key() {
                    break;
                }
                let same = newer_key == row.key();
                if let Some(newer) = walk.advance()
                    && show(Found::Shared(newer))?.is_break()
                {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
                if same {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            // Most rows are as new as asked for; only their values may be elsewhere.
            let flow = if row.is_by_reference() {
                let whole = self.event(row.at)?.ok_or_else(|| StoreError::Inconsistent {
                    table: "keys",
                    what: format!(
                        "the newest record of a key refers to event {}, which the history does not have",
                        row.at
                    ),
                })?;
                show(whole)?
            } else {
                show(Found::Mapped(row))?
            };
            stopped = flow.is_break();
            Ok(flow)
        })?;
        while !stopped && let Some(newer) = walk.advance() {
            stopped = show(Found::Shared(newer))?.is_break();
        }
        Ok(())
    }

    /// The number of keys of a range that existed at a revision.
    pub fn count(&self, range: &KeyRange, at: Revision) -> Result<u64, StoreError> {
        let mut count = 0;
        self.scan(range, at, &mut |_| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Answers a query at `current`, which is the newest revision that the reader may see. Whoever calls has checked
    /// the revision that is asked for.
    pub fn range(&self, query: &RangeQuery, current: Revision) -> Result<RangeResponse, StoreError> {
        let mut records = Vec::new();
        let summary = self.range_into(query, current, &mut |found| records.push(found.into_record()))?;
        Ok(RangeResponse { records, more: summary.more, count: summary.count, keys_only: query.keys_only })
    }

    /// The same, handing each record of the answer to `take` in the order of the answer.
    pub fn range_into(
        &self,
        query: &RangeQuery,
        current: Revision,
        take: &mut dyn FnMut(Found<'_>),
    ) -> Result<RangeSummary, StoreError> {
        let at = query.revision.unwrap_or(current);
        if query.count_only {
            return Ok(RangeSummary { count: self.count(&query.range, at)?, more: false });
        }
        let limit = query.limit.unwrap_or(u64::MAX);
        let order = query.order;
        if order.by == OrderBy::Key && !order.descending {
            let (mut count, mut taken, mut more) = (0, 0, false);
            self.scan(&query.range, at, &mut |found| {
                count += 1;
                if query.filter.admits(&found.as_ref()) {
                    if taken < limit {
                        taken += 1;
                        take(found);
                    } else {
                        more = true;
                    }
                }
                ControlFlow::Continue(())
            })?;
            return Ok(RangeSummary { count, more });
        }

        // etcd fetches only `limit + 1` records when no order is asked for, and sorts those.
        let fetch = if order.unspecified && query.filter == RevisionFilter::default() {
            limit.saturating_add(1)
        } else {
            u64::MAX
        };
        let (mut count, mut records) = (0, Vec::new());
        self.scan(&query.range, at, &mut |found| {
            count += 1;
            if count <= fetch && query.filter.admits(&found.as_ref()) {
                records.push(found.into_record());
            }
            ControlFlow::Continue(())
        })?;
        // Stable, so that equal records stay in the order of their keys in both directions.
        let compare = |left: &Record, right: &Record| {
            let (left, right) = (left.as_ref(), right.as_ref());
            match order.by {
                OrderBy::Key => left.key().cmp(right.key()),
                OrderBy::Version => left.version.cmp(&right.version),
                OrderBy::Created => left.created.main.cmp(&right.created.main),
                OrderBy::Modified => left.at.main.cmp(&right.at.main),
                OrderBy::Value => left.value().cmp(right.value()),
            }
        };
        if order.descending {
            records.sort_by(|left, right| compare(right, left));
        } else {
            records.sort_by(compare);
        }
        let more = records.len() as u64 > limit;
        records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        records.into_iter().for_each(|record| take(Found::Shared(record)));
        Ok(RangeSummary { count, more })
    }

    /// All events from a revision on, in order, until `visit` breaks.
    pub fn events(
        &self,
        from: Revision,
        visit: &mut dyn FnMut(&RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        // The layers hold everything after what is committed, so the tables are read up to the first event of a layer.
        let first_in_layers = self.layers.iter().filter_map(|layer| layer.first_event()).min();
        let mut last = None;
        let mut stopped = false;
        self.tables.scan_events(At::start_of(from), &mut |event| {
            if first_in_layers.is_some_and(|first| event.at >= first) {
                return Ok(ControlFlow::Break(()));
            }
            last = Some(event.at);
            let flow = visit(&event);
            stopped = flow.is_break();
            Ok(flow)
        })?;
        let mut layers: Vec<_> = self.layers.iter().collect();
        layers.reverse();
        for layer in layers {
            let mut start = last.map_or(At::start_of(from), At::after);
            while !stopped {
                let events = layer.events_from(start, 256);
                let Some(end) = events.last().map(|event| event.as_ref().at) else { break };
                stopped = events.iter().any(|event| visit(&event.as_ref()).is_break());
                last = Some(end);
                start = end.after();
            }
        }
        Ok(())
    }

    /// Changes from a revision on up to the newest, for a watcher that is behind: whole revisions, until
    /// they have about `max_bytes`, but at least one. Gives the revision to go on from.
    pub fn changes(
        &self,
        from: Revision,
        published: Published,
        max_bytes: usize,
        with_previous: bool,
        out: &mut Vec<Change>,
    ) -> Result<Revision, StoreError> {
        let until = published.revision;
        let mut next = from;
        let mut bytes = 0;
        let mut stopped = false;
        let mut failed = None;
        self.events(from, &mut |event| {
            let main = event.at.main;
            if main > until || (bytes > 0 && bytes >= max_bytes && main >= next) {
                stopped = true;
                return ControlFlow::Break(());
            }
            bytes += event.bytes().len();
            next = main.next();
            let previous = match event.previous {
                // Whether a sweep has removed it yet makes no difference.
                Some(previous) if with_previous && published.compacted.is_none_or(|compacted| main > compacted) => {
                    self.event(previous).and_then(|previous| match previous {
                        // What the key was before the whole revision: it may hold several events of one key.
                        Some(previous) => self.back_to(previous, Revision(main.0 - 1)),
                        None => Ok(None),
                    })
                }
                _ => Ok(None),
            };
            match previous {
                Ok(previous) => {
                    out.push(Change { record: event.to_record(), previous: previous.map(Found::into_record) });
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None if stopped => Ok(next),
            None => Ok(until.next().max(next)),
        }
    }
}

/// What a range answer says beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeSummary {
    /// How many keys the range has, whatever limit and filter say.
    pub count: u64,
    /// Whether the limit cut the answer.
    pub more: bool,
}

impl RevisionFilter {
    /// Whether a record is within the bounds.
    pub fn admits(&self, record: &RecordRef<'_>) -> bool {
        self.min_modified.is_none_or(|min| record.at.main >= min)
            && self.max_modified.is_none_or(|max| record.at.main <= max)
            && self.min_created.is_none_or(|min| record.created.main >= min)
            && self.max_created.is_none_or(|max| record.created.main <= max)
    }
}

impl Published {
    /// Whether the state at a revision can be read.
    pub fn check(&self, wanted: Option<Revision>) -> Result<(), Rejected> {
        let Some(wanted) = wanted else { return Ok(()) };
        if wanted > self.revision {
            return Err(Rejected::FutureRevision { wanted, current: self.revision });
        }
        match self.compacted {
            Some(compacted) if wanted < compacted => Err(Rejected::Compacted { wanted, compacted }),
            _ if wanted.0 == 0 => Err(Rejected::Compacted { wanted, compacted: Revision(0) }),
            _ => Ok(()),
        }
    }
}

pub use crate::mvcc::memtable::Published;
