//! The key space: every key with its history.

pub mod change;
pub mod range;
pub mod record;
