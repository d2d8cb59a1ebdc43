//! What can go wrong with the log.

use std::io;
use std::path::{Path, PathBuf};

use super::Identity;

/// Why the log could not do what it was asked.
///
/// [`WalError::OutOfRange`] and [`WalError::TooLarge`] change nothing. After any other error of a call that writes, the
/// log takes no more writes: what is on the disk is unknown until it is read again by a new process.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file system refused.
    #[error("{what} {path}{}", advice(source))]
    Io {
        /// What was attempted, as in "writing".
        what: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The file system's answer.
        source: io::Error,
    },

    /// The log on the disk is not what was written there. Nothing was changed.
    #[error("the raft log is damaged: {path} at byte {offset}: {what}")]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong, with what was expected and what was found.
        what: String,
    },

    /// The log belongs to another node or another cluster.
    #[error("the raft log {path} is of {found}, this is {expected}")]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// Who opens it.
        expected: Identity,
        /// Whose it is.
        found: Identity,
    },

    /// The log was written in a format that this version does not know.
    #[error("the raft log {path} has format {found}, this version reads {expected}")]
    Version {
        /// The segment.
        path: PathBuf,
        /// The format this version writes.
        expected: u32,
        /// The format of the segment.
        found: u32,
    },

    /// There is no log to open.
    #[error("there is no raft log in {dir}")]
    Missing {
        /// Where one was looked for.
        dir: PathBuf,
    },

    /// There is a log where a new one was to be made.
    #[error("there already is a raft log in {dir}")]
    Exists {
        /// Where it is.
        dir: PathBuf,
    },

    /// The entries asked for are not in the log: released, or not yet written.
    #[error(
        "entries {lo} to {hi} (exclusive) are not in the raft log, which has {first} to {last}"
    )]
    OutOfRange {
        /// The first entry asked for.
        lo: u64,
        /// The end of what was asked for, exclusive.
        hi: u64,
        /// The first entry there is.
        first: u64,
        /// The last entry there is; `first - 1` if there is none.
        last: u64,
    },

    /// More than the log takes in one batch.
    #[error("a batch of {bytes} bytes is more than the raft log takes at once ({limit} bytes)")]
    TooLarge {
        /// The size of the batch.
        bytes: u64,
        /// The most it may have.
        limit: u64,
    },

    /// A write failed earlier, and this was not attempted.
    #[error("the raft log takes no more writes since an earlier failure: {first}")]
    Poisoned {
        /// The earlier failure.
        first: String,
    },
}

impl WalError {
    /// Turns the file system's answer into an error of the log.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
        let path = path.to_owned();
        move |source| WalError::Io { what, path, source }
    }

    pub(super) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> WalError {
        WalError::Corrupt { path: path.to_owned(), offset, what: what.into() }
    }

    /// Whether the process must stop and start from what is on the disk.
    pub fn is_fatal(&self) -> bool {
        match self {
            WalError::OutOfRange { .. } | WalError::TooLarge { .. } => false,
            WalError::Io { .. }
            | WalError::Corrupt { .. }
            | WalError::Foreign { .. }
            | WalError::Version { .. }
            | WalError::Missing { .. }
            | WalError::Exists { .. }
            | WalError::Poisoned { .. } => true,
        }
    }
}

/// What the operator can do about it. The answer itself is the error's source.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the file system is full; free space on it or enlarge it, then start e2d again \
             (nothing that was acknowledged is lost)"
        }
        _ => "",
    }
}
