//! Random steps that are likely to meet each other: few keys, few leases, revisions near the interesting ones.

use bytes::Bytes;
use e2d_api::etcdserverpb::compare::TargetUnion;
use e2d_api::etcdserverpb::*;

use super::step::{Answer, Step};
use crate::client::*;

/// SplitMix64: a few lines, and the same numbers on every machine and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which must not be 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From `low` to `high`, both included; `low` if the range is empty.
    fn within(&mut self, low: i64, high: i64) -> i64 {
        if high <= low {
            low
        } else {
            low + self.below((high - low) as u64 + 1) as i64
        }
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

/// How many streams of watches there are, and how many watches at most on each.
const STREAMS: u64 = 4;
const WATCHES: usize = 10;
/// Long enough that none ends during a run.
const LEASE_TTLS: [i64; 3] = [3600, 7200, 1_000_000];
const LEASES: [i64; 8] = [1, 2, 3, 4, 5, 6, -5, i64::MAX];

pub struct Generator {
    random: Random,
    keys: Vec<Bytes>,
    /// What the reference has told.
    revision: i64,
    compacted: i64,
    /// How many watches may live, by stream. An upper bound is enough.
    watches: [usize; STREAMS as usize],
}

impl Generator {
    pub fn new(seed: u64) -> Generator {
        let mut random = Random(seed);
        let mut keys: Vec<Bytes> = [
            "\0", "\0\0", "a\0", "a", "aa", "ab", "b", "c", "d", "d/", "d/1", "d/2", "d0", "~",
        ]
        .into_iter()
        .map(b)
        .collect();
        keys.extend(
            [
                &[0xff][..],
                &[0xff, 0xff],
                &[0x80],
                &[b'a', 0xff],
                &[b'a', 0xff, 0xff],
            ]
            .map(b),
        );
        // Where a store cuts its keys, two long ones that differ behind the cut must not become one.
        for length in [510, 511, 512, 1023, 4095] {
            let mut long = vec![b'k'; length];
            keys.push(b(&long));
            for tail in [0, b'x', 0xff] {
                long.truncate(length);
                long.push(tail);
                keys.push(b(&long));
            }
        }
        for _ in 0..8 {
            let length = 1 + random.below(12) as usize;
            keys.push((0..length).map(|_| random.pick(b"\0ab/\xff")).collect());
        }
        Generator {
            random,
            keys,
            revision: 1,
            compacted: 0,
            watches: [0; STREAMS as usize],
        }
    }

    /// Takes the revisions from an answer of the reference.
    pub fn learn(&mut self, step: &Step, answer: &Answer) {
        self.revision = self.revision.max(answer.revision().unwrap_or(0));
        if let (Step::Compact(request), Answer::Compact(_)) = (step, answer) {
            self.compacted = request.revision;
        }
    }

    pub fn next(&mut self) -> Step {
        match self.random.below(1000) {
            0..240 => Step::Put(self.put()),
            240..470 => Step::Range(self.range()),
            470..550 => Step::Delete(self.delete()),
            550..720 => Step::Txn(self.txn(2)),
            720..760 => Step::Grant(self.grant()),
            760..785 => Step::Revoke(LeaseRevokeRequest { id: self.lease() }),
            785..800 => Step::KeepAlive(LeaseKeepAliveRequest { id: self.lease() }),
            800..825 => Step::TimeToLive(LeaseTimeToLiveRequest {
                id: self.lease(),
                keys: self.random.percent(70),
            }),
            825..830 => Step::Leases,
            830..840 => Step::Alarm(self.alarm()),
            840..855 => Step::HashKv(HashKvRequest {
                revision: self.any_revision(),
            }),
            855..862 => Step::Compact(self.compaction()),
            862..930 => self.watch(),
            930..965 => self.cancel(),
            965..992 => Step::Progress {
                stream: self.random.below(STREAMS) as usize,
            },
            992..999 => Step::Settle,
            // A restart takes as long as a thousand other steps.
            _ if self.random.percent(50) => Step::Settle,
            _ => {
                self.watches = [0; STREAMS as usize];
                Step::Restart {
                    kill: self.random.percent(70),
                }
            }
        }
    }

    fn key(&mut self) -> Bytes {
        if self.random.percent(1) {
            Bytes::new()
        } else {
            self.random.pick(&self.keys)
        }
    }

    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.random.below(100) {
            0..35 => Bytes::new(),
            35..45 => b("\0"),
            45..65 => prefix_end(key),
            65..68 => key.clone(),
            68..72 => [key, &b"\0"[..]].concat().into(),
            // Half of these stand before their key.
            _ => self.random.pick(&self.keys),
        }
    }

    fn value(&mut self) -> Bytes {
        let length = match self.random.below(100) {
            0..10 => 0,
            10..95 => 1 + self.random.below(8),
            _ => self.random.below(5000),
        };
        let byte = self.random.pick(b"\0ab\xff");
        vec![byte; length as usize].into()
    }

    fn lease(&mut self) -> i64 {
        if self.random.percent(4) {
            self.random.pick(&[0, 99, -1])
        } else {
            self.random.pick(&LEASES)
        }
    }

    /// 0 for now, mostly; old, compacted, future and senseless ones otherwise.
    fn any_revision(&mut self) -> i64 {
        match self.random.below(100) {
            0..60 => 0,
            60..85 => self.random.within(self.compacted.max(1), self.revision),
            85..89 => self.compacted,
            89..93 => self.random.within(1, self.compacted - 1),
            93..97 => self.revision + self.random.within(0, 3),
            97..99 => -1,
            _ => self.random.pick(&[i64::MAX, i64::MIN]),
        }
    }

    fn limit(&mut self) -> i64 {
        match self.random.below(100) {
            0..60 => 0,
            60..90 => self.random.within(1, 6),
            90..95 => 1000,
            _ => self.random.pick(&[-1, i64::MIN]),
        }
    }

    /// A bound on a revision, mostly none.
    fn bound(&mut self) -> i64 {
        if self.random.percent(85) {
            0
        } else {
            self.random.within(-1, self.revision + 1)
        }
    }

    fn range(&mut self) -> RangeRequest {
        let key = self.key();
        let range_end = self.range_end(&key);
        RangeRequest {
            range_end,
            key,
            limit: self.limit(),
            revision: self.any_revision(),
            sort_order: self.choice(3),
            sort_target: self.choice(5),
            serializable: self.random.percent(20),
            keys_only: self.random.percent(20),
            count_only: self.random.percent(10),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    /// One of `known` values of an enum: the first as often as all others, and seldom one that does not exist.
    fn choice(&mut self, known: u64) -> i32 {
        match self.random.below(100) {
            0..50 => 0,
            50..98 => self.random.below(known) as i32,
            _ => self.random.pick(&[known as i32, -1, 77]),
        }
    }

    fn put(&mut self) -> PutRequest {
        let mut put = PutRequest {
            key: self.key(),
            value: self.value(),
            lease: if self.random.percent(70) {
                0
            } else {
                self.lease()
            },
            prev_kv: self.random.percent(30),
            ignore_value: self.random.percent(10),
            ignore_lease: self.random.percent(10),
        };
        // Both given and ignored is refused, which is worth an answer now and then.
        if put.ignore_value && self.random.percent(80) {
            put.value = Bytes::new();
        }
        if put.ignore_lease && self.random.percent(80) {
            put.lease = 0;
        }
        put
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        let mut range_end = self.range_end(&key);
        // A store that is emptied all the time has no history.
        if &range_end[..] == b"\0" && self.random.percent(80) {
            range_end = Bytes::new();
        }
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.random.percent(40),
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let compare = (0..self.random.below(3)).map(|_| self.compare()).collect();
        let mut branch = || (0..self.random.below(5)).map(|_| self.op(depth)).collect();
        TxnRequest {
            compare,
            success: branch(),
            failure: branch(),
        }
    }

    fn op(&mut self, depth: u32) -> RequestOp {
        match self.random.below(100) {
            0..45 => put_op(self.put()),
            45..70 => {
                let mut range = self.range();
                // Below zero fails the whole transaction, and most are to run.
                if self.random.percent(80) {
                    range.revision = 0;
                }
                range_op(range)
            }
            70..84 => delete_op(self.delete()),
            84..99 if depth > 0 => txn_op(self.txn(depth - 1)),
            84..99 => range_op(key(self.key())),
            _ => RequestOp { request: None },
        }
    }

    fn compare(&mut self) -> Compare {
        let key = self.key();
        let range_end = if self.random.percent(75) {
            Bytes::new()
        } else {
            self.range_end(&key)
        };
        let target = self.choice(5);
        let operand = if self.random.percent(95) {
            target
        } else {
            self.choice(5)
        };
        let near = self.random.within(-1, 3);
        let revision = if self.random.percent(50) {
            near
        } else {
            self.random.within(0, self.revision + 1)
        };
        let target_union = match operand {
            _ if self.random.percent(4) => None,
            1 => Some(TargetUnion::CreateRevision(revision)),
            2 => Some(TargetUnion::ModRevision(revision)),
            3 => Some(TargetUnion::Value(self.value())),
            4 => Some(TargetUnion::Lease(self.lease())),
            _ => Some(TargetUnion::Version(near)),
        };
        Compare {
            result: self.choice(4),
            target,
            key,
            range_end,
            target_union,
        }
    }

    fn grant(&mut self) -> LeaseGrantRequest {
        let ttl = if self.random.percent(4) {
            9_000_000_001
        } else {
            self.random.pick(&LEASE_TTLS)
        };
        LeaseGrantRequest {
            ttl,
            id: self.random.pick(&LEASES),
        }
    }

    /// Only those that change nothing: a server with an alarm refuses all else.
    fn alarm(&mut self) -> AlarmRequest {
        AlarmRequest {
            action: self.random.within(0, 2) as i32,
            member_id: 0,
            alarm: 0,
        }
    }

    fn compaction(&mut self) -> CompactionRequest {
        let revision = match self.random.below(100) {
            0..70 => self.random.within(self.compacted + 1, self.revision),
            70..80 => self.revision,
            _ => self.any_revision(),
        };
        CompactionRequest {
            revision,
            physical: self.random.percent(50),
        }
    }

    fn watch(&mut self) -> Step {
        let stream = self.random.below(STREAMS) as usize;
        if self.watches[stream] >= WATCHES {
            return self.cancel();
        }
        self.watches[stream] += 1;
        let key = self.key();
        let range_end = self.range_end(&key);
        let start_revision = match self.random.below(100) {
            0..45 => 0,
            45..80 => self.random.within(self.compacted.max(1), self.revision),
            80..86 => self.random.within(1, self.compacted - 1),
            86..96 => self.revision + self.random.within(1, 6),
            _ => self.random.pick(&[-1, i64::MIN]),
        };
        let filters = (0..self.random.below(3))
            .map(|_| self.random.below(2) as i32)
            .collect();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: self.random.percent(20),
            filters: if self.random.percent(75) {
                Vec::new()
            } else {
                filters
            },
            prev_kv: self.random.percent(50),
            watch_id: if self.random.percent(70) {
                0
            } else {
                self.random.within(-2, 12)
            },
            fragment: self.random.percent(20),
        };
        Step::Watch { stream, create }
    }

    fn cancel(&mut self) -> Step {
        let stream = self.random.below(STREAMS) as usize;
        self.watches[stream] = self.watches[stream].saturating_sub(1);
        Step::Cancel {
            stream,
            watch_id: self.random.within(-1, WATCHES as i64 + 2),
        }
    }
}

/// The end of the range of all keys that begin with this one.
fn prefix_end(key: &[u8]) -> Bytes {
    let mut end = key.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    b("\0")
}
