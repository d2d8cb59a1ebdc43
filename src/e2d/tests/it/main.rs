//! The promises that e2d keeps to the clients of etcd: one module per part of the API, one test per promise.
//!
//! Every test drives a real process. See `server` for the variables that choose it.

// Test helpers answer to nobody outside this binary.
#![allow(missing_docs, unreachable_pub)]

mod client;
mod server;

mod compaction;
mod differential;
mod etcdctl;
mod http;
mod kv_range;
mod kv_write;
mod lease;
mod limits;
mod maintenance;
mod txn;
mod watch;
