//! The raft log on the disk.
//!
//! ```text
//!   append(batch) ──► one buffer ──► one pwrite ──► one fdatasync ──► Ok: it is durable, all of it
//!
//!   00000007-….wal   00000008-….wal   00000009-….wal        00000005.spare
//!   [■■■■■■■■■■■■]   [■■■■■■■■■■■■]   [■■■■■······]         released, waits to be written again
//!    │ entries that the store has made durable: release()  └ the next batch goes here
//! ```
//!
//! It keeps entries, the hard state, and marks of snapshots. It is *not* the store: it knows nothing of what entries
//! mean, and holds what the store has not made durable, and some more for followers that lag. It is *not* shared: the
//! caller holds the lock of the data directory.
//!
//! **What is promised.** A batch that was acknowledged is there after any crash or power cut, whole. One that was not
//! is there whole or not at all. A write or a sync that fails is final: nothing is tried again, [`Wal`] takes no more
//! writes, and the process has to start from what is on the disk. Damage is reported, never read over.
//!
//! **Torn or damaged.** A power cut may leave the last batch broken, and only the last, because a batch is written when
//! the one before it is durable. So a broken batch ends the log only if it is the last of the last segment: no whole
//! batch of a higher number lies anywhere behind it. Otherwise [`Wal::open`] refuses, for acknowledged entries would be
//! lost. Segments before the last must reach the batch with which the next one begins.
//!
//! **What cannot be told apart.** If the disk damages the very last batch after it was acknowledged, that looks as if
//! it had been torn before; and if it loses the whole last segment, as if it had never been. [`Wal::seal`] narrows
//! the first: it writes a small batch behind the last one when there is time, at idle and before the process ends. For
//! the rest the caller compares: a store that has applied more than [`Wal::last_index`] has seen entries that are lost
//! here, and must not serve.
//!
//! An acknowledged block is never written again before its segment is recycled: batches begin at blocks, which are as
//! large as what a disk writes whole. Why it is made as it is, with figures: `docs/decisions/0001-wal.md`.

mod error;
mod format;
mod log;
mod recover;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use raft::eraftpb::{ConfState, Entry, HardState};

pub use self::error::WalError;
use self::format::{FrameWriter, Header};
use self::log::{Log, Segment, Slot};
pub use self::recover::{Recovered, TornTail};
use crate::disk::{Disk, DiskFile};

/// The batch buffer is given back to the allocator above this size, in bytes.
const KEEP_BUFFER_BYTES: usize = 4 << 20;

/// Whose log it is. A log of somebody else is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The node in it.
    pub node_id: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node, cluster) = (self.node_id, self.cluster_id);
        write!(f, "node {node:016x} of cluster {cluster:016x}")
    }
}

/// How the log is laid out. A log that exists keeps the block size it was made with; the rest may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The size of a segment in bytes. One that a large batch needs is larger.
    pub segment_bytes: u64,
    /// What the disk writes whole or not at all, in bytes; a power of two from 512. Batches begin at its multiples.
    pub block_bytes: u32,
    /// How far ahead a segment that was never written before is filled with zeros, in bytes. The first write to a
    /// block makes its sync slower, because the file system has to note that the block is in use.
    pub zero_ahead_bytes: u32,
    /// How many released segments are kept to be written again.
    pub spare_segments: usize,
    /// The most [`Wal::open`] returns in [`Recovered::entries`], in bytes, apart from the first entry.
    pub recover_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            block_bytes: 4096,
            zero_ahead_bytes: 1 << 20,
            spare_segments: 2,
            recover_bytes: u64::MAX,
        }
    }
}

/// Where a snapshot stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotMark {
    /// The last entry it contains.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The configuration at that entry.
    pub conf_state: ConfState,
    /// What becomes of the log.
    pub log: LogAfter,
}

/// What a snapshot does to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogAfter {
    /// The store has made the entries up to the mark durable; those behind it stay. [`Wal::release`] may give up
    /// segments up to the mark, and not beyond.
    #[default]
    Kept,
    /// The snapshot came from another node in the place of the log, which is empty behind the mark from then on.
    Discarded,
}

/// What is appended at once, in this order: it is durable as a whole or not at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// A snapshot that was installed or made.
    pub snapshot: Option<&'a SnapshotMark>,
    /// Entries without a hole. The first may have an index that the log has: it and what follows it are replaced.
    pub entries: &'a [Entry],
    /// The hard state, if it has changed.
    pub hard_state: Option<&'a HardState>,
}

/// The log, as the one who writes it has it.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    options: Options,
    block_bytes: u32,
    salt: u64,
    reader: WalReader,
    /// The hard state with the last commit index; may be ahead of the disk.
    hard_state: HardState,
    hard_state_written: bool,
    /// The segment that is written, and where its next frame goes.
    last: Arc<Segment>,
    offset: u64,
    /// The last segment's blocks are in use up to here.
    zeroed: u64,
    next_frame: u64,
    /// The last frame has nothing in it that anybody would miss.
    sealed: bool,
    /// Names of released segments.
    spares: Vec<String>,
    buf: Vec<u8>,
    slots: Vec<Slot>,
    poisoned: Option<String>,
}

impl Wal {
    /// Whether there is a log in `dir`, whole or not.
    ///
    /// # Errors
    /// `dir` cannot be read. That it does not exist is no error.
    pub fn exists(disk: &dyn Disk, dir: &Path) -> Result<bool, WalError> {
        let names = recover::list(disk, dir)?;
        Ok(names.is_some_and(|names| !names.live.is_empty()))
    }

    /// Makes an empty log, and the directory `dir` for it if there is none; its parent must exist.
    ///
    /// # Errors
    /// [`WalError::Exists`] if there is a log, else what the file system says.
    ///
    /// # Panics
    /// If the options make no sense.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<Wal, WalError> {
        let mut salt = [0; 8];
        // Without blocking only at early boot, when the kernel has no entropy yet: then it is waited for.
        rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| WalError::io("choosing a salt for", dir)(e.into()))?;
        Wal::create_salted(disk, dir, identity, options, u64::from_ne_bytes(salt))
    }

    fn create_salted(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: Options,
        salt: u64,
    ) -> Result<Wal, WalError> {
        options.check();
        if Wal::exists(&*disk, dir)? {
            return Err(WalError::Exists {
                dir: dir.to_owned(),
            });
        }
        disk.create_dir(dir)
            .map_err(WalError::io("making the directory", dir))?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            disk.fsync_dir(parent)
                .map_err(WalError::io("syncing the directory", parent))?;
        }
        if let Some(names) = recover::list(&*disk, dir)? {
            recover::unlink_all(&*disk, dir, &names.unfinished)?;
        }
        let mut log = Log::new(1);
        let mut maker = SegmentMaker {
            disk: &*disk,
            dir,
            spares: &mut Vec::new(),
            buf: &mut Vec::new(),
        };
        let header = Header {
            identity,
            salt,
            block_bytes: options.block_bytes,
            capacity: options.segment_bytes,
            sequence: 1,
            recycled: false,
            first_index: 1,
            first_frame: 1,
        };
        let (last, offset) = maker.make(header, &SnapshotMark::default(), &HardState::default())?;
        let last = Arc::new(last);
        log.segments.insert(1, Arc::clone(&last));
        Ok(Wal {
            disk,
            dir: dir.to_owned(),
            identity,
            block_bytes: options.block_bytes,
            options,
            salt,
            reader: WalReader::new(log),
            hard_state: HardState::default(),
            hard_state_written: true,
            last,
            offset,
            zeroed: offset,
            next_frame: 2,
            sealed: true,
            spares: Vec::new(),
            buf: Vec::new(),
            slots: Vec::new(),
            poisoned: None,
        })
    }

    /// Reads the log in `dir` and makes it ready for more.
    ///
    /// The hard state's commit index may be behind the store's applied index, because a commit index that changes alone
    /// is not written at once. The caller raises it to the applied index before it starts raft.
    ///
    /// # Errors
    /// [`WalError::Missing`], [`WalError::Corrupt`], [`WalError::Foreign`], [`WalError::Version`], or what the file
    /// system says. A log that is refused is left as it was.
    ///
    /// # Panics
    /// If the options make no sense.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<(Wal, Recovered), WalError> {
        options.check();
        recover::open(disk, dir, identity, options)
    }

    /// Makes a batch durable: one write and one flush, whatever is in it.
    ///
    /// A batch that has only a hard state whose term and vote are the last ones is not written but goes with the next:
    /// a commit index is learned again after a restart.
    ///
    /// # Errors
    /// After an error nothing of the batch was acknowledged, and the log takes no more writes, except for
    /// [`WalError::TooLarge`], which changes nothing.
    ///
    /// # Panics
    /// If the batch makes no sense behind what the log has: a hole, a change to what is committed, a term or a commit
    /// that goes back.
    pub fn append(&mut self, batch: &Batch<'_>) -> Result<(), WalError> {
        self.check_poison()?;
        let makes_sense = self.reader.read().check_batch(batch);
        if let Err(what) = makes_sense {
            panic!("raft asks the log to write {what}");
        }
        let before = self.hard_state;
        if let Some(hard_state) = batch.hard_state {
            self.hard_state_written &= *hard_state == self.hard_state;
            self.hard_state = *hard_state;
        }
        let nothing_but_commit =
            (self.hard_state.term, self.hard_state.vote) == (before.term, before.vote);
        if batch.snapshot.is_none() && batch.entries.is_empty() && nothing_but_commit {
            self.reader.write().hard_state = self.hard_state;
            return Ok(());
        }
        let written = self.write(batch);
        if let Err(WalError::TooLarge { .. }) = &written {
            self.hard_state_written = false;
            self.hard_state = before;
        }
        self.poison_on_error(written)
    }

    /// Protects the last batch against damage that looks like a torn write, and writes a commit index that waits.
    /// Meant for when there is nothing else to do, and for the end of the process; does nothing when there is nothing
    /// to protect. See the module.
    ///
    /// # Errors
    /// As [`Wal::append`].
    pub fn seal(&mut self) -> Result<(), WalError> {
        self.check_poison()?;
        if self.sealed && self.hard_state_written {
            return Ok(());
        }
        let written = self.write(&Batch::default());
        self.poison_on_error(written)
    }

    /// Gives up the segments whose entries are all at or below both `upto` and the last snapshot mark, and returns how
    /// many. The caller has made durable elsewhere what these entries do.
    ///
    /// Files are kept for new segments or unlinked; a segment that a reader still uses is unlinked.
    ///
    /// # Errors
    /// As [`Wal::append`].
    pub fn release(&mut self, upto: u64) -> Result<usize, WalError> {
        self.check_poison()?;
        let released = self.release_segments(upto);
        self.poison_on_error(released)
    }

    /// A handle for reading, for any thread.
    pub fn reader(&self) -> WalReader {
        self.reader.clone()
    }

    /// The first entry that can be read; `last_index() + 1` if there is none.
    pub fn first_index(&self) -> u64 {
        self.reader.first_index()
    }

    /// The last entry, or the index of the last snapshot if there is none behind it.
    pub fn last_index(&self) -> u64 {
        self.reader.last_index()
    }

    /// The last hard state that was appended.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    fn check_poison(&self) -> Result<(), WalError> {
        match &self.poisoned {
            None => Ok(()),
            Some(first) => Err(WalError::Poisoned {
                first: first.clone(),
            }),
        }
    }

    fn poison_on_error<T>(&mut self, done: Result<T, WalError>) -> Result<T, WalError> {
        if let Err(error) = &done
            && error.is_fatal()
        {
            self.poisoned = Some(error.to_string());
        }
        done
    }

    /// Writes a frame and what it means, in a new segment if it does not fit into the last.
    fn write(&mut self, batch: &Batch<'_>) -> Result<(), WalError> {
        let block = u64::from(self.block_bytes);
        let hard_state_waits = !self.hard_state_written;
        let bytes = (format::FRAME_BYTES as u64
            + batch.snapshot.map_or(0, format::mark_bytes)
            + batch.entries.iter().map(format::entry_bytes).sum::<u64>()
            + u64::from(hard_state_waits) * format::hard_state_bytes())
        .next_multiple_of(block);
        if self.offset + bytes > self.last.header.capacity {
            self.next_segment(bytes)?;
        }

        let Header { sequence, .. } = self.last.header;
        self.buf.clear();
        self.slots.clear();
        let mut frame = FrameWriter::new(&mut self.buf, self.last.header.seed(), self.offset);
        if let Some(mark) = batch.snapshot {
            frame.mark(mark);
        }
        for entry in batch.entries {
            self.slots.push(Slot {
                term: entry.term,
                segment: sequence,
                offset: frame.entry(entry) as u32,
                record_bytes: format::entry_bytes(entry) as u32,
            });
        }
        if hard_state_waits {
            frame.hard_state(&self.hard_state);
        }
        frame.finish(self.next_frame, self.block_bytes);
        debug_assert_eq!(
            self.buf.len() as u64,
            bytes,
            "a frame of another size than computed"
        );

        let end = self.offset + bytes;
        let mut zeroed = self.zeroed;
        if end > zeroed {
            zeroed =
                (end + u64::from(self.options.zero_ahead_bytes)).min(self.last.header.capacity);
            self.buf.resize((zeroed - self.offset) as usize, 0);
        }
        let Segment { file, path, .. } = &*self.last;
        file.write_full(&self.buf, self.offset)
            .map_err(WalError::io("writing", path))?;
        file.fdatasync().map_err(WalError::io("syncing", path))?;

        self.offset = end;
        self.zeroed = zeroed;
        self.next_frame += 1;
        self.hard_state_written = true;
        self.sealed = batch.snapshot.is_none() && batch.entries.is_empty();
        let mut log = self.reader.write();
        if let Some(mark) = batch.snapshot {
            log.put_mark(mark);
        }
        for (entry, slot) in batch.entries.iter().zip(&self.slots) {
            log.put_entry(entry.index, *slot);
        }
        log.hard_state = self.hard_state;
        drop(log);
        self.buf.clear();
        self.buf.shrink_to(KEEP_BUFFER_BYTES);
        Ok(())
    }

    /// Begins a segment that has room for a frame of `frame_bytes`.
    fn next_segment(&mut self, frame_bytes: u64) -> Result<(), WalError> {
        let block = u64::from(self.block_bytes);
        let (mark, last_index) = {
            let log = self.reader.read();
            (log.mark.clone(), log.last_index())
        };
        // What a batch replaces or commits is not there yet when its segment begins: the head has the state before it.
        let hard_state = self.reader.read().hard_state;
        let head_bytes = block + head_frame_bytes(&mark).next_multiple_of(block);
        let needed = head_bytes + frame_bytes;
        if needed > format::MAX_SEGMENT_BYTES {
            return Err(WalError::TooLarge {
                bytes: frame_bytes,
                limit: format::MAX_SEGMENT_BYTES - head_bytes,
            });
        }
        let sequence = self.last.header.sequence.checked_add(1);
        let header = Header {
            identity: self.identity,
            salt: self.salt,
            block_bytes: self.block_bytes,
            capacity: self.options.segment_bytes.max(needed),
            sequence: sequence.ok_or_else(|| {
                WalError::corrupt(&self.last.path, 0, "sequences have come to their end")
            })?,
            recycled: false,
            first_index: last_index + 1,
            first_frame: self.next_frame,
        };
        let mut maker = SegmentMaker {
            disk: &*self.disk,
            dir: &self.dir,
            spares: &mut self.spares,
            buf: &mut self.buf,
        };
        let (segment, offset) = maker.make(header, &mark, &hard_state)?;
        self.last = Arc::new(segment);
        self.offset = offset;
        self.zeroed = if self.last.header.recycled {
            self.last.header.capacity
        } else {
            offset
        };
        self.next_frame += 1;
        let mut log = self.reader.write();
        log.segments.insert(header.sequence, Arc::clone(&self.last));
        Ok(())
    }

    fn release_segments(&mut self, upto: u64) -> Result<usize, WalError> {
        let mut released = 0;
        loop {
            let segment = {
                let mut log = self.reader.write();
                let upto = upto.min(log.mark.index);
                let oldest = log.segments.keys().next().copied();
                match (oldest, log.oldest_needed(upto)) {
                    (Some(oldest), Some(needed)) if oldest < needed => log.forget_segment(oldest),
                    _ => None,
                }
            };
            let Some(segment) = segment else {
                return Ok(released);
            };
            let path = &segment.path;
            // Nobody can take a new hold of it: it is not in the log any more.
            let in_use = Arc::strong_count(&segment) > 1;
            if !in_use
                && self.spares.len() < self.options.spare_segments
                && segment.header.capacity == self.options.segment_bytes
            {
                let spare = recover::spare_name(segment.header.sequence);
                self.disk
                    .rename(path, &self.dir.join(&spare))
                    .map_err(WalError::io("setting aside", path))?;
                self.spares.push(spare);
            } else {
                self.disk
                    .unlink(path)
                    .map_err(WalError::io("removing", path))?;
            }
            // One by one, oldest first: segments that are missing in the middle are damage.
            self.disk
                .fsync_dir(&self.dir)
                .map_err(WalError::io("syncing the directory", &self.dir))?;
            released += 1;
        }
    }
}

impl Options {
    fn check(&self) {
        let block = u64::from(self.block_bytes);
        assert!(
            format::valid_block_bytes(self.block_bytes),
            "a block of {block} bytes is no power of two from 512 to 1 MiB"
        );
        assert!(
            self.segment_bytes.is_multiple_of(block)
                && self.segment_bytes >= 4 * block
                && self.segment_bytes <= format::MAX_SEGMENT_BYTES,
            "a segment of {} bytes is no multiple of the block, less than four of them, or 4 GiB",
            self.segment_bytes
        );
    }
}

fn head_frame_bytes(mark: &SnapshotMark) -> u64 {
    format::FRAME_BYTES as u64 + format::mark_bytes(mark) + format::hard_state_bytes()
}

/// A segment that is being made: what it is called meanwhile.
type Unnamed = (PathBuf, Box<dyn DiskFile>);

/// Makes segments: from a spare one if there is one of the right size.
struct SegmentMaker<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    spares: &'a mut Vec<String>,
    buf: &'a mut Vec<u8>,
}

impl SegmentMaker<'_> {
    /// Makes the segment that `header` describes. Its first frame repeats the snapshot mark and the hard state, so that
    /// older segments can go. Returns where the next frame goes.
    ///
    /// The segment gets its name when it is whole and durable, so a segment of that name always has a header.
    fn make(
        &mut self,
        mut header: Header,
        mark: &SnapshotMark,
        hard_state: &HardState,
    ) -> Result<(Segment, u64), WalError> {
        let (unfinished, file) = match self.take_spare(header.capacity)? {
            Some(spare) => {
                header.recycled = true;
                spare
            }
            None => {
                let path = self.dir.join(recover::unfinished_name(header.sequence));
                let file = self
                    .disk
                    .create(&path)
                    .map_err(WalError::io("making", &path))?;
                file.fallocate(header.capacity)
                    .map_err(WalError::io("reserving space for", &path))?;
                (path, file)
            }
        };
        let block = u64::from(header.block_bytes);
        self.buf.clear();
        self.buf.extend_from_slice(&header.encode());
        self.buf.resize(block as usize, 0);
        let mut frame = FrameWriter::new(self.buf, header.seed(), block);
        frame.mark(mark);
        frame.hard_state(hard_state);
        frame.finish(header.first_frame, header.block_bytes);
        file.write_full(self.buf, 0)
            .map_err(WalError::io("writing", &unfinished))?;
        file.fdatasync()
            .map_err(WalError::io("syncing", &unfinished))?;
        let path = self
            .dir
            .join(recover::live_name(header.sequence, header.first_index));
        self.disk
            .rename(&unfinished, &path)
            .map_err(WalError::io("renaming", &unfinished))?;
        self.disk
            .fsync_dir(self.dir)
            .map_err(WalError::io("syncing the directory", self.dir))?;
        let offset = self.buf.len() as u64;
        Ok((Segment { header, path, file }, offset))
    }

    fn take_spare(&mut self, capacity: u64) -> Result<Option<Unnamed>, WalError> {
        let mut taken = None;
        while taken.is_none()
            && let Some(name) = self.spares.pop()
        {
            let path = self.dir.join(name);
            let file = self
                .disk
                .open(&path)
                .map_err(WalError::io("opening", &path))?;
            if file.size().map_err(WalError::io("measuring", &path))? == capacity {
                taken = Some((path, file));
            } else {
                // Of another segment size, or for one batch that was larger than a segment.
                self.disk
                    .unlink(&path)
                    .map_err(WalError::io("removing", &path))?;
            }
        }
        Ok(taken)
    }
}

/// Reads entries, from any thread, while the log is written.
#[derive(Debug, Clone)]
pub struct WalReader {
    log: Arc<RwLock<Log>>,
}

impl WalReader {
    fn new(log: Log) -> WalReader {
        WalReader {
            log: Arc::new(RwLock::new(log)),
        }
    }

    // Whoever panicked with the lock held has left no half-made change: every change under it is checked before.
    fn read(&self) -> RwLockReadGuard<'_, Log> {
        self.log.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Log> {
        self.log.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first entry that can be read; `last_index() + 1` if there is none.
    pub fn first_index(&self) -> u64 {
        self.read().first_index()
    }

    /// The last entry, or the index of the last snapshot if there is none behind it.
    pub fn last_index(&self) -> u64 {
        self.read().last_index()
    }

    /// The last snapshot mark.
    pub fn snapshot(&self) -> SnapshotMark {
        self.read().mark.clone()
    }

    /// The term of an entry that can be read, or of the last snapshot mark.
    pub fn term(&self, index: u64) -> Option<u64> {
        self.read().term(index)
    }

    /// Reads the entries from `lo` to `hi` (exclusive) from the disk, as many as `max_bytes` allow, but at least one.
    /// Memory is used for those, and for the 1 MiB at most that is read at once.
    ///
    /// # Errors
    /// [`WalError::OutOfRange`], [`WalError::Corrupt`], or what the file system says.
    pub fn entries(&self, lo: u64, hi: u64, max_bytes: u64) -> Result<Vec<Entry>, WalError> {
        let reads = self.read().plan(lo, hi, max_bytes)?;
        let mut entries = Vec::new();
        for read in reads {
            read.perform(&mut entries)?;
        }
        Ok(entries)
    }
}
