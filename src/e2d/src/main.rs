//! The `e2d` command.

use e2d::cli;
use e2d::config::Process;
use e2d::server::serve;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(&Process::capture(), serve).into()
}
