//! A disk in memory that knows what a power cut may leave of it.
//!
//! A sync is the only thing that is certain. Of everything after it, a cut leaves any part: a write may be there, be
//! missing, be there in some of its 512-byte sectors, be overtaken by a later one, or leave a sector that holds
//! neither the old nor the new bytes. Names behave alike: any of the changes since the last sync of the directory may
//! be there, a rename whole or not at all.
//!
//! ```text
//!            pwrite, rename …          fdatasync, fsync_dir
//!   cache ◄────────────────── caller ──────────────────────► platter
//!     └── since the sync: [write][write][write] ── cut(seed) ──► a new disk: platter + some sectors of these
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64().checked_rem(n).unwrap_or(0)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct PowerCutDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Files by number; a file without a name stays for whoever has it open.
    files: Vec<FileState>,
    /// Names as a caller sees them, and as they are durable.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since the last sync of their directory.
    pending_names: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    /// Calls that changed or would have changed the disk.
    changes: u64,
    /// The power goes at this change: it and all later calls fail.
    power_goes_at: Option<u64>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Unlink(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct FileState {
    /// What a reader sees.
    cache: Vec<u8>,
    /// What is certain.
    platter: Vec<u8>,
    /// Writes and growths since the last sync.
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    Grow { len: usize },
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl PowerCutDisk {
    /// An empty disk.
    pub fn new() -> PowerCutDisk {
        PowerCutDisk::default()
    }

    /// How many calls changed the disk until now.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Cuts the power within change number `n`, counted from 0 over the life of this disk: that call and all after it
    /// fail, and what it was to change is among what [`PowerCutDisk::after_cut`] may leave.
    pub fn cut_at(&self, n: u64) {
        self.lock().power_goes_at = Some(n);
    }

    /// The disk that the next start finds, if the power goes now. `seed` chooses what is left of what was not synced:
    /// one seed in eight leaves all, one in eight leaves nothing.
    pub fn after_cut(&self, seed: u64) -> PowerCutDisk {
        let state = self.lock();
        let mut rng = Rng::new(seed);
        let keep = match rng.below(8) {
            0 => Keep::All,
            1 => Keep::Nothing,
            _ => Keep::Some,
        };
        let files: Vec<FileState> = state
            .files
            .iter()
            .map(|file| FileState::on_platter(file.after_cut(keep, &mut rng)))
            .collect();
        let mut names = state.durable_names.clone();
        for change in &state.pending_names {
            if keep.keeps(&mut rng) {
                change.apply(&mut names);
            }
        }
        PowerCutDisk {
            state: Arc::new(Mutex::new(State {
                files,
                durable_names: names.clone(),
                names,
                dirs: state.dirs.clone(),
                ..State::default()
            })),
        }
    }

    /// The same disk after a process died and the power stayed: everything is there, nothing more is certain.
    pub fn after_kill(&self) -> PowerCutDisk {
        let state = self.lock();
        PowerCutDisk {
            state: Arc::new(Mutex::new(State {
                files: state.files.clone(),
                names: state.names.clone(),
                durable_names: state.durable_names.clone(),
                pending_names: state.pending_names.clone(),
                dirs: state.dirs.clone(),
                ..State::default()
            })),
        }
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// What a reader of the file sees.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let state = self.lock();
        state.files[state.names[path]].cache.clone()
    }

    /// Puts `bytes` in the place of the file, durably, as a disk does that has gone bad.
    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.lock();
        let file = match state.names.get(path) {
            Some(file) => *file,
            None => {
                let file = state.files.len();
                state.files.push(FileState::default());
                state.names.insert(path.to_owned(), file);
                state.durable_names.insert(path.to_owned(), file);
                file
            }
        };
        state.files[file] = FileState::on_platter(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, number: usize) -> Box<dyn DiskFile> {
        Box::new(PowerCutFile {
            disk: self.clone(),
            number,
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Keep {
    All,
    Nothing,
    Some,
}

impl Keep {
    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Keep::All => true,
            Keep::Nothing => false,
            Keep::Some => rng.one_in(2),
        }
    }
}

impl FileState {
    fn on_platter(bytes: Vec<u8>) -> FileState {
        FileState {
            platter: bytes.clone(),
            cache: bytes,
            pending: Vec::new(),
        }
    }

    fn after_cut(&self, keep: Keep, rng: &mut Rng) -> Vec<u8> {
        let mut left = self.platter.clone();
        // The file as it was after each pending change, sector by sector: a sector may have reached the disk at any
        // of these moments, independently of its neighbours.
        for change in &self.pending {
            match change {
                Pending::Grow { len } => {
                    if keep.keeps(rng) && left.len() < *len {
                        left.resize(*len, 0);
                    }
                }
                Pending::Write { offset, bytes } => {
                    let mut done = 0;
                    while done < bytes.len() {
                        let at = offset + done;
                        let n = (SECTOR - at % SECTOR).min(bytes.len() - done);
                        if keep.keeps(rng) {
                            if left.len() < at + n {
                                left.resize(at + n, 0);
                            }
                            left[at..at + n].copy_from_slice(&bytes[done..done + n]);
                            // The whole sector is in danger while it is written.
                            if matches!(keep, Keep::Some) && rng.one_in(16) {
                                let sector = at - at % SECTOR;
                                let end = (sector + SECTOR).min(left.len());
                                for byte in &mut left[sector..end] {
                                    *byte = rng.next_u64() as u8;
                                }
                            }
                        }
                        done += n;
                    }
                }
            }
        }
        left
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Create(path, file) => {
                names.entry(path.clone()).or_insert(*file);
            }
            NameChange::Rename(from, to, file) => {
                // It is this file that gets the name, whatever else has or had the old one.
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
            NameChange::Unlink(path) => {
                names.remove(path);
            }
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            NameChange::Create(path, _)
            | NameChange::Rename(path, _, _)
            | NameChange::Unlink(path) => path.parent(),
        }
    }
}

impl State {
    /// Counts a change. True: carry it out and return. False: the power goes while it is carried out.
    fn change(&mut self) -> io::Result<bool> {
        let number = self.changes;
        self.changes += 1;
        match self.power_goes_at {
            Some(at) if number > at => Err(power_is_off()),
            Some(at) if number == at => Ok(false),
            _ => Ok(true),
        }
    }

    fn reading(&self) -> io::Result<()> {
        match self.power_goes_at {
            Some(at) if self.changes > at => Err(power_is_off()),
            _ => Ok(()),
        }
    }

    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        let on = self.change()?;
        change.apply(&mut self.names);
        self.pending_names.push(change);
        if on { Ok(()) } else { Err(power_is_off()) }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for PowerCutDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        // Directories are durable at once: what is made in them is not, which is the case that matters here.
        if !state.change()? {
            return Err(power_is_off());
        }
        state.dirs.insert(dir.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.reading()?;
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().filter(|p| p.parent() == Some(dir));
        let names = inside.filter_map(|p| p.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = state.files.len();
        state.files.push(FileState::default());
        state.change_name(NameChange::Create(path.to_owned(), number))?;
        drop(state);
        Ok(self.file(number))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.lock();
        state.reading()?;
        let number = state.find(path)?;
        drop(state);
        Ok(self.file(number))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.find(from)?;
        state.change_name(NameChange::Rename(from.to_owned(), to.to_owned(), file))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.find(path)?;
        state.change_name(NameChange::Unlink(path.to_owned()))
    }

    fn fsync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if !state.change()? {
            return Err(power_is_off());
        }
        let (synced, rest) = std::mem::take(&mut state.pending_names)
            .into_iter()
            .partition(|change| change.dir() == Some(dir));
        state.pending_names = rest;
        let synced: Vec<NameChange> = synced;
        for change in synced {
            change.apply(&mut state.durable_names);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct PowerCutFile {
    disk: PowerCutDisk,
    number: usize,
}

impl PowerCutFile {
    fn change(&self, change: Pending) -> io::Result<()> {
        let mut state = self.disk.lock();
        let on = state.change()?;
        let file = &mut state.files[self.number];
        match &change {
            Pending::Grow { len } => {
                if file.cache.len() < *len {
                    file.cache.resize(*len, 0);
                }
            }
            Pending::Write { offset, bytes } => {
                if file.cache.len() < offset + bytes.len() {
                    file.cache.resize(offset + bytes.len(), 0);
                }
                file.cache[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        file.pending.push(change);
        if on { Ok(()) } else { Err(power_is_off()) }
    }
}

impl DiskFile for PowerCutFile {
    fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        state.reading()?;
        let cache = &state.files[self.number].cache;
        let rest = cache.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn pwrite(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.change(Pending::Write {
            offset: offset as usize,
            bytes: buf.to_vec(),
        })?;
        Ok(buf.len())
    }

    fn fdatasync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        if !state.change()? {
            return Err(power_is_off());
        }
        let file = &mut state.files[self.number];
        for change in std::mem::take(&mut file.pending) {
            match change {
                Pending::Grow { len } => {
                    if file.platter.len() < len {
                        file.platter.resize(len, 0);
                    }
                }
                Pending::Write { offset, bytes } => {
                    if file.platter.len() < offset + bytes.len() {
                        file.platter.resize(offset + bytes.len(), 0);
                    }
                    file.platter[offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        Ok(())
    }

    fn fallocate(&self, len: u64) -> io::Result<()> {
        self.change(Pending::Grow { len: len as usize })
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        state.reading()?;
        Ok(state.files[self.number].cache.len() as u64)
    }

    fn forget_cached(&self) -> io::Result<()> {
        self.disk.lock().reading()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> &'static Path {
        Path::new("/d")
    }

    /// A disk with one durable file of three sectors of zeros.
    fn disk() -> (PowerCutDisk, Box<dyn DiskFile>) {
        let disk = PowerCutDisk::new();
        disk.create_dir(dir()).unwrap();
        let file = disk.create(&dir().join("a")).unwrap();
        file.fallocate(3 * SECTOR as u64).unwrap();
        file.fdatasync().unwrap();
        disk.fsync_dir(dir()).unwrap();
        (disk, file)
    }

    #[test]
    fn what_was_synced_is_always_there() {
        let (disk, file) = disk();
        file.write_full(&[1; 700], 100).unwrap();
        file.fdatasync().unwrap();
        let expected = disk.contents(&dir().join("a"));
        assert_eq!(expected[100], 1);
        for seed in 0..100 {
            assert_eq!(disk.after_cut(seed).contents(&dir().join("a")), expected);
        }
    }

    #[test]
    fn unsynced_sectors_are_left_in_any_mixture() {
        let (disk, file) = disk();
        file.write_full(&[1; 3 * SECTOR], 0).unwrap();
        file.write_full(&[2; SECTOR], 0).unwrap();
        let mut seen = [(); 3].map(|()| BTreeSet::new());
        let mut mixtures = BTreeSet::new();
        for seed in 0..500 {
            let left = disk.after_cut(seed).contents(&dir().join("a"));
            let whole = |s: &[u8]| s.iter().all(|b| *b == s[0]).then_some(s[0]);
            let sectors: Vec<Option<u8>> = left.chunks(SECTOR).map(whole).collect();
            for (seen, sector) in seen.iter_mut().zip(&sectors) {
                seen.insert(*sector);
            }
            mixtures.insert(sectors);
        }
        // Old, first, second or garbage; old, new or garbage.
        let once = BTreeSet::from([None, Some(0), Some(1)]);
        assert_eq!(
            seen,
            [
                BTreeSet::from([None, Some(0), Some(1), Some(2)]),
                once.clone(),
                once
            ]
        );
        for reordered in [[2, 0, 1], [2, 1, 0], [1, 0, 0], [0, 0, 1]] {
            assert!(mixtures.contains(&reordered.map(Some)[..]), "{reordered:?}");
        }
    }

    #[test]
    fn names_need_a_sync_of_their_directory() {
        let (disk, _file) = disk();
        disk.create(&dir().join("b")).unwrap();
        disk.rename(&dir().join("a"), &dir().join("c")).unwrap();
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            seen.insert(disk.after_cut(seed).list(dir()).unwrap().concat());
        }
        assert_eq!(seen, ["a", "ab", "bc", "c"].map(str::to_owned).into());
        disk.fsync_dir(dir()).unwrap();
        for seed in 0..200 {
            assert_eq!(disk.after_cut(seed).list(dir()).unwrap(), ["b", "c"]);
        }
    }

    #[test]
    fn after_the_cut_nothing_works_and_the_call_in_flight_may_be_there() {
        let (disk, file) = disk();
        disk.cut_at(disk.changes());
        assert!(file.write_full(&[1; SECTOR], 0).is_err());
        assert!(file.pread(&mut [0], 0).is_err());
        assert!(file.fdatasync().is_err());
        assert!(disk.list(dir()).is_err());
        let firsts: BTreeSet<u8> = (0..20)
            .map(|seed| disk.after_cut(seed).contents(&dir().join("a"))[0])
            .collect();
        assert!(firsts.contains(&0) && firsts.contains(&1));
    }
}
