//! placeholder
use crate::ids::MemberId;
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind { NoSpace, Corrupt }
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm { pub member: MemberId, pub kind: AlarmKind }
#[allow(missing_docs)]
#[derive(Default)]
pub struct Alarms(std::collections::BTreeSet<Alarm>);
#[allow(missing_docs)]
impl Alarms {
 pub fn active(&self, k: AlarmKind)->bool{self.0.iter().any(|a|a.kind==k)}
 pub fn activate(&mut self, a: Alarm)->bool{self.0.insert(a)}
 pub fn deactivate(&mut self, a: Alarm)->bool{self.0.remove(&a)}
 pub fn list(&self, k: Option<AlarmKind>)->Vec<Alarm>{self.0.iter().filter(|a|k.is_none_or(|k|a.kind==k)).copied().collect()}
}
#[allow(missing_docs)]
impl Alarm { pub fn to_bytes(self)->[u8;9]{let mut b=[0;9];b[..8].copy_from_slice(&self.member.0.to_be_bytes());b[8]=self.kind as u8;b} }
#[allow(missing_docs)]
impl Alarm { pub fn from_bytes(b:&[u8])->Option<Alarm>{ let (m,k)=b.split_at_checked(8)?; Some(Alarm{member:MemberId(u64::from_be_bytes(m.try_into().ok()?)),kind:match k{[0]=>AlarmKind::NoSpace,[1]=>AlarmKind::Corrupt,_=>return None}})} }
