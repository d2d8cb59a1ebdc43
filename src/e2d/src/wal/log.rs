//! What is in the log, and where: the part of it that is in memory.
//!
//! Twenty-four bytes an entry, whatever its size. The entries themselves are on the disk.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};

use super::format::{self, Header, Item};
use super::{Batch, LogAfter, SnapshotMark, WalError};
use crate::disk::DiskFile;

/// How much is read from a segment at once, in bytes, unless one entry is larger.
const READ_BYTES: u64 = 1 << 20;

/// No log gets there; what lies above is damage, and would overflow.
pub(super) const MAX_INDEX: u64 = u64::MAX / 2;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: Header,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn DiskFile>,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) term: u64,
    /// The segment's sequence.
    pub(super) segment: u32,
    /// Its record in the segment.
    pub(super) offset: u32,
    pub(super) record_bytes: u32,
}

/// The log as the segments have it.
#[derive(Debug)]
pub(super) struct Log {
    /// The index of the first slot, or the one the next entry will have.
    first: u64,
    slots: VecDeque<Slot>,
    pub(super) mark: SnapshotMark,
    pub(super) hard_state: HardState,
    pub(super) segments: BTreeMap<u32, Arc<Segment>>,
}

impl Log {
    /// An empty log whose next entry is `first`.
    pub(super) fn new(first: u64) -> Log {
        Log {
            first,
            slots: VecDeque::new(),
            mark: SnapshotMark::default(),
            hard_state: HardState::default(),
            segments: BTreeMap::new(),
        }
    }

    pub(super) fn first_index(&self) -> u64 {
        self.first
    }

    pub(super) fn last_index(&self) -> u64 {
        self.first + self.slots.len() as u64 - 1
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(index.checked_sub(self.first)? as usize)
    }

    pub(super) fn term(&self, index: u64) -> Option<u64> {
        match self.slot(index) {
            Some(slot) => Some(slot.term),
            None if index == self.mark.index => Some(self.mark.term),
            None => None,
        }
    }

    /// What a segment says, carried out.
    ///
    /// # Errors
    /// Why it makes no sense where it stands; nothing is changed then.
    pub(super) fn apply(&mut self, item: &Item, segment: u32) -> Result<(), String> {
        match item {
            Item::Entry { index, term, offset, record_bytes } => {
                self.check_entry(*index, *term)?;
                let slot = Slot { term: *term, segment, offset: *offset as u32, record_bytes: *record_bytes };
                self.put_entry(*index, slot);
            }
            Item::HardState(hard_state) => {
                self.check_hard_state(hard_state, self.last_index())?;
                self.hard_state = *hard_state;
            }
            Item::Mark(mark) => {
                self.check_mark(mark)?;
                self.put_mark(mark);
            }
        }
        Ok(())
    }

    /// Whether an entry may follow.
    fn check_entry(&self, index: u64, term: u64) -> Result<(), String> {
        let (last, mark) = (self.last_index(), self.mark.index);
        // What follows a segment that was released may lie below where the segment says that it starts, but a log
        // that has entries has no holes.
        if index == 0 || index > last + 1 || index > MAX_INDEX {
            return Err(format!("entry {index} where the last is {last}"));
        }
        if index <= mark {
            return Err(format!(
                "entry {index}, which the snapshot at {mark} covers"
            ));
        }
        if index <= self.hard_state.commit {
            let commit = self.hard_state.commit;
            return Err(format!(
                "entry {index} again, which was committed ({commit})"
            ));
        }
        match self.term(index - 1) {
            Some(before) if before > term => Err(format!("entry {index} of term {term} behind one of term {before}")),
            _ => Ok(()),
        }
    }

    /// Whether a batch makes sense behind what there is.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn check_batch(&self, batch: &Batch<'_>) -> Result<(), String> {
        let mut before = None;
        if let Some(mark) = batch.snapshot {
            self.check_mark(mark)?;
            if mark.log == LogAfter::Discarded {
                before = Some((mark.index, mark.term));
            } else if batch.entries.first().is_some_and(|e| e.index <= mark.index) {
                return Err("an entry that the snapshot in the same batch covers".to_owned());
            }
        }
        let mut last = before.map_or(self.last_index(), |(index, _)| index);
        for entry in batch.entries {
            match before {
                None => self.check_entry(entry.index, entry.term)?,
                Some((index, term)) if entry.index != index + 1 || entry.term < term => {
                    return Err(format!(
                        "entry {} of term {} behind entry {index} of term {term}",
                        entry.index, entry.term
                    ));
                }
                Some(_) => {}
            }
            before = Some((entry.index, entry.term));
            last = entry.index;
        }
        match batch.hard_state {
            Some(hard_state) => self.check_hard_state(hard_state, last),
            None => Ok(()),
        }
    }

    pub(super) fn put_entry(&mut self, index: u64, slot: Slot) {
        if index < self.first {
            self.first = index;
            self.slots.clear();
        }
        self.slots.truncate((index - self.first) as usize);
        self.slots.push_back(slot);
    }

    fn check_hard_state(&self, hard_state: &HardState, last: u64) -> Result<(), String> {
        let commit = hard_state.commit;
        if commit > last {
            return Err(format!("commit {commit} where the last entry is {last}"));
        }
        let (now, before) = (hard_state, &self.hard_state);
        if now.term < before.term || now.commit < before.commit {
            return Err(format!(
                "term {} and commit {} after term {} and commit {}",
                now.term, now.commit, before.term, before.commit
            ));
        }
        Ok(())
    }

    fn check_mark(&self, mark: &SnapshotMark) -> Result<(), String> {
        let (index, before) = (mark.index, self.mark.index);
        if index < before || index > MAX_INDEX {
            return Err(format!("a snapshot at {index} after one at {before}"));
        }
        if mark.log == LogAfter::Discarded {
            let commit = self.hard_state.commit;
            return if index < commit {
                Err(format!(
                    "a snapshot at {index} in the place of committed entries ({commit})"
                ))
            } else {
                Ok(())
            };
        }
        let last = self.last_index();
        if index > last {
            return Err(format!(
                "a snapshot at {index} where the last entry is {last}"
            ));
        }
        match self.term(index) {
            Some(term) if term != mark.term => {
                Err(format!("a snapshot at {index} of term {} where the entry is of term {term}", mark.term))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn put_mark(&mut self, mark: &SnapshotMark) {
        if mark.log == LogAfter::Discarded {
            self.slots.clear();
            self.first = mark.index + 1;
        }
        self.mark = SnapshotMark { log: LogAfter::Kept, ..mark.clone() };
    }

    /// The oldest segment that is needed if the entries up to `upto` are not.
    pub(super) fn oldest_needed(&self, upto: u64) -> Option<u32> {
        match self.slot(upto.max(self.first - 1) + 1) {
            Some(slot) => Some(slot.segment),
            None => self.segments.keys().next_back().copied(),
        }
    }

    /// Forgets a segment and its entries. They are the first ones.
    pub(super) fn forget_segment(&mut self, sequence: u32) -> Option<Arc<Segment>> {
        while self.slots.front().is_some_and(|s| s.segment == sequence) {
            self.slots.pop_front();
            self.first += 1;
        }
        self.segments.remove(&sequence)
    }

    /// Which reads give the entries from `lo` to `hi` (exclusive), as many as `max_bytes` allow, but at least one.
    pub(super) fn plan(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Read>, WalError> {
        let (first, last) = (self.first, self.last_index());
        let out_of_range = || WalError::OutOfRange { lo, hi, first, last };
        if lo < first || hi > last + 1 || lo > hi {
            return Err(out_of_range());
        }
        let mut reads: Vec<Read> = Vec::new();
        let mut bytes = 0;
        for index in lo..hi {
            let slot = *self.slot(index).ok_or_else(out_of_range)?;
            bytes += u64::from(slot.record_bytes);
            if bytes > max_bytes && index > lo {
                break;
            }
            match reads.last_mut() {
                Some(read) if read.takes(&slot) => read.slots.push((index, slot)),
                _ => reads.push(Read {
                    segment: Arc::clone(self.segments.get(&slot.segment).ok_or_else(out_of_range)?),
                    slots: vec![(index, slot)],
                }),
            }
        }
        Ok(reads)
    }
}

/// One read of one segment. The segment stays open, and is not recycled, as long as this exists.
#[derive(Debug)]
pub(super) struct Read {
    segment: Arc<Segment>,
    /// At least one, at rising offsets.
    slots: Vec<(u64, Slot)>,
}

impl Read {
    fn start(&self) -> u64 {
        u64::from(self.slots[0].1.offset)
    }

    fn takes(&self, slot: &Slot) -> bool {
        let end = u64::from(slot.offset) + u64::from(slot.record_bytes);
        slot.segment == self.segment.header.sequence
            && u64::from(slot.offset) > self.start()
            && end - self.start() <= READ_BYTES
    }

    /// Reads and checks the entries.
    pub(super) fn perform(&self, out: &mut Vec<Entry>) -> Result<(), WalError> {
        let Segment { header, path, file } = &*self.segment;
        let (_, last) = self.slots[self.slots.len() - 1];
        let bytes = (u64::from(last.offset) - self.start()) as usize + last.record_bytes as usize;
        let mut buf = vec![0; bytes];
        let found = file.read_full(&mut buf, self.start()).map_err(WalError::io("reading", path))?;
        buf.truncate(found);
        let buf = Bytes::from(buf);
        // Entries share the buffer they were read into, unless it is mostly something else: the padding behind small
        // batches would be kept in memory as long as any of them.
        let wanted: usize = self
            .slots
            .iter()
            .map(|(_, s)| s.record_bytes as usize)
            .sum();
        let share = wanted * 2 > bytes;
        for (index, slot) in &self.slots {
            let offset = u64::from(slot.offset);
            let corrupt = |what| WalError::corrupt(path, offset, what);
            let at = (offset - self.start()) as usize;
            let end = at + slot.record_bytes as usize;
            let record = match buf.get(at..end) {
                Some(_) => buf.slice(at..end),
                None => return Err(corrupt(format!("{found} bytes where {bytes} should be"))),
            };
            let entry = format::decode_entry(&record, header.seed(), offset, |range| {
                if share { record.slice(range) } else { Bytes::copy_from_slice(&record[range]) }
            })
            .map_err(corrupt)?;
            if (entry.index, entry.term) != (*index, slot.term) {
                return Err(corrupt(format!(
                    "entry {} of term {} where entry {index} of term {} was",
                    entry.index, entry.term, slot.term
                )));
            }
            out.push(entry);
        }
        Ok(())
    }
}
