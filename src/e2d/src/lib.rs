//! The daemon: everything that touches the world.

pub mod disk;
pub mod wal;
