//! What clients talk to.

pub mod watch;
pub mod wire;

/// The server side of the services that answer with types of [`wire`].
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod generated {
    tonic::include_proto!("etcdserverpb");
}
