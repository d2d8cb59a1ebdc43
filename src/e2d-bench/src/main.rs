//! Benchmarks of e2d beside a real etcd.
fn main() {}
