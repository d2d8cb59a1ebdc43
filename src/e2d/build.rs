//! Generates the server side of those services whose responses hold bytes that are encoded already. Their other
//! messages, and all other services, are those of `e2d-api`.

/// Services with such a response.
const SERVICES: [&str; 2] = ["KV", "Watch"];

/// These responses are types of `crate::api::wire`.
const RESPONSES: [&str; 2] = ["RangeResponse", "WatchResponse"];

fn main() {
    let proto = "../e2d-api/proto";
    println!("cargo:rerun-if-changed={proto}");
    let mut files = protox::compile([format!("{proto}/rpc.proto")], [proto]).expect("etcd's .proto files compile");
    for file in &mut files.file {
        file.service.retain(|service| SERVICES.contains(&service.name()));
    }

    let mut config = tonic_prost_build::configure().build_client(false);
    for package in ["etcdserverpb", "mvccpb", "authpb"] {
        config = config.extern_path(format!(".{package}"), format!("::e2d_api::{package}"));
    }
    for response in RESPONSES {
        // The longer path wins over that of its package.
        config = config.extern_path(format!(".etcdserverpb.{response}"), format!("crate::api::wire::{response}"));
    }
    config.compile_fds(files).expect("code generation writes to OUT_DIR");
}
