use super::*;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

fn period(millis: u64) -> Retention {
    Retention::Period(NonZeroU64::new(millis).unwrap())
}

fn revisions(count: u64) -> Retention {
    Retention::Revisions(NonZeroU64::new(count).unwrap())
}

/// A store that gets one revision in every `write_millis`, so that a revision tells when it was current.
struct World {
    compactor: Compactor,
    now: u64,
    write_millis: u64,
    /// Nothing is written from then on.
    writes_end: u64,
    compacted: Option<Revision>,
    leading: bool,
    /// Compactions that are asked for come about.
    working: bool,
}

impl World {
    fn new(retention: Retention, write_millis: u64) -> World {
        World {
            compactor: Compactor::new(retention, Tick(0), Revision::INITIAL),
            now: 0,
            write_millis,
            writes_end: u64::MAX,
            compacted: None,
            leading: true,
            working: true,
        }
    }

    fn current_at(&self, millis: u64) -> Revision {
        Revision(1 + millis.min(self.writes_end) / self.write_millis)
    }

    /// Until `end`, when it was asked to compact, and to what, in units of `unit` milliseconds and of writes.
    fn run(&mut self, end: u64, unit: u64) -> Vec<(u64, u64)> {
        let mut asked = vec![];
        while self.compactor.next_deadline().0 <= end {
            self.now = self.compactor.next_deadline().0;
            let view = View { current: self.current_at(self.now), compacted: self.compacted, leading: self.leading };
            let spurious = self.compactor.turn(Tick(self.now - 1), view);
            assert_eq!(spurious, None, "a turn before its time");
            if let Some(revision) = self.compactor.turn(Tick(self.now), view) {
                assert!(revision <= view.current);
                assert_eq!(self.now % unit, 0);
                asked.push((self.now / unit, revision.0 - 1));
                if self.working {
                    self.compacted = self.compacted.max(Some(revision));
                }
            }
        }
        self.now = end;
        asked
    }
}

#[test]
fn a_period_is_kept_and_history_compacted_once_in_it_or_hourly() {
    // One write a unit of time: asked at, to what was current at.
    for (retention, unit, end, asked) in [
        (period(HOUR), MINUTE, 5 * HOUR, &[(60, 0), (120, 54), (180, 114), (240, 174), (300, 234)][..]),
        (period(5 * SECOND), 500, 20 * SECOND, &[(10, 0), (20, 9), (30, 19), (40, 29)]),
        (period(59 * MINUTE), 59 * MINUTE / 10, 3 * HOUR, &[(10, 0), (20, 9), (30, 19)]),
        (period(24 * HOUR), HOUR / 10, 27 * HOUR, &[(240, 0), (250, 9), (260, 19), (270, 29)]),
        (period(2 * HOUR), HOUR / 10, 5 * HOUR, &[(20, 0), (30, 9), (40, 19), (50, 29)]),
    ] {
        let mut world = World::new(retention, unit);
        assert_eq!(world.run(end, unit), asked, "{retention:?}");
    }
}

#[test]
fn what_the_period_protects_is_never_compacted() {
    for minutes in [1, 7, 10, 59, 60, 61, 90, 24 * 60, 7 * 24 * 60] {
        let mut world = World::new(period(minutes * MINUTE), SECOND);
        let (interval, sample) = (minutes.min(60) * MINUTE, minutes.min(60) * MINUTE / 10);
        let asked = world.run(3 * minutes * MINUTE + 10 * HOUR, 1);
        assert!(asked.len() as u64 >= 2 * minutes * MINUTE / interval, "{minutes} min");
        for (millis, revision) in asked {
            let age = millis - revision * SECOND;
            assert!(age >= minutes * MINUTE && age <= minutes * MINUTE + sample + SECOND, "{minutes} min: {age} ms");
        }
    }
}

#[test]
fn a_number_of_revisions_is_kept_every_five_minutes() {
    // 60 writes in a minute, and the first revision is 1.
    let mut world = World::new(revisions(1_000), SECOND);
    assert_eq!(
        world.run(30 * MINUTE, MINUTE),
        [(20, 200), (25, 500), (30, 800)],
        "nothing while there are no more than 1,000"
    );
    let mut world = World::new(revisions(300), SECOND);
    assert_eq!(world.run(10 * MINUTE, MINUTE), [(5, 0), (10, 300)]);
    let mut world = World::new(revisions(u64::MAX), SECOND);
    assert_eq!(world.run(24 * HOUR, MINUTE), []);
}

#[test]
fn a_compaction_that_did_not_come_about_is_tried_again() {
    let mut world = World::new(period(HOUR), MINUTE);
    world.working = false;
    // Every sample from then on, each time to what a period protects no more.
    assert_eq!(world.run(78 * MINUTE, MINUTE), [(60, 0), (66, 0), (72, 6), (78, 12)]);
    world.working = true;
    assert_eq!(world.run(3 * HOUR, MINUTE), [(84, 18), (144, 78)]);

    let mut world = World::new(revisions(300), SECOND);
    world.working = false;
    assert_eq!(world.run(15 * MINUTE, MINUTE), [(5, 0), (10, 300), (15, 600)]);
}

#[test]
fn nothing_is_compacted_twice() {
    for (retention, last) in [(period(HOUR), (180, 90)), (revisions(20), (90, 70))] {
        let mut world = World::new(retention, MINUTE);
        world.writes_end = 90 * MINUTE;
        let asked = world.run(48 * HOUR, MINUTE);
        assert_eq!(asked.last(), Some(&last), "{retention:?}: {asked:?}");
    }
}

#[test]
fn after_a_silence_history_is_compacted_as_soon_as_the_period_allows() {
    let mut world = World::new(period(HOUR), MINUTE);
    world.writes_end = 90 * MINUTE;
    world.run(48 * HOUR, MINUTE);
    world.writes_end = u64::MAX;
    // The first sample with something new is that of minute 6, and it is old enough at the one after minute 66. A
    // compactor that had gone on compacting nothing by the hour would wait until minute 120.
    assert_eq!(world.run(49 * HOUR + 12 * MINUTE, MINUTE), [(48 * 60 + 72, 48 * 60 + 6)]);
}

#[test]
fn what_somebody_else_compacted_is_not_asked_for() {
    for retention in [period(HOUR), revisions(30)] {
        let mut world = World::new(retention, MINUTE);
        world.compacted = Some(Revision(1_000));
        assert_eq!(world.run(10 * HOUR, MINUTE), [], "{retention:?}");
        world.compacted = Some(Revision(2));
        let asked = world.run(12 * HOUR, MINUTE);
        assert!(asked.len() >= 2, "{retention:?}: {asked:?}");
    }
}

#[test]
fn only_the_leader_compacts_and_a_new_one_knows_the_past() {
    let mut world = World::new(period(24 * HOUR), MINUTE);
    world.leading = false;
    assert_eq!(world.run(30 * HOUR, MINUTE), []);
    world.leading = true;
    assert_eq!(world.run(31 * HOUR + 30 * MINUTE, HOUR / 10), [(301, 60 * 6), (311, 70 * 6)]);

    let mut world = World::new(revisions(10), MINUTE);
    world.leading = false;
    assert_eq!(world.run(HOUR, MINUTE), []);
    world.leading = true;
    assert_eq!(world.run(HOUR + 5 * MINUTE, MINUTE), [(65, 55)]);
}

#[test]
fn a_late_turn_is_not_made_up_for() {
    let mut compactor = Compactor::new(period(HOUR), Tick(0), Revision(1));
    let view = |current| View { current: Revision(current), compacted: None, leading: true };
    // The machine stood still for three hours: what was current at its start is all that is known to be old enough.
    assert_eq!(compactor.turn(Tick(3 * HOUR), view(50)), Some(Revision(1)));
    assert_eq!(compactor.turn(Tick(3 * HOUR), view(50)), None);
    assert_eq!(compactor.next_deadline(), Tick(3 * HOUR + 6 * MINUTE));
}

#[test]
fn a_period_may_be_as_short_or_as_long_as_it_likes() {
    let mut compactor = Compactor::new(period(1), Tick(0), Revision(1));
    let view = |current| View { current: Revision(current), compacted: None, leading: true };
    assert_eq!(compactor.turn(Tick(1), view(7)), Some(Revision(1)));
    assert_eq!(compactor.turn(Tick(2), view(9)), Some(Revision(1)));
    assert_eq!(compactor.turn(Tick(3), view(9)), Some(Revision(7)));
    let mut world = World::new(period(u64::MAX), MINUTE);
    assert_eq!(world.run(240 * HOUR, MINUTE), []);
}
