//! A history in memory, and writing to it.

use crate::ids::{At, Revision};
use crate::mvcc::change::Change;
use crate::mvcc::record::{NewEvent, Put, Record};
use crate::watch::History;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;

#[derive(Default)]
pub(super) struct Store {
    /// Every change there ever was.
    pub(super) log: Vec<(Revision, Vec<Change>)>,
    latest: BTreeMap<Vec<u8>, Record>,
    pub(super) compacted: Revision,
    /// How many slices were read.
    pub(super) reads: Cell<usize>,
}

impl Store {
    pub(super) fn revision(&self) -> Revision {
        self.log.last().map_or(Revision::INITIAL, |(revision, _)| *revision)
    }

    pub(super) fn bounds(&self) -> (Revision, Revision) {
        (self.revision(), self.compacted)
    }

    /// Applies one request: puts, and deletions of keys that exist. Nothing happens when that is nothing.
    pub(super) fn write(&mut self, writes: &[(&str, Option<&str>)]) -> Option<(Revision, Vec<Change>)> {
        let main = self.revision().next();
        let mut changes = vec![];
        for (key, value) in writes {
            let before = self.latest.get(key.as_bytes());
            let live = before.filter(|before| !before.as_ref().is_tombstone()).cloned();
            if value.is_none() && live.is_none() {
                continue;
            }
            let record = Record::encode(NewEvent {
                at: At { main, sub: changes.len() as u32 },
                key: key.as_bytes(),
                put: value.map(|value| Put { value: value.as_bytes(), lease: None }),
                before: before.map(Record::as_ref),
            });
            self.latest.insert(key.as_bytes().to_vec(), record.clone());
            changes.push(Change { record, previous: live });
        }
        if changes.is_empty() {
            return None;
        }
        self.log.push((main, changes.clone()));
        Some((main, changes))
    }

    pub(super) fn compact(&mut self, at: Revision) {
        assert!(at >= self.compacted && at <= self.revision());
        self.compacted = at;
    }
}

impl History for Store {
    type Error = Infallible;

    fn bounds(&self) -> (Revision, Revision) {
        Store::bounds(self)
    }

    fn changes(
        &self,
        from: Revision,
        max_bytes: usize,
        with_previous: bool,
        out: &mut Vec<Change>,
    ) -> Result<Revision, Infallible> {
        assert!(from >= self.compacted, "revision {from} was asked for and is compacted at {}", self.compacted);
        assert!(from <= self.revision(), "revision {from} was asked for and is in the future");
        self.reads.set(self.reads.get() + 1);
        let mut bytes = 0;
        for (revision, changes) in self.log.iter().filter(|(revision, _)| *revision >= from) {
            for change in changes {
                bytes += change.record.bytes().len();
                let mut change = change.clone();
                let kept = |record: &Record| with_previous && record.as_ref().at.main >= self.compacted;
                change.previous = change.previous.filter(kept);
                out.push(change);
            }
            if bytes >= max_bytes {
                return Ok(revision.next());
            }
        }
        Ok(self.revision().next())
    }
}
