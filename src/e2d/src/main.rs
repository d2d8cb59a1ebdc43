//! The `e2d` command.

use std::process::ExitCode;

use e2d::cli::{self, Failure};
use e2d::config::{Config, Process};
use e2d::logging;

fn main() -> ExitCode {
    cli::main(&Process::capture(), serve).into()
}

/// Runs a node until it is asked to stop.
async fn serve(config: Config, _log: logging::Control) -> Result<(), Failure> {
    tracing::info!(
        name = config.node.name,
        data_dir = %config.storage.data_dir.display(),
        clients = ?config.listen.client,
        "configured"
    );
    Ok(())
}
