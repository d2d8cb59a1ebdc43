//! The data directory: for one process alone, readable by nobody else, and belonging to one member of one cluster.
//!
//! ```text
//!  <data-dir>/lock            held for the life of the process
//!             identity.json   who this is; written once, before anything else
//!             store/          applied state (LMDB)
//!             wal/            the raft log, unless it is elsewhere
//! ```

use crate::store::Identity;
use e2d_core::ids::{ClusterId, MemberId};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity.json";

/// What is in [`IDENTITY`] that is not an id.
const FORMAT: u64 = 1;

/// An open data directory. The lock goes with it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Who this is.
    pub identity: Identity,
    _lock: OwnedFd,
}

/// Why the data directory is not used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Somebody else has it.
    #[error("data directory {path} is in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Others may look into it.
    #[error("data directory {path} has mode {mode:o}, expected 700: others could read it; run `chmod 700 {path}`")]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It has the files of etcd.
    #[error("data directory {path} holds data of etcd (there is {path}/member): e2d does not write to it, choose another directory")]
    OfEtcd {
        /// The directory.
        path: PathBuf,
    },
    /// The identity cannot be understood.
    #[error("{path}: {what}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There is data, but nobody knows whose.
    #[error("data directory {path} has a {found} and no {IDENTITY}: its identity is lost, and so is the right to use the data")]
    Nameless {
        /// The directory.
        path: PathBuf,
        /// What there is.
        found: &'static str,
    },
    /// The file system says no.
    #[error("{doing} {path}: {cause}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Refused {
    let path = path.to_owned();
    move |cause| Refused::Io { doing, path, cause }
}

impl DataDir {
    /// Opens a directory, or makes one for a new member of a new cluster, whose ids `new` gives.
    pub fn open(path: &Path, new: impl FnOnce() -> Identity) -> Result<DataDir, Refused> {
        if !path.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed("creating the data directory", path))?;
        }
        let path = path.canonicalize().map_err(failed("looking at the data directory", path))?;
        let metadata = path.metadata().map_err(failed("looking at the data directory", &path))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Refused::Mode { path, mode });
        }
        if path.join("member").exists() {
            return Err(Refused::OfEtcd { path });
        }
        let lock = lock(&path)?;
        let file = path.join(IDENTITY);
        let identity = match std::fs::read(&file) {
            Ok(bytes) => parse(&bytes).map_err(|what| Refused::Identity { path: file, what })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for found in ["store", "wal"] {
                    if path.join(found).exists() {
                        return Err(Refused::Nameless { path, found });
                    }
                }
                let identity = new();
                write(&path, &file, identity).map_err(failed("writing", &file))?;
                identity
            }
            Err(error) => return Err(failed("reading", &file)(error)),
        };
        Ok(DataDir { path, identity, _lock: lock })
    }

    /// Where the store is.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }
}

fn lock(path: &Path) -> Result<OwnedFd, Refused> {
    let file = path.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&file, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| failed("opening", &file)(error.into()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refused::InUse { path: path.to_owned() }),
        Err(error) => Err(failed("locking", &file)(error.into())),
    }
}

/// Whole or not at all: a crash leaves no half identity.
fn write(dir: &Path, path: &Path, identity: Identity) -> io::Result<()> {
    let text = serde_json::json!({
        "format": FORMAT,
        "cluster": identity.cluster.to_string(),
        "member": identity.member.to_string(),
    });
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

fn parse(bytes: &[u8]) -> Result<Identity, String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    if value["format"] != FORMAT {
        return Err(format!("format is {}, expected {FORMAT}: it was written by another version", value["format"]));
    }
    let id = |name: &str| {
        let text = value[name].as_str().unwrap_or_default();
        u64::from_str_radix(text, 16)
            .ok()
            .filter(|id| *id != 0)
            .ok_or_else(|| format!("{name} is {}, expected a hexadecimal number that is not 0", value[name]))
    };
    Ok(Identity { cluster: ClusterId(id("cluster")?), member: MemberId(id("member")?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> Identity {
        Identity { cluster: ClusterId(1), member: MemberId(0xabc) }
    }

    #[test]
    fn a_member_stays_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        drop(DataDir::open(&path, new).unwrap());
        let again = DataDir::open(&path, || unreachable!("it has an identity")).unwrap();
        assert_eq!(again.identity, new());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path, new).unwrap();
        assert!(matches!(DataDir::open(&path, new), Err(Refused::InUse { .. })));
        drop(first);
        DataDir::open(&path, new).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        drop(DataDir::open(&path, new).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        let error = DataDir::open(&path, new).unwrap_err().to_string();
        assert!(error.contains("has mode 750, expected 700"), "{error}");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::create_dir(dir.path().join("member")).unwrap();
        assert!(matches!(DataDir::open(dir.path(), new), Err(Refused::OfEtcd { .. })));
        std::fs::remove_dir(dir.path().join("member")).unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        assert!(matches!(DataDir::open(dir.path(), new), Err(Refused::Nameless { found: "store", .. })));
        assert!(!dir.path().join(IDENTITY).exists());
    }

    #[test]
    fn a_broken_identity_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        drop(DataDir::open(&path, new).unwrap());
        for (text, expected) in [
            ("", "not JSON"),
            (r#"{"format":2}"#, "format is 2, expected 1"),
            (r#"{"format":1,"cluster":"1","member":"xyz"}"#, r#"member is "xyz", expected a hexadecimal number"#),
            (r#"{"format":1,"cluster":"0","member":"1"}"#, r#"cluster is "0""#),
        ] {
            std::fs::write(path.join(IDENTITY), text).unwrap();
            let error = DataDir::open(&path, new).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
