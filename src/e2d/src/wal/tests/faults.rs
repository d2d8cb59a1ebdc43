//! Calls fail, one at a time, all of them.

use super::*;
use crate::disk::{Disk, Fault};

struct Ran {
    model: Model,
    /// The log with what was under way when it failed.
    under_way: Option<Model>,
    error: Option<WalError>,
}

/// Makes a log, works, opens it again in between.
fn run(disk: &FaultyDisk) -> Ran {
    let mut model = Model::default();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let failed = |model: Model, under_way, error| Ran { model, under_way: Some(under_way), error: Some(error) };
    let mut wal = match Wal::create_salted(Arc::clone(&shared), dir(), ME, small(), 7) {
        Ok(wal) => wal,
        Err(e) => return failed(model.clone(), model, e),
    };
    let mut rng = Rng::new(11);
    for _ in 0..100 {
        let op = Op::random(&mut rng);
        let outcome = op.outcome(&model);
        if let Err(error) = op.perform(&mut wal, &mut model) {
            // Nothing is tried again, whatever the caller does.
            assert!(error.is_fatal(), "{error}");
            let (writes, first) = (disk.changes_after_failure(), error.to_string());
            for result in [
                wal.seal(),
                wal.release(1).map(|_| ()),
                wal.append(&Batch::default()),
            ] {
                match result {
                    Err(WalError::Poisoned { first: said }) => assert_eq!(said, first),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(writes, Vec::<String>::new());
            assert_eq!(disk.changes_after_failure(), writes);
            return failed(model, outcome, error);
        }
        if op == Op::Reopen {
            match Wal::open(Arc::clone(&shared), dir(), ME, small()) {
                Ok((again, recovered)) => {
                    assert!(model.is(&again, &recovered));
                    model.hard_state = recovered.hard_state;
                    wal = again;
                }
                Err(e) => return failed(model.clone(), model, e),
            }
        }
    }
    Ran { model, under_way: None, error: None }
}

#[test]
fn after_any_failed_call_nothing_is_acknowledged_and_the_next_start_recovers() {
    let calm = FaultyDisk::new(Arc::new(PowerCutDisk::new()), None);
    let expected = run(&calm).model;
    let calls = calm.calls();
    assert!(calls.len() > 300, "{}", calls.len());
    for (number, call) in calls.iter().enumerate() {
        let write = call.starts_with("pwrite");
        let faults = [Fault::Io, Fault::Full, Fault::Short, Fault::ShortThenIo];
        for fault in faults.into_iter().take(if write { 4 } else { 2 }) {
            let platter = PowerCutDisk::new();
            let disk = FaultyDisk::new(Arc::new(platter.clone()), Some((number, fault)));
            let ran = run(&disk);
            if !disk.failed() {
                assert!(ran.error.is_none(), "{call}");
                assert_eq!(ran.model, expected, "{fault:?} in {call}");
                continue;
            }
            let error = ran
                .error
                .unwrap_or_else(|| panic!("{fault:?} in {call} went unnoticed"));
            assert!(
                matches!(error, WalError::Io { .. }),
                "{fault:?} in {call}: {error}"
            );
            for seed in 0..4 {
                let after = platter.after_cut(seed);
                if !Wal::exists(&after, dir()).unwrap() {
                    drop(create(&after));
                    continue;
                }
                let (wal, recovered) = open(&after).unwrap();
                let under_way = ran.under_way.as_ref().filter(|m| m.is(&wal, &recovered));
                under_way.unwrap_or(&ran.model).assert_recovered(&wal, &recovered);
            }
        }
    }
}

#[test]
fn a_full_disk_says_what_to_do() {
    let platter = Arc::new(PowerCutDisk::new());
    let calm = FaultyDisk::new(platter, None);
    let wal = Wal::create_salted(Arc::new(calm.clone()), dir(), ME, small(), 7).unwrap();
    drop(wal);
    let number = calm.calls().len();
    for at in 0..number {
        let disk = FaultyDisk::new(Arc::new(PowerCutDisk::new()), Some((at, Fault::Full)));
        let error = Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 7).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/data"), "{text}");
        assert!(text.contains("free space on it or enlarge it"), "{text}");
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().contains("No space left"), "{source}");
    }
}

#[test]
fn an_operators_error_names_what_failed_and_where() {
    let calm = FaultyDisk::new(Arc::new(PowerCutDisk::new()), None);
    drop(Wal::create_salted(Arc::new(calm.clone()), dir(), ME, small(), 7).unwrap());
    // The write and the sync of the first batch.
    for (at, expected) in
        [(0, "writing /data/wal/00000001-0000000000000001.wal"), (1, "syncing /data/wal/00000001-0000000000000001.wal")]
    {
        let fault = Some((calm.calls().len() + at, Fault::Io));
        let disk = FaultyDisk::new(Arc::new(PowerCutDisk::new()), fault);
        let mut wal = Wal::create_salted(Arc::new(disk), dir(), ME, small(), 7).unwrap();
        let error = wal.append(&Batch { entries: &entries(1..2, 1, 1), ..Batch::default() }).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(
            wal.append(&Batch::default()).unwrap_err().to_string(),
            format!("the raft log takes no more writes since an earlier failure: {expected}")
        );
        // What is in it can still be read.
        assert_eq!(wal.last_index(), 0);
    }
}
