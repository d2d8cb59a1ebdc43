//! Responses that hold bytes which are encoded already, and are written around them.
//!
//! The generated messages would have every event decoded into structures and encoded anew for every watcher. These
//! types are only ever sent, so they have no decoder.

use bytes::{Buf, BufMut, Bytes};
use e2d_core::ids::{ClusterId, MemberId, Revision, Term};
use e2d_core::mvcc::record::{RecordRef, put_varint, varint_len};
use e2d_core::watch::{Content, Refusal, Response};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType};
use std::borrow::Cow;

/// Who answers: the header of every response, apart from its revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member that answers.
    pub member: MemberId,
    /// The raft term at that time.
    pub term: Term,
}

impl Header {
    fn content_len(&self, revision: Option<Revision>) -> usize {
        varint_field_len(self.cluster.0)
            + varint_field_len(self.member.0)
            + varint_field_len(revision.unwrap_or_default().0)
            + varint_field_len(self.term.0)
    }

    fn encoded_len(&self, revision: Option<Revision>) -> usize {
        let content = self.content_len(revision);
        1 + varint_len(content as u64) + content
    }

    fn encode(&self, revision: Option<Revision>, buf: &mut impl BufMut) {
        buf.put_u8(1 << 3 | 2);
        put_varint(buf, self.content_len(revision) as u64);
        put_varint_field(buf, 1, self.cluster.0);
        put_varint_field(buf, 2, self.member.0);
        put_varint_field(buf, 3, revision.unwrap_or_default().0);
        put_varint_field(buf, 4, self.term.0);
    }
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// Who answers.
    pub header: Header,
    /// The newest revision.
    pub revision: Revision,
    /// The encoded field `kvs`, see [`put_key_value`].
    pub kvs: Bytes,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// How many keys the range has.
    pub count: u64,
}

/// Appends one element of the field `kvs` of a [`RangeResponse`].
pub fn put_key_value(record: &RecordRef<'_>, keys_only: bool, out: &mut Vec<u8>) {
    let key_value = record.key_value();
    out.push(2 << 3 | 2);
    if keys_only {
        let mut short = Vec::with_capacity(key_value.len() - record.value().len());
        record.key_value_without_value(&mut short);
        put_varint(out, short.len() as u64);
        out.extend_from_slice(&short);
    } else {
        put_varint(out, key_value.len() as u64);
        out.extend_from_slice(key_value);
    }
}

impl prost::Message for RangeResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.header.encode(Some(self.revision), buf);
        buf.put_slice(&self.kvs);
        put_varint_field(buf, 3, u64::from(self.more));
        put_varint_field(buf, 4, self.count);
    }

    fn encoded_len(&self) -> usize {
        self.header.encoded_len(Some(self.revision))
            + self.kvs.len()
            + varint_field_len(u64::from(self.more))
            + varint_field_len(self.count)
    }

    fn merge_field(
        &mut self,
        _tag: u32,
        _wire_type: WireType,
        _buf: &mut impl Buf,
        _ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        Err(only_sent())
    }

    fn clear(&mut self) {
        *self = RangeResponse::default();
    }
}

/// What reading one of these types gives.
fn only_sent() -> DecodeError {
    // There is no other way to make such an error outside of prost.
    #[allow(deprecated)]
    DecodeError::new("a response of this server is not read by it")
}

/// `etcdserverpb.WatchResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchResponse {
    /// Who answers.
    pub header: Header,
    /// Everything else.
    pub response: Response,
}

impl WatchResponse {
    fn fields(&self) -> WatchFields<'_> {
        let mut fields = WatchFields::default();
        match &self.response.content {
            Content::Created => fields.created = true,
            Content::Refused(refusal) => {
                (fields.created, fields.canceled) = (true, true);
                fields.cancel_reason = reason(refusal);
            }
            Content::Canceled => fields.canceled = true,
            // No reason: clients go by the revision.
            Content::Compacted(at) => (fields.canceled, fields.compact_revision) = (true, at.0),
            Content::Progress => {}
            Content::Events { events, fragment } => (fields.events, fields.fragment) = (events.bytes(), *fragment),
        }
        fields
    }
}

#[derive(Default)]
struct WatchFields<'a> {
    created: bool,
    canceled: bool,
    compact_revision: u64,
    cancel_reason: Cow<'a, str>,
    fragment: bool,
    events: &'a [u8],
}

/// etcd's text for a refusal.
fn reason(refusal: &Refusal) -> Cow<'_, str> {
    match refusal {
        Refusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream".into(),
        Refusal::EmptyRange => "mvcc: watcher range is empty".into(),
        Refusal::NegativeStart => "etcdserver: mvcc: required revision has been compacted".into(),
        Refusal::Denied(reason) => reason.as_str().into(),
    }
}

impl prost::Message for WatchResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        let fields = self.fields();
        self.header.encode(self.response.revision, buf);
        put_varint_field(buf, 2, self.response.watch.0 as u64);
        put_varint_field(buf, 3, u64::from(fields.created));
        put_varint_field(buf, 4, u64::from(fields.canceled));
        put_varint_field(buf, 5, fields.compact_revision);
        if !fields.cancel_reason.is_empty() {
            buf.put_u8(6 << 3 | 2);
            put_varint(buf, fields.cancel_reason.len() as u64);
            buf.put_slice(fields.cancel_reason.as_bytes());
        }
        put_varint_field(buf, 7, u64::from(fields.fragment));
        buf.put_slice(fields.events);
    }

    fn encoded_len(&self) -> usize {
        let fields = self.fields();
        let reason = fields.cancel_reason.len();
        self.header.encoded_len(self.response.revision)
            + varint_field_len(self.response.watch.0 as u64)
            + varint_field_len(u64::from(fields.created))
            + varint_field_len(u64::from(fields.canceled))
            + varint_field_len(fields.compact_revision)
            + if reason == 0 { 0 } else { 1 + varint_len(reason as u64) + reason }
            + varint_field_len(u64::from(fields.fragment))
            + fields.events.len()
    }

    fn merge_field(
        &mut self,
        _tag: u32,
        _wire_type: WireType,
        _buf: &mut impl Buf,
        _ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        Err(only_sent())
    }

    fn clear(&mut self) {
        self.response.content = Content::Progress;
        self.response.revision = None;
    }
}

fn varint_field_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

fn put_varint_field(buf: &mut impl BufMut, field: u8, value: u64) {
    if value != 0 {
        buf.put_u8(field << 3);
        put_varint(buf, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2d_api::etcdserverpb as pb;
    use e2d_core::watch::WatchId;
    use prost::Message;

    fn sent(watch: i64, revision: Option<u64>, content: Content) -> pb::WatchResponse {
        let header = Header { cluster: ClusterId(u64::MAX), member: MemberId(7), term: Term(3) };
        let response = Response { watch: WatchId(watch), revision: revision.map(Revision), content };
        let bytes = WatchResponse { header, response }.encode_to_vec();
        let read = pb::WatchResponse::decode(&bytes[..]).expect("what is sent can be read");
        assert_eq!(read.encode_to_vec(), bytes, "the bytes are those that the generated message has");
        read
    }

    #[test]
    fn what_is_written_by_hand_is_what_the_generated_message_reads() {
        let header = |revision| Some(pb::ResponseHeader { cluster_id: u64::MAX, member_id: 7, revision, raft_term: 3 });
        let base = pb::WatchResponse { header: header(9), watch_id: 5, ..Default::default() };
        let table = [
            (sent(5, Some(9), Content::Created), pb::WatchResponse { created: true, ..base.clone() }),
            (sent(5, Some(9), Content::Canceled), pb::WatchResponse { canceled: true, ..base.clone() }),
            (sent(5, Some(9), Content::Progress), base.clone()),
            (
                sent(i64::MIN, None, Content::Compacted(Revision(300))),
                pb::WatchResponse {
                    header: header(0),
                    watch_id: i64::MIN,
                    canceled: true,
                    compact_revision: 300,
                    ..base.clone()
                },
            ),
            (
                sent(-1, Some(9), Content::Refused(Refusal::EmptyRange)),
                pb::WatchResponse {
                    watch_id: -1,
                    created: true,
                    canceled: true,
                    cancel_reason: "mvcc: watcher range is empty".into(),
                    ..base.clone()
                },
            ),
        ];
        for (read, expected) in table {
            assert_eq!(read, expected);
        }
    }
}
