//! Reading the log from the disk when the process starts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};

use super::format::{self, FRAME_BYTES, FrameHeader, HEADER_BYTES, Header, Item};
use super::log::{Log, Segment};
use super::{Identity, Options, SnapshotMark, Wal, WalError, WalReader};
use crate::disk::{Disk, DiskFile};

/// How much of a segment is read at once, in bytes, unless a batch is larger.
const READ_BYTES: usize = 1 << 20;

const ZEROS: [u8; 4096] = [0; 4096];

/// What was in the log.
#[derive(Debug)]
pub struct Recovered {
    /// The last hard state. Its commit index may be behind the store's applied index: see [`Wal::open`].
    pub hard_state: HardState,
    /// The last snapshot mark; index 0 if there never was one.
    pub snapshot: SnapshotMark,
    /// The entries behind the snapshot mark, from the first, as far as [`Options::recover_bytes`] allows. Those that
    /// follow can be read with [`WalReader::entries`].
    pub entries: Vec<Entry>,
    /// What was cut off at the end of the last segment, if a write was torn there.
    pub torn: Option<TornTail>,
}

/// The remains of a write that never came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Where it began, in bytes.
    pub offset: u64,
    /// How many bytes were cut off, as far as it can be told.
    pub bytes: u64,
}

/// The log's files in its directory. Others are left alone.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Sequence, first index and name of every segment, by sequence.
    pub(super) live: Vec<(u32, u64, String)>,
    /// Released segments.
    pub(super) spare: Vec<String>,
    /// Segments that were being made.
    pub(super) unfinished: Vec<String>,
}

pub(super) fn live_name(sequence: u32, first_index: u64) -> String {
    format!("{sequence:08x}-{first_index:016x}.wal")
}

pub(super) fn spare_name(sequence: u32) -> String {
    format!("{sequence:08x}.spare")
}

pub(super) fn unfinished_name(sequence: u32) -> String {
    format!("{sequence:08x}.unfinished")
}

/// The log's files in `dir`; `None` if there is no `dir`.
pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Option<Names>, WalError> {
    let mut all = match disk.list(dir) {
        Ok(all) => all,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(WalError::io("listing", dir)(e)),
    };
    all.sort_unstable();
    let mut names = Names::default();
    for name in all {
        let sequence = |stem: &str| u32::from_str_radix(stem, 16).ok();
        if let Some((stem, first)) = name.strip_suffix(".wal").and_then(|n| n.split_once('-')) {
            let first = u64::from_str_radix(first, 16).ok();
            if let (Some(sequence), Some(first)) = (sequence(stem), first)
                && live_name(sequence, first) == name
            {
                names.live.push((sequence, first, name));
            }
        } else if let Some(sequence) = name.strip_suffix(".spare").and_then(sequence) {
            if spare_name(sequence) == name {
                names.spare.push(name);
            }
        } else if let Some(sequence) = name.strip_suffix(".unfinished").and_then(sequence)
            && unfinished_name(sequence) == name
        {
            names.unfinished.push(name);
        }
    }
    Ok(Some(names))
}

pub(super) fn unlink_all(disk: &dyn Disk, dir: &Path, names: &[String]) -> Result<(), WalError> {
    for name in names {
        let path = dir.join(name);
        disk.unlink(&path).map_err(WalError::io("removing", &path))?;
    }
    Ok(())
}

/// [`Wal::open`].
pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    options: Options,
) -> Result<(Wal, Recovered), WalError> {
    let missing = || WalError::Missing { dir: dir.to_owned() };
    let mut names = list(&*disk, dir)?.ok_or_else(missing)?;

    // A name that only the cache knows would be relied on below. It is made durable, or the start fails.
    disk.fsync_dir(dir).map_err(WalError::io("syncing the directory", dir))?;

    let mut segments = Vec::new();
    for (sequence, first_index, name) in &names.live {
        segments.push(open_segment(&*disk, dir.join(name), identity, (*sequence, *first_index))?);
    }
    let (first, first_path, last) = match (segments.first(), segments.last()) {
        (Some(first), Some(last)) => (first.header, first.path.clone(), last.header),
        _ => return Err(missing()),
    };

    let mut log = Log::new(first.first_index);
    let mut scan = Scan { log: &mut log, next_frame: first.first_frame, items: Vec::new() };
    let mut end = 0;
    for (i, segment) in segments.iter().enumerate() {
        check_neighbours(segment, &first, i, &scan)?;
        end = scan.segment(segment)?;
    }
    let next_frame = scan.next_frame;
    let last_segment = segments.pop().map(Arc::new).ok_or_else(missing)?;
    // Every segment but the last ends where the next begins, which the next one's check has seen to. For the last one
    // it is to be told whether its end is an end.
    let torn = find_torn(&last_segment, end, next_frame)?;
    if log.mark.index + 1 < log.first_index() {
        let (mark, first) = (log.mark.index, log.first_index());
        return Err(WalError::corrupt(
            &first_path,
            0,
            format!(
                "entries {} to {} are missing before it",
                mark + 1,
                first - 1
            ),
        ));
    }

    // From here on files are changed.
    if let Some(torn) = &torn {
        erase(&last_segment, torn)?;
    }
    let kept = names.spare.len().min(options.spare_segments);
    unlink_all(&*disk, dir, &names.spare.split_off(kept))?;
    unlink_all(&*disk, dir, &names.unfinished)?;

    for segment in segments {
        log.segments.insert(segment.header.sequence, Arc::new(segment));
    }
    log.segments.insert(last.sequence, Arc::clone(&last_segment));

    let hard_state = log.hard_state;
    let snapshot = log.mark.clone();
    let (lo, hi) = (snapshot.index + 1, log.last_index() + 1);
    let reader = WalReader::new(log);
    let recovered =
        Recovered { entries: reader.entries(lo, hi.max(lo), options.recover_bytes)?, hard_state, snapshot, torn };
    let wal = Wal {
        disk,
        dir: dir.to_owned(),
        identity,
        block_bytes: last.block_bytes,
        options,
        salt: last.salt,
        reader,
        hard_state,
        hard_state_written: true,
        zeroed: if last.recycled { last.capacity } else { end },
        last: last_segment,
        offset: end,
        next_frame,
        // What the last frame is was not kept: one more does no harm.
        sealed: false,
        spares: names.spare,
        buf: Vec::new(),
        slots: Vec::new(),
        poisoned: None,
    };
    Ok((wal, recovered))
}

fn open_segment(
    disk: &dyn Disk,
    path: PathBuf,
    identity: Identity,
    (sequence, first_index): (u32, u64),
) -> Result<Segment, WalError> {
    let file = disk.open(&path).map_err(WalError::io("opening", &path))?;
    // What is read below must be what is on the disk, for it is acknowledged to others: bytes that a killed process
    // wrote are flushed, and bytes whose flush failed are dropped from the cache, where they look as if they were there.
    file.fdatasync().map_err(WalError::io("syncing", &path))?;
    file.forget_cached().map_err(WalError::io("dropping the cache of", &path))?;
    let mut bytes = [0; HEADER_BYTES];
    let found = file.read_full(&mut bytes, 0).map_err(WalError::io("reading", &path))?;
    let header = Header::decode(&bytes[..found], &path)?;
    if header.identity != identity {
        return Err(WalError::Foreign { path, expected: identity, found: header.identity });
    }
    if (header.sequence, header.first_index) != (sequence, first_index) {
        let found = live_name(header.sequence, header.first_index);
        return Err(WalError::corrupt(
            &path,
            48,
            format!("it is {found} inside"),
        ));
    }
    let size = file.size().map_err(WalError::io("measuring", &path))?;
    if size != header.capacity {
        let expected = header.capacity;
        return Err(WalError::corrupt(
            &path,
            size.min(expected),
            format!("a file of {size} bytes, expected {expected}"),
        ));
    }
    Ok(Segment { header, path, file })
}

/// Whether a segment follows those that were scanned.
fn check_neighbours(segment: &Segment, first: &Header, i: usize, scan: &Scan<'_>) -> Result<(), WalError> {
    let header = &segment.header;
    let corrupt = |what| Err(WalError::corrupt(&segment.path, 0, what));
    let expected = u64::from(first.sequence) + i as u64;
    if u64::from(header.sequence) != expected {
        return corrupt(format!("segment {expected:08x} before it is missing"));
    }
    if (header.salt, header.block_bytes) != (first.salt, first.block_bytes) {
        return corrupt("it was made for another log of this node".to_owned());
    }
    if header.first_frame != scan.next_frame {
        return corrupt(format!(
            "the segment before it ends with batch {}, expected {}: acknowledged batches are damaged there",
            scan.next_frame - 1,
            header.first_frame - 1
        ));
    }
    let next = scan.log.last_index() + 1;
    if header.first_index != next {
        return corrupt(format!(
            "it begins at entry {}, expected {next}",
            header.first_index
        ));
    }
    Ok(())
}

struct Scan<'a> {
    log: &'a mut Log,
    next_frame: u64,
    items: Vec<Item>,
}

impl Scan<'_> {
    /// Takes in the frames of a segment up to the first that is not whole, and returns where that is.
    fn segment(&mut self, segment: &Segment) -> Result<u64, WalError> {
        let Segment { header, path, .. } = segment;
        let (seed, block) = (header.seed(), u64::from(header.block_bytes));
        let mut window = Window::new(segment);
        let mut offset = block;
        loop {
            let Some(frame) = window.whole_frame(offset)? else {
                if offset == block {
                    return Err(WalError::corrupt(
                        path,
                        offset,
                        "its first batch is damaged",
                    ));
                }
                return Ok(offset);
            };
            if frame.number != self.next_frame {
                return Err(WalError::corrupt(
                    path,
                    offset,
                    format!("batch {}, expected {}", frame.number, self.next_frame),
                ));
            }
            let body_offset = offset + FRAME_BYTES as u64;
            let body = window.get(body_offset, frame.body_bytes as usize)?;
            format::decode_body(body, seed, body_offset, &mut self.items)
                .map_err(|(at, what)| WalError::corrupt(path, at, what))?;
            for item in &self.items {
                self.log.apply(item, header.sequence).map_err(|what| WalError::corrupt(path, offset, what))?;
            }
            self.next_frame += 1;
            offset += frame.bytes(block);
        }
    }
}

impl FrameHeader {
    /// The bytes of the frame with its padding.
    fn bytes(&self, block: u64) -> u64 {
        (FRAME_BYTES as u64 + u64::from(self.body_bytes)).next_multiple_of(block)
    }
}

/// What is behind the last whole frame of the last segment: nothing, or the remains of one frame that was torn.
///
/// # Errors
/// If a frame lies there that was written after the broken one, which was acknowledged then.
fn find_torn(segment: &Segment, end: u64, next_frame: u64) -> Result<Option<TornTail>, WalError> {
    let Segment { header, path, .. } = segment;
    let block = u64::from(header.block_bytes);
    let mut window = Window::new(segment);
    let mut torn_end = end;
    let mut at = end;
    while at < header.capacity {
        let bytes = window.get(at, block as usize)?;
        // A segment that was never written before is zeros behind its end. In a recycled one there is its earlier life,
        // and only a frame of this one can be told from it.
        let zeros = || bytes.chunks(ZEROS.len()).all(|c| c == &ZEROS[..c.len()]);
        if !header.recycled && !zeros() {
            torn_end = at + block;
        }
        if let Some(frame) = FrameHeader::decode(bytes, header.seed(), at) {
            if at > end || frame.number != next_frame {
                return Err(WalError::corrupt(
                    path,
                    end,
                    format!(
                        "batch {next_frame} is damaged, and batch {} was written behind it at byte {at}: \
                         acknowledged entries would be lost",
                        frame.number
                    ),
                ));
            }
            torn_end = torn_end.max(at + frame.bytes(block)).min(header.capacity);
        }
        at += block;
    }
    Ok((torn_end > end).then(|| TornTail { path: path.clone(), offset: end, bytes: torn_end - end }))
}

/// Overwrites a torn tail with zeros, so that it is reported once and is no part of what is written later.
fn erase(segment: &Segment, torn: &TornTail) -> Result<(), WalError> {
    let Segment { file, path, .. } = segment;
    let zeros = vec![0; READ_BYTES.min(torn.bytes as usize)];
    let mut done = 0;
    while done < torn.bytes {
        let n = zeros.len().min((torn.bytes - done) as usize);
        file.write_full(&zeros[..n], torn.offset + done).map_err(WalError::io("erasing a torn write in", path))?;
        done += n as u64;
    }
    file.fdatasync().map_err(WalError::io("syncing", path))
}

/// Reads a segment from its beginning to its end, a large piece at a time.
struct Window<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    header: &'a Header,
    bytes: Vec<u8>,
    start: u64,
}

impl<'a> Window<'a> {
    fn new(segment: &'a Segment) -> Window<'a> {
        Window { file: &*segment.file, path: &segment.path, header: &segment.header, bytes: Vec::new(), start: 0 }
    }

    /// The bytes at `offset`, fewer where the segment ends.
    fn get(&mut self, offset: u64, len: usize) -> Result<&[u8], WalError> {
        let len = len.min(self.header.capacity.saturating_sub(offset) as usize);
        let have = self.start..self.start + self.bytes.len() as u64;
        if !(have.contains(&offset) && offset + len as u64 <= have.end) {
            let rest = self.header.capacity.saturating_sub(offset) as usize;
            self.bytes.resize(READ_BYTES.max(len).min(rest), 0);
            let found = self.file.read_full(&mut self.bytes, offset).map_err(WalError::io("reading", self.path))?;
            self.bytes.truncate(found);
            self.start = offset;
        }
        let at = (offset - self.start) as usize;
        let end = (at + len).min(self.bytes.len());
        Ok(self.bytes.get(at..end).unwrap_or_default())
    }

    /// The header of the frame at `offset`, if there is a frame and all of it is as it was written.
    fn whole_frame(&mut self, offset: u64) -> Result<Option<FrameHeader>, WalError> {
        let seed = self.header.seed();
        let bytes = self.get(offset, FRAME_BYTES)?;
        let Some(frame) = FrameHeader::decode(bytes, seed, offset) else {
            return Ok(None);
        };
        let body_bytes = frame.body_bytes as usize;
        let body = self.get(offset + FRAME_BYTES as u64, body_bytes)?;
        let whole = body.len() == body_bytes && crc32c::crc32c(body) == frame.body_crc;
        Ok(whole.then_some(frame))
    }
}
