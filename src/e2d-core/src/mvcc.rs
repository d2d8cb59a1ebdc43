//! The key space: every key with its history.

pub mod range;
pub mod record;
