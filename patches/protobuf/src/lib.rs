//! The three functions of rust-protobuf 2 that raft-rs calls, carried out by prost.
//!
//! raft-rs measures entries (`compute_size`), encodes the configuration changes it proposes (`write_to_bytes`) and
//! decodes them when they come back (`merge_from_bytes`). This crate has the name and the version that raft-rs asks
//! for, and nothing else of rust-protobuf: no reflection, no code generation, no streams. Code of e2d itself uses
//! `prost::Message`.

use std::fmt;

/// What every prost message can do under the names that raft-rs uses.
pub trait Message {
    /// The encoded size in bytes. Saturates at 4 GiB, which no message of raft comes near.
    fn compute_size(&self) -> u32;

    /// The encoded message. Cannot fail: the buffer grows to the size that is needed.
    fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>>;

    /// Decodes `bytes` into `self`: scalars are replaced, repeated fields grow. After an error `self` is to be dropped.
    fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()>;
}

impl<M: prost::Message> Message for M {
    fn compute_size(&self) -> u32 {
        u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
    }

    fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>> {
        Ok(self.encode_to_vec())
    }

    fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()> {
        self.merge(bytes).map_err(ProtobufError)
    }
}

/// What the functions above return.
pub type ProtobufResult<T> = Result<T, ProtobufError>;

/// Bytes that are no such message.
#[derive(Debug, Clone, PartialEq)]
pub struct ProtobufError(prost::DecodeError);

impl fmt::Display for ProtobufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ProtobufError {}
