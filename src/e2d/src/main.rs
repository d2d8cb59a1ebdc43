//! The `e2d` command.
fn main() {}
