//! One event of one key, as bytes: what the history table, the memtable, a response and a watch event share.
//!
//! ```text
//! crc32c u32 │ flags u8 │ depth u8 │ sub, create_sub, previous, anchor: varints │ mvccpb.KeyValue
//! ```
//!
//! The key-value part is stored as the protobuf message that clients receive, so that a list or a watch event is a
//! copy of memory and no encoding. Its field order is fixed here, which lets [`RecordRef::parse`] find every field in
//! one pass. LMDB has no page checksums, so every record carries its own, and everything that reads one checks it.
//!
//! Records of one key form a chain: `previous` is the event before this one, a deletion included, and `anchor` is a
//! far older one, so that reading an old revision of a key with a long history does not walk event by event.

use crate::ids::{At, LeaseId, Revision};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

const CRC: usize = 4;
const FLAGS: usize = 4;
const DEPTH: usize = 5;
const HEADER: usize = 6;

/// The key was deleted.
const TOMBSTONE: u8 = 1;
/// The value was left out; the history table has it. Only rows of the key table have this flag.
const BY_REFERENCE: u8 = 2;

/// An anchor is this many events apart from the next.
const ANCHOR_SPACING: u8 = 64;

/// Bytes that should be a record and are not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// The checksum does not fit the bytes.
    #[error("checksum is {found:08x}, the bytes give {computed:08x}")]
    Checksum {
        /// What is stored.
        found: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// The checksum fits and the bytes still make no sense.
    #[error("malformed at byte {0}")]
    Malformed(usize),
}

/// A new event, before it is a [`Record`].
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    /// Its place in history.
    pub at: At,
    /// The key.
    pub key: &'a [u8],
    /// What was put, or `None` for a deletion.
    pub put: Option<Put<'a>>,
    /// The event of the same key before this one.
    pub before: Option<RecordRef<'a>>,
}

/// The new content of a key.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// The value.
    pub value: &'a [u8],
    /// The lease that the key is attached to.
    pub lease: Option<LeaseId>,
}

/// An owned record. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Bytes);

/// A record somewhere in memory, parsed. Cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    bytes: &'a [u8],
    /// Where the event stands in history.
    pub at: At,
    /// Where the key's current life began. Meaningless for a deletion.
    pub created: At,
    /// The event of this key before this one. It may be compacted by now.
    pub previous: Option<At>,
    anchor: Option<At>,
    /// How many puts the key has had since it was created; 0 for a deletion.
    pub version: u64,
    /// The lease that the key is attached to.
    pub lease: Option<LeaseId>,
    kv_start: u32,
    key: (u32, u32),
    value: (u32, u32),
}

impl Record {
    /// Encodes an event. Version, creation and chain follow from the event before it.
    pub fn encode(event: NewEvent<'_>) -> Record {
        let NewEvent { at, key, put, before } = event;
        let value = put.map_or(&[][..], |put| put.value);
        let mut out = BytesMut::with_capacity(HEADER + 6 * 10 + key.len() + value.len() + 5 * 11);
        out.put_u32_le(0);
        out.put_u8(if put.is_some() { 0 } else { TOMBSTONE });
        out.put_u8(before.map_or(0, |before| (before.depth() + 1) % ANCHOR_SPACING));

        let (created, version) = match before {
            Some(before) if !before.is_tombstone() => (before.created, before.version + 1),
            _ => (at, 1),
        };
        put_varint(&mut out, u64::from(at.sub));
        put_varint(&mut out, u64::from(created.sub));
        put_place(&mut out, before.map(|before| before.at));
        put_place(
            &mut out,
            before.and_then(|before| if before.depth() == 0 { Some(before.at) } else { before.anchor }),
        );

        put_bytes_field(&mut out, 1, key);
        if let Some(put) = put {
            put_varint_field(&mut out, 2, created.main.0);
            put_varint_field(&mut out, 3, at.main.0);
            put_varint_field(&mut out, 4, version);
            put_bytes_field(&mut out, 5, value);
            put_varint_field(&mut out, 6, put.lease.map_or(0, |lease| lease.0 as u64));
        } else {
            put_varint_field(&mut out, 3, at.main.0);
        }
        seal(&mut out);
        Record(out.freeze())
    }

    /// Takes bytes that hold a whole record, checking them.
    pub fn from_bytes(bytes: Bytes) -> Result<Record, BadRecord> {
        RecordRef::parse(&bytes)?;
        Ok(Record(bytes))
    }

    /// The parsed form.
    pub fn as_ref(&self) -> RecordRef<'_> {
        // The bytes were made by `encode`, or checked by `from_bytes`, and nothing changes them.
        RecordRef::parse_fields(&self.0).unwrap_or_else(|bad| unreachable!("a checked record cannot be bad: {bad}"))
    }

    /// The key, sharing memory with the record.
    pub fn key(&self) -> Bytes {
        self.0.slice_ref(self.as_ref().key())
    }

    /// The value, sharing memory with the record.
    pub fn value(&self) -> Bytes {
        self.0.slice_ref(self.as_ref().value())
    }

    /// The encoded `mvccpb.KeyValue`, sharing memory with the record.
    pub fn key_value(&self) -> Bytes {
        self.0.slice_ref(self.as_ref().key_value())
    }

    /// All bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl<'a> RecordRef<'a> {
    /// Checks and parses a record.
    pub fn parse(bytes: &'a [u8]) -> Result<RecordRef<'a>, BadRecord> {
        let (found, rest) = bytes.split_first_chunk::<CRC>().ok_or(BadRecord::Malformed(0))?;
        let (found, computed) = (u32::from_le_bytes(*found), crc32c::crc32c(rest));
        if found != computed {
            return Err(BadRecord::Checksum { found, computed });
        }
        RecordRef::parse_fields(bytes)
    }

    fn parse_fields(bytes: &'a [u8]) -> Result<RecordRef<'a>, BadRecord> {
        let mut reader = Reader { bytes, at: HEADER };
        if bytes.len() < HEADER {
            return Err(BadRecord::Malformed(bytes.len()));
        }
        let sub = reader.sub()?;
        let create_sub = reader.sub()?;
        let previous = reader.place()?;
        let anchor = reader.place()?;
        let kv_start = reader.at as u32;
        let (mut key, mut value) = ((0, 0), (0, 0));
        let (mut create, mut modified, mut version, mut lease) = (0, 0, 0, 0);
        while reader.at < bytes.len() {
            match reader.byte()? {
                0x0a => key = reader.span()?,
                0x10 => create = reader.varint()?,
                0x18 => modified = reader.varint()?,
                0x20 => version = reader.varint()?,
                0x2a => value = reader.span()?,
                0x30 => lease = reader.varint()?,
                _ => return Err(BadRecord::Malformed(reader.at - 1)),
            }
        }
        Ok(RecordRef {
            bytes,
            at: At { main: Revision(modified), sub },
            created: At { main: Revision(create), sub: create_sub },
            previous,
            anchor,
            version,
            lease: (lease != 0).then_some(LeaseId(lease as i64)),
            kv_start,
            key,
            value,
        })
    }

    /// The key.
    pub fn key(&self) -> &'a [u8] {
        &self.bytes[self.key.0 as usize..self.key.1 as usize]
    }

    /// The value; empty for a deletion, and for a row that leaves it to the history table.
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[self.value.0 as usize..self.value.1 as usize]
    }

    /// The encoded `mvccpb.KeyValue`.
    pub fn key_value(&self) -> &'a [u8] {
        &self.bytes[self.kv_start as usize..]
    }

    /// Whether the key was deleted.
    pub fn is_tombstone(&self) -> bool {
        self.bytes[FLAGS] & TOMBSTONE != 0
    }

    /// Whether the value has to be fetched from the history table.
    pub fn is_by_reference(&self) -> bool {
        self.bytes[FLAGS] & BY_REFERENCE != 0
    }

    /// Bytes that this record counts for against the quota.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// All bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn depth(&self) -> u8 {
        self.bytes[DEPTH]
    }

    /// The next older event to look at when searching for the state at `revision`, which this event is after: the
    /// far one, if that is still too new, or else the one just before.
    pub fn towards(&self, revision: Revision) -> Option<At> {
        match self.anchor {
            Some(anchor) if anchor.main > revision => Some(anchor),
            _ => self.previous,
        }
    }

    /// Copies it.
    pub fn to_record(&self) -> Record {
        Record(Bytes::copy_from_slice(self.bytes))
    }

    /// The row for the key table: the record itself while its value has at most `inline` bytes, and otherwise one
    /// without the value. Appends to `out`.
    pub fn head_row(&self, inline: usize, out: &mut Vec<u8>) {
        let start = out.len();
        let (from, to) = (self.value.0 as usize, self.value.1 as usize);
        if to - from <= inline {
            out.extend_from_slice(self.bytes);
            return;
        }
        // The value field with its tag and length ends where the value does and starts where the version ends.
        let tag = from - 1 - varint_len((to - from) as u64);
        out.extend_from_slice(&self.bytes[..tag]);
        out.extend_from_slice(&self.bytes[to..]);
        out[start + FLAGS] |= BY_REFERENCE;
        let crc = crc32c::crc32c(&out[start + CRC..]);
        out[start..start + CRC].copy_from_slice(&crc.to_le_bytes());
    }

    /// Appends the key-value without its value, as a request for keys alone wants it.
    pub fn key_value_without_value(&self, out: &mut Vec<u8>) {
        let (from, to) = (self.value.0 as usize, self.value.1 as usize);
        if from == to {
            out.extend_from_slice(self.key_value());
            return;
        }
        let tag = from - 1 - varint_len((to - from) as u64);
        out.extend_from_slice(&self.bytes[self.kv_start as usize..tag]);
        out.extend_from_slice(&self.bytes[to..]);
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl fmt::Debug for RecordRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(if self.is_tombstone() { "Delete" } else { "Put" })
            .field("at", &self.at)
            .field("key", &Bytes::copy_from_slice(self.key()))
            .field("created", &self.created)
            .field("version", &self.version)
            .field("value_bytes", &self.value().len())
            .field("lease", &self.lease)
            .field("previous", &self.previous)
            .finish()
    }
}

fn seal(out: &mut BytesMut) {
    let crc = crc32c::crc32c(&out[CRC..]);
    out[..CRC].copy_from_slice(&crc.to_le_bytes());
}

/// Appends a protobuf varint.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The length of a protobuf varint.
pub fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// A place or none, as its revision (0 for none) and sub-revision.
fn put_place(out: &mut BytesMut, place: Option<At>) {
    let place = place.unwrap_or_default();
    put_varint(out, place.main.0);
    if place.main.0 != 0 {
        put_varint(out, u64::from(place.sub));
    }
}

fn put_varint_field(out: &mut BytesMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(field << 3);
        put_varint(out, value);
    }
}

fn put_bytes_field(out: &mut BytesMut, field: u8, value: &[u8]) {
    if !value.is_empty() {
        out.put_u8(field << 3 | 2);
        put_varint(out, value.len() as u64);
        out.put_slice(value);
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, BadRecord> {
        let byte = *self.bytes.get(self.at).ok_or(BadRecord::Malformed(self.at))?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, BadRecord> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BadRecord::Malformed(self.at))
    }

    fn sub(&mut self) -> Result<u32, BadRecord> {
        u32::try_from(self.varint()?).map_err(|_| BadRecord::Malformed(self.at))
    }

    fn place(&mut self) -> Result<Option<At>, BadRecord> {
        let main = self.varint()?;
        if main == 0 {
            return Ok(None);
        }
        Ok(Some(At { main: Revision(main), sub: self.sub()? }))
    }

    fn span(&mut self) -> Result<(u32, u32), BadRecord> {
        let len = self.varint()?;
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        match end {
            Some(end) if end <= self.bytes.len() && end <= u32::MAX as usize => {
                let span = (self.at as u32, end as u32);
                self.at = end;
                Ok(span)
            }
            _ => Err(BadRecord::Malformed(self.at)),
        }
    }
}

#[cfg(test)]
mod tests;
