//! [`Command`] as bytes in the raft log.
//!
//! A command starts with a format number; one that this binary does not know stops the node instead of being guessed
//! at, because replicas that read the same entry differently would diverge for ever. Byte strings share memory with
//! the entry.

use crate::alarm::{Alarm, AlarmKind};
use crate::ids::{LeaseId, LogIndex, MemberId, Revision, Term};
use crate::lease::Life;
use crate::mvcc::range::{KeyRange, RangeEnd};
use crate::mvcc::record::put_varint;
use crate::mvcc::request::*;
use bytes::{Buf, BufMut, Bytes};

const FORMAT: u8 = 1;

/// How deep transactions may nest: a deeper one is refused before it is proposed.
pub const MAX_TXN_DEPTH: usize = 64;

/// An entry that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// Written by a newer version.
    #[error(
        "log entry has format {0}, this version reads up to {FORMAT}: run the version that wrote it, or a newer one"
    )]
    Format(u8),
    /// A kind of request or option that this version does not know.
    #[error("log entry has unknown {what} {found}")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// Its number.
        found: u8,
    },
    /// It ends early, or goes on after its end, or nests too deep.
    #[error("log entry is malformed at {0} bytes before its end")]
    Malformed(usize),
}

impl Command {
    /// The bytes for the log.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.request.payload_hint());
        out.put_u8(FORMAT);
        out.put_u64_le(self.origin.0);
        out.put_u64_le(self.id);
        self.request.encode(&mut out);
        out
    }

    /// Reads what [`Command::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Command, BadCommand> {
        let mut reader = Reader(bytes);
        let format = reader.byte()?;
        if format != FORMAT {
            return Err(BadCommand::Format(format));
        }
        let command =
            Command { origin: MemberId(reader.fixed()?), id: reader.fixed()?, request: Request::decode(&mut reader)? };
        if !reader.0.is_empty() {
            return Err(reader.malformed());
        }
        Ok(command)
    }
}

impl Request {
    fn payload_hint(&self) -> usize {
        match self {
            Request::Put(put) => put.key.len() + put.value.as_ref().map_or(0, Bytes::len),
            Request::Txn(_) => 512,
            _ => 64,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Put(put) => {
                out.put_u8(1);
                put.encode(out);
            }
            Request::DeleteRange(delete) => {
                out.put_u8(2);
                delete.encode(out);
            }
            Request::Txn(txn) => {
                out.put_u8(3);
                txn.encode(out);
            }
            Request::Compact(revision) => {
                out.put_u8(4);
                put_option(out, *revision, |out, revision| put_varint(out, revision.0));
            }
            Request::LeaseGrant { id, ttl_seconds } => {
                out.put_u8(5);
                out.put_i64_le(id.0);
                put_varint(out, *ttl_seconds);
            }
            Request::LeaseRevoke(id) => {
                out.put_u8(6);
                out.put_i64_le(id.0);
            }
            Request::LeaseCheckpoint { leases, decided_in } => {
                out.put_u8(7);
                put_varint(out, decided_in.0);
                put_list(out, leases, |out, lease| {
                    put_life(out, lease.life);
                    put_varint(out, lease.seconds);
                });
            }
            Request::LeaseExpire { life, decided_in } => {
                out.put_u8(12);
                put_varint(out, decided_in.0);
                put_life(out, *life);
            }
            Request::AlarmActivate(alarm) => {
                out.put_u8(8);
                put_alarm(out, *alarm);
            }
            Request::AlarmDeactivate(alarm) => {
                out.put_u8(9);
                put_alarm(out, *alarm);
            }
            Request::AlarmGet(kind) => {
                out.put_u8(10);
                put_option(out, *kind, |out, kind| out.put_u8(kind_number(kind)));
            }
            Request::MemberPublish { member, name, client_urls } => {
                out.put_u8(11);
                out.put_u64_le(member.0);
                put_bytes(out, name.as_bytes());
                put_list(out, client_urls, |out, url| put_bytes(out, url.as_bytes()));
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<Request, BadCommand> {
        Ok(match reader.byte()? {
            1 => Request::Put(Put::decode(reader)?),
            2 => Request::DeleteRange(DeleteRange::decode(reader)?),
            3 => Request::Txn(Txn::decode(reader, 0)?),
            4 => Request::Compact(reader.option(|reader| Ok(Revision(reader.varint()?)))?),
            5 => Request::LeaseGrant { id: reader.lease()?, ttl_seconds: reader.varint()? },
            6 => Request::LeaseRevoke(reader.lease()?),
            7 => Request::LeaseCheckpoint {
                decided_in: Term(reader.varint()?),
                leases: reader.list(|reader| Ok(LeaseRemaining { life: reader.life()?, seconds: reader.varint()? }))?,
            },
            8 => Request::AlarmActivate(reader.alarm()?),
            9 => Request::AlarmDeactivate(reader.alarm()?),
            10 => Request::AlarmGet(reader.option(Reader::alarm_kind)?),
            11 => Request::MemberPublish {
                member: MemberId(reader.fixed()?),
                name: reader.text()?,
                client_urls: reader.list(Reader::text)?,
            },
            12 => Request::LeaseExpire { decided_in: Term(reader.varint()?), life: reader.life()? },
            found => return Err(BadCommand::Unknown { what: "request", found }),
        })
    }
}

impl Put {
    fn encode(&self, out: &mut Vec<u8>) {
        let lease = match self.lease {
            LeaseChange::Keep => 2,
            LeaseChange::Set(Some(_)) => 4,
            LeaseChange::Set(None) => 0,
        };
        out.put_u8(u8::from(self.prev_kv) | lease | if self.value.is_some() { 8 } else { 0 });
        put_bytes(out, &self.key);
        if let Some(value) = &self.value {
            put_bytes(out, value);
        }
        if let LeaseChange::Set(Some(lease)) = self.lease {
            out.put_i64_le(lease.0);
        }
    }

    fn decode(reader: &mut Reader) -> Result<Put, BadCommand> {
        let flags = reader.flags("put flags", 0b1111)?;
        Ok(Put {
            prev_kv: flags & 1 != 0,
            key: reader.bytes()?,
            value: if flags & 8 != 0 { Some(reader.bytes()?) } else { None },
            lease: match flags & 0b110 {
                0 => LeaseChange::Set(None),
                2 => LeaseChange::Keep,
                4 => LeaseChange::Set(Some(reader.lease()?)),
                _ => return Err(BadCommand::Unknown { what: "put flags", found: flags }),
            },
        })
    }
}

impl DeleteRange {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.prev_kv));
        put_range(out, &self.range);
    }

    fn decode(reader: &mut Reader) -> Result<DeleteRange, BadCommand> {
        let flags = reader.flags("delete flags", 1)?;
        Ok(DeleteRange { prev_kv: flags & 1 != 0, range: reader.range()? })
    }
}

impl RangeQuery {
    fn encode(&self, out: &mut Vec<u8>) {
        let bounds =
            [self.filter.min_modified, self.filter.max_modified, self.filter.min_created, self.filter.max_created];
        out.put_u8(
            u8::from(self.keys_only)
                | u8::from(self.count_only) << 1
                | u8::from(self.order.descending) << 2
                | u8::from(self.order.unspecified) << 3
                | u8::from(bounds.iter().any(Option::is_some)) << 4,
        );
        out.put_u8(match self.order.by {
            OrderBy::Key => 0,
            OrderBy::Version => 1,
            OrderBy::Created => 2,
            OrderBy::Modified => 3,
            OrderBy::Value => 4,
        });
        put_range(out, &self.range);
        put_option(out, self.limit, put_varint);
        put_option(out, self.revision, |out, revision| put_varint(out, revision.0));
        if bounds.iter().any(Option::is_some) {
            for bound in bounds {
                put_option(out, bound, |out, revision| put_varint(out, revision.0));
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<RangeQuery, BadCommand> {
        let flags = reader.flags("range flags", 0b1_1111)?;
        let by = match reader.byte()? {
            0 => OrderBy::Key,
            1 => OrderBy::Version,
            2 => OrderBy::Created,
            3 => OrderBy::Modified,
            4 => OrderBy::Value,
            found => return Err(BadCommand::Unknown { what: "order", found }),
        };
        let range = reader.range()?;
        let limit = reader.option(Reader::varint)?;
        let revision = |reader: &mut Reader| reader.option(|reader| Ok(Revision(reader.varint()?)));
        let at = revision(reader)?;
        let mut filter = RevisionFilter::default();
        if flags & 16 != 0 {
            filter.min_modified = revision(reader)?;
            filter.max_modified = revision(reader)?;
            filter.min_created = revision(reader)?;
            filter.max_created = revision(reader)?;
        }
        Ok(RangeQuery {
            range,
            limit,
            revision: at,
            order: Order { by, descending: flags & 4 != 0, unspecified: flags & 8 != 0 },
            keys_only: flags & 1 != 0,
            count_only: flags & 2 != 0,
            filter,
        })
    }
}

impl Txn {
    fn encode(&self, out: &mut Vec<u8>) {
        put_list(out, &self.compare, |out, compare| compare.encode(out));
        put_list(out, &self.success, |out, op| op.encode(out));
        put_list(out, &self.failure, |out, op| op.encode(out));
    }

    fn decode(reader: &mut Reader, depth: usize) -> Result<Txn, BadCommand> {
        if depth > MAX_TXN_DEPTH {
            return Err(reader.malformed());
        }
        Ok(Txn {
            compare: reader.list(Compare::decode)?,
            success: reader.list(|reader| Op::decode(reader, depth))?,
            failure: reader.list(|reader| Op::decode(reader, depth))?,
        })
    }
}

impl Op {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Op::Range(range) => {
                out.put_u8(1);
                range.encode(out);
            }
            Op::Put(put) => {
                out.put_u8(2);
                put.encode(out);
            }
            Op::DeleteRange(delete) => {
                out.put_u8(3);
                delete.encode(out);
            }
            Op::Txn(txn) => {
                out.put_u8(4);
                txn.encode(out);
            }
        }
    }

    fn decode(reader: &mut Reader, depth: usize) -> Result<Op, BadCommand> {
        Ok(match reader.byte()? {
            1 => Op::Range(RangeQuery::decode(reader)?),
            2 => Op::Put(Put::decode(reader)?),
            3 => Op::DeleteRange(DeleteRange::decode(reader)?),
            4 => Op::Txn(Txn::decode(reader, depth + 1)?),
            found => return Err(BadCommand::Unknown { what: "operation", found }),
        })
    }
}

impl Compare {
    fn encode(&self, out: &mut Vec<u8>) {
        put_range(out, &self.range);
        out.put_u8(match self.relation {
            Relation::Equal => 0,
            Relation::Greater => 1,
            Relation::Less => 2,
            Relation::NotEqual => 3,
            Relation::Unknown => 4,
        });
        match &self.operand {
            Operand::Version(number) => put_operand(out, 0, *number),
            Operand::Created(number) => put_operand(out, 1, *number),
            Operand::Modified(number) => put_operand(out, 2, *number),
            Operand::Lease(number) => put_operand(out, 4, *number),
            Operand::Value(value) => {
                out.put_u8(3);
                put_bytes(out, value);
            }
            Operand::Unknown => out.put_u8(5),
        }
    }

    fn decode(reader: &mut Reader) -> Result<Compare, BadCommand> {
        Ok(Compare {
            range: reader.range()?,
            relation: match reader.byte()? {
                0 => Relation::Equal,
                1 => Relation::Greater,
                2 => Relation::Less,
                3 => Relation::NotEqual,
                4 => Relation::Unknown,
                found => return Err(BadCommand::Unknown { what: "relation", found }),
            },
            operand: match reader.byte()? {
                0 => Operand::Version(reader.signed()?),
                1 => Operand::Created(reader.signed()?),
                2 => Operand::Modified(reader.signed()?),
                3 => Operand::Value(reader.bytes()?),
                4 => Operand::Lease(reader.signed()?),
                5 => Operand::Unknown,
                found => return Err(BadCommand::Unknown { what: "operand", found }),
            },
        })
    }
}

fn put_operand(out: &mut Vec<u8>, kind: u8, number: i64) {
    out.put_u8(kind);
    put_signed(out, number);
}

/// Zigzag, so that small negative numbers are short.
fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_varint(out, ((number << 1) ^ (number >> 63)) as u64);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    put_varint(out, list.len() as u64);
    for item in list {
        put(out, item);
    }
}

fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    match &range.end {
        RangeEnd::Single => out.put_u8(0),
        RangeEnd::Before(_) => out.put_u8(1),
        RangeEnd::Unbounded => out.put_u8(2),
    }
    put_bytes(out, &range.start);
    if let RangeEnd::Before(end) = &range.end {
        put_bytes(out, end);
    }
}

fn put_life(out: &mut Vec<u8>, life: Life) {
    out.put_i64_le(life.id.0);
    put_varint(out, life.granted_at.0);
}

fn put_alarm(out: &mut Vec<u8>, alarm: Alarm) {
    out.put_u64_le(alarm.member.0);
    out.put_u8(kind_number(alarm.kind));
}

fn kind_number(kind: AlarmKind) -> u8 {
    match kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    }
}

struct Reader(Bytes);

impl Reader {
    fn malformed(&self) -> BadCommand {
        BadCommand::Malformed(self.0.len())
    }

    fn byte(&mut self) -> Result<u8, BadCommand> {
        self.0.try_get_u8().map_err(|_| BadCommand::Malformed(0))
    }

    fn fixed(&mut self) -> Result<u64, BadCommand> {
        self.0.try_get_u64_le().map_err(|_| self.malformed())
    }

    fn lease(&mut self) -> Result<LeaseId, BadCommand> {
        Ok(LeaseId(self.fixed()? as i64))
    }

    fn life(&mut self) -> Result<Life, BadCommand> {
        Ok(Life { id: self.lease()?, granted_at: LogIndex(self.varint()?) })
    }

    fn varint(&mut self) -> Result<u64, BadCommand> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    fn signed(&mut self) -> Result<i64, BadCommand> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn flags(&mut self, what: &'static str, known: u8) -> Result<u8, BadCommand> {
        let found = self.byte()?;
        if found & !known != 0 {
            return Err(BadCommand::Unknown { what, found });
        }
        Ok(found)
    }

    fn bytes(&mut self) -> Result<Bytes, BadCommand> {
        let len = self.varint()?;
        if len > self.0.len() as u64 {
            return Err(self.malformed());
        }
        Ok(self.0.split_to(len as usize))
    }

    fn text(&mut self) -> Result<String, BadCommand> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| self.malformed())
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Reader) -> Result<T, BadCommand>) -> Result<Option<T>, BadCommand> {
        match self.byte()? {
            0 => Ok(None),
            1 => Ok(Some(read(self)?)),
            found => Err(BadCommand::Unknown { what: "option", found }),
        }
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Reader) -> Result<T, BadCommand>) -> Result<Vec<T>, BadCommand> {
        let len = self.varint()?;
        // Every item takes at least a byte: a length that could not be is refused before memory is set aside for it.
        if len > self.0.len() as u64 {
            return Err(self.malformed());
        }
        (0..len).map(|_| read(self)).collect()
    }

    fn range(&mut self) -> Result<KeyRange, BadCommand> {
        let kind = self.byte()?;
        let start = self.bytes()?;
        let end = match kind {
            0 => RangeEnd::Single,
            1 => RangeEnd::Before(self.bytes()?),
            2 => RangeEnd::Unbounded,
            found => return Err(BadCommand::Unknown { what: "range", found }),
        };
        Ok(KeyRange { start, end })
    }

    fn alarm(&mut self) -> Result<Alarm, BadCommand> {
        Ok(Alarm { member: MemberId(self.fixed()?), kind: self.alarm_kind()? })
    }

    fn alarm_kind(&mut self) -> Result<AlarmKind, BadCommand> {
        match self.byte()? {
            1 => Ok(AlarmKind::NoSpace),
            2 => Ok(AlarmKind::Corrupt),
            found => Err(BadCommand::Unknown { what: "alarm", found }),
        }
    }
}

#[cfg(test)]
mod tests;
