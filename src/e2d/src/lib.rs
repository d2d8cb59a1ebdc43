//! The daemon: everything that touches the world.

pub mod api;
pub mod apply;
pub mod consensus;
pub mod disk;
pub mod store;
pub mod wal;
