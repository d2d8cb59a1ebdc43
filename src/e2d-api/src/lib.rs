//! etcd's v3 API as protobuf messages and gRPC services, and the status texts that its clients match on.
//!
//! Nothing here decides anything. The messages are generated from `proto/`, whose field numbers are etcd's wire
//! format.

pub mod errors;

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod generated {
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }
}
pub use generated::{authpb, etcdserverpb, health, mvccpb};
