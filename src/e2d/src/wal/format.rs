//! How a segment looks on the disk. Numbers are little-endian.
//!
//! ```text
//! segment   block 0: header │ frame │ frame │ … │ free space
//! header    magic 8 │ version 4 │ block bytes 4 │ cluster 8 │ node 8 │ salt 8 │ capacity 8 │
//!           sequence 4 │ flags 4 │ first index 8 │ first frame 8 │ crc 4
//! frame     starts at a block:  frame record │ record │ record │ … │ zeros to the end of the block
//! record    crc 4 │ length 4 │ type 1 │ zero 3 │ payload (length bytes)
//! ```
//!
//! A frame is one batch: it is in the log whole or not at all. Its first record has its number, which is one more than
//! that of the frame before, over the borders of segments as well, and the length and the CRC of the rest. That CRC
//! keeps apart two frames that were written to the same place, the first of which was lost in a power cut: the later
//! one's records would be valid beside what is left of the earlier one's.
//!
//! A record's CRC-32C covers everything behind it, and starts from a value made of the log's salt, the segment's
//! sequence and the record's offset. Of two equal records that differ in one of the latter two, the CRCs differ for
//! certain: what a recycled segment still holds from its earlier life is never valid in its new one, nor is a block
//! that the disk put in a wrong place of the same segment.

use std::ops::Range;
use std::path::Path;

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::log::MAX_INDEX;
use super::{Identity, LogAfter, SnapshotMark, WalError};

/// The format this version writes and reads.
pub(super) const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"e2d-wal\n";
pub(super) const HEADER_BYTES: usize = 76;
pub(super) const RECORD_HEADER_BYTES: usize = 12;
/// The frame record, with its header.
pub(super) const FRAME_BYTES: usize = RECORD_HEADER_BYTES + 16;
/// An entry's payload before its context and data.
const ENTRY_FIXED_BYTES: usize = 24;
const HARD_STATE_BYTES: usize = 24;
const MARK_FIXED_BYTES: usize = 17;

/// The segment was written before, so none of its blocks has to be allocated by the first write to it.
const FLAG_RECYCLED: u32 = 1;

const TYPE_FRAME: u8 = 1;
const TYPE_ENTRY: u8 = 2;
const TYPE_HARD_STATE: u8 = 3;
const TYPE_MARK: u8 = 4;

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) salt: u64,
    pub(super) block_bytes: u32,
    pub(super) capacity: u64,
    pub(super) sequence: u32,
    pub(super) recycled: bool,
    pub(super) first_index: u64,
    pub(super) first_frame: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let flags = if self.recycled { FLAG_RECYCLED } else { 0 };
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.identity.cluster_id.to_le_bytes());
        out[24..32].copy_from_slice(&self.identity.node_id.to_le_bytes());
        out[32..40].copy_from_slice(&self.salt.to_le_bytes());
        out[40..48].copy_from_slice(&self.capacity.to_le_bytes());
        out[48..52].copy_from_slice(&self.sequence.to_le_bytes());
        out[52..56].copy_from_slice(&flags.to_le_bytes());
        out[56..64].copy_from_slice(&self.first_index.to_le_bytes());
        out[64..72].copy_from_slice(&self.first_frame.to_le_bytes());
        let crc = crc32c::crc32c(&out[..72]);
        out[72..76].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of the segment `path`. `bytes` is the file's beginning.
    pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<Header, WalError> {
        let corrupt = |offset, what: String| Err(WalError::corrupt(path, offset, what));
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return corrupt(
                0,
                format!("a header of {HEADER_BYTES} bytes, found {}", bytes.len()),
            );
        };
        if &bytes[..8] != MAGIC {
            return corrupt(0, format!("expected {MAGIC:?}, found {:?}", &bytes[..8]));
        }
        let (crc, found) = (crc32c::crc32c(&bytes[..72]), u32_at(bytes, 72));
        if crc != found {
            return corrupt(
                72,
                format!("header crc {found:#010x}, computed {crc:#010x}"),
            );
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(WalError::Version { path: path.to_owned(), expected: VERSION, found: version });
        }
        let header = Header {
            identity: Identity { cluster_id: u64_at(bytes, 16), node_id: u64_at(bytes, 24) },
            salt: u64_at(bytes, 32),
            block_bytes: u32_at(bytes, 12),
            capacity: u64_at(bytes, 40),
            sequence: u32_at(bytes, 48),
            recycled: u32_at(bytes, 52) & FLAG_RECYCLED != 0,
            first_index: u64_at(bytes, 56),
            first_frame: u64_at(bytes, 64),
        };
        if !valid_block_bytes(header.block_bytes) || header.capacity > MAX_SEGMENT_BYTES {
            let (block, capacity) = (header.block_bytes, header.capacity);
            return corrupt(
                12,
                format!("blocks of {block} bytes, {capacity} bytes in all"),
            );
        }
        let numbers = 1..=MAX_INDEX;
        if !numbers.contains(&header.first_index) || !numbers.contains(&header.first_frame) {
            let (index, frame) = (header.first_index, header.first_frame);
            return corrupt(56, format!("first index {index}, first frame {frame}"));
        }
        Ok(header)
    }

    /// Where the CRC of this segment's records starts from, before the offset comes in.
    pub(super) fn seed(&self) -> u32 {
        // The multiplication is a bijection: sequences that differ give seeds that differ.
        crc32c::crc32c(&self.salt.to_le_bytes()) ^ self.sequence.wrapping_mul(0x9e37_79b1)
    }
}

/// A segment's offsets are 32 bits wide, with room for one block more.
pub(super) const MAX_SEGMENT_BYTES: u64 = u32::MAX as u64 - (1 << 20);

pub(super) fn valid_block_bytes(block_bytes: u32) -> bool {
    block_bytes.is_power_of_two() && (512..=1 << 20).contains(&block_bytes)
}

fn record_crc(seed: u32, offset: u64, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(seed ^ offset as u32, rest)
}

/// The size of an entry's record.
pub(super) fn entry_bytes(entry: &Entry) -> u64 {
    (RECORD_HEADER_BYTES + ENTRY_FIXED_BYTES + entry.context.len() + entry.data.len()) as u64
}

pub(super) fn hard_state_bytes() -> u64 {
    (RECORD_HEADER_BYTES + HARD_STATE_BYTES) as u64
}

pub(super) fn mark_bytes(mark: &SnapshotMark) -> u64 {
    (RECORD_HEADER_BYTES + MARK_FIXED_BYTES + mark.conf_state.encoded_len()) as u64
}

/// Writes the records of one frame into a buffer.
pub(super) struct FrameWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Where the frame begins in `out`.
    start: usize,
    seed: u32,
    /// Where `out[start]` goes in the segment.
    offset: u64,
}

impl<'a> FrameWriter<'a> {
    /// Begins a frame at `offset` of the segment, behind what `out` holds.
    pub(super) fn new(out: &'a mut Vec<u8>, seed: u32, offset: u64) -> FrameWriter<'a> {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        FrameWriter { out, start, seed, offset }
    }

    /// Adds an entry and returns where its record is in the segment.
    pub(super) fn entry(&mut self, entry: &Entry) -> u64 {
        let at = self.begin(TYPE_ENTRY);
        self.out.extend_from_slice(&entry.index.to_le_bytes());
        self.out.extend_from_slice(&entry.term.to_le_bytes());
        self.out.extend_from_slice(&entry.entry_type.to_le_bytes());
        let context_bytes = entry.context.len() as u32;
        self.out.extend_from_slice(&context_bytes.to_le_bytes());
        self.out.extend_from_slice(&entry.context);
        self.out.extend_from_slice(&entry.data);
        self.end(at);
        self.segment_offset(at)
    }

    pub(super) fn hard_state(&mut self, hard_state: &HardState) {
        let at = self.begin(TYPE_HARD_STATE);
        self.out.extend_from_slice(&hard_state.term.to_le_bytes());
        self.out.extend_from_slice(&hard_state.vote.to_le_bytes());
        self.out.extend_from_slice(&hard_state.commit.to_le_bytes());
        self.end(at);
    }

    pub(super) fn mark(&mut self, mark: &SnapshotMark) {
        let at = self.begin(TYPE_MARK);
        self.out.push(match mark.log {
            LogAfter::Kept => 0,
            LogAfter::Discarded => 1,
        });
        self.out.extend_from_slice(&mark.index.to_le_bytes());
        self.out.extend_from_slice(&mark.term.to_le_bytes());
        mark.conf_state.encode_raw(self.out);
        self.end(at);
    }

    /// Ends the frame with its number, and fills its last block with zeros.
    pub(super) fn finish(mut self, number: u64, block_bytes: u32) {
        let body = &self.out[self.start + FRAME_BYTES..];
        let (body_bytes, body_crc) = (body.len() as u32, crc32c::crc32c(body));
        let payload = self.start + RECORD_HEADER_BYTES;
        self.out[payload..payload + 8].copy_from_slice(&number.to_le_bytes());
        self.out[payload + 8..payload + 12].copy_from_slice(&body_bytes.to_le_bytes());
        self.out[payload + 12..payload + 16].copy_from_slice(&body_crc.to_le_bytes());
        self.seal(self.start, self.start + FRAME_BYTES, TYPE_FRAME);
        let bytes = (self.out.len() - self.start).next_multiple_of(block_bytes as usize);
        self.out.resize(self.start + bytes, 0);
    }

    fn begin(&mut self, kind: u8) -> usize {
        let at = self.out.len();
        self.out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, kind, 0, 0, 0]);
        at
    }

    fn end(&mut self, at: usize) {
        let kind = self.out[at + 8];
        self.seal(at, self.out.len(), kind);
    }

    fn seal(&mut self, at: usize, end: usize, kind: u8) {
        let length = (end - at - RECORD_HEADER_BYTES) as u32;
        self.out[at + 4..at + 8].copy_from_slice(&length.to_le_bytes());
        self.out[at + 8] = kind;
        let crc = record_crc(self.seed, self.segment_offset(at), &self.out[at + 4..end]);
        self.out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }

    fn segment_offset(&self, at: usize) -> u64 {
        self.offset + (at - self.start) as u64
    }

    /// Adds a record of any type, for tests of the reader.
    #[cfg(test)]
    pub(super) fn raw(&mut self, kind: u8, payload: &[u8]) {
        let at = self.begin(kind);
        self.out.extend_from_slice(payload);
        self.end(at);
    }
}

/// The first record of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) number: u64,
    /// The bytes of the records behind this one.
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
}

impl FrameHeader {
    /// The frame record in `bytes`, if one is there that was written for this place of this segment.
    pub(super) fn decode(bytes: &[u8], seed: u32, offset: u64) -> Option<FrameHeader> {
        let bytes = bytes.get(..FRAME_BYTES)?;
        if bytes[8] != TYPE_FRAME {
            return None;
        }
        let record = Record::decode(bytes, seed, offset).ok()?;
        let payload = &bytes[record.payload];
        (payload.len() == FRAME_BYTES - RECORD_HEADER_BYTES).then(|| FrameHeader {
            number: u64_at(payload, 0),
            body_bytes: u32_at(payload, 8),
            body_crc: u32_at(payload, 12),
        })
    }
}

/// A record whose CRC is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    kind: u8,
    /// Where its payload is in the bytes it was read from.
    payload: Range<usize>,
}

impl Record {
    /// Reads the record at the beginning of `bytes`, which is at `offset` of its segment.
    fn decode(bytes: &[u8], seed: u32, offset: u64) -> Result<Record, String> {
        let Some(header) = bytes.get(..RECORD_HEADER_BYTES) else {
            return Err(format!("{} bytes where a record should be", bytes.len()));
        };
        let length = u32_at(header, 4) as usize;
        let Some(rest) = bytes.get(4..RECORD_HEADER_BYTES.saturating_add(length)) else {
            let room = bytes.len() - RECORD_HEADER_BYTES;
            return Err(format!("a record of {length} bytes where {room} are left"));
        };
        let (crc, found) = (record_crc(seed, offset, rest), u32_at(header, 0));
        if crc != found {
            return Err(format!("record crc {found:#010x}, computed {crc:#010x}"));
        }
        Ok(Record { kind: header[8], payload: RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length })
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    Entry {
        index: u64,
        term: u64,
        /// The record in the segment.
        offset: u64,
        record_bytes: u32,
    },
    HardState(HardState),
    Mark(SnapshotMark),
}

/// Reads the records of a frame whose CRC is right. `body` is what follows the frame record, at `offset` of the segment.
///
/// # Errors
/// Where the first record is that means nothing, and why.
pub(super) fn decode_body(body: &[u8], seed: u32, offset: u64, items: &mut Vec<Item>) -> Result<(), (u64, String)> {
    items.clear();
    let mut at = 0;
    while at < body.len() {
        let here = offset + at as u64;
        let (item, record_bytes) = decode_item(&body[at..], seed, here).map_err(|what| (here, what))?;
        items.push(item);
        at += record_bytes;
    }
    Ok(())
}

/// Reads the record at the beginning of `bytes`, and returns its size as well.
fn decode_item(bytes: &[u8], seed: u32, offset: u64) -> Result<(Item, usize), String> {
    let record = Record::decode(bytes, seed, offset)?;
    let record_bytes = record.payload.end;
    let payload = &bytes[record.payload];
    let item = match record.kind {
        TYPE_ENTRY => {
            let fixed = EntryFixed::decode(payload)?;
            Item::Entry { index: fixed.index, term: fixed.term, offset, record_bytes: record_bytes as u32 }
        }
        TYPE_HARD_STATE if payload.len() == HARD_STATE_BYTES => Item::HardState(HardState {
            term: u64_at(payload, 0),
            vote: u64_at(payload, 8),
            commit: u64_at(payload, 16),
        }),
        TYPE_MARK => Item::Mark(decode_mark(payload)?),
        kind => {
            return Err(format!(
                "a record of type {kind} and {} bytes",
                payload.len()
            ));
        }
    };
    Ok((item, record_bytes))
}

/// The part of an entry before its context and data.
struct EntryFixed {
    index: u64,
    term: u64,
    entry_type: i32,
    context_bytes: usize,
}

impl EntryFixed {
    fn decode(payload: &[u8]) -> Result<EntryFixed, String> {
        if payload.len() < ENTRY_FIXED_BYTES {
            return Err(format!("an entry of {} bytes", payload.len()));
        }
        let fixed = EntryFixed {
            index: u64_at(payload, 0),
            term: u64_at(payload, 8),
            entry_type: u32_at(payload, 16) as i32,
            context_bytes: u32_at(payload, 20) as usize,
        };
        let room = payload.len() - ENTRY_FIXED_BYTES;
        if fixed.context_bytes > room {
            let found = fixed.context_bytes;
            return Err(format!(
                "an entry's context of {found} bytes where {room} are left"
            ));
        }
        Ok(fixed)
    }
}

/// Reads the entry whose record is `record`, at `offset` of its segment. `take` makes the entry's bytes of a range of
/// `record`.
pub(super) fn decode_entry(
    record: &[u8],
    seed: u32,
    offset: u64,
    take: impl Fn(Range<usize>) -> bytes::Bytes,
) -> Result<Entry, String> {
    let found = Record::decode(record, seed, offset)?;
    if found.kind != TYPE_ENTRY {
        return Err(format!(
            "a record of type {} where an entry was",
            found.kind
        ));
    }
    let fixed = EntryFixed::decode(&record[found.payload.clone()])?;
    let context = found.payload.start + ENTRY_FIXED_BYTES;
    let data = context + fixed.context_bytes;
    Ok(Entry {
        entry_type: fixed.entry_type,
        term: fixed.term,
        index: fixed.index,
        context: take(context..data),
        data: take(data..found.payload.end),
        ..Entry::default()
    })
}

fn decode_mark(payload: &[u8]) -> Result<SnapshotMark, String> {
    if payload.len() < MARK_FIXED_BYTES {
        return Err(format!("a snapshot mark of {} bytes", payload.len()));
    }
    let (fixed, conf_state) = payload.split_at(MARK_FIXED_BYTES);
    Ok(SnapshotMark {
        log: match fixed[0] {
            0 => LogAfter::Kept,
            1 => LogAfter::Discarded,
            kind => return Err(format!("a snapshot mark of kind {kind}")),
        },
        index: u64_at(fixed, 1),
        term: u64_at(fixed, 9),
        conf_state: ConfState::decode(conf_state).map_err(|e| format!("a snapshot mark's configuration: {e}"))?,
    })
}

/// The caller has checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

/// The caller has checked the length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}
