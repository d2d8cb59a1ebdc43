//! The time that the rules are told.

use e2d_core::ids::Tick;
use std::time::Instant;

/// This moment, as time since `started`.
pub fn ticks_since(started: Instant) -> Tick {
    Tick(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}
