//! The log as raft reads it: its newest entries in memory, the older ones in the WAL.

use crate::wal::{SnapshotMark, WalError, WalReader};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::collections::VecDeque;

/// Entries are read from the WAL when they are no longer among the newest with so many bytes: a follower that is a
/// little behind is served from memory.
const CACHED_BYTES: usize = 4 << 20;

/// See the module.
pub(super) struct RaftLog {
    hard_state: HardState,
    conf_state: ConfState,
    /// The last entry that the store has made durable and the log may lack.
    mark: SnapshotMark,
    wal: WalReader,
    newest: VecDeque<Entry>,
    cached_bytes: usize,
    /// The last entry.
    last: (u64, u64),
}

impl RaftLog {
    /// The log as it was found.
    pub(super) fn new(hard_state: HardState, conf_state: ConfState, mark: SnapshotMark, wal: WalReader) -> RaftLog {
        let last_index = wal.last_index();
        let last_term = wal.term(last_index).unwrap_or(mark.term);
        RaftLog {
            hard_state,
            conf_state,
            mark,
            wal,
            newest: VecDeque::new(),
            cached_bytes: 0,
            last: (last_index, last_term),
        }
    }

    /// Raft has these entries written. They may replace some that the log has.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.newest.back().is_some_and(|last| last.index >= first.index) {
            self.cached_bytes -= self.newest.pop_back().map_or(0, |entry| entry.data.len());
        }
        for entry in entries {
            self.cached_bytes += entry.data.len();
            self.newest.push_back(entry.clone());
            self.last = (entry.index, entry.term);
        }
        while self.cached_bytes > CACHED_BYTES && self.newest.len() > 1 {
            self.cached_bytes -= self.newest.pop_front().map_or(0, |entry| entry.data.len());
        }
    }

    /// The store has everything up to the mark; the WAL knows it.
    pub(super) fn compact(&mut self, mark: SnapshotMark) {
        while self.newest.front().is_some_and(|entry| entry.index <= mark.index) {
            self.cached_bytes -= self.newest.pop_front().map_or(0, |entry| entry.data.len());
        }
        self.mark = mark;
    }

    /// The last mark.
    pub(super) fn mark(&self) -> &SnapshotMark {
        &self.mark
    }

    /// The configuration, as of the last committed change.
    pub(super) fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// The configuration.
    pub(super) fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    fn cached(&self, index: u64) -> Option<&Entry> {
        let first = self.newest.front()?.index;
        self.newest.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }
}

fn lost(error: WalError) -> Error {
    Error::Store(StorageError::Other(Box::new(error)))
}

impl Storage for RaftLog {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state, conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.mark.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        if self.cached(low).is_none() {
            let high = self.newest.front().map_or(high, |first| high.min(first.index));
            return self.wal.entries(low, high, max_size).map_err(lost);
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(entry) = self.cached(index) else { break };
            bytes += entry.data.len() as u64 + 32;
            if bytes > max_size && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.mark.index {
            return Ok(self.mark.term);
        }
        if index < self.mark.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if let Some(entry) = self.cached(index) {
            return Ok(entry.term);
        }
        self.wal.term(index).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.mark.index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last.0.max(self.mark.index))
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
