use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const RETRY: u64 = 7_000;
const INTERVAL: u64 = 300_000;
const ELECTION: u64 = 1_000;

const PLAIN: Settings = Settings { retry_millis: RETRY, checkpoint_interval_millis: None };
const WITH_CHECKPOINTS: Settings = Settings { retry_millis: RETRY, checkpoint_interval_millis: Some(INTERVAL) };

fn id(number: i64) -> LeaseId {
    LeaseId(number)
}

fn ids(numbers: &[i64]) -> Vec<LeaseId> {
    numbers.iter().copied().map(LeaseId).collect()
}

/// The life of a lease that was granted by the first entry.
fn life(number: i64) -> Life {
    Life { id: id(number), granted_at: LogIndex(1) }
}

fn lives(numbers: &[i64]) -> Vec<Life> {
    numbers.iter().copied().map(life).collect()
}

fn seconds(count: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(count)
}

/// A leader since moment 0 that had no lease to extend.
fn leader(settings: Settings) -> Lessor {
    let mut lessor = Lessor::new(settings);
    lessor.promote(Tick(0), ELECTION);
    lessor
}

fn leader_with(leases: &[(i64, u64)]) -> Lessor {
    let mut lessor = leader(PLAIN);
    for &(number, ttl) in leases {
        lessor.grant(id(number), ttl, LogIndex(1), Tick(0)).unwrap();
    }
    lessor
}

/// Every lease of a leader is in one queue of deadlines and at most once in that of checkpoints, at the moment that it
/// names itself; elsewhere nothing of a former term is left.
fn assert_consistent(lessor: &Lessor) {
    let Some(countdown) = &lessor.countdown else {
        for lease in lessor.leases.values() {
            assert_eq!((lease.deadline, lease.retry_at, lease.checkpoint_at), (Tick(0), None, None));
            assert_eq!((lease.checkpoint_offered, lease.clearings), (false, 0));
        }
        return;
    };
    let named = |at: fn(&Lease) -> Option<Tick>| -> BTreeSet<(Tick, LeaseId)> {
        lessor.leases.iter().filter_map(|(&id, lease)| at(lease).map(|at| (at, id))).collect()
    };
    assert_eq!(countdown.running, named(|lease| lease.retry_at.is_none().then_some(lease.deadline)));
    assert_eq!(countdown.expiring, named(|lease| lease.retry_at));
    assert_eq!(countdown.checkpoints, named(|lease| lease.checkpoint_at));
}

#[test]
fn a_ttl_is_raised_to_the_minimum_and_refused_above_the_maximum() {
    for (election_millis, minimum) in [(1_000, 2), (1_333, 2), (1_334, 3), (10_000, 15), (50_000, 75), (100, 1), (0, 1)]
    {
        assert_eq!(min_ttl_seconds(election_millis), minimum, "{election_millis} ms");
    }
    let refused = |requested| Err(TtlTooLarge { requested });
    for (requested, granted) in [
        (i64::MIN, Ok(2)),
        (-5, Ok(2)),
        (0, Ok(2)),
        (1, Ok(2)),
        (2, Ok(2)),
        (3, Ok(3)),
        (9_000_000_000, Ok(9_000_000_000)),
        (9_000_000_001, refused(9_000_000_001)),
        (i64::MAX, refused(i64::MAX)),
    ] {
        assert_eq!(ttl_to_grant(requested, ELECTION), granted, "{requested} s");
    }
}

#[test]
fn any_number_but_zero_can_be_granted_once() {
    let mut lessor = leader(PLAIN);
    for number in [1, -1, i64::MIN, i64::MAX] {
        assert_eq!(lessor.grant(id(number), 5, LogIndex(1), Tick(0)), Ok(()));
        assert_eq!(lessor.grant(id(number), 9, LogIndex(1), Tick(0)), Err(GrantError::AlreadyExists(id(number))));
        assert_eq!(lessor.row(id(number)).unwrap().granted_seconds, 5);
    }
    assert_eq!(lessor.grant(id(0), 5, LogIndex(1), Tick(0)), Err(GrantError::NoId));
    assert_eq!(lessor.len(), 4);
    assert_eq!(lessor.revoke(id(-1)), Ok(vec![]));
    assert_eq!(lessor.revoke(id(-1)), Err(NotFound(id(-1))));
    assert_eq!(lessor.grant(id(-1), 9, LogIndex(1), Tick(0)), Ok(()));
}

#[test]
fn a_picked_number_is_positive_and_free() {
    let lessor = leader_with(&[(1, 5), (2, 5), (7, 5), (i64::MAX, 5)]);
    for (random, picked) in [
        (0, 3),
        (1, 3),
        (6, 6),
        (7, 8),
        (1 << 63, 3),
        (1 << 63 | 9, 9),
        (u64::MAX, 3),
        (u64::MAX - 1, i64::MAX - 1),
        (i64::MAX as u64, 3),
    ] {
        assert_eq!(lessor.pick_id(random), id(picked), "{random:x}");
    }
}

#[test]
fn revocation_gives_the_keys_in_ascending_order() {
    let mut lessor = Lessor::new(PLAIN);
    lessor.grant(id(1), 5, LogIndex(1), Tick(0)).unwrap();
    let mut expected: Vec<&[u8]> = vec![b"b", b"a", b"", b"\xff", b"aa", b"a\0", b"c"];
    for key in expected.iter().chain(&expected) {
        lessor.attach(id(1), key).unwrap();
    }
    expected.sort();
    assert_eq!(lessor.keys(id(1)).collect::<Vec<_>>(), expected);
    assert_eq!(lessor.revoke(id(1)).unwrap(), expected);
    assert_eq!(lessor.keys(id(1)).count(), 0);
}

#[test]
fn a_key_leaves_its_lease_alone() {
    let mut lessor = Lessor::new(PLAIN);
    lessor.grant(id(1), 5, LogIndex(1), Tick(0)).unwrap();
    assert_eq!(lessor.attach(id(2), b"a"), Err(NotFound(id(2))));
    assert!(!lessor.detach(id(2), b"a") && !lessor.detach(id(1), b"a"));
    for count in 1..5u8 {
        for key in 0..count {
            lessor.attach(id(1), &[key]).unwrap();
        }
        for key in 0..count {
            assert!(!lessor.detach(id(1), b"other"));
            assert!(lessor.detach(id(1), &[key]) && !lessor.detach(id(1), &[key]));
            assert_eq!(lessor.keys(id(1)).count(), usize::from(count - key - 1));
        }
    }
    assert_eq!(lessor.revoke(id(1)), Ok(vec![]));
}

#[test]
fn time_to_live_is_rounded_down_and_stays_at_zero_until_revoked() {
    let mut lessor = leader_with(&[(1, 5)]);
    for (millis, left) in [(0, 5), (1, 4), (1_000, 4), (1_001, 3), (4_000, 1), (4_001, 0), (5_000, 0), (99_000, 0)] {
        let left = TimeToLive { remaining_seconds: left, granted_seconds: 5 };
        assert_eq!(lessor.time_to_live(id(1), Tick(millis)), Ok(left), "{millis} ms");
    }
    assert_eq!(lessor.due(Tick(99_000), 9), lives(&[1]));
    assert_eq!(lessor.time_to_live(id(1), Tick(99_001)).unwrap().remaining_seconds, 0);
    lessor.revoke(id(1)).unwrap();
    assert_eq!(lessor.time_to_live(id(1), Tick(99_002)), Err(LookupError::NotFound(id(1))));
    lessor.demote();
    assert_eq!(lessor.time_to_live(id(1), Tick(99_003)), Err(LookupError::NotPrimary));
}

#[test]
fn a_lease_is_due_at_its_deadline_and_not_before() {
    let mut lessor = leader_with(&[(1, 5), (2, 3), (3, 5), (4, 60)]);
    assert_eq!(lessor.next_deadline(), Some(Tick(3_000)));
    assert_eq!(lessor.due(Tick(2_999), 9), lives(&[]));
    assert_eq!(lessor.due(Tick(3_000), 9), lives(&[2]));
    assert_eq!(lessor.next_deadline(), Some(Tick(5_000)));
    assert_eq!(lessor.due(Tick(5_000), 1), lives(&[1]));
    assert_eq!(lessor.due(Tick(5_000), 1), lives(&[3]));
    assert_eq!(lessor.due(Tick(5_000), 1), lives(&[]));
    assert_eq!(lessor.due(Tick(5_000), 0), lives(&[]));
}

#[test]
fn a_lost_revocation_is_asked_for_again() {
    let mut lessor = leader_with(&[(1, 5), (2, 6)]);
    assert_eq!(lessor.due(Tick(5_000), 9), lives(&[1]));
    assert_eq!(lessor.due(Tick(6_500), 9), lives(&[2]));
    assert_eq!(lessor.next_deadline(), Some(Tick(5_000 + RETRY)));
    assert_eq!(lessor.due(Tick(4_999 + RETRY), 9), lives(&[]));
    assert_eq!(lessor.due(Tick(5_000 + RETRY), 9), lives(&[1]));
    lessor.revoke(id(2)).unwrap();
    assert_eq!(lessor.due(Tick(5_000 + 2 * RETRY), 9), lives(&[1]));
    lessor.revoke(id(1)).unwrap();
    assert_eq!(lessor.next_deadline(), None);
}

#[test]
fn a_renewal_gives_the_full_ttl_again() {
    let mut lessor = leader_with(&[(1, 5), (2, 5)]);
    assert_eq!(lessor.renew(id(1), Tick(4_999)), Ok(5));
    assert_eq!(lessor.due(Tick(9_998), 9), lives(&[2]));
    assert_eq!(lessor.due(Tick(9_999), 9), lives(&[1]));
    assert_eq!(lessor.renew(id(3), Tick(9_999)), Err(RenewError::NotFound(id(3))));
}

#[test]
fn an_expired_lease_is_never_renewed() {
    let mut lessor = leader_with(&[(1, 5), (2, 5)]);
    let expired = |number| Err(RenewError::Expired(id(number)));
    assert_eq!(lessor.renew(id(1), Tick(5_000)), expired(1), "before the revocation is proposed");
    assert_eq!(lessor.due(Tick(5_000), 1), lives(&[1]));
    // A caller may have read its clock before another one did.
    assert_eq!(lessor.renew(id(1), Tick(4_000)), expired(1), "while it is proposed");
    assert_eq!(lessor.renew(id(1), Tick(5_000 + 9 * RETRY)), expired(1), "while it is overdue");
    lessor.revoke(id(1)).unwrap();
    assert_eq!(lessor.renew(id(1), Tick(4_000)), Err(RenewError::NotFound(id(1))), "after it");
}

#[test]
fn what_was_decided_about_a_former_life_does_not_touch_the_next() {
    let mut lessor = leader(WITH_CHECKPOINTS);
    lessor.grant(id(1), 600, LogIndex(1), Tick(0)).unwrap();
    let [Checkpoint { life: former, remaining_seconds }] = lessor.checkpoints_due(Tick(300_000), 9)[..] else {
        panic!()
    };
    assert_eq!(lessor.due(Tick(600_000), 9), [former]);
    lessor.revoke(id(1)).unwrap();
    lessor.grant(id(1), 600, LogIndex(2), Tick(600_000)).unwrap();
    lessor.attach(id(1), b"key").unwrap();
    assert!(!lessor.checkpoint(former, Some(remaining_seconds)));
    assert_eq!(lessor.expire(former), Err(NotFound(id(1))));
    assert_eq!(lessor.renew(id(1), Tick(600_001)), Ok(600));
    assert_eq!(lessor.expire(Life { granted_at: LogIndex(2), ..former }), Ok(vec![Bytes::from("key")]));
    assert!(!lessor.exists(id(1)));
}

#[test]
fn only_the_leader_counts() {
    let mut lessor = leader_with(&[(1, 5)]);
    lessor.demote();
    assert!(!lessor.is_primary());
    lessor.grant(id(2), 5, LogIndex(1), Tick(1_000)).unwrap();
    assert_eq!(lessor.renew(id(1), Tick(1_000)), Err(RenewError::NotPrimary));
    assert_eq!((lessor.due(Tick(99_000), 9), lessor.next_deadline()), (vec![], None));
    assert!(lessor.exists(id(1)) && lessor.exists(id(2)));
}

#[test]
fn a_new_leader_starts_every_lease_anew() {
    let rows = [
        Row { life: life(1), granted_seconds: 5, checkpoint_seconds: None },
        Row { life: life(2), granted_seconds: 600, checkpoint_seconds: seconds(4) },
        // A checkpoint gives at most what was granted.
        Row { life: life(3), granted_seconds: 7, checkpoint_seconds: seconds(70) },
    ];
    let mut lessor = Lessor::load(PLAIN, rows);
    assert_eq!(lessor.rows().collect::<Vec<_>>(), rows);
    lessor.promote(Tick(50_000), ELECTION);
    assert_eq!(lessor.time_to_live(id(1), Tick(50_000)).unwrap().remaining_seconds, 6);
    for (millis, due) in
        [(54_999, &[][..]), (55_000, &[2]), (55_999, &[]), (56_000, &[1]), (57_999, &[]), (58_000, &[3])]
    {
        assert_eq!(lessor.due(Tick(millis), 9), lives(due), "{millis} ms");
    }
    // What the former leader asked for is void, because its term is over.
    lessor.demote();
    lessor.promote(Tick(60_000), ELECTION);
    assert_eq!(lessor.due(Tick(60_000 + RETRY / 2), 9), lives(&[]));
    assert_eq!(lessor.renew(id(1), Tick(65_999)), Ok(5));
}

#[test]
fn a_renewal_never_shortens() {
    let mut lessor = Lessor::load(PLAIN, [Row { life: life(1), granted_seconds: 5, checkpoint_seconds: None }]);
    lessor.promote(Tick(0), 10_000);
    assert_eq!(lessor.renew(id(1), Tick(1)), Ok(5));
    assert_eq!(lessor.due(Tick(14_999), 9), lives(&[]));
    assert_eq!(lessor.due(Tick(15_000), 9), lives(&[1]));
}

#[test]
fn the_list_is_ordered_by_expiry() {
    let mut lessor = leader_with(&[(5, 100), (3, 100), (-9, 100), (7, 3), (8, 2), (9, 50)]);
    assert_eq!(lessor.by_expiry(), ids(&[8, 7, 9, -9, 3, 5]));
    // What expires stays in front, although it is asked for again later than others expire.
    assert_eq!(lessor.due(Tick(2_000), 9), lives(&[8]));
    assert_eq!(lessor.due(Tick(49_000), 1), lives(&[7]));
    assert_eq!(lessor.due(Tick(49_000), 1), lives(&[8]));
    assert_eq!(lessor.by_expiry(), ids(&[8, 7, 9, -9, 3, 5]));
    assert_eq!(lessor.renew(id(9), Tick(49_999)), Ok(50));
    assert_eq!(lessor.renew(id(3), Tick(50_000)), Ok(100));
    assert_eq!(lessor.by_expiry(), ids(&[8, 7, 9, -9, 5, 3]));
    lessor.demote();
    assert_eq!(lessor.by_expiry(), ids(&[-9, 3, 5, 7, 8, 9]));
}

#[test]
fn a_lease_is_checkpointed_once_an_interval_while_more_than_that_is_left() {
    let mut lessor = leader(WITH_CHECKPOINTS);
    for (number, ttl) in [(1, 700), (2, 300), (3, 301)] {
        lessor.grant(id(number), ttl, LogIndex(1), Tick(0)).unwrap();
    }
    let cp = |number, left| Checkpoint { life: life(number), remaining_seconds: seconds(left).unwrap() };
    assert_eq!(lessor.next_deadline(), Some(Tick(300_000)));
    assert_eq!(lessor.checkpoints_due(Tick(299_999), 9), []);
    assert_eq!(lessor.checkpoints_due(Tick(300_000), 1), [cp(1, 400)]);
    assert_eq!(lessor.checkpoints_due(Tick(300_000), 1), [cp(3, 1)]);
    assert_eq!(lessor.checkpoints_due(Tick(300_000), 1), []);
    assert!(lessor.checkpoint(life(1), seconds(400)) && !lessor.checkpoint(life(1), seconds(400)));
    assert_eq!(lessor.row(id(1)).unwrap().checkpoint_seconds, seconds(400));
    assert_eq!(lessor.due(Tick(599_999), 9), lives(&[2, 3]));
    assert_eq!((lessor.revoke(id(2)), lessor.revoke(id(3))), (Ok(vec![]), Ok(vec![])));
    assert_eq!(lessor.checkpoints_due(Tick(599_999), 9), []);
    // 99.5 s are left: rounded up.
    assert_eq!(lessor.checkpoints_due(Tick(600_500), 9), [cp(1, 100)]);
    assert!(lessor.checkpoint(life(1), seconds(100)));
    assert_eq!(lessor.due(Tick(699_999), 9), lives(&[]));
    assert_eq!(lessor.due(Tick(700_000), 9), lives(&[1]));
    assert_eq!(lessor.checkpoints_due(Tick(9_000_000), 9), []);
    assert!(!lessor.checkpoint(life(4), seconds(9)));
}

#[test]
fn a_lost_checkpoint_is_asked_for_again() {
    let mut lessor = leader(WITH_CHECKPOINTS);
    lessor.grant(id(1), 3_600, LogIndex(1), Tick(0)).unwrap();
    assert_eq!(lessor.checkpoints_due(Tick(300_000), 9).len(), 1);
    assert_eq!(lessor.checkpoints_due(Tick(599_999), 9).len(), 0);
    assert_eq!(lessor.checkpoints_due(Tick(600_000), 9)[0].remaining_seconds.get(), 3_000);
}

#[test]
fn a_lease_that_is_renewed_in_time_is_not_checkpointed() {
    let mut lessor = leader(WITH_CHECKPOINTS);
    lessor.grant(id(1), 3_600, LogIndex(1), Tick(0)).unwrap();
    for minute in (4..600).step_by(4) {
        assert_eq!(lessor.renew(id(1), Tick(minute * 60_000)), Ok(3_600));
        assert_eq!(lessor.checkpoints_due(Tick(minute * 60_000), 9), []);
    }
}

#[test]
fn a_lease_with_a_checkpoint_is_renewed_once_that_is_cleared() {
    let mut lessor = leader(WITH_CHECKPOINTS);
    lessor.grant(id(1), 600, LogIndex(1), Tick(0)).unwrap();
    let refused = Err(RenewError::Checkpointed(life(1)));
    // It is enough that it may come to stand in the log: otherwise it would be applied after the renewal, and a new
    // leader would start from 300 s although 600 s were promised.
    assert_eq!(lessor.checkpoints_due(Tick(300_000), 9).len(), 1);
    assert_eq!(lessor.renew(id(1), Tick(300_001)), refused);
    assert!(lessor.checkpoint(life(1), seconds(300)));
    assert_eq!(lessor.renew(id(1), Tick(300_002)), refused);
    assert!(lessor.checkpoint(life(1), None));
    assert_eq!(lessor.renew(id(1), Tick(300_003)), Ok(600));
    // The second clearing one is still on its way, so a checkpoint offered by now would be taken for cleared.
    assert_eq!(lessor.checkpoints_due(Tick(700_000), 9), []);
    assert!(!lessor.checkpoint(life(1), None));
    assert_eq!(lessor.checkpoints_due(Tick(700_000), 9).len(), 1);
    assert_eq!(lessor.renew(id(1), Tick(700_000)), refused);
    // The checkpoint itself was never applied.
    assert!(!lessor.checkpoint(life(1), None));
    assert_eq!(lessor.renew(id(1), Tick(700_001)), Ok(600));
}

#[test]
fn a_bad_moment_to_clear_a_checkpoint_does_not_bring_a_lease_back() {
    let mut lessor = leader(WITH_CHECKPOINTS);
    lessor.grant(id(1), 600, LogIndex(1), Tick(0)).unwrap();
    assert_eq!(lessor.checkpoints_due(Tick(300_000), 9).len(), 1);
    lessor.checkpoint(life(1), seconds(300));
    assert_eq!(lessor.renew(id(1), Tick(599_999)), Err(RenewError::Checkpointed(life(1))));
    assert_eq!(lessor.due(Tick(600_000), 9), lives(&[1]));
    lessor.checkpoint(life(1), None);
    assert_eq!(lessor.renew(id(1), Tick(600_001)), Err(RenewError::Expired(id(1))));
    assert_consistent(&lessor);
}

/// A scan of a million leases takes milliseconds; a thousand scans would take many seconds.
#[test]
#[allow(clippy::disallowed_methods, reason = "the cost is what this tests")]
fn asking_what_is_due_does_not_look_at_what_is_not() {
    const LEASES: i64 = 1_000_000;
    let rows = (1..=LEASES).map(|number| Row {
        life: life(number),
        granted_seconds: if number % 1_000 == 0 { 10 } else { 1_000 },
        checkpoint_seconds: None,
    });
    let mut lessor = Lessor::load(PLAIN, rows);
    lessor.promote(Tick(0), 0);
    let started = std::time::Instant::now();
    for millis in 0..1_000 {
        assert_eq!(lessor.due(Tick(millis), usize::MAX), []);
        assert_eq!(lessor.next_deadline(), Some(Tick(10_000)));
        assert_eq!(lessor.renew(id(1 + millis as i64 % 999), Tick(millis)), Ok(1_000));
    }
    let due = lessor.due(Tick(10_000), usize::MAX);
    let took = started.elapsed();
    assert_eq!(due.len(), 1_000);
    assert!(took.as_millis() < 1_000, "1,000 empty questions, 1,000 renewals and 1,000 expiries took {took:?}");
}

#[test]
fn a_lease_costs_little_memory() {
    assert!(size_of::<Lease>() <= 104, "{}", size_of::<Lease>());
    let mut lessor = Lessor::new(PLAIN);
    lessor.grant(id(1), 5, LogIndex(1), Tick(0)).unwrap();
    // The key is a slice of a large request: only the key itself may stay.
    let request = Bytes::from(vec![b'k'; 1 << 20]);
    lessor.attach(id(1), &request.slice(..100)).unwrap();
    assert!(request.is_unique());
}

/// xorshift64*: the model test needs a seed, not quality.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next(n) == 0
    }
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Grant(LeaseId, u64),
    Expire(Life),
    Revoke(LeaseId),
    Checkpoint(Life, Option<NonZeroU64>),
}

/// Three members with a log each applies at its own pace, and one leader at a time.
struct Model {
    random: Random,
    now: u64,
    members: Vec<Lessor>,
    /// A member's clock is this far ahead of `now`.
    clocks: Vec<u64>,
    applied: Vec<usize>,
    leader: usize,
    committed: Vec<Entry>,
    /// Proposed by the leader and not committed.
    proposed: VecDeque<Entry>,
    /// A lease must not expire before this.
    promised: BTreeMap<LeaseId, u64>,
    /// A lease must have been asked about by this moment: later than `promised` only after a change of leader.
    overdue: BTreeMap<LeaseId, u64>,
    expired: u64,
    refused_for_checkpoint: u64,
}

const LEASE_COUNT: u64 = 40;

impl Model {
    fn new(seed: u64, settings: Settings) -> Model {
        let mut model = Model {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            members: (0..3).map(|_| Lessor::new(settings)).collect(),
            clocks: vec![0, 1_000_000_007, 5],
            applied: vec![0; 3],
            leader: 0,
            committed: vec![],
            proposed: VecDeque::new(),
            promised: BTreeMap::new(),
            overdue: BTreeMap::new(),
            expired: 0,
            refused_for_checkpoint: 0,
        };
        model.lead(0);
        model
    }

    fn clock(&self, member: usize) -> Tick {
        Tick(self.now + self.clocks[member])
    }

    fn apply(&mut self, member: usize, upto: usize) {
        for at in self.applied[member]..upto {
            let now = self.clock(member);
            let lessor = &mut self.members[member];
            match self.committed[at] {
                Entry::Grant(id, ttl) => {
                    // The client hears of it from whoever leads and applies it.
                    if lessor.grant(id, ttl, LogIndex(at as u64), now).is_ok() && member == self.leader {
                        self.promised.insert(id, self.now + ttl * 1_000);
                        self.overdue.insert(id, self.now + ttl * 1_000);
                    }
                }
                Entry::Revoke(id) => {
                    if lessor.revoke(id).is_ok() && member == self.leader {
                        self.promised.remove(&id);
                        self.overdue.remove(&id);
                    }
                }
                Entry::Expire(life) => {
                    if lessor.expire(life).is_ok() && member == self.leader {
                        let (now, promised) = (self.now, self.promised.remove(&life.id).unwrap_or(0));
                        assert!(now >= promised, "{life:?} expired at {now} and was promised until {promised}");
                        self.overdue.remove(&life.id);
                        self.expired += 1;
                    }
                }
                Entry::Checkpoint(life, left) => _ = lessor.checkpoint(life, left),
            }
        }
        self.applied[member] = upto;
    }

    fn commit(&mut self, count: usize) {
        for _ in 0..count {
            let Some(entry) = self.proposed.pop_front() else { break };
            self.committed.push(entry);
        }
        self.apply(self.leader, self.committed.len());
    }

    fn lead(&mut self, member: usize) {
        // Some of what the former leader proposed got through.
        let through = self.random.next(self.proposed.len() as u64 + 1) as usize;
        self.commit(through);
        self.proposed.clear();
        self.members[self.leader].demote();
        // The clients have their answers from the former leader.
        self.apply(member, self.committed.len());
        self.leader = member;
        // Time passes without a leader.
        self.now += self.random.next(20_000);
        let now = self.clock(member);
        self.members[member].promote(now, ELECTION);
        self.overdue.clear();
        for row in self.members[member].rows() {
            self.overdue.insert(row.life.id, self.now + row.granted_seconds * 1_000 + ELECTION);
        }
    }

    fn propose(&mut self, entry: Entry, lossy: bool) {
        if !(lossy && self.random.one_in(5)) {
            self.proposed.push_back(entry);
        }
    }

    fn renew(&mut self, id: LeaseId) {
        // The read index: everything committed is applied on the leader at once in this model.
        let now = self.clock(self.leader);
        let lessor = &mut self.members[self.leader];
        let alive = lessor.row(id).map(|row| row.life);
        match lessor.renew(id, now) {
            Ok(ttl) => {
                let expires = |entry: &Entry| matches!(entry, Entry::Expire(life) if Some(*life) == alive);
                assert!(!self.proposed.iter().any(expires), "{id} was renewed while its expiry was proposed");
                self.promised.insert(id, self.now + ttl * 1_000);
                let overdue = self.overdue.entry(id).or_default();
                *overdue = (*overdue).max(self.now + ttl * 1_000);
            }
            Err(RenewError::Checkpointed(life)) => {
                self.refused_for_checkpoint += 1;
                self.propose(Entry::Checkpoint(life, None), true);
            }
            Err(RenewError::Expired(_)) => assert!(self.now >= self.promised[&id], "{id} is not renewed too early"),
            Err(RenewError::NotFound(_)) => assert!(!self.promised.contains_key(&id)),
            Err(RenewError::NotPrimary) => unreachable!("the leader was promoted"),
        }
    }

    fn ask_what_is_due(&mut self, lossy: bool) {
        let (now, max) = (self.clock(self.leader), 1 + self.random.next(20) as usize);
        let due = self.members[self.leader].due(now, max);
        let all = due.len() < max;
        due.into_iter().for_each(|life| self.propose(Entry::Expire(life), lossy));
        for Checkpoint { life, remaining_seconds } in self.members[self.leader].checkpoints_due(now, max) {
            self.propose(Entry::Checkpoint(life, Some(remaining_seconds)), lossy);
        }
        if all {
            for (&id, &overdue) in &self.overdue {
                let asked = self.members[self.leader].leases[&id].retry_at.is_some();
                assert!(asked || self.now < overdue, "{id} is late: {} and not {overdue}", self.now);
            }
        }
    }

    fn step(&mut self) {
        let id = LeaseId(1 + self.random.next(LEASE_COUNT) as i64);
        match self.random.next(100) {
            0..15 => {
                let ttl = 2 + self.random.next(60);
                self.propose(Entry::Grant(id, ttl), true);
            }
            15..50 => self.renew(id),
            50..52 => self.propose(Entry::Revoke(id), true),
            52..65 => {
                let count = self.random.next(6) as usize;
                self.commit(count);
            }
            65..75 => {
                let member = self.random.next(3) as usize;
                let behind = self.committed.len() - self.applied[member];
                let upto = self.applied[member] + self.random.next(behind as u64 + 1) as usize;
                self.apply(member, upto);
            }
            75 if self.random.one_in(4) => {
                let member = self.random.next(3) as usize;
                self.lead(member);
            }
            75..85 => self.ask_what_is_due(true),
            _ => self.now += self.random.next(1_500),
        }
        if self.random.one_in(50) {
            self.members.iter().for_each(assert_consistent);
        }
    }

    /// With a leader that stays and a log that loses nothing, everything expires.
    fn settle(&mut self) {
        let end = self.now + 61_000 + ELECTION + RETRY + 1_000;
        while self.now < end {
            self.commit(usize::MAX);
            self.ask_what_is_due(false);
            self.now += 500;
        }
        self.commit(usize::MAX);
        for member in 0..3 {
            self.apply(member, self.committed.len());
            assert!(self.members[member].is_empty(), "member {member}: {:?}", self.members[member]);
        }
    }
}

#[test]
fn a_lease_outlives_its_promise_and_not_much_more() {
    let short = Settings { retry_millis: 3_000, checkpoint_interval_millis: Some(4_000) };
    for (settings, checkpoints) in [(PLAIN, false), (short, true)] {
        let (mut expired, mut refused) = (0, 0);
        for seed in 1..=300 {
            let mut model = Model::new(seed, settings);
            for _ in 0..1_500 {
                model.step();
            }
            let rows: Vec<Vec<Row>> = {
                (0..3).for_each(|member| model.apply(member, model.committed.len()));
                model.members.iter().map(|lessor| lessor.rows().collect()).collect()
            };
            assert!(rows[0] == rows[1] && rows[1] == rows[2], "members disagree, seed {seed}");
            model.settle();
            expired += model.expired;
            refused += model.refused_for_checkpoint;
        }
        // A run in which nothing happened would prove nothing.
        assert!(expired > 1_000, "{expired}");
        assert_eq!(refused > 100, checkpoints, "{refused}");
    }
}

#[derive(Clone, Debug)]
enum Call {
    Grant(i64, u64),
    Revoke(i64),
    Attach(i64, u8),
    Detach(i64, u8),
    Checkpoint(i64, u64),
    Renew(i64),
    Due(usize),
    CheckpointsDue(usize),
    Promote,
    Demote,
    Wait(u64),
}

fn call() -> impl Strategy<Value = Call> {
    let lease = -3i64..4;
    prop_oneof![
        (lease.clone(), 0u64..20).prop_map(|(id, ttl)| Call::Grant(id, ttl)),
        lease.clone().prop_map(Call::Revoke),
        (lease.clone(), 0u8..5).prop_map(|(id, key)| Call::Attach(id, key)),
        (lease.clone(), 0u8..5).prop_map(|(id, key)| Call::Detach(id, key)),
        (lease.clone(), 0u64..20).prop_map(|(id, left)| Call::Checkpoint(id, left)),
        lease.prop_map(Call::Renew),
        (0usize..4).prop_map(Call::Due),
        (0usize..4).prop_map(Call::CheckpointsDue),
        Just(Call::Promote),
        Just(Call::Demote),
        (0u64..9_000).prop_map(Call::Wait),
    ]
}

proptest! {
    #[test]
    fn any_calls_leave_the_queues_and_the_keys_right(calls in prop::collection::vec(call(), 0..120)) {
        let mut lessor = Lessor::new(Settings { retry_millis: 2_000, checkpoint_interval_millis: Some(3_000) });
        let mut model: BTreeMap<LeaseId, BTreeSet<Vec<u8>>> = BTreeMap::new();
        let mut now = Tick(0);
        for call in calls {
            match call {
                Call::Grant(number, ttl) => {
                    let free = number != 0 && !model.contains_key(&id(number));
                    prop_assert_eq!(lessor.grant(id(number), ttl, LogIndex(1), now).is_ok(), free);
                    if free {
                        model.insert(id(number), BTreeSet::new());
                    }
                }
                Call::Revoke(number) => {
                    let keys = model.remove(&id(number)).map(|keys| keys.into_iter().map(Bytes::from).collect());
                    prop_assert_eq!(lessor.revoke(id(number)).ok(), keys);
                }
                Call::Attach(number, key) => {
                    let keys = model.get_mut(&id(number));
                    prop_assert_eq!(lessor.attach(id(number), &[key]).is_ok(), keys.is_some());
                    keys.map(|keys| keys.insert(vec![key]));
                }
                Call::Detach(number, key) => {
                    let was_on = model.get_mut(&id(number)).is_some_and(|keys| keys.remove(&[key][..]));
                    prop_assert_eq!(lessor.detach(id(number), &[key]), was_on);
                }
                Call::Checkpoint(number, left) => _ = lessor.checkpoint(life(number), seconds(left)),
                Call::Renew(number) => {
                    let deadline = lessor.leases.get(&id(number)).map(|lease| lease.deadline);
                    let alive = lessor.is_primary() && deadline.is_some_and(|deadline| deadline > now);
                    let renewed = lessor.renew(id(number), now);
                    prop_assert!(alive || renewed.is_err());
                    if renewed.is_ok() {
                        let row = lessor.row(id(number)).unwrap();
                        prop_assert_eq!(row.checkpoint_seconds, None);
                        prop_assert!(lessor.leases[&id(number)].deadline >= now.plus_millis(row.granted_seconds * 1_000));
                    }
                }
                Call::Due(max) => {
                    let waiting = lessor.next_deadline();
                    let due = lessor.due(now, max);
                    prop_assert!(due.len() <= max && (due.is_empty() || waiting.unwrap() <= now));
                    for life in due {
                        prop_assert!(lessor.leases[&life.id].deadline <= now);
                    }
                }
                Call::CheckpointsDue(max) => {
                    for Checkpoint { life, remaining_seconds } in lessor.checkpoints_due(now, max) {
                        let lease = &lessor.leases[&life.id];
                        prop_assert!(now.plus_millis(remaining_seconds.get() * 1_000) >= lease.deadline);
                        prop_assert!(remaining_seconds.get() < lease.granted_seconds && lease.retry_at.is_none());
                    }
                }
                Call::Promote => lessor.promote(now, ELECTION),
                Call::Demote => lessor.demote(),
                Call::Wait(millis) => now = now.plus_millis(millis),
            }
            assert_consistent(&lessor);
            prop_assert_eq!(lessor.by_expiry().len(), model.len());
            for (&id, keys) in &model {
                prop_assert!(lessor.exists(id) && lessor.keys(id).eq(keys.iter().map(|key| &key[..])));
            }
        }
    }
}
