//! What a watch stream sends, and the encoded events in it that many streams share.

use crate::ids::Revision;
use crate::mvcc::change::Change;
use crate::mvcc::record::{put_varint, varint_len};
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// A watch within its stream. Clients may choose any number; the ones given by the hub count from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WatchId(pub i64);

impl WatchId {
    /// Stands for no watch in a refusal, and for all watches of the stream in an answer about progress.
    pub const NONE: WatchId = WatchId(-1);
}

/// One message of a watch stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The watch that it is about.
    pub watch: WatchId,
    /// The revision in the header. `None` where etcd leaves it out, which is in [`Content::Compacted`] alone.
    pub revision: Option<Revision>,
    /// What it says.
    pub content: Content,
}

/// What a [`Response`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The watch exists. Always the first message about it.
    Created,
    /// There will be no such watch.
    Refused(Refusal),
    /// The client ended the watch.
    Canceled,
    /// The watch ended because history below this revision, which it still needed, is gone.
    Compacted(Revision),
    /// All events up to the header's revision were sent.
    Progress,
    /// Events, of whole revisions only.
    Events {
        /// The events.
        events: Events,
        /// The rest of the same revisions follows in the next message of this watch.
        fragment: bool,
    },
}

/// Why a watch is not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client chose an id that a watch of the same stream has.
    #[error("another watch of this stream has the same id")]
    DuplicateId,
    /// No key can be in the range.
    #[error("the range holds no key")]
    EmptyRange,
    /// The start is a negative number.
    #[error("the start revision is negative")]
    NegativeStart,
    /// The client may not read the range. The text is the whole reason.
    #[error("{0}")]
    Denied(String),
}

impl Response {
    /// Bytes that this message counts for in the bounds of queues: what it refers to, and what it takes itself.
    pub fn size(&self) -> usize {
        let content = match &self.content {
            Content::Events { events, .. } => events.bytes.len(),
            Content::Refused(Refusal::Denied(reason)) => reason.len(),
            _ => 0,
        };
        size_of::<Response>() + content
    }
}

/// Events as the `events` field of etcd's watch response has them, tag and length of each included: they are spliced
/// into a message as they are. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Events {
    bytes: Bytes,
}

/// Field 11 of `WatchResponse`, of the type that carries its length.
const EVENT: u8 = 11 << 3 | 2;
const TYPE: u8 = 1 << 3;
const DELETE: u8 = 1;
const KEY_VALUE: u8 = 2 << 3 | 2;
const PREVIOUS: u8 = 3 << 3 | 2;

impl Events {
    /// The encoded bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Encodes one event.
    pub(super) fn encode(change: &Change, with_previous: bool) -> Events {
        let record = change.record.as_ref();
        let kv = record.key_value();
        let previous = change.previous.as_ref().filter(|_| with_previous).map(|previous| previous.as_ref().key_value());
        let length = if record.is_tombstone() { 2 } else { 0 }
            + field_len(kv.len())
            + previous.map_or(0, |previous| field_len(previous.len()));
        let mut out = BytesMut::with_capacity(field_len(length));
        out.put_u8(EVENT);
        put_varint(&mut out, length as u64);
        if record.is_tombstone() {
            out.put_u8(TYPE);
            out.put_u8(DELETE);
        }
        put_field(&mut out, KEY_VALUE, kv);
        if let Some(previous) = previous {
            put_field(&mut out, PREVIOUS, previous);
        }
        Events { bytes: out.freeze() }
    }

    /// One after the other.
    pub(super) fn concat(parts: &[Events]) -> Events {
        if let [only] = parts {
            return only.clone();
        }
        let mut out = BytesMut::with_capacity(parts.iter().map(|part| part.bytes.len()).sum());
        for part in parts {
            out.put_slice(&part.bytes);
        }
        Events { bytes: out.freeze() }
    }

    /// Cuts between events so that no piece is longer than `limit` bytes, unless it is a single event.
    pub(super) fn split(&self, limit: usize) -> Vec<Events> {
        let mut pieces = vec![];
        let (mut from, mut to) = (0, 0);
        for event in self.iter() {
            if to > from && to + event.len() - from > limit {
                pieces.push(Events { bytes: self.bytes.slice(from..to) });
                from = to;
            }
            to += event.len();
        }
        pieces.push(Events { bytes: self.bytes.slice(from..) });
        pieces
    }

    /// How many events these are.
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// Every event with its tag and length.
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (mut length, mut header) = (0, 1);
            for shift in (0..64).step_by(7) {
                let byte = *rest.get(header)?;
                length |= usize::from(byte & 0x7f) << shift;
                header += 1;
                if byte < 0x80 {
                    break;
                }
            }
            let (event, tail) = rest.split_at(header + length);
            rest = tail;
            Some(event)
        })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Events({} in {} bytes)", self.count(), self.bytes.len())
    }
}

fn field_len(content: usize) -> usize {
    1 + varint_len(content as u64) + content
}

fn put_field(out: &mut BytesMut, tag: u8, content: &[u8]) {
    out.put_u8(tag);
    put_varint(out, content.len() as u64);
    out.put_slice(content);
}
