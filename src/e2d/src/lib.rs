//! The daemon: everything that touches the world.

pub mod apply;
pub mod consensus;
pub mod disk;
pub mod http;
pub mod metrics;
pub mod store;
pub mod wal;
