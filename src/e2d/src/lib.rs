//! The daemon: everything that touches the world.

pub mod cli;
pub mod config;
pub mod logging;
pub mod systemd;
