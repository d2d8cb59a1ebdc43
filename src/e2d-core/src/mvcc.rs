//! The key space: every key with its history.
//!
//! A write makes a [`record::Record`], which goes into a [`memtable::Memtable`] and from there, with many others, into
//! the durable tables. The history table has every event by its place; the key table has the newest record of every
//! key, so that the present is read without the history. [`view::View`] merges the layers for readers,
//! [`machine::Machine`] is the only writer, and [`sweep`] says what a compaction removes.

pub mod change;
pub mod codec;
pub mod fences;
pub mod hash;
pub mod machine;
pub mod memtable;
pub mod range;
pub mod record;
pub mod request;
pub mod sweep;
pub mod view;
