//! The daemon: everything that touches the world.
