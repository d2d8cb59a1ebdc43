//! The daemon: everything that touches the world.

pub mod api;
pub mod apply;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod data_dir;
pub mod disk;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod server;
pub mod store;
pub mod systemd;
pub mod wal;
