//! Alarms: what is wrong with the cluster and keeps it from taking changes until somebody has looked.
//!
//! Replicated: raised and taken back through the log, so that all members refuse the same requests.

use crate::ids::MemberId;
use std::collections::BTreeSet;
use std::fmt;

/// What is wrong. On the wire there is also a kind that stands for none, which raises and takes back nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// A member's store has reached its quota.
    NoSpace,
    /// A member's data differs from that of the others.
    Corrupt,
}

/// One alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// What is wrong.
    pub kind: AlarmKind,
    /// With whom. Whatever number the client named, 0 and strangers included.
    pub member: MemberId,
}

impl Alarm {
    /// As the key of a row in the store.
    pub fn to_bytes(self) -> [u8; 9] {
        let mut bytes = [0; 9];
        bytes[..8].copy_from_slice(&self.member.0.to_be_bytes());
        bytes[8] = match self.kind {
            AlarmKind::NoSpace => 1,
            AlarmKind::Corrupt => 2,
        };
        bytes
    }

    /// Reads what [`Alarm::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Alarm> {
        let (member, kind) = bytes.split_at_checked(8)?;
        let kind = match kind {
            [1] => AlarmKind::NoSpace,
            [2] => AlarmKind::Corrupt,
            _ => return None,
        };
        Some(Alarm { kind, member: MemberId(u64::from_be_bytes(member.try_into().ok()?)) })
    }
}

/// What a request would do, as far as an alarm cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores something: a put, a transaction with a put in either branch, the grant of a lease.
    Stores,
    /// Changes keys or leases and stores nothing: a deletion, a transaction without puts, a compaction, the revocation
    /// of a lease.
    Frees,
}

/// The alarms that are raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    raised: BTreeSet<Alarm>,
}

impl Alarms {
    /// The alarms that the store kept.
    pub fn load(alarms: impl IntoIterator<Item = Alarm>) -> Alarms {
        Alarms { raised: alarms.into_iter().collect() }
    }

    /// Raises an alarm. Says whether it was not raised before; the answer to the client names it in both cases.
    pub fn activate(&mut self, alarm: Alarm) -> bool {
        self.raised.insert(alarm)
    }

    /// Takes an alarm back. Says whether it was raised; the answer to the client names it only then.
    pub fn deactivate(&mut self, alarm: Alarm) -> bool {
        self.raised.remove(&alarm)
    }

    /// The alarms of a kind, or all, whichever member they are about, by kind and member.
    pub fn get(&self, kind: Option<AlarmKind>) -> impl Iterator<Item = Alarm> {
        self.raised.iter().copied().filter(move |alarm| kind.is_none_or(|kind| kind == alarm.kind))
    }

    /// Whether any member has an alarm of this kind.
    pub fn active(&self, kind: AlarmKind) -> bool {
        self.get(Some(kind)).next().is_some()
    }

    /// The alarm that forbids a change, if any: corruption forbids every change, want of space only those that store
    /// something, so that space can be made. Corruption is named first, since it is the graver one.
    pub fn forbids(&self, change: Change) -> Option<AlarmKind> {
        if self.active(AlarmKind::Corrupt) {
            return Some(AlarmKind::Corrupt);
        }
        (change == Change::Stores && self.active(AlarmKind::NoSpace)).then_some(AlarmKind::NoSpace)
    }
}

impl fmt::Display for AlarmKind {
    /// The name that etcd has for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::AlarmKind::{Corrupt, NoSpace};
    use super::*;

    fn alarm(member: u64, kind: AlarmKind) -> Alarm {
        Alarm { member: MemberId(member), kind }
    }

    #[test]
    fn an_alarm_is_raised_once_and_taken_back_once() {
        let mut alarms = Alarms::default();
        assert!(!alarms.deactivate(alarm(5, NoSpace)));
        assert!(alarms.activate(alarm(5, NoSpace)) && !alarms.activate(alarm(5, NoSpace)));
        assert!(!alarms.deactivate(alarm(5, Corrupt)) && !alarms.deactivate(alarm(6, NoSpace)));
        assert_eq!(alarms.get(None).collect::<Vec<_>>(), [alarm(5, NoSpace)]);
        assert!(alarms.deactivate(alarm(5, NoSpace)) && !alarms.deactivate(alarm(5, NoSpace)));
        assert_eq!(alarms, Alarms::default());
    }

    #[test]
    fn alarms_are_told_apart_by_kind_and_member() {
        let raised = [alarm(0, NoSpace), alarm(5, NoSpace), alarm(5, Corrupt), alarm(9, Corrupt)];
        let mut alarms = Alarms::load(raised.into_iter().rev());
        assert_eq!(alarms.get(None).collect::<Vec<_>>(), raised);
        assert_eq!(alarms.get(Some(NoSpace)).collect::<Vec<_>>(), raised[..2]);
        assert_eq!(alarms.get(Some(Corrupt)).collect::<Vec<_>>(), raised[2..]);
        // A member of 0 is not "every member".
        assert!(alarms.deactivate(alarm(0, NoSpace)));
        assert!(alarms.active(NoSpace));
        assert!(alarms.deactivate(alarm(5, NoSpace)));
        assert!(!alarms.active(NoSpace) && alarms.active(Corrupt));
    }

    #[test]
    fn want_of_space_forbids_storing_and_corruption_every_change() {
        for (raised, storing, freeing) in [
            (&[][..], None, None),
            (&[alarm(1, NoSpace)], Some(NoSpace), None),
            (&[alarm(1, Corrupt)], Some(Corrupt), Some(Corrupt)),
            (&[alarm(1, NoSpace), alarm(2, Corrupt)], Some(Corrupt), Some(Corrupt)),
        ] {
            let alarms = Alarms::load(raised.iter().copied());
            assert_eq!(
                (alarms.forbids(Change::Stores), alarms.forbids(Change::Frees)),
                (storing, freeing),
                "{raised:?}"
            );
        }
    }

    #[test]
    fn kinds_have_the_names_that_clients_know() {
        assert_eq!((NoSpace.to_string(), Corrupt.to_string()), ("NOSPACE".into(), "CORRUPT".into()));
    }
}
