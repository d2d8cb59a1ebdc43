//! A disk that fails once, at a call that a test chooses.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO, nothing done.
    Io,
    /// ENOSPC, nothing done.
    Full,
    /// A write takes half of the bytes and says so. Other calls are carried out.
    Short,
    /// A write takes half of the bytes, and the next write is EIO. Other calls are carried out.
    ShortThenIo,
}

/// Passes every call on to another disk, except one.
///
/// Calls are counted from 0 over all files and names. A test runs its work once without a fault, asks
/// [`FaultyDisk::calls`], and then once for every call with the fault there.
#[derive(Debug, Clone)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug)]
struct Plan {
    fault: Option<(usize, Fault)>,
    /// What was called, in order; what changes the disk is marked.
    calls: Vec<(String, bool)>,
    /// The next write is EIO.
    fail_next_write: bool,
    /// The number of calls when an error was first returned.
    failed_at: Option<usize>,
}

impl FaultyDisk {
    /// Fails at call number `at`, counted from 0.
    pub fn new(inner: Arc<dyn Disk>, fault: Option<(usize, Fault)>) -> FaultyDisk {
        FaultyDisk {
            inner,
            plan: Arc::new(Mutex::new(Plan {
                fault,
                calls: Vec::new(),
                fail_next_write: false,
                failed_at: None,
            })),
        }
    }

    /// Every call until now, as `name path`.
    pub fn calls(&self) -> Vec<String> {
        let plan = self.plan();
        plan.calls.iter().map(|(call, _)| call.clone()).collect()
    }

    /// Whether a call has returned an error of this disk's making.
    pub fn failed(&self) -> bool {
        self.plan().failed_at.is_some()
    }

    /// The calls after the failed one that changed the disk, or would have.
    pub fn changes_after_failure(&self) -> Vec<String> {
        let plan = self.plan();
        let after = plan.failed_at.unwrap_or(plan.calls.len());
        plan.calls[after..]
            .iter()
            .filter(|(_, changes)| *changes)
            .map(|(call, _)| call.clone())
            .collect()
    }
}

/// What a call is to do.
enum Verdict {
    Do,
    Half,
}

impl Plan {
    fn call(&mut self, name: &str, path: &Path, changes: bool, write: bool) -> io::Result<Verdict> {
        let number = self.calls.len();
        self.calls
            .push((format!("{name} {}", path.display()), changes));
        if write && std::mem::take(&mut self.fail_next_write) {
            self.failed_at = Some(self.calls.len());
            return Err(rustix::io::Errno::IO.into());
        }
        let Some((_, fault)) = self.fault.filter(|(at, _)| *at == number) else {
            return Ok(Verdict::Do);
        };
        match fault {
            Fault::Io | Fault::Full => {
                self.failed_at = Some(self.calls.len());
                Err(match fault {
                    Fault::Full => rustix::io::Errno::NOSPC.into(),
                    _ => rustix::io::Errno::IO.into(),
                })
            }
            Fault::Short if write => Ok(Verdict::Half),
            Fault::ShortThenIo if write => {
                self.fail_next_write = true;
                Ok(Verdict::Half)
            }
            Fault::Short | Fault::ShortThenIo => Ok(Verdict::Do),
        }
    }
}

impl FaultyDisk {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, name: &str, path: &Path, changes: bool) -> io::Result<()> {
        let mut plan = self.plan();
        plan.call(name, path, changes, false).map(|_| ())
    }

    fn wrap(&self, path: &Path, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile {
            inner,
            path: path.to_owned(),
            disk: self.clone(),
        })
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.call("create_dir", dir, true)?;
        self.inner.create_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.call("list", dir, false)?;
        self.inner.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.call("create", path, true)?;
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.call("open", path, false)?;
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", from, true)?;
        self.inner.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.call("unlink", path, true)?;
        self.inner.unlink(path)
    }

    fn fsync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call("fsync_dir", dir, true)?;
        self.inner.fsync_dir(dir)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn DiskFile>,
    path: PathBuf,
    disk: FaultyDisk,
}

impl DiskFile for FaultyFile {
    fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.call("pread", &self.path, false)?;
        self.inner.pread(buf, offset)
    }

    fn pwrite(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let verdict = self.disk.plan().call("pwrite", &self.path, true, true)?;
        match verdict {
            Verdict::Do => self.inner.pwrite(buf, offset),
            Verdict::Half => self.inner.pwrite(&buf[..buf.len().div_ceil(2)], offset),
        }
    }

    fn fdatasync(&self) -> io::Result<()> {
        self.disk.call("fdatasync", &self.path, true)?;
        self.inner.fdatasync()
    }

    fn fallocate(&self, len: u64) -> io::Result<()> {
        self.disk.call("fallocate", &self.path, true)?;
        self.inner.fallocate(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.disk.call("size", &self.path, false)?;
        self.inner.size()
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.disk.call("forget_cached", &self.path, false)?;
        self.inner.forget_cached()
    }
}
