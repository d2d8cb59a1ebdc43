//! Generates two services, and tells the binary what it was built from. The same source gives the same answers on every machine.

use std::process::Command;

fn main() {
    generate_services();
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["E2D_GIT_SHA", "SOURCE_DATE_EPOCH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // A debug build that followed the commit would be compiled anew after every one of them.
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let git = |args: &[&str]| release.then(|| output("git", args)).flatten();
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    let sha = std::env::var("E2D_GIT_SHA").ok().or_else(|| git(&["rev-parse", "HEAD"]));
    let date = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .or_else(|| git(&["log", "-1", "--format=%ct"])?.parse().ok())
        .map(utc);
    let rustc = std::env::var("RUSTC").ok();
    let rustc = rustc.and_then(|rustc| output(&rustc, &["--version"]));
    for (name, value) in [("GIT_SHA", sha), ("DATE", date), ("RUSTC", rustc)] {
        let value = value.unwrap_or_else(|| "unknown".into());
        println!("cargo::rustc-env=BUILT_E2D_{name}={value}");
    }
}

/// The first line that a program prints, if it succeeds and prints one.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (out.status.success() && !line.is_empty()).then(|| line.to_string())
}

/// Seconds since 1970 as RFC 3339 in UTC.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March end with the leap day, so that months have fixed offsets.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Services with such a response.
const SERVICES: [&str; 2] = ["KV", "Watch"];

/// These responses are types of `crate::api::wire`.
const RESPONSES: [&str; 2] = ["RangeResponse", "WatchResponse"];

/// Generates the server side of those services whose responses hold bytes that are encoded already. Their other
/// messages, and all other services, are those of `e2d-api`.
fn generate_services() {
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
