//! Promises that only a real process can keep.

mod cli;
