//! Every method that the gRPC services have, and how a path leads to it.

/// How messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One there, one back.
    Unary,
    /// One there, many back.
    ServerStream,
    /// Many both ways.
    BidiStream,
}

impl Kind {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

/// A method.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Its path, `/package.Service/Method`.
    pub path: &'static str,
    /// Its service, `package.Service`.
    pub service: &'static str,
    /// Its name.
    pub name: &'static str,
    /// How its messages go.
    pub kind: Kind,
    /// Whether its series exist before the first call. etcd has that for the services that it registers before its
    /// metrics; those of locks, elections and unknown methods begin with their first call.
    pub listed: bool,
}

macro_rules! methods {
    ($($listed:literal $service:literal { $($kind:ident $name:literal)* })*) => {
        /// All of them; the last stands for every path that no other has.
        pub const METHODS: &[Method] = &[
            $($(Method {
                path: concat!("/", $service, "/", $name),
                service: $service,
                name: $name,
                kind: Kind::$kind,
                listed: $listed,
            },)*)*
            // Paths are the client's to choose, so that a series for each would let anybody fill the memory.
            Method { path: "", service: "unknown", name: "unknown", kind: Kind::Unary, listed: false },
        ];
    };
}

methods! {
    true "etcdserverpb.KV" { Unary "Range" Unary "Put" Unary "DeleteRange" Unary "Txn" Unary "Compact" }
    true "etcdserverpb.Watch" { BidiStream "Watch" }
    true "etcdserverpb.Lease" {
        Unary "LeaseGrant" Unary "LeaseRevoke" BidiStream "LeaseKeepAlive" Unary "LeaseTimeToLive" Unary "LeaseLeases"
    }
    true "etcdserverpb.Cluster" {
        Unary "MemberAdd" Unary "MemberRemove" Unary "MemberUpdate" Unary "MemberList" Unary "MemberPromote"
    }
    true "etcdserverpb.Maintenance" {
        Unary "Alarm" Unary "Status" Unary "Defragment" Unary "Hash" Unary "HashKV" ServerStream "Snapshot"
        Unary "MoveLeader" Unary "Downgrade"
    }
    true "etcdserverpb.Auth" {
        Unary "AuthEnable" Unary "AuthDisable" Unary "AuthStatus" Unary "Authenticate"
        Unary "UserAdd" Unary "UserGet" Unary "UserList" Unary "UserDelete" Unary "UserChangePassword"
        Unary "UserGrantRole" Unary "UserRevokeRole"
        Unary "RoleAdd" Unary "RoleGet" Unary "RoleList" Unary "RoleDelete" Unary "RoleGrantPermission"
        Unary "RoleRevokePermission"
    }
    true "grpc.health.v1.Health" { Unary "Check" Unary "List" ServerStream "Watch" }
    false "etcdserverpb.KV" { ServerStream "RangeStream" }
    false "v3lockpb.Lock" { Unary "Lock" Unary "Unlock" }
    false "v3electionpb.Election" {
        Unary "Campaign" Unary "Proclaim" Unary "Leader" ServerStream "Observe" Unary "Resign"
    }
}

/// The place in [`METHODS`] of every path that is not there.
pub const UNKNOWN: usize = METHODS.len() - 1;

/// The place of a path in [`METHODS`].
#[inline]
pub fn find(path: &str) -> usize {
    let at = usize::from(TABLE.slots[slot(path.as_bytes(), TABLE.seed)]);
    if METHODS[at].path == path { at } else { UNKNOWN }
}

/// A perfect hash: no two paths of [`METHODS`] share a slot, so that one comparison settles which it is.
struct Table {
    seed: u64,
    slots: [u8; 1 << SLOT_BITS],
}

const SLOT_BITS: u32 = 9;

static TABLE: Table = table();

/// The last eight bytes and the length tell all paths apart.
#[inline]
const fn slot(path: &[u8], seed: u64) -> usize {
    let mut key = path.len() as u64;
    if let Some(tail) = path.last_chunk::<8>() {
        key ^= u64::from_le_bytes(*tail);
    }
    (key.wrapping_mul(seed) >> (u64::BITS - SLOT_BITS)) as usize
}

/// Tries seeds until one has no collision, while compiling.
const fn table() -> Table {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    'seeds: loop {
        let mut slots = [UNKNOWN as u8; 1 << SLOT_BITS];
        let mut at = 0;
        while at < UNKNOWN {
            let slot = slot(METHODS[at].path.as_bytes(), seed);
            if slots[slot] as usize != UNKNOWN {
                seed = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1) | 1;
                continue 'seeds;
            }
            slots[slot] = at as u8;
            at += 1;
        }
        return Table { seed, slots };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_to_its_method_and_no_other_does() {
        for (at, method) in METHODS[..UNKNOWN].iter().enumerate() {
            assert_eq!(find(method.path), at, "{}", method.path);
            assert_eq!(method.path, format!("/{}/{}", method.service, method.name));
            assert_eq!(find(&method.path[1..]), UNKNOWN);
            assert_eq!(find(&format!("{}x", method.path)), UNKNOWN);
            assert_eq!(find(&method.path.to_lowercase()), UNKNOWN);
        }
        for path in ["", "/", "/a", "/etcdserverpb.KV/", "/etcdserverpb.KV/Nope", "/x.KV/Put"] {
            assert_eq!(find(path), UNKNOWN, "{path}");
        }
    }

    #[test]
    fn the_methods_that_are_generated_are_all_here() {
        for proto in
            [include_str!("../../../e2d-api/proto/rpc.proto"), include_str!("../../../e2d-api/proto/health.proto")]
        {
            let package = proto.lines().find_map(|line| line.strip_prefix("package ")).unwrap().trim_end_matches(';');
            let mut service = "";
            let mut seen = 0;
            for line in proto.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("service ") {
                    service = rest.split_whitespace().next().unwrap();
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    let name = rest.split('(').next().unwrap().trim();
                    let at = find(&format!("/{package}.{service}/{name}"));
                    assert_ne!(at, UNKNOWN, "{package}.{service}.{name}");
                    let streams = rest.matches("stream ").count();
                    let kind = [Kind::Unary, Kind::ServerStream, Kind::BidiStream][streams];
                    assert_eq!(METHODS[at].kind, kind, "{name}");
                    seen += 1;
                }
            }
            assert!(seen > 0, "{package}");
        }
    }
}
