//! Compiles the protobuf files with protox, so that building needs no protoc.

fn main() {
    let files = ["proto/rpc.proto", "proto/kv.proto", "proto/auth.proto", "proto/health.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"]).expect("the .proto files of this crate compile");
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure()
        .compile_fds_with_config(descriptors, config)
        .expect("code generation writes to OUT_DIR");
}
