//! The bytes on the disk change.

use super::*;
use crate::disk::Disk;
use crate::wal::format::{FRAME_BYTES, FrameWriter};

/// A log of a few segments, and the log as it was after every batch, the empty one first.
fn log(seal: bool) -> (PowerCutDisk, Vec<Model>) {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    let mut model = Model::default();
    let mut models = vec![model.clone()];
    let ops = [
        (0, vec![200, 200], Some(1)),
        (0, vec![600], None),
        (1, vec![30, 700], Some(2)),
        (0, vec![200], None),
        (0, vec![900, 0], Some(0)),
        (0, vec![200], None),
        (1, vec![1400], Some(1)),
        (0, vec![100, 200, 300], None),
    ];
    for (back, sizes, commit) in ops {
        let op = Op::Append { back, sizes, new_term: false, commit };
        op.perform(&mut wal, &mut model).unwrap();
        models.push(model.clone());
    }
    if seal {
        wal.seal().unwrap();
    }
    assert!(names(&disk).len() >= 3, "{:?}", names(&disk));
    (disk, models)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Refused,
    Same,
    /// Without the last batch, and said so.
    Cut,
}

/// Opens a damaged log: it is refused, or it is the log, or it is the log without its last batch.
fn examine(disk: &PowerCutDisk, models: &[Model]) -> Found {
    let last = &models[models.len() - 1];
    match open(disk) {
        Err(WalError::Corrupt { .. } | WalError::Version { .. } | WalError::Foreign { .. }) => Found::Refused,
        Err(e) => panic!("{e}"),
        Ok((wal, recovered)) if last.is(&wal, &recovered) => {
            last.assert_recovered(&wal, &recovered);
            Found::Same
        }
        Ok((wal, recovered)) => {
            assert!(recovered.torn.is_some(), "a batch is gone without a word");
            models[models.len() - 2].assert_recovered(&wal, &recovered);
            Found::Cut
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_or_harmless() {
    for sealed in [true, false] {
        let (disk, models) = log(sealed);
        let last = disk.paths().pop().unwrap();
        let mut counts = [0; 3];
        for path in disk.paths() {
            let whole = disk.contents(&path);
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                let damaged = disk.after_cut(1);
                damaged.set_contents(&path, bytes);
                let found = examine(&damaged, &models);
                counts[found as usize] += 1;
                // Only the last batch may be taken for a torn one, and not if there is one behind it.
                assert!(
                    found != Found::Cut || (path == last && !sealed),
                    "{at} of {path:?}"
                );
            }
        }
        let [refused, same, cut] = counts;
        // The rest is padding and free space.
        assert!(refused > 3000 && same > 1000, "{counts:?}");
        assert_eq!(cut > 500, !sealed, "{counts:?}");
    }
}

#[test]
fn a_flipped_bit_is_found_when_an_entry_is_read_later() {
    let (disk, models) = log(true);
    let whole = open(&disk).unwrap().0;
    let (first, last) = (whole.first_index(), whole.last_index());
    let expected = whole.reader().entries(first, last + 1, u64::MAX).unwrap();
    let mut found = 0;
    for path in disk.paths() {
        let bytes = disk.contents(&path);
        for at in (0..bytes.len()).step_by(3) {
            let disk = disk.after_cut(1);
            let wal = open(&disk).unwrap().0;
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            disk.set_contents(&path, bytes);
            match wal.reader().entries(first, last + 1, u64::MAX) {
                Ok(read) => assert_eq!(read, expected),
                Err(WalError::Corrupt { .. }) => found += 1,
                Err(e) => panic!("{e}"),
            }
        }
    }
    assert!(found > 1000, "{found}");
    assert_eq!(models.len(), 9);
}

/// Where the frames of the segments begin and end, apart from each segment's first.
fn frames(disk: &PowerCutDisk) -> Vec<(std::path::PathBuf, std::ops::Range<usize>)> {
    let mut out = Vec::new();
    for path in disk.paths() {
        let bytes = disk.contents(&path);
        let header = Header::decode(&bytes, &path).unwrap();
        let mut at = 512;
        while let Some(frame) = bytes.get(at..).and_then(|b| format::FrameHeader::decode(b, header.seed(), at as u64)) {
            let end = at + FRAME_BYTES + frame.body_bytes as usize;
            if at > 512 {
                out.push((path.clone(), at..end));
            }
            at = end.next_multiple_of(512);
        }
    }
    out
}

#[test]
fn a_segment_that_ends_early_is_refused_wherever_it_ends() {
    let (disk, _) = log(false);
    for (path, frame) in frames(&disk) {
        for end in [
            frame.start - 1,
            frame.start,
            frame.start + 1,
            frame.end - 1,
            frame.end,
            frame.end + 1,
        ] {
            let cut = disk.after_cut(1);
            cut.set_contents(&path, disk.contents(&path)[..end].to_vec());
            let error = open(&cut).unwrap_err();
            assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("expected 4096"), "{error}");
        }
    }
}

#[test]
fn zeros_from_any_boundary_on_are_a_torn_tail_only_in_the_last_batch() {
    let (disk, models) = log(false);
    let frames = frames(&disk);
    // A batch each; the snapshot of the models begins with the empty log.
    assert_eq!(frames.len() + 1, models.len());
    let last_path = disk.paths().pop().unwrap();
    for (i, (path, frame)) in frames.iter().enumerate() {
        for (start, whole) in [
            (frame.start - 1, false),
            (frame.start, false),
            (frame.start + 1, false),
            (frame.end - 1, false),
            (frame.end, true),
            (frame.end + 1, true),
        ] {
            let zeroed = disk.after_cut(1);
            let before = disk.contents(path);
            let mut bytes = before.clone();
            bytes[start..].fill(0);
            zeroed.set_contents(path, bytes.clone());
            // A hard state ends with zeros.
            let whole = whole || bytes[frame.clone()] == before[frame.clone()];
            let batches = i + usize::from(whole);
            if *path != last_path {
                let whole_segment = frames.get(i + 1).is_none_or(|(next, _)| next != path) && whole;
                if whole_segment {
                    assert_eq!(examine(&zeroed, &models), Found::Same);
                } else {
                    assert_eq!(
                        examine(&zeroed, &models),
                        Found::Refused,
                        "{path:?} {start}"
                    );
                    let text = open(&zeroed).unwrap_err().to_string();
                    assert!(text.contains("acknowledged batches are damaged"), "{text}");
                }
                continue;
            }
            // Everything behind is zeros, so it is as if it had never been written.
            let (wal, recovered) = open(&zeroed).unwrap();
            models[batches].assert_recovered(&wal, &recovered);
            // A frame of which something is left is reported.
            let in_pieces = start > frame.start && !whole;
            assert_eq!(recovered.torn.is_some(), in_pieces, "{start} in {frame:?}");
        }
    }
}

#[test]
fn a_torn_tail_is_reported_once_and_the_log_goes_on() {
    let (disk, models) = log(false);
    let (path, frame) = frames(&disk).pop().unwrap();
    let mut bytes = disk.contents(&path);
    bytes[frame.end - 1] ^= 1;
    disk.set_contents(&path, bytes);
    let (mut wal, recovered) = open(&disk).unwrap();
    let torn = recovered.torn.clone().unwrap();
    assert_eq!((torn.path, torn.offset), (path, frame.start as u64));
    assert_eq!(torn.bytes, (frame.len() as u64).next_multiple_of(512));
    let mut model = models[models.len() - 2].clone();
    model.assert_recovered(&wal, &recovered);
    assert_eq!(open(&disk.after_kill()).unwrap().1.torn, None);
    Op::Seal.perform(&mut wal, &mut model).unwrap();
    let mut rng = Rng::new(3);
    for _ in 0..50 {
        Op::random(&mut rng).perform(&mut wal, &mut model).unwrap();
    }
    let (wal, recovered) = open(&disk).unwrap();
    model.assert_recovered(&wal, &recovered);
}

#[test]
fn a_damaged_batch_with_a_whole_one_behind_it_is_not_a_torn_tail() {
    let (disk, _) = log(false);
    let all = frames(&disk);
    let (path, frame) = all[all.len() - 2].clone();
    assert_eq!(
        path,
        all[all.len() - 1].0,
        "the last two are in one segment"
    );
    // One bit, a lost block, the whole batch.
    for damage in [
        frame.end - 1..frame.end,
        frame.start..frame.start + 512,
        frame,
    ] {
        let damaged = disk.after_cut(1);
        let mut bytes = disk.contents(&path);
        bytes[damage.clone()].iter_mut().for_each(|b| *b = !*b);
        damaged.set_contents(&path, bytes.clone());
        let error = open(&damaged).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("acknowledged entries would be lost"),
            "{text}"
        );
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        // Evidence stays as it is.
        assert_eq!(damaged.contents(&path), bytes);
    }
}

#[test]
fn segments_that_are_missing_doubled_or_of_another_log_are_refused() {
    let (disk, _) = log(true);
    let paths = disk.paths();
    let refused = |disk: &PowerCutDisk| {
        let error = open(disk).unwrap_err();
        assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
        error.to_string()
    };

    let missing_first = disk.after_cut(1);
    missing_first.unlink(&paths[0]).unwrap();
    assert!(refused(&missing_first).contains("are missing before it"));

    let missing_middle = disk.after_cut(1);
    missing_middle.unlink(&paths[1]).unwrap();
    assert!(refused(&missing_middle).contains("segment 00000002 before it is missing"));

    let swapped = disk.after_cut(1);
    swapped.set_contents(&paths[1], disk.contents(&paths[2]));
    assert!(refused(&swapped).contains("inside"));

    let doubled = disk.after_cut(1);
    doubled.set_contents(
        &dir().join("00000004-0000000000000001.wal"),
        disk.contents(&paths[1]),
    );
    refused(&doubled);

    // Another log of the same node, of the same shape.
    let other = PowerCutDisk::new();
    let mut wal = Wal::create_salted(Arc::new(other.clone()), dir(), ME, small(), 8).unwrap();
    let mut model = Model::default();
    for size in [2000, 2000, 2000] {
        let op = Op::Append { back: 0, sizes: vec![size], new_term: false, commit: None };
        op.perform(&mut wal, &mut model).unwrap();
    }
    let mixed = other.after_cut(1);
    let path = other.paths().pop().unwrap();
    let bytes = other.contents(&path);
    let header = Header { salt: 9, ..Header::decode(&bytes, &path).unwrap() };
    let mut bytes = bytes;
    bytes[..format::HEADER_BYTES].copy_from_slice(&header.encode());
    mixed.set_contents(&path, bytes);
    assert!(refused(&mixed).contains("another log of this node"));
}

#[test]
fn a_format_from_the_future_is_named() {
    let disk = PowerCutDisk::new();
    drop(create(&disk));
    let path = disk.paths().pop().unwrap();
    let mut bytes = disk.contents(&path);
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..72]);
    bytes[72..76].copy_from_slice(&crc.to_le_bytes());
    disk.set_contents(&path, bytes);
    let error = open(&disk).unwrap_err();
    assert!(
        matches!(error, WalError::Version { found: 2, .. }),
        "{error}"
    );
}

/// A log that was opened takes more, or says why not.
fn use_it(disk: &PowerCutDisk) -> bool {
    let Ok((mut wal, _)) = open(disk) else {
        return false;
    };
    let next = wal.last_index() + 1;
    let term = wal
        .reader()
        .term(next - 1)
        .unwrap_or(0)
        .max(wal.hard_state().term);
    append(&mut wal, &entries(next..next + 2, term, 50));
    let first = wal.first_index();
    wal.reader().entries(first, next + 2, u64::MAX).unwrap();
    true
}

#[test]
fn no_bytes_make_it_panic() {
    let mut rng = Rng::new(99);
    let (whole, _) = log(true);
    let paths = whole.paths();
    let mut opened = 0;
    for round in 0..20_000 {
        let disk = PowerCutDisk::new();
        disk.create_dir(dir()).unwrap();
        match round % 4 {
            // Random bytes in a file of a segment's name and size.
            0 => {
                let bytes = (0..4096).map(|_| rng.next_u64() as u8).collect();
                disk.set_contents(&paths[0], bytes);
            }
            // A valid log, and random bytes over parts of it.
            1 => {
                for path in &paths {
                    let mut bytes = whole.contents(path);
                    for _ in 0..rng.below(4) {
                        let at = rng.below(bytes.len() as u64) as usize;
                        let end = (at + rng.below(64) as usize).min(bytes.len());
                        bytes[at..end].fill_with(|| rng.next_u64() as u8);
                    }
                    disk.set_contents(path, bytes);
                }
            }
            // A header that is valid and says anything.
            2 => {
                let path = &paths[0];
                let mut bytes = whole.contents(path);
                let mut any = || match rng.below(4) {
                    0 => u64::MAX - rng.below(3),
                    1 => rng.below(3),
                    _ => rng.next_u64(),
                };
                let header = Header {
                    identity: ME,
                    salt: any(),
                    block_bytes: 1 << (any() % 32),
                    capacity: any(),
                    sequence: 1,
                    recycled: any() & 1 == 0,
                    first_index: any(),
                    first_frame: any(),
                };
                bytes[..format::HEADER_BYTES].copy_from_slice(&header.encode());
                let name = recover::live_name(header.sequence, header.first_index);
                disk.set_contents(&dir().join(name), bytes);
            }
            // Records that are valid and say anything.
            _ => {
                let header = Header {
                    identity: ME,
                    salt: 7,
                    block_bytes: 512,
                    capacity: 4096,
                    sequence: 1,
                    recycled: false,
                    first_index: 1,
                    first_frame: 1,
                };
                let mut bytes = header.encode().to_vec();
                bytes.resize(512, 0);
                for number in 1..=rng.below(4) + 1 {
                    let offset = bytes.len() as u64;
                    let mut frame = FrameWriter::new(&mut bytes, header.seed(), offset);
                    for _ in 0..rng.below(4) {
                        let kind = rng.below(6) as u8;
                        let mut payload = Vec::new();
                        for _ in 0..rng.below(5) {
                            let word = match rng.below(4) {
                                0 => u64::MAX - rng.below(2),
                                1 => rng.next_u64(),
                                _ => rng.below(4),
                            };
                            payload.extend_from_slice(&word.to_le_bytes());
                        }
                        // A mark has a byte before its numbers.
                        if kind == 4 {
                            payload.insert(0, rng.below(3) as u8);
                        }
                        frame.raw(kind, &payload);
                    }
                    frame.finish(number, 512);
                }
                bytes.resize(4096, 0);
                disk.set_contents(&paths[0], bytes);
            }
        }
        opened += u32::from(use_it(&disk));
    }
    assert!(opened > 500, "{opened} of them could be opened");
}

#[test]
fn a_record_is_valid_in_one_place_of_one_segment_only() {
    let mut bytes = Vec::new();
    FrameWriter::new(&mut bytes, 77, 4096).finish(5, 512);
    let found = |seed, offset| format::FrameHeader::decode(&bytes, seed, offset).map(|f| f.number);
    assert_eq!(found(77, 4096), Some(5));
    assert_eq!(found(77, 4096 + 512), None);
    assert_eq!(found(78, 4096), None);
}
