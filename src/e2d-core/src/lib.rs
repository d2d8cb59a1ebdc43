//! The rules of e2d: everything that decides, and nothing that touches the world.
//!
//! No clock, no socket, no disk, no random source: everything in here is a function of its arguments, so that a whole
//! cluster can run in one thread from one seed.

pub mod alarm;
pub mod compactor;
pub mod ids;
pub mod lease;
pub mod mvcc;
pub mod watch;
