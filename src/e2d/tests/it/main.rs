//! Promises that only a real process can keep.

// Helpers of tests are not inside a function that is marked as one, which is where clippy lets them unwrap.
#![allow(clippy::unwrap_used)]

mod cli;
