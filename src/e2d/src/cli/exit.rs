//! How the process ends. Service managers and scripts decide by these numbers, so they never change meaning.

use std::fmt;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The command did its work, or the node was asked to stop and did.
    Ok = 0,
    /// Something failed while running. Starting again may help.
    Runtime = 1,
    /// The command line or the configuration is wrong. Starting again does not help.
    Usage = 2,
    /// Another process uses the data directory.
    DataDirInUse = 3,
    /// Data on disk is damaged. The node stops rather than serve it.
    DataCorrupt = 4,
    /// The disk is full, or a write or flush failed. What was acknowledged before is safe.
    DiskWrite = 5,
}

impl ExitCode {
    /// Every code, ascending.
    pub const ALL: [ExitCode; 6] = [
        ExitCode::Ok,
        ExitCode::Runtime,
        ExitCode::Usage,
        ExitCode::DataDirInUse,
        ExitCode::DataCorrupt,
        ExitCode::DiskWrite,
    ];

    /// One sentence for `--help` and the manual.
    pub fn meaning(self) -> &'static str {
        match self {
            ExitCode::Ok => "success, or a clean stop after a signal",
            ExitCode::Runtime => "a failure while running",
            ExitCode::Usage => "wrong command line or configuration; nothing was started",
            ExitCode::DataDirInUse => "the data directory is in use by another process",
            ExitCode::DataCorrupt => "data on disk is damaged; the node stops rather than serve it",
            ExitCode::DiskWrite => "the disk is full, or a write or flush failed",
        }
    }

    /// What an operator does about it.
    pub fn advice(self) -> &'static str {
        match self {
            ExitCode::Ok => "Nothing.",
            ExitCode::Runtime => {
                "Read the last log lines. A service manager may start the node again."
            }
            ExitCode::Usage => {
                "Correct what standard error names; `e2d config check` tells whether it is right. \
                 Starting again without a change ends the same way."
            }
            ExitCode::DataDirInUse => {
                "Find the other process; two nodes never share a data directory."
            }
            ExitCode::DataCorrupt => {
                "Keep the data directory as it is, check the disk, and bring the node back from a backup or \
                 from the other members."
            }
            ExitCode::DiskWrite => {
                "Free space or replace the disk, then start the node again: it recovers what was acknowledged."
            }
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

/// The end of a command that did not do its work: a code for programs and a cause for people.
#[derive(Debug)]
pub struct Failure {
    /// For programs.
    pub code: ExitCode,
    /// For people.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure with its cause.
    pub fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Self {
        Failure {
            code,
            error: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The alternate form of anyhow joins the chain of causes.
        write!(f, "{:#}", self.error)
    }
}

/// docs/exit-codes.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Exit codes\n\n\
         Generated from `src/e2d/src/cli/exit.rs`; do not edit. Every `e2d` command ends with one of these.\n\n\
         | code | meaning | what to do |\n|---|---|---|\n",
    );
    for code in ExitCode::ALL {
        text.push_str(&format!(
            "| {} | {} | {} |\n",
            code as u8,
            code.meaning(),
            code.advice()
        ));
    }
    text.push_str(
        "\nA process that a signal killed has no exit code of its own: shells show 128 plus the signal's number, \
         for instance 137 after `kill -9`.\n",
    );
    text
}
