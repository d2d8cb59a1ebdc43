//! The promises that e2d keeps to the clients of etcd: one module per part of the API, one test per promise.
//!
//! Every test drives a real process with a data directory of its own. The environment chooses which:
//!
//! | variable | names | without it |
//! |---|---|---|
//! | `E2D_TEST_TARGET` | `e2d` or `reference`: the server that the promises are checked on | `e2d` |
//! | `E2D_REFERENCE_ETCD` | the etcd 3.6 that answers are compared with, see `tests/reference/build.sh` | comparisons are skipped |
//! | `E2D_REFERENCE_ETCD_34` | an etcd 3.4, whose known differences the comparison must notice | that check is skipped |
//! | `E2D_ETCDCTL_<any>` | an etcdctl whose output is compared | skipped |
//! | `E2D_DIFF_STEPS`, `E2D_DIFF_SEEDS`, `E2D_DIFF_FIRST_SEED` | how many random requests for how many seeds | 2000, 2, 1 |
//! | `E2D_REQUIRE_ALL` | `1`: what would be skipped fails | skipping prints `SKIPPED: <why>` |

// Test helpers answer to nobody outside this binary, and what they print is for whoever runs it.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout, clippy::unwrap_used)]

mod client;
mod server;

mod cli;
mod compaction;
mod differential;
mod etcdctl;
mod http;
mod kv_range;
mod kv_write;
mod lease;
mod limits;
mod maintenance;
mod regressions;
mod txn;
mod watch;
