//! The promises of the log, one name each. `model` says what the log should be; `power` cuts the power, `faults` lets
//! calls fail, `damage` changes bytes.

mod damage;
mod faults;
mod model;
mod power;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use raft::eraftpb::{Entry, EntryType, HardState};

use self::model::{Model, Op, at, conf_state, entry, hard_state};
use super::*;
use crate::disk::{FaultyDisk, PowerCutDisk, RealDisk, Rng};

const ME: Identity = Identity {
    cluster_id: 0xc1,
    node_id: 0x1d,
};

fn dir() -> &'static Path {
    Path::new("/data/wal")
}

/// Segments that are full after a few batches.
fn small() -> Options {
    Options {
        segment_bytes: 8 * 512,
        block_bytes: 512,
        zero_ahead_bytes: 1024,
        spare_segments: 1,
        recover_bytes: u64::MAX,
    }
}

fn create(disk: &PowerCutDisk) -> Wal {
    Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 7).unwrap()
}

fn open(disk: &PowerCutDisk) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(disk.clone()), dir(), ME, small())
}

fn entries(range: std::ops::Range<u64>, term: u64, data_bytes: usize) -> Vec<Entry> {
    range.map(|index| entry(index, term, data_bytes)).collect()
}

fn append(wal: &mut Wal, entries: &[Entry]) {
    let batch = Batch {
        entries,
        ..Batch::default()
    };
    wal.append(&batch).unwrap();
}

fn names(disk: &PowerCutDisk) -> Vec<String> {
    disk.list(dir()).unwrap()
}

#[test]
fn a_new_log_is_empty_and_stays_so() {
    let disk = PowerCutDisk::new();
    assert!(!Wal::exists(&disk, dir()).unwrap());
    let wal = create(&disk);
    assert_eq!((wal.first_index(), wal.last_index()), (1, 0));
    drop(wal);
    assert!(Wal::exists(&disk, dir()).unwrap());
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!((wal.first_index(), wal.last_index()), (1, 0));
    assert_eq!(recovered.hard_state, HardState::default());
    assert_eq!(recovered.snapshot, SnapshotMark::default());
    assert_eq!(recovered.entries, []);
    assert_eq!(recovered.torn, None);
}

#[test]
fn everything_of_an_entry_comes_back() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    let mut batch = vec![
        entry(1, 1, 0),
        entry(2, 1, 100),
        Entry {
            entry_type: EntryType::EntryConfChangeV2 as i32,
            context: "context".into(),
            ..entry(3, 2, 5)
        },
        // An entry type from the future is not for the log to judge.
        Entry {
            entry_type: 77,
            context: "context alone".into(),
            ..entry(4, 2, 0)
        },
    ];
    append(&mut wal, &batch);
    // Larger than a segment.
    batch.push(entry(5, 2, 20_000));
    append(&mut wal, &batch[4..]);
    assert_eq!(wal.reader().entries(1, 6, u64::MAX).unwrap(), batch);
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.entries, batch);
    assert_eq!(wal.reader().entries(1, 6, u64::MAX).unwrap(), batch);
}

#[test]
fn one_batch_is_one_write_and_one_flush() {
    let disk = FaultyDisk::new(Arc::new(PowerCutDisk::new()), None);
    let mut wal = Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 7).unwrap();
    for i in 0..3 {
        let before = disk.calls().len();
        let mark = SnapshotMark {
            index: i * 2,
            term: if i == 0 { 0 } else { 1 },
            ..SnapshotMark::default()
        };
        let hard_state = hard_state(1, 1, i * 2 + 2);
        wal.append(&Batch {
            snapshot: Some(&mark),
            entries: &entries(i * 2 + 1..i * 2 + 3, 1, 200),
            hard_state: Some(&hard_state),
        })
        .unwrap();
        let calls: Vec<String> = disk.calls()[before..]
            .iter()
            .map(|c| c.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(calls, ["pwrite", "fdatasync"]);
    }
}

#[test]
fn a_segment_has_its_name_when_it_is_durable_and_nothing_is_written_before_the_name_is() {
    let disk = FaultyDisk::new(Arc::new(PowerCutDisk::new()), None);
    let mut wal = Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 7).unwrap();
    let before = disk.calls().len();
    append(&mut wal, &entries(1..2, 1, 4000));
    assert_eq!(
        disk.calls()[before..],
        [
            "create /data/wal/00000002.unfinished",
            "fallocate /data/wal/00000002.unfinished",
            "pwrite /data/wal/00000002.unfinished",
            "fdatasync /data/wal/00000002.unfinished",
            "rename /data/wal/00000002.unfinished",
            "fsync_dir /data/wal",
            "pwrite /data/wal/00000002.unfinished",
            "fdatasync /data/wal/00000002.unfinished",
        ]
    );
}

#[test]
fn a_commit_index_alone_waits_for_the_next_batch() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    wal.append(&Batch {
        entries: &entries(1..4, 1, 10),
        hard_state: Some(&hard_state(1, 2, 0)),
        ..Batch::default()
    })
    .unwrap();
    let changes = disk.changes();
    wal.append(&Batch {
        hard_state: Some(&hard_state(1, 2, 3)),
        ..Batch::default()
    })
    .unwrap();
    assert_eq!(disk.changes(), changes);
    assert_eq!(wal.hard_state().commit, 3);
    assert_eq!(open(&disk.after_kill()).unwrap().1.hard_state.commit, 0);
    append(&mut wal, &entries(4..5, 1, 10));
    assert_eq!(
        open(&disk.after_kill()).unwrap().1.hard_state,
        hard_state(1, 2, 3)
    );
    // A vote does not wait.
    wal.append(&Batch {
        hard_state: Some(&hard_state(2, 3, 3)),
        ..Batch::default()
    })
    .unwrap();
    assert_eq!(
        open(&disk.after_kill()).unwrap().1.hard_state,
        hard_state(2, 3, 3)
    );
    // Nor does anything after seal().
    wal.append(&Batch {
        hard_state: Some(&hard_state(2, 3, 4)),
        ..Batch::default()
    })
    .unwrap();
    wal.seal().unwrap();
    assert_eq!(
        open(&disk.after_kill()).unwrap().1.hard_state,
        hard_state(2, 3, 4)
    );
    let changes = disk.changes();
    wal.seal().unwrap();
    assert_eq!(disk.changes(), changes);
}

#[test]
fn a_conflicting_entry_replaces_all_that_follow() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    append(&mut wal, &entries(1..21, 1, 300));
    append(&mut wal, &entries(8..10, 2, 30));
    let expected = [entries(1..8, 1, 300), entries(8..10, 2, 30)].concat();
    assert_eq!(wal.last_index(), 9);
    assert_eq!(
        (wal.reader().term(7), wal.reader().term(8)),
        (Some(1), Some(2))
    );
    assert_eq!(wal.reader().entries(1, 10, u64::MAX).unwrap(), expected);
    assert!(wal.reader().entries(1, 11, u64::MAX).is_err());
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.entries, expected);
    assert_eq!(wal.last_index(), 9);
}

#[test]
fn an_installed_snapshot_takes_the_place_of_the_log() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    append(&mut wal, &entries(1..31, 1, 100));
    let mark = SnapshotMark {
        log: LogAfter::Discarded,
        ..at(20, 3)
    };
    wal.append(&Batch {
        snapshot: Some(&mark),
        entries: &entries(21..22, 3, 5),
        hard_state: Some(&hard_state(3, 0, 20)),
    })
    .unwrap();
    for wal in [wal, open(&disk).unwrap().0] {
        assert_eq!((wal.first_index(), wal.last_index()), (21, 21));
        assert_eq!(wal.reader().term(20), Some(3));
        assert_eq!(wal.reader().term(19), None);
        assert_eq!(wal.reader().snapshot(), at(20, 3));
    }
    let recovered = open(&disk).unwrap().1;
    assert_eq!(recovered.entries, entries(21..22, 3, 5));
    assert_eq!(recovered.snapshot.conf_state, conf_state());
}

#[test]
fn only_segments_below_the_mark_and_the_callers_index_are_released() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    for i in 1..=40 {
        append(&mut wal, &entries(i..i + 1, 1, 400));
    }
    let before = names(&disk);
    assert_eq!(wal.release(40).unwrap(), 0, "there is no mark yet");
    let mark = at(30, 1);
    wal.append(&Batch {
        snapshot: Some(&mark),
        ..Batch::default()
    })
    .unwrap();
    assert_eq!(wal.release(0).unwrap(), 0);
    assert_eq!(names(&disk), before);

    let released = wal.release(12).unwrap();
    assert!(released > 0);
    let first = wal.first_index();
    assert!((2..=13).contains(&first), "{first}");
    // What was not released can be read, below the mark too.
    let all = entries(first..41, 1, 400);
    assert_eq!(wal.reader().entries(first, 41, u64::MAX).unwrap(), all);
    assert!(matches!(
        wal.reader().entries(first - 1, 41, u64::MAX),
        Err(WalError::OutOfRange { .. })
    ));

    assert!(wal.release(u64::MAX).unwrap() > 0);
    assert!(wal.first_index() <= 31);
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.entries, entries(31..41, 1, 400));
    assert!(wal.first_index() > first);
    assert_eq!(recovered.snapshot, mark);
    // At most one spare, as the options say.
    assert_eq!(
        names(&disk)
            .iter()
            .filter(|n| n.ends_with(".spare"))
            .count(),
        1
    );
}

#[test]
fn a_recycled_segment_never_shows_its_earlier_life() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    // Every batch is alike, so that every old frame lies where a new one would.
    let mut next = 1;
    let mut recycled = 0;
    for _ in 0..100 {
        append(&mut wal, &entries(next..next + 1, 1, 200));
        next += 1;
        let mark = at(next - 1, 1);
        if next.is_multiple_of(3) {
            wal.append(&Batch {
                snapshot: Some(&mark),
                ..Batch::default()
            })
            .unwrap();
            wal.release(u64::MAX).unwrap();
        }
        recycled += u64::from(wal.last.header.recycled);
        let (again, recovered) = open(&disk.after_kill()).unwrap();
        assert_eq!(again.last_index(), next - 1);
        assert_eq!(recovered.torn, None);
        let expected = entries(recovered.snapshot.index + 1..next, 1, 200);
        assert_eq!(recovered.entries, expected);
    }
    assert!(
        recycled > 50,
        "recycled segments were written to {recycled} times"
    );
}

#[test]
fn a_segment_that_a_reader_uses_is_not_recycled() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    for i in 1..=20 {
        append(&mut wal, &entries(i..i + 1, 1, 400));
    }
    let reads = wal.reader().read().plan(1, 3, u64::MAX).unwrap();
    wal.append(&Batch {
        snapshot: Some(&at(20, 1)),
        ..Batch::default()
    })
    .unwrap();
    assert!(wal.release(u64::MAX).unwrap() > 2);
    for i in 21..=40 {
        append(&mut wal, &entries(i..i + 1, 1, 400));
    }
    let mut read = Vec::new();
    for r in reads {
        r.perform(&mut read).unwrap();
    }
    assert_eq!(read, entries(1..3, 1, 400));
}

#[test]
fn reading_takes_as_much_as_it_may_but_one_entry_at_least() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    for i in 0..10 {
        append(&mut wal, &entries(i * 3 + 1..i * 3 + 4, 1, 100));
    }
    let reader = wal.reader();
    let one = format::entry_bytes(&entry(1, 1, 100));
    for (max_bytes, expected) in [
        (0, 1),
        (1, 1),
        (one, 1),
        (2 * one - 1, 1),
        (2 * one, 2),
        (7 * one, 7),
    ] {
        let read = reader.entries(5, 31, max_bytes).unwrap();
        assert_eq!(read, entries(5..5 + expected, 1, 100), "{max_bytes}");
    }
    assert_eq!(
        reader.entries(5, 7, u64::MAX).unwrap(),
        entries(5..7, 1, 100)
    );
    assert_eq!(reader.entries(5, 5, u64::MAX).unwrap(), []);
    assert_eq!(reader.entries(31, 31, u64::MAX).unwrap(), []);
    for (lo, hi) in [(0, 1), (1, 32), (32, 32), (6, 5)] {
        let error = reader.entries(lo, hi, u64::MAX).unwrap_err();
        assert!(matches!(error, WalError::OutOfRange { .. }), "{error}");
        assert!(!error.is_fatal());
    }
    let options = Options {
        recover_bytes: 5 * one,
        ..small()
    };
    let (_, recovered) = Wal::open(Arc::new(disk), dir(), ME, options).unwrap();
    assert_eq!(recovered.entries, entries(1..6, 1, 100));
}

#[test]
fn entries_do_not_keep_the_padding_they_were_read_with() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    for i in 1..6 {
        append(&mut wal, &entries(i..i + 1, 1, 10));
    }
    let sparse = wal.reader().entries(1, 6, u64::MAX).unwrap();
    let gap = |a: &Entry, b: &Entry| (b.data.as_ptr() as usize).abs_diff(a.data.as_ptr() as usize);
    assert!(gap(&sparse[0], &sparse[1]) != 512);
    append(&mut wal, &entries(6..9, 1, 200));
    let dense = wal.reader().entries(6, 9, u64::MAX).unwrap();
    assert_eq!(
        gap(&dense[0], &dense[1]) as u64,
        format::entry_bytes(&dense[0])
    );
}

#[test]
fn the_log_of_another_node_or_cluster_is_refused() {
    let disk = PowerCutDisk::new();
    drop(create(&disk));
    for other in [
        Identity { node_id: 2, ..ME },
        Identity {
            cluster_id: 2,
            ..ME
        },
    ] {
        let error = Wal::open(Arc::new(disk.clone()), dir(), other, small()).unwrap_err();
        assert!(matches!(error, WalError::Foreign { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&ME.to_string()) && text.contains(&other.to_string()),
            "{text}"
        );
    }
}

#[test]
fn a_log_is_made_once_and_opened_only_where_one_is() {
    let disk = PowerCutDisk::new();
    assert!(matches!(open(&disk), Err(WalError::Missing { .. })));
    drop(create(&disk));
    let again = Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 8);
    assert!(matches!(again, Err(WalError::Exists { .. })));
    assert!(open(&disk).is_ok());
}

#[test]
fn files_that_are_not_the_logs_are_left_alone() {
    let disk = PowerCutDisk::new();
    drop(create(&disk));
    let mut others = [
        "note",
        "1-1.wal",
        "00000009-1.wal",
        "0000000g.spare",
        "x.unfinished",
    ];
    for name in others {
        disk.set_contents(&dir().join(name), b"mine".to_vec());
    }
    for name in ["00000003.unfinished", "00000004.spare", "00000005.spare"] {
        disk.set_contents(&dir().join(name), b"the log's".to_vec());
    }
    let (mut wal, _) = open(&disk).unwrap();
    append(&mut wal, &entries(1..9, 1, 1000));
    let found = names(&disk);
    others.sort_unstable();
    for name in others {
        assert!(found.iter().any(|n| n == name), "{name} is gone");
    }
    // The unfinished one, and the spare ones: one too many, one of a wrong size.
    assert!(
        !found
            .iter()
            .any(|n| n.ends_with(".spare") && !others.contains(&n.as_str()))
    );
    assert!(!found.contains(&"00000003.unfinished".to_owned()));
}

#[test]
#[should_panic(expected = "raft asks the log to write entry 3 where the last is 1")]
fn a_hole_is_never_written() {
    let mut wal = create(&PowerCutDisk::new());
    append(&mut wal, &entries(1..2, 1, 1));
    append(&mut wal, &entries(3..4, 1, 1));
}

#[test]
#[should_panic(expected = "entry 2 again, which was committed (2)")]
fn a_committed_entry_is_never_replaced() {
    let mut wal = create(&PowerCutDisk::new());
    append(&mut wal, &entries(1..4, 1, 1));
    let _ = wal.append(&Batch {
        hard_state: Some(&hard_state(1, 0, 2)),
        ..Batch::default()
    });
    append(&mut wal, &entries(2..3, 2, 1));
}

#[test]
#[should_panic(expected = "commit 3 where the last entry is 2")]
fn a_commit_without_its_entries_is_never_written() {
    let mut wal = create(&PowerCutDisk::new());
    let _ = wal.append(&Batch {
        entries: &entries(1..3, 1, 1),
        hard_state: Some(&hard_state(1, 0, 3)),
        ..Batch::default()
    });
}

#[test]
fn it_works_on_the_file_system_of_this_machine() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let options = Options {
        segment_bytes: 64 << 10,
        ..Options::default()
    };
    let disk: Arc<dyn crate::disk::Disk> = Arc::new(RealDisk);
    let mut wal = Wal::create(Arc::clone(&disk), &dir, ME, options.clone()).unwrap();
    for i in 0..50 {
        append(&mut wal, &entries(i * 10 + 1..i * 10 + 11, 1, 256));
    }
    wal.append(&Batch {
        snapshot: Some(&at(400, 1)),
        hard_state: Some(&hard_state(1, 1, 450)),
        ..Batch::default()
    })
    .unwrap();
    assert!(wal.release(400).unwrap() > 1);
    for i in 50..100 {
        append(&mut wal, &entries(i * 10 + 1..i * 10 + 11, 1, 256));
    }
    assert!(
        wal.reader()
            .read()
            .segments
            .values()
            .any(|s| s.header.recycled)
    );
    drop(wal);
    let (wal, recovered) = Wal::open(Arc::clone(&disk), &dir, ME, options).unwrap();
    assert_eq!(recovered.entries, entries(401..1001, 1, 256));
    assert_eq!(recovered.hard_state, hard_state(1, 1, 450));
    assert_eq!(recovered.torn, None);
    let first = wal.first_index();
    assert!(first > 1 && first < 401);
    assert_eq!(
        wal.reader().entries(first, 1001, u64::MAX).unwrap(),
        entries(first..1001, 1, 256)
    );
    for file in std::fs::read_dir(&dir).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is done to it, the log is what the model says, before and after it is opened again.
    #[test]
    fn the_log_is_what_the_model_says(ops in proptest::collection::vec(Op::any(), 1..60)) {
        let disk = PowerCutDisk::new();
        let mut wal = create(&disk);
        let mut model = Model::default();
        for op in ops {
            let reopen = op == Op::Reopen;
            op.perform(&mut wal, &mut model).unwrap();
            if reopen {
                drop(wal);
                let (again, recovered) = open(&disk).unwrap();
                prop_assert_eq!(&recovered.torn, &None);
                model.assert_recovered(&again, &recovered);
                model.hard_state = recovered.hard_state;
                wal = again;
            }
            model.assert_same(&wal);
        }
    }
}

#[test]
fn the_generated_work_reaches_every_part() {
    // The tests that follow are worth what their work reaches.
    let disk = FaultyDisk::new(Arc::new(PowerCutDisk::new()), None);
    let mut wal = Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 7).unwrap();
    let mut model = Model::default();
    let mut rng = Rng::new(1);
    let mut recycled = 0;
    for _ in 0..500 {
        Op::random(&mut rng).perform(&mut wal, &mut model).unwrap();
        recycled += u32::from(wal.last.header.recycled);
        model.assert_same(&wal);
    }
    let calls = disk.calls();
    for part in [
        "create ",
        "fallocate",
        "rename",
        "unlink",
        "open",
        "fsync_dir",
    ] {
        let n = calls.iter().filter(|c| c.starts_with(part)).count();
        assert!(n > 5, "{part}: {n}");
    }
    assert!(recycled > 20);
    assert!(wal.first_index() > 100 && wal.last_index() > 200);
}
