//! The few calls by which e2d's own files reach the disk.
//!
//! What must survive a power cut goes through [`Disk`] and [`DiskFile`], so that a test can put a disk beneath it which
//! fails at the n-th call (`FaultyDisk`) or loses what was not synced (`PowerCutDisk`). LMDB's file is not among it:
//! LMDB makes its calls itself.
//!
//! ```text
//!   wal ──► Disk, DiskFile ──┬─► RealDisk       the file system
//!                            ├─► FaultyDisk     passes on, fails once        (tests)
//!                            └─► PowerCutDisk   memory, and what a cut leaves (tests)
//! ```
//!
//! What the callers may rely on, and no more: bytes are durable after [`DiskFile::fdatasync`], names after
//! [`Disk::fsync_dir`]. A failed sync says nothing about what is on the disk, and a second one that succeeds says no
//! more: the kernel has marked the pages clean. So a failed write or sync is final for whoever made it.

use std::fmt;
use std::io;
use std::path::Path;

#[cfg(any(test, feature = "testing"))]
mod faulty;
#[cfg(any(test, feature = "testing"))]
mod powercut;
mod real;

#[cfg(any(test, feature = "testing"))]
pub use faulty::{Fault, FaultyDisk};
#[cfg(any(test, feature = "testing"))]
pub use powercut::{PowerCutDisk, Rng, SECTOR};
pub use real::RealDisk;

/// Names on a disk.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a directory that only its owner may enter; one that exists is left as it is.
    ///
    /// # Errors
    /// What the file system says. The parent must exist.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names of the regular files in `dir`, in any order.
    ///
    /// # Errors
    /// What the file system says, or a name that is not UTF-8.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes an empty file that only its owner may read, for reading and writing.
    ///
    /// # Errors
    /// What the file system says; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// What the file system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name in the same directory. A file that had the name loses it.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name away. Whoever has it open can still read it.
    ///
    /// # Errors
    /// What the file system says.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable.
    ///
    /// # Errors
    /// What the file system says; see the module for what a failure means.
    fn fsync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The bytes of one open file.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Reads at `offset` into `buf` and returns how many bytes there were; 0 at the end.
    ///
    /// # Errors
    /// What the file system says.
    fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at `offset` and returns how many bytes of `buf` were taken.
    ///
    /// # Errors
    /// What the file system says.
    fn pwrite(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes the bytes and the size durable.
    ///
    /// # Errors
    /// What the file system says; see the module for what a failure means.
    fn fdatasync(&self) -> io::Result<()>;

    /// Reserves `len` bytes, so that a write below it cannot find the disk full. New bytes read as zero.
    ///
    /// # Errors
    /// What the file system says. One that cannot reserve only grows the file.
    fn fallocate(&self, len: u64) -> io::Result<()>;

    /// The size in bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn size(&self) -> io::Result<u64>;

    /// Drops what the kernel holds of the file, so that the next read asks the disk.
    ///
    /// After a failed sync the kernel goes on to serve bytes that never reached the disk. A hint; it may do nothing.
    ///
    /// # Errors
    /// What the file system says.
    fn forget_cached(&self) -> io::Result<()>;
}

impl dyn DiskFile + '_ {
    /// Reads at `offset` until `buf` is full or the file ends, and returns how many bytes there were.
    ///
    /// # Errors
    /// The first error of [`DiskFile::pread`].
    pub fn read_full(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.pread(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `buf` at `offset`. A short write goes on where it stopped.
    ///
    /// # Errors
    /// The first error of [`DiskFile::pwrite`]. How much was written is unknown then, so the caller must not go on.
    pub fn write_full(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.pwrite(&buf[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                // A signal before the first byte: nothing was attempted, so this is no second try of a failed write.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
