//! The lessor: which leases there are, which keys hang on them, and when one has run out.
//!
//! ```text
//!  replicated, the same on every member            of the leader alone
//!  grant  revoke  attach  detach                   promote  renew  demote
//!  expire  checkpoint  ◄──── apply ◄──── log ◄──── due  checkpoints_due
//! ```
//!
//! Members agree on the granted TTL, the last checkpoint and the attached keys. Deadlines are in no log: only the
//! leader counts, on its own monotonic clock, and a new leader starts every lease anew. So a change of leader can make
//! a lease live longer than asked for, never shorter, and no wall clock has a say in it.
//!
//! A deadline that has passed removes nothing here. [`Lessor::due`] names the lease, the leader proposes its expiry,
//! and [`Lessor::expire`] is what every member does when that proposal is applied.
//!
//! # What the caller owes
//!
//! An expiry from [`Lessor::due`] and a checkpoint, a clearing one included, are only true in the term in which they
//! were decided: a later leader may have renewed the lease since. They must not be forwarded to another leader, and
//! apply must refuse one whose entry has another term than the one in which it was decided.
//!
//! They are also only true of the [`Life`] that they name. A client may revoke a lease and grant its number again while
//! they wait in the log.

use crate::ids::{LeaseId, LogIndex, Tick};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

/// The longest TTL that can be granted, in seconds.
pub const MAX_TTL_SECONDS: u64 = 9_000_000_000;

/// The lease that a client asks for lives longer than [`MAX_TTL_SECONDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a TTL of {requested} s is more than the {MAX_TTL_SECONDS} s that a lease can have")]
pub struct TtlTooLarge {
    /// What was asked for, in seconds.
    pub requested: i64,
}

/// There is no such lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {0} does not exist")]
pub struct NotFound(pub LeaseId);

/// One life of a lease. Its number may be granted again once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// The lease.
    pub id: LeaseId,
    /// The entry that granted it.
    pub granted_at: LogIndex,
}

/// Why a lease was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The number is taken.
    #[error("lease {0} already exists")]
    AlreadyExists(LeaseId),
    /// The number is 0, which stands for "none" on the wire. Whoever proposes a grant has replaced it by a real one.
    #[error("lease 0 cannot be granted: it stands for no lease")]
    NoId,
}

/// Why the time that a lease has left cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Only the leader knows deadlines. Ask it.
    #[error("this member does not count the time of leases, the leader does")]
    NotPrimary,
    /// There is no such lease.
    #[error("lease {0} does not exist")]
    NotFound(LeaseId),
}

/// Why a lease was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// Only the leader renews. Ask it.
    #[error("this member does not count the time of leases, the leader does")]
    NotPrimary,
    /// There is no such lease. Clients are told a TTL of 0.
    #[error("lease {0} does not exist")]
    NotFound(LeaseId),
    /// The deadline has passed, so its expiry is or will be in the log, and no answer may say that the lease lives.
    /// To be exact, wait until that is applied and say that it does not exist, or until this member is demoted and ask
    /// the next leader.
    #[error("lease {0} has expired and waits for its revocation")]
    Expired(LeaseId),
    /// A checkpoint stands in the log, or may come to stand there, that grants less than a renewal would promise: a
    /// new leader would start from it. Commit a checkpoint of `None` for this life, then renew again.
    #[error("lease {} has a checkpoint that must be cleared before it is renewed", .0.id)]
    Checkpointed(Life),
}

/// What the lessor is told once.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A lease that is still there so long after [`Lessor::due`] named it is named again: the proposal was lost.
    /// Longer than a proposal usually takes, or the log fills with repetitions.
    pub retry_millis: u64,
    /// How much of a lease may pass before its remaining time is put into the log; `None` puts none there, and a new
    /// leader starts every lease at its full TTL.
    pub checkpoint_interval_millis: Option<u64>,
}

/// What the store keeps of a lease. The keys are not in it: the records of the keys name their lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The lease, and when it was granted.
    pub life: Life,
    /// What it was granted, in seconds.
    pub granted_seconds: u64,
    /// What it had left at its last checkpoint, in seconds.
    pub checkpoint_seconds: Option<NonZeroU64>,
}

/// How long a lease has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeToLive {
    /// Whole seconds until the deadline, rounded down as etcd does: a moment after a grant of 5 s it is 4, and in
    /// the last second 0. May exceed `granted_seconds` after a change of leader.
    pub remaining_seconds: u64,
    /// What it was granted, in seconds.
    pub granted_seconds: u64,
}

/// A lease whose remaining time should be put into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The lease.
    pub life: Life,
    /// What it has left, in seconds, rounded up.
    pub remaining_seconds: NonZeroU64,
}

/// The shortest TTL that is granted, in seconds: one and a half election timeouts, so that the holder can outlive a
/// change of leader.
pub fn min_ttl_seconds(election_timeout_millis: u64) -> u64 {
    election_timeout_millis.saturating_mul(3).div_ceil(2 * 1000).max(1)
}

/// The TTL to grant to a client that asks for `requested` seconds: at least the minimum, whatever was asked for.
///
/// It is for whoever proposes the grant, so that the log holds the answer. Members could disagree about it in apply,
/// because the election timeout is each member's own setting.
pub fn ttl_to_grant(requested: i64, election_timeout_millis: u64) -> Result<u64, TtlTooLarge> {
    let seconds = u64::try_from(requested).unwrap_or(0);
    if seconds > MAX_TTL_SECONDS {
        return Err(TtlTooLarge { requested });
    }
    Ok(seconds.max(min_ttl_seconds(election_timeout_millis)))
}

/// All leases, and on the leader their deadlines.
#[derive(Debug)]
pub struct Lessor {
    settings: Settings,
    leases: BTreeMap<LeaseId, Lease>,
    /// `None` unless this member leads.
    countdown: Option<Countdown>,
}

/// What the leader waits for. Every queue holds a lease at most once, with the moment that the lease itself names.
///
/// Ordered sets and not heaps: a renewal moves a lease at once. A heap would keep the old entry until its time, and
/// then either grow with every renewal, or meet all leases of one moment again in one turn, however often they were
/// renewed. It also is the list of leases by expiry.
#[derive(Debug, Default)]
struct Countdown {
    /// By [`Lease::deadline`]: the leases that run.
    running: BTreeSet<(Tick, LeaseId)>,
    /// By [`Lease::retry_at`]: the leases whose expiry was asked for.
    expiring: BTreeSet<(Tick, LeaseId)>,
    /// By [`Lease::checkpoint_at`].
    checkpoints: BTreeSet<(Tick, LeaseId)>,
}

#[derive(Debug)]
struct Lease {
    granted_at: LogIndex,
    granted_seconds: u64,
    checkpoint_seconds: Option<NonZeroU64>,
    keys: AttachedKeys,
    // Everything below has a meaning on the leader alone.
    deadline: Tick,
    /// When to ask again for the expiry; set once it was asked for, which cannot be taken back.
    retry_at: Option<Tick>,
    checkpoint_at: Option<Tick>,
    /// A checkpoint was asked for in this term, and it is not known to stand before a clearing one in the log.
    checkpoint_offered: bool,
    /// How often a checkpoint was to be cleared in this term, less how often that was applied.
    ///
    /// While it is not 0, no checkpoint is offered. So whichever clearing one is applied, it stands after every
    /// checkpoint offered before. A clearing proposal that gets lost costs this lease its further checkpoints in this
    /// term, and no renewal.
    clearings: u32,
}

impl Lessor {
    /// No leases, not the leader.
    pub fn new(settings: Settings) -> Lessor {
        Lessor { settings, leases: BTreeMap::new(), countdown: None }
    }

    /// The leases that the store kept, not the leader. Keys follow with [`Lessor::attach`].
    pub fn load(settings: Settings, rows: impl IntoIterator<Item = Row>) -> Lessor {
        let leases = rows.into_iter().map(|row| {
            let lease = Lease::new(row.life.granted_at, row.granted_seconds);
            (row.life.id, Lease { checkpoint_seconds: row.checkpoint_seconds, ..lease })
        });
        Lessor { settings, leases: leases.collect(), countdown: None }
    }

    // What apply does, alike on every member.

    /// Creates a lease of `ttl_seconds`, which is what [`ttl_to_grant`] gave before the grant was proposed. `at` is the
    /// entry that is being applied. On the leader the lease starts to run at `now`; on other members `now` has no
    /// effect.
    pub fn grant(&mut self, id: LeaseId, ttl_seconds: u64, at: LogIndex, now: Tick) -> Result<(), GrantError> {
        if id == LeaseId(0) {
            return Err(GrantError::NoId);
        }
        if self.leases.contains_key(&id) {
            return Err(GrantError::AlreadyExists(id));
        }
        let mut lease = Lease::new(at, ttl_seconds);
        if let Some(countdown) = &mut self.countdown {
            lease.deadline = now.plus_millis(millis(ttl_seconds));
            countdown.running.insert((lease.deadline, id));
            countdown.schedule_checkpoint(id, &mut lease, self.settings.checkpoint_interval_millis);
        }
        self.leases.insert(id, lease);
        Ok(())
    }

    /// Ends a lease because a client asked for it, and gives the keys to delete, in ascending order: events of one
    /// revision are in this order on every member.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Vec<Bytes>, NotFound> {
        let mut lease = self.leases.remove(&id).ok_or(NotFound(id))?;
        if let Some(countdown) = &mut self.countdown {
            countdown.forget(id, &mut lease);
        }
        Ok(lease.keys.into_sorted())
    }

    /// Ends a lease because its time is up, as [`Lessor::revoke`] does. A lease that was granted anew since is another
    /// one, and is left alone.
    pub fn expire(&mut self, life: Life) -> Result<Vec<Bytes>, NotFound> {
        match self.leases.get(&life.id) {
            Some(lease) if lease.granted_at == life.granted_at => self.revoke(life.id),
            _ => Err(NotFound(life.id)),
        }
    }

    /// Records what the lease had left when this was proposed; `None` clears it. A checkpoint of a life that has
    /// ended has no effect. Says whether the row changed.
    pub fn checkpoint(&mut self, life: Life, remaining_seconds: Option<NonZeroU64>) -> bool {
        let Some(lease) = self.leases.get_mut(&life.id).filter(|lease| lease.granted_at == life.granted_at) else {
            return false;
        };
        let changed = lease.checkpoint_seconds != remaining_seconds;
        lease.checkpoint_seconds = remaining_seconds;
        if let Some(countdown) = &mut self.countdown {
            if remaining_seconds.is_none() && lease.clearings > 0 {
                lease.clearings -= 1;
                lease.checkpoint_offered = false;
            }
            countdown.schedule_checkpoint(life.id, lease, self.settings.checkpoint_interval_millis);
        }
        changed
    }

    /// Hangs a key on a lease.
    ///
    /// The key is copied. A slice of `Bytes` keeps its whole buffer alive, which here would be the request or the
    /// record that it came with, value included, for the life of the lease.
    pub fn attach(&mut self, id: LeaseId, key: &[u8]) -> Result<(), NotFound> {
        self.leases.get_mut(&id).ok_or(NotFound(id))?.keys.insert(key);
        Ok(())
    }

    /// Takes a key off a lease. Says whether it was on it; a lease that is gone has no keys.
    pub fn detach(&mut self, id: LeaseId, key: &[u8]) -> bool {
        self.leases.get_mut(&id).is_some_and(|lease| lease.keys.remove(key))
    }

    // What every member can answer.

    /// Whether there is such a lease, expired or not.
    pub fn exists(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// What the store keeps of a lease.
    pub fn row(&self, id: LeaseId) -> Option<Row> {
        self.leases.get(&id).map(|lease| lease.row(id))
    }

    /// What the store keeps of all leases, by number.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        self.leases.iter().map(|(&id, lease)| lease.row(id))
    }

    /// The keys that hang on a lease, in ascending order; none when there is no such lease.
    pub fn keys(&self, id: LeaseId) -> impl Iterator<Item = &[u8]> {
        self.leases.get(&id).into_iter().flat_map(|lease| lease.keys.iter())
    }

    /// A number for a lease whose client leaves the choice to the server: positive, and free in the view of this
    /// member. Another member may grant the same at the same time; then the grant answers that the lease exists.
    pub fn pick_id(&self, random: u64) -> LeaseId {
        const POSITIVE: u64 = i64::MAX as u64;
        let mut candidate = random & POSITIVE;
        while candidate == 0 || self.exists(LeaseId(candidate as i64)) {
            candidate = (candidate + 1) & POSITIVE;
        }
        LeaseId(candidate as i64)
    }

    /// All leases: on the leader by deadline, the next to expire first, and elsewhere by number.
    pub fn by_expiry(&self) -> Vec<LeaseId> {
        let Some(countdown) = &self.countdown else { return self.leases.keys().copied().collect() };
        // A lease that expires has the earlier deadline than any that runs, but waits by its retry.
        let mut ids: Vec<LeaseId> = countdown.expiring.iter().map(|&(_, id)| id).collect();
        ids.sort_by_key(|&id| (self.leases.get(&id).map(|lease| lease.deadline), id));
        ids.extend(countdown.running.iter().map(|&(_, id)| id));
        ids
    }

    // What the leader does.

    /// Whether this member counts the time of the leases.
    pub fn is_primary(&self) -> bool {
        self.countdown.is_some()
    }

    /// Becomes the one that counts. To be called once this member has applied an entry of the term in which it leads:
    /// all that former leaders committed is applied then, their checkpoints and expiries too.
    ///
    /// Every lease starts anew with its full TTL, or with what its checkpoint left it, and `extend_millis` more: the
    /// election timeout, in which holders could not reach a leader.
    ///
    /// etcd also spreads deadlines that are close to each other, so that its fixed rate of revocations can follow.
    /// Here one entry may revoke many leases, and the spread would be expiry that is late for no reason.
    pub fn promote(&mut self, now: Tick, extend_millis: u64) {
        let mut countdown = Countdown::default();
        for lease in self.leases.values_mut() {
            lease.forget_term();
            lease.deadline = now.plus_millis(lease.starting_millis().saturating_add(extend_millis));
        }
        // Collecting sorts once and builds the set from below, which is cheaper than as many insertions.
        countdown.running = self.leases.iter().map(|(&id, lease)| (lease.deadline, id)).collect();
        if let Some(interval) = self.settings.checkpoint_interval_millis {
            for (&id, lease) in &mut self.leases {
                countdown.schedule_checkpoint(id, lease, Some(interval));
            }
        }
        self.countdown = Some(countdown);
    }

    /// Stops counting: another member leads. Nothing expires here until the next [`Lessor::promote`].
    pub fn demote(&mut self) {
        self.countdown = None;
        self.leases.values_mut().for_each(Lease::forget_term);
    }

    /// Lets a lease run for its full TTL from `now`, and gives that TTL in seconds. A renewal never shortens.
    ///
    /// An `Ok` may be passed on to the client as it is, provided that the caller has confirmed, after the request
    /// came in, that this member still leads, and has applied everything that was committed by then (a read index
    /// does both). Without it the lease may be revoked already, and the client may have been told so by a member that
    /// applies faster.
    pub fn renew(&mut self, id: LeaseId, now: Tick) -> Result<u64, RenewError> {
        let countdown = self.countdown.as_mut().ok_or(RenewError::NotPrimary)?;
        let lease = self.leases.get_mut(&id).ok_or(RenewError::NotFound(id))?;
        if lease.retry_at.is_some() || lease.deadline <= now {
            return Err(RenewError::Expired(id));
        }
        if lease.checkpoint_seconds.is_some() || lease.checkpoint_offered {
            lease.clearings = lease.clearings.saturating_add(1);
            countdown.schedule_checkpoint(id, lease, None);
            return Err(RenewError::Checkpointed(lease.life(id)));
        }
        let deadline = now.plus_millis(millis(lease.granted_seconds));
        if deadline > lease.deadline {
            countdown.running.remove(&(lease.deadline, id));
            lease.deadline = deadline;
            countdown.running.insert((deadline, id));
            countdown.schedule_checkpoint(id, lease, self.settings.checkpoint_interval_millis);
        }
        Ok(lease.granted_seconds)
    }

    /// How long a lease has left. One that has expired and is not revoked yet has 0 s.
    pub fn time_to_live(&self, id: LeaseId, now: Tick) -> Result<TimeToLive, LookupError> {
        if self.countdown.is_none() {
            return Err(LookupError::NotPrimary);
        }
        let lease = self.leases.get(&id).ok_or(LookupError::NotFound(id))?;
        let remaining_seconds = lease.deadline.millis_since(now) / 1000;
        Ok(TimeToLive { remaining_seconds, granted_seconds: lease.granted_seconds })
    }

    /// When [`Lessor::due`] or [`Lessor::checkpoints_due`] next has something to say. A late or spurious wake-up is
    /// harmless.
    pub fn next_deadline(&self) -> Option<Tick> {
        let countdown = self.countdown.as_ref()?;
        let queues = [&countdown.running, &countdown.expiring, &countdown.checkpoints];
        queues.iter().filter_map(|queue| queue.first()).map(|&(at, _)| at).min()
    }

    /// Leases to expire at `now`, at most `max`, the longest overdue first. From here on none of them can be renewed.
    /// Each is named again after the retry interval, for as long as it exists and this member leads.
    ///
    /// Costs as much as it returns, however many leases there are.
    pub fn due(&mut self, now: Tick, max: usize) -> Vec<Life> {
        let mut due = Vec::new();
        let Some(countdown) = &mut self.countdown else { return due };
        let retry_at = now.plus_millis(self.settings.retry_millis.max(1));
        while due.len() < max {
            let first = match (countdown.running.first(), countdown.expiring.first()) {
                (Some(running), Some(expiring)) => *running.min(expiring),
                (Some(only), None) | (None, Some(only)) => *only,
                (None, None) => break,
            };
            let (at, id) = first;
            if at > now {
                break;
            }
            if !countdown.expiring.remove(&first) {
                countdown.running.remove(&first);
            }
            let Some(lease) = self.leases.get_mut(&id) else { no_such_lease(id) };
            lease.retry_at = Some(retry_at);
            countdown.expiring.insert((retry_at, id));
            countdown.schedule_checkpoint(id, lease, None);
            due.push(lease.life(id));
        }
        due
    }

    /// Leases whose remaining time should be put into the log at `now`, at most `max`: those that have run for the
    /// checkpoint interval since they were renewed or last checkpointed, and have more than that left. A lease that
    /// is renewed more often costs the log nothing.
    ///
    /// Each is named again after the interval. Until the checkpoint is applied and cleared, the lease cannot be
    /// renewed without [`RenewError::Checkpointed`].
    pub fn checkpoints_due(&mut self, now: Tick, max: usize) -> Vec<Checkpoint> {
        let mut due = Vec::new();
        let (Some(countdown), Some(interval)) = (&mut self.countdown, self.settings.checkpoint_interval_millis) else {
            return due;
        };
        while due.len() < max {
            let Some(&(at, id)) = countdown.checkpoints.first() else { break };
            if at > now {
                break;
            }
            countdown.checkpoints.remove(&(at, id));
            let Some(lease) = self.leases.get_mut(&id) else { no_such_lease(id) };
            lease.checkpoint_at = None;
            // Rounded up, so that a new leader who starts from it cannot be early. At 0 the lease is expiring.
            let remaining_seconds = lease.deadline.millis_since(now).div_ceil(1000);
            let Some(remaining_seconds) = NonZeroU64::new(remaining_seconds) else { continue };
            if remaining_seconds.get() >= lease.granted_seconds {
                // A checkpoint would say nothing. The extension of a new leader and the rounding lead here.
                countdown.put_checkpoint(id, lease, now.plus_millis(interval.max(1)));
                continue;
            }
            lease.checkpoint_offered = true;
            countdown.put_checkpoint(id, lease, now.plus_millis(interval.max(1)));
            due.push(Checkpoint { life: lease.life(id), remaining_seconds });
        }
        due
    }
}

impl Countdown {
    /// Moves a lease to the moment of its next checkpoint, or out of the queue when it needs none.
    fn schedule_checkpoint(&mut self, id: LeaseId, lease: &mut Lease, interval_millis: Option<u64>) {
        if let Some(at) = lease.checkpoint_at.take() {
            self.checkpoints.remove(&(at, id));
        }
        let Some(interval) = interval_millis else { return };
        let starting = lease.starting_millis();
        // What is left in the end is not worth an entry: a new leader adds less than an interval.
        if starting <= interval || lease.clearings > 0 || lease.retry_at.is_some() {
            return;
        }
        let since = lease.deadline.0.saturating_sub(starting);
        self.put_checkpoint(id, lease, Tick(since).plus_millis(interval));
    }

    fn put_checkpoint(&mut self, id: LeaseId, lease: &mut Lease, at: Tick) {
        lease.checkpoint_at = Some(at);
        self.checkpoints.insert((at, id));
    }

    /// Takes a lease out of every queue.
    fn forget(&mut self, id: LeaseId, lease: &mut Lease) {
        match lease.retry_at.take() {
            Some(at) => self.expiring.remove(&(at, id)),
            None => self.running.remove(&(lease.deadline, id)),
        };
        self.schedule_checkpoint(id, lease, None);
    }
}

impl Lease {
    fn new(granted_at: LogIndex, granted_seconds: u64) -> Lease {
        Lease {
            granted_at,
            granted_seconds,
            checkpoint_seconds: None,
            keys: AttachedKeys::None,
            deadline: Tick(0),
            retry_at: None,
            checkpoint_at: None,
            checkpoint_offered: false,
            clearings: 0,
        }
    }

    fn life(&self, id: LeaseId) -> Life {
        Life { id, granted_at: self.granted_at }
    }

    fn row(&self, id: LeaseId) -> Row {
        Row { life: self.life(id), granted_seconds: self.granted_seconds, checkpoint_seconds: self.checkpoint_seconds }
    }

    /// What a new leader starts from.
    fn starting_millis(&self) -> u64 {
        let checkpoint = self.checkpoint_seconds.map_or(u64::MAX, NonZeroU64::get);
        millis(checkpoint.min(self.granted_seconds))
    }

    fn forget_term(&mut self) {
        self.deadline = Tick(0);
        self.retry_at = None;
        self.checkpoint_at = None;
        self.checkpoint_offered = false;
        self.clearings = 0;
    }
}

fn no_such_lease(id: LeaseId) -> ! {
    unreachable!("a lease leaves the queues when it is revoked, and {id} is in one of them and does not exist")
}

fn millis(seconds: u64) -> u64 {
    seconds.saturating_mul(1000)
}

/// Keys in ascending order. Most leases have one, some have many thousands, and neither kind should pay for the other:
/// a tree of one key is a node of a dozen.
#[derive(Debug)]
enum AttachedKeys {
    None,
    One(Box<[u8]>),
    Many(BTreeSet<Box<[u8]>>),
}

impl AttachedKeys {
    fn insert(&mut self, key: &[u8]) {
        match self {
            AttachedKeys::None => *self = AttachedKeys::One(key.into()),
            AttachedKeys::One(one) if **one == *key => {}
            AttachedKeys::One(one) => {
                *self = AttachedKeys::Many(BTreeSet::from([std::mem::take(one), key.into()]));
            }
            AttachedKeys::Many(keys) => {
                if !keys.contains(key) {
                    keys.insert(key.into());
                }
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let removed = match self {
            AttachedKeys::None => return false,
            AttachedKeys::One(one) if **one != *key => return false,
            AttachedKeys::One(_) => {
                *self = AttachedKeys::None;
                return true;
            }
            AttachedKeys::Many(keys) => keys.remove(key),
        };
        if let AttachedKeys::Many(keys) = self
            && keys.len() == 1
        {
            *self = keys.pop_first().map_or(AttachedKeys::None, AttachedKeys::One);
        }
        removed
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let (one, many) = match self {
            AttachedKeys::None => (None, None),
            AttachedKeys::One(one) => (Some(&**one), None),
            AttachedKeys::Many(keys) => (None, Some(keys.iter().map(|key| &**key))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn into_sorted(self) -> Vec<Bytes> {
        match self {
            AttachedKeys::None => Vec::new(),
            AttachedKeys::One(one) => vec![Bytes::from(one)],
            AttachedKeys::Many(keys) => keys.into_iter().map(Bytes::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
