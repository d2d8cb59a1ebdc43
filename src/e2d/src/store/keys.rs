//! The newest record of every key, in the order of the keys, which may be longer than LMDB's.
//!
//! A key of up to [`PIECE`] bytes is its own row key. A longer one is cut into pieces: a row with the first piece and
//! a zero byte names a node, and the rest of the key is a row of that node in the second database, cut again if it has
//! to be:
//!
//! ```text
//! keys       a…a (480)        → record of a…a
//!            a…a (480) 00     → node 7               sorts after a…a and before everything else that is greater
//!            b                → record of b
//! long_keys  7 ccc            → record of a…accc
//! ```
//!
//! Rows with a zero byte appended are one byte longer than a piece, which tells them apart, and every key that starts
//! with the same piece is behind it, so the order of rows is the order of keys. A record has its whole key in it.

use super::io;
use super::tables::{damaged, hex};
use e2d_core::mvcc::range::{KeyRange, RangeEnd};
use e2d_core::mvcc::record::{BadRecord, RecordRef};
use e2d_core::mvcc::view::StoreError;
use heed::types::Bytes as Raw;
use heed::{Database, RoTxn, RwTxn};
use std::ops::{Bound, ControlFlow};

/// LMDB's keys have at most 511 bytes; a node number and the zero byte have to fit as well.
const PIECE: usize = 480;
const NODE: usize = 8;

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct KeyTable {
    pub(super) keys: Database<'static, Raw, Raw>,
    pub(super) long_keys: Database<'static, Raw, Raw>,
}

type Visit<'v> = dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError> + 'v;

/// The row key of `rest`, the part of a key that is left in `node`; and what is left below it, if it does not fit.
fn row_key(node: Option<u64>, rest: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut row = Vec::with_capacity(NODE + PIECE + 1);
    row.extend(node.into_iter().flat_map(u64::to_be_bytes));
    match rest.split_at_checked(PIECE) {
        Some((piece, below)) if !below.is_empty() => {
            row.extend_from_slice(piece);
            row.push(0);
            (row, Some(below))
        }
        _ => {
            row.extend_from_slice(rest);
            (row, None)
        }
    }
}

impl KeyTable {
    fn database(&self, node: Option<u64>) -> &Database<'static, Raw, Raw> {
        if node.is_some() { &self.long_keys } else { &self.keys }
    }

    fn fetch<'t>(&self, txn: &'t RoTxn<'_>, node: Option<u64>, row: &[u8]) -> Result<Option<&'t [u8]>, StoreError> {
        self.database(node).get(txn, row).map_err(|error| io("reading a key", error))
    }

    /// The newest record of a key.
    pub(super) fn get<'t>(&self, txn: &'t RoTxn<'_>, key: &[u8]) -> Result<Option<RecordRef<'t>>, StoreError> {
        if key.is_empty() {
            return Ok(None);
        }
        if key.len() <= PIECE {
            return self.fetch(txn, None, key)?.map(|row| parse(key, row)).transpose();
        }
        let (mut node, mut rest) = (None, key);
        loop {
            let (row_key, below) = row_key(node, rest);
            let Some(row) = self.fetch(txn, node, &row_key)? else { return Ok(None) };
            let Some(below) = below else { return parse(key, row).map(Some) };
            (node, rest) = (Some(parse_node(&row_key, row)?), below);
        }
    }

    /// Sets the row of a key.
    pub(super) fn put(&self, txn: &mut RwTxn<'_>, key: &[u8], head: &[u8]) -> Result<(), StoreError> {
        let (mut node, mut rest) = (None, key);
        loop {
            let (row_key, below) = row_key(node, rest);
            let Some(below) = below else {
                return self.database(node).put(txn, &row_key, head).map_err(|error| io("writing a key", error));
            };
            let child = match self.fetch(txn, node, &row_key)? {
                Some(row) => parse_node(&row_key, row)?,
                None => {
                    let child = self.next_node(txn)?;
                    let row = node_row(&row_key, child);
                    self.database(node).put(txn, &row_key, &row).map_err(|error| io("writing a key", error))?;
                    child
                }
            };
            (node, rest) = (Some(child), below);
        }
    }

    /// A number that no node has had. The last one is in the only row of node 0.
    fn next_node(&self, txn: &mut RwTxn<'_>) -> Result<u64, StoreError> {
        let counter = 0u64.to_be_bytes();
        let last = self.fetch(txn, Some(0), &counter)?.map_or(Ok(0), |row| parse_node(&counter, row))?;
        let next = last + 1;
        self.long_keys.put(txn, &counter, &node_row(&counter, next)).map_err(|error| io("writing a key", error))?;
        Ok(next)
    }

    /// Removes the row of a key if its record meets the condition.
    pub(super) fn delete_if(
        &self,
        txn: &mut RwTxn<'_>,
        key: &[u8],
        condition: impl Fn(&RecordRef<'_>) -> bool,
    ) -> Result<bool, StoreError> {
        // The rows on the way down, to take away links to nodes that become empty.
        let mut way = Vec::new();
        let (mut node, mut rest) = (None, key);
        loop {
            let (row_key, below) = row_key(node, rest);
            let Some(row) = self.fetch(txn, node, &row_key)? else { return Ok(false) };
            let Some(below) = below else {
                if !condition(&parse(key, row)?) {
                    return Ok(false);
                }
                way.push((node, row_key));
                break;
            };
            let child = parse_node(&row_key, row)?;
            way.push((node, row_key));
            (node, rest) = (Some(child), below);
        }
        while let Some((node, row_key)) = way.pop() {
            self.database(node).delete(txn, &row_key).map_err(|error| io("removing a key", error))?;
            let Some(node) = node else { break };
            let prefix = node.to_be_bytes();
            let mut left = self.long_keys.prefix_iter(txn, &prefix).map_err(|error| io("reading a key", error))?;
            if left.next().transpose().map_err(|error| io("reading a key", error))?.is_some() {
                break;
            }
        }
        Ok(true)
    }

    /// The rows of a range in the order of their keys.
    pub(super) fn scan(&self, txn: &RoTxn<'_>, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        if range.end == RangeEnd::Single {
            if let Some(record) = self.get(txn, &range.start)? {
                let _ = visit(record)?;
            }
            return Ok(());
        }
        self.scan_node(txn, None, &range.start, range, visit).map(drop)
    }

    /// Visits what is in `node` from `from` on, which is what is left of the range's start there.
    fn scan_node(
        &self,
        txn: &RoTxn<'_>,
        node: Option<u64>,
        from: &[u8],
        range: &KeyRange,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let (mut start, _) = row_key(node, from);
        let prefix = node.map_or(0, |_| NODE);
        if start.is_empty() {
            // LMDB takes no empty key; no user key is empty either.
            start.push(0);
        }
        let end = node.map(|node| (node + 1).to_be_bytes());
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        let bounds = (Bound::Included(&start[..]), end);
        for row in self.database(node).range(txn, &bounds).map_err(|error| io("reading keys", error))? {
            let (key, row) = row.map_err(|error| io("reading keys", error))?;
            let piece = &key[prefix..];
            if piece.len() > PIECE {
                // The start of the range counts inside only where it goes through this very node.
                let below = from.split_at_checked(PIECE).filter(|(head, _)| **head == piece[..PIECE]);
                let below = below.map_or(&[][..], |(_, below)| below);
                if self.scan_node(txn, Some(parse_node(key, row)?), below, range, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            }
            let record = RecordRef::parse(row).map_err(|cause| damaged("keys", hex(key), cause))?;
            if !record.key().ends_with(piece) {
                return Err(misplaced(key, &record));
            }
            if let RangeEnd::Before(end) = &range.end
                && record.key() >= &end[..]
            {
                return Ok(ControlFlow::Break(()));
            }
            if visit(record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn parse<'r>(key: &[u8], row: &'r [u8]) -> Result<RecordRef<'r>, StoreError> {
    let record = RecordRef::parse(row).map_err(|cause| damaged("keys", hex(key), cause))?;
    if record.key() != key {
        return Err(misplaced(key, &record));
    }
    Ok(record)
}

fn misplaced(key: &[u8], record: &RecordRef<'_>) -> StoreError {
    StoreError::Inconsistent {
        table: "keys",
        what: format!("row {} has the record of key {}", hex(key), hex(record.key())),
    }
}

fn node_row(row_key: &[u8], node: u64) -> [u8; 12] {
    let mut row = [0; 12];
    row[4..].copy_from_slice(&node.to_be_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(row_key), &row[4..]);
    row[..4].copy_from_slice(&crc.to_be_bytes());
    row
}

fn parse_node(row_key: &[u8], row: &[u8]) -> Result<u64, StoreError> {
    let bad = |cause| damaged("keys", hex(row_key), cause);
    let (found, node) = row.split_first_chunk::<4>().ok_or_else(|| bad(BadRecord::Malformed(0)))?;
    let computed = crc32c::crc32c_append(crc32c::crc32c(row_key), node);
    let found = u32::from_be_bytes(*found);
    if found != computed {
        return Err(bad(BadRecord::Checksum { found, computed }));
    }
    node.try_into().map(u64::from_be_bytes).map_err(|_| bad(BadRecord::Malformed(row.len())))
}
